"""Which rows stand for a model, how a table is cut, lettered and drawn: on hand-sized cases."""

from dataclasses import replace

import pytest

from evaluation.reporting import picks
from evaluation.reporting.results import Comparison, ModelResult, Results, Score
from evaluation.reporting.stored import MOST_GROUPS, read_results
from evaluation.reporting.tables.forest import forest
from evaluation.reporting.tables.table import (
    Cell,
    Column,
    Group,
    Row,
    Table,
    in_parts,
    reason_cell,
)
from tests.evaluation.report_store import SECRET


def _row(
    model: str,
    value: float | None,
    *,
    protocol: str = "linear",
    kind: str = "backbone",
    metric: str = "auroc",
) -> ModelResult:
    score = Score(metric, value, None, None, None, None, None, None, None)
    nothing = dict.fromkeys(("delong", "bootstrap", "training_spread", "folds", "calibration"))
    nothing |= dict.fromkeys(("conformal", "risk_coverage"))
    return ModelResult(model, kind, protocol, 9, None, (score,), (), **nothing)


def test_backbones_first_in_the_order_of_the_run_main_protocol_first() -> None:
    rows = [
        _row("floor", 0.5, kind="floor"),
        _row("b", 0.6, protocol="knn"),
        _row("b", 0.6),
        _row("a", 0.7, protocol="knn"),
    ]
    found = picks.in_order(rows, ["floor", "b", "a"])
    assert [(row.model, row.protocol) for row in found] == [
        ("b", "linear"),
        ("b", "knn"),
        ("a", "knn"),
        ("floor", "linear"),
    ]


def test_the_main_protocol_is_linear_or_what_backbones_begin_with() -> None:
    floor = _row("floor", 0.5, protocol="constant", kind="floor")
    assert picks.main_protocol([floor, _row("a", 0.5, protocol="knn"), _row("a", 0.5)]) == "linear"
    assert picks.main_protocol([floor, _row("a", 0.5, protocol="dense")]) == "dense"
    assert picks.main_protocol([]) is None


def test_one_row_per_model_is_of_the_main_protocol_where_there_is_one() -> None:
    rows = [_row("a", 0.9, protocol="knn"), _row("a", 0.5), _row("b", 0.6, protocol="knn")]
    found = picks.one_per_model(rows)
    assert [(row.model, row.protocol) for row in found] == [("a", "linear"), ("b", "knn")]


def test_equal_at_the_shown_digits_is_equally_best() -> None:
    best = picks.best_of("auroc", [0.70001, 0.7, None, 0.6])
    assert picks.is_best(0.7, best)
    assert picks.is_best(0.70001, best)
    assert not picks.is_best(0.6, best)
    assert not picks.is_best(None, picks.best_of("auroc", [None]))
    assert picks.best_of("mean_absolute_error", [3.0, 2.0]) == 2.0


def test_the_strongest_is_by_the_main_protocol_and_the_metric_s_direction() -> None:
    rows = [
        _row("a", 0.5, kind="floor"),
        _row("a", 0.9, kind="floor", protocol="knn"),
        _row("b", 0.6, kind="floor"),
        _row("c", None, kind="floor"),
    ]
    strongest = picks.strongest(rows, "floor")
    assert strongest is not None
    assert strongest.model == "b"
    errors = [
        _row(name, value, metric="mean_absolute_error") for name, value in (("a", 3), ("b", 9))
    ]
    lowest = picks.strongest(errors, "backbone")
    assert lowest is not None
    assert lowest.model == "a"
    assert picks.strongest(rows, "backbone") is None


def test_featured_rows_are_backbones_and_one_floor() -> None:
    rows = [_row("a", 0.5), _row("b", 0.6)]
    rows += [_row("f", 0.4, kind="floor"), _row("g", 0.45, kind="floor")]
    assert [row.model for row in picks.featured(rows)] == ["a", "b", "g"]


def test_the_verdict_is_of_the_strongest_backbone_against_a_floor() -> None:
    rows = (_row("a", 0.5), _row("b", 0.6), _row("f", 0.4, kind="floor"))
    pairs = tuple(
        Comparison(a, b, "linear", None, "auroc", 0.1, 0.0, 0.2, 0.1, None, 0.1, 9, None)
        for a, b in (("b", "a"), ("a", "f"), ("b", "f"))
    )
    whole = Results("auroc", ("auroc",), "val", 9, None, ("1",), 9, 9, 0, rows, pairs, None, ())
    found = picks.verdict(whole)
    assert found is not None
    assert (found.a, found.b) == ("b", "f")
    assert picks.verdict(replace(whole, comparisons=pairs[:1])) is None
    assert picks.verdict(replace(whole, rows=rows[2:])) is None


