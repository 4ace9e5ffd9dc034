"""Makes two ranks of itself: a diary over a few updates in which rank 1 is slow, and once hangs.

Prints JSON lines: those of the log, and the stacks of rank 0.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from foundation.log import RunLog, read_log
from foundation.objective.collectives import sum_over_ranks
from foundation.objective.preparation import Preparation
from foundation.running.ranks import Ranks, from_rank_zero, join_ranks, leave_ranks
from foundation.watching.alarms import Alarms
from foundation.watching.diary import Diary
from foundation.watching.heartbeat import Heartbeat

STEPS, SLOW_S = 4, 0.1


def slow_updates(ranks: Ranks, folder: Path) -> None:
    """Rank 1 reads slowly and prepares slowly; rank 0 waits for it in the backward pass."""
    log = None
    if ranks.rank == 0:
        log = RunLog(folder / "log.jsonl", start=0, wandb=False, name="run", recipe={})
    prepare = Preparation(lambda seconds: time.sleep(seconds))
    heartbeat = Heartbeat(folder, rank=ranks.rank, world_size=2, step=0, stall_s=0.4, every_s=0.1)
    with (
        heartbeat,
        Diary(
            log,
            alarms=Alarms(first_judged=99, patience_steps=9),
            device=ranks.device,
            start=0,
            total=STEPS,
            every_steps=2,
            global_batch=2,
            tokens_per_scan=10,
            heartbeat=heartbeat,
            prepare=prepare,
        ) as diary,
    ):
        for step in range(STEPS):
            last = step == STEPS - 1
            time.sleep(2 * SLOW_S * ranks.rank + 1.2 * last * ranks.rank)
            diary.begin("forward", step=step)
            prepare(0.02)
            diary.begin("backward", step=step)
            assert sum_over_ranks(torch.ones(3))[0] == 2
            diary.begin("optimiser", step=step)
            diary.begin("log", step=step)
            diary.enter(
                step + 1,
                means={"loss": 1.0},
                norm=1.0,
                group={"lr": 1.0, "weight_decay": 0.0},
                seen=[SimpleNamespace(read_s=0.5)],
                epochs={},
            )
            diary.begin("wait", step=step + 1)


def two_ranks(port: str) -> None:
    """Become two processes, after the long imports; the first one waits for the other at last."""
    os.environ.update(WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    other = os.fork()
    os.environ["RANK"] = "0" if other else "1"
    main()
    if other and os.waitpid(other, 0)[1]:
        sys.exit("rank 1 failed")


def main() -> None:
    ranks = join_ranks(timeout_s=60)
    folder = Path(from_rank_zero(lambda: tempfile.mkdtemp()))
    slow_updates(ranks, folder)
    assert not hasattr(dist.Work.wait, "__wrapped__"), "nothing stays wrapped"
    dist.barrier()
    if ranks.rank == 0:
        for line in read_log(folder / "log.jsonl"):
            sys.stdout.write(json.dumps(line) + "\n")
        stacks = (folder / "stalls" / "rank-0000.txt").read_text()
        sys.stdout.write(json.dumps({"stacks": stacks}) + "\n")
    leave_ranks()


if __name__ == "__main__":
    two_ranks(sys.argv[1])
