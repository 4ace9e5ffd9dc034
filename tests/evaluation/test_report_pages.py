"""What stands in the files of a report: every number, its source, its warnings, its reason."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation.reporting.files import _rounded, json_text
from evaluation.reporting.layout import StorePage
from evaluation.reporting.pages import html_page, markdown_page
from evaluation.reporting.tables.table import WARNING, Table
from evaluation.storing import store
from foundation.metrics.by_name import METRICS_OF
from tests.evaluation.report_reading import Rows, cell_of, csv_rows, pages_of, tables_of, those
from tests.evaluation.report_store import MODELS, TASKS, make_store

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


class _Html(HTMLParser):
    """Open tags, ids and addresses of a page."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        named = ("src", "href", "xlink:href", "action", "data")
        self.addresses += [value or "" for name, value in attrs if name in named]
        if tag == "img" and not given.get("alt"):
            self.unlabelled.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


def test_page_is_well_formed_and_asks_for_nothing(html: str) -> None:
    page = _Html()
    page.feed(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "iframe"}
    assert page.unlabelled == []
    outside = [one for one in page.addresses if not one.startswith(("#", "data:image/png;base64,"))]
    assert outside == []
    inside = {one[1:] for one in page.addresses if one.startswith("#")}
    assert inside <= set(page.ids)
    assert not re.search(r"@import|url\((?!#)", html)
    assert "generated &lt;here&gt;" in html
    assert "nan" not in re.sub(r"base64,\S+", "", html).lower().split()


def test_every_table_has_as_many_cells_as_columns(html: str) -> None:
    for table in re.findall(r"<table.*?</table>", html, re.DOTALL):
        width = len(re.findall(r'<th scope="col"', table))
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("</thead>")[1], re.DOTALL):
            spans = [int(one) for one in re.findall(r'<td colspan="(\d+)"', row)]
            single = len(re.findall(r"<t[dh](?! colspan)[^>]*>", row))
            assert single + sum(spans) == width, row


def test_html_and_markdown_hold_the_same_tables(
    pages: list[StorePage], html: str, markdown: str
) -> None:
    numbered = [
        table
        for page in pages
        for block in (page.overview, *(one for part in page.tasks for one in part.blocks))
        for table in block.tables
        if table.number
    ]
    assert [table.number for table in numbered] == list(range(1, len(numbered) + 1))
    assert len(numbered) > 60
    for table in numbered:
        assert f"**Table {table.number}.** {table.title}\n" in markdown
        assert f'id="table-{table.number}"' in html
    text = re.sub(r"<[^>]+>", " ", html)
    for cell in tables_of(pages, "scores", "survival")[0].cells:
        assert cell.text in text
        assert cell.text in markdown


def test_every_kind_of_task_shows_its_metrics(demo: Path, rows: Rows) -> None:
    for task, kind in TASKS.items():
        stored = store.read_statistics(demo, task)
        scored = those(rows, task=task, section="scores", model="mae", split=stored["split"])
        assert {row["metric"] for row in scored} >= set(METRICS_OF[kind])
        for row in scored:
            if row["metric"] not in METRICS_OF[kind]:
                continue
            assert row["n"] == str(stored["n"])
            assert row["interval"] == "95%"
            assert row["method"] in ("logit DeLong", "BCa bootstrap")
            assert float(row["low"]) <= float(row["value"]) <= float(row["high"])