def test_forest_puts_rows_on_one_scale_with_its_line_and_cuts_the_far_end() -> None:
    spans = [(0.25, 0.5, 0.75), (None, None, None), (-30.0, -20.0, 0.0)]
    found = forest(spans, line=0.0, limits=(-0.5, 2.0))
    first, none, last = found.places
    assert none is None
    assert first is not None
    assert last is not None
    assert (first.line, first.low, first.value, first.high) == (40.0, 60.0, 80.0, 100.0)
    assert (last.line, last.low, last.value, last.high) == (40.0, 0.0, 0.0, 40.0)
    assert found.ends == ("\N{MINUS SIGN}0.500", "0.750")


def test_forest_without_an_interval_or_a_line() -> None:
    assert forest([(None, 0.5, None)], line=0.5).places == (None,)
    (alone,) = forest([(0.4, 0.5, 0.8)], line=None).places
    assert alone is not None
    assert (alone.line, alone.low, alone.value, alone.high) == (None, 0.0, 25.0, 100.0)


def test_columns_are_cut_evenly_into_as_few_parts_as_there_must_be() -> None:
    assert [len(part) for part in in_parts(range(7))] == [7]
    assert [len(part) for part in in_parts(range(8))] == [4, 4]
    assert [len(part) for part in in_parts(range(15))] == [5, 5, 5]
    assert in_parts([]) == []


def test_footnotes_are_lettered_once_in_order_of_appearance() -> None:
    cells = (Cell("1", notes=("x", "y")), Cell("2", notes=("x",), warnings=("w",)))
    rows = (Row(Cell("head", notes=("h",)), cells),)
    table = Table("scores", "", (Column("a"), Column("b"), Column("c")), (Group("", "", rows),))
    assert table.letters == {"h": "a", "x": "b", "y": "c", "w": "d"}
    many = tuple(Row(Cell(""), (Cell("", notes=(f"{at}",)),)) for at in range(30))
    letters = Table("scores", "", (Column("a"),), (Group("", "", many),)).letters
    assert [letters[str(at)] for at in (25, 26, 29)] == ["z", "aa", "ad"]


def test_a_dash_always_has_a_reason() -> None:
    assert reason_cell("one class").notes == ("one class",)
    assert reason_cell(None).notes == ("the store gives no reason",)


def test_results_take_over_named_fields_only() -> None:
    sets = {"coverage": 0.9, "mean_size": 1.0, "n": 3, "subjects": [SECRET]}
    by_group = {"sex": {"F": sets}, "id": {f"{SECRET}{at}": sets for at in range(MOST_GROUPS + 1)}}
    row = {
        "model": "a",
        "kind": "backbone",
        "protocol": "linear",
        "n": 3,
        "subjects": [SECRET],
        "scores": {"auroc": {"value": 0.5, "low": 0.4, "high": 0.6, "who": SECRET}},
        "conformal": {"level": 0.9, **sets, "by_group": by_group},
    }
    stored = {"metric": "auroc", "metrics": ["auroc"], "split": "val", "n": 3, "outputs": ["1"]}
    stored |= {"num_bootstraps": 9, "seed": 0, "models": [row], "comparisons": []}
    found = read_results(stored)
    assert SECRET not in repr(found)
    assert found.rows[0].conformal is not None
    assert list(found.rows[0].conformal.by_group) == ["sex"]
    assert found.rows[0].scores[0].reason is None
    assert found.few_shot is None
    assert found.shuffled == ()


@pytest.mark.parametrize("missing", ["metric", "models", "comparisons", "seed"])
def test_results_of_another_layout_are_refused(missing: str) -> None:
    stored = {"metric": "auroc", "metrics": ["auroc"], "split": "val", "n": 3, "outputs": ["1"]}
    stored |= {"num_bootstraps": 9, "seed": 0, "models": [], "comparisons": []}
    del stored[missing]
    with pytest.raises(KeyError, match=missing):
        read_results(stored)
