"""Write a synthetic cohort of head and chest scans with seven diseases.

    python -m shards.phantom data/phantom --subjects 200 --seed 1 --workers 2

Develop on seed 1; claims use seeds 2 to 4.
"""

import argparse
import json
import os
from pathlib import Path

from recipes.command import errors_in_one_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the cohort")
    parser.add_argument("--subjects", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a phantom cohort with other settings"
    )
    words = parser.parse_args()
    # The workers share the cores among themselves; a linear algebra pool in each only slows them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with errors_in_one_line():
        _run(words)


def _run(words: argparse.Namespace) -> None:
    from shards.phantom.cohort import write_cohort

    out: Path = words.out
    print(f"reads nothing, writes {out}: {words.subjects} subjects, seed {words.seed}", flush=True)
    is_new = write_cohort(
        out,
        subjects=words.subjects,
        seed=words.seed,
        workers=words.workers,
        overwrite=words.overwrite,
    )
    found = json.loads((out / "phantom.json").read_text())
    state = "" if is_new else "up to date: "
    print(f"{state}{out / 'cohort.csv'}: {found['scans']} scans, digest {found['digest'][:12]}")


if __name__ == "__main__":
    main()
