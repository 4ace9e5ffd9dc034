"""Start a command on several processes of this machine; torchrun, without its report of a failure.

    python -m foundation.launch PROCESSES foundation.pretrain RECIPE [section.field=value ...]

The line of the process that failed is then the last on the console, and its code the exit code.
"""

import argparse
import importlib.util
import logging
import os
import sys

from recipes.command import INTERRUPTED, errors_in_one_line

_SIGNALLED = 128


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
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // words.processes)))
    sys.exit(_launch(words.processes, [words.module, *words.words]))


def check_module(name: str) -> None:
    """Raises LaunchError for a module that is not there, before every process says so."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise LaunchError(f"{name}: no such module; a command is named like foundation.pretrain")


def _launch(processes: int, command: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun(["--standalone", "--nproc-per-node", str(processes), "-m", *command])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        code: int = failure.exitcode
        return code if code >= 0 else _SIGNALLED - code
    except (SignalException, KeyboardInterrupt):
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    main()
