"""Several folders of shards as one endless stream of scans, and what each gave of it so far."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from recipes.load import digest
from shards.index import Sample
from shards.storage.storage import CacheConfig
from shards.streaming.crops import CropPlan
from shards.streaming.mixture import Mixture
from shards.streaming.order import Order
from shards.streaming.reader import ShardReader
from shards.streaming.reading import FolderConfig

UNKNOWN = "unknown"
"""Stands for a sample without a value in the column that is balanced."""
OWN_COLUMNS = ("modality", "source", "split")

Boxed = tuple[tuple[int, int], ...]
"""[start, stop) along each axis, in voxels of a sample."""


class Source(NamedTuple):
    """Samples that take turns among themselves: a folder, or those with one value of a column."""

    name: str
    reader: ShardReader
    indices: np.ndarray
    """(n,) int32 into ``reader.samples``"""
    weight: float


class Drawn(NamedTuple):
    """A sample that was drawn."""

    source: int
    sample: int
    """its place in the folder"""


class Corpus:
    """Weighted sources. Scans are counted from 0; which one is drawn follows from its number.

    Attributes:
        readers: One for each folder.
        sources: What takes turns, in the recipe's order.
        excluded: Samples that have none of the wanted sequences, and are never drawn.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        sources: Sequence[Source],
        *,
        seed: int,
        excluded: int,
        boxes: Mapping[str, Boxed] | None = None,
    ) -> None:
        """See :func:`open_corpus`."""
        self.readers, self.sources, self.excluded = list(readers), list(sources), excluded
        self._boxes = boxes or {}
        self._mixture = Mixture([source.weight for source in sources], seed=seed)
        self._orders = [
            Order(len(source.indices), seed=seed, name=str(number))
            for number, source in enumerate(sources)
        ]

    @property
    def digest(self) -> str:
        """Of the shards' content: a folder's own, or one over those of all folders."""
        found = [reader.dataset["digest"] for reader in self.readers]
        return found[0] if len(found) == 1 else digest(found)

    def drawn(self, scan: int, *, attempt: int = 0) -> Drawn:
        """The sample of a scan's number; a further ``attempt`` is another of the same source."""
        source, turn = self._mixture.at(scan)
        order = self._orders[source]
        place = order.replacement(turn, attempt=attempt) if attempt else order.sample_at(turn)
        return Drawn(source, int(self.sources[source].indices[place]))

    def sample(self, drawn: Drawn) -> Sample:
        """What was drawn."""
        found = self.sources[drawn.source].reader.samples[drawn.sample]
        box = self._boxes.get(found.key)
        return found if box is None else replace(found, foreground_box=box)

    def epochs_seen(self, position: int, *, per_scan: int = 1) -> dict[str, float]:
        """Passes over each source in the crops before ``position``; exact, replacements included.

        Args:
            position: In the stream of crops.
            per_scan: Crops of each scan.
        """
        scans, rest = divmod(position, per_scan)
        crops = [count * per_scan for count in self._mixture.counts(scans)]
        crops[self._mixture.at(scans).source] += rest
        return {
            source.name: count / per_scan / len(source.indices)
            for source, count in zip(self.sources, crops, strict=True)
        }


