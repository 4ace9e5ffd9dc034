"""How fast the methods train here: model only, end to end, and against other ways.

    python -m foundation.bench [--device cuda|cpu] [--quick] [--out FILE.json]
    python -m foundation.bench --table [FILE.json]

On a GPU the figures are held against what is required there; without one they only inform. A
requirement that is missed is told and changes no exit code. ``--table`` prints the figures of an
earlier run as the README shows them.
"""

import argparse
import os
from pathlib import Path

from recipes.command import errors_in_one_line

RECORDED = Path(__file__).with_name("results.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument(
        "--table", nargs="?", const=RECORDED, type=Path, help="print figures, measure nothing"
    )
    words = parser.parse_args()
    with errors_in_one_line():
        if words.table:
            show(words.table)
        else:
            measure(words.device, is_quick=words.quick, out=words.out)


def show(path: Path) -> None:
    """Print the table of an earlier run."""
    from foundation.bench.results import load_results
    from foundation.bench.table import markdown

    print(markdown(load_results(path)))


def measure(device: str | None, *, is_quick: bool, out: Path | None) -> None:
    """Measure, print and write."""
    # Imported here: a process that measures one case runs the head of this file again.
    import torch

    from foundation.bench.cases import cpu_extent, gpu_extent, quick_extent
    from foundation.bench.clock import ground_of
    from foundation.bench.results import save_results
    from foundation.bench.run import run
    from foundation.bench.table import markdown, verdict

    ground = ground_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    print(f"reads synthetic scans that it writes to a temporary folder, writes {out or 'nothing'}")
    if is_quick:
        extent = quick_extent()
    elif ground.device.type == "cpu":
        extent = cpu_extent()
    else:
        memory_bytes = torch.cuda.get_device_properties(ground.device).total_memory
        extent = gpu_extent(memory_bytes, workers=min(8, os.cpu_count() or 1))
    results = run(ground, extent=extent, is_quick=is_quick)
    print(f"\n{markdown(results)}\n")
    if out:
        save_results(out, results)
        print(f"figures: {out}")
    print(verdict(results.requirements))


if __name__ == "__main__":
    main()
