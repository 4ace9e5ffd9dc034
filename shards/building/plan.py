"""What a build has to do: which inputs are new, which changed, and which stay as they are."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from recipes.load import digest
from shards.building.convert import Converted, Task, convert
from shards.building.ledger import Entry
from shards.building.standing import Standing
from shards.index import Sample
from shards.pseudonym import day_shift, derived_key, pseudonym
from shards.scan import ABSENT
from shards.sources.inputs import Input
from shards.sources.source import Source
from shards.storage.places import PlaceError

WITHDRAWN = "the subject's consent is withdrawn"


class Job(NamedTuple):
    """An input to convert; ``input`` names it in the ledger, ``state`` its files as they are."""

    task: Task
    input: str
    state: str


@dataclass(frozen=True)
class Plan:
    """Of one build.

    Attributes:
        jobs: Inputs to convert, in order.
        kept: Ledger entries of an earlier build that stay as they are.
        unread: Entries of files that are no scan and of subjects that are withdrawn.
        stale: By ``Job.input``, the samples that its files gave before they changed.
        states: By input, of all that is there or was: what the next build compares with.
        num_gone: Inputs of earlier builds that are no longer there; their samples stay.
    """

    jobs: tuple[Job, ...]
    kept: tuple[Entry, ...]
    unread: tuple[Entry, ...]
    stale: dict[str, tuple[Sample, ...]]
    states: dict[str, str]
    num_gone: int

    @property
    def num_inputs(self) -> int:
        """Those to convert, and those that an earlier build read."""
        return len(self.jobs) + len({entry.input for entry in self.kept})

    def vanished(self, entries: Iterable[Entry]) -> set[str]:
        """Inputs whose files were there when this plan was made and gone when they were read."""
        seen = {job.input for job in self.jobs if job.task.item.verdict is None}
        return {
            entry.input
            for entry in entries
            if entry.input in seen and entry.reason is not None and entry.reason.endswith(ABSENT)
        }

    def digest(self, recipe_digest: str) -> str:
        """Of all that decides the result."""
        return digest(
            [
                recipe_digest,
                [[job.input, job.state] for job in self.jobs],
                [[entry.input, entry.status, entry.key] for entry in self.kept],
                [[entry.source, entry.reason] for entry in self.unread],
            ]
        )


def make_plan(sources: Sequence[Source], *, key: bytes, standing: Standing | None) -> Plan:
    """Compare what the sources hold with what an earlier build made of them."""
    before: dict[str, list[Entry]] = defaultdict(list)
    for entry in standing.entries if standing else ():
        if entry.input is not None:
            before[entry.input].append(entry)
    withdrawn = set(standing.withdrawn) if standing else set()
    states = dict(standing.states) if standing else {}
    jobs, unread, unchanged = [], [], set()
    for job in jobs_of(sources, key):
        stood, states[job.input] = states.get(job.input), job.state
        if job.input in before and stood == job.state:
            unchanged.add(job.input)
        elif job.task.subject in withdrawn:
            unread.append(_withdrawn(job))
        else:
            jobs.append(job)
    unread += [
        Entry(source.name, len(source.inputs) + place, "skipped", reason=reason)
        for source in sources
        for place, reason in enumerate(source.skipped)
    ]
    changed = {job.input for job in jobs} & before.keys()
    gone = before.keys() - changed - unchanged - {entry.input for entry in unread}
    kept = [entry for name, some in before.items() if name not in changed for entry in some]
    stale = _stale(standing, {name: before[name] for name in changed}.items())
    return Plan(tuple(jobs), tuple(kept), tuple(unread), stale, states, len(gone))


def convert_job(job: Job) -> list[Converted]:
    """:func:`shards.building.convert.convert`, for an executor.

    One scan of an archive must not end a build of days, whatever a decoder makes of it: what no
    reader foresaw is a reason in the ledger too. A full disk or a lost server does end it.
    """
    try:
        return convert(job.task)
    except (OSError, PlaceError):
        raise
    except Exception as error:
        reason = f"an unforeseen {type(error).__name__} while it was read"
        return [Converted(None, "rejected", reason)]


def jobs_of(sources: Iterable[Source], key: bytes) -> Iterator[Job]:
    """Every input, in order, under its keyed name."""
    for source in sources:
        times: Counter[str] = Counter()
        for item in source.inputs:
            times[item.name] += 1  # one name may hold several series
            name = f"{item.name}\0{times[item.name]}"
            task = Task(
                item,
                source.config,
                source.name,
                subject=pseudonym(key, source.name, item.subject),
                day_shift=day_shift(key, f"{source.name}\0{item.subject}"),
                series_key=derived_key(key, f"series {source.name}"),
            )
            yield Job(
                task,
                input=pseudonym(key, f"input {source.name}", name),
                state=pseudonym(key, f"state {source.name}", _state(item)),
            )


def _state(item: Input) -> str:
    """All that a sample depends on beside the recipe."""
    about = [item.subject, item.modality, item.split, item.visit, dict(item.values)]
    return json.dumps([item.identity, *about], sort_keys=True, default=str)


def _withdrawn(job: Job) -> Entry:
    task = job.task
    return Entry(
        task.source,
        task.item.position,
        "skipped",
        task.subject,
        reason=WITHDRAWN,
        files=task.item.num_files,
        input=job.input,
    )


def _stale(
    standing: Standing | None, changed: Iterable[tuple[str, Sequence[Entry]]]
) -> dict[str, tuple[Sample, ...]]:
    if standing is None:
        return {}
    samples = {sample.key: sample for sample in standing.samples}
    return {
        name: tuple(samples[entry.key] for entry in entries if entry.key in samples)
        for name, entries in changed
    }


def as_withdrawn(entry: Entry) -> Entry:
    """The entry of a scan that was accepted once."""
    return replace(entry, status="withdrawn", key=None, note=None, reason=WITHDRAWN)
