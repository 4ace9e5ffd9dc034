"""What is damaged, read again, and required of the answer, for every kind of file that is read.

A reader gives scans or a ScanError, and the error quotes nothing of the file. Of shards, nothing
that differs from what was written is ever delivered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shards.dicom.series import read_series
from shards.dicom.tree import read_tree
from shards.images.tar import list_tar
from shards.policy import LENIENT, Policy
from shards.scan import MODALITIES, Scan, ScanError, read_scans
from shards.sources.cohort import load_cohort
from tests.shards import fuzz_mutate as mutate
from tests.shards.fuzz_mutate import Failure, Mutation, Random
from tests.shards.fuzz_rules import check_reason, check_scan, damage, write
from tests.shards.fuzz_seeds import (
    SECRETS,
    Files,
    cohort_table,
    dicom_seeds,
    itk_file,
    nifti_file,
    npz_file,
    parquet_table,
    webdataset_tar,
)
from tests.shards.fuzz_shards import run_build, run_shards, whole_shards

COHORT = """
name: toy
table: {table}
subject: 'sub-{{case}}'
scan: 'case_{{case}}.nii.gz'
modality: MR
split: {{column: split}}
licence: CC0
source: written by a test
"""


@dataclass(frozen=True)
class Target:
    """A kind of input; ``run(folder, random)`` damages, reads and judges it, and says what came."""

    name: str
    run: Callable[[Path, Random], str]


def targets(folder: Path) -> list[Target]:
    """All kinds; ``folder`` is for files that their libraries can only write to disk."""
    found = []
    for name, files in dicom_seeds(folder / "dicom").items():
        ways = (mutate.dicom, mutate.dicom, mutate.any_bytes)
        found.append(Target(f"dicom-{name}", partial(_dicom, files=files, ways=ways)))
    for name, files, ways in _images(folder):
        found.append(Target(name, partial(_image, files=files, ways=ways)))
    found.append(Target("cohort", partial(_cohort, files=cohort_table())))
    found.append(Target("parquet", partial(_cohort, files=parquet_table())))
    found.append(Target("webdataset", partial(_webdataset, files=webdataset_tar())))
    found += [Target("shards", partial(run_shards, whole=whole_shards(folder / "shards")))] * 3
    # A build starts a process, so there are fewer of them.
    return [*found, *found, Target("build", run_build)]


def _images(folder: Path) -> Iterator[tuple[str, Files, tuple[Mutation, ...]]]:
    plain = (mutate.nifti, mutate.nifti, mutate.any_bytes)
    packed = (mutate.inside_gzip(mutate.nifti), mutate.any_bytes)
    text = (mutate.number_in_text, mutate.any_bytes)
    yield "nii", nifti_file(20, suffix=".nii"), plain
    yield "nii-float", nifti_file(21, suffix=".nii", dtype="<f4"), plain
    yield "nii-4d", nifti_file(22, suffix=".nii", times=3), plain
    yield "nii-gz", nifti_file(23, suffix=".nii.gz"), packed
    yield "nrrd", itk_file(24, suffix=".nrrd", folder=folder / "itk"), text
    yield "nrrd-raw", itk_file(25, suffix=".nrrd", folder=folder / "itk"), text
    yield "mha", itk_file(26, suffix=".mha", folder=folder / "itk"), text
    yield "mha-raw", itk_file(27, suffix=".mha", folder=folder / "itk"), text
    yield "mhd", itk_file(29, suffix=".mhd", folder=folder / "itk"), text
    yield "npz", npz_file(), (mutate.any_bytes,)


def _dicom(place: Path, random: Random, *, files: Files, ways: tuple[Mutation, ...]) -> str:
    folder = write(place / SECRETS[3], damage(files, random, ways))
    policy = LENIENT if random.random() < 0.5 else Policy()
    tree = read_tree(folder)
    for _, reason in tree.skipped:
        check_reason(reason, folder)
    seen = [path for series in tree.series for path in series.files]
    seen += [path for path, _ in tree.skipped]
    if sorted(seen) != sorted(folder.iterdir()):
        raise Failure("a file is in no series and not skipped, or in two")
    told = [_outcome(read_series(one.files, policy=policy), folder) for one in tree.series]
    return "; ".join(told) or "skipped"


def _image(place: Path, random: Random, *, files: Files, ways: tuple[Mutation, ...]) -> str:
    folder = write(place / SECRETS[3], damage(files, random, ways))
    policy = LENIENT if random.random() < 0.5 else Policy()
    modality = str(mutate.choice(random, list(MODALITIES)))
    path = f"{folder / next(iter(files))}"
    where = f"{path}#train/1" if path.endswith(".npz") else path
    return _outcome(read_scans(where, modality=modality, policy=policy), folder)


def _webdataset(place: Path, random: Random, *, files: Files) -> str:
    folder = write(place / SECRETS[3], damage(files, random, (mutate.any_bytes,)))
    (path,) = folder.iterdir()
    told = []
    with path.open("rb") as file:
        for image in list_tar(file):
            if image.fault is not None:
                check_reason(image.fault, folder)
                told.append(image.fault)
                continue
            member = f"{path}#{image.first}+{image.size}"
            told.append(_outcome(read_scans(member, modality="MR"), folder))
    return "; ".join(told) or "no image"


def _cohort(place: Path, random: Random, *, files: Files) -> str:
    (table,) = files
    ways = (mutate.number_in_text, mutate.line_of_text, mutate.any_bytes)
    write(place, damage(files, random, ways if table.endswith("csv") else ways[2:]))
    (place / "toy.yaml").write_text(COHORT.format(table=table))
    try:
        cohort = load_cohort(place / "toy.yaml", data_root=place)
    except ValueError as error:  # CohortError and RecipeError are for the recipe's author
        return type(error).__name__
    return f"{len(cohort.rows)} rows"


def _outcome(scans: Iterator[Scan], folder: Path) -> str:
    """Read all scans; each is sound, and an error says nothing of the file."""
    count = 0
    try:
        for scan in scans:
            check_scan(scan)
            count += 1
    except ScanError as error:
        check_reason(str(error), folder)
        return f"{count} scans, {error}"
    return f"{count} scans"
