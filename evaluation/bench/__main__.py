"""How fast evaluation is here: probes as ratios within this run, a whole run against its limit.

    python -m evaluation.bench [--quick] [--only PART] [--out FILE.json]

``--quick`` only shows in seconds that the probes run: its ratios mean nothing, and the whole run is
left out.
"""

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.bench.probes import FULL, QUICK, Sizes, draw_lines, grid_lines
from evaluation.bench.whole import whole_lines
from recipes.command import errors_in_one_line
from shards.bench.__main__ import table, verdict
from shards.bench.timing import Line, machine, one_core, one_thread
from shards.files import write_json

PROBES: dict[str, Callable[[Sizes], list[Line]]] = {"draws": draw_lines, "grid": grid_lines}
WHOLE = "whole"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--only", choices=(*PROBES, WHOLE), help="one part")
    words = parser.parse_args()
    with errors_in_one_line():
        if words.out:
            words.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"reads what it makes itself, writes {words.out or 'nothing'}", flush=True)
        parts = [words.only] if words.only else [*([] if words.quick else [WHOLE]), *PROBES]
        lines = run(QUICK if words.quick else FULL, parts=parts)
        if words.out:
            write_json(words.out, as_json(lines, is_quick=words.quick))
            print(f"figures: {words.out}")
        print(verdict(lines))


def run(sizes: Sizes, *, parts: Sequence[str]) -> list[Line]:
    """Measure and print one part after the other."""
    lines: list[Line] = []
    for name in parts:
        if name == WHOLE:  # before everything is held to one thread
            found = whole_lines()
        else:
            one_thread()
            with one_core():
                found = PROBES[name](sizes)
        print("\n" + table(found), flush=True)
        lines += found
    return lines


def as_json(lines: Sequence[Line], *, is_quick: bool) -> dict[str, Any]:
    """Figures with what is needed to judge them."""
    facts = machine()
    facts["libraries"] = {name: version(name) for name in ("numpy", "torch", "scikit-learn")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": is_quick,
        "machine": facts,
        "lines": [
            {**asdict(line), "spread": line.spread._asdict(), "met": line.is_met} for line in lines
        ],
    }


if __name__ == "__main__":
    main()
