"""What a sceptic looks for in a report: the reader is told what a number is not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.reporting.figures.curves import WIDTH, Risk, risk_coverage_svg
from evaluation.reporting.figures.reliability import MOST_PANELS, Panel, reliability_svg
from evaluation.reporting.glossary import glossary
from evaluation.reporting.layout import StorePage
from evaluation.reporting.numbers import share_interval, share_interval_text
from evaluation.reporting.pages import html_page, markdown_page
from evaluation.reporting.plots import reliability_plot, risk_plot
from evaluation.reporting.results import Bin
from evaluation.reporting.tables.coverage import coverage_table
from evaluation.statistics.coverage import read
from evaluation.storing import store
from tests.evaluation.report_reading import cell_of, csv_rows, pages_of, tables_of, those
from tests.evaluation.report_store import make_store

Change = Callable[[dict[str, Any]], object]
FEW = ("stroke", "copd", "volume")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., list[StorePage]]:
    """Pages of a store in which the statistics of some tasks were changed."""

    def make(change: Change, *, tasks: tuple[str, ...] = FEW) -> list[StorePage]:
        folder = make_store(tmp_path / "demo", tasks=tasks)
        for task in tasks:
            path = folder / "statistics" / f"{task}.json"
            content = json.loads(path.read_text())
            change(content)
            store.write_json(path, store.sealed(content))
        return pages_of(folder)

    return make


def _row(content: dict[str, Any], model: str, protocol: str = "linear") -> dict[str, Any]:
    (row,) = [
        each for each in content["models"] if (each["model"], each["protocol"]) == (model, protocol)
    ]
    return row


def test_the_spread_over_training_sets_is_called_what_it_is(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=FEW))
    (table,) = tables_of(pages, "spread", "stroke")
    (column,) = [each for each in table.columns if each.title == "Training sets"]
    assert column.under == ("mean \N{PLUS-MINUS SIGN} SD", "2.5-97.5%")
    found = those(csv_rows(pages), metric="auroc.training_spread.mean", task="stroke")
    assert {row["interval"] for row in found} == {"2.5-97.5% over training sets"}


def test_validation_scores_say_that_they_are_the_best_of_a_grid(tmp_path: Path) -> None:
    text = markdown_page(pages_of(make_store(tmp_path / "demo", tasks=FEW)))
    assert "the best of up to 6 settings of a backbone" in text
    assert "know nothing of that choice" in text


def test_ranks_keep_the_floors_and_name_the_tasks_without_them(
    changed: Callable[..., list[StorePage]],
) -> None:
    def without_floors(content: dict[str, Any]) -> None:
        if content["task"] == "lesion":
            content["models"] = [each for each in content["models"] if each["kind"] == "backbone"]
            content["comparisons"] = []

    pages = changed(without_floors, tasks=(*FEW, "lesion"))
    ranks = pages[0].ranks
    assert ranks.tasks == FEW
    assert {"clinical", "random", "mae"} <= set(ranks.ranks)
    assert ranks.tasks_left_out == ("lesion",)
    (table,) = tables_of(pages, "ranks")
    assert any("Not ranked over: Lesion" in line for line in table.lines)
    assert any("share subjects" in line for line in table.lines)


def test_a_floor_by_a_protocol_of_its_own_stands_in_the_overview(
    changed: Callable[..., list[StorePage]],
) -> None:
    def with_svm(content: dict[str, Any]) -> None:
        best = json.loads(json.dumps(_row(content, "pca"))) | {"protocol": "svm"}
        best["scores"]["auroc" if content["kind"] == "binary" else "r2"]["value"] = 0.999
        content["models"].append(best)
        for pair in content["comparisons"]:
            pair["b"] = "pca" if pair["b"] == "clinical" else pair["b"]

    pages = changed(with_svm)
    (table,) = tables_of(pages, "scores")
    cell = cell_of(table, "Raw voxels, PCA, RBF-SVM", "Stroke")
    assert (cell.text, cell.is_best) == ("0.999", True)
    assert cell_of(table, "Raw voxels, PCA", "Stroke").text != "0.999"
    pages = changed(lambda content: with_svm(content) if content["task"] == "stroke" else None)
    (table,) = tables_of(pages, "scores")
    assert cell_of(table, "Raw voxels, PCA, RBF-SVM", "Copd").text == "\N{EM DASH}"


def test_calibration_stands_beside_what_chance_alone_makes(
    changed: Callable[..., list[StorePage]],
) -> None:
    def add(content: dict[str, Any]) -> None:
        for row in content["models"]:
            for when in ("before", "after"):
                if row["calibration"]:
                    row["calibration"][when]["ece_by_chance"] = 0.1234

    pages = changed(add)
    (table,) = tables_of(pages, "calibration", "stroke")
    assert cell_of(table, "MAE, tiny", "ECE").under == (
        "by chance 0.123 \N{RIGHTWARDS ARROW} 0.123",
    )
    assert those(csv_rows(pages), metric="ece_by_chance.before", value="0.1234")


def test_coverage_of_sets_has_an_interval_and_endless_sets_a_reason(
    changed: Callable[..., list[StorePage]],
) -> None:
    def endless(content: dict[str, Any]) -> None:
        for row in content["models"]:
            if row["conformal"]:
                row["conformal"] |= {"coverage": 0.9, "n": 40, "mean_size": None}

    pages = changed(endless)
    (table,) = tables_of(pages, "conformal", "stroke")
    assert cell_of(table, "MAE, tiny", "Coverage").under == ("[77%, 96%]",)
    size = cell_of(table, "MAE, tiny", "Mean size")
    assert size.text == "\N{EM DASH}"
    assert "too few subjects" in size.notes[0]
    (row,) = those(
        csv_rows(pages), task="stroke", model="mae", protocol="linear", section="conformal",
        metric="conformal_0.9.coverage",
    )  # fmt: skip
    assert (row["low"][:4], row["high"][:4], row["method"]) == ("0.76", "0.96", "Wilson")


def test_the_interval_of_a_share_is_wilsons() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for count, n in ((36, 40), (0, 7), (7, 7), (190, 200)):
        wanted = proportion_confint(count, n, method="wilson")
        np.testing.assert_allclose(share_interval(count / n, n), wanted, atol=1e-12)
    assert share_interval_text(1.0, 40) == "[91%, 100%]"
    assert share_interval_text(0.0, 40) == "[0%, 9%]"


def test_the_overview_explains_what_covers_means(tmp_path: Path) -> None:
    table = tables_of(pages_of(make_store(tmp_path / "demo", tasks=FEW)), "scores")[0]
    assert any("covers 93%" in cell.under for cell in table.cells)
    assert any(line.startswith("covers: how often") for line in table.lines)


def test_sensitivity_says_which_specificity_was_reached(
    changed: Callable[..., list[StorePage]],
) -> None:
    def reached(content: dict[str, Any]) -> None:
        if content["kind"] == "binary":
            _row(content, "mae")["scores"]["sensitivity_at_90_specificity"]["specificity"] = 0.731

    pages = changed(reached)
    (table,) = tables_of(pages, "scores", "stroke")
    cell = cell_of(table, "MAE, tiny", "Sensitivity at 90% specificity")
    assert "at specificity 0.731" in cell.under
    assert any("takes the threshold as given" in line for line in table.lines)
    assert those(csv_rows(pages), metric="specificity_reached", value="0.731", model="mae")


def test_labels_say_how_many_have_them(changed: Callable[..., list[StorePage]]) -> None:
    def counted(content: dict[str, Any]) -> None:
        for row in content["models"]:
            row["by_output"]["stroke"] |= {"n": 37, "positives": 12}

    pages = changed(counted, tasks=("diseases",))
    table = tables_of(pages, "outputs", "diseases")[0]
    assert "12 of 37 positive" in cell_of(table, "MAE, tiny", "stroke").under
    found = those(csv_rows(pages), section="outputs", model="mae", setting="output = stroke")
    assert {(row["n"], row["positives"]) for row in found} == {("37", "12")}


def test_a_comparison_without_an_interval_says_why(
    changed: Callable[..., list[StorePage]],
) -> None:
    def unmoved(content: dict[str, Any]) -> None:
        gone = dict.fromkeys(("low", "high", "p_delong", "detectable"))
        content["comparisons"][0] |= gone | {"reason": "no draw moved it"}
        content["num_permutations"] = 20

    pages = changed(unmoved)
    (table,) = tables_of(pages, "comparisons", "stroke")
    cell = cell_of(table, "MAE, tiny less DINO, tiny", "Difference")
    assert cell.notes == ("no draw moved it",)
    # 18 comparisons, and no permutation p below 1/21: nothing could be found.
    assert any("20 permutations" in line and "0.857" in line for line in table.lines)


def test_few_shot_names_the_protocol_that_chose_its_reference(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=FEW))
    (table,) = tables_of(pages, "few_shot.fraction", "stroke")
    lines = " ".join(table.lines)
    assert "the floor that is strongest by the linear probe (Clinical columns)" in lines
    assert "All labels are one training set" in lines


def test_dice_says_whom_it_is_over(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=("lesion",)))
    (table,) = tables_of(pages, "scores", "lesion")
    assert any("neither mask" in line for line in table.lines)


def test_every_word_of_a_table_is_explained_once(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo"))
    words = dict(glossary(pages))
    assert {"Linear probe", "k-NN", "AUROC", "C-index", "Logit DeLong", "BCa bootstrap"} <= set(
        words
    )
    assert all(text.endswith(".") for text in words.values())
    assert "RBF-SVM" not in words  # not in this report
    for page in (html_page(pages), markdown_page(pages)):
        assert page.count(words["BCa bootstrap"]) == 1


def test_no_text_of_a_figure_leaves_it_or_runs_into_the_next() -> None:
    bins = (Bin(0.1, 0.2, 3), Bin(0.9, 0.7, 3))
    long = "random initialisation of a network with a very long name, seed 1"
    svg = reliability_svg([Panel(long, bins, bins)] * MOST_PANELS)
    titles = re.findall(r'text-anchor="start">([^<]*)<', svg)
    assert len(titles) == MOST_PANELS
    assert all(title.endswith("\N{HORIZONTAL ELLIPSIS}") and len(title) < 30 for title in titles)
    (at,) = re.findall(
        r'<text x="([\d.]+)"[^>]*>100%<', risk_coverage_svg([Risk([1], [0.2], False)])
    )
    assert float(at) + 4 * 7 / 2 + 2 <= WIDTH  # four letters of 12 pixels, centred


def test_the_reliability_figure_says_how_few_stand_in_a_bin(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=FEW))
    (task,) = [part.task for part in pages[0].tasks if part.task.name == "stroke"]
    found = reliability_plot(pages[0].content, task)
    assert found is not None
    assert "equal numbers of subjects, 4 subjects each" in found.caption
    assert "MAE, tiny; DINO, tiny" in found.caption
    risk = risk_plot(pages[0].content, task)
    assert risk is not None
    assert "error rate" in risk.caption


def test_the_measured_coverage_is_printed(tmp_path: Path) -> None:
    table = coverage_table()
    assert table is not None
    by_method = {group.title: group.rows for group in table.groups}
    shown = by_method["Logit DeLong, the one shown"]
    assert [row.head.text for row in shown] == ["0.70", "0.80", "0.90"]
    cells = [cell for cell in read() if (cell.metric, cell.method) == ("auroc", "logit DeLong")]
    wanted = np.mean([cell.coverage for cell in cells if (cell.n, cell.value) == (50, 0.9)])
    assert shown[2].cells[0].text == f"{100 * wanted:.1f}%"
    scans = by_method["Percentile bootstrap of scans, as if each were a subject"]
    assert all(float(row.cells[2].text[:-1]) < 90 for row in scans)
    for page in (html_page, markdown_page):
        text = page(pages_of(make_store(tmp_path / page.__name__, tasks=FEW)))
        assert text.count("How often a 95% interval of an AUROC holds the truth") >= 1
