"""The attentive probe: what it finds, what it does not look at, and its gradients."""

import numpy as np
import pytest
import torch

from evaluation.probing.adamw import AdamW
from evaluation.probing.attentive import SETTINGS, attention_of, attentive, pad, pool, pull
from evaluation.probing.estimator import Bags
from evaluation.probing.linear import linear_probe
from foundation.metrics.by_name import auroc, measure

NUM, WIDTH = 150, 24
TRAIN = (np.arange(NUM) < 90)[None]
KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression", "survival")


def _bags(signal: np.ndarray, *, seed: int = 0) -> tuple[Bags, np.ndarray]:
    """From 5 to 13 tokens a subject, one of which is marked and carries the signal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 14, NUM)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.normal(0, 2, size=(starts[-1], WIDTH)) + 5
    marked = starts[:-1] + rng.integers(0, lengths)
    tokens[marked, :4] += 6
    tokens[marked, 4:8] += 4 * signal[:, None]
    return Bags(tokens.astype(np.float32), starts), marked


def _label(kind: str, signal: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(7)
    return {
        "binary": (signal > 0) * 1.0,
        "multiclass": np.digitize(signal, [-0.5, 0.5]) * 1.0,
        "ordinal": np.digitize(signal, [-0.5, 0.5]) * 1.0,
        "multilabel": np.where(
            rng.random((NUM, 2)) < 0.1, np.nan, (signal[:, None] > np.array([-0.3, 0.4])) * 1.0
        ),
        "regression": 20 + 3 * signal,
        "survival": np.stack([np.ceil(50 * np.exp(-signal)), rng.random(NUM) < 0.7], axis=1),
    }[kind]


def _signal() -> np.ndarray:
    return np.random.default_rng(5).normal(size=NUM)


def _mean(bags: Bags) -> np.ndarray:
    return np.stack([bags[subject].mean(axis=0) for subject in range(len(bags))]).astype(float)


def test_a_signal_in_one_token_of_many_is_found_where_the_mean_hides_it() -> None:
    signal = np.sign(_signal())
    bags, marked = _bags(signal)
    label, held_out = _label("binary", signal), ~TRAIN[0]
    probe = linear_probe("binary")
    train = np.repeat(TRAIN, len(probe.settings), axis=0)
    linear = probe.predict(_mean(bags), label, train, probe.settings)
    best = max(auroc(label[held_out], score[held_out]) for score in linear)
    ours = attentive("binary").predict(bags, label, TRAIN, SETTINGS[1:2])
    assert auroc(label[held_out], ours[0, held_out]) > 0.97
    assert best < 0.93
    weight = attention_of("binary", bags, label, TRAIN[0], SETTINGS[2])
    assert weight.shape == (len(bags.tokens),)
    np.testing.assert_allclose(np.add.reduceat(weight, bags.starts[:-1]), 1.0, atol=1e-5)
    assert weight[marked].mean() > 3 * weight.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_learnt(kind: str) -> None:
    signal = _signal()
    bags, _ = _bags(signal)
    label = _label(kind, signal)
    scores = attentive(kind).predict(bags, label, np.repeat(TRAIN, 3, axis=0), SETTINGS)
    columns = {"multiclass": 3, "ordinal": 3, "multilabel": 2}.get(kind, 1)
    assert scores.shape == (3, NUM, columns)
    metric, least = {
        "binary": ("auroc", 0.8),
        "multiclass": ("macro_auroc", 0.75),
        "multilabel": ("macro_auroc", 0.8),
        "ordinal": ("quadratic_kappa", 0.3),
        "regression": ("r2", 0.3),
        "survival": ("concordance", 0.7),
    }[kind]
    held_out = ~TRAIN[0]
    assert max(measure(label[held_out], s[held_out], metric) for s in scores) > least
    if kind in ("multiclass", "ordinal"):
        np.testing.assert_allclose(scores.sum(axis=2), 1.0, atol=1e-6)


def test_order_of_tokens_and_padding_have_no_influence() -> None:
    signal = _signal()
    bags, _ = _bags(signal)
    label = _label("binary", signal)
    scores = attentive("binary").predict(bags, label, TRAIN, SETTINGS[:1])
    order = np.concatenate(
        [
            np.random.default_rng(i).permutation(np.arange(*bags.starts[i : i + 2]))
            for i in range(NUM)
        ]
    )
    shuffled = Bags(bags.tokens[order], bags.starts)
    again = attentive("binary").predict(shuffled, label, TRAIN, SETTINGS[:1])
    np.testing.assert_allclose(again, scores, atol=2e-3)
    # One held-out subject with a long bag pads all others to its length.
    tail = np.random.default_rng(1).normal(size=(90, WIDTH)).astype(np.float32)
    longer = Bags(np.concatenate([bags.tokens, tail]), bags.starts.copy())
    longer.starts[-1] += 90
    padded = attentive("binary").predict(longer, label, TRAIN, SETTINGS[:1])
    np.testing.assert_allclose(padded[:, :-1], scores[:, :-1], atol=2e-3)


def test_held_out_labels_and_tokens_have_no_influence_and_problems_are_apart() -> None:
    signal = _signal()
    bags, _ = _bags(signal)
    label = _label("regression", signal)
    train = np.stack([TRAIN[0], np.arange(NUM) >= 60])
    both = attentive("regression").predict(bags, label, train, SETTINGS[:2])
    spoiled = Bags(bags.tokens.copy(), bags.starts)
    spoiled.tokens[bags.starts[140] :] = 1e4
    changed = np.where(TRAIN[0], label, -999.0)
    alone = attentive("regression").predict(spoiled, changed, train[:1], SETTINGS[:1])
    np.testing.assert_allclose(alone[0, 90:140], both[0, 90:140], rtol=1e-3)


def test_gradients_are_those_of_autograd() -> None:
    signal = _signal()
    bags, _ = _bags(signal)
    padded = pad(bags, TRAIN[0])
    padded = padded._replace(tokens=padded.tokens.double())
    generator = torch.Generator().manual_seed(0)
    weights = 0.1 * torch.randn(3, 2, 4, WIDTH, generator=generator).double()
    slope = torch.randn(3, 3, NUM, generator=generator).double()
    found = pull(padded, pool(padded, weights), slope)
    weights.requires_grad_()
    (pool(padded, weights).logits * slope).sum().backward()
    assert weights.grad is not None
    torch.testing.assert_close(found, weights.grad, rtol=1e-6, atol=1e-8)


def test_adamw_with_one_entry_a_vector_is_torchs() -> None:
    """With vectors of one entry the shared second moment is Adam's own."""
    ours = torch.tensor([[[1.0], [-2.0]], [[0.5], [3.0]]])
    theirs = [ours[number].clone().requires_grad_() for number in range(2)]
    lrs, decays, steps = [0.1, 0.02], [0.5, 0.0], 7
    optimiser = AdamW([ours], lr=lrs, weight_decay=decays, decays=[True], num_steps=steps)
    references = [
        torch.optim.AdamW([p], lr=lr, weight_decay=decay)
        for p, lr, decay in zip(theirs, lrs, decays, strict=True)
    ]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(each, steps) for each in references]
    for _ in range(steps):
        optimiser.step([2 * ours])
        for parameter, reference, schedule in zip(theirs, references, schedules, strict=True):
            parameter.grad = 2 * parameter.detach()
            reference.step()
            schedule.step()
    torch.testing.assert_close(ours, torch.stack([p.detach() for p in theirs]))


def test_other_kinds_are_refused() -> None:
    bags, _ = _bags(_signal())
    with pytest.raises(ValueError, match="no attentive probe for a retrieval"):
        attentive("retrieval").predict(bags, np.zeros(NUM), TRAIN, SETTINGS[:1])
