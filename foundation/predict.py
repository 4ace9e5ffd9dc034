"""Apply a fine-tuned model to raw scans, one row of predictions each.

    python -m foundation.predict runs/demo_tune/adrenal/model scans/ --out predictions.csv
    python -m foundation.predict MODEL scan.nii.gz --modality CT --out predictions.csv
    python -m foundation.predict MODEL cohort.csv --out predictions.csv --per subject
    python -m foundation.predict MODEL scans/ --out volumes.csv --masks masks/
    python -m foundation.launch 4 foundation.predict MODEL scans/ --out p.csv --device cuda

MODEL is the folder that a fine-tuning writes, or whatever else load_model takes; SCANS is what
foundation.embed takes, and so are the other words. A row tells the label with a probability for
each class, a value, a risk and survival, or volumes, and how unsure the model is of it: which
columns these are for each kind of task stands in foundation/predicting/cells.py.

Of a segmentation --masks writes each mask as NIfTI in the scan's own space; without it there are
volumes only. A scan that the training data does not cover is refused unless --allow-uncovered,
which says so in its row. Beside the table lies its ledger: what came of each input. A command that
was ended goes on where it stopped. This is research software: no prediction is a diagnosis.

A row is named by the scan's path below SCANS: keep names of patients out of your folders, or give
--pseudonym-key.
"""

import argparse
from pathlib import Path

from foundation.embedding.job import ScansJob
from foundation.embedding.words import add_scans_words
from foundation.predicting.scans import predict_scans
from recipes.command import errors_in_one_line


def main() -> None:
    """Read the command line and predict."""
    words = _parser().parse_args()
    with errors_in_one_line():
        predict_scans(ScansJob(**vars(words)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("where", metavar="MODEL", help="a folder, or whatever else load_model takes")
    add_scans_words(parser, out="predictions.csv, .parquet or .npz")
    add("--masks", dest="files", type=Path, metavar="FOLDER", help="also write masks as NIfTI")
    add("--per", choices=("scan", "subject"), default="scan", help="of a subject's mean outcome")
    return parser


if __name__ == "__main__":
    main()
