"""Compare every byte of a folder of shards with its checksums.

    python -m shards.verify data/shards/demo

Prints a line for each damage (shard, key, byte) and ends with exit code 1 if there is any. The
folder may be a URL.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from recipes.command import errors_in_one_line
from shards.building.dataset import modalities
from shards.building.ledger import counts, parse_ledger
from shards.codec import DamagedFrame, verify_crop
from shards.index import DATASET, LEDGER, DamagedShard, Sample, read_dataset, read_index
from shards.storage.places import Place
from shards.storage.storage import open_storage

DAMAGED = 1
PIECE_BYTES = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of shards, or its URL")
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


def verify(folder: Any) -> Iterator[str]:
    """One line for each problem of a folder (text or path).

    Raises:
        ValueError: The folder holds no shards.
    """
    from tqdm import tqdm

    place, storage = Place(folder), open_storage(folder)
    try:
        dataset = read_dataset(storage)
    except DamagedShard as error:
        yield str(error)
        return
    samples: list[Sample] = []
    all_known = True
    total = sum(shard["size_bytes"] for shard in dataset["shards"])
    with tqdm(total=total, desc="shards", unit="B", unit_scale=True, mininterval=1.0) as bar:
        for shard in dataset["shards"]:
            try:
                found = read_index(storage, shard)
            except DamagedShard as error:
                all_known = False
                yield str(error)
            else:
                samples += found
                yield from _verify_shard(place, shard, found)
            bar.update(shard["size_bytes"])
    if all_known:
        yield from _verify_counts(place, dataset, samples)
    yield from _verify_ledger(place, dataset["ledger"], samples if all_known else None)


def _verify_shard(
    place: Place, shard: Mapping[str, Any], samples: Sequence[Sample]
) -> Iterator[str]:
    name = shard["file"]
    tar = f"{place}/{name}"
    if not place.exists(name):
        yield f"{tar}: missing"
        return
    if len(samples) != shard["num_samples"]:
        yield f"{tar}: {len(samples)} samples, {DATASET} says {shard['num_samples']}"
    if (size := place.info(name).size) not in (-1, shard["size_bytes"]):
        yield f"{tar}: {size} bytes, expected {shard['size_bytes']}"
    import xxhash

    whole, in_members = xxhash.xxh3_128(), False
    with place.open(name) as file:
        for sample, member_name, content in _members(file, samples, whole):
            member = sample.members[member_name]
            if hashlib.sha256(content).hexdigest() == member.sha256:
                continue
            in_members = True
            at = member.offset + _damaged_chunk(sample, member_name, content)
            yield f"{tar}: {sample.key}.{member_name} is damaged at or after byte {at}"
    if whole.hexdigest() != shard["xxh3_128"] and not in_members:
        yield f"{tar}: damaged between its members (tar headers)"


def _members(
    file: IO[bytes], samples: Sequence[Sample], whole: Any
) -> Iterator[tuple[Sample, str, bytes]]:
    """Each member's bytes, read in one pass that ``whole`` hashes from the first byte to the last.

    A server is asked for every byte once.
    """
    listed = [
        (member, sample, name) for sample in samples for name, member in sample.members.items()
    ]
    place = 0
    for member, sample, name in sorted(listed, key=lambda one: one[0].offset):
        place += _skip(file, member.offset - place, whole)
        content = file.read(member.size)
        whole.update(content)
        place += len(content)
        yield sample, name, content
    while piece := file.read(PIECE_BYTES):
        whole.update(piece)


def _skip(file: IO[bytes], size: int, whole: Any) -> int:
    content = file.read(max(size, 0))
    whole.update(content)
    return len(content)


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
    place: Place, dataset: Mapping[str, Any], samples: Sequence[Sample]
) -> Iterator[str]:
    keys = [sample.key for sample in samples]
    for what, found, said in (
        ("samples", len(samples), dataset["num_samples"]),
        ("keys", len(set(keys)), len(keys)),
        ("subjects", sorted({one.subject for one in samples}), dataset["subjects"]),
        ("modalities", modalities(samples), dataset["modalities"]),
    ):
        if found != said:
            yield f"{place}/{DATASET}: the {what} of the indexes differ from what it says"


def _verify_ledger(
    place: Place, said: Mapping[str, Any], samples: Sequence[Sample] | None
) -> Iterator[str]:
    ledger = f"{place}/{LEDGER}"
    if not place.exists(LEDGER):
        yield f"{ledger}: missing"
        return
    content = place.read_bytes(LEDGER)
    if hashlib.sha256(content).hexdigest() != said["sha256"]:
        yield f"{ledger}: damaged, its checksum differs"
        return
    entries = parse_ledger(content)
    found = counts(entries)
    if any(found[name] != said[name] for name in found):
        yield f"{ledger}: its entries do not add up to what {DATASET} says"
    accepted = {entry.key for entry in entries if entry.status == "accepted"}
    if samples is not None and accepted != {sample.key for sample in samples}:
        yield f"{ledger}: the scans it accepted are not those in the shards"


if __name__ == "__main__":
    main()
