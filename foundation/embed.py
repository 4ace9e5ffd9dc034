"""Embed scans with a frozen backbone, one row of features each.

    python -m foundation.embed runs/demo_mae/backbone scans/ --out features.csv
    python -m foundation.embed BACKBONE scan.nii.gz --modality CT --out features.npz

SCANS is a NIfTI file, a folder with a DICOM series, or a folder of both at any depth. A row is
named by the scan's path below SCANS: keep names of patients out of your folders, or the table to
yourself. ``cls`` is the class token, ``mean`` the mean patch token, both pooled over the scan.
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from foundation.backbone import load_backbone
from recipes.command import errors_in_one_line
from shards.dicom.series import read_series
from shards.dicom.tree import read_tree, refusal
from shards.files import write_bytes
from shards.policy import LENIENT
from shards.scan import ITK, MODALITIES, NIFTI, Scan, ScanError, only_scan, read_scan

FORMATS = (".csv", ".npz")


class EmbedError(ValueError):
    """Nothing could be embedded, or the table could not be written."""


class Found(NamedTuple):
    """A scan that is there to be read."""

    name: str
    read: Callable[[], Scan]


def main() -> None:
    """Read the command line and embed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="features.csv or features.npz")
    parser.add_argument("--modality", choices=MODALITIES, help="of image files, which do not tell")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    words = parser.parse_args()
    with errors_in_one_line():
        embed(
            words.backbone,
            scans=words.scans,
            out=words.out,
            modality=words.modality,
            device=words.device,
        )


def embed(
    where: Path, *, scans: Path, out: Path, modality: str | None = None, device: str = "cpu"
) -> None:
    """Write the features of every scan that can be read; the others are named and counted.

    Raises:
        EmbedError: No scan was found, or none could be embedded.
        BackboneError: The backbone is not what was published.
    """
    if out.suffix not in FORMATS:
        raise EmbedError(f"{out}: a table ends in {' or '.join(FORMATS)}")
    print(f"reads   {where}, {scans}\nwrites  {out}", flush=True)
    backbone = load_backbone(where, device=device)
    found = sorted(find_scans(scans, modality=modality), key=lambda scan: scan.name)
    if not found:
        raise EmbedError(f"{scans}: no NIfTI, NRRD or MetaImage file and no DICOM series here")
    rows: dict[str, dict[str, np.ndarray]] = {}
    for scan in tqdm(found, unit="scan", disable=not sys.stderr.isatty()):
        try:
            rows[scan.name] = backbone.embed_scan(scan.read())
        except ScanError as error:
            tqdm.write(f"skipped {scan.name}: {error}", file=sys.stderr)
    if not rows:
        raise EmbedError(f"{scans}: none of {len(found)} scans could be embedded")
    write_table(out, rows)
    print(f"features: {out} ({len(rows)} of {len(found)} scans, width {backbone.vit.embed_dim})")


def find_scans(scans: Path, *, modality: str | None) -> Iterator[Found]:
    """Every image file and DICOM series at or below ``scans``, named relative to it.

    Raises:
        EmbedError: Nothing is there.
    """
    if not scans.exists():
        raise EmbedError(f"{scans}: no such file or folder")
    if scans.is_file():
        yield Found(scans.name, partial(read_scan, scans, modality=modality))
        return
    for path in sorted(scans.rglob("*")):
        if path.name.lower().endswith(NIFTI + ITK) and path.is_file():
            name = path.relative_to(scans).as_posix()
            yield Found(name, partial(read_scan, path, modality=modality))
    taken: set[str] = set()
    for series in read_tree(scans).series:
        if refusal(series, policy=LENIENT) is not None:
            continue  # scouts and captures beside the scans
        folder = series.files[0].parent.relative_to(scans).as_posix()
        name, number = folder, 1
        while name in taken:  # several series in one folder
            number += 1
            name = f"{folder}#{number}"
        taken.add(name)
        yield Found(name, partial(_read_series, series.files))


def _read_series(files: Sequence[Path]) -> Scan:
    return only_scan(read_series(files))


def write_table(out: Path, rows: dict[str, dict[str, np.ndarray]]) -> None:
    """A CSV with one column a number, or an npz with ``scan``, ``cls`` and ``mean``."""
    kinds = list(next(iter(rows.values())))
    arrays = {kind: np.stack([row[kind] for row in rows.values()]) for kind in kinds}
    if out.suffix == ".npz":
        content = io.BytesIO()
        np.savez_compressed(
            content, scan=np.array(list(rows)), cls=arrays["cls"], mean=arrays["mean"]
        )
        data = content.getvalue()
    else:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["scan", *(f"{k}_{i}" for k in kinds for i in range(arrays[k].shape[1]))])
        for name, row in rows.items():
            # Nine digits give each float32 back exactly.
            table.writerow([name, *(f"{value:.9g}" for kind in kinds for value in row[kind])])
        data = text.getvalue().encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, data)


if __name__ == "__main__":
    main()
