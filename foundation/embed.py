"""Embed scans with a frozen backbone, one row of features each.

    python -m foundation.embed runs/demo_mae/backbone scans/ --out features.parquet
    python -m foundation.embed BACKBONE scan.nii.gz --modality CT --out features.npz
    python -m foundation.embed BACKBONE cohort.csv --out features.csv --per subject
    python -m foundation.embed BACKBONE recipes/cohorts/phantom.yaml --out f.csv --dense maps
    python -m foundation.launch 4 foundation.embed BACKBONE scans/ --out f.parquet --device cuda

SCANS is a NIfTI, NRRD or MetaImage file, a folder of those and of DICOM series at any depth, a CSV
or Parquet table with the columns scan (relative to it), subject, sequence and modality, or the YAML
of a cohort. ``cls`` is the class token, ``mean`` the mean patch token, both pooled over the scan.

A scan that the contract does not cover (its modality, spacing or unknown orientation) is refused
unless --allow-uncovered, which says so in its row. Beside the table lies its ledger: what came of
each input. A command that was ended goes on where it stopped.

A row is named by the scan's path below SCANS: keep names of patients out of your folders, or give
--pseudonym-key.
"""

import argparse
from pathlib import Path

from foundation.embedding.job import EmbedJob, run_job
from recipes.command import errors_in_one_line
from shards.scan import MODALITIES


def main() -> None:
    """Read the command line and embed."""
    words = _parser().parse_args()
    with errors_in_one_line():
        run_job(EmbedJob(**vars(words)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("backbone", help="a folder, or whatever else load_backbone takes")
    add("scans", type=Path)
    add("--out", type=Path, required=True, help="features.parquet, .csv or .npz")
    add("--dense", type=Path, metavar="FOLDER", help="also write token maps as NIfTI")
    add("--per", choices=("scan", "subject"), default="scan", help="a subject's row is a mean")
    add("--allow-uncovered", action="store_true", help="embed and mark, instead of refusing")
    add("--modality", choices=MODALITIES, help="of image files, which do not tell")
    add("--subject", metavar="PATTERN", help="regular expression: finds the subject in a path")
    add("--data-root", type=Path, help="of a cohort (data), or of a table (its own folder)")
    add("--pseudonym-key", type=Path, metavar="FILE", help="name rows by keyed pseudonyms")
    add("--namespace", metavar="NAME", help="of pseudonyms: a source's name gives its shards'")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    return parser


if __name__ == "__main__":
    main()
