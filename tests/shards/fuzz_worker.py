"""Runs numbered fuzz cases in a process of its own, so that a crash or a hang is seen from outside.

    python -m tests.shards.fuzz_worker FIRST STOP [TARGET]

Prints ``begin N TARGET`` and ``end N OUTCOME`` for each case; the outcome of a failure begins with
``FAIL``. Case N is the same in every run. What libraries write to stderr is judged like a log.
"""

import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.shards.fuzz_mutate import Failure

SEED = 20261124
RESERVED_BYTES = 6 << 30  # a 32-bit length may reserve 4 GB, as long as nothing fills them
TOUCHED_BYTES = 200 << 20  # that a case may fill: its files have a few thousand bytes


def main() -> None:
    # Here, as the builder's worker processes run the head of this file again.
    from tests.shards.fuzz_cases import targets

    first, stop = (int(word) for word in sys.argv[1:3])
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        known = targets(root / "seeds")
        _limit_memory()
        for number in range(first, stop):
            target = known[number % len(known)]
            if not target.name.startswith(only):
                continue
            print(f"begin {number} {target.name}", flush=True)
            place = root / "case"
            place.mkdir()
            random = np.random.default_rng([SEED, number])
            outcome = _judged(lambda run=target.run, at=place, rng=random: run(at, rng), root)
            print(f"end {number} {outcome}".replace("\n", " "), flush=True)
            shutil.rmtree(place)


def _judged(run: Callable[[], str], root: Path) -> str:
    """What came of a case; everything a library prints is taken from stderr and judged too."""
    from tests.shards.fuzz_rules import check_log

    log = root / "stderr"
    kept = os.dup(2)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 2)
    before = _touched_bytes(reset=True)
    try:
        outcome = run()
        check_log(log.read_text(errors="replace"), outcome=outcome)
        if (grown := _touched_bytes() - before) > TOUCHED_BYTES:
            raise Failure(f"{grown >> 20} MB were filled")
    except Failure as failure:
        return f"FAIL {failure}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"FAIL {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    return outcome


def _limit_memory() -> None:
    """What a damaged length asks for must be refused before it is reserved."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + RESERVED_BYTES, size + RESERVED_BYTES))


def _touched_bytes(*, reset: bool = False) -> int:
    """Most memory that this process filled since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
