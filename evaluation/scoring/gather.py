"""Features of a task's scans by all models in one pass, and the gate that they go through."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.backbones.entry import Entry
from evaluation.extraction.cache import Stacked
from evaluation.extraction.dense import dense_features
from evaluation.extraction.embeddings import embedder_extractor
from evaluation.extraction.features import (
    Extractor,
    content_of,
    extract_all,
    fill_share,
    made_by,
    pool_by_subject,
)
from evaluation.extraction.sharing import Share
from evaluation.finetuned.scores import fill_outputs
from evaluation.floors.registry import floor_extractors
from evaluation.leakage.marks import DIGEST, HASH, ScanMarks, mark_extractors, marks_by_subject
from evaluation.probing.estimator import Bags
from evaluation.scoring.inputs import Inputs, entries_with_network
from foundation.tasks.task import Task

FEATURES = "features"


def fill_features(inputs: Inputs, *, open_test: bool, folder: Path, share: Share) -> None:
    """Fill the cache with everything that scoring reads; with several ranks each fills its part."""
    for task in inputs.tasks:
        title = f"features of {task.card.name}"
        extractors = _extractors(task, inputs.entries)
        fill_share(task.candidates, extractors, folder=folder, title=title, share=share)
        if task.card.kind == "segmentation":
            for name, entry in entries_with_network(inputs.entries).items():
                assert entry.embedder is not None
                dense_features(task, entry.embedder, name=name, folder=folder, share=share)
        fill_outputs(task, inputs.lines.of(task), open_test=open_test, folder=folder, share=share)


def marks_of(task: Task, *, folder: Path) -> ScanMarks:
    """By what each subject's scans are known again."""
    found = extract_all(
        task.candidates, mark_extractors(), folder=folder, title=f"marks of {task.card.name}"
    )
    digests, hashes = found[DIGEST][DIGEST], found[HASH][HASH]
    assert not isinstance(digests, Bags)
    assert not isinstance(hashes, Bags)
    return marks_by_subject(task, digests=digests, hashes=hashes)


class Gathered:
    """Features of one task after the other; those over the same scans share what was read.

    Args:
        entries: Rows of the tables.
        folder: Of the cache.
    """

    def __init__(self, entries: Mapping[str, Entry], *, folder: Path) -> None:
        self._entries = entries
        self._folder = folder
        self._read: tuple[Any, dict[str, Stacked]] = (None, {})

    def of(self, task: Task) -> dict[str, dict[str, Any]]:
        """By extractor and array name, one row or bag per subject."""
        extractors = _extractors(task, self._entries)
        key = (
            content_of(task.candidates),
            [(each.name, made_by(each.digest, each.spacing_mm)) for each in extractors],
        )
        if self._read[0] != key:
            title = f"features of {task.card.name}"
            found = extract_all(task.candidates, extractors, folder=self._folder, title=title)
            self._read = (key, found)
        return {
            name: {
                each: pool_by_subject(task, task.candidates, values)
                for each, values in arrays.items()
            }
            for name, arrays in self._read[1].items()
            if name not in (DIGEST, HASH)
        }


def _extractors(task: Task, entries: Mapping[str, Entry]) -> list[Extractor]:
    found = [*mark_extractors(), *floor_extractors(task)]
    if task.card.kind != "segmentation":
        for name, entry in entries_with_network(entries).items():
            assert entry.embedder is not None
            found.append(embedder_extractor(name, entry.embedder, spacing_mm=task.card.spacing_mm))
    return found
