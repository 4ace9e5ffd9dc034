"""Fetch the six MedMNIST3D archives through the ``medmnist`` package, and check what lies there.

    python -m shards.sources.medmnist data/medmnist3d --sets organ nodule --sizes 28 64

An archive that is there already is checked and kept. The cohorts in ``recipes/cohorts/`` name the
same files below their ``data_root``.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.command import errors_in_one_line

SETS = ("organ", "nodule", "adrenal", "fracture", "vessel", "synapse")
SIZES = (28, 64)
SPLITS = ("train", "val", "test")


class ArchiveError(ValueError):
    """An archive that cannot be had, or should not be used."""


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the archives")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES)
    given = parser.parse_args(words)
    with errors_in_one_line():
        names = [archive_name(kind, size) for kind in given.sets for size in given.sizes]
        print(f"writes  {given.out}: {', '.join(names)}", flush=True)
        for kind in given.sets:
            for size in given.sizes:
                fetch(given.out, kind=kind, size=size)
        print(f"done    {given.out}: {len(names)} archives", flush=True)


def archive_name(kind: str, size: int) -> str:
    """As the package names it: without a size at 28."""
    return f"{kind}mnist3d{'' if size == 28 else f'_{size}'}.npz"


def fetch(out: Path, *, kind: str, size: int) -> Path:
    """Download one archive where it is not there yet, and check it.

    Raises:
        ArchiveError: The package is missing, the download failed, or the archive is damaged, an
            outdated edition or holds blank volumes.
    """
    package = _package()
    path = out / archive_name(kind, size)
    about = package.INFO[f"{kind}mnist3d"]
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        _download(package, about, path, size=size)
    counts = check_archive(path, md5=str(about["MD5" if size == 28 else f"MD5_{size}"]))
    print(f"checked {path}: {counts} volumes, {about['license']}", flush=True)
    return path


def check_archive(path: Path, *, md5: str | None = None) -> str:
    """Look at every volume; with ``md5``, at the bytes of the file too.

    NoduleMNIST3D before v2.1.0 held 150 empty volumes in its test split, and blank samples of
    other sets were dropped in v2.2.4: a score on those says nothing.

    Returns:
        How many volumes each split holds.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            blank = {split: _num_blank(arrays[f"{split}_images"]) for split in SPLITS}
            counts = [f"{split} {len(arrays[f'{split}_labels'])}" for split in SPLITS]
    # The library raises a dozen types for bytes that are no archive.
    except Exception as error:
        raise ArchiveError(
            f"{path}: not a MedMNIST archive ({error}); remove it, fetch it again"
        ) from None
    if any(blank.values()):
        found = ", ".join(f"{count} in {split}" for split, count in blank.items() if count)
        raise ArchiveError(
            f"{path}: blank volumes ({found}): an edition before v2.2.4 of MedMNIST; remove it and "
            "fetch the newest"
        )
    if md5 is not None and _md5(path) != md5:
        raise ArchiveError(
            f"{path}: not the edition that the installed medmnist package lists (MD5 differs); "
            "remove it and fetch it again"
        )
    return ", ".join(counts)


def _num_blank(volumes: np.ndarray) -> int:
    """Volumes all of whose voxels are the same."""
    flat = volumes.reshape(len(volumes), -1)
    return int((flat.min(axis=1) == flat.max(axis=1)).sum()) if len(flat) else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _package() -> Any:
    try:
        import medmnist
    except ImportError:
        raise ArchiveError(
            "the medmnist package is not installed: pip install medmnist, or put the files of "
            "zenodo.org/records/10519652 into the folder yourself; their names are "
            f"{archive_name('organ', 28)}, {archive_name('organ', 64)} and so on"
        ) from None
    return medmnist


def _download(package: Any, about: dict[str, Any], path: Path, *, size: int) -> None:
    url = about["url" if size == 28 else f"url_{size}"]
    print(f"fetches {path.name} from {url}", flush=True)
    try:
        getattr(package, str(about["python_class"]))(
            split="train", download=True, root=str(path.parent), size=size
        )
    # The package raises RuntimeError for everything, and a page of text.
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise ArchiveError(
            f"{path.name} could not be downloaded ({type(error).__name__}: {first}); get {url} "
            f"by other means and put it into {path.parent}"
        ) from None
    if not path.is_file():
        raise ArchiveError(f"{path}: the package downloaded nothing there; is it 3.0 or newer?")


if __name__ == "__main__":
    main()
