"""Many scans, one after the other: read ahead, judged, done, kept, then a table and a ledger."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from foundation.embedding.entries import Entry, Kept
from foundation.embedding.inputs import Found, Item, JobError, find_items
from foundation.embedding.names import by_key, by_place
from foundation.embedding.reading import read_ahead
from foundation.embedding.table import Per, check_table
from foundation.embedding.team import Team, joined
from foundation.embedding.work import Work, entries_of
from recipes.load import digest
from shards.files import only_one, write_text
from shards.pseudonym import load_key

_VERSION = 2  # of what is kept beside the table: raising it makes it stale
_LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class ScansJob:
    """What the command line says.

    Attributes:
        where: The network, as :func:`foundation.backbone.load_backbone` takes it.
        scans: What :func:`find_items` takes, with ``modality``, ``subject`` and ``data_root``.
        out: The table.
        files: Folder for what is written of each scan: token maps, or masks.
        per: A row of the table.
        allow_uncovered: Take and mark what the contract does not cover.
        pseudonym_key: File of the key; made if absent.
        namespace: Of the pseudonyms; a source's name gives the pseudonyms of its shards.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    where: str
    scans: Path
    out: Path
    files: Path | None = None
    per: Per = "scan"
    allow_uncovered: bool = False
    modality: str | None = None
    subject: str | None = None
    data_root: Path | None = None
    pseudonym_key: Path | None = None
    namespace: str | None = None
    device: str = "cpu"

    @property
    def ledger(self) -> Path:
        """``features.ledger.jsonl`` beside ``features.csv``."""
        return self.out.with_name(f"{self.out.stem}.ledger.jsonl")


def run_job(job: ScansJob, begin: Callable[[str], Work], *, makes: str) -> None:
    """Write the table, the ledger and the files beside them; a job that was ended goes on.

    Args:
        job: What there is to do.
        begin: Loads the network onto a device.
        makes: What the table holds, in a word.

    Raises:
        JobError: No scan was found, or nothing could be done with any, and the ledger says why; or
            what would be written is somebody else's, or lies among the scans.
    """
    check_table(job.out)
    with joined() as team:
        team.first_alone(lambda: _check_out(job))
        if team.is_first:
            print(f"reads   {job.where}, {job.scans}\nwrites  {_written(job)}", flush=True)
        device = team.device(job.device)
        work = team.first_alone(lambda: begin(device))
        found = team.first_alone(lambda: _named(job))
        keys = _keys(job, work, found.items)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        lock = job.out.with_name(f".{job.out.name}.lock")
        with only_one(lock, doing=str(job.out)) if team.is_first else nullcontext():
            _fill(job, work, found, keys, team=team)
            team.wait()
            if team.is_first:
                _publish(job, work, found, keys, makes=makes)


def file_of(folder: Path, scan: str, *, ending: str) -> Path:
    """Beside a row: ``a/first.nii.gz`` has ``FOLDER/a/first.nii.gz.ENDING``."""
    parts = [part for part in Path(scan).parts if part not in ("..", "/")]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.{ending}")


def _check_out(job: ScansJob) -> None:
    """Nothing of somebody else's is replaced, and nothing lies where scans are looked for."""
    files = job.files.resolve() if job.files and job.scans.is_dir() else None
    if files is not None and files.is_relative_to(job.scans.resolve()):
        raise JobError(
            f"{job.files}: lies in {job.scans}, where the next command would take its images for "
            f"scans; choose a folder outside of it"
        )
    if job.out.is_dir():
        raise JobError(f"{job.out}: is a folder; name a file")
    if job.out.exists() and not job.ledger.exists():
        raise JobError(
            f"{job.out}: is there, and no {job.ledger.name} beside it, so that it was not written "
            f"by this command; choose another name, or take it away"
        )


def _written(job: ScansJob) -> str:
    files = f", {job.files}/" if job.files else ""
    return f"{job.out}, {job.ledger}{files}"


def _named(job: ScansJob) -> Found:
    found = find_items(
        job.scans, modality=job.modality, subject=job.subject, data_root=job.data_root
    )
    if not found.items:
        raise JobError(f"{job.scans}: no NIfTI, NRRD or MetaImage file and no DICOM series here")
    if job.pseudonym_key is None:
        named = found._replace(items=by_place(found.items))
        _check_apart(job, named.items)
        return named
    if not job.pseudonym_key.exists():
        print(f"writes  {job.pseudonym_key}, a new key: whoever has it can trace rows", flush=True)
    key = load_key(job.pseudonym_key)
    namespace = job.namespace or found.namespace
    return found._replace(items=by_key(found.items, key=key, namespace=namespace))


