"""A job that cannot finish does not start, and says why."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from foundation.running.job import JobError, check_folder, check_space, check_spacing, portions_of

SHARDS = Path("data/shards/small")


def test_the_global_batch_is_divided_or_refused() -> None:
    assert portions_of(48, micro_batch=4, world_size=3) == (4, 4)
    assert portions_of(48, micro_batch=None, world_size=3) == (16, 1)
    with pytest.raises(JobError, match=r"50 scans .* of 12 \(micro_batch 4 x 3 ranks\)"):
        portions_of(50, micro_batch=4, world_size=3)
    with pytest.raises(JobError, match=r"50 scans .* of 3 \(3 ranks\)"):
        portions_of(50, micro_batch=None, world_size=3)


@pytest.mark.parametrize(
    ("stored", "asked", "same"),
    [
        ([5.0, 2.0, 3.0], (5.0, 2.0, 3.0), True),
        (None, None, True),
        ([5.0, 2.0, 3.0], (5.0, 3.0, 2.0), False),
        (None, (5.0, 2.0, 3.0), False),
        ([5.0, 2.0, 3.0], None, False),
    ],
)
def test_the_contract_has_the_spacing_of_the_shards(stored, asked, same: bool) -> None:
    dataset = {"spacing_mm": stored}
    if same:
        check_spacing(asked, dataset=dataset, shards=SHARDS)
    else:
        with pytest.raises(JobError, match="but data/shards/small was built with"):
            check_spacing(asked, dataset=dataset, shards=SHARDS)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match="choose another out"):
        check_folder(tmp_path / "file" / "runs")


def test_a_full_disk_is_seen_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = nn.Linear(1000, 1000, bias=False)
    frozen = nn.Linear(1000, 500, bias=False).requires_grad_(False)
    both = nn.ModuleList([method, frozen])
    # 6 MB of weights, of which 4 MB have two moments: 3 checkpoints of 14 MB and the backbone.
    for free, enough in ((48_000_000, True), (47_999_999, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda _, usage=usage: usage)
        if enough:
            check_space(tmp_path, method=both, keep=2)
        else:
            with pytest.raises(JobError, match=r"0\.0 GB free, 3 checkpoints"):
                check_space(tmp_path, method=both, keep=2)
