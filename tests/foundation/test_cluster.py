"""What a task of srun makes of SLURM's variables."""

from pathlib import Path

import pytest

from foundation.running.cluster import ClusterError, srun_variables

TASK = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "node[7-8]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
}


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def scontrol(folder: Path, text: str) -> None:
    (folder / "scontrol").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "scontrol").chmod(0o755)


def test_a_task_of_srun(path: Path) -> None:
    scontrol(path, '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"')
    assert srun_variables(TASK) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "node7",
        "MASTER_PORT": "23470",
    }


def test_what_the_script_has_set_holds() -> None:
    found = srun_variables({**TASK, "MASTER_ADDR": "head", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("head", "29500")


def test_a_batch_script_and_a_launcher_are_no_task() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "123456"}
    assert (
        srun_variables(batch) == srun_variables({**TASK, "RANK": "0"}) == srun_variables({}) == {}
    )


@pytest.mark.parametrize("text", [None, "exit 1", "true"])
def test_hosts_that_cannot_be_listed(path: Path, text: str | None) -> None:
    if text:
        scontrol(path, text)
    with pytest.raises(ClusterError, match="set MASTER_ADDR"):
        srun_variables(TASK)