def _check_apart(job: ScansJob, items: Sequence[Item]) -> None:
    """``../a.nii`` of a table and ``a.nii`` would have one file."""
    if job.files is None:
        return
    names: dict[Path, str] = {}
    for item in items:
        path = file_of(job.files, item.name, ending="")
        if path in names:
            raise JobError(
                f"{names[path]} and {item.name} would be written to one file below {job.files}; "
                f"name the scans by paths below one folder"
            )
        names[path] = item.name


def _fill(job: ScansJob, work: Work, found: Found, keys: Mapping[str, str], *, team: Team) -> None:
    """This process's share of what is not kept yet."""
    kept = Kept(job.out, rank=team.rank)
    entries = kept.load()
    team.wait()  # all have read before anyone writes: the shares are of one list
    todo = [item for item in found.items if not _is_done(work, entries.get(keys[item.name]))]
    if team.is_first and len(todo) < len(found.items):
        print(f"going on: {len(found.items) - len(todo)} of {len(found.items)} done", flush=True)
    mine = todo[team.rank :: team.size]
    bar = _bar(len(mine), work.done, team=team)
    try:
        with bar, torch.inference_mode():
            for item, opened in read_ahead(mine):
                made = list(entries_of(work, item, opened, key=keys[item.name]))
                kept.add(made)
                _tell(made)
                bar.update(1)
    finally:
        kept.flush()


def _bar(total: int, doing: str, *, team: Team) -> "tqdm[Any]":
    """The first rank's share, with the time left; a log gets a line every ten seconds."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        desc=doing if team.size == 1 else f"{doing}, one of {team.size} processes",
        total=total,
        unit="scan",
        mininterval=0.1 if is_terminal else _LOG_EVERY_S,
        maxinterval=_LOG_EVERY_S,
        dynamic_ncols=is_terminal,
        disable=not team.is_first,
    )


def _tell(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if not entry.is_done:
            tqdm.write(f"{entry.status} {entry.scan}: {entry.reason}", file=sys.stderr)


def _keys(job: ScansJob, work: Work, items: Sequence[Item]) -> dict[str, str]:
    """By name: changes with the input's files and with all that its outcome depends on."""
    settings = {
        "version": _VERSION,
        "work": work.done,
        "modality": job.modality,
        "allow_uncovered": job.allow_uncovered,
        **work.settings(),
    }
    shared = digest(settings)
    return {item.name: digest([shared, item.name, _stamps(item)]) for item in items}


def _stamps(item: Item) -> list[Any]:
    found: list[Any] = [item.subject, item.sequence]
    for path in item.files:
        try:
            state = path.stat()
        except OSError:
            found.append([str(path), None])
        else:
            found.append([str(path), state.st_size, state.st_mtime_ns])
    return found


def _is_done(work: Work, entries: Sequence[Entry] | None) -> bool:
    """What failed is tried again; so is a scan whose file has gone."""
    if entries is None or any(entry.status == "failed" for entry in entries):
        return False
    return all(work.is_whole(entry.scan) for entry in entries if entry.is_done)


def _publish(
    job: ScansJob, work: Work, found: Found, keys: Mapping[str, str], *, makes: str
) -> None:
    """The ledger, the table, and one line."""
    kept = Kept(job.out)
    everything = kept.load()
    entries = [entry for item in found.items for entry in everything[keys[item.name]]]
    write_text(job.ledger, ledger_text(entries, found.skipped))
    counts = Counter(entry.status for entry in entries)
    if not counts[work.done]:
        kept.remove()
        raise JobError(
            f"{job.scans}: none of {len(entries)} scans could be {work.done}; {job.ledger} says why"
            f"{_way_out(entries)}"
        )
    rows = work.write_table(job.out, entries, per=job.per)
    kept.remove()
    whose = f"{rows} subjects from " if job.per == "subject" else ""
    others = "".join(f", {counts[name]} {name}" for name in ("refused", "failed") if counts[name])
    marked = sum(entry.is_done and bool(entry.reason) for entry in entries)
    told = f", {marked} not covered" if marked else ""
    print(f"{makes}: {job.out} ({whose}{counts[work.done]} of {len(entries)} scans{told}{others})")


def _way_out(entries: Sequence[Entry]) -> str:
    if any(entry.status == "refused" and entry.modality for entry in entries):
        return "; --allow-uncovered takes and marks what the contract does not cover"
    return ""


def ledger_text(entries: Sequence[Entry], skipped: Mapping[str, int]) -> str:
    """A line of JSON for each scan, then one for each kind of file that is none."""
    lines: list[dict[str, Any]] = [entry.facts() for entry in entries]
    lines.extend(
        {"status": "skipped", "files": count, "reason": reason}
        for reason, count in sorted(skipped.items())
    )
    return "".join(json.dumps(line) + "\n" for line in lines)
