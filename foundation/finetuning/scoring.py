"""Whole scans of some subjects, scored by a network: every rank takes its share of the scans."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.finetuning.data import LabelledScans
from foundation.finetuning.heads import PooledHead
from foundation.finetuning.links import scores_of
from foundation.finetuning.mask_loss import mask_loss
from foundation.finetuning.method import Finetune
from foundation.finetuning.whole_scan import scan_logits, scan_probabilities
from foundation.metrics.surface import Spacing, surface_distances
from foundation.preprocessing import window_starts
from foundation.running.ranks import Ranks, gather_from_ranks
from foundation.tasks.masks import dice, overlap
from foundation.tasks.task import Task
from foundation.vit import Crops
from foundation.windows import prepare
from shards.scan import Scan

_MOST_STANDARDISED_BY = 512

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Item = TypeVar("Item")


class Scored(NamedTuple):
    """What a network says of m subjects.

    Attributes:
        scores: (m, K), of each subject the mean over its scans; of a segmentation its Dice.
        loss: Mean over all scans.
        distances_mm: Of a segmentation whose surfaces were measured, (m, 2, K): average symmetric
            surface distance and 95% Hausdorff distance, the largest of a subject's scans.
    """

    scores: Floats
    loss: float
    distances_mm: Floats | None


class _OfScan(NamedTuple):
    row: int
    """of the subjects"""
    values: Floats
    """(K,) scores, or of a segmentation (3, K) voxels: see ``foundation.tasks.masks.overlap``"""
    loss: float
    distances_mm: Floats | None
    """(2, K)"""


def score_rows(
    method: Finetune,
    task: Task,
    rows: Rows,
    *,
    scans: LabelledScans,
    ranks: Ranks,
    precision: str,
    overlapping: float,
    alive: Callable[[], None],
    with_surfaces: bool = False,
) -> Scored:
    """Scores of subjects; a collective call.

    Args:
        method: Any mode; it is left in the one it was in.
        task: Whose label.
        rows: Of m subjects.
        scans: Where their scans are.
        ranks: Of the job.
        precision: That layers compute in; bf16 is autocast.
        overlapping: Share of a window's edge, of a segmentation's windows.
        alive: Called after each scan, on every rank as often.
        with_surfaces: Measure the distances of a segmentation's surfaces, on the shards' grid.
    """
    work = [
        (place, index)
        for place, row in enumerate(rows)
        for index in scans.samples[task.subjects[row]]
    ]
    label = torch.from_numpy(task.label[rows])
    with at_rest(method, ranks=ranks, precision=precision):
        found = [
            _scored(
                method,
                scans,
                place,
                index,
                label=label,
                ranks=ranks,
                overlap=overlapping,
                with_surfaces=with_surfaces,
            )
            for place, index in _share(work, ranks, alive=alive)
        ]
    return _joined([one for part in gather_from_ranks(found) for one in part], task, num=len(rows))


def standardise_head(
    method: Finetune,
    names: Sequence[str],
    *,
    scans: LabelledScans,
    ranks: Ranks,
    precision: str,
    alive: Callable[[], None],
) -> None:
    """Standardise what the head reads, by scans of these subjects; a collective call.

    Of a scan as many windows are taken as training pools: features of a few crops differ far more
    between scans than those of all windows do, and training sees the former. Of many subjects some
    are taken, spread evenly: mean and spread need no more. ``alive`` is as of :func:`score_rows`.
    """
    head = method.network.head
    if not isinstance(head, PooledHead):
        return
    step = -(-len(names) // _MOST_STANDARDISED_BY)
    chosen = [scans.samples[name][0] for name in sorted(names)[::step]]
    with at_rest(method, ranks=ranks, precision=precision):
        mine = [
            _bag_features(method, scans.scan(index), seed=index, device=ranks.device)
            for index in _share(chosen, ranks, alive=alive)
        ]
    parts = gather_from_ranks(mine)
    # In an order that does not depend on the ranks, and so with the same rounding.
    together = [parts[place % len(parts)][place // len(parts)] for place in range(len(chosen))]
    head.standardise(torch.from_numpy(np.stack(together)))


@torch.inference_mode()
def _bag_features(method: Finetune, scan: Scan, *, seed: int, device: torch.device) -> Floats:
    """(2 E,) of windows of a scan that are drawn by the seed, as many as there are in a bag."""
    contract = method.preprocessing
    prepared = prepare(scan, preprocessing=contract, device=device)
    starts = window_starts(prepared.volume.shape, contract.crop_shape)
    count = min(method.bag_size, len(starts))
    chosen = np.random.default_rng(seed).choice(len(starts), size=count, replace=False)
    places = [
        tuple(slice(a, a + edge) for a, edge in zip(starts[each], contract.crop_shape, strict=True))
        for each in np.sort(chosen)
    ]
    volume, inside = (
        torch.stack([whole[place] for place in places])[:, None]
        for whole in (prepared.volume, prepared.inside)
    )
    spacing = torch.tensor([scan.spacing_mm], device=device).expand(count, -1)
    features = method.network.features(Crops(volume, spacing), inside=inside > 0, bag_size=count)
    found: Floats = features[0].double().cpu().numpy()
    return found


def _share(items: Sequence[Item], ranks: Ranks, *, alive: Callable[[], None]) -> Iterator[Item]:
    """Those of this rank; one that has none left gives as many signs of life as the others."""
    for first in range(0, len(items), ranks.world_size):
        yield from items[first + ranks.rank : first + ranks.world_size][:1]
        alive()


@contextmanager
def at_rest(method: Finetune, *, ranks: Ranks, precision: str) -> Iterator[None]:
    """The network as it is applied: nothing is left out, in the precision it is trained in."""
    training = method.network.training
    method.network.eval()
    try:
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        method.network.train(training)


def _scored(
    method: Finetune,
    scans: LabelledScans,
    place: int,
    index: int,
    *,
    label: Tensor,
    ranks: Ranks,
    overlap: float,
    with_surfaces: bool,
) -> _OfScan:
    network, contract, scan = method.network, method.preprocessing, scans.scan(index)
    if method.target.kind == "segmentation":
        shares = scan_probabilities(
            network, scan, preprocessing=contract, device=ranks.device, overlap=overlap
        )
        spacing_mm = scan.spacing_mm if with_surfaces else None
        return _of_mask(shares, scans.classes(index, method.target), place, spacing_mm=spacing_mm)
    logits = scan_logits(network, scan, preprocessing=contract, device=ranks.device)[None]
    loss = method.scan_loss(logits, label[place : place + 1])
    return _OfScan(
        place, scores_of(logits, method.target)[0].double().numpy(), float(loss[0]), None
    )


def _of_mask(
    shares: Tensor, classes: NDArray[np.uint8], place: int, *, spacing_mm: Spacing | None
) -> _OfScan:
    truth = torch.from_numpy(classes.astype(np.int64))[None]
    logits = shares.clamp(min=1e-12).log()[None]
    loss = mask_loss(logits, truth, torch.ones_like(truth, dtype=torch.bool))
    found = shares.argmax(dim=0).numpy()
    num_classes = len(shares) - 1
    counts = overlap(found, classes, num_classes=num_classes)
    distances = None
    if spacing_mm is not None:
        measured = surface_distances(found, classes, spacing_mm=spacing_mm, num_classes=num_classes)
        distances = np.stack(measured)
    return _OfScan(place, counts, float(loss[0]), distances)


def _joined(found: Sequence[_OfScan], task: Task, *, num: int) -> Scored:
    """Subjects from their scans, in an order that does not depend on the ranks."""
    found = sorted(found, key=lambda one: (one.row, one.loss))
    of_row: list[list[Floats]] = [[] for _ in range(num)]
    apart: list[list[Floats]] = [[] for _ in range(num)]
    for one in found:
        of_row[one.row].append(one.values)
        if one.distances_mm is not None:
            apart[one.row].append(one.distances_mm)
    if task.card.kind == "segmentation":
        scores = np.stack([dice(np.sum(values, axis=0)) for values in of_row])
    else:
        scores = np.stack([np.mean(values, axis=0) for values in of_row])
    distances = None
    if any(apart):
        # fmax: a class that a scan lacks has no distance there.
        distances = np.stack([np.fmax.reduce(values) for values in apart])
    return Scored(scores, float(np.mean([one.loss for one in found])), distances)
