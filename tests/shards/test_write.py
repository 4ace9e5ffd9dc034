"""Tars: the bytes are webdataset's own, and the index says where everything lies."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import xxhash

from shards.codec import checksums, encode
from shards.index import index_path
from shards.write import PackedSample, ShardWriter


def _sample(number: int) -> PackedSample:
    random = np.random.default_rng(number)
    frame = encode(random.integers(-900, 900, (5 + number, 7, 6)).astype(np.int16))
    members = {"volume.b2nd": frame, "scan.json": b"x" * (511 + number)}
    return PackedSample(
        key=f"key-{number}",
        record={"number": number},
        members=members,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        checksums={"volume.b2nd": checksums(frame)},
    )


def _written(folder: Path, samples: list[PackedSample], **words: Any) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    writer = ShardWriter(folder, finished=lambda _, entry: entries.append(entry), **words)
    for sample in samples:
        writer.add(sample)
    writer.close()
    return entries


def test_the_bytes_are_those_of_webdataset(tmp_path: Path) -> None:
    samples = [_sample(number) for number in range(5)]
    (entry,) = _written(tmp_path, samples, shard_size_mb=1)
    with (tmp_path / "theirs.tar").open("wb") as file:
        theirs = webdataset.TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False)
        for sample in samples:
            for name, content in sample.members.items():
                theirs.write({"__key__": sample.key, name: content})
        theirs.close()
    ours = (tmp_path / entry["file"]).read_bytes()
    assert ours == (tmp_path / "theirs.tar").read_bytes()
    assert entry["xxh3_128"] == xxhash.xxh3_128(ours).hexdigest()
    assert entry["size_bytes"] == len(ours)


def test_the_index_says_where_each_member_lies(tmp_path: Path) -> None:
    samples = [_sample(number) for number in range(4)]
    entries = _written(tmp_path, samples, shard_size_mb=0.003, first=7)
    names = [f"shard-{number:06d}.tar" for number in range(7, 7 + len(entries))]
    assert [entry["file"] for entry in entries] == names
    assert 1 < len(entries) < len(samples)
    found = []
    for entry in entries:
        tar = tmp_path / entry["file"]
        index = json.loads(index_path(tar).read_bytes())
        content = tar.read_bytes()
        with tarfile.open(tar) as archive:
            names = archive.getnames()
        listed = [f"{one['key']}.{name}" for one in index["samples"] for name in one["members"]]
        assert sorted(names) == sorted(listed)
        for one in index["samples"]:
            found.append(one["key"])
            sample = samples[int(one["key"][-1])]
            for name, member in one["members"].items():
                first = member["offset"]
                assert content[first : first + member["size"]] == sample.members[name]
    assert found == [sample.key for sample in samples]


def test_a_key_with_a_dot_is_our_own_mistake(tmp_path: Path) -> None:
    from dataclasses import replace

    writer = ShardWriter(tmp_path, shard_size_mb=1)
    with pytest.raises(AssertionError, match="a dot in a key"):
        writer.add(replace(_sample(0), key="1.2.3"))
