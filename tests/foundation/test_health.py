"""The k-NN score against slow references and chance, and what watching may cost."""

import numpy as np
import pytest

from foundation.health import LARGEST_SHARE, HealthConfig, knn_auroc, knn_vote


def slow_vote(features: np.ndarray, values: np.ndarray, train: np.ndarray, k: int) -> np.ndarray:
    """One row at a time."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores = []
    for row in range(len(unit)):
        others = [other for other in np.flatnonzero(train) if other != row]
        cosine = np.array([unit[row] @ unit[other] for other in others])
        nearest = np.argsort(-cosine, kind="stable")[:k]
        weight = np.exp(cosine[nearest] / 0.07)
        scores.append((weight * values[np.array(others)[nearest]]).sum() / weight.sum())
    return np.array(scores)


def test_votes_equal_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    features, values = rng.normal(size=(23, 5)), rng.normal(size=23)
    train = rng.random((3, 23)) < 0.6
    ks = [4, 30, 1]
    votes = knn_vote(features, values, train, ks=ks, temperature=0.07)
    for vote, some, k in zip(votes, train, ks, strict=True):
        np.testing.assert_allclose(vote, slow_vote(features, values, some, k), rtol=1e-9)


def test_the_score_equals_pairs_compared_one_by_one() -> None:
    rng = np.random.default_rng(4)
    labels = ["a"] * 6 + ["b"] * 13
    label = np.array([name == "a" for name in labels])
    features = rng.normal(size=(19, 3)) + 0.7 * label[:, None]
    wins = []
    for one in np.flatnonzero(label):
        for other in np.flatnonzero(~label):
            voters = np.ones(19, bool)
            voters[[one, other]] = False
            votes = slow_vote(features, label.astype(float), voters, 10)
            wins.append((votes[one] > votes[other] + 1e-9) + 0.5 * np.isclose(*votes[[one, other]]))
    assert 0.55 < np.mean(wins) < 0.95
    assert knn_auroc(features, labels=labels) == pytest.approx(np.mean(wins))


def test_the_score_is_1_where_classes_lie_apart_and_a_half_for_equal_features() -> None:
    rng = np.random.default_rng(1)
    labels = ["a", "b", "c"] * 8
    centres = {"a": [9.0, 0, 0], "b": [0, 9.0, 0], "c": [0, 0, 9.0]}
    apart = np.array([centres[label] for label in labels]) + rng.normal(size=(24, 3))
    assert knn_auroc(apart, labels=labels) == pytest.approx(1.0)
    assert knn_auroc(np.ones((24, 3)), labels=labels) == pytest.approx(0.5)


@pytest.mark.parametrize("sizes", [(16, 16), (26, 6), (12, 10, 10)])
def test_chance_is_a_half_whatever_the_classes(sizes: tuple[int, ...]) -> None:
    """The mean over draws; with only the row itself left out, (16, 16) scores 0.47."""
    rng = np.random.default_rng(2)
    labels = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    scores = [knn_auroc(rng.normal(size=(32, 6)), labels=labels) for _ in range(600)]
    error = np.std(scores) / len(scores) ** 0.5
    assert error < 0.008
    assert np.mean(scores) == pytest.approx(0.5, abs=3 * error)


def test_rows_without_a_label_and_classes_of_one_do_not_count() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(14, 4))
    labels = ["a", "b"] * 5
    alone = knn_auroc(features[:10], labels=labels)
    assert knn_auroc(features, labels=[*labels, None, None, None, "c"]) == alone
    assert knn_auroc(features[:4], labels=["a", "a", None, "b"]) is None
    assert knn_auroc(features[:2], labels=[None, None]) is None


@pytest.mark.parametrize("global_batch", [2, 16, 17, 512])
@pytest.mark.parametrize("log_every_steps", [1, 5, 7])
def test_checks_are_rare_enough_and_fall_on_logged_steps(
    global_batch: int, log_every_steps: int
) -> None:
    config = HealthConfig()
    every = config.interval(
        num_scans=32, global_batch=global_batch, log_every_steps=log_every_steps
    )
    assert LARGEST_SHARE * every * global_batch >= 32
    assert every >= config.every_steps
    assert every % log_every_steps == 0
    cheap = max(config.every_steps, 32 / (LARGEST_SHARE * global_batch))
    assert every < cheap + log_every_steps + 1, "no rarer than it must be"


def test_alarms_wait_for_the_warm_up() -> None:
    waits = {"warmup_steps": 40, "freeze_last_layer_steps": 20}
    assert HealthConfig().first_judged(**waits) == 100
    assert HealthConfig().first_judged(warmup_steps=40, freeze_last_layer_steps=700) == 700
    assert HealthConfig(warmup_steps=5).first_judged(**waits) == 5
