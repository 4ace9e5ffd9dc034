"""The ledger of opened test splits: a committed file with one line per opening.

A recipe is named by a digest of its settings and backbones. Opening the same one again shows the
same scores and adds no line; choices come from validation in either case.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.storing.store import replace


class LedgerError(ValueError):
    """A ledger that cannot be read; it is never rewritten then."""


def find_opening(ledger: Path, recipe_digest: str) -> dict[str, Any] | None:
    """The line of an earlier opening of this recipe, or None."""
    lines = _read(ledger)
    return next((line for line in lines if line["recipe_digest"] == recipe_digest), None)


def record_opening(
    ledger: Path, *, date: str, name: str, recipe_digest: str, scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Append one opening, unless this recipe has one.

    Args:
        ledger: A JSON-lines file, created if absent.
        date: YYYY-MM-DD of the opening.
        name: Of the recipe.
        recipe_digest: 64 hex digits over settings and backbones.
        scores: By task, model and protocol: metric, score, interval and n.

    Returns:
        The line that stands in the ledger: the earlier one, if there was one.
    """
    lines = _read(ledger)
    earlier = next((line for line in lines if line["recipe_digest"] == recipe_digest), None)
    if earlier is not None:
        return earlier
    line = {"date": date, "name": name, "recipe_digest": recipe_digest, "scores": scores}
    text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in [*lines, line])
    replace(ledger, lambda file: file.write(text.encode()))
    return line


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
