"""The report as data: a row per number and what traces it (CSV), the content as a tree (JSON)."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from evaluation.reporting.layout import StorePage, table_numbers
from evaluation.reporting.rows import COLUMNS, rows_of

SCHEMA_VERSION = 2
DIGITS, SMALL, TINY = 6, 1e-3, 1e-12


def csv_text(pages: Sequence[StorePage]) -> str:
    """Long form: one row per number, an empty cell where a column does not apply."""
    numbers = table_numbers(pages)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for page in pages:
        for row in rows_of(page.content, page.ranks):
            key = (page.content.name, row.get("task"), row["section"])
            writer.writerow(_rounded({"table": numbers.get(key, ""), **row}))
    return buffer.getvalue()


def json_text(pages: Sequence[StorePage]) -> str:
    """The content of the report without its pictures."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "stores": [_tree(page) for page in pages],
    }
    return json.dumps(_rounded(whole), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _tree(page: StorePage) -> dict[str, Any]:
    content = page.content
    tree = asdict(content)
    del tree["cohort_pictures"], tree["reconstructions"]
    for task, shown in zip(tree["tasks"], content.tasks, strict=True):
        results = task["results"]
        for row in (*results["rows"], *(results["few_shot"] or {}).get("curves", ())):
            row["warnings"] = content.warnings(shown.name, row["model"])
        fractions = results["fractions"] or {"lines": (), "comparisons": ()}
        for line in fractions["lines"]:
            line["warnings"] = content.warnings(shown.name, line["model"])
        for pair in (*results["comparisons"], *fractions["comparisons"]):
            pair["warnings"] = content.warnings(shown.name, pair["a"], pair["b"])
    return tree | {"ranks": asdict(page.ranks)}


def _rounded(value: Any) -> Any:
    """Six decimals, of a small p value four digits: what lies past them is of this machine's
    arithmetic, not of the data."""
    if isinstance(value, float):
        is_small = TINY < abs(value) < SMALL
        return float(f"{value:.4g}") if is_small else round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value
