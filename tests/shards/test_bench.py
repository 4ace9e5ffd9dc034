"""The bench runs and says what it measured; how fast anything is, no test can tell."""

import json
import mmap
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.bench.__main__ import HEAD, as_json, table, verdict
from shards.bench.timing import Line, Spread, memory_bytes, spread, take_turns
from shards.bench.volume import ct_like

REQUIRED = {
    ("crop", "bare blosc2, in memory"): "<= 1.5",
    ("crop", "bare blosc2, mapped tar"): "<= 1.5",
    ("crop", "MONAI LoadImage + SpatialCrop"): ">= 100",
    ("crop", "WebDataset .npz (savez_compressed)"): ">= 20",
    ("memory of a worker", "int16 CT, own spacing"): "<= 1",
    ("memory of a worker", "int16 CT, resampled"): "<= 1",
    ("memory of a worker", "float32 MR, own spacing"): "<= 1",
    ("memory of a worker", "float32 MR, resampled"): "<= 1",
    ("build", "MONAI to npz, resampled"): ">= 1",
    ("build", "MONAI to npz, own spacing"): ">= 1",
    ("workers", "2 workers"): ">= 1.8",
}


def test_the_quick_run(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("monai")
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "shards.bench", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(out.read_text())
    required = {
        (line["part"], line["contender"]): line
        for line in found["lines"]
        if line["at_least"] is not None or line["at_most"] is not None
    }
    limits = {
        name: f"<= {line['at_most']:g}"
        if line["at_most"] is not None
        else f">= {line['at_least']:g}"
        for name, line in required.items()
    }
    assert limits == REQUIRED
    for line in found["lines"]:
        assert line["spread"]["low"] <= line["spread"]["median"] <= line["spread"]["high"]
        assert line["spread"]["median"] >= 0
        assert line["contender"] in done.stdout
    assert all(isinstance(line["met"], bool) for line in required.values())
    assert {line["part"] for line in found["lines"]} >= {"stream", "workers", "crop"}
    assert found["quick"] is True
    assert found["machine"]["cores"] >= 1
    assert platform.node() not in out.read_text()


def test_a_line_is_met_or_not() -> None:
    one = Spread(2.0, 1.0, 3.0)
    assert Line("a", "b", one, "ms", 1.5, at_most=1.5).is_met is True
    assert Line("a", "b", one, "ms", 1.51, at_most=1.5).is_met is False
    assert Line("a", "b", one, "ms", 99.9, at_least=100).is_met is False
    assert Line("a", "b", one, "ms", 100, at_least=100).is_met is True
    assert Line("a", "b", one, "ms", 100).is_met is None


def test_table_verdict_and_json() -> None:
    lines = [
        Line("crop", "ours", Spread(1.9, 1.8, 2.04), "ms", 1.0),
        Line("crop", "theirs", Spread(392.4, 391, 395), "ms", 206.5, at_least=100),
        Line("crop", "bare", Spread(1.0, 1.0, 1.0), "ms", 1.9, at_most=1.5),
    ]
    rows = table(lines).splitlines()
    assert rows[0] == "crop"
    assert rows[1].split() == list(HEAD)
    assert rows[3].split() == ["theirs", "392", "391-395", "ms", "206.50", ">=", "100", "yes"]
    assert rows[4].split() == ["bare", "1", "1-1", "ms", "1.90", "<=", "1.5", "NO"]
    assert verdict(lines) == "not met in this run: crop: bare"
    assert verdict(lines[:2]) == "every requirement is met in this run"
    assert as_json(lines, is_quick=False)["lines"][2]["met"] is False


def test_contenders_take_turns() -> None:
    seen: list[tuple[str, int]] = []
    contenders = {name: lambda each, name=name: seen.append((name, each)) for name in ("x", "y")}
    taken = take_turns(contenders, [7, 8])
    assert seen == [("x", 7), ("y", 7), ("x", 8), ("y", 8)]
    assert [len(each) for each in taken.values()] == [2, 2]


def test_spread_and_memory() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    before = memory_bytes(os.getpid())
    # Straight from the system: an array might fit into what this process let go of before.
    with mmap.mmap(-1, 64_000_000) as held:
        held.write(b"1" * len(held))
        assert 50e6 < memory_bytes(os.getpid()) - before < 200e6


def test_the_volume_is_like_a_ct() -> None:
    """Noise makes up most of what is left after compression; half of the bytes are usual."""
    from shards.codec import encode

    shape = (64, 96, 80)
    found = ct_like(shape, seed=0)
    assert found.shape == shape
    assert found.dtype == np.int16
    assert 0.35 < len(encode(found)) / found.nbytes < 0.65
    assert not np.array_equal(found, ct_like(shape, seed=1))
