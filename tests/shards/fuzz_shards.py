"""The builder over damaged files, and damaged shards: what is delivered is what was written.

Of a build every input is in the ledger, and every sample is one that a reader gives by itself.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.load import parse
from shards import build
from shards.build import BuildConfig
from shards.codec import quantise
from shards.dicom.series import read_series
from shards.dicom.tree import read_tree
from shards.index import DamagedShard
from shards.policy import Policy
from shards.scan import Scan, ScanError, read_scans
from shards.stream import crop_batches
from shards.streaming.corpus import open_corpus
from shards.streaming.crops import CropPlan
from shards.streaming.reader import DamagedSample, ShardReader
from shards.streaming.reading import FolderConfig
from shards.verify import verify
from tests.shards import fuzz_mutate as mutate
from tests.shards.fuzz_mutate import Failure, Random
from tests.shards.fuzz_rules import check_reason, damage, write
from tests.shards.fuzz_seeds import SECRETS, Files, dicom_series, nifti_file

WHOLE = (16, 20, 16)
"""A crop that holds any of the toy scans whole."""


def run_build(place: Path, random: Random) -> str:
    """Three series and three NIfTI files, some damaged, through the whole builder."""
    ways = (mutate.dicom, mutate.any_bytes)
    for number in range(3):
        files = dicom_series(50 + number)
        if number:
            files = damage(files, random, ways, most=2)
        write(place / f"dicom/{SECRETS[3]}{number}", files)
        (image,) = nifti_file(60 + number, suffix=".nii.gz").values()
        named = {f"{SECRETS[0]}{number}.nii.gz": image}
        if number:
            named = damage(named, random, (mutate.inside_gzip(mutate.nifti), mutate.any_bytes))
        write(place / "mr", named)
    config = _build_config(place)
    _build_quietly(config)
    expected = {_digest(quantise(scan.voxels).voxels) for scan in _all_scans(place)}
    return _judge_build(config, expected, place)


def _build_quietly(config: BuildConfig) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        build.main(config)


def _build_config(place: Path) -> BuildConfig:
    about = {"licence": "CC0", "source": "written by a test"}
    tree = {
        "name": "toy",
        "out": str(place / "shards"),
        "data_root": str(place),
        "pseudonym_key": str(place / "key"),
        "sources": [
            {"dicom": "dicom", "name": "ct", **about},
            {"images": "mr/*.nii.gz", "name": "mr", "modality": "MR", **about},
        ],
        "max_rejected_fraction": 1.0,
        "workers": 1,
    }
    return parse(tree, BuildConfig, where="recipe")


def _all_scans(place: Path) -> Iterator[Scan]:
    """What the readers give of every input by themselves."""
    policy = Policy()
    found = [read_series(one.files, policy=policy) for one in read_tree(place / "dicom").series]
    found += [
        read_scans(path, modality="MR", policy=policy) for path in sorted((place / "mr").iterdir())
    ]
    for scans in found:
        try:
            yield from scans
        except ScanError:
            continue


def _judge_build(config: BuildConfig, expected: set[str], place: Path) -> str:
    problems = list(verify(config.out))
    if problems:
        raise Failure(f"the build does not verify: {problems[0]}")
    reader = ShardReader(config.out)
    delivered = [_digest(reader.read_volume(number)) for number in range(len(reader))]
    if not set(delivered) <= expected:
        raise Failure("a delivered volume is none that a reader gives")
    text = (Path(config.out) / "ledger.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    accepted = [line for line in lines if line["status"] == "accepted"]
    if len(accepted) != len(reader) or len(accepted) < 2:
        raise Failure(f"{len(accepted)} accepted in the ledger, {len(reader)} samples")
    for line in lines:
        check_reason(line.get("reason") or "", place)
    return f"{len(accepted)} of {len(lines)} accepted"


@dataclass(frozen=True)
class WholeShards:
    """A folder of shards as it was written: its files, and the digest of each volume by key."""

    files: Files
    volumes: Mapping[str, str]


def whole_shards(folder: Path) -> WholeShards:
    for number in range(3):
        write(folder / f"dicom/p{number}", dicom_series(70 + number))
        (image,) = nifti_file(80 + number, suffix=".nii.gz").values()
        write(folder / "mr", {f"{number}.nii.gz": image})
    tree = _build_config(folder).model_dump(mode="json") | {"shard_size_mb": 0.008}
    config = parse(tree, BuildConfig, where="recipe")
    _build_quietly(config)
    reader = ShardReader(config.out)
    volumes = {
        sample.key: _digest(reader.read_volume(number))
        for number, sample in enumerate(reader.samples)
    }
    names = [path for path in Path(config.out).iterdir() if path.is_file()]
    return WholeShards({path.name: path.read_bytes() for path in names}, volumes)


def run_shards(place: Path, random: Random, *, whole: WholeShards) -> str:
    covered = {name: content for name, content in whole.files.items() if name[0] != "."}
    damaged = damage(covered, random, (mutate.any_bytes,), most=2)
    folder = write(place / "shards", {**whole.files, **damaged})
    try:
        problems = list(verify(folder))
    except ValueError as error:
        problems = [str(error)]
    if not problems:
        raise Failure("verify finds nothing")
    try:
        told = _read_all(folder, whole) + ", " + _stream_all(folder, whole)
    except ValueError as error:
        told = type(error).__name__
    return told


def _read_all(folder: Path, shards: WholeShards) -> str:
    reader = ShardReader(folder)
    count = 0
    for number, sample in enumerate(reader.samples):
        try:
            found = reader.read_volume(number)
        except DamagedSample:
            continue
        _check_volume(sample.key, found, shards)
        count += 1
    return f"{count} of {len(reader)} read"


def _stream_all(folder: Path, shards: WholeShards) -> str:
    plan = CropPlan(shape=WHOLE)
    corpus = open_corpus([FolderConfig(folder=str(folder))], plan=plan, seed=1)
    batches = crop_batches(
        corpus, plan=plan, micro_batch=1, seed=1, stop_position=8, max_damaged=100
    )
    count = 0
    try:
        for batch in batches:
            window = tuple(slice(*pair) for pair in batch.inside[0].tolist())
            _check_volume(batch.keys[0], batch.volume[0, 0].numpy()[window], shards)
            count += 1
    except DamagedShard:
        return f"{count} streamed, then all damaged"
    return f"{count} streamed"


def _check_volume(key: str, voxels: np.ndarray, shards: WholeShards) -> None:
    if shards.volumes.get(key) != _digest(voxels):
        raise Failure(f"{key} is delivered with other voxels than were written")


def _digest(voxels: np.ndarray) -> str:
    shape = repr(voxels.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(voxels, "<i2").tobytes()).hexdigest()
