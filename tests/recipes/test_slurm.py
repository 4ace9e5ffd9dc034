"""The sbatch script as bash runs it, with SLURM's commands played by small scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCONTROL = """#!/bin/bash
echo "$@" >> "$FOLDER/scontrol"
case "$2" in
hostnames) printf 'node7\\nnode8\\n' ;;
job) echo "   JobState=$STATE Reason=None" ;;
esac
"""

SRUN = """#!/bin/bash
echo "$@" > "$FOLDER/srun"
echo "$MASTER_ADDR $MASTER_PORT" > "$FOLDER/master"
exit "$CODE"
"""

WAITING_SRUN = """#!/bin/bash
trap 'echo USR1 >> "$FOLDER/told"' USR1
trap 'echo TERM >> "$FOLDER/told"; exit 75' TERM
touch "$FOLDER/ready"
for ((i = 0; i < 3000; i++)); do sleep 0.02; done
"""


def start(
    folder: Path, project: Path, *, srun: str = SRUN, code: int = 0, state: str = "RUNNING"
) -> subprocess.Popen[str]:
    for name, text in (("scontrol", SCONTROL), ("srun", srun)):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    settings = {"FOLDER": str(folder), "CODE": str(code), "STATE": state}
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]"}
    return subprocess.Popen(
        ["bash", str(project / "recipes/slurm/pretrain.sbatch"), "my recipe.yaml", "seed=3"],
        env={**os.environ, **settings, **slurm, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def requeued(folder: Path) -> bool:
    return "requeue 123456" in (folder / "scontrol").read_text().splitlines()


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (1, False), (2, False), (75, True), (138, True), (137, False)]
)
def test_the_code_decides(tmp_path: Path, project: Path, code: int, again: bool) -> None:
    out, err = (job := start(tmp_path, project, code=code)).communicate(timeout=60)
    assert (job.returncode, requeued(tmp_path), err) == (code, again, "")
    assert ("queues again" in out) == again


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING"])
def test_a_cancelled_job_stays_so(tmp_path: Path, project: Path, state: str) -> None:
    job = start(tmp_path, project, code=75, state=state)
    job.communicate(timeout=60)
    assert (job.returncode, requeued(tmp_path)) == (75, False)


def test_ranks_are_told_what_they_need(tmp_path: Path, project: Path) -> None:
    start(tmp_path, project).communicate(timeout=60)
    words = (tmp_path / "srun").read_text()
    assert words.endswith("python -u -m foundation.pretrain my recipe.yaml seed=3\n")
    assert (tmp_path / "master").read_text() == "node7 23456\n"


def test_a_signal_to_the_batch_script_goes_on_to_the_ranks(tmp_path: Path, project: Path) -> None:
    """Twice one that only asks, and the script still waits for the code that comes later."""
    job = start(tmp_path, project, srun=WAITING_SRUN)
    told = tmp_path / "told"
    wait_for(tmp_path / "ready")
    for number, name in enumerate((signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM), start=1):
        job.send_signal(name)
        wait_for(told, lines=number)
    out, _ = job.communicate(timeout=60)
    assert told.read_text().split() == ["USR1", "USR1", "TERM"]
    assert (job.returncode, requeued(tmp_path)) == (75, True)
    assert "queues again" in out


def wait_for(path: Path, *, lines: int = 0) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() < deadline, f"{path.name} has not {lines} lines in time"
        time.sleep(0.01)


def test_slurm_is_asked_to_warn_and_to_keep_the_log(project: Path) -> None:
    text = (project / "recipes/slurm/pretrain.sbatch").read_text()
    asked = {line for line in text.splitlines() if line.startswith("#SBATCH")}
    assert {
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --signal=USR1@180",
    } <= asked
