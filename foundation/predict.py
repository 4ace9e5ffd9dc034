"""Apply a fine-tuned model to raw scans, one row of predictions each.

    python -m foundation.predict runs/demo_tune/adrenal/model scans/ --out predictions.csv
    python -m foundation.predict MODEL scan.nii.gz --modality CT --out predictions.csv
    python -m foundation.predict MODEL cohort.csv --out predictions.csv --per subject
    python -m foundation.predict MODEL scans/ --out volumes.csv --masks masks/
    python -m foundation.launch 4 foundation.predict MODEL scans/ --out p.csv --device cuda

MODEL is the folder that a fine-tuning writes, or whatever else load_model takes; SCANS is what
foundation.embed takes, and so are the other words. By the kind of task a row holds

    classes   label, probability_CLASS, calibrated, uncertainty, set
    labels    label, probability_LABEL, calibrated, uncertainty, set_LABEL
    a number  value, low, high
    survival  risk (larger is earlier), survival_DAYSd, median_days, low_days, high_days
    masks     volume_CLASS_ml, uncertainty, mask

Probabilities are calibrated where held-out subjects were enough, which the column says; uncertainty
is their entropy, from 0 (certain) to 1 (no idea); set, and low to high, hold the truth for nine of
ten new subjects of the population they were fitted on, and are empty where these were too few.
From low_days to high_days one and nine of ten have had the event.

Of a segmentation --masks writes each mask as NIfTI in the scan's own space, in place of one that it
has written there before; without it there are volumes only. Keep corrected masks elsewhere.

A scan that the training data does not cover (its modality, sequence, spacing or unknown
orientation) is refused unless --allow-uncovered, which says so in its row. Beside the table lies
its ledger: what came of each input. A command that was ended goes on where it stopped. This is
research software: no prediction is a diagnosis.

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
