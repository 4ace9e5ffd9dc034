"""Pairs of models, spread over training sets, and label-efficiency curves."""

from typing import Any

import numpy as np
import pandas
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import zt_ind_solve_power

from evaluation.statistics import flips
from evaluation.statistics.bootstrap import Draws, strata_of
from evaluation.statistics.delong import midranks
from evaluation.statistics.few_shot import area_under_curve, few_shot_curves
from evaluation.statistics.paired import (
    _normal_range,
    average_ranks,
    compare,
    detectable_difference,
    holm,
    permutation_p,
)
from evaluation.statistics.resampled import nadeau_bengio, training_spread
from foundation.metrics.by_name import METRICS, measure

N = 29


def _ranks(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Midranks of each column, among the rows whose label is known."""
    if label.shape == score.shape and score.ndim == 2:
        ranks = np.zeros(score.shape)
        for k, known in enumerate(np.isfinite(label).T):
            ranks[known, k] = midranks(score[None, known, k])[0]
        return ranks
    return midranks(np.atleast_2d(score.T)).T.squeeze()


def _pairs() -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray, bool]]:
    """Metric, label, two scores, and whether the metric reads the order of scores only."""
    rng = np.random.default_rng(0)
    label = (rng.random(N) < 0.4).astype(float)
    a, b = rng.random(N).round(1), rng.random(N).round(2)
    classes = rng.integers(0, 3, N).astype(float)
    p, q = rng.dirichlet([1, 1, 1], (2, N))
    many = np.where(rng.random((N, 3)) < 0.2, np.nan, (rng.random((N, 3)) < 0.4).astype(float))
    times = np.stack([rng.integers(1, 15, N), rng.random(N) < 0.5], axis=1).astype(float)
    gaps, others = (np.where(rng.random((N, 2)) < 0.3, np.nan, rng.random((N, 2))) for _ in "ab")
    return [
        ("auroc", label, a, b, True),
        ("brier", label, a, b, False),
        ("balanced_accuracy", label, a, b, False),
        ("macro_auroc", classes, p, q, True),
        ("macro_auroc", many, p, q, True),
        ("accuracy", classes, p, q, False),
        ("quadratic_kappa", classes, p, q, False),
        ("concordance", times, a, b, True),
        ("concordance", times[:, 0], a, b, True),
        ("r2", times[:, 0], 9 * a, 9 * b, False),
        ("mean_absolute_error", times[:, 0], 9 * a, 9 * b, False),
        ("dice", label, gaps, gaps**2, False),
        ("dice", label, gaps, others, False),
        ("hit_at_1", label, p, q, False),
    ]


@pytest.mark.parametrize("case", range(14))
def test_flips_equal_swapping_the_scores_and_measuring_again(case: int) -> None:
    metric, label, a, b, is_order = _pairs()[case]
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (6, N))
    signs[0] = 1
    found = flips.flipped_differences(label, a, b, metric, signs=signs)
    one, two = (_ranks(a, label), _ranks(b, label)) if is_order else (a, b)
    for difference, sign in zip(found, signs, strict=True):
        keep = sign > 0 if a.ndim == 1 else (sign > 0)[:, None]
        first, second = np.where(keep, one, two), np.where(keep, two, one)
        expected = measure(label, first, metric) - measure(label, second, metric)
        assert difference == pytest.approx(expected, abs=1e-12)
    plain = measure(label, a, metric) - measure(label, b, metric)
    assert found[0] == pytest.approx(plain, abs=1e-12)  # ranks change no metric of order


def test_permutation_p_is_exact_in_small_and_never_0() -> None:
    rng = np.random.default_rng(3)
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])
    a, b = label + rng.normal(0, 0.4, 8), rng.normal(0, 1, 8)
    ranks = midranks(np.stack([a, b]))
    observed = abs(roc_auc_score(label, a) - roc_auc_score(label, b))
    as_far = 0
    for number in range(256):
        keep = np.array([number >> bit & 1 for bit in range(8)], dtype=bool)
        one, two = np.where(keep, *ranks), np.where(keep, ranks[1], ranks[0])
        apart = abs(measure(label, one, "auroc") - measure(label, two, "auroc"))
        as_far += apart >= observed - 1e-9
    p = permutation_p(label, a, b, "auroc", num_permutations=20_000, seed=0)
    assert p == pytest.approx(as_far / 256, abs=0.015)
    same = permutation_p(label, a, a, "auroc", num_permutations=99, seed=0)
    assert same == 1.0
    many = np.tile(label, 8)
    best = permutation_p(many, many, np.zeros(64), "auroc", num_permutations=99, seed=0)
    assert best == 1 / 100


def test_p_values_are_uniform_where_models_are_alike() -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(40) % 2).astype(float)
    found = []
    for seed in range(150):
        shared = label + rng.normal(0, 1, 40)
        a, b = (shared + rng.normal(0, 1, 40) for _ in "ab")
        # The second model's scores are on another scale; ranks take that out.
        found.append(
            permutation_p(label, a, np.exp(3 * b), "auroc", num_permutations=199, seed=seed)
        )
    assert stats.kstest(found, "uniform").pvalue > 0.01


def test_a_comparison_draws_the_same_subjects_for_both() -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(60) % 3 == 0).astype(float)
    a = label + rng.normal(0, 1, 60)
    b = a + rng.normal(0, 0.2, 60)
    draws = Draws(strata_of(label, "binary"), num=400, seed=0)
    found = compare(label, a, b, "auroc", draws=draws, num_permutations=200)
    assert found.difference == pytest.approx(roc_auc_score(label, a) - roc_auc_score(label, b))
    by_draw = [
        METRICS["auroc"](label, a, block) - METRICS["auroc"](label, b, block) for block in draws
    ]
    assert (found.low, found.high) == pytest.approx(np.percentile(by_draw[0], [2.5, 97.5]))
    assert found.standard_error == pytest.approx(by_draw[0].std(ddof=1))
    assert found.standard_error < 0.5 * METRICS["auroc"](label, a, next(iter(draws))).std()
    assert found.detectable == pytest.approx(2.8016 * found.standard_error, rel=1e-4)


def test_the_detectable_difference_has_the_power_it_says() -> None:
    effect = detectable_difference(1.0)  # in standard errors
    # Two groups of two have a standard error of 1; the other tail of the test adds 1e-6.
    power = zt_ind_solve_power(effect_size=effect, nobs1=2, alpha=0.05, ratio=1)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_holm_equals_statsmodels_and_keeps_what_is_missing() -> None:
    p = np.random.default_rng(0).random(9) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    with_gap = np.insert(p, 4, np.nan)
    adjusted = holm(with_gap)
    assert np.isnan(adjusted[4])
    assert np.delete(adjusted, 4) == pytest.approx(holm(p))
    assert holm([]).shape == (0,)


def test_average_ranks_equal_friedman_by_scipy() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((7, 4)).round(1)
    scores[:, 0] += 0.4
    found = average_ranks(scores)
    expected = stats.rankdata(-scores, axis=1).mean(axis=0)
    assert found.ranks == pytest.approx(expected)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    # Demsar 2006, table 5: q = 2.569 for four models.
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 7)), abs=2e-3)


def test_average_ranks_turn_errors_round_and_leave_out_incomplete_tasks() -> None:
    scores = [[0.9, 0.8, 0.7], [3.0, 2.0, 1.0], [np.nan, 0.5, 0.6]]
    found = average_ranks(scores, lower_is_better=[False, True, False])
    assert found.ranks.tolist() == [2, 2, 2]
    assert found.num_tasks == 2
    alone = average_ranks([[0.9, 0.8]])
    assert (alone.num_tasks, alone.friedman_p, alone.critical_difference) == (1, None, None)
    assert average_ranks([[np.nan, 0.8]]).num_tasks == 0


def test_nadeau_bengio_by_hand() -> None:
    scores = np.array([[0.7, 0.8, 0.75], [0.72, np.nan, 0.78]])
    known = scores[np.isfinite(scores)]
    found = nadeau_bengio(scores, test_share=1 / 2)
    reach = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 1 / 2) * known.var(ddof=1))
    assert found == pytest.approx((5, known.mean(), known.std(ddof=1), known.mean() - reach,
                                   known.mean() + reach))  # fmt: skip
    assert nadeau_bengio([0.7], test_share=0.25) == (1, 0.7, None, None, None)
    assert nadeau_bengio([np.nan], test_share=0.25) == (0, None, None, None, None)


def test_the_spread_over_training_sets_is_a_range_of_scores() -> None:
    scores = np.random.default_rng(0).random(40)
    found = training_spread([*scores, np.nan])
    assert found[:3] == (40, scores.mean(), scores.std(ddof=1))
    assert found[3:] == pytest.approx(np.quantile(scores, [0.025, 0.975]))


KINDS = {"mae": "backbone", "volume": "floor", "mean": "floor"}


def _few_shot(**models: Any) -> pandas.DataFrame:
    rows = [
        (model, "linear", x, unit, draw, score)
        for model, points in models.items()
        for (x, unit), scores in points.items()
        for draw, score in enumerate(scores)
    ]
    return pandas.DataFrame(rows, columns=["model", "protocol", "x", "unit", "draw", "score"])


def test_few_shot_by_hand() -> None:
    table = _few_shot(
        mae={(1, "shots"): [0.5, 0.7], (4, "shots"): [0.8, 0.8], (0.5, "fraction"): [0.9, 0.7]},
        volume={(1, "shots"): [0.6, 0.6], (4, "shots"): [0.7, 0.6], (0.5, "fraction"): [0.8, 0.8]},
        mean={(1, "shots"): [0.5, 0.5], (4, "shots"): [0.5, 0.5], (0.5, "fraction"): [0.5, 0.5]},
    )
    gap = {"x": 8, "unit": "shots", "reason": "the rarer class has 5"}
    found = few_shot_curves(table, kinds=KINDS, missing=[gap])
    assert [each["model"] for each in found["models"]] == ["mae", "volume", "mean"]
    assert (found["reference"], found["reference_protocol"]) == ("volume", "linear")
    mae, volume = found["models"][:2]
    one, four, half, eight = mae["points"]
    assert [point["unit"] for point in mae["points"]] == ["shots", "shots", "fraction", "shots"]
    assert one["mean"] == pytest.approx(0.6)
    assert one["sd"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert (one["low"], one["high"]) == pytest.approx((0.51, 0.69))
    assert four["difference"] == pytest.approx(0.15)
    assert (four["difference_low"], four["difference_high"]) == pytest.approx((0.105, 0.195))
    assert half["mean"] == pytest.approx(0.8)
    assert (eight["mean"], eight["draws"], eight["reason"]) == (None, 0, "the rarer class has 5")
    assert volume["points"][0]["difference"] is None
    # Over shots: from 1 to 4 in one piece, by draw.
    assert mae["area"] == pytest.approx(np.mean([(0.5 + 0.8) / 2, (0.7 + 0.8) / 2]))
    assert (mae["area_low"], mae["area_high"]) == pytest.approx((0.655, 0.745))


def test_a_draw_counts_when_every_model_was_scored_on_it() -> None:
    table = _few_shot(
        mae={(1, "shots"): [0.5, 0.7, 0.9]}, volume={(1, "shots"): [0.6, np.nan, 0.6]}
    )
    found = few_shot_curves(table, kinds=KINDS)
    assert [each["points"][0]["draws"] for each in found["models"]] == [2, 2]
    assert found["models"][0]["points"][0]["mean"] == pytest.approx(0.7)
    assert found["models"][0]["area"] == pytest.approx(0.7)  # one point has no width


def test_other_protocols_are_compared_with_the_same_reference() -> None:
    table = _few_shot(mae={(1, "shots"): [0.5, 0.7]}, volume={(1, "shots"): [0.6, 0.6]})
    more = table[table.model == "mae"].assign(protocol="prototypes", score=[0.7, 0.7])
    found = few_shot_curves(pandas.concat([table, more]), kinds=KINDS)
    assert [(each["model"], each["protocol"]) for each in found["models"]] == [
        ("mae", "linear"), ("mae", "prototypes"), ("volume", "linear"),
    ]  # fmt: skip
    assert found["models"][1]["points"][0]["difference"] == pytest.approx(0.1)


def test_the_area_is_over_log2_and_reads_as_a_mean_score() -> None:
    x = np.array([1.0, 2, 8])
    scores = np.array([[0.5, 0.5, 0.5], [0.0, 0.6, 1.0]])
    # log2: 0, 1, 3: (0 + .6)/2 * 1/3 + (.6 + 1)/2 * 2/3
    assert area_under_curve(x, scores) == pytest.approx([0.5, 0.1 + 0.8 * 2 / 3])


def test_lower_is_better_chooses_the_other_reference() -> None:
    table = _few_shot(volume={(0.5, "fraction"): [3.0]}, mean={(0.5, "fraction"): [2.0]})
    assert few_shot_curves(table, kinds=KINDS)["reference"] == "volume"
    assert few_shot_curves(table, kinds=KINDS, lower_is_better=True)["reference"] == "mean"


@pytest.mark.parametrize("models", [2, 5, 14])
def test_the_range_of_normal_values_is_that_of_scipy(models: int) -> None:
    expected = stats.studentized_range.ppf(0.95, models, np.inf)
    assert _normal_range(models) == pytest.approx(expected, abs=1e-6)
