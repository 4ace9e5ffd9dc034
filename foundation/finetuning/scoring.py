"""Whole scans of some subjects, scored by a network: every rank takes its share of the scans."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundation.finetuning.data import LabelledScans
from foundation.finetuning.heads import PooledHead
from foundation.finetuning.links import scores_of
from foundation.finetuning.mask_loss import mask_loss
from foundation.finetuning.method import Finetune
from foundation.finetuning.whole_scan import scan_features, scan_logits, scan_probabilities
from foundation.running.ranks import Ranks, gather_from_ranks
from foundation.tasks.masks import dice, overlap
from foundation.tasks.task import Task

_MOST_STANDARDISED_BY = 512

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Scored(NamedTuple):
    """What a network says of m subjects.

    Attributes:
        scores: (m, K), of each subject the mean over its scans; of a segmentation its Dice.
        loss: Mean over all scans.
    """

    scores: Floats
    loss: float


class _OfScan(NamedTuple):
    row: int
    """of the subjects"""
    values: Floats
    """(K,) scores, or of a segmentation (3, K) voxels: see ``foundation.tasks.masks.overlap``"""
    loss: float


def score_rows(
    method: Finetune,
    task: Task,
    rows: Rows,
    *,
    scans: LabelledScans,
    ranks: Ranks,
    precision: str,
    overlapping: float,
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
    """
    work = [
        (place, index)
        for place, row in enumerate(rows)
        for index in scans.samples[task.subjects[row]]
    ]
    mine = work[ranks.rank :: ranks.world_size]
    label = torch.from_numpy(task.label[rows])
    with at_rest(method, ranks=ranks, precision=precision):
        found = [
            _scored(method, scans, place, index, label=label, ranks=ranks, overlap=overlapping)
            for place, index in mine
        ]
    return _joined([one for part in gather_from_ranks(found) for one in part], task, num=len(rows))


def standardise_head(
    method: Finetune, names: Sequence[str], *, scans: LabelledScans, ranks: Ranks, precision: str
) -> None:
    """Standardise what the head reads, by scans of these subjects; a collective call.

    Of many subjects some are taken, spread evenly: mean and spread need no more.
    """
    head = method.network.head
    if not isinstance(head, PooledHead):
        return
    step = -(-len(names) // _MOST_STANDARDISED_BY)
    chosen = [scans.samples[name][0] for name in sorted(names)[::step]]
    with at_rest(method, ranks=ranks, precision=precision):
        mine = [
            scan_features(
                method.network,
                scans.scan(index),
                preprocessing=method.preprocessing,
                device=ranks.device,
            )
            .float()
            .cpu()
            .numpy()
            for index in chosen[ranks.rank :: ranks.world_size]
        ]
    parts = gather_from_ranks(mine)
    # In an order that does not depend on the ranks, and so with the same rounding.
    together = [parts[place % len(parts)][place // len(parts)] for place in range(len(chosen))]
    head.standardise(torch.from_numpy(np.stack(together)))


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
) -> _OfScan:
    network, contract, scan = method.network, method.preprocessing, scans.scan(index)
    if method.target.kind == "segmentation":
        shares = scan_probabilities(
            network, scan, preprocessing=contract, device=ranks.device, overlap=overlap
        )
        return _of_mask(shares, scans.classes(index, method.target), place)
    logits = scan_logits(network, scan, preprocessing=contract, device=ranks.device)[None]
    loss = method.scan_loss(logits, label[place : place + 1])
    return _OfScan(place, scores_of(logits, method.target)[0].double().numpy(), float(loss[0]))


def _of_mask(shares: Tensor, classes: NDArray[np.uint8], place: int) -> _OfScan:
    truth = torch.from_numpy(classes.astype(np.int64))[None]
    logits = shares.clamp(min=1e-12).log()[None]
    loss = mask_loss(logits, truth, torch.ones_like(truth, dtype=torch.bool))
    found = shares.argmax(dim=0).numpy()
    counts = overlap(found, classes, num_classes=len(shares) - 1)
    return _OfScan(place, counts, float(loss[0]))


def _joined(found: Sequence[_OfScan], task: Task, *, num: int) -> Scored:
    """Subjects from their scans, in an order that does not depend on the ranks."""
    found = sorted(found, key=lambda one: (one.row, one.loss))
    of_row = [[one.values for one in found if one.row == row] for row in range(num)]
    if task.card.kind == "segmentation":
        scores = np.stack([dice(np.sum(values, axis=0)) for values in of_row])
    else:
        scores = np.stack([np.mean(values, axis=0) for values in of_row])
    return Scored(scores, float(np.mean([one.loss for one in found])))
