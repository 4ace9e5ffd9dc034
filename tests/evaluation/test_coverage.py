"""What intervals cover: the simulation in short, what is stored, and the choices made by it."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.statistics import coverage, simulated
from evaluation.statistics.intervals import BCA, DELONG, PERCENTILE, method_of
from foundation.metrics.by_name import measure


@pytest.mark.parametrize("auroc", [0.7, 0.9])
def test_the_true_auroc_of_clustered_subjects_is_that_of_a_large_cohort(auroc: float) -> None:
    cohort = simulated.clustered(auroc, 0.4)
    label, score = cohort.draw(np.random.default_rng(0), 40_000)
    assert roc_auc_score(label, score) == pytest.approx(auroc, abs=0.006)
    scans = simulated.clustered_scans(auroc, 0.4)
    label, score = scans.draw(np.random.default_rng(1), 40_000)
    assert len(label) > 90_000
    assert roc_auc_score(label, score) == pytest.approx(scans.truth, abs=0.006)
    assert scans.truth < auroc  # one scan says less than the mean of several


def test_scans_of_a_subject_are_alike() -> None:
    scans = simulated.draw_scans(np.random.default_rng(0), 4000, shift=0.0, prevalence=0.5)
    counts = np.bincount(scans.subject)
    assert (counts.min(), counts.max()) == (1, simulated.MOST_SCANS)
    first = np.flatnonzero(np.diff(scans.subject, prepend=-1))
    first = first[counts > 1]
    alike = np.corrcoef(scans.score[first], scans.score[first + 1])[0, 1]
    assert alike == pytest.approx(simulated.SUBJECT_SHARE, abs=0.05)


def test_the_true_score_is_that_of_a_large_cohort() -> None:
    for cohort in simulated.other_cohorts():
        n = 3000 if cohort.metric == "concordance" else 60_000
        found = measure(*cohort.draw(np.random.default_rng(1), n), cohort.metric)
        assert found == pytest.approx(cohort.truth, abs=0.02 if n == 3000 else 0.01), cohort


def test_in_short_a_percentile_bootstrap_falls_short_and_delong_does_not() -> None:
    cohort = simulated.clustered(0.9, 0.5)
    found = coverage.simulate(
        cohort, 50, methods=(PERCENTILE, BCA, DELONG), simulations=400, num_bootstraps=200, seed=1
    )
    by_method = {each.method: each for each in found}
    assert 0.85 < by_method[PERCENTILE].coverage < by_method[DELONG].coverage
    assert 0.93 < by_method[DELONG].coverage < 0.985
    assert by_method[BCA].coverage > 0.9
    assert by_method[DELONG].defined == 1


def test_in_short_rows_of_scans_cover_far_less() -> None:
    cohort = simulated.clustered_scans(0.8, 0.5)
    (found,) = coverage.simulate(
        cohort, 50, methods=(coverage.ROWS_OF_SCANS,), simulations=150, num_bootstraps=200, seed=1
    )
    assert found.coverage < 0.88


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cells = [coverage.Cell("auroc", DELONG, 50, 0.7, 0.2, 0.94, 0.3, 2000, 1.0)]
    coverage.write(tmp_path / "one.json", cells, num_bootstraps=10, seed=0)
    assert coverage.read(tmp_path / "one.json") == tuple(cells)
    assert coverage.read(tmp_path / "none.json") == ()


def test_the_nearest_cell_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = tuple(
        coverage.Cell("auroc", DELONG, n, value, prevalence, covered, 0.2, 2000, 1.0)
        for n, value, prevalence, covered in (
            (50, 0.7, 0.2, 0.90), (50, 0.7, 0.5, 0.94), (50, 0.9, 0.2, 0.88), (100, 0.7, 0.2, 0.95),
        )
    )  # fmt: skip
    monkeypatch.setattr(coverage, "read", lambda: cells)
    assert coverage.measured_coverage("auroc", DELONG, 61, 0.75) == pytest.approx(0.92)
    assert coverage.measured_coverage("auroc", DELONG, 61, 0.85) == pytest.approx(0.88)
    assert coverage.measured_coverage("auroc", DELONG, 80, 0.99) == pytest.approx(0.95)
    assert coverage.measured_coverage("auroc", DELONG, 12, 0.8) is None
    assert coverage.measured_coverage("auroc", BCA, 60, 0.8) is None
    assert coverage.measured_coverage("r2", DELONG, 60, 0.8) is None
    assert coverage.measured_coverage("auroc", None, 60, None) is None


def test_the_choice_of_methods_is_the_one_that_was_measured() -> None:
    cells = coverage.read()
    chosen = [each for each in cells if method_of(each.metric, each.n) == each.method]
    auroc = [each for each in chosen if each.metric == "auroc"]
    assert {(each.n, each.value) for each in auroc} >= {
        (n, value) for n in (50, 100, 200) for value in (0.7, 0.8, 0.9)
    }
    assert all(each.simulations >= 2000 for each in auroc)
    for each in chosen:
        if each.n >= 200:
            assert 0.93 <= each.coverage <= 0.97, each
    assert {each.metric for each in chosen} >= {
        "auroc", *(cohort.metric for cohort in simulated.other_cohorts())
    }  # fmt: skip


@pytest.mark.slow
def test_the_stored_coverage_comes_out_again() -> None:
    stored = {(each.metric, each.method, each.n, each.value, each.prevalence): each
              for each in coverage.read()}  # fmt: skip
    for cohort, n, methods, _ in coverage.plan(1, 1):
        found = coverage.simulate(
            cohort, n, methods=methods, simulations=500, num_bootstraps=1000, seed=99
        )
        for each in found:
            same = stored[each.metric, each.method, each.n, each.value, each.prevalence]
            error = np.sqrt(same.coverage * (1 - same.coverage) * (1 / 500 + 1 / same.simulations))
            assert abs(each.coverage - same.coverage) < 5 * error + 0.002, (each, same)
