"""The bench runs, and refuses to compare what is not the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.bench import __main__ as command
from evaluation.bench import probes as bench
from evaluation.bench.whole import whole_lines


def test_a_quick_run_measures_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "one_thread", lambda: None)
    out = tmp_path / "reports" / "bench.json"
    monkeypatch.setattr("sys.argv", ["bench", "--quick", "--out", str(out)])
    command.main()
    stored = json.loads(out.read_text())
    assert stored["quick"] is True
    assert [line["contender"] for line in stored["lines"]] == [
        "batched",
        "scikit-learn, one by one",
    ] * len(command.PROBES)
    required = [line for line in stored["lines"] if line["at_least"] is not None]
    assert [line["at_least"] for line in required] == [10.0]
    assert "3 draws of 8 subjects x 12 values of C" in capsys.readouterr().out


def test_draws_hold_as_many_of_each_class() -> None:
    problems = bench.draws_at_every_c(bench.QUICK, seed=1)
    assert (problems.rows.sum(axis=1) == 8).all()
    assert (problems.rows @ problems.label == 4).all()


def test_coefficients_that_differ_are_no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = bench.draws_at_every_c(bench.QUICK, seed=0)
    bench.require_agreement(problems)
    other = bench.one_by_one(problems) + np.float64(0.01)
    monkeypatch.setattr(bench, "one_by_one", lambda _: other)
    with pytest.raises(bench.BenchError, match=r"0\.0001 is allowed"):
        bench.require_agreement(problems)


@pytest.mark.slow
def test_a_whole_run_is_timed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (line,) = whole_lines(num_subjects=40, diseases=("stroke",))
    assert line.at_most == 1.0
    assert line.is_met
