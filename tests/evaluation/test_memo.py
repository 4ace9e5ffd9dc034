from pathlib import Path
from typing import Any

import pandas
import pytest

from evaluation.storing.memo import Kept, forget_others, remember

DIGEST = "ab" * 32


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Kept:
        self.times += 1
        return Kept({"rows": pandas.DataFrame({"a": [1.5, 2.5]})}, {"chosen": {"C": 0.1}})


def _remember(folder: Path, work: Work, digest: str = DIGEST) -> Kept:
    return remember(folder, name="stroke_mae", digest=digest, make=work)


def test_done_once_and_again_for_another_input(tmp_path: Path) -> None:
    work = Work()
    first, second = _remember(tmp_path, work), _remember(tmp_path, work)
    assert work.times == 1
    assert first.content == second.content
    pandas.testing.assert_frame_equal(first.tables["rows"], second.tables["rows"])
    _remember(tmp_path, work, "cd" * 32)
    assert work.times == 2


@pytest.mark.parametrize("file", ["rows.parquet", "content.json"])
def test_a_damaged_piece_is_made_again_and_said(tmp_path: Path, file: str, capsys: Any) -> None:
    work = Work()
    _remember(tmp_path, work)
    (path,) = tmp_path.glob(f"*/{file}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert _remember(tmp_path, work).content == {"chosen": {"C": 0.1}}
    assert work.times == 2
    assert "redone  stroke_mae" in capsys.readouterr().out


def test_work_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    work = Work()
    _remember(tmp_path, work)
    (place,) = tmp_path.glob("stroke_mae-*")
    place.rename(place.with_name(f"stroke_mae-{'cd' * 12}"))
    _remember(tmp_path, work, "cd" * 32)
    assert work.times == 2


def test_a_killed_piece_leaves_nothing(tmp_path: Path) -> None:
    def dies() -> Kept:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember(tmp_path, name="x", digest=DIGEST, make=dies)
    assert not list(tmp_path.iterdir())


def test_what_nobody_asked_for_goes(tmp_path: Path) -> None:
    work = Work()
    _remember(tmp_path, work)
    _remember(tmp_path, work, "cd" * 32)
    forget_others(tmp_path, used={DIGEST})
    assert [place.name for place in tmp_path.iterdir()] == [f"stroke_mae-{DIGEST[:24]}"]
