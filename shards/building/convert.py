"""One input into samples: read, resample, measure, quantise, compress. Runs in a worker."""

import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shards.codec import Stored, checksums, encode, quantise, source_digest
from shards.index import RECORD, mask_member, record_bytes, sequence_member
from shards.measure.intensity import IntensityStatistics, foreground_box, intensity_statistics
from shards.measure.quality import quality_score
from shards.measure.similar import perceptual_hash
from shards.pseudonym import pseudonym
from shards.scan import ABSENT, Scan, ScanError
from shards.sources.inputs import Input
from shards.sources.listing import local_copies
from shards.sources.select import refusal_by_header, refusal_by_voxels
from shards.sources.source import SourceConfig
from shards.sources.visit import Visit, at_spacing, read_visits
from shards.storage.errors import MissingFile
from shards.write import PackedSample


@dataclass(frozen=True)
class Task:
    """An input with what its samples will say of it.

    Attributes:
        item: The input.
        config: Of its source.
        source: Its name.
        subject: The pseudonym.
        day_shift: Added to the ordinal of a date; None: dates are left out.
        series_key: Makes the pseudonym of a DICOM series; None: it is left out.
    """

    item: Input
    config: SourceConfig
    source: str
    subject: str
    day_shift: int | None = None
    series_key: bytes | None = None


@dataclass(frozen=True)
class Converted:
    """What became of one scan, or of an input that gave none.

    Attributes:
        sample: Ready to be written, if accepted.
        status: ``skipped`` is a scan that the recipe does not select; nothing is wrong with it.
        reason: Why it is not accepted.
        left_out: Files of the input that are no part of the scan: their number, by reason.
    """

    sample: PackedSample | None
    status: Literal["accepted", "rejected", "skipped"] = "accepted"
    reason: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


class NotSelected(Exception):
    """A scan that the recipe does not want; the message is the ledger's reason."""


def convert(task: Task) -> list[Converted]:
    """Every scan of an input; one that cannot be used is a reason, never an exception.

    Raises:
        PlaceError: A file behind a URL cannot be fetched.
    """
    if task.item.verdict is not None:
        status, reason = task.item.verdict
        return [Converted(None, status, reason)]
    found: list[Converted] = []
    try:
        with local_copies(task.item.root, task.item.files) as root:
            visits = read_visits(
                task.item.sequences, task.item.masks, root=root, policy=task.config.policy
            )
            while (one := _next(task, visits)) is not None:
                found.append(one)
    except ScanError as error:
        found.append(Converted(None, "rejected", str(error)))
    except MissingFile:
        found.append(Converted(None, "rejected", ABSENT))
    return found


def _next(task: Task, visits: Iterator[Visit]) -> Converted | None:
    """The next visit's sample; the visit is let go of before another one is read."""
    visit = next(visits, None)
    if visit is None:
        return None
    left_out: dict[str, int] = {}
    for scan in visit.scans.values():
        for reason, number in scan.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + number
    try:
        sample = _sample(task, visit)
    except NotSelected as unwanted:
        return Converted(None, "skipped", str(unwanted), left_out)
    except ScanError as error:
        return Converted(None, "rejected", str(error), left_out)
    return Converted(sample, left_out=left_out)


def _sample(task: Task, visit: Visit) -> PackedSample:
    for scan in visit.scans.values():
        _check_header(scan, task.config)
    _check_spacing(visit.first, task.config)
    stored = {name: quantise(scan.voxels) for name, scan in visit.scans.items()}
    digests = {name: source_digest(scan, stored=stored[name]) for name, scan in visit.scans.items()}
    placed = at_spacing(
        visit, spacing_mm=task.config.spacing_mm, max_anisotropy=task.config.max_anisotropy
    )
    if placed is not visit:
        stored = {name: quantise(scan.voxels) for name, scan in placed.scans.items()}
    record = _record(task, placed, stored, digests)
    quality = min(one["quality"] for one in record["sequences"])
    _check_voxels(placed.first, task.config, quality=quality)
    volumes = {sequence_member(name): one.voxels for name, one in stored.items()}
    volumes |= {mask_member(name): mask for name, mask in placed.masks.items()}
    return _packed(record, volumes)


