"""Two ranks compute what one process computes on the joined batch: every loss, every gradient."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOLERANCE = 2e-5
"""Of the largest number of a gradient: roundings of float32, through a whole backbone."""


def test_two_ranks_equal_one_on_the_joined_batch(project: Path) -> None:
    script = Path(__file__).with_name("losses_parity.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(project), "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert sorted(line["rank"] for line in lines) == [0, 1]
    for line in lines:
        wrong = {name: size for name, size in line["found"].items() if not size < TOLERANCE}
        assert wrong == {}
        assert len(line["found"]) == 11
        assert min(line["moved"].values()) > 0.01, "a case whose numbers are 0 shows nothing"
