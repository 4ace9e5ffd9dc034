"""What a build says: how far it is, and at the end what became of every input."""

from collections import Counter
from collections.abc import Iterable, Sequence

from shards.building.convert import Converted
from shards.building.ledger import Entry, counts, reasons, without_key


def progress(
    results: Iterable[list[Converted]], *, total: int, done: int = 0
) -> Iterable[list[Converted]]:
    """A bar with rate and time left; ``done`` inputs were taken before."""
    from tqdm import tqdm

    return tqdm(results, total=total, initial=done, desc="scans", unit="scan", mininterval=1.0)


def summary(entries: Sequence[Entry], *, num_subjects: int) -> str:
    """The ledger in a few lines."""
    found = counts(entries)
    withdrawn = f" + {found['withdrawn']} withdrawn" if found["withdrawn"] else ""
    lines = [
        f"{len(entries)} inputs = {found['accepted']} accepted + {found['rejected']} rejected"
        f" + {found['skipped']} skipped{withdrawn}; {found['files']} files; {num_subjects} subjects"
    ]
    for status in ("rejected", "skipped"):
        lines += [f"  {status} {times}: {reason}" for reason, times in reasons(entries, status)]
    notes = Counter(without_key(entry.note) for entry in entries if entry.note is not None)
    return "\n".join(lines + [f"  marked {times}: {note}" for note, times in sorted(notes.items())])


def most_frequent(entries: Sequence[Entry]) -> str:
    """Why scans were not accepted, most of all."""
    found = reasons(entries) or reasons(entries, "skipped")
    return f"{found[0][0]} ({found[0][1]})" if found else "nothing to read"
