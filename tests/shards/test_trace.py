"""Who holds the key can tell which files an entry of the ledger stands for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.build import BuildConfig, main
from shards.trace import trace


def test_an_entry_leads_back_to_its_files(
    tmp_path: Path,
    archive: Callable[[Path], Path],
    toy_recipe: Callable[..., BuildConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = toy_recipe(archive(tmp_path), max_rejected_fraction=1)
    (tmp_path / "mr/case_3.nii.gz").write_bytes(b"no image")
    main(config)
    lines = map(json.loads, (tmp_path / "shards/ledger.jsonl").read_text().splitlines())
    (entry,) = [line for line in lines if line["status"] == "rejected"]
    assert "case_3" not in json.dumps(entry)
    capsys.readouterr()
    trace(config, [entry["input"]])
    told = capsys.readouterr().out
    assert "mr, 1 files of subject sub-3" in told
    assert "case_3.nii.gz" in told
    with pytest.raises(ValueError, match="no input of this name"):
        trace(config, ["0" * 16])
    (tmp_path / "key").unlink()
    with pytest.raises(ValueError, match="no such pseudonym key"):
        trace(config, [entry["input"]])
