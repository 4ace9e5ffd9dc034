"""The attentive probe: attention over a subject's tokens, learnt with a linear head on top.

A signal in one crop of many is lost in their mean; learnt queries find it from labels of whole
scans, without masks. Each head weighs the tokens of a subject by the softmax of ``query . token``
and a linear map reads the weighted means of all heads, so a query and a key projection are one
vector. Tokens are standardised by the training tokens of each problem.

All problems (settings, folds) train at once, full batch, by AdamW with a cosine schedule for a
fixed number of steps: nothing is stopped by looking at a score. Gradients are written out: two
products with the tokens a step, and nothing else that is large.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.probing.adamw import AdamW
from evaluation.probing.estimator import Bags, Estimator, Floats, Setting
from evaluation.probing.heads import Head, head_of

NUM_HEADS = 2
NUM_STEPS = 80
SETTINGS: tuple[Setting, ...] = (
    {"lr": 0.0003, "weight_decay": 10.0},
    {"lr": 0.001, "weight_decay": 10.0},
    {"lr": 0.003, "weight_decay": 10.0},
)

_ENTRIES_AT_ONCE = 2_000_000  # float32 of token scores that are held together: 8 MB
_QUERY_SPREAD = 0.1  # of a query's product with a standardised token, at the start


class Padded(NamedTuple):
    """Tokens of n subjects, as many places for each as the longest bag has.

    Attributes:
        tokens: (n * L, E), 0 where there is none.
        is_token: (n, L).
    """

    tokens: Tensor
    is_token: Tensor

    def of(self, rows: NDArray[np.int64]) -> "Padded":
        """Some of the subjects."""
        n, length = self.is_token.shape
        tokens = self.tokens.reshape(n, length, -1)[rows]
        return Padded(tokens.flatten(0, 1), self.is_token[rows])


class Pooled(NamedTuple):
    """A forward pass: what a backward pass needs of it.

    Attributes:
        attention: (B, H, 1, n, L), sums to 1 over the tokens of a subject.
        read: What the head reads of each token, (B, H, K, n, L).
        logits: (B, K, n), without the intercept.
    """

    attention: Tensor
    read: Tensor
    logits: Tensor


def attentive(kind: str, *, seed: int = 0) -> Estimator:
    """The attentive probe of a task's kind; its features are :class:`Bags`."""

    def predict(
        features: Bags, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
    ) -> Floats:
        head = head_of(kind, label)
        padded = pad(features, np.any(train, axis=0))
        scores = []
        for some, weights, intercept in _trained(padded, head, train, settings, seed):
            logits = pool(padded, weights).logits + intercept
            scores.append(head.scores(logits.double().numpy().transpose(0, 2, 1), train[some]))
        return np.concatenate(scores)

    return Estimator("attentive", SETTINGS, predict)


def attention_of(
    kind: str,
    features: Bags,
    label: Floats,
    train: NDArray[np.bool_],
    setting: Setting,
    *,
    seed: int = 0,
) -> Floats:
    """Weight of each token among those of its subject, mean over heads, in the bags' order, (T,).

    Args:
        kind: Of the task.
        features: Of all subjects.
        label: As in ``Task.label``.
        train: Subjects to train on, (n,).
        setting: The chosen one.
        seed: Of the estimator.
    """
    padded = pad(features, train)
    trained = _trained(padded, head_of(kind, label), train[None], [setting], seed)
    _, weights, _ = next(trained)
    weight: Floats = pool(padded, weights).attention[0, :, 0].mean(0)[padded.is_token].numpy()
    return weight.astype(np.float64)


def pad(bags: Bags, train: NDArray[np.bool_]) -> Padded:
    """Bags in one table, about the mean of the training subjects' tokens and in their unit."""
    lengths = np.diff(bags.starts)
    subject = np.repeat(np.arange(len(bags)), lengths)
    inside = bags.tokens[train[subject]].astype(np.float64)
    # One shift and one scale for all: each problem standardises again, this keeps float32 exact.
    centre, unit = inside.mean(axis=0), max(float(inside.std(axis=0).mean()), 1e-12)
    is_token = np.arange(max(1, int(lengths.max()))) < lengths[:, None]
    tokens = np.zeros((*is_token.shape, bags.tokens.shape[1]), dtype=np.float32)
    tokens[is_token] = (bags.tokens - centre) / unit
    return Padded(torch.from_numpy(tokens).flatten(0, 1), torch.from_numpy(is_token))


