"""Remove a subject whose consent is withdrawn from a folder of shards, for good.

    python -m shards.withdraw data/shards/head SUBJECT [--key data/pseudonym.key] [--runs runs]

SUBJECT is the identity that the source tells (PatientID, or a cohort's subject), or its pseudonym.
The shards that held the subject are written again under new names, the folder gets a new digest, no
later build takes the subject in again, and the runs that learned from the old content are listed.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.command import errors_in_one_line
from shards.building.dataset import describe
from shards.building.ledger import Entry, write_ledger
from shards.building.plan import as_withdrawn
from shards.building.publication import Output, fresh_draft, open_output
from shards.building.rewrite import without_samples
from shards.building.standing import Standing, read_standing, samples_of, write_stamp
from shards.files import only_one, sha256_of
from shards.index import LEDGER
from shards.pseudonym import load_key, pseudonym
from shards.storage.storage import open_storage

PSEUDONYM = re.compile(r"[0-9a-f]{16}")


class WithdrawError(ValueError):
    """A subject that cannot be withdrawn; the folder is unchanged."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of shards, or its URL")
    parser.add_argument("subject", help="identity or pseudonym")
    parser.add_argument(
        "--key",
        type=Path,
        default=Path("data/pseudonym.key"),
        help="that the shards were built with",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument(
        "--staging", type=Path, default=Path("data/staging"), help="for shards behind a URL"
    )
    words = parser.parse_args()
    with errors_in_one_line():
        print(f"reads {words.folder}, {words.runs}; writes {words.folder}", flush=True)
        withdraw(
            words.folder,
            words.subject,
            key=words.key,
            runs=words.runs,
            staging=words.staging,
        )


def withdraw(folder: str, subject: str, *, key: Path, runs: Path, staging: Path) -> None:
    """Remove every sample of a subject, and say which runs saw them.

    Raises:
        WithdrawError: No shards, or no such subject in them.
        DamagedShard: A sample that stays is damaged.
    """
    output = open_output(folder, staging=staging, name=Path(folder).name)
    lock = output.draft.with_name(f"{output.draft.name}.lock")
    with only_one(lock, doing=f"changing {output}"):
        output.recover()
        standing = read_standing(output.place)
        found = _pseudonyms(standing, subject, key)
        removed = [one for one in standing.samples if one.subject in found]
        if not removed:
            print(f"up to date: the subject was withdrawn from {output} before")
        else:
            _remove(output, standing=standing, subjects=found)
    print(
        f"withdrawn: {len(removed)} samples of {len({one.subject for one in removed})} subjects,"
        f" from {len({one.shard for one in removed})} shards of {output}"
    )
    digests = {standing.dataset["digest"], *(one["digest"] for one in standing.dataset["history"])}
    _tell_runs(list(runs_that_name(digests, runs)), runs)


def runs_that_name(digests: set[str], runs: Path) -> Iterator[Path]:
    """Folders of runs that learned, or were going to learn, from shards of one of the digests."""
    for run in sorted(path for path in runs.glob("*") if path.is_dir()):
        for path in (run / "backbone/provenance.json", run / "run.json"):
            try:
                about = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if digests & set(_named_digests(about)):
                yield run
                break


def _named_digests(about: Any) -> Iterator[str]:
    """Of ``run.json`` and ``provenance.json``: every text of 64 hex digits, however deep."""
    if isinstance(about, str):
        if re.fullmatch(r"[0-9a-f]{64}", about):
            yield about
    elif isinstance(about, dict | list):
        for inner in about.values() if isinstance(about, dict) else about:
            yield from _named_digests(inner)


def _pseudonyms(standing: Standing, subject: str, key: Path) -> set[str]:
    """Of the subject, in every source of the folder."""
    known = {*standing.dataset["subjects"], *standing.withdrawn}
    if PSEUDONYM.fullmatch(subject) and subject in known:
        return {subject}
    if not key.is_file():
        raise WithdrawError(f"{key}: no such pseudonym key; name it with --key, or a pseudonym")
    secret = load_key(key)
    sources = [source["name"] for source in standing.dataset["sources"]]
    found = {pseudonym(secret, source, subject) for source in sources} & known
    if not found:
        raise WithdrawError(
            f"the subject is in none of the sources {', '.join(sources)}; is it written as the"
            " source tells it, and is the key the one that the shards were built with?"
        )
    return found


def _remove(output: Output, *, standing: Standing, subjects: set[str]) -> None:
    """Publish the folder without the subjects."""
    fresh_draft(output)
    dataset, first = standing.dataset, standing.dataset["next_shard"]
    shards = without_samples(
        dataset["shards"],
        samples=standing.samples,
        drop={one.key for one in standing.samples if one.subject in subjects},
        storage=open_storage(str(output.place)),
        draft=output.draft,
        first_shard=first,
        deliver=output.deliver,
    )
    entries = [_entry(entry, subjects) for entry in standing.entries]
    write_ledger(output.draft / LEDGER, entries)
    stood = {entry["file"] for entry in dataset["shards"]}
    content = describe(
        about=dataset,
        samples=samples_of(shards, standing=standing, draft=output.draft),
        shards=shards,
        entries=entries,
        ledger_sha256=sha256_of(output.draft / LEDGER),
        history=[*dataset["history"], standing.past("withdrawn")],
        withdrawn={*standing.withdrawn, *subjects},
        next_shard=first + sum(entry["file"] not in stood for entry in shards),
    )
    write_stamp(output.draft, stamp=standing.stamp, states=standing.states)
    output.publish(shards, content=content)


def _entry(entry: Entry, subjects: set[str]) -> Entry:
    is_one = entry.subject in subjects and entry.status == "accepted"
    return as_withdrawn(entry) if is_one else entry


def _tell_runs(found: Sequence[Path], runs: Path) -> None:
    if not found:
        print(f"no run below {runs} names these shards")
        return
    print(f"{len(found)} runs learned from content that held the subject; consent covers them too:")
    for run in found:
        print(f"  {run}")


if __name__ == "__main__":
    main()
