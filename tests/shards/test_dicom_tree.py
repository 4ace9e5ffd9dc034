"""A tree of files sorted into series by headers alone: every file ends in one place."""

import io
import logging
import pickle
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from shards.dicom.series import read_series
from shards.dicom.tree import (
    Header,
    Tree,
    find_series,
    quiet,
    read_header,
    read_tree,
    refusal,
    sort_headers,
)
from shards.policy import LENIENT, Policy
from shards.scan import ScanError

Write = Callable[..., None]
ANY = Policy(min_slices=1)
SAGITTAL = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
CORONAL = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, (5, 7, 6)).astype(np.int16)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_accounts(tree: Tree, folder: Path) -> None:
    told = [path for one in tree.series for path in one.files]
    told += [path for path, _ in tree.skipped]
    assert sorted(told) == files_of(folder)


def write_dicomdir(path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    record = Dataset()
    record.DirectoryRecordType, record.PatientID = "PATIENT", "PAT-1"
    directory.DirectoryRecordSequence = [record]
    directory.save_as(path, enforce_file_format=True)


def archive(root: Path, series: Write, slice_file: Write, truth: np.ndarray) -> Path:
    """Two series in one folder, one series over two folders, a copy, a scout, and no images."""
    series(root / "a", truth, SeriesInstanceUID="1.1")
    for path in files_of(root / "a"):
        path.rename(path.with_name(f"x{path.name}"))
    series(root / "a", truth, SeriesInstanceUID="1.2", FrameOfReferenceUID="5.1")
    series(root / "b/1", truth, SeriesInstanceUID="1.3")
    (root / "b/2").mkdir()
    for path in files_of(root / "b/1")[:2]:
        path.rename(root / "b/2" / path.name)
    series(root / "copy", truth, SeriesInstanceUID="1.2", FrameOfReferenceUID="5.1")
    for mine, copy in zip(files_of(root / "a"), files_of(root / "copy"), strict=False):
        copy.write_bytes(mine.read_bytes())
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.1"}
    slice_file(root / "a/scout", truth[0], position=(0, 0, 0), changes=scout | SAGITTAL)
    write_dicomdir(root / "DICOMDIR")
    (root / "VERSION.TXT").write_text("7")
    (root / "empty").write_bytes(b"")
    series(root / "report", truth[:1], Rows=None, PixelData=None)
    return root


def test_every_file_is_accounted_for(
    tmp_path: Path, series: Write, slice_file: Write, truth: np.ndarray
) -> None:
    tree = read_tree(archive(tmp_path, series, slice_file, truth))
    check_accounts(tree, tmp_path)
    assert sorted(len(one.files) for one in tree.series) == [1, 5, 5, 5, 5]
    assert sorted(reason for _, reason in tree.skipped) == [
        "DICOM without an image",
        "a DICOMDIR, an index of other files",
        "not a DICOM file",
        "not a DICOM file",
    ]
    assert not any(one.of_mixed for one in tree.series)


def test_headers_read_by_an_executor_or_from_a_store(
    tmp_path: Path, series: Write, slice_file: Write, truth: np.ndarray
) -> None:
    tree = read_tree(archive(tmp_path, series, slice_file, truth))
    with ThreadPoolExecutor(2) as pool:
        assert read_tree(tmp_path, mapper=pool.map) == tree
    pairs = [(path, read_header(io.BytesIO(path.read_bytes()))) for path in files_of(tmp_path)]
    assert sort_headers(pairs) == tree
    assert pickle.loads(pickle.dumps(pairs)) == pairs
    assert pickle.loads(pickle.dumps(read_header)) is read_header


def test_no_more_than_the_header_is_read(tmp_path: Path, series: Write) -> None:
    class Counted(io.BytesIO):
        last = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.last = max(self.last, self.tell())
            return found

    series(tmp_path, np.zeros((1, 300, 400), np.int16))
    (path,) = files_of(tmp_path)
    file = Counted(path.read_bytes())
    assert isinstance(read_header(file), Header)
    assert file.last < 10_000


def test_frames_of_reference_of_one_series_stay_apart(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    series(tmp_path / "a", truth, FrameOfReferenceUID="1.5")
    series(tmp_path / "b", truth, FrameOfReferenceUID="1.6")
    found = find_series(tmp_path)
    assert [len(one.files) for one in found] == [5, 5]
    assert [one.facts.frame_of_reference for one in found] == ["1.5", "1.6"]


def test_files_without_identifiers_stay_single(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    """Nothing says that they belong together."""
    series(tmp_path, truth, SeriesInstanceUID=None, PatientID=None, StudyInstanceUID=None)
    found = find_series(tmp_path)
    assert [len(one.files) for one in found] == [1] * 5
    assert {one.subject for one in found} == {""}


def test_facts_to_select_by(tmp_path: Path, series: Write, truth: np.ndarray) -> None:
    series(
        tmp_path,
        truth,
        BodyPartExamined="CHEST",
        SeriesDescription="Thorax  Lung B70f",
        StudyDate="20240305",
    )
    (one,) = find_series(tmp_path)
    facts = one.facts
    assert (facts.modality, facts.body_part, facts.slice_thickness_mm) == ("CT", "CHEST", 4.0)
    assert facts.description == "thorax  lung b70f"
    assert str(facts.date) == "2024-03-05"
    assert refusal(one, policy=LENIENT) is None
    assert refusal(one, policy=Policy(min_slices=6)) == "5 slices, the recipe asks for 6"


def write_slices(folder: Path, slice_file: Write, count: int, **changes: Any) -> None:
    axis = [0, 0, 0]
    orientation = changes.get("ImageOrientationPatient")
    normal = {
        str(SAGITTAL["ImageOrientationPatient"]): 0,
        str(CORONAL["ImageOrientationPatient"]): 1,
    }
    for number in range(count):
        place = list(axis)
        place[normal.get(str(orientation), 2)] = 4 * number
        pixels = np.arange(42).reshape(7, 6)
        slice_file(folder / f"{number}", pixels, position=tuple(place), changes=changes)


@pytest.mark.parametrize(
    ("parts", "policy", "reasons"),
    [
        # Many slices of two directions: each is a scan, or none.
        ([(12, {}), (11, SAGITTAL)], ANY, [None, None]),
        (
            [(12, {}), (11, SAGITTAL)],
            Policy(min_slices=1, orientations="reject"),
            ["several slice directions in one series"] * 2,
        ),
        # Few of each plan a scan.
        ([(3, {}), (4, SAGITTAL), (3, CORONAL)], ANY, ["a localiser, not a scan"] * 3),
        (
            [(3, {}), (4, SAGITTAL), (3, CORONAL)],
            Policy(min_slices=1, localisers="take"),
            [None] * 3,
        ),
        # A scout in the series of its scan is no second direction.
        (
            [(12, {}), (1, SAGITTAL | {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})],
            Policy(min_slices=1, orientations="reject"),
            [None, "a localiser, not a scan"],
        ),
        ([(9, {"BurnedInAnnotation": "YES"})], ANY, ["annotation is burned into the image"]),
        (
            [(9, {"BurnedInAnnotation": "YES"})],
            Policy(min_slices=1, burned_in_annotation="mark"),
            [None],
        ),
        (
            [(9, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"})],
            ANY,
            ["a secondary capture, not a scan"],
        ),
    ],
)
def test_what_headers_alone_refuse(
    tmp_path: Path,
    slice_file: Write,
    parts: Iterable[tuple[int, dict[str, Any]]],
    policy: Policy,
    reasons: list[str | None],
) -> None:
    for place, (count, changes) in enumerate(parts):
        write_slices(tmp_path / str(place), slice_file, count, **changes)
    tree = read_tree(tmp_path)
    check_accounts(tree, tmp_path)
    assert [refusal(one, policy=policy) for one in tree.series] == reasons
    for one, reason in zip(tree.series, reasons, strict=True):
        if reason is None:
            assert len(list(read_series(one.files, policy=policy))) == 1


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert read_header(tmp_path / "gone") == "a file that cannot be read"


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Cut, or some bytes replaced, swapped, doubled or dropped, mostly in the header."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(found)) if dice.random() < 0.3 else dice.randrange(132, 1100)
        kind = dice.randrange(5)
        if kind == 0:
            found[at : at + 1] = bytes([dice.randrange(256)])
        elif kind == 1:
            found[at : at + 4] = dice.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\0\0", b"SQ\0\0"])
        elif kind == 2:
            found[at:at] = found[at : at + dice.randint(1, 40)]
        elif kind == 3:
            del found[at : at + dice.randint(1, 8)]
        elif dice.random() < 0.2:
            del found[at:]
        if len(found) < 1200:
            break
    return bytes(found)


@pytest.mark.parametrize(
    "kind", ["plain", "implicit", "rle", "jpeg", "jpegls", "jpeg2000", "frames"]
)
def test_any_bytes_end_in_a_reason(
    tmp_path: Path, slice_file: Write, multi_frame: Write, kind: str
) -> None:
    """Mutated files give a scan, a ScanError or a reason to skip; nothing else."""
    syntaxes = {
        "plain": "1.2.840.10008.1.2.1",
        "implicit": "1.2.840.10008.1.2",
        "rle": "1.2.840.10008.1.2.5",
        "jpeg": "1.2.840.10008.1.2.4.70",
        "jpegls": "1.2.840.10008.1.2.4.80",
        "jpeg2000": "1.2.840.10008.1.2.4.90",
        "frames": "1.2.840.10008.1.2.1",
    }
    path = tmp_path / "one"
    pixels = np.tile(np.arange(17 * 11).reshape(17, 11), (2, 1, 1))
    if kind == "frames":
        frames = [
            (one, {"PlanePosition": {"ImagePositionPatient": [0, 0, 4.0 * place]}})
            for place, one in enumerate(pixels)
        ]
        shared = {
            "PlaneOrientation": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            "PixelMeasures": {"PixelSpacing": [2.0, 1.5]},
            "PixelValueTransformation": {"RescaleSlope": 1, "RescaleIntercept": -1024},
        }
        multi_frame(path, frames, shared=shared, changes={})
    else:
        slice_file(path, pixels[0], position=(0, 0, 0), changes={}, syntax=syntaxes[kind])
    content = path.read_bytes()
    dice = random.Random(kind)
    outcomes = {"scan": 0, "refused": 0, "skipped": 0}
    for _ in range(80):
        path.write_bytes(mutated(content, dice))
        tree = read_tree(tmp_path)
        check_accounts(tree, tmp_path)
        try:
            for one in tree.series:
                for scan in read_series(one.files):
                    assert np.isfinite(scan.voxels).all()
            outcomes["scan" if tree.series else "skipped"] += 1
        except ScanError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def test_a_slice_in_two_folders_of_one_series(
    tmp_path: Path, series: Write, truth: np.ndarray
) -> None:
    """Neither folder is a copy of the other: it is one series with a repeat."""
    series(tmp_path / "1", truth)
    paths = files_of(tmp_path / "1")
    (tmp_path / "2").mkdir()
    for path in paths[:3]:
        (tmp_path / "2" / path.name).write_bytes(path.read_bytes())
    for path in paths[:2]:
        path.unlink()
    (one,) = find_series(tmp_path)
    (scan,) = read_series(one.files)
    np.testing.assert_array_equal(scan.voxels, truth)
    assert scan.left_out == {"a repeat of the same slice": 1}


def test_a_fresh_process_reads_headers_in_many_threads(tmp_path: Path, slice_file: Write) -> None:
    """The parser is imported by the first call, and its modules import one another in a circle."""
    slice_file(tmp_path / "one", np.ones((6, 7), np.int16), position=(0, 0, 0), changes={})
    program = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from shards.dicom.tree import Header, read_dataset, read_header
sys.setswitchinterval(1e-5)
path, ready = Path(sys.argv[1]), Barrier(8)
def read(number):
    ready.wait()
    return read_header(path) if number % 2 else read_dataset(path)
found = list(ThreadPoolExecutor(8).map(read, range(8)))
assert all(isinstance(one, Header) for one in found[1::2]), found
"""
    command = [sys.executable, "-c", program, str(tmp_path / "one")]
    subprocess.run(command, check=True, timeout=60)


def test_the_parser_stays_quiet_until_the_last_thread_is_out() -> None:
    logger = logging.getLogger("pydicom")
    level, filters = logger.level, list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with quiet():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=stay)
    with quiet():
        other.start()
        assert inside.wait(10)
    assert not logger.isEnabledFor(logging.CRITICAL)
    with warnings.catch_warnings(record=True) as warned:
        warnings.warn("Smythe", stacklevel=1)
    assert not warned
    leave.set()
    other.join(10)
    assert logger.level == level
    assert warnings.filters == filters