def open_corpus(
    folders: Sequence[FolderConfig],
    *,
    plan: CropPlan,
    seed: int,
    cache: CacheConfig | None = None,
    keys: Collection[str] | None = None,
    boxes: Mapping[str, Boxed] | None = None,
) -> Corpus:
    """Open every folder.

    A sample with none of the plan's sequences is left out and counted; one with some of them is
    drawn, and its batch tells which are present.

    Args:
        folders: Where, how often, and which column is balanced.
        plan: Names the sequences and masks.
        seed: Of the order.
        cache: For shards at a URL.
        keys: Of the samples that are drawn; None: all.
        boxes: By a sample's key, what crops are centred in instead of its foreground.

    Raises:
        ValueError: No shards there; a sequence, mask or column that no sample has; a source without
            samples; weights for some folders only.
    """
    readers = [ShardReader(folder.folder, cache=cache) for folder in folders]
    surveys = [
        _survey(reader, plan=plan, column=folder.balance, keys=keys)
        for reader, folder in zip(readers, folders, strict=True)
    ]
    places = ", ".join(map(str, readers))
    for what, wanted, found in (
        ("sequence", plan.sequences, [each.sequences for each in surveys]),
        ("mask", plan.masks, [each.masks for each in surveys]),
    ):
        there = set().union(*found)
        if unknown := [name for name in wanted if name not in there]:
            raise ValueError(
                f"{places}: no sample has a {what} {unknown[0]!r}; there is "
                f"{', '.join(sorted(there)) or 'none'}"
            )
    weights = _weights(folders, [len(each.indices) for each in surveys])
    sources = [
        source
        for each in zip(_names(readers), readers, surveys, weights, strict=True)
        for source in _sources(*each)
    ]
    excluded = sum(each.excluded for each in surveys)
    return Corpus(readers, sources, seed=seed, excluded=excluded, boxes=boxes)


class _Survey(NamedTuple):
    """What one look at all samples of a folder tells."""

    indices: np.ndarray
    """of those with any of the wanted sequences"""
    values: list[str] | None
    """of each of them, in the balanced column"""
    sequences: set[str]
    """of all samples"""
    masks: set[str]
    excluded: int
    """samples among the wanted ones without any of the wanted sequences"""


def _survey(
    reader: ShardReader,
    *,
    plan: CropPlan,
    column: str | None,
    keys: Collection[str] | None,
) -> _Survey:
    indices: list[int] = []
    excluded = 0
    values: list[str] = []
    sequences: set[str] = set()
    masks: set[str] = set()
    columns: set[str] = set(OWN_COLUMNS)
    for index, (key, scan) in enumerate(reader.samples.keyed_scans()):
        names = [one["name"] for one in scan["sequences"]]
        sequences.update(names)
        masks.update(scan["masks"])
        columns.update(scan["values"])
        if keys is not None and key not in keys:
            continue
        if not any(name in names for name in plan.sequences):
            excluded += 1
            continue
        indices.append(index)
        if column is not None:
            value = column_value(scan, column)
            values.append(UNKNOWN if value is None else str(value))
    if column is not None and column not in columns:
        raise ValueError(
            f"{reader}: no sample has a column {column!r} to balance; there is "
            f"{', '.join(sorted(columns))}"
        )
    if not indices:
        raise ValueError(
            f"{reader}: no sample has any of the sequences {', '.join(plan.sequences)}; there is "
            f"{', '.join(sorted(sequences)) or 'no sample'}"
        )
    found = np.array(indices, dtype=np.int32)
    return _Survey(found, values if column is not None else None, sequences, masks, excluded)


def column_value(scan: Mapping[str, Any], column: str) -> Any:
    """What a sample's record holds of a column, its own or the cohort's; None if it is unknown."""
    if column == "modality":
        return scan["sequences"][0]["modality"]
    return scan[column] if column in OWN_COLUMNS else scan["values"].get(column)


def _sources(name: str, reader: ShardReader, survey: _Survey, weight: float) -> list[Source]:
    if survey.values is None:
        return [Source(name, reader, survey.indices, weight)]
    of_value: dict[str, list[int]] = {}
    for place, value in enumerate(survey.values):
        of_value.setdefault(value, []).append(place)
    return [
        Source(f"{name}/{value}", reader, survey.indices[places], weight / len(of_value))
        for value, places in sorted(of_value.items())
    ]


def _weights(folders: Sequence[FolderConfig], sizes: Sequence[int]) -> list[float]:
    given = [folder.weight for folder in folders if folder.weight is not None]
    if given and len(given) < len(folders):
        raise ValueError("shards: give every folder a weight, or none (then scans count alike)")
    return given or [float(size) for size in sizes]


def _names(readers: Sequence[ShardReader]) -> list[str]:
    """Of the folders, each once; builds of one name are numbered."""
    names = [str(reader.dataset["name"]) for reader in readers]
    return [
        f"{name}#{names[:place].count(name) + 1}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
