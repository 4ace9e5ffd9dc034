"""Disturbed at any moment and started again, every command ends with the undisturbed result."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.run import OUT


def _histories(first: int, stop: int, *, project: Path, out: Path) -> dict[str, Any]:
    """The counts; every history must end as an undisturbed one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.run", str(first), str(stop)],
        cwd=project,
        env={**os.environ, OUT: str(out), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if ": FAIL " in line]
    assert not failed, "\n".join(failed)
    assert done.returncode == 0, done.stderr[-3000:]
    counts: dict[str, Any] = json.loads(out.read_text())
    assert counts["histories"] == stop - first
    return counts


def test_a_few_histories(project: Path, tmp_path: Path) -> None:
    """One of each kind of fault that one process can meet."""
    counts = _histories(0, 6, project=project, out=tmp_path / "counts.json")
    assert counts["struck"] >= 5
    assert len(counts["by_fault_and_stage"]) >= 5


@pytest.mark.slow
def test_many_histories(project: Path, tmp_path: Path) -> None:
    """The numbers that the README states; SCANFM_FAULTS_OUT keeps them."""
    kept = os.environ.get(OUT)
    counts = _histories(0, 225, project=project, out=Path(kept or tmp_path / "counts.json"))
    assert counts["struck"] >= 200
    stages = {stage for found in counts["by_fault_and_stage"].values() for stage in found}
    assert stages == {"shards", "training", "checkpoint", "backbone"}


PLANTED = """
import json, sys
from pathlib import Path
from tests.faults.cases import Case
from tests.faults.history import History, undisturbed
from tests.faults.jobs import Command, Job
from tests.faults.strikes import own_disk

place, streams = Path(sys.argv[1]) / "place", Path(sys.argv[1]) / "streams"
streams.mkdir()
found = {}
for way in ("careful", "careless"):
    command = Command("tests.faults.planted", (str(place / "shards"), way))
    job = Job("planted", (command,), place / "shards", streams, "*")
    with own_disk(place):
        reference = undisturbed(job, place=place, streams=streams)
    for fault in ("kill", "fill"):
        failures = found[f"{fault} {way}"] = []
        for number in range(6):
            with own_disk(place):
                history = History(
                    number, case=Case(fault, "planted"), job=job, reference=reference,
                    place=place, streams=streams,
                )
                failures.append(history.run().failure)
print(json.dumps(found))
"""


def test_what_is_written_carelessly_is_seen(project: Path, tmp_path: Path) -> None:
    """A toy command that writes a file beside and renames it, and one that does not."""
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, str(tmp_path)],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert not any(found["kill careful"] + found["fill careful"])
    assert "not the undisturbed result: data" in found["kill careless"]
    assert any("a traceback: OSError" in failure for failure in found["fill careless"])
