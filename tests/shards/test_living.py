"""An archive that lives: new scans add shards, changed ones replace theirs, subjects withdraw."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import build
from shards.build import BuildConfig, BuildError, main
from shards.index import DamagedShard
from shards.scan import ABSENT
from shards.streaming.reader import ShardReader
from shards.verify import verify
from shards.withdraw import WithdrawError, withdraw

Archive = Callable[[Path], Path]
Recipe = Callable[..., BuildConfig]


@pytest.fixture
def root(tmp_path: Path, archive: Archive, toy_recipe: Recipe) -> Path:
    root = archive(tmp_path)
    main(toy_recipe(root))
    return root


def tars(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Name to inode and bytes."""
    return {
        path.name: (path.stat().st_ino, path.read_bytes()) for path in sorted(folder.glob("*.tar"))
    }


def dataset(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return found


def ledger(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def keys(folder: Path) -> list[str]:
    return [sample.key for sample in ShardReader(folder).samples]


def test_new_scans_add_shards(
    root: Path, toy_recipe: Recipe, series: Callable[..., None], toy_volume: Callable[..., Any]
) -> None:
    before, about, held = tars(root / "shards"), dataset(root / "shards"), keys(root / "shards")
    # Sorted by name, the new series comes first; in the shards it comes last all the same.
    series(root / "dicom/a0", toy_volume(77), PatientID="PAT-77", SeriesInstanceUID="1.7.7")
    main(toy_recipe(root))
    after, now = tars(root / "shards"), dataset(root / "shards")
    assert {name: after[name] for name in before} == before  # not even written again
    assert len(after) == len(before) + 1
    assert keys(root / "shards")[:9] == held
    assert now["num_samples"] == 10
    assert [past["digest"] for past in now["history"]] == [about["digest"]]
    assert now["digest"] != about["digest"]
    assert list(verify(root / "shards")) == []
    entries = ledger(root / "shards")
    assert [entry["status"] for entry in entries].count("accepted") == 10
    assert now["ledger"]["files"] == sum(entry["files"] for entry in entries) == 9 * 4 + 6 + 1


def test_a_scan_written_again_without_a_change_keeps_its_sample(
    root: Path, toy_recipe: Recipe
) -> None:
    before = tars(root / "shards")
    os.utime(root / "mr/case_1.nii.gz", ns=(1, 1))
    main(toy_recipe(root))
    assert tars(root / "shards") == before
    assert list(verify(root / "shards")) == []


def test_a_changed_scan_replaces_its_sample(
    root: Path, toy_recipe: Recipe, series: Callable[..., None], toy_volume: Callable[..., Any]
) -> None:
    held = keys(root / "shards")
    series(root / "dicom/p1", toy_volume(55), PatientID="PAT-1", SeriesInstanceUID="1.2.3.1")
    main(toy_recipe(root))
    now = keys(root / "shards")
    assert len(now) == 9
    assert held[1] not in now
    assert set(held) - {held[1]} < set(now)
    assert list(verify(root / "shards")) == []
    found = ShardReader(root / "shards")
    assert (
        found.read_volume(now.index(next(k for k in now if k not in held))) == toy_volume(55)
    ).all()


def test_a_scan_that_is_gone_keeps_its_sample(
    root: Path, toy_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    held = keys(root / "shards")
    shutil.rmtree(root / "dicom/p2")
    capsys.readouterr()
    main(toy_recipe(root))
    assert "1 inputs of earlier builds are gone; their samples stay" in capsys.readouterr().out
    assert keys(root / "shards") == held


def test_a_scan_that_was_gone_for_a_while_is_tried_again(
    tmp_path: Path,
    archive: Archive,
    toy_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Listed, then not there to be read; it comes back with the time and size that it had."""
    root, away = archive(tmp_path), tmp_path / "away"
    config = toy_recipe(root, max_rejected_fraction=1)
    scan, plan = root / "mr/case_2.nii.gz", build.make_plan

    def plan_and_lose(*words: Any, **more: Any) -> Any:
        found = plan(*words, **more)
        scan.rename(away)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(build, "make_plan", plan_and_lose)
        main(config)
    assert "1 inputs were gone when they were read" in capsys.readouterr().out
    assert dataset(root / "shards")["num_samples"] == 8
    before = tars(root / "shards")
    away.rename(scan)
    main(config)
    assert dataset(root / "shards")["num_samples"] == 9
    after = tars(root / "shards")
    assert {name: after[name] for name in before} == before
    assert list(verify(root / "shards")) == []
    capsys.readouterr()
    main(config)
    assert "up to date" in capsys.readouterr().out


def test_a_scan_that_never_was_there_is_not_tried_again(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    root = archive(tmp_path)
    (root / "mr/case_2.nii.gz").unlink()
    main(toy_recipe(root, max_rejected_fraction=1))
    assert [one["reason"] for one in ledger(root / "shards")].count(ABSENT) == 1
    main(toy_recipe(root, max_rejected_fraction=1))
    assert "up to date" in capsys.readouterr().out


def test_another_recipe_is_refused(root: Path, toy_recipe: Recipe) -> None:
    before = tars(root / "shards")
    with pytest.raises(BuildError, match=r"built under another recipe.*if_changed=rebuild"):
        main(toy_recipe(root, shard_size_mb=1, if_changed="refuse"))
    assert tars(root / "shards") == before
    main(toy_recipe(root, shard_size_mb=1))
    assert len(tars(root / "shards")) == 1
    assert list(verify(root / "shards")) == []


def _withdraw(root: Path, subject: str) -> None:
    withdraw(
        str(root / "shards"),
        subject,
        key=root / "key",
        runs=root / "runs",
        staging=root / "staging",
    )


def test_a_withdrawn_subject_is_gone_and_stays_gone(
    root: Path, toy_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = ShardReader(root / "shards")
    about, before = reader.dataset, tars(root / "shards")
    sample = reader.samples[1]
    for name, digest in (("seen", about["digest"]), ("other", "0" * 64)):
        (root / "runs" / name / "backbone").mkdir(parents=True)
        told = json.dumps({"shards": {"digest": digest}})
        (root / "runs" / name / "backbone/provenance.json").write_text(told)
    (root / "runs/halfway").mkdir()
    (root / "runs/halfway/run.json").write_text(json.dumps({"shards_digest": about["digest"]}))
    capsys.readouterr()
    _withdraw(root, "PAT-1")
    told = capsys.readouterr().out
    assert "withdrawn: 1 samples of 1 subjects, from 1 shards" in told
    assert "2 runs learned" in told
    assert "runs/seen\n" in told
    assert "runs/halfway\n" in told
    assert "other" not in told
    now = dataset(root / "shards")
    assert now["num_samples"] == 8
    assert sample.subject not in now["subjects"]
    assert now["withdrawn"] == [sample.subject]
    assert now["history"] == [
        {"digest": about["digest"], "event": "withdrawn", "num_samples": 9, "num_subjects": 9}
    ]
    for content in (path.read_bytes() for path in (root / "shards").iterdir()):
        assert sample.key.encode() not in content
    untouched = {name: tar for name, tar in before.items() if name != sample.shard}
    after = tars(root / "shards")
    assert untouched.items() <= after.items()
    assert sample.shard not in after  # a new name: nobody finds other bytes under the old one
    assert list(verify(root / "shards")) == []
    main(toy_recipe(root))
    assert "up to date" in capsys.readouterr().out
    (root / "dicom/more.txt").write_text("the archive goes on")
    main(toy_recipe(root))
    main(toy_recipe(root, shard_size_mb=1))
    assert keys(root / "shards") == [key for key in keys(root / "shards") if key != sample.key]
    assert len(keys(root / "shards")) == 8
    assert list(verify(root / "shards")) == []
    reasons = [e["reason"] for e in ledger(root / "shards") if e["subject"] == sample.subject]
    assert reasons == ["the subject's consent is withdrawn"]


def test_withdrawing_by_pseudonym_needs_no_key(root: Path) -> None:
    subject = ShardReader(root / "shards").samples[5].subject
    (root / "key").unlink()
    _withdraw(root, subject)
    assert len(keys(root / "shards")) == 8
    _withdraw(root, subject)
    assert len(keys(root / "shards")) == 8
    with pytest.raises(WithdrawError, match="no such pseudonym key"):
        _withdraw(root, "PAT-1")


def test_withdrawing_whom_nobody_knows(root: Path) -> None:
    before = tars(root / "shards")
    with pytest.raises(WithdrawError, match="in none of the sources ct, mr"):
        _withdraw(root, "PAT-99")
    assert tars(root / "shards") == before


def test_a_damaged_neighbour_is_not_copied(root: Path) -> None:
    reader = ShardReader(root / "shards")
    one = next(s for s in reader.samples if sum(o.shard == s.shard for o in reader.samples) > 1)
    other = next(s for s in reader.samples if s.shard == one.shard and s.key != one.key)
    tar = root / "shards" / one.shard
    content = bytearray(tar.read_bytes())
    content[other.members["volume.b2nd"].offset + 200] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DamagedShard, match=f"{other.key}.volume.b2nd .* is damaged"):
        _withdraw(root, one.subject)


def test_a_slice_that_comes_late_replaces_the_series(
    tmp_path: Path,
    toy_recipe: Recipe,
    series: Callable[..., None],
    toy_volume: Callable[..., Any],
) -> None:
    """The late file comes first by name, so names alone would make it another series."""
    series(tmp_path / "dicom/a", toy_volume(3))
    late = tmp_path / "dicom/a/IM001"
    content = late.read_bytes()
    late.unlink()
    ct = {"dicom": "dicom", "name": "ct", "licence": "CC0", "source": "a test"}
    main(toy_recipe(tmp_path, sources=[ct]))
    assert [one.shape[0] for one in ShardReader(tmp_path / "shards").samples] == [8]
    late.write_bytes(content)
    main(toy_recipe(tmp_path, sources=[ct]))
    assert [one.shape[0] for one in ShardReader(tmp_path / "shards").samples] == [9]
    assert list(verify(tmp_path / "shards")) == []
