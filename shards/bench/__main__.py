"""How fast shards are built and read here, as ratios within this run.

    python -m shards.bench [--quick] [--out FILE.json]

One core, one thread, files in the page cache; contenders take turns. Takes about five minutes;
``--quick`` only shows in seconds that everything runs: its ratios mean nothing.
"""

import argparse
import datetime
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipes.command import errors_in_one_line
from shards.bench.timing import Line, machine, one_thread
from shards.bench.volume import FULL, QUICK, Sizes
from shards.files import write_json

PARTS = ("crop", "memory", "build", "workers", "stream")
HEAD = ("contender", "median", "quartiles", "unit", "ratio", "required", "met")


class BenchError(ValueError):
    """Something to compare with is not installed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--only", choices=PARTS, help="one part")
    words = parser.parse_args()
    with errors_in_one_line():
        _require_monai()
        writes = words.out or "nothing"
        if words.out:
            words.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"reads synthetic scans that it writes to a temporary folder, writes {writes}")
        lines = run(QUICK if words.quick else FULL, parts=[words.only] if words.only else PARTS)
        if words.out:
            write_json(words.out, as_json(lines, is_quick=words.quick))
            print(f"figures: {words.out}")
        print(verdict(lines))


def run(sizes: Sizes, *, parts: Sequence[str]) -> list[Line]:
    """Measure and print one part after the other."""
    one_thread()
    lines: list[Line] = []
    for name in parts:
        with tempfile.TemporaryDirectory() as folder:
            found = _part(name)(Path(folder), sizes)
        print("\n" + table(found), flush=True)
        lines += found
    return lines


def _part(name: str) -> Callable[[Path, Sizes], list[Line]]:
    """Imported here: a worker process runs the head of this file again, and is timed."""
    from shards.bench.build import build_lines, memory_lines, worker_lines
    from shards.bench.crop import crop_lines
    from shards.bench.stream import stream_lines

    return {
        "crop": crop_lines,
        "memory": memory_lines,
        "build": build_lines,
        "workers": worker_lines,
        "stream": stream_lines,
    }[name]


def table(lines: Sequence[Line]) -> str:
    """Aligned columns under the name of the part."""
    rows = [HEAD]
    for line in lines:
        rows.append(
            (
                line.contender,
                f"{line.spread.median:.3g}",
                f"{line.spread.low:.3g}-{line.spread.high:.3g}",
                line.unit,
                "" if line.ratio is None else f"{line.ratio:.2f}",
                line.required,
                {None: "", True: "yes", False: "NO"}[line.is_met],
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    texts = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0].part, *texts])


def verdict(lines: Sequence[Line]) -> str:
    """One line: which requirements are not met in this run."""
    missed = [f"{line.part}: {line.contender}" for line in lines if line.is_met is False]
    if missed:
        return f"not met in this run: {'; '.join(missed)}"
    return "every requirement is met in this run"


def as_json(lines: Sequence[Line], *, is_quick: bool) -> dict[str, Any]:
    """Figures with what is needed to judge them."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": is_quick,
        "machine": machine(),
        "lines": [
            {**asdict(line), "spread": line.spread._asdict(), "met": line.is_met} for line in lines
        ],
    }


def _require_monai() -> None:
    from importlib.util import find_spec

    if find_spec("monai") is None:
        raise BenchError("the bench compares with MONAI, which is not installed; run make setup")


if __name__ == "__main__":
    main()
