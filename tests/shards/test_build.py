"""The builder: the same bytes from any number of workers, a ledger that adds up, clear refusals."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.load import RecipeError, load
from shards.build import BuildConfig, BuildError, main
from shards.sources.cohort import CohortError
from shards.sources.source import SourceError
from shards.streaming.reader import ShardReader
from shards.verify import verify
from shards.write import ShardWriter

Archive = Callable[[Path], Path]
Recipe = Callable[..., BuildConfig]

CT = {"dicom": "dicom", "name": "ct", "licence": "CC0", "source": "written by a test"}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".inputs"}


def _ledger(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_build_leaves(shards: Path) -> None:
    names = {path.name for path in shards.iterdir()}
    tars = {name for name in names if name.endswith(".tar")}
    assert len(tars) > 1
    indexes = {name.replace(".tar", ".index.json") for name in tars}
    assert names == tars | indexes | {"dataset.json", "ledger.jsonl", ".inputs"}
    dataset = json.loads((shards / "dataset.json").read_text())
    assert dataset["num_samples"] == 9
    assert dataset["num_subjects"] == len(dataset["subjects"]) == 9
    assert dataset["modalities"] == {"CT": 3, "MR": 6}
    assert [source["num_samples"] for source in dataset["sources"]] == [3, 6]
    assert dataset["spacing_mm"] is None
    assert {sample.split for sample in ShardReader(shards).samples} == {None, "train", "val"}
    entries = _ledger(shards / "ledger.jsonl")
    assert [entry["status"] for entry in entries] == ["accepted"] * 9 + ["skipped"]
    assert entries[-1]["reason"] == "not a DICOM file"
    assert [entry["position"] for entry in entries] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3]
    assert all(re.fullmatch(r"[a-z0-9_-]+", entry["key"]) for entry in entries[:9])


def test_two_workers_and_a_moved_archive_give_the_same_bytes(
    shards: Path, tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    shutil.copy(shards.parent / "key", tmp_path / "key")
    root = archive(tmp_path / "elsewhere")
    main(toy_recipe(root, workers=2, pseudonym_key=str(tmp_path / "key")))
    assert _bytes(root / "shards") == _bytes(shards)


def test_the_same_place_gives_the_same_dataset(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    root = archive(tmp_path)
    main(toy_recipe(root))
    main(toy_recipe(root, out=str(tmp_path / "again"), workers=2))
    assert _bytes(tmp_path / "shards") == _bytes(tmp_path / "again")


def test_it_builds_only_what_is_stale(
    tmp_path: Path,
    archive: Archive,
    toy_recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = toy_recipe(archive(tmp_path))
    main(config)
    capsys.readouterr()

    def runs(config: BuildConfig = config) -> bool:
        main(config)
        return "up to date" not in capsys.readouterr().out

    assert not runs()
    assert runs(toy_recipe(tmp_path, shard_size_mb=1))
    scan = tmp_path / "mr/case_0.nii.gz"
    os.utime(scan, ns=(1, 1))
    assert runs(toy_recipe(tmp_path, shard_size_mb=1))
    (tmp_path / "dicom/new.txt").write_text("one more file")
    assert runs(toy_recipe(tmp_path, shard_size_mb=1))
    (tmp_path / "shards/shard-000000.tar").unlink()
    assert runs(toy_recipe(tmp_path, shard_size_mb=1))
    assert not runs(toy_recipe(tmp_path, shard_size_mb=1, workers=2))


def test_every_input_is_in_the_ledger_with_its_reason(
    tmp_path: Path,
    archive: Archive,
    toy_recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = archive(tmp_path)
    shutil.copytree(root / "dicom/p0", root / "dicom/p9")
    (root / "dicom/p1/IM004").unlink()
    cut = root / "mr/case_2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:300])
    (root / "mr/case_3.nii.gz").unlink()
    main(toy_recipe(root, max_rejected_fraction=0.5))
    entries = _ledger(root / "shards/ledger.jsonl")
    first = entries[0]["key"]
    assert {
        (entry["source"], entry["position"]): entry["reason"]
        for entry in entries
        if entry["status"] != "accepted"
    } == {
        ("ct", 1): "a missing slice: a gap of 8.00 mm where 4.00 is usual",
        ("ct", 3): f"duplicate of {first}",
        ("ct", 4): "not a DICOM file",
        ("mr", 2): "not a readable NIfTI file, truncated or damaged (EOFError)",
        ("mr", 3): "the file or folder does not exist",
    }
    assert "11 inputs = 6 accepted + 4 rejected + 1 skipped" in capsys.readouterr().out
    assert list(verify(root / "shards")) == []


def test_it_stops_past_the_limit_and_keeps_what_stood(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    root = archive(tmp_path)
    main(toy_recipe(root))
    before = _bytes(root / "shards")
    for number in range(3):
        (root / f"mr/case_{number}.nii.gz").write_bytes(b"no image")
    with pytest.raises(BuildError, match=r"3 of 9 scans are rejected.*not a readable NIfTI") as got:
        main(toy_recipe(root, max_rejected_fraction=0.25))
    assert "\n" not in str(got.value)
    assert _bytes(root / "shards") == before
    left = _ledger(root / "shards.ledger.jsonl")
    assert [entry["status"] for entry in left] == ["accepted"] * 6 + ["rejected"] * 3
    assert not list(root.glob(".shards*"))
    main(toy_recipe(root, max_rejected_fraction=0.5))
    assert not (root / "shards.ledger.jsonl").exists()  # of a try that is made good


def test_a_full_disk_is_one_line_and_leaves_what_stood(
    tmp_path: Path,
    archive: Archive,
    toy_recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = archive(tmp_path)
    main(toy_recipe(root))
    before = _bytes(root / "shards")
    whole = ShardWriter.add
    times = iter(range(100))

    def add(self: ShardWriter, *args: Any, **words: Any) -> None:
        if next(times) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(self, *args, **words)

    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(BuildError, match=r"disk is full\); what stood there is unchanged"):
        main(toy_recipe(root, shard_size_mb=1))
    assert _bytes(root / "shards") == before
    assert not list(root.glob(".shards*"))


def test_a_kill_between_the_renames_loses_nothing(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    root = archive(tmp_path)
    main(toy_recipe(root))
    (root / "shards").rename(root / ".shards.replaced")
    main(toy_recipe(root))
    assert "up to date" in capsys.readouterr().out
    assert list(verify(root / "shards")) == []


def test_a_folder_of_something_else_is_not_replaced(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    root = archive(tmp_path)
    (root / "shards").mkdir()
    (root / "shards/thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="not a folder of shards"):
        main(toy_recipe(root))
    assert (root / "shards/thesis.txt").read_text() == "years of work"


def test_a_target_spacing_and_a_limit(tmp_path: Path, archive: Archive, toy_recipe: Recipe) -> None:
    root = archive(tmp_path)
    mr = {"cohort": str(root / "mr.yaml"), "splits": ["val"], "spacing_mm": [3, 2.5, 1]}
    main(toy_recipe(root, sources=[mr]))
    reader = ShardReader(root / "shards")
    assert reader.dataset["spacing_mm"] == [3, 2.5, 1]
    assert {sample.spacing_mm for sample in reader.samples} == {(3.0, 2.5, 1.0)}
    assert {sample.shape for sample in reader.samples} == {(9, 8, 12)}
    with pytest.raises(BuildError, match=r"spacing is \(4.00, 2.00, 1.50\) mm.* allows 3"):
        main(toy_recipe(root, sources=[{**CT, "max_spacing_mm": 3}]))


def _source_digests(folder: Path) -> list[str]:
    samples = ShardReader(folder).samples
    return [one.source_digest for sample in samples for one in sample.sequences.values()]


def test_resampling_does_not_hide_a_scan_from_the_leakage_check(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    """The source digest is of the scan as it was found."""
    root = archive(tmp_path)
    main(toy_recipe(root, sources=[CT]))
    native = _source_digests(root / "shards")
    main(toy_recipe(root, sources=[{**CT, "spacing_mm": [5, 3, 3]}]))
    assert _source_digests(root / "shards") == native


def test_rows_are_chosen_by_their_columns(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    root = archive(tmp_path)
    mr = {"cohort": str(root / "mr.yaml")}
    main(toy_recipe(root, sources=[{**mr, "where": {"case": [1, 4], "split": "train"}}]))
    assert len(ShardReader(root / "shards")) == 1
    with pytest.raises(SourceError, match="no column 'cse'; did you mean 'case'"):
        main(toy_recipe(root, sources=[{**mr, "where": {"cse": 1}}]))
    with pytest.raises(SourceError, match="source mr: no scans"):
        main(toy_recipe(root, sources=[{**mr, "where": {"case": 99}}]))


def test_nifti_by_pattern(tmp_path: Path, archive: Archive, toy_recipe: Recipe) -> None:
    root = archive(tmp_path)
    about = {"name": "loose", "licence": "CC0", "source": "a test", "modality": "MR"}
    main(toy_recipe(root, sources=[{"images": "mr/*.nii.gz", **about}]))
    assert len(ShardReader(root / "shards")) == 7
    with pytest.raises(SourceError, match="source loose: no scans"):
        main(toy_recipe(root, sources=[{"images": "mri/*.nii.gz", **about}]))
    with pytest.raises(SourceError, match="a pattern below data_root"):
        main(toy_recipe(root, sources=[{"images": "/mr/*.nii.gz", **about}]))


def test_missing_and_doubled_sources(tmp_path: Path, archive: Archive, toy_recipe: Recipe) -> None:
    root = archive(tmp_path)
    with pytest.raises(SourceError, match="dcm does not exist"):
        main(toy_recipe(root, sources=[{**CT, "dicom": "dcm"}]))
    mr = {"cohort": str(root / "mr.yaml")}
    with pytest.raises(CohortError, match=r"table\.csv does not exist"):
        main(toy_recipe(root, data_root=str(root / "dicom"), sources=[mr]))
    with pytest.raises(BuildError, match="two sources are named 'ct'"):
        main(toy_recipe(root, sources=[CT, CT]))
    (root / "empty").mkdir()
    with pytest.raises(SourceError, match="source ct: no scans"):
        main(toy_recipe(root, sources=[{**CT, "dicom": "empty"}]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dicom": "a", "images": "b"}, "exactly one of cohort, dicom, images and webdataset"),
        ({"dicom": "a"}, "need a name, a licence and a source"),
        ({"cohort": "a", "name": "b"}, "brings its own name"),
        ({"images": "a", "name": "b", "licence": "c", "source": "d"}, "need a modality"),
        ({**CT, "splits": ["train"]}, "are of a cohort's rows"),
        ({**CT, "spacing_mm": [1, 0, 1]}, "must be positive"),
        ({**CT, "policy": {"min_slice": 3}}, "did you mean 'min_slices'"),
    ],
)
def test_a_wrong_source_is_refused(
    tmp_path: Path, toy_recipe: Recipe, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        toy_recipe(tmp_path, sources=[source])


@pytest.mark.parametrize("name", ["demo", "real", "real_shapes"])
def test_the_recipes_load(project: Path, name: str) -> None:
    config = load(project / f"recipes/shards/{name}.yaml", BuildConfig)
    assert config.name == name
    for source in config.sources:
        assert source.cohort is None or (project / source.cohort).is_file()
        assert source.cohort is None or source.splits == ["train"]
        assert "sarcoma" not in str(source)


def test_the_digest_ignores_where_and_how_fast(
    tmp_path: Path, archive: Archive, toy_recipe: Recipe
) -> None:
    archive(tmp_path)
    one = toy_recipe(tmp_path)
    other = toy_recipe(tmp_path, workers=2, out="x", data_root="y", pseudonym_key="z")
    assert one.digest == other.digest
    before = one.digest
    assert before != toy_recipe(tmp_path, shard_size_mb=3).digest
    cohort = (tmp_path / "mr.yaml").read_text()
    (tmp_path / "mr.yaml").write_text(cohort.replace("sub-", "subject-"))
    assert before != toy_recipe(tmp_path).digest


def test_any_webdataset_reads_the_tars(shards: Path) -> None:
    import webdataset

    from shards.codec import checksums, read_crop

    reader = ShardReader(shards)
    seen = []
    for shard in reader.dataset["shards"]:
        tar = str(shards / shard["file"])
        for sample in webdataset.WebDataset(tar, shardshuffle=False):
            record, frame = json.loads(sample["scan.json"]), sample["volume.b2nd"]
            stop = record["shape"]
            voxels = read_crop(frame, start=(0, 0, 0), stop=stop, expected=checksums(frame))
            assert (voxels == reader.read_volume(len(seen))).all()
            seen.append(sample["__key__"])
    assert seen == [sample.key for sample in reader.samples]


@pytest.mark.real
def test_the_real_build(tmp_path: Path, project: Path, real_data: Path) -> None:
    """The recipe of the project on the real folder; the counts are those of its ledger."""
    words = [f"data_root={real_data}", f"out={tmp_path / 'real'}", f"pseudonym_key={tmp_path}/key"]
    recipe = project / "recipes/shards/real.yaml"
    main(load(recipe, BuildConfig, [*words, "workers=1"]))
    dataset = json.loads((tmp_path / "real/dataset.json").read_text())
    assert {name: dataset["ledger"][name] for name in ("accepted", "rejected", "skipped")} == {
        "accepted": 167,
        "rejected": 7,
        "skipped": 33,
    }
    assert dataset["modalities"] == {"CT": 2, "MR": 165}
    assert [source["num_samples"] for source in dataset["sources"]] == [10, 1, 156]
    assert list(verify(tmp_path / "real")) == []
