"""Embed many scans: read ahead, judge, embed, keep, and at the end a table and a ledger."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from foundation.backbone import Backbone, load_backbone
from foundation.embedding.coverage import coverage_of
from foundation.embedding.entries import Entry, Kept
from foundation.embedding.features import check_takes_scans
from foundation.embedding.inputs import EmbedError, Found, Item, find_items
from foundation.embedding.names import by_key, by_place
from foundation.embedding.reading import read_ahead
from foundation.embedding.scans import Embedding, entries_of, map_path
from foundation.embedding.table import Per, check_table, write_table
from foundation.embedding.team import Team, joined
from recipes.load import digest
from shards.files import only_one, write_text
from shards.pseudonym import load_key

_VERSION = 1  # of what is kept beside the table: raising it makes it stale
_LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class EmbedJob:
    """What the command line says.

    Attributes:
        backbone: What :func:`load_backbone` takes.
        scans: What :func:`find_items` takes, with ``modality``, ``subject`` and ``data_root``.
        out: The table.
        dense: Folder for token maps.
        per: A row of the table.
        allow_uncovered: Embed and mark what the contract does not cover.
        pseudonym_key: File of the key; made if absent.
        namespace: Of the pseudonyms; a source's name gives the pseudonyms of its shards.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    backbone: str
    scans: Path
    out: Path
    dense: Path | None = None
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


def run_job(job: EmbedJob) -> None:
    """Write the table, the ledger and the token maps; a job that was ended goes on.

    Raises:
        EmbedError: No scan was found, or none could be embedded; the ledger says why.
        BackboneError: The backbone is not what was published.
        InputError: It takes several sequences at once.
    """
    check_table(job.out)
    with joined() as team:
        if team.is_first:
            print(f"reads   {job.backbone}, {job.scans}\nwrites  {_written(job)}", flush=True)
        device = team.device(job.device)
        backbone = team.first_alone(lambda: _loaded(job, device=device))
        found = team.first_alone(lambda: _named(job))
        keys = _keys(job, backbone, found.items)
        job.out.parent.mkdir(parents=True, exist_ok=True)
        lock = job.out.with_name(f".{job.out.name}.lock")
        with only_one(lock, doing=str(job.out)) if team.is_first else nullcontext():
            _fill(job, backbone, found, keys, team=team)
            team.wait()
            if team.is_first:
                _publish(job, backbone, found, keys)


def _written(job: EmbedJob) -> str:
    maps = f", {job.dense}/" if job.dense else ""
    return f"{job.out}, {job.ledger}{maps}"


def _loaded(job: EmbedJob, *, device: str) -> Backbone:
    backbone = load_backbone(job.backbone, device=device)
    check_takes_scans(backbone)
    return backbone


def _named(job: EmbedJob) -> Found:
    found = find_items(
        job.scans, modality=job.modality, subject=job.subject, data_root=job.data_root
    )
    if not found.items:
        raise EmbedError(f"{job.scans}: no NIfTI, NRRD or MetaImage file and no DICOM series here")
    if job.pseudonym_key is None:
        return found._replace(items=by_place(found.items))
    if not job.pseudonym_key.exists():
        print(f"writes  {job.pseudonym_key}, a new key: whoever has it can trace rows", flush=True)
    key = load_key(job.pseudonym_key)
    namespace = job.namespace or found.namespace
    return found._replace(items=by_key(found.items, key=key, namespace=namespace))


def _fill(
    job: EmbedJob, backbone: Backbone, found: Found, keys: Mapping[str, str], *, team: Team
) -> None:
    """This process's share of what is not kept yet."""
    kept = Kept(job.out, rank=team.rank)
    entries = kept.load()
    team.wait()  # all have read before anyone writes: the shares are of one list
    todo = [item for item in found.items if not _is_done(job, entries.get(keys[item.name]))]
    if team.is_first and len(todo) < len(found.items):
        print(f"going on: {len(found.items) - len(todo)} of {len(found.items)} done", flush=True)
    how = Embedding(backbone, coverage_of(backbone), job.allow_uncovered, job.dense)
    mine = todo[team.rank :: team.size]
    bar = _bar(len(mine), team=team)
    try:
        with bar, torch.inference_mode():
            for item, opened in read_ahead(mine):
                made = list(entries_of(how, item, opened, key=keys[item.name]))
                kept.add(made)
                _tell(made)
                bar.update(1)
    finally:
        kept.flush()


def _bar(total: int, *, team: Team) -> "tqdm[Any]":
    """The first rank's share, with the time left; a log gets a line every ten seconds."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        desc="embed" if team.size == 1 else f"embed, one of {team.size} processes",
        total=total,
        unit="scan",
        mininterval=0.1 if is_terminal else _LOG_EVERY_S,
        maxinterval=_LOG_EVERY_S,
        dynamic_ncols=is_terminal,
        disable=not team.is_first,
    )


def _tell(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.status != "embedded":
            tqdm.write(f"{entry.status} {entry.scan}: {entry.reason}", file=sys.stderr)


def _keys(job: EmbedJob, backbone: Backbone, items: Sequence[Item]) -> dict[str, str]:
    """By name: changes with the input's files and with all that its features depend on."""
    settings = {
        "version": _VERSION,
        "backbone": backbone.digest,
        "modality": job.modality,
        "allow_uncovered": job.allow_uncovered,
        "dense": str(job.dense),
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


def _is_done(job: EmbedJob, entries: Sequence[Entry] | None) -> bool:
    """What failed is tried again; so is a scan whose map has gone."""
    if entries is None or any(entry.status == "failed" for entry in entries):
        return False
    wanted = [entry.scan for entry in entries if entry.status == "embedded"]
    return job.dense is None or all(map_path(job.dense, scan).is_file() for scan in wanted)


def _publish(job: EmbedJob, backbone: Backbone, found: Found, keys: Mapping[str, str]) -> None:
    """The ledger, the table, and one line."""
    kept = Kept(job.out)
    everything = kept.load()
    entries = [entry for item in found.items for entry in everything[keys[item.name]]]
    write_text(job.ledger, ledger_text(entries, found.skipped))
    counts = Counter(entry.status for entry in entries)
    if not counts["embedded"]:
        kept.remove()
        raise EmbedError(
            f"{job.scans}: none of {len(entries)} scans could be embedded; {job.ledger} says why"
            f"{_way_out(entries)}"
        )
    rows = write_table(job.out, entries, per=job.per)
    kept.remove()
    whose = f"{rows} subjects from " if job.per == "subject" else ""
    others = "".join(f", {counts[name]} {name}" for name in ("refused", "failed") if counts[name])
    marked = sum(entry.status == "embedded" and bool(entry.reason) for entry in entries)
    told = f", {marked} not covered" if marked else ""
    print(
        f"features: {job.out} ({whose}{counts['embedded']} of {len(entries)} scans"
        f"{told}{others}, width {backbone.vit.embed_dim})"
    )


def _way_out(entries: Sequence[Entry]) -> str:
    if any(entry.status == "refused" and entry.modality for entry in entries):
        return "; --allow-uncovered embeds and marks what the contract does not cover"
    return ""


def ledger_text(entries: Sequence[Entry], skipped: Mapping[str, int]) -> str:
    """A line of JSON for each scan, then one for each kind of file that is none."""
    lines: list[dict[str, Any]] = [entry.facts() for entry in entries]
    lines.extend(
        {"status": "skipped", "files": count, "reason": reason}
        for reason, count in sorted(skipped.items())
    )
    return "".join(json.dumps(line) + "\n" for line in lines)
