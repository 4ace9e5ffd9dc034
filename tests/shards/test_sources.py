"""What a source lists: order, subjects, identities, and what is known without reading a scan."""

import dataclasses
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from recipes.load import RecipeError, parse
from shards.sources.inputs import SourceError
from shards.sources.source import Source, SourceConfig, fingerprint, read_source, source_files

ABOUT = {"name": "toy", "licence": "CC0", "source": "written by a test"}
KEY = b"k" * 32


def _config(**keys: Any) -> SourceConfig:
    about = {} if "cohort" in keys else ABOUT
    return parse({**about, **keys}, SourceConfig, where="source")


def _nifti(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 99, (9, 10, 11), np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def _names(source: Source) -> list[str]:
    return [item.name for item in source.inputs]


def test_images_of_any_format_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/sub-2_T1w.nii.gz", "a/sub-1_T1w.nii", "a/deep/sub-3_T1w.nii.gz"):
        _nifti(tmp_path / "images" / name)
    image = SimpleITK.GetImageFromArray(np.ones((9, 8, 7), np.int16))
    SimpleITK.WriteImage(image, str(tmp_path / "images/a/sub-4.mhd"))
    (tmp_path / "images/a/notes.txt").write_text("no image")
    source = read_source(_config(images="images/**/*", modality="MR"), data_root=tmp_path)
    assert _names(source) == [
        "images/a/deep/sub-3_T1w.nii.gz",
        "images/a/sub-1_T1w.nii",
        "images/a/sub-4.mhd",
        "images/b/sub-2_T1w.nii.gz",
    ]
    assert source.skipped == ("not a NIfTI, NRRD or MetaImage file",)
    assert source.inputs[2].files == ("images/a/sub-4.mhd", "images/a/sub-4.raw")
    assert [item.num_files for item in source.inputs] == [1, 1, 2, 1]
    # Every file is accounted for once.
    files = source_files(_config(images="images/**/*", modality="MR"), data_root=tmp_path)
    assert len(files) == sum(item.num_files for item in source.inputs) + len(source.skipped)
    only = read_source(_config(images="images/a/*.mhd", modality="MR"), data_root=tmp_path)
    assert [item.num_files for item in only.inputs] == [2]


def test_subjects_by_a_pattern(tmp_path: Path) -> None:
    for name in ("ds1/sub-1_ses-1.nii", "ds1/sub-1_ses-2.nii", "ds2/sub-1_ses-1.nii"):
        _nifti(tmp_path / name)

    def subjects(**keys: Any) -> list[str]:
        config = _config(images="*/*.nii", modality="MR", **keys)
        return [item.subject for item in read_source(config, data_root=tmp_path).inputs]

    assert len(set(subjects())) == 3
    assert subjects(subject="sub-[^_]+") == ["sub-1"] * 3
    assert subjects(subject="(ds[0-9])/(sub-[^_]+)") == ["ds1/sub-1", "ds1/sub-1", "ds2/sub-1"]
    with pytest.raises(SourceError, match="subject finds nothing in the file name ds1/sub-1"):
        subjects(subject="patient")


def _write_tar(path: Path, folder: Path, names: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, arcname=name)


def test_tars_of_images(tmp_path: Path) -> None:
    """One folder of shards for each data set, as OpenMind is published."""
    loose = tmp_path / "loose"
    for number in (1, 2):
        _nifti(loose / f"sub-{number}_T1w.nii.gz", number)
        _nifti(loose / f"sub-{number}_mask.nii.gz", number)
        (loose / f"sub-{number}_T1w.json").write_text(f'{{"age": {60 + number}, "note": "x"}}')
    names = sorted(path.name for path in loose.iterdir())
    _write_tar(tmp_path / "wds/ds1/shard-000001.tar", loose, names)
    _write_tar(tmp_path / "wds/ds1/shard-000000.tar", loose, names[:3])
    cut = tmp_path / "wds/ds2/shard-000000.tar"
    _write_tar(cut, loose, names)
    with tarfile.open(cut) as tar:
        end = tar.getmember("sub-2_T1w.nii.gz").offset_data + 50
    cut.write_bytes(cut.read_bytes()[:end])
    (tmp_path / "wds/ds2/README.md").write_text("text")
    config = _config(
        webdataset="wds/*/*",
        members="*_T1w*",
        subject=r"(ds\d)/.*#(sub-\d)",
        metadata=["age", "sex"],
        modality="MR",
    )
    source = read_source(config, data_root=tmp_path)
    assert _names(source) == [
        "wds/ds1/shard-000000.tar#sub-1_T1w.nii.gz",
        "wds/ds1/shard-000001.tar#sub-1_T1w.nii.gz",
        "wds/ds1/shard-000001.tar#sub-2_T1w.nii.gz",
        "wds/ds2/shard-000000.tar#sub-1_T1w.nii.gz",
        "wds/ds2/shard-000000.tar#sub-2_T1w.nii.gz",
    ]
    assert [item.subject for item in source.inputs[:3]] == ["ds1/sub-1", "ds1/sub-1", "ds1/sub-2"]
    assert source.inputs[2].values == {"age": 62, "sex": None}
    assert source.skipped == ("not a tar",)
    whole, damaged = source.inputs[:4], source.inputs[4]
    assert all(item.verdict is None for item in whole)
    assert damaged.verdict == ("rejected", "the archive is cut off inside this file")


def test_a_series_that_headers_refuse_is_not_read(
    tmp_path: Path, series: Callable[..., None], toy_volume: Callable[..., np.ndarray]
) -> None:
    series(tmp_path / "d/a", toy_volume(1), SeriesInstanceUID="1.1", BodyPartExamined="CHEST")
    series(tmp_path / "d/b", toy_volume(2), SeriesInstanceUID="1.2", BodyPartExamined="HEAD")
    series(tmp_path / "d/c", toy_volume(3)[:5], SeriesInstanceUID="1.3", BodyPartExamined="CHEST")
    config = _config(dicom="d", select={"body_parts": ["chest"]})

    calls = []

    def mapper(function: Callable[[Any], Any], paths: Iterable[Any]) -> Iterator[Any]:
        calls.append(pickle.loads(pickle.dumps(function)))
        return map(calls[0], paths)

    source = read_source(config, data_root=tmp_path, mapper=mapper)
    assert len(calls) == 1
    verdicts = [item.verdict for item in source.inputs]
    assert verdicts == [
        None,
        ("skipped", "not selected: body part"),
        ("rejected", "5 slices, the recipe asks for 8"),
    ]
    assert [item.num_files for item in source.inputs] == [9, 9, 5]
    assert source.inputs[0].subject == "PAT-1"


COHORT = """
name: toy
licence: CC0
source: written by a test
table: t/table.csv
subject: "{who}"
sequences: {t1w: "{t1}", flair: "{fl}"}
masks: {lesion: "{who}.nii"}
modality: MR
visit: "{day}"
"""


def _cohort(root: Path) -> SourceConfig:
    for name in ("a1.nii", "a2.nii", "a.nii", "b1.nii"):
        _nifti(root / "t" / name)
    rows = "who,t1,fl,day,age,name\na,a1.nii,a2.nii,3,61,Ann\nb,b1.nii,,7,,Bob\n"
    (root / "t/table.csv").write_text(rows)
    (root / "toy.yaml").write_text(COHORT)
    return _config(cohort=str(root / "toy.yaml"), metadata=["age"])


def test_visits_of_a_cohort(tmp_path: Path) -> None:
    first, second = read_source(_cohort(tmp_path), data_root=tmp_path).inputs
    assert [part.name for part in first.sequences] == ["t1w", "flair"]
    assert first.files == ("t/a1.nii", "t/a2.nii", "t/a.nii")
    assert [part.name for part in second.sequences] == ["t1w"]
    assert (first.visit, second.visit) == (3, 7)
    assert (first.values, second.values) == ({"age": 61}, {"age": None})
    assert second.modality == "MR"
    files = [one.name for one in source_files(_cohort(tmp_path), data_root=tmp_path)]
    assert files == ["t/table.csv", "t/a1.nii", "t/a2.nii", "t/a.nii", "t/b1.nii", "t/b.nii"]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    config = _cohort(tmp_path).model_copy(update={"metadata": ["agge"]})
    with pytest.raises(SourceError, match="no column 'agge'; did you mean 'age'"):
        read_source(config, data_root=tmp_path)


def _identities(config: SourceConfig, root: Path) -> list[str]:
    return [item.identity for item in read_source(config, data_root=root).inputs]


def test_an_identity_follows_files_and_columns_of_its_own_row(tmp_path: Path) -> None:
    config = _cohort(tmp_path)
    before = _identities(config, tmp_path)
    assert _identities(config, tmp_path) == before
    os.utime(tmp_path / "t/a.nii", ns=(1, 1))  # the mask of the first
    after = _identities(config, tmp_path)
    assert after[0] != before[0]
    assert after[1] == before[1]
    table = tmp_path / "t/table.csv"
    table.write_text(table.read_text().replace("Ann", "Eve"))  # a column that goes nowhere
    assert _identities(config, tmp_path) == after
    table.write_text(table.read_text().replace(",61,", ",62,"))
    assert _identities(config, tmp_path)[0] != after[0]
    shutil.copytree(tmp_path, tmp_path.parent / "moved")
    moved = read_source(config, data_root=tmp_path.parent / "moved")
    assert [item.name for item in moved.inputs] == [
        item.name for item in read_source(config, data_root=tmp_path).inputs
    ]


def test_a_fingerprint_follows_names_sizes_and_times(tmp_path: Path) -> None:
    config = _config(images="*.nii", modality="MR")
    _nifti(tmp_path / "a.nii")

    def found(key: bytes = KEY) -> str:
        return fingerprint(source_files(config, data_root=tmp_path), key=key)

    before = found()
    assert found() == before != found(b"x" * 32)
    os.utime(tmp_path / "a.nii", ns=(1, 1))
    changed = found()
    assert changed != before
    _nifti(tmp_path / "b.nii")
    assert found() not in (before, changed)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "a", "dicom": "b"}, "exactly one of cohort, dicom, images and webdataset"),
        ({"webdataset": "a"}, "need a modality"),
        ({"images": "a", "modality": "MR", "members": "b"}, "members chooses images"),
        ({"images": "a", "modality": "MR", "metadata": ["age"]}, "metadata names columns"),
        ({"images": "a", "modality": "MR", "subject": "("}, "not a regular expression"),
        ({"dicom": "a", "subject": "b"}, "subject is a pattern for the file names"),
        ({"dicom": "a", "spacing_mm": [1, 1, 1], "max_anisotropy": 2}, "not both"),
        ({"dicom": "a", "max_anisotropy": 0.5}, "greater than or equal to 1"),
        ({"dicom": "a", "nifti": "b"}, "nifti"),
    ],
)
def test_a_wrong_source_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        _config(**keys)


