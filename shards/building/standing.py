"""What a folder of shards holds already, as a build that adds to it must know it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.building.ledger import Entry, parse_ledger
from shards.building.publication import STAMP
from shards.files import write_json
from shards.index import LEDGER, DamagedShard, Sample, read_dataset, read_index
from shards.storage.places import Place
from shards.storage.storage import MappedFolder, open_storage


@dataclass(frozen=True)
class Standing:
    """A whole, readable folder of shards.

    Attributes:
        dataset: ``dataset.json``.
        samples: Of all indexes.
        entries: The ledger.
        stamp: Of the inputs that it was built from.
        states: By input of the ledger, keyed sizes and times of its files when it was read. They
            differ between copies of one archive, so no digest covers them.
    """

    dataset: dict[str, Any]
    samples: tuple[Sample, ...]
    entries: tuple[Entry, ...]
    stamp: str
    states: Mapping[str, str]

    @property
    def withdrawn(self) -> list[str]:
        """Pseudonyms of the subjects that must not come back."""
        found: list[str] = self.dataset["withdrawn"]
        return found

    def emptied(self, *, next_shard: int) -> "Standing":
        """What a build that starts anew must still know: who withdrew, and what came before."""
        return Standing({**self.dataset, "shards": [], "next_shard": next_shard}, (), (), "", {})

    def past(self, event: str) -> dict[str, Any]:
        """What the history keeps of this state: its digest, its size, and what ended it."""
        kept = {name: self.dataset[name] for name in ("digest", "num_samples", "num_subjects")}
        return {**kept, "event": event}


def read_standing(place: Place) -> Standing:
    """``dataset.json``, all indexes and the ledger.

    Raises:
        DamagedShard: One of them is not what was written, or a tar is missing or cut.
        ValueError: No shards there, or of another version.
    """
    storage = open_storage(str(place))
    dataset = read_dataset(storage)
    samples = [one for shard in dataset["shards"] for one in read_index(storage, shard)]
    sizes = {file.name: file.size for file in place.files()}
    for shard in dataset["shards"]:
        if sizes.get(shard["file"]) not in (-1, shard["size_bytes"]):
            raise DamagedShard(f"{place}/{shard['file']}: missing or cut; build the folder again")
    try:
        entries = parse_ledger(place.read_bytes(LEDGER))
    except (ValueError, TypeError):
        raise DamagedShard(
            f"{place}/{LEDGER}: missing or damaged; build the folder again"
        ) from None
    stamp, states = _read_stamp(place)
    return Standing(dataset, tuple(samples), tuple(entries), stamp, states)


def write_stamp(draft: Path, *, stamp: str, states: Mapping[str, str]) -> None:
    """What the next build compares its inputs with."""
    write_json(draft / STAMP, {"stamp": stamp, "states": states})


def _read_stamp(place: Place) -> tuple[str, dict[str, str]]:
    """Without it every input counts as changed, and is found to be the same when it is read."""
    try:
        found = json.loads(place.read_bytes(STAMP))
        return found["stamp"], found["states"]
    except (ValueError, KeyError, TypeError):
        return "", {}


def samples_of(
    shards: Sequence[Mapping[str, Any]], *, standing: Standing | None, draft: Path
) -> list[Sample]:
    """The samples of shards that stand and of new ones, whose indexes are in the draft."""
    stood: dict[str, list[Sample]] = {}
    for sample in standing.samples if standing else ():
        stood.setdefault(sample.shard, []).append(sample)
    storage, found = MappedFolder(draft), []
    for entry in shards:
        found += stood.get(entry["file"]) or read_index(storage, entry)
    return found
