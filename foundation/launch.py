"""Start a command on several processes of this machine, pass signals on to them, name who failed.

    python -m foundation.launch PROCESSES foundation.pretrain RECIPE [section.field=value ...]

The line of the process that failed is then the last on the console, and its code the exit code: 75
where the job was asked to stop and has saved.
"""

import argparse
import importlib.util
import os
import sys

from foundation.running.processes import run_processes
from recipes.command import errors_in_one_line


class LaunchError(ValueError):
    """A command that cannot be started."""


def main() -> None:
    """Run the module on each process and leave as the first that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("processes", type=int)
    parser.add_argument("module")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    words = parser.parse_args()
    if words.processes < 1:
        parser.error(f"processes must be at least 1, got {words.processes}")
    with errors_in_one_line():
        check_module(words.module)
        check_alone()
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // words.processes)))
    left = run_processes(
        [sys.executable, "-u", "-m", words.module, *words.words], number=words.processes
    )
    if left.line:
        print(f"error: {left.line}", file=sys.stderr, flush=True)
    sys.exit(left.code)


def check_module(name: str) -> None:
    """Raises LaunchError for a module that is not there, before every process says so."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise LaunchError(f"{name}: no such module; a command is named like foundation.pretrain")


def check_alone() -> None:
    """Raises LaunchError where srun starts this more than once: each would be a job by itself."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        raise LaunchError(
            f"srun starts this launcher {tasks} times, and each is a job of one machine; start "
            f"the ranks themselves: srun python -m foundation.pretrain RECIPE"
        )


if __name__ == "__main__":
    main()