@pytest.mark.parametrize("pattern", ["/a/*.nii", "../*.nii", "a//b.nii"])
def test_a_pattern_stays_below_the_root(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(SourceError, match="images is a pattern below data_root"):
        read_source(_config(images=pattern, modality="MR"), data_root=tmp_path)


def _upload(root: Path, url: str) -> None:
    import fsspec

    files, base = fsspec.core.url_to_fs(url)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root).as_posix()
            files.makedirs(f"{base}/{Path(name).parent.as_posix()}", exist_ok=True)
            files.pipe_file(f"{base}/{name}", path.read_bytes())


def test_a_url_lists_what_its_folder_lists(
    tmp_path: Path, series: Callable[..., None], toy_volume: Callable[..., np.ndarray]
) -> None:
    from shards.building.convert import Task, convert

    cohort = _cohort(tmp_path)
    shutil.copy(tmp_path / "t/a.nii", tmp_path / "t/b.nii")
    series(tmp_path / "d/a", toy_volume(1))
    _write_tar(tmp_path / "w/a.tar", tmp_path / "t", ["a1.nii", "a2.nii"])
    url = "memory://bucket/archive"
    _upload(tmp_path, url)
    for config in (
        cohort,
        _config(dicom="d"),
        _config(images="t/*1.nii", modality="MR"),
        _config(webdataset="**/*.tar", modality="MR"),
    ):
        near = read_source(config, data_root=tmp_path)
        far = read_source(config, data_root=url)
        assert len(near.inputs) == len(far.inputs) > 0
        for one, other in zip(near.inputs, far.inputs, strict=True):
            assert other.root == url
            assert dataclasses.replace(other, root=one.root, identity=one.identity) == one
            found = [
                convert(pickle.loads(pickle.dumps(Task(item, config, "toy", "0" * 16))))
                for item in (one, other)
            ]
            assert found[0] == found[1]
            assert found[0][0].reason is None or "labels" in found[0][0].reason


def test_copies_of_remote_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    from shards.building.convert import Task, convert

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    _nifti(tmp_path / "archive/a.nii")
    (tmp_path / "archive/b.nii").write_bytes(b"no image")
    _upload(tmp_path / "archive", "memory://other")
    config = _config(images="*.nii", modality="MR")
    _nifti(tmp_path / "archive/c.nii")
    _upload(tmp_path / "archive", "memory://other")
    inputs = read_source(config, data_root="memory://other").inputs
    fsspec.filesystem("memory").rm("/other/c.nii")
    found = [convert(Task(item, config, "toy", "0" * 16))[0] for item in inputs]
    assert [one.status for one in found] == ["accepted", "rejected", "rejected"]
    assert found[2].reason == "the file or folder does not exist"
    assert not list((tmp_path / "temporary").iterdir())
