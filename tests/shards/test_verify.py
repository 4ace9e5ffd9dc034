"""Any single damage to a folder of shards is found and named."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shards.index import index_path
from shards.streaming.reader import ShardReader
from shards.verify import verify


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    shutil.copytree(shards, tmp_path / "shards")
    return tmp_path / "shards"


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_a_whole_folder(copy: Path, project: Path) -> None:
    assert list(verify(copy)) == []
    command = [sys.executable, "-m", "shards.verify", str(copy)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "every checksum and count" in done.stdout


def test_a_flipped_byte_ends_with_one(copy: Path, project: Path) -> None:
    sample = ShardReader(copy).samples[5]
    place = sample.members["volume.b2nd"].offset + sample.checksums["volume.b2nd"].start
    _flip(copy / sample.shard, place + 40)
    command = [sys.executable, "-m", "shards.verify", str(copy)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{sample.shard}: {sample.key}.volume.b2nd is damaged" in done.stdout
    assert f"byte {place}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_each_part_is_covered(copy: Path) -> None:
    """One byte anywhere: in a tar's headers, a record, an index, the ledger, dataset.json."""
    sample = ShardReader(copy).samples[1]
    tar = copy / sample.shard
    record = sample.members["scan.json"]
    for path, place, message in (
        (tar, record.offset + 5, f"{sample.key}.scan.json is damaged"),
        (tar, record.offset - 400, "between its members"),
        (index_path(tar), 30, "checksum differs"),
        (copy / "ledger.jsonl", 12, "ledger.jsonl: damaged"),
        (copy / "dataset.json", 20, "dataset.json"),
    ):
        _flip(path, place)
        (problem,) = list(verify(copy))
        assert message in problem
        _flip(path, place)
    assert list(verify(copy)) == []


def test_missing_and_cut_files(copy: Path) -> None:
    tar = copy / "shard-000001.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    assert any("bytes, expected" in line for line in verify(copy))
    tar.unlink()
    assert any("shard-000001.tar: missing" in line for line in verify(copy))
    index_path(tar).unlink()
    assert any("index.json: missing" in line for line in verify(copy))


def test_no_shards_at_all(tmp_path: Path, project: Path) -> None:
    command = [sys.executable, "-m", "shards.verify", str(tmp_path)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no shards here" in done.stderr