def pool(padded: Padded, weights: Tensor) -> Pooled:
    """Attend and read.

    Args:
        padded: Tokens.
        weights: Of raw tokens, (B, H, 1 + K, E): the query, then what each output reads.
    """
    products = weights.flatten(0, 2) @ padded.tokens.T
    shaped = products.reshape(*weights.shape[:3], *padded.is_token.shape)
    score = shaped[:, :, :1].masked_fill(~padded.is_token, -torch.inf)
    top = score.amax(-1, keepdim=True).clamp_min(torch.finfo(score.dtype).min)
    raised = (score - top).exp()
    attention = raised / raised.sum(-1, keepdim=True).clamp_min(1e-30)
    read = shaped[:, :, 1:]
    return Pooled(attention, read, (attention * read).sum(-1).sum(1))


def pull(padded: Padded, pooled: Pooled, slope: Tensor) -> Tensor:
    """The derivative by the weights, (B, H, 1 + K, E), from that by the logits, (B, K, n)."""
    by_output = slope[:, None, :, :, None]
    attention = pooled.attention
    by_attention = (pooled.read * by_output).sum(2, keepdim=True)
    mean = (attention * by_attention).sum(-1, keepdim=True)
    products = torch.cat([attention * (by_attention - mean), attention * by_output], dim=2)
    flat = products.flatten(3).flatten(0, 2) @ padded.tokens
    return flat.reshape(*products.shape[:3], -1)


def _trained(
    padded: Padded,
    head: Head,
    train: NDArray[np.bool_],
    settings: Sequence[Setting],
    seed: int,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some problems at a time: which, their weights of raw tokens, and intercepts (b, K, 1)."""
    rows = np.flatnonzero(train.any(axis=0))
    inside = padded.of(rows)
    per_problem = NUM_HEADS * (1 + head.num_outputs) * inside.is_token.numel()
    step = max(1, _ENTRIES_AT_ONCE // per_problem)
    for start in range(0, len(train), step):
        some = slice(start, start + step)
        masks = torch.from_numpy(np.ascontiguousarray(train[some][:, rows]))
        yield some, *_train(inside, head, rows, masks, settings[some], seed)


def _train(
    padded: Padded,
    head: Head,
    rows: NDArray[np.int64],
    masks: Tensor,
    settings: Sequence[Setting],
    seed: int,
) -> tuple[Tensor, Tensor]:
    mean, scale = _token_statistics(padded, masks)
    loss = head.loss(rows, masks)
    total = masks.sum(1)[:, None, None]
    weights = _start(len(masks), head.num_outputs, padded.tokens.shape[1], seed)
    intercept = loss.start[:, :, None].float()
    optimiser = AdamW(
        [weights, intercept],
        lr=[float(setting["lr"]) for setting in settings],
        weight_decay=[float(setting["weight_decay"]) for setting in settings],
        decays=[True, False],
        num_steps=NUM_STEPS,
    )
    for _ in range(NUM_STEPS):
        raw = weights / scale
        offset = (raw[:, :, 1:] * mean).sum((1, 3))[:, :, None]
        pooled = pool(padded, raw)
        slope = loss.slope((pooled.logits + intercept - offset).double()) / total
        slope = slope.float()
        by_raw = pull(padded, pooled, slope)
        by_raw[:, :, 1:] -= slope.sum(2)[:, None, :, None] * mean
        optimiser.step([by_raw / scale, slope.sum(2, keepdim=True)])
    raw = weights / scale
    return raw, intercept - (raw[:, :, 1:] * mean).sum((1, 3))[:, :, None]


def _token_statistics(padded: Padded, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each problem's training tokens, (B, 1, 1, E)."""
    counted = (masks[:, :, None] & padded.is_token).flatten(1).float()
    share = counted / counted.sum(1, keepdim=True).clamp_min(1.0)
    mean = share @ padded.tokens
    square = share @ padded.tokens.square()
    variance = (square - mean.square()).clamp_min(0.0)
    scale = torch.where(variance > 1e-10, variance, 1.0).sqrt()
    return mean[:, None, None], scale[:, None, None]


def _start(num_problems: int, num_outputs: int, width: int, seed: int) -> Tensor:
    """Queries drawn at random, the same for every problem; the head begins at nothing."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(NUM_HEADS, 1, width, generator=generator) * _QUERY_SPREAD / width**0.5
    head = torch.zeros(NUM_HEADS, num_outputs, width)
    return torch.cat([query, head], dim=1).repeat(num_problems, 1, 1, 1)
