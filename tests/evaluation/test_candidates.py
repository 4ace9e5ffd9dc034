import numpy as np

from evaluation.probing.estimator import Bags
from evaluation.scoring.candidates import pooled_features, thinned


def test_tables_to_choose_from() -> None:
    rng = np.random.default_rng(0)
    cls, mean = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    found = pooled_features({"cls": cls, "mean": mean})
    assert list(found) == [
        "both_last1", "cls_last1", "mean_last1", "both_last4", "cls_last4", "mean_last4",
    ]  # fmt: skip
    np.testing.assert_array_equal(found["both_last1"], np.concatenate([cls[:, 0], mean[:, 0]], 1))
    assert found["both_last4"].shape == (5, 4 * 6)
    np.testing.assert_array_equal(found["mean_last4"][:, 3:6], mean[:, 1])


def test_without_a_class_token_one_table_will_do() -> None:
    mean = np.ones((5, 1, 3), np.float32)
    assert list(pooled_features({"cls": mean, "mean": mean})) == ["mean_last1"]


def test_tokens_are_thinned_evenly_and_stay_with_their_subject() -> None:
    tokens = np.arange(12, dtype=np.float32)[:, None]
    bags = Bags(tokens, np.array([0, 7, 7, 9, 12]))
    assert thinned(bags, most=None) is bags
    found = thinned(bags, most=3)
    assert [found[subject][:, 0].tolist() for subject in range(4)] == [
        [0.0, 3.0, 6.0], [], [7.0, 8.0], [9.0, 10.0, 11.0],
    ]  # fmt: skip
