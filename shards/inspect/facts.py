"""What the page says in numbers: counts and histograms over the index, reasons of the ledger."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shards.building.ledger import DUPLICATE, STATUSES, Entry, reasons
from shards.streaming.table import SampleTable

BINS = 24
FEW = 12  # distinct values up to which each has a bar of its own
WIDE = 100.0  # ratio of the ends beyond which bins grow geometrically
AXES = ("d (inferior to superior)", "h (anterior to posterior)", "w (right to left)")
PERCENTILES = {"p00_5": "0.5th percentile", "p50": "median", "p99_5": "99.5th percentile"}


class Bar(NamedTuple):
    """``label`` is a value, or the range of a bin; ``number`` of those in it."""

    label: str
    number: int


class Histogram(NamedTuple):
    """Bars from left to right; ``note`` sums them up in words."""

    title: str
    bars: list[Bar]
    low: str
    high: str
    note: str


class Duplicate(NamedTuple):
    """A copy of the sample ``original``; ``distance`` in bits, None if it is exact."""

    copy: str
    original: str
    distance: int | None
    status: str


class Facts(NamedTuple):
    """Everything on the page but the pictures.

    Attributes:
        dataset: ``dataset.json``.
        subjects_by_source, modalities, sequences, masks: Counts by name.
        histograms: Groups of them, by heading.
        statuses: Ledger entries by status.
        rejected, skipped: (reason, count), most frequent first.
        duplicates: Exact ones first, then by distance.
        num_withdrawn: Subjects that were removed.
    """

    dataset: Mapping[str, Any]
    subjects_by_source: Mapping[str, int]
    modalities: Mapping[str, int]
    sequences: Mapping[str, int]
    masks: Mapping[str, int]
    histograms: list[tuple[str, list[Histogram]]]
    statuses: Mapping[str, int]
    rejected: list[tuple[str, int]]
    skipped: list[tuple[str, int]]
    duplicates: list[Duplicate]
    num_withdrawn: int


def gather(dataset: Mapping[str, Any], *, samples: SampleTable, entries: Sequence[Entry]) -> Facts:
    """Count what ``dataset.json``, the indexes and the ledger hold."""
    scans = list(samples.scans())
    sequences = [one for scan in scans for one in scan["sequences"]]
    by_source = defaultdict(set)
    for scan in scans:
        by_source[scan["source"]].add(scan["subject"])
    statuses = Counter(entry.status for entry in entries)
    return Facts(
        dataset=dataset,
        subjects_by_source={source: len(subjects) for source, subjects in by_source.items()},
        modalities=_counted(one["modality"] for one in sequences),
        sequences=_counted(one["name"] for one in sequences),
        masks=_counted(name for scan in scans for name in scan["masks"]),
        histograms=_histograms(scans, sequences, dataset["shards"]) if scans else [],
        statuses={status: statuses[status] for status in STATUSES if statuses[status]},
        rejected=reasons(entries, status="rejected"),
        skipped=reasons(entries, status="skipped"),
        duplicates=duplicates(entries),
        num_withdrawn=len(dataset.get("withdrawn", ())),
    )


def duplicates(entries: Iterable[Entry]) -> list[Duplicate]:
    """Entries whose reason or note names the scan they are a copy of."""
    found = []
    for entry in entries:
        for text in (entry.reason, entry.note):
            if match := DUPLICATE.fullmatch(text or ""):
                copy = entry.key or f"input {entry.position} of {entry.source}"
                distance = int(match[3]) if match[3] else None
                found.append(Duplicate(copy, match[2], distance, entry.status))
    return sorted(found, key=lambda one: (one.distance is not None, one.distance or 0, one.copy))


def histogram(title: str, values: Sequence[float], *, unit: str = "") -> Histogram:
    """Bars of a few distinct values, else of bins: even ones, or geometric over a wide range."""
    array = np.asarray(values, dtype=np.float64)
    is_wide = False
    low, high = float(array.min()), float(array.max())
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) <= FEW:
        bars = [Bar(short(value), int(n)) for value, n in zip(distinct, counts, strict=True)]
    else:
        is_wide = low > 0 and high > WIDE * low
        edges = (np.geomspace if is_wide else np.linspace)(low, high, BINS + 1)
        edges[[0, -1]] = low, high  # a power may round past the ends
        counts, edges = np.histogram(array, bins=edges)
        bars = [
            Bar(f"{short(first)} to {short(last)}", int(n))
            for first, last, n in zip(edges, edges[1:], counts, strict=False)
        ]
    unit = f" {unit}" if unit else ""
    note = f"n = {len(array)}, median {short(float(np.median(array)))}{unit}"
    note += ", logarithmic" if is_wide else ""
    return Histogram(title, bars, short(low) + unit, short(high) + unit, note)


def short(value: float) -> str:
    """A number as a person writes it; three digits, and no power of ten below a million."""
    if abs(value) >= 1e6:
        return f"{value:.3g}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def _histograms(
    scans: Sequence[Mapping[str, Any]],
    sequences: Sequence[Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Histogram]]]:
    return [
        ("Geometry", _geometry(scans)),
        ("Subjects, quality and shards", _amounts(scans, sequences, shards)),
        *_intensities(sequences),
    ]


def _geometry(scans: Sequence[Mapping[str, Any]]) -> list[Histogram]:
    spacing = [
        histogram(f"Spacing {name}", [scan["spacing_mm"][axis] for scan in scans], unit="mm")
        for axis, name in enumerate(AXES)
    ]
    shape = [
        histogram(f"Shape {name}", [scan["shape"][axis] for scan in scans], unit="voxels")
        for axis, name in enumerate(AXES)
    ]
    return spacing + shape


def _amounts(
    scans: Sequence[Mapping[str, Any]],
    sequences: Sequence[Mapping[str, Any]],
    shards: Sequence[Mapping[str, Any]],
) -> list[Histogram]:
    samples = Counter(scan["subject"] for scan in scans)
    days = defaultdict(set)
    for scan in scans:
        if scan["visit_day"] is not None:
            days[scan["subject"]].add(scan["visit_day"])
    found = [histogram("Samples of a subject", list(samples.values()))]
    if days:
        visits = [len(each) for each in days.values()]
        found.append(histogram("Visits of a subject on days that are known", visits))
    found.append(histogram("Quality", [one["quality"] for one in sequences]))
    megabytes = [shard["size_bytes"] / 1e6 for shard in shards]
    return [*found, histogram("Size of a shard", megabytes, unit="MB")]


def _intensities(sequences: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Histogram]]]:
    found = []
    for modality in sorted({one["modality"] for one in sequences}):
        statistics = [one["statistics"] for one in sequences if one["modality"] == modality]
        unit = {"CT": "HU"}.get(modality, "")
        found.append(
            (
                f"Intensities of {modality}",
                [
                    histogram(title, [one[name] for one in statistics], unit=unit)
                    for name, title in PERCENTILES.items()
                ],
            )
        )
    return found


def _counted(names: Iterable[str]) -> dict[str, int]:
    """Counts, most frequent first, then by name."""
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))