def test_a_number_is_the_same_in_store_csv_json_and_pages(
    demo: Path, pages: list[StorePage], rows: Rows, html: str, markdown: str
) -> None:
    (stored,) = [
        row
        for row in store.read_statistics(demo, "stroke")["models"]
        if (row["model"], row["protocol"]) == ("mae", "knn")
    ]
    value = stored["scores"]["auroc"]
    wanted = {"task": "stroke", "model": "mae", "protocol": "knn", "metric": "auroc"}
    (row,) = those(rows, **wanted, section="scores")
    for name in ("value", "low", "high"):
        assert float(row[name]) == pytest.approx(value[name], abs=1e-6)
    assert row["coverage"] == "0.931"
    tree = json.loads(json_text(pages))["stores"][0]["tasks"][0]["results"]["rows"]
    (kept,) = [one for one in tree if (one["model"], one["protocol"]) == ("mae", "knn")]
    assert kept["scores"][0]["value"] == float(row["value"])
    shown = f"{value['value']:.3f}"
    interval = f"[{value['low']:.3f}, {value['high']:.3f}]"
    assert f"| MAE, tiny | k-NN | 40 | **{shown}** {interval}, covers 93% |" in markdown or (
        f"| MAE, tiny | k-NN | 40 | {shown} {interval}, covers 93% |" in markdown
    )
    assert f'<span class="under">{interval}</span><span class="under">covers 93%</span>' in html


def test_each_row_of_the_csv_can_be_traced(demo: Path, pages: list[StorePage], rows: Rows) -> None:
    run, stored = store.read_run(demo), store.read_statistics(demo, "grade")
    found = those(rows, task="grade", section="scores", model="dino", protocol="linear")
    assert found
    for row in found:
        assert row["store_digest"] == run["digest"][:12]
        assert row["statistics_digest"] == stored["digest"][:12]
        assert row["predictions_digest"] == stored["predictions_digest"][:12]
        assert row["data_digest"] == "da" * 6
        assert row["model_digest"] == "ef" * 6
        assert (row["num_bootstraps"], row["seed"]) == ("500", "0")
        (table,) = tables_of(pages, "scores", "grade")
        assert row["table"] == str(table.number)


def test_every_value_that_is_missing_has_a_reason(pages: list[StorePage], rows: Rows) -> None:
    for section in ("scores", "outputs", "comparisons", "few_shot.shots", "few_shot.fraction"):
        found = those(rows, section=section)
        assert found
        for row in found:
            assert row["value"] or row["reason"], row
    for page in pages:
        for part in page.tasks:
            for table in (one for block in part.blocks for one in block.tables):
                dashes = [cell for cell in table.cells if cell.text == "\N{EM DASH}"]
                assert all(cell.notes and cell.notes[0] for cell in dashes), table.title


def test_provenance_names_every_table_and_every_digest(
    demo: Path, pages: list[StorePage], html: str, markdown: str
) -> None:
    (sources,) = tables_of(pages, "sources")
    rows = [row for group in sources.groups for row in group.rows]
    numbers = [int(row.head.text.removeprefix("Table ")) for row in rows]
    assert numbers == list(range(1, len(rows) + 1))
    assert all(
        row.head.link == f"table-{number}" for row, number in zip(rows, numbers, strict=True)
    )
    made = cell_of(sources, f"Table {tables_of(pages, 'scores', 'stroke')[0].number}", "Intervals")
    assert made.text.startswith("logit DeLong (AUROC); BCa bootstrap, 500 draws (AUPRC")
    (digests,) = tables_of(pages, "digests")
    shown = {cell.text for cell in digests.cells}
    run, stored = store.read_run(demo), store.read_statistics(demo, "lesion")
    assert {run["digest"], run["recipe_digest"], "da" * 32, "ef" * 32} <= shown
    assert {stored["digest"], stored["predictions_digest"]} <= shown
    for text in (html, markdown):
        assert stored["digest"] in text
        assert "store=demo task=lesion section=scores" in text


def test_the_filter_of_a_table_finds_its_rows(pages: list[StorePage], rows: Rows) -> None:
    (sources,) = tables_of(pages, "sources")
    for row in (one for group in sources.groups for one in group.rows):
        wanted = dict(part.split("=") for part in row.cells[-1].text.split(" "))
        found = [one for one in rows if all(one[name] == wanted[name] for name in wanted)]
        assert found, row.head.text


