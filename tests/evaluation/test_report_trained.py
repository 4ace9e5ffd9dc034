"""What the report says of networks that were trained on the labels: rows, ceiling, curve."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.reporting import picks
from evaluation.reporting.family import family_size
from evaluation.reporting.files import json_text
from evaluation.reporting.glossary import glossary
from evaluation.reporting.layout import StorePage
from evaluation.reporting.pages import html_page, markdown_page
from evaluation.reporting.plots import fraction_plot
from evaluation.reporting.reading import read_content
from evaluation.reporting.tables.fractions import fraction_table
from tests.evaluation.report_reading import cell_of, csv_rows, pages_of, tables_of, those
from tests.evaluation.report_store import make_store
from tests.evaluation.report_trained import SIZES, make_trained_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trained_store(tmp_path_factory.mktemp("stores") / "demo")


@pytest.fixture(scope="module")
def pages(folder: Path) -> list[StorePage]:
    return pages_of(folder)


def test_trained_rows_stand_between_backbones_and_floors(pages: list[StorePage]) -> None:
    table = next(one for one in tables_of(pages, "scores") if one.task is None)
    titles = [group.title for group in table.groups]
    assert titles[:3] == ["Frozen backbones", "Trained on the labels", "Floors"]
    heads = [row.head.text for row in table.groups[1].rows]
    assert heads == ["fine-tuned mae", "supervised from scratch"]
    assert cell_of(table, "supervised from scratch", "Volume").notes == (
        "this fine-tuning has no finished part for this task",
    )
    notes = cell_of(table, "supervised from scratch", "Stroke").notes
    assert not any("not linear probe" in note for note in notes)


def test_the_ceiling_is_no_floor_and_no_backbone(pages: list[StorePage]) -> None:
    (task,) = [one for one in pages[0].content.tasks if one.name == "stroke"]
    assert task.results.ceilings == {"scratch"}
    floor, top = picks.verdict(task.results), picks.distance_to_ceiling(task.results)
    assert floor is not None
    assert top is not None
    assert (floor.a, floor.b, top.a, top.b) == ("mae", "clinical", "mae", "scratch")
    assert top.protocol == "linear"
    best = picks.strongest(task.results.rows, "backbone")
    assert best is not None
    assert best.kind == "backbone"
    volume = pages[0].content.tasks[2].results
    assert (volume.ceilings, picks.distance_to_ceiling(volume)) == (set(), None)


def test_overview_tells_the_distance_to_the_ceiling(pages: list[StorePage]) -> None:
    overview = next(one for one in tables_of(pages, "scores") if one.task is None)
    group = overview.groups[-1]
    assert group.title == "Against the floors and the ceiling"
    floors, ceiling = group.rows
    assert floors.head.text == "Best backbone less best floor"
    assert ceiling.head.text == "Best backbone less supervised ceiling"
    at = [column.title for column in overview.columns[1:]].index("Stroke")
    assert ceiling.cells[at].text == "\N{MINUS SIGN}0.120"
    assert ceiling.cells[at].notes == ("MAE, tiny less supervised from scratch",)
    assert "[\N{MINUS SIGN}0.200, \N{MINUS SIGN}0.030]" in ceiling.cells[at].under
    other = [column.title for column in overview.columns[1:]].index("Volume")
    assert ceiling.cells[other].text == "\N{EM DASH}"


def test_a_store_without_a_ceiling_says_nothing_of_one(tmp_path: Path) -> None:
    pages = pages_of(make_store(tmp_path / "demo", tasks=("stroke",)))
    text = markdown_page(pages)
    assert "ceiling" not in text.lower()
    assert "Against the floors" in text
    assert not tables_of(pages, "fractions", "stroke")


def test_a_cross_validated_ceiling_is_of_several_networks(tmp_path: Path) -> None:
    tasks = ("sarcoma", "stroke")
    pages = pages_of(make_trained_store(tmp_path / "demo", tasks=tasks, trained=tasks))
    said = [
        any("one network a fold" in line for line in tables_of(pages, "scores", task)[0].lines)
        for task in tasks
    ]
    assert said == [True, False]


def test_comparisons_with_the_ceiling_stand_apart(pages: list[StorePage]) -> None:
    (table,) = tables_of(pages, "comparisons", "stroke")
    groups = {group.title: [row.head.text for row in group.rows] for group in table.groups}
    assert (
        "MAE, tiny less supervised from scratch"
        in (groups["Backbones against the supervised ceiling"])
    )
    others = groups["Backbones against each other"] + groups["Backbones against floors"]
    assert not any("scratch" in head for head in others)


def test_every_p_is_of_one_family(folder: Path, pages: list[StorePage]) -> None:
    content = read_content(folder)
    pairs = [one for task in content.tasks for one in task.results.all_comparisons]
    assert family_size([content]) == len(pairs) == 3 * 6 + 2 * 3 + 2 * 3
    adjusted = [one for task in pages[0].content.tasks for one in task.results.all_comparisons]
    assert all(one.p_holm is not None and one.p_holm >= (one.p or 0) for one in adjusted)
    ((of_share, *_),) = [
        task.results.fractions.comparisons
        for task in pages[0].content.tasks
        if task.name == "stroke" and task.results.fractions
    ]
    assert of_share.p_holm != of_share.p


def test_fraction_table(pages: list[StorePage]) -> None:
    (table,) = tables_of(pages, "fractions", "stroke")
    assert [column.title for column in table.columns[1:]] == [
        "5% of training", "20% of training", "100% of training"
    ]  # fmt: skip
    assert [column.under[0] for column in table.columns[1:]] == [
        "5 subjects", "18 subjects", "90 subjects"
    ]  # fmt: skip
    lines, pairs = table.groups
    assert [row.head.text for row in lines.rows] == ["fine-tuned mae", "supervised from scratch"]
    gone = lines.rows[1].cells[0]
    assert (gone.text, gone.notes) == (
        "\N{EM DASH}",
        ("one class only among the scored subjects",),
    )
    (row,) = pairs.rows
    assert row.head.text == "fine-tuned mae less supervised from scratch"
    assert [cell.text for cell in row.cells] == ["+0.290", "+0.260", "+0.100"]
    assert "say nothing of other training subjects" in table.lines[0]


def test_one_share_is_no_curve(pages: list[StorePage]) -> None:
    content = pages[0].content
    task = next(one for one in content.tasks if one.name == "stroke")
    found = task.results.fractions
    assert found is not None
    whole = tuple(
        replace(line, points=tuple(each for each in line.points if each.fraction == 1))
        for line in found.lines
    )
    alone = replace(task, results=replace(task.results, fractions=replace(found, lines=whole)))
    assert fraction_table(content, task) is not None
    assert fraction_table(content, alone) is None
    assert fraction_plot(content, alone) is None


def test_fraction_curve_is_drawn_over_training_subjects(pages: list[StorePage]) -> None:
    content = pages[0].content
    plot = fraction_plot(content, content.tasks[0])
    assert plot is not None
    assert [(key.title, key.is_dashed) for key in plot.legend] == [
        ("fine-tuned mae", False), ("supervised from scratch", True)
    ]  # fmt: skip
    assert plot.svg.count("<polyline") == 2
    # The point without a value is not drawn.
    assert plot.svg.count("<circle") == 2 * len(SIZES) - 1
    assert all(f">{size}</text>" in plot.svg for size in SIZES.values())
    assert "training subjects" in plot.svg
    assert fraction_plot(content, content.tasks[2]) is None


def test_every_number_is_in_the_csv(pages: list[StorePage]) -> None:
    rows = csv_rows(pages)
    points = those(rows, task="stroke", section="fractions", metric="auroc", model="tuned")
    assert [row["setting"] for row in points] == [
        f"fraction = {share:g}, training subjects = {size}" for share, size in SIZES.items()
    ]
    assert {(row["kind"], row["protocol"], row["n"]) for row in points} == {
        ("trained", "fine_tuned", "40")
    }
    (found,) = those(
        rows, task="stroke", section="fractions", metric="auroc.difference",
        setting="fraction = 0.2",
    )  # fmt: skip
    assert (found["model"], found["against"], found["value"]) == ("tuned", "scratch", "0.26")
    (table,) = tables_of(pages, "fractions", "stroke")
    assert found["table"] == str(table.number)
    assert those(rows, task="stroke", section="scores", model="scratch", metric="auroc")


def test_json_holds_the_curve(pages: list[StorePage]) -> None:
    text = json_text(pages)
    assert '"is_scratch": true' in text
    assert '"fraction": 0.05' in text


def test_ranks_are_of_backbones_and_floors(pages: list[StorePage]) -> None:
    assert {"tuned", "scratch"} & set(pages[0].ranks.ranks) == set()
    assert {"tuned", "scratch"} & set(pages[0].ranks.left_out) == set()
    assert "mae" in pages[0].ranks.ranks


def test_words_and_models(pages: list[StorePage]) -> None:
    terms = dict(glossary(pages))
    assert "trained from scratch on all labels" in terms["Supervised ceiling"]
    assert "Trained network" in terms
    html, text = html_page(pages), markdown_page(pages)
    for page in (html, text):
        assert "What fine-tuned mae is, in one line." in page
        assert "Weights that were trained" in page
        assert "which is such a choice too" in page
        assert "what was trained on the labels" in page
    assert "**fine-tuned mae**" in text
    # Its overlap with pretraining is unknown: it says so as a backbone does.
    (table,) = tables_of(pages, "scores", "stroke")
    cell = next(row.head for row in table.groups[1].rows if row.head.text == "fine-tuned mae")
    assert any("not disclosed" in note for note in cell.notes)
