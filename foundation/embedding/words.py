"""The words of the commands that take many scans."""

import argparse
from pathlib import Path

from shards.scan import MODALITIES


def add_scans_words(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Which scans, whose, where to, and on what.

    Args:
        parser: Of a command; its words become those of ``foundation.embedding.job.ScansJob``.
        out: What the table may be called.
    """
    add = parser.add_argument
    add("scans", type=Path, metavar="SCANS")
    add("--out", type=Path, required=True, help=out)
    add("--allow-uncovered", action="store_true", help="take and mark, instead of refusing")
    add("--modality", choices=MODALITIES, help="of image files, which do not tell")
    add("--subject", metavar="PATTERN", help="regular expression: finds the subject in a path")
    add("--data-root", type=Path, help="of a cohort (data), or of a table (its own folder)")
    add("--pseudonym-key", type=Path, metavar="FILE", help="name rows by keyed pseudonyms")
    add("--namespace", metavar="NAME", help="of pseudonyms: a source's name gives its shards'")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