def test_an_overridden_check_warns_beside_every_number(
    pages: list[StorePage], rows: Rows, html: str, markdown: str
) -> None:
    reason = "leakage check overridden: scored subject in pretraining (3); scans of another visit"
    titles = {name: title for name, (_, title, _) in MODELS.items()}
    for table in [one for name in TASKS for one in _numbered_tables(pages, name)]:
        for group in table.groups:
            for row in group.rows:
                whose = titles["dino"] in row.head.text and "Shuffled" not in row.head.text
                warned = [cell for cell in row.cells if cell.warnings]
                if table.task != "cancer" or not whose:
                    assert not warned or table.section == "groups"
                    continue
                numbers = [
                    cell for cell in row.cells if re.match(r"[+\N{MINUS SIGN}<]?\d", cell.text)
                ]
                numbers = [cell for cell in numbers if cell.text not in ("40", "90%")]
                assert numbers
                assert all(cell.warnings == (reason,) for cell in numbers), table.title
    overview = tables_of(pages, "scores")[0]
    assert cell_of(overview, "DINO, tiny", "Cancer").warnings == (reason,)
    assert not cell_of(overview, "DINO, tiny", "Stroke").warnings
    assert reason in html
    assert f"({WARNING}" in markdown
    found = those(rows, task="cancer", section="scores", model="dino")
    assert {row["warning"] for row in found} == {reason}
    assert not any(row["warning"] for row in those(rows, task="stroke", section="scores"))
    pair = those(rows, task="cancer", section="comparisons", model="mae", against="dino")
    assert all(row["warning"] == reason for row in pair)


def _numbered_tables(pages: list[StorePage], task: str) -> list[Table]:
    blocks = [block for page in pages for part in page.tasks for block in part.blocks]
    return [
        table for block in blocks for table in block.tables if table.task == task and table.number
    ]


def test_leakage_checks_say_all_four_answers(pages: list[StorePage], markdown: str) -> None:
    wanting, passed = tables_of(pages, "checks")
    statuses = [
        [row.head.text for group in table.groups for row in group.rows]
        for table in (wanting, passed)
    ]
    assert statuses == [["overridden", "unknown"], ["passed"] * len(TASKS)]
    assert [block.is_folded for block in pages[0].checks] == [False, True]
    assert "1 of 13 failed and were overridden: their numbers carry a warning mark." in markdown
    assert "1 of 13 could not be answered." in markdown


def test_a_failed_check_is_loud(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "demo", tasks=FEW)
    leakage = store.read_leakage(folder)
    leakage["checks"][0] |= {"status": "failed", "count": 3}
    store.write_leakage(folder, leakage)
    text = markdown_page(pages_of(folder))
    assert "1 of 13 leakage checks failed: do not trust the scores they belong to." in text
    assert text.index("**failed**") < text.index("**overridden** |")
    assert "leakage check failed: subject in two splits (3)" in text


def test_a_foreign_backbone_says_that_its_overlap_is_unknown(
    pages: list[StorePage], markdown: str
) -> None:
    overview = tables_of(pages, "scores")[0]
    heads = {row.head.text: row.head for group in overview.groups for row in group.rows}
    assert "unknown" in heads["ViT-S/16, 2D slices"].notes[0]
    assert not heads["MAE, tiny"].notes
    assert "Overlap with the tasks is unknown" in markdown


def test_a_rank_and_the_tree_carry_the_warning_too(pages: list[StorePage], rows: Rows) -> None:
    warned = {row["model"] for row in those(rows, section="ranks") if row["warning"]}
    assert warned == {"dino"}
    tasks = json.loads(json_text(pages))["stores"][0]["tasks"]
    results = {task["name"]: task["results"] for task in tasks}
    for name in ("rows", "comparisons"):
        found = [one for one in results["cancer"][name] if one["warnings"]]
        assert found
        assert all("dino" in (one.get("model"), one.get("a"), one.get("b")) for one in found)
        assert not any(one["warnings"] for one in results["stroke"][name])


def test_small_numbers_keep_their_digits() -> None:
    assert _rounded([0.123456789, 3.21987e-9, 1e-17, -2.5e-5]) == [0.123457, 3.22e-9, 0.0, -2.5e-5]
