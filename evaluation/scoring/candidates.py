"""Every model of a task with its features and protocols: backbones first, then floors."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.entry import Entry
from evaluation.extraction.dense import dense_features
from evaluation.floors.clinical import beside, clinical_table, table_features
from evaluation.floors.registry import floor_candidates
from evaluation.probing.attentive import attentive
from evaluation.probing.dense import DenseFeatures
from evaluation.probing.estimator import Bags, Candidate, Features, Scorer
from evaluation.probing.knn import knn
from evaluation.probing.linear import linear_probe
from evaluation.probing.prototypes import KINDS as PROTOTYPE_KINDS
from evaluation.probing.prototypes import prototypes
from evaluation.probing.retrieval import retrieval
from evaluation.probing.segmentation import segmentation_probe
from evaluation.statistics.summary import FUSED
from foundation.tasks.task import Task

_PATCHES_IN_FOLDS = 48  # hundreds of folds train an attentive probe each

Arrays = Mapping[str, Any]


def candidates(
    task: Task,
    entries: Mapping[str, Entry],
    arrays: Mapping[str, Arrays],
    *,
    protocols: Collection[str],
    folder: Path,
) -> dict[str, Candidate]:
    """What is scored on a task, in the order of the table.

    Args:
        task: Whose subjects the arrays belong to.
        entries: Backbones and untrained networks.
        arrays: By extractor and array name, one row or bag per subject.
        protocols: Of backbones, those that are wanted.
        folder: Of the cached features.
    """
    found = {}
    for name, entry in entries.items():
        if entry.embedder is None:
            continue
        if task.card.kind == "segmentation":
            if scorer := _dense(task, name, entry, folder=folder):
                found[name] = Candidate((scorer,), None)
        else:
            found[name] = _pooled(task, arrays[name], protocols)
    return found | floor_candidates(task, arrays)


def pooled_features(arrays: Arrays) -> dict[str, NDArray[np.float64]]:
    """Tables to choose from: both, cls or mean, of the last block and of the last four, (n, P).

    Args:
        arrays: ``cls`` and ``mean``, (n, L, E), the last block first; of a backbone without a
            class token they are the same, and one of them will do.
    """
    cls, mean = (arrays[name].astype(np.float64) for name in ("cls", "mean"))
    parts = {"both": np.concatenate([cls, mean], axis=2), "cls": cls, "mean": mean}
    if np.array_equal(cls, mean):
        parts = {"mean": mean}
    depths = dict.fromkeys((1, cls.shape[1]))
    return {
        f"{pooling}_last{depth}": values[:, :depth].reshape(len(values), -1)
        for depth in depths
        for pooling, values in parts.items()
    }


def _pooled(task: Task, arrays: Arrays, protocols: Collection[str]) -> Candidate:
    features, kind = pooled_features(arrays), task.card.kind
    if kind == "retrieval":
        return Candidate((Scorer(features, retrieval()),), None)
    first = next(iter(features.values()))
    scorers = [Scorer(features, linear_probe(kind)), Scorer(features, knn(kind))]
    if kind in PROTOTYPE_KINDS:
        scorers.append(Scorer(features, prototypes(kind)))
    if "attentive" in protocols:
        most = _PATCHES_IN_FOLDS if task.card.protocol.repeated_cv else None
        scorers.append(Scorer(_bags(arrays, most_patches=most), attentive(kind)))
    if clinical := task.card.floors.clinical:
        table = table_features(beside(clinical_table(task, clinical), first))
        scorers.append(Scorer({"clinical": table}, linear_probe(kind)._replace(name=FUSED)))
    wanted = [scorer for scorer in scorers if scorer.estimator.name in protocols]
    return Candidate(tuple(wanted), first if "linear" in protocols else None)


def _bags(arrays: Arrays, *, most_patches: int | None) -> dict[str, Features]:
    """Crops as tokens, and patches where the backbone has them, of each subject so many at most."""
    crops, means = arrays["crop_cls"], arrays["crop_mean"]
    tokens = crops.tokens
    if not np.array_equal(tokens, means.tokens):
        tokens = np.concatenate([tokens, means.tokens], axis=1)
    found: dict[str, Features] = {"crops": Bags(tokens, crops.starts)}
    if "patch" in arrays:
        found["patches"] = thinned(arrays["patch"], most=most_patches)
    return found


def thinned(bags: Bags, *, most: int | None) -> Bags:
    """At most so many tokens of each subject, evenly spaced among its own; None keeps all."""
    if most is None:
        return bags
    kept = [
        start + np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(np.int64))
        for start, length in zip(bags.starts, np.diff(bags.starts), strict=False)
    ]
    starts = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    return Bags(bags.tokens[np.concatenate(kept)], starts)


def _dense(task: Task, name: str, entry: Entry, *, folder: Path) -> Scorer | None:
    assert entry.embedder is not None
    files = dense_features(task, entry.embedder, name=name, folder=folder)
    if files is None:
        return None
    return Scorer({"tokens": DenseFeatures.of(task, files)}, segmentation_probe())