def _record(
    task: Task, visit: Visit, stored: Mapping[str, Stored], digests: Mapping[str, str]
) -> dict[str, Any]:
    """``scan.json``."""
    first, item = visit.first, task.item
    statistics = {name: intensity_statistics(scan.voxels) for name, scan in visit.scans.items()}
    box = foreground_box(
        first.voxels, modality=first.modality, statistics=next(iter(statistics.values()))
    )
    sequences = [
        {
            "name": name,
            "source_digest": digests[name],
            "series": _series(task, scan),
            **_described(scan, stored[name], statistics[name], box=box),
        }
        for name, scan in visit.scans.items()
    ]
    return {
        "key": f"{task.source}-{task.subject}-{_key_digest(digests)[:12]}",
        "shape": list(first.voxels.shape),
        "spacing_mm": [float(edge) for edge in first.spacing_mm],
        "foreground_box": box,
        "subject": task.subject,
        "source": task.source,
        "split": item.split,
        "visit_day": _visit_day(task, first),
        "values": dict(item.values),
        "sequences": sequences,
        "masks": list(visit.masks),
    }


def _described(
    scan: Scan, stored: Stored, statistics: IntensityStatistics, *, box: list[list[int]]
) -> dict[str, Any]:
    """What a record says of one sequence's intensities."""
    return {
        "modality": scan.modality,
        "slope": stored.slope,
        "intercept": stored.intercept,
        "statistics": statistics._asdict(),
        "perceptual_hash": perceptual_hash(scan.voxels),
        "quality": quality_score(
            scan.voxels, modality=scan.modality, statistics=statistics, box=box
        ),
        "metadata": dict(scan.metadata),
    }


def _series(task: Task, scan: Scan) -> str | None:
    if task.series_key is None or scan.origin.series is None:
        return None
    return pseudonym(task.series_key, task.source, scan.origin.series)


def _key_digest(digests: Mapping[str, str]) -> str:
    """Of the only sequence, or of all."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _visit_day(task: Task, scan: Scan) -> int | None:
    """Days; of a date only what the shift, which the key makes, leaves of it."""
    when = task.item.visit
    if when is None:
        when = scan.origin.date
    if not isinstance(when, datetime.date):
        return when
    return None if task.day_shift is None else when.toordinal() + task.day_shift


def _packed(record: Mapping[str, Any], volumes: Mapping[str, np.ndarray]) -> PackedSample:
    frames = {name: encode(voxels) for name, voxels in volumes.items()}
    members = {**frames, RECORD: record_bytes(record)}
    return PackedSample(
        key=record["key"],
        record=record,
        members=members,
        sha256={name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
        checksums={name: checksums(frame) for name, frame in frames.items()},
    )


def _check_header(scan: Scan, config: SourceConfig) -> None:
    thickness = scan.metadata.get("slice_thickness_mm")
    body_part = scan.metadata.get("body_part")
    unwanted = refusal_by_header(
        config.select,
        modality=scan.modality,
        body_part=None if body_part is None else str(body_part),
        description=scan.origin.description,
        slice_thickness_mm=None if thickness is None else float(thickness),
    )
    if unwanted is not None:
        raise NotSelected(unwanted)


def _check_voxels(scan: Scan, config: SourceConfig, *, quality: float) -> None:
    unwanted = refusal_by_voxels(
        config.select, shape=scan.voxels.shape, spacing_mm=scan.spacing_mm, quality=quality
    )
    if unwanted is not None:
        raise NotSelected(unwanted)


def _check_spacing(scan: Scan, config: SourceConfig) -> None:
    if config.max_spacing_mm is not None and max(scan.spacing_mm) > config.max_spacing_mm:
        spacing = ", ".join(f"{edge:.2f}" for edge in scan.spacing_mm)
        raise ScanError(
            f"spacing is ({spacing}) mm, the recipe allows {config.max_spacing_mm:g};"
            " raise max_spacing_mm to take it"
        )
