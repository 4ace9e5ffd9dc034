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

from foundation.embedding.job import ScansJob
from foundation.embedding.scans import embed_scans
from foundation.embedding.words import add_scans_words
from recipes.command import errors_in_one_line


def main() -> None:
    """Read the command line and embed."""
    words = _parser().parse_args()
    with errors_in_one_line():
        embed_scans(ScansJob(**vars(words)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("where", metavar="BACKBONE", help="a folder, or whatever else load_backbone takes")
    add_scans_words(parser, out="features.parquet, .csv or .npz")
    add("--dense", dest="files", type=Path, metavar="FOLDER", help="also write token maps as NIfTI")
    add("--per", choices=("scan", "subject"), default="scan", help="a subject's row is a mean")
    return parser


if __name__ == "__main__":
    main()
