"""Run on two ranks: every loss and its gradient beside one process with the joined batch.

Prints one JSON line from rank 0, the largest differences by name, which ``test_losses_parity.py``
reads. Numbers of hidden patches differ between the ranks, and one rank may have none.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from conftest import _crop_batch
from test_dino import CONFIG, SHAPE, SHARED, toy_dino

from foundation.objective.collectives import gather_rows
from foundation.objective.dino_loss import view_cross_entropy
from foundation.objective.ibot import patch_cross_entropy
from foundation.objective.koleo import koleo_loss
from foundation.objective.mae_loss import masked_error
from foundation.objective.targets import Centring, SinkhornKnopp
from foundation.running.ranks import join_ranks, leave_ranks

SUBJECTS = [0, 1, 1, 2, 0, 3]
"""Of three rows on each rank; the same subject on both, and twice on one."""


class Found(NamedTuple):
    """Of one case on one rank, or of all rows in one process."""

    loss: Tensor
    gradients: list[Tensor]
    """zero where another rank's rows are"""
    state: tuple[Tensor, ...] = ()
    """what must be the same on every rank"""


def values(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def of_leaf(loss: Tensor, leaf: Tensor) -> Found:
    loss.backward()
    return Found(loss.detach(), [leaf.grad])


def class_tokens(rank: int | None) -> Found:
    rows = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
    student = values(0, 5, 6, 7).requires_grad_()
    shares = values(1, 2, 6, 7).softmax(-1)
    return of_leaf(view_cross_entropy(shares[:, rows], student[:, rows], student_temp=0.1), student)


def patches_hidden(first: list[int], second: list[int], rank: int | None) -> Found:
    """``first`` and ``second`` are the numbers of patches that the crops of each rank hide."""
    counts = [first, second]
    mine = first + second if rank is None else counts[rank]
    start = sum(first) if rank == 1 else 0
    rows = slice(start, start + sum(mine))
    student = values(2, sum(first + second), 7).requires_grad_()
    loss = patch_cross_entropy(
        values(3, sum(first + second), 7).softmax(-1)[rows],
        student[rows],
        weight=torch.tensor([1 / count for count in mine for _ in range(count)]),
        num_crops=torch.tensor(len(mine)),
        student_temp=0.1,
    )
    return of_leaf(loss, student)


def spread(rank: int | None) -> Found:
    rows = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
    features = values(4, 6, 5).requires_grad_()
    return of_leaf(koleo_loss(features[rows], subject=torch.tensor(SUBJECTS)[rows]), features)


def gathered(rank: int | None) -> Found:
    """Each rank weighs everyone's rows by its own numbers; the mean over ranks of that."""
    rows = values(5, 4, 3).requires_grad_()
    weight = values(6, 2, 4, 3)
    if rank is None:
        return of_leaf((rows * weight.mean(0)).sum(), rows)
    return of_leaf((gather_rows(rows[2 * rank : 2 * rank + 2]) * weight[rank]).sum(), rows)


def rebuilt(rank: int | None) -> Found:
    rows = slice(0, 4) if rank is None else slice(2 * rank, 2 * rank + 2)
    prediction = values(7, 4, 3, 5).requires_grad_()
    weight = (values(8, 4, 3, 5) > torch.tensor([1.0, 0, 0, -1])[:, None, None]).float()
    loss = masked_error(prediction[rows], target=values(9, 4, 3, 5)[rows], weight=weight[rows])
    return of_leaf(loss, prediction)


def shares_of(first: int, rank: int | None) -> Found:
    """Sinkhorn-Knopp of seven tokens, ``first`` of them on rank 0; as if they were a gradient."""
    logits = values(10, 7, 4)
    rows = slice(0, 7) if rank is None else (slice(0, first), slice(first, 7))[rank]
    shares = torch.zeros_like(logits)
    shares[rows] = SinkhornKnopp()(logits[rows], temp=0.3, step=0)
    scale = 1 if rank is None else 2  # a mean over ranks of it is taken
    return Found(torch.zeros(()), [scale * shares])


def centre(rank: int | None) -> Found:
    """Two updates of two micro batches with 4, 1, 0, 2 tokens, on this rank or both."""
    centring = Centring(4, momentum=0.7)
    parts = values(11, 2, 7, 4).split([4, 1, 0, 2], dim=1)
    for step in range(2):
        for part in parts if rank is None else (parts[:2], parts[2:])[rank]:
            centring(part[step], temp=0.1, step=step)
        centring.after_update()
    return Found(torch.zeros(()), [], (centring.center,))


def whole_method(config, rank: int | None) -> Found:
    """Two updates without an optimiser, the second with a moved centre and teacher."""
    positions = [0, 1, 2, 7, 8, 9]
    mine = positions if rank is None else positions[3 * rank : 3 * rank + 3]
    subject = torch.tensor([SUBJECTS[positions.index(position)] for position in mine])
    dino = toy_dino(config)
    for step in range(2):
        dino.zero_grad()
        loss, _ = dino(_crop_batch(SHAPE, positions=mine)._replace(subject=subject), step)
        loss.backward()
        dino.after_update(step)
    gradients = [p.grad for p in dino.parameters() if p.requires_grad]
    return Found(loss.detach(), gradients, tuple(dino.targets.buffers()))


CASES: dict[str, Callable[[int | None], Found]] = {
    "class tokens": class_tokens,
    "patches": lambda rank: patches_hidden([3, 1, 4], [2], rank),
    "patches of one rank": lambda rank: patches_hidden([], [2, 1], rank),
    "spread": spread,
    "gathered": gathered,
    "rebuilt": rebuilt,
    "sinkhorn": lambda rank: shares_of(5, rank),
    "sinkhorn of one rank": lambda rank: shares_of(0, rank),
    "centre": centre,
    "dino": lambda rank: whole_method(CONFIG, rank),
    "dino shared": lambda rank: whole_method(SHARED, rank),
}


def difference(mine: Found, whole: Found) -> float:
    """Largest difference, in units of the largest number."""
    differences = [0.0]
    pairs = [(mine.loss, whole.loss), *zip(mine.gradients, whole.gradients, strict=True)]
    for value, want in pairs:
        total = value.clone()
        dist.all_reduce(total)
        scale = max(float(want.abs().max()), 1e-3)
        differences.append(float((total / 2 - want).abs().max()) / scale)
    for value, want in zip(mine.state, whole.state, strict=True):
        differences.append(float((value - want).abs().max()))
    return max(differences)


def main() -> None:
    torch.set_num_threads(1)
    whole = {name: case(None) for name, case in CASES.items()}
    ranks = join_ranks(timeout_s=120)
    found = {name: difference(case(ranks.rank), whole[name]) for name, case in CASES.items()}
    moved = {name: float(sum(g.abs().sum() for g in whole[name].gradients)) for name in CASES}
    moved["centre"] = float(whole["centre"].state[0].abs().sum())
    sys.stdout.write(json.dumps({"rank": ranks.rank, "found": found, "moved": moved}) + "\n")
    leave_ranks()


if __name__ == "__main__":
    main()
