"""One page to look at before training: slices of some scans, histograms, rejects, duplicates.

    python -m shards.inspect data/shards/demo [--out reports/inspect.html] [--scans 24] [--seed 0]

Reads a folder of shards or its URL. The page holds everything in itself and makes no request; the
same shards and seed give the same bytes. Needs what ``pip install 'scanfm[evaluate]'`` brings.
"""

import argparse
import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from recipes.command import errors_in_one_line
from shards.building.ledger import Entry, parse_ledger
from shards.files import write_text
from shards.index import LEDGER, DamagedShard
from shards.inspect.facts import gather
from shards.inspect.page import page
from shards.inspect.pictures import ScanPicture, draw
from shards.storage.storage import Storage, open_storage
from shards.streaming.reader import ShardReader

OUT = Path("reports/inspect.html")
NEEDED = {"jinja2": "jinja2", "PIL": "pillow"}


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", metavar="DIR", help="folder of shards, or its URL")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the page (default: {OUT})")
    parser.add_argument("--scans", type=int, default=24, help="how many scans to draw")
    parser.add_argument("--seed", type=int, default=0, help="chooses the scans")
    given = parser.parse_args(words)
    with errors_in_one_line():
        if given.scans < 0 or given.seed < 0:
            raise ValueError("--scans and --seed are 0 or more")
        inspect(given.where, out=given.out, num_scans=given.scans, seed=given.seed)


def inspect(where: str | Path, *, out: Path, num_scans: int, seed: int) -> None:
    """Write the page of a folder of shards.

    Raises:
        ValueError: No shards there, damage in what describes them, or a library is missing.
        OSError: The page cannot be written.
    """
    _check_libraries()
    storage = open_storage(where)
    print(f"reads {storage}, writes {out}", flush=True)
    reader = ShardReader(storage)
    entries = read_ledger(storage, reader.dataset)
    chosen = choose(reader, num_scans=num_scans, seed=seed)
    pictures = [draw(reader, reader.samples[index]) for index in _progress(chosen)]
    facts = gather(reader.dataset, samples=reader.samples, entries=entries)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page(facts, pictures=pictures, seed=seed))
    _tell_damage(pictures)
    print(f"page: {out}")


def read_ledger(storage: Storage, dataset: dict[str, Any]) -> list[Entry]:
    """The ledger of a folder.

    Raises:
        DamagedShard: It is missing or not what was written.
    """
    try:
        content = storage.read_file(LEDGER)
    except FileNotFoundError:
        raise DamagedShard(f"{storage}/{LEDGER}: missing; build the shards again") from None
    if hashlib.sha256(content).hexdigest() != dataset["ledger"]["sha256"]:
        raise DamagedShard(f"{storage}/{LEDGER}: damaged, its checksum differs; build again")
    return parse_ledger(content)


def choose(reader: ShardReader, *, num_scans: int, seed: int) -> list[int]:
    """Samples to draw: each source and modality in turn, so that a rare kind is seen as well."""
    kinds: dict[tuple[str, str], list[tuple[bytes, int]]] = defaultdict(list)
    for index, scan in enumerate(reader.samples.scans()):
        # By key, so that new samples in front of an old one do not change its place.
        order = hashlib.sha256(f"{seed} {scan['key']}".encode()).digest()
        kinds[scan["source"], scan["sequences"][0]["modality"]].append((order, index))
    turns = zip_longest(*(sorted(members) for _, members in sorted(kinds.items())))
    dealt = [member[1] for turn in turns for member in turn if member is not None]
    return sorted(dealt[:num_scans])


def _check_libraries() -> None:
    for module, name in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(
                f"shards.inspect needs {name}, which is not installed; pip install"
                " 'scanfm[evaluate]' brings it"
            )


def _progress(chosen: Sequence[int]) -> Iterable[int]:
    from tqdm import tqdm

    return tqdm(chosen, desc="scans", unit="scan", mininterval=1.0)


def _tell_damage(pictures: Sequence[ScanPicture]) -> None:
    count = sum(picture.is_damaged for picture in pictures)
    if count:
        told = f"{count} of the {len(pictures)} scans drawn are damaged"
        print(f"warning: {told}; run python -m shards.verify for all of it", flush=True)


if __name__ == "__main__":
    main()
