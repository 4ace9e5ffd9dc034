"""How the report shows the parts of the statistics: comparisons, ranks, spread, curves, groups."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from evaluation.reporting.layout import StorePage
from evaluation.reporting.pages import html_page, markdown_page
from evaluation.statistics.summary import Settings, summarise_task
from evaluation.storing import store
from evaluation.storing.rows import to_rows
from foundation.metrics.by_name import PRIMARY
from tests.evaluation.report_reading import Rows, cell_of, csv_rows, pages_of, tables_of, those
from tests.evaluation.report_store import MODELS, SECRET, TASKS, make_store

Change = Callable[[dict[str, Any]], object]
DELTA = "\N{GREEK CAPITAL LETTER DELTA}"
FEW = ("stroke", "copd", "volume")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "demo")


@pytest.fixture(scope="module")
def pages(demo: Path) -> list[StorePage]:
    return pages_of(demo)


@pytest.fixture(scope="module")
def rows(pages: list[StorePage]) -> Rows:
    return csv_rows(pages)


@pytest.fixture(scope="module")
def html(pages: list[StorePage]) -> str:
    return html_page(pages)


@pytest.fixture(scope="module")
def markdown(pages: list[StorePage]) -> str:
    return markdown_page(pages)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., list[StorePage]]:
    """Pages of a store in which the statistics of one task were changed."""

    def make(task: str, change: Change) -> list[StorePage]:
        folder = make_store(tmp_path / "demo", tasks=FEW)
        path = folder / "statistics" / f"{task}.json"
        content = json.loads(path.read_text())
        change(content)
        store.write_json(path, store.sealed(content))
        return pages_of(folder)

    return make


def test_tasks_of_different_metrics_name_them(pages: list[StorePage]) -> None:
    first, second = tables_of(pages, "scores")
    assert [column.under[0] for column in first.columns[1:]] == ["AUROC"] * 4 + [
        "Macro AUROC",
        "Macro AUROC",
        "R²",
    ]
    assert [column.under[0] for column in second.columns[1:]] == [
        "Quadratic kappa",
        "C-index",
        "Dice",
        "mAP",
    ]


def test_holm_is_over_every_comparison_of_all_stores(demo: Path, tmp_path: Path) -> None:
    pages = pages_of(demo, make_store(tmp_path / "other", seed=3, tasks=FEW))
    rows = those(csv_rows(pages), section="comparisons")
    raw = [float(row["value"]) for row in rows if row["metric"].endswith(".p")]
    ours = [float(row["value"]) for row in rows if row["metric"].endswith(".p_holm")]
    assert len(raw) == 6 * (len(TASKS) + len(FEW))
    assert ours == pytest.approx(multipletests(raw, method="holm")[1].tolist(), abs=1e-4)
    assert "all 84 comparisons of this report" in markdown_page(pages)


def test_a_comparison_without_a_p_is_no_part_of_the_family(
    changed: Callable[..., list[StorePage]],
) -> None:
    gone = dict.fromkeys(("difference", "low", "high", "p", "p_delong", "detectable"))
    reason = "scored on other subjects"
    pages = changed("copd", lambda all_: all_["comparisons"][0].update(gone, reason=reason))
    (table,) = tables_of(pages, "comparisons", "copd")
    assert "all 17 comparisons" in table.lines[0]
    cell = cell_of(table, "MAE, tiny less DINO, tiny", "p, Holm")
    assert (cell.text, cell.notes) == ("\N{EM DASH}", (reason,))


def test_ranks_are_of_models_on_the_same_tasks(pages: list[StorePage]) -> None:
    ranks = pages[0].ranks
    assert len(ranks.tasks) == len(TASKS)
    assert next(iter(ranks.ranks)) == "mae"
    assert sum(ranks.ranks.values()) == pytest.approx(sum(range(1, len(MODELS) + 1)))
    (table,) = tables_of(pages, "ranks")
    assert table.title == "Average rank over 11 tasks"
    assert any("Nemenyi" in line for line in table.lines)


def test_no_rank_under_three_tasks(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=("stroke", "volume")))
    (table,) = tables_of(pages, "ranks")
    assert "there is no rank under 3" in next(iter(table.letters))
    assert not those(csv_rows(pages), section="ranks")


def test_shuffled_labels_stand_below_the_floors(rows: Rows, markdown: str) -> None:
    text = "AUROC 0.507 ± 0.009 (mean and standard error over 20 shuffles)"
    assert text in markdown
    (row,) = [one for one in those(rows, task="stroke") if "shuffled" in one["metric"]]
    assert row["metric"] == "auroc.shuffled_labels: passed"
    assert (row["value"], row["setting"]) == ("0.507", "shuffles = 20, standard error = 0.009")


def test_shuffled_labels_that_make_no_sense_say_why(
    changed: Callable[..., list[StorePage]],
) -> None:
    nothing = {"mean": None, "se": None, "passed": None, "reason": "no labels are trained on"}
    pages = changed("stroke", lambda all_: all_["shuffled"].update(nothing))
    (table,) = tables_of(pages, "scores", "stroke")
    assert "no labels are trained on" in table.letters


def test_a_one_class_split_is_null_with_the_reason(
    changed: Callable[..., list[StorePage]],
) -> None:
    reason = "auroc needs subjects of both classes, all 40 are 0"
    nothing = {"value": None, "low": None, "high": None, "method": None, "reason": reason}

    def one_class(content: dict[str, Any]) -> None:
        for row in content["models"]:
            row["scores"] = dict.fromkeys(row["scores"], nothing)
            row |= dict.fromkeys(("delong", "bootstrap", "calibration", "conformal"))
            row |= dict.fromkeys(("training_spread", "folds", "risk_coverage"))
        content["comparisons"] = []

    pages = changed("copd", one_class)
    (table,) = tables_of(pages, "scores", "copd")
    assert reason in table.letters
    (row,) = those(
        csv_rows(pages), task="copd", model="mae", protocol="knn", metric="auroc", section="scores"
    )
    assert (row["value"], row["low"], row["reason"]) == ("", "", reason)
    text = markdown_page(pages)
    assert re.search(r"\| MAE, tiny \| k-NN \| 40 \| — \(a\) \|", text)
    assert pages[0].ranks.tasks == ("stroke", "volume")


def test_spread_stands_beside_the_interval(pages: list[StorePage], rows: Rows) -> None:
    (split,) = tables_of(pages, "spread", "stroke")
    assert [one.title for one in split.columns[2:]] == [
        "Subjects",
        "Method",
        "Bootstrap",
        "Training sets",
    ]
    (folds,) = tables_of(pages, "spread", "sarcoma")
    assert [one.title for one in folds.columns[2:]] == ["Subjects", "Method", "Bootstrap", "Folds"]
    assert any("100 folds" in line and "Nadeau and Bengio" in line for line in folds.lines)
    found = those(rows, task="sarcoma", section="spread", model="mae", protocol="linear")
    by_metric = {row["metric"]: row for row in found}
    assert by_metric["auroc.folds.mean"]["method"] == "Nadeau-Bengio"
    assert by_metric["auroc.folds.mean"]["setting"] == "num = 100"


def test_many_outputs_are_cut_into_tables_that_fit(pages: list[StorePage]) -> None:
    tables = tables_of(pages, "outputs", "organ")
    assert [len(table.columns) - 1 for table in tables] == [5, 6]
    assert tables[1].title.endswith("(continued)")
    last = cell_of(tables[1], "MAE, tiny", "organ 10")
    assert last.notes == ("no subject of this class in the split",)


def test_few_shot_shows_area_and_sizes_that_cannot_be_drawn(
    pages: list[StorePage], rows: Rows
) -> None:
    shots, fractions = (
        tables_of(pages, f"few_shot.{unit}", "stroke")[0] for unit in ("shots", "fraction")
    )
    assert [one.title for one in shots.columns[:4]] == ["Model", "Protocol", "Area", "1 per class"]
    assert "Area" not in [one.title for one in fractions.columns]
    assert cell_of(shots, "MAE, tiny", "32 per class").notes == (
        "the rarer class has 30 training subjects, fewer than 32",
    )
    (only,) = tables_of(pages, "few_shot.fraction", "volume")
    assert only.columns[2].title == "Area"
    cell = cell_of(shots, "MAE, tiny", "4 per class")
    assert [line.split(" ")[0] for line in cell.under][::2] == [
        "SD",
        "\N{GREEK CAPITAL LETTER DELTA}",
    ]
    points = those(rows, task="stroke", section="few_shot.shots", metric="auroc.few_shot")
    assert {row["setting"] for row in points if not row["value"]} == {"shots = 32, draws = 0"}
    areas = those(rows, task="stroke", metric="auroc.few_shot.area", model="mae")
    assert {row["interval"] for row in areas} == {"5-95% over draws"}


def test_figures_show_what_their_tables_hold(pages: list[StorePage], html: str) -> None:
    plots = {
        part.task.name: [plot for block in part.blocks for plot in block.plots]
        for part in pages[0].tasks
    }
    assert len(plots["stroke"]) == 4  # shots, fractions, reliability, risk and coverage
    assert len(plots["survival"]) == 1
    assert plots["lesion"] == []
    reliability = next(plot for plot in plots["stroke"] if plot.is_wide)
    for title in ("MAE, tiny", "DINO, tiny", "ViT-S/16, 2D slices", "Clinical columns"):
        assert f">{title}</text>" in reliability.svg
    shots = plots["stroke"][0]
    assert [key.is_dashed for key in shots.legend] == [False] * 3 + [True] * 5
    assert shots.svg.count("<polyline") == len(shots.legend)
    assert html.count('<svg class="chart"') == sum(map(len, plots.values())) + 2  # two losses


def test_groups_are_of_backbones_and_the_strongest_floor(
    pages: list[StorePage], rows: Rows
) -> None:
    (table,) = tables_of(pages, "groups", "stroke")
    assert [column.title for column in table.columns[1:4]] == [
        "MAE, tiny",
        "DINO, tiny",
        "ViT-S/16, 2D slices",
    ]
    assert len(table.columns) == 5
    assert [group.title for group in table.groups] == ["sex", "site"]
    found = those(rows, task="stroke", section="groups", setting="sex = F", protocol="linear")
    assert {row["n"] for row in found} == {"20"}


def test_the_verdict_is_best_backbone_less_best_floor(pages: list[StorePage]) -> None:
    overview = tables_of(pages, "scores")[0]
    cell = cell_of(overview, "Best backbone less best floor", "Stroke")
    assert cell.text.startswith("+")
    assert cell.notes == ("MAE, tiny less Clinical columns",)
    assert cell.under[1].startswith("p = ")


def test_statistics_that_a_run_computes_are_what_the_report_reads(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "demo", tasks=("stroke", "survival"))
    rng = np.random.default_rng(0)
    for task, kind in (("stroke", "binary"), ("survival", "survival")):
        event = (np.arange(40) % 3 == 0).astype(float)
        label = event if kind == "binary" else np.stack([rng.exponential(300, 40), 1 - event], 1)
        made = []
        for model in ("mae", "clinical"):
            score = rng.normal(event, 1.0)
            score = 1 / (1 + np.exp(-score)) if kind == "binary" else score
            names = [f"{SECRET}{at:04d}" for at in range(40)]
            for each in to_rows(names, label, score[:, None], kind=kind):
                made.append((model, "linear", "val", *each))
        table = pd.DataFrame(made, columns=list(store.PREDICTION_COLUMNS))
        about = {"name": task, "kind": kind, "metric": PRIMARY[kind], "outputs": ("1",)}
        store.write_predictions(folder, task, table)
        content = summarise_task(
            table,
            task={**about, "prevalence": 0.3},
            kinds={"mae": "backbone", "clinical": "floor"},
            split="val",
            settings=Settings(num_bootstraps=50, num_permutations=50),
            groups={"sex": {name: "FM"[at % 2] for at, name in enumerate(names)}},
        )
        store.write_statistics(folder, task, content)
        pages = pages_of(folder)
        stored = {row["model"]: row["scores"] for row in content["models"]}
        (row,) = those(
            csv_rows(pages), task=task, section="scores", model="mae", metric=PRIMARY[kind]
        )
        value = stored["mae"][PRIMARY[kind]]
        assert float(row["value"]) == pytest.approx(value["value"], abs=1e-6)
        assert float(row["low"]) == pytest.approx(value["low"], abs=1e-6)
        assert row["method"] == value["method"]
        text = markdown_page(pages)
        assert SECRET not in text
        assert "MAE, tiny less Clinical columns" in text


def test_a_task_without_any_score_still_has_its_page(
    changed: Callable[..., list[StorePage]],
) -> None:
    def emptied(content: dict[str, Any]) -> None:
        content |= {"models": [], "comparisons": [], "few_shot": None, "shuffled": None}

    pages = changed("copd", emptied)
    assert "### Copd" in markdown_page(pages)
    assert 'id="demo-copd"' in html_page(pages)
    assert those(csv_rows(pages), task="copd", section="card")
