"""The ledger of opened test splits: a committed file with one line per opening.

A recipe is named by a digest of its settings and backbones. Opening the same one again shows the
same scores and adds no line; choices come from validation in either case. The line is there before
a test label is read, so that a run that dies has opened the split too; scores come into it later.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.storing.store import replace


class LedgerError(ValueError):
    """A ledger that cannot be read; it is never rewritten then."""


def find_opening(ledger: Path, recipe_digest: str) -> dict[str, Any] | None:
    """The line of an earlier opening of this recipe, or None."""
    lines = _read(ledger)
    return next((line for line in lines if line["recipe_digest"] == recipe_digest), None)


def announce_opening(ledger: Path, *, date: str, name: str, recipe_digest: str) -> dict[str, Any]:
    """Append an opening whose scores are not known yet, unless this recipe has a line.

    Args:
        ledger: A JSON-lines file, created if absent.
        date: YYYY-MM-DD of the opening.
        name: Of the recipe.
        recipe_digest: 64 hex digits over settings and backbones.

    Returns:
        The line that stands in the ledger: the earlier one, if there was one.
    """
    if (earlier := find_opening(ledger, recipe_digest)) is not None:
        return earlier
    line = {"date": date, "name": name, "recipe_digest": recipe_digest, "scores": None}
    _write(ledger, [*_read(ledger), line])
    return line


def record_opening(ledger: Path, *, recipe_digest: str, scores: Mapping[str, Any]) -> None:
    """Write scores into an announced opening that has none yet.

    Args:
        ledger: Holds the announcement.
        recipe_digest: Of the announced recipe.
        scores: By task, model and protocol: metric, score, interval and n.
    """
    lines = _read(ledger)
    for line in lines:
        if line["recipe_digest"] == recipe_digest and line["scores"] is None:
            line["scores"] = dict(scores)
            _write(ledger, lines)
            return


def _write(ledger: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
    replace(ledger, lambda file: file.write(text.encode()))


def _read(ledger: Path) -> list[dict[str, Any]]:
    if not ledger.is_file():
        return []
    lines = []
    for number, text in enumerate(ledger.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            lines.append({**line, "recipe_digest": line["recipe_digest"]})
        except (ValueError, TypeError, KeyError):
            raise LedgerError(
                f"{ledger}, line {number}: not the record of an opening; restore the file from "
                "version control"
            ) from None
    return lines
