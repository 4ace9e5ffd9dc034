"""Make disturbed histories of the shard build and of trainings, and judge how each ends.

    python -m tests.faults.run FIRST STOP

History N is the same in every run, but for what hangs on the clock. Prints a line for each, then
counts by fault and stage, which also go as JSON to the file that ``SCANFM_FAULTS_OUT`` names.
Leaves with 1 where a history fails.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.cases import CASES, Case, Reference, Verdict
from tests.faults.history import History, undisturbed
from tests.faults.jobs import Job, make_jobs
from tests.faults.strikes import own_disk

OUT = "SCANFM_FAULTS_OUT"


def main() -> None:
    first, stop = (int(word) for word in sys.argv[1:3])
    _build_extension()
    _import_all()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        jobs = make_jobs(base / "inputs", base / "place")
        (base / "streams").mkdir()
        references: dict[str, Reference] = {}
        verdicts = []
        for number in range(first, stop):
            job = jobs[_case(number).job]
            if job.name not in references:
                references[job.name] = _apart(base, partial(_reference, job, base))
            reference = references[job.name]
            verdict = _apart(base, partial(_history, number, job, reference, base))
            verdicts.append(verdict)
            print(_line(verdict), flush=True)
    counts = _counts(verdicts, seconds=time.monotonic() - began_s)
    print(_table(counts), flush=True)
    if os.environ.get(OUT):
        Path(os.environ[OUT]).write_text(json.dumps(counts, indent=1) + "\n")
    sys.exit(any(verdict.failure for verdict in verdicts))


def _build_extension() -> None:
    """Have DeepSpeed compile what it compiles at its first use: no history is to wait for that."""
    program = (
        "from deepspeed.accelerator import get_accelerator as accelerator; "
        "accelerator().create_op_builder('ShareMemCommBuilder').load()"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu"},
        check=True,
        capture_output=True,
    )


def _import_all() -> None:
    """What the commands import, once for all forks, and without starting a thread."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # else blosc2 starts a thread for each
    import blosc2  # noqa: F401
    import deepspeed  # noqa: F401
    import nibabel  # noqa: F401
    import torch
    import torch.utils.cpp_extension

    import foundation.pretrain  # noqa: F401
    import shards.build
    import shards.verify  # noqa: F401

    torch.set_num_threads(1)
    os.sched_setaffinity(0, cores)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork keeps only one thread"


def _reference(job: Job, base: Path) -> Reference:
    return undisturbed(job, place=base / "place", streams=base / "streams")


def _history(number: int, job: Job, reference: Reference, base: Path) -> Verdict:
    place, streams = base / "place", base / "streams"
    history = History(
        number, case=_case(number), job=job, reference=reference, place=place, streams=streams
    )
    return history.run()


def _case(number: int) -> Case:
    return CASES[number % len(CASES)]


def _apart(base: Path, work: Callable[[], Any]) -> Any:
    """The value of ``work``, done in a process with a disk of its own."""
    answer = base / "answer"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            with own_disk(base / "place"):
                value = work()
            answer.write_bytes(pickle.dumps(value))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.waitpid(pid, 0)
    return pickle.loads(answer.read_bytes())


def _line(verdict: Verdict) -> str:
    end = f"FAIL {verdict.failure}" if verdict.failure else "same"
    told = "; ".join(verdict.said)
    text = f"{verdict.number} {verdict.fault} {verdict.job}: {end} [{told}]"
    return " ".join(text.split())


def _counts(verdicts: Sequence[Verdict], *, seconds: float) -> dict[str, Any]:
    """How many faults struck, by fault and stage, and how many histories ended otherwise."""
    struck = Counter((one.fault, one.stage) for one in verdicts if one.stage)
    return {
        "histories": len(verdicts),
        "struck": sum(struck.values()),
        "failed": sum(bool(one.failure) for one in verdicts),
        "attempts": sum(one.attempts for one in verdicts),
        "seconds": round(seconds, 1),
        "by_fault_and_stage": {
            fault: {
                stage: number for (name, stage), number in sorted(struck.items()) if name == fault
            }
            for fault in sorted({fault for fault, _ in struck})
        },
    }


def _table(counts: dict[str, Any]) -> str:
    lines = [
        f"{counts['struck']} faults in {counts['histories']} histories, {counts['failed']} of which"
        f" did not end as undisturbed ({counts['attempts']} attempts, {counts['seconds']} s)"
    ]
    for fault, stages in counts["by_fault_and_stage"].items():
        told = ", ".join(f"{number} in {stage}" for stage, number in stages.items())
        lines.append(f"  {fault}: {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
