"""What a stopped build left behind, damaged: it counts for nothing, and the result is the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from shards.build import BuildConfig, main
from shards.building.convert import Converted
from shards.building.journal import JOURNAL, Journal, Progress
from shards.building.ledger import Entry
from shards.building.plan import Job
from shards.building.publication import LocalOutput
from shards.building.spool import ABOUT, Spool, SpoolError
from shards.write import PackedSample

Recipe = Callable[..., BuildConfig]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".inputs"}


def flip(path: Path, place: int) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 4
    path.write_bytes(damaged)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


SIZE_MB = 0.004  # one scan in each shard


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory, toy_recipe: Recipe) -> Path:
    """An undisturbed build."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    main(toy_recipe(shards.parent, out=str(out), shard_size_mb=SIZE_MB))
    return out


@pytest.fixture
def again(shards: Path, tmp_path: Path, toy_recipe: Recipe) -> Callable[..., None]:
    """The same build into a folder of its own, however often it takes."""

    def build(**changes: Any) -> None:
        out = str(tmp_path / "shards")
        main(toy_recipe(shards.parent, out=out, shard_size_mb=SIZE_MB, **changes))

    return build


@pytest.fixture
def draft(tmp_path: Path, again: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a build that was stopped when four shards were finished."""
    whole, count = Journal.note, iter(range(100))

    def note(self: Journal, **words: Any) -> None:
        whole(self, **words)
        if next(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note", note)
        with pytest.raises(KeyboardInterrupt):
            again()
    return tmp_path / ".shards.building"


@pytest.mark.parametrize(
    ("name", "damage", "at", "lost"),
    [
        ("shard-000002.tar", flip, 700, 2),
        ("shard-000002.tar", cut, 1024, 2),
        ("shard-000000.tar", flip, -1, 4),
        ("shard-000001.index.json", cut, 300, 3),
        ("shard-000003.index.json", flip, 120, 1),
        (JOURNAL, flip, -300, 1),
    ],
)
def test_a_damaged_draft_is_made_again_from_there(
    draft: Path,
    whole: Path,
    again: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path, int], None],
    at: int,
    lost: int,
) -> None:
    damage(draft / name, at)
    capsys.readouterr()
    again()
    told = capsys.readouterr().out
    assert f"{draft}: {lost} shards are made again" in told
    assert "going on: " in told
    assert content(draft.parent / "shards") == content(whole)


def test_a_shard_that_is_missing_is_made_again(
    draft: Path, whole: Path, again: Callable[..., None]
) -> None:
    (draft / "shard-000001.tar").unlink()
    (draft / "shard-000003.index.json").unlink()
    again()
    assert content(draft.parent / "shards") == content(whole)


def _resumed(folder: Path, *, plan: str = "one") -> Progress | None:
    return Journal(folder, plan=plan).resume(is_whole=lambda shard: shard["file"] != "damaged")


def _journal(folder: Path, *files: str) -> Path:
    journal = Journal(folder, plan="one")
    journal.begin()
    for number, file in enumerate(files):
        entry = Entry("ct", number, "accepted", "ab", key=f"k{number}", files=4)
        journal.note(inputs=number + 1, scans=0, shard={"file": file}, entries=[entry])
    return folder / JOURNAL


def test_a_journal_of_another_plan_is_none(tmp_path: Path) -> None:
    assert _resumed(tmp_path) is None
    _journal(tmp_path, "a")
    entry = Entry("ct", 0, "accepted", "ab", key="k0", files=4)
    assert _resumed(tmp_path) == (1, 0, [{"file": "a"}], [entry], 0)
    assert _resumed(tmp_path, plan="two") is None


def test_a_journal_ends_before_a_damaged_shard(tmp_path: Path) -> None:
    path = _journal(tmp_path, "a", "damaged", "c")
    found = _resumed(tmp_path)
    assert found is not None
    assert (found.inputs, found.dropped) == (1, 2)
    assert path.read_bytes() == _journal(tmp_path, "a").read_bytes()
    assert _resumed(tmp_path) == (*found[:4], 0)


def test_no_damaged_byte_of_a_journal_is_believed(tmp_path: Path) -> None:
    path = _journal(tmp_path, "a", "b")
    before = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(before) if byte == ord("\n")]
    for place in [*range(0, len(before), 7), *(end - 1 for end in ends)]:
        path.write_bytes(before)
        flip(path, place)
        found = _resumed(tmp_path)
        if place < ends[0]:
            assert found is None
        else:
            assert found is not None
            assert found.inputs == (0 if place < ends[1] else 1)
            assert path.read_bytes() == before[: ends[found.inputs]]


JOB = cast(Job, Job(cast(Any, None), input="in", state="state"))
FOUND = [
    Converted(
        PackedSample("key", {"key": "key"}, {"scan.json": b"{}"}, {"scan.json": "ab"}, {}),
        left_out={"no image": 2},
    ),
    Converted(None, "rejected", "too small"),
]


def _made_again(job: Job) -> list[Converted]:
    assert job is JOB
    return [Converted(None, "skipped", "made again")]


def _taken(spool: Spool) -> list[Converted]:
    results: Iterator[list[Converted]] = spool.map(_made_again, [JOB], failed=_made_again)
    return next(results)


def test_no_damaged_byte_of_a_part_is_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(tmp_path, plan="one")
    assert not spool.has(JOB)
    spool.store(JOB, FOUND)
    assert _taken(spool) == FOUND
    assert not Spool(tmp_path, plan="two").has(JOB)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    for place in range(0, len(before), 5):
        path.write_bytes(before)
        flip(path, place)
        assert not spool.has(JOB)
        path.write_bytes(before[:place])
        assert not spool.has(JOB)
    capsys.readouterr()
    assert _taken(spool) == _made_again(JOB)
    assert capsys.readouterr().out == f"{path}: damaged or of another build, and converted again\n"


def test_damaged_parts_do_not_reach_the_shards(
    whole: Path, tmp_path: Path, again: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    again(part="0/2")
    first, second = sorted((tmp_path / ".shards.parts").glob("*-*"))[:2]
    flip(first, first.stat().st_size // 2)
    flip(tmp_path / ".shards.parts" / ABOUT, 20)
    capsys.readouterr()
    again(part="0/2")
    assert f"{first}: damaged" in capsys.readouterr().out
    again(part="1/2")
    cut(second, 200)
    again(part="merge")
    assert f"{second}: damaged" in capsys.readouterr().out
    assert content(tmp_path / "shards") == content(whole)


@pytest.mark.parametrize("moment", ["publish", "remove_merged"])
def test_a_merge_that_is_killed_at_its_end(
    whole: Path,
    tmp_path: Path,
    again: Callable[..., None],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just before and just behind the publication; then all commands again, from the first."""
    again(part="0/2")
    again(part="1/2")

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalOutput if moment == "publish" else Spool, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            again(part="merge")
    assert (tmp_path / ".shards.parts").exists()
    for part in ("0/2", "1/2", "merge"):
        again(part=part)
    assert content(tmp_path / "shards") == content(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_parts_of_what_is_published_leave_nothing(
    tmp_path: Path, again: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    again()
    capsys.readouterr()
    again(part="0/2")
    assert "up to date" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_damaged_number_of_parts_is_written_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, plan="one")
    spool.begin(of=3)
    about = (tmp_path / ABOUT).read_bytes()
    (tmp_path / ABOUT).write_bytes(about.replace(b'"of": 3', b'"of": 1'))
    with pytest.raises(SpoolError, match="is damaged"):
        spool.check_complete([JOB])
    spool.begin(of=3)
    assert (tmp_path / ABOUT).read_bytes() == about


def test_merged_parts_give_way_to_those_of_another_build(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "parts", plan="one")
    spool.begin(of=1)
    spool.store(JOB, FOUND)
    with pytest.raises(SpoolError, match="another recipe"):
        Spool(tmp_path / "parts", plan="two").begin(of=1)
    spool.remove_merged()
    assert spool.has(JOB)
    spool.mark_merged()
    spool.begin(of=1)
    assert spool.has(JOB)
    other = Spool(tmp_path / "parts", plan="two")
    other.begin(of=1)
    assert not other.has(JOB)
    other.remove_merged()  # nothing is merged of it
    other.mark_merged()
    other.remove_merged()
    assert not (tmp_path / "parts").exists()
