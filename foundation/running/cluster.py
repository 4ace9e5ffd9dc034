"""A rank that ``srun python -m foundation.pretrain`` started: who it is, from SLURM's variables."""

import subprocess
from collections.abc import Mapping

_FIRST_PORT = 20000
_NUM_PORTS = 10000


class ClusterError(ValueError):
    """A SLURM step whose first host cannot be found."""


def srun_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed reads, for a task of srun; empty outside of one.

    ``SLURM_PROCID`` is no proof of srun, a batch script has it too; ``SLURM_STEP_NUM_TASKS`` is.
    A launcher in between (torchrun, foundation.launch) has set ``RANK``, which then holds.

    Raises:
        ClusterError: MASTER_ADDR is not set and the hosts of the step cannot be listed.
    """
    if "RANK" in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return {}
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or _port(environment),
    }


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment["SLURM_STEP_NODELIST"]
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return listed.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ClusterError(
            f"no first host from {' '.join(command)} ({error}); set MASTER_ADDR to it"
        ) from error


def _port(environment: Mapping[str, str]) -> str:
    """Another one for each step on the same hosts."""
    number = int(environment["SLURM_JOB_ID"]) + 7 * int(environment["SLURM_STEP_ID"])
    return str(_FIRST_PORT + number % _NUM_PORTS)
