"""Compare every byte of a folder of shards with its checksums.

    python -m shards.verify data/shards/demo

Prints a line for each damage (shard, key, byte) and ends with exit code 1 if there is any.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.command import errors_in_one_line
from recipes.load import digest
from shards.codec import DamagedFrame, verify_crop
from shards.files import sha256_of
from shards.index import DATASET, LEDGER, DamagedShard, Sample, read_dataset, read_index

DAMAGED = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of shards")
    words = parser.parse_args()
    with errors_in_one_line():
        print(f"reads {words.folder}, writes nothing", flush=True)
        problems = list(verify(words.folder))
    for problem in problems:
        print(problem, flush=True)
    if problems:
        told = f"{len(problems)} problems in {words.folder}; build the shards again"
        print(f"error: {told}", file=sys.stderr, flush=True)
        sys.exit(DAMAGED)
    print(f"whole: every checksum and count in {words.folder} agrees")


def verify(folder: Path) -> Iterator[str]:
    """One line for each problem.

    Raises:
        ValueError: The folder holds no shards.
    """
    from tqdm import tqdm

    try:
        dataset = read_dataset(folder)
    except DamagedShard as error:
        yield str(error)
        return
    content = {name: value for name, value in dataset.items() if name != "digest"}
    if digest(content) != dataset.get("digest"):
        yield f"{folder / DATASET}: damaged, its digest differs from its content"
        return
    samples: list[Sample] = []
    for shard in tqdm(dataset["shards"], desc="shards", unit="shard", mininterval=1.0):
        try:
            found = read_index(folder, shard)
        except DamagedShard as error:
            yield str(error)
            continue
        samples += found
        yield from _verify_shard(folder / shard["file"], shard, found)
    yield from _verify_counts(folder, dataset, samples)
    yield from _verify_ledger(folder / LEDGER, dataset["ledger"])


def _verify_shard(tar: Path, shard: Mapping[str, Any], samples: list[Sample]) -> Iterator[str]:
    if not tar.is_file():
        yield f"{tar}: missing"
        return
    if len(samples) != shard["num_samples"]:
        yield f"{tar}: {len(samples)} samples, {DATASET} says {shard['num_samples']}"
    if tar.stat().st_size != shard["size_bytes"]:
        yield f"{tar}: {tar.stat().st_size} bytes, expected {shard['size_bytes']}"
    is_whole = sha256_of(tar) == shard["sha256"]
    in_members = False
    with tar.open("rb") as file:
        for sample in samples:
            for name, member in sample.members.items():
                file.seek(member.offset)
                content = file.read(member.size)
                if hashlib.sha256(content).hexdigest() == member.sha256:
                    continue
                in_members = True
                place = member.offset + _damaged_chunk(sample, name, content)
                yield f"{tar}: {sample.key}.{name} is damaged at or after byte {place}"
    if not is_whole and not in_members:
        yield f"{tar}: damaged between its members (tar headers)"


def _damaged_chunk(sample: Sample, name: str, content: bytes) -> int:
    """First byte, within the member, of the part whose checksum differs."""
    if name not in sample.checksums:
        return 0
    try:
        verify_crop(
            memoryview(content),
            start=(0, 0, 0),
            stop=sample.shape,
            expected=sample.checksums[name],
        )
    except DamagedFrame as error:
        return error.offset
    return 0


def _verify_counts(
    folder: Path, dataset: Mapping[str, Any], samples: list[Sample]
) -> Iterator[str]:
    for what, found, said in (
        ("samples", len(samples), dataset["num_samples"]),
        ("subjects", sorted({one.subject for one in samples}), dataset["subjects"]),
        (
            "modalities",
            Counter(each.modality for one in samples for each in one.sequences.values()),
            dataset["modalities"],
        ),
    ):
        if found != said:
            yield f"{folder / DATASET}: the {what} of the indexes differ from what it says"


def _verify_ledger(path: Path, said: Mapping[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path}: missing"
        return
    if sha256_of(path) != said["sha256"]:
        yield f"{path}: damaged, its checksum differs"
        return
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = Counter(line["status"] for line in lines)
    if any(found[status] != said[status] for status in ("accepted", "rejected", "skipped")):
        yield f"{path}: its entries do not add up to what {DATASET} says"


if __name__ == "__main__":
    main()
