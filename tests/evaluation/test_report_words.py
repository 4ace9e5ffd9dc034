"""How the report writes numbers, draws curves and pictures."""

import base64
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from evaluation.reporting.figures.chart import Axis, axis, colours
from evaluation.reporting.figures.curves import (
    Line,
    Risk,
    few_shot_svg,
    loss_svg,
    risk_coverage_svg,
    running_median,
)
from evaluation.reporting.figures.pictures import contact_sheet, picture
from evaluation.reporting.figures.reliability import MOST_PANELS, Panel, reliability_svg
from evaluation.reporting.numbers import (
    interval,
    number,
    p_sentence,
    p_value,
    percent,
    plural,
    quantity,
    settings,
    signed,
)
from evaluation.reporting.pages import markdown_row
from evaluation.reporting.results import Bin
from evaluation.reporting.titles import constant_score, metric_title, protocol_title
from evaluation.reporting.words import counted, provenance_value

MINUS = "\N{MINUS SIGN}"


def test_numbers_have_three_digits_and_the_digits_of_their_interval() -> None:
    assert number(0.81234) == "0.812"
    assert number(-0.0001) == "0.000"
    assert number(-0.5) == f"{MINUS}0.500"
    assert number(3412.4) == "3412"
    assert number(98.76, 101.2) == "98.8"
    assert interval(87.123, 112.5, 98.76) == "[87.1, 112.5]"
    assert interval(-0.2, 0.1, 0.0) == f"[{MINUS}0.200, 0.100]"
    assert interval(None, 0.1) == interval(0.1, None) == ""
    assert signed(0.1) == "+0.100"
    assert signed(-0.1) == f"{MINUS}0.100"


def test_small_p_values_are_only_called_small() -> None:
    assert p_value(0.0004) == "<0.001"
    assert p_value(0.0126) == "0.013"
    assert p_sentence(0.0004) == "p < 0.001"
    assert p_sentence(0.2) == "p = 0.200"


def test_shares_near_one_are_not_rounded_up_to_all() -> None:
    assert percent(0.931) == "93%"
    assert percent(0.997) == "99.7%"
    assert percent(1.0) == "100%"


def test_provenance_values_have_units() -> None:
    assert provenance_value("hours", 0.0226) == "1.4 min"
    assert provenance_value("hours", 12.25) == "12.2 h"
    assert provenance_value("method", "mae") == "MAE"
    assert provenance_value("scans_seen", 9600) == "9,600"


def test_quantities_settings_and_counts() -> None:
    assert quantity(12345) == "12,345"
    assert quantity(0.123456) == "0.1235"
    assert quantity("cpu") == "cpu"
    assert settings({"features": "cls", "C": 10.0**-4.5}) == "features = cls, C = 3.16e-05"
    assert plural(1, "task") == "1 task"
    assert plural(1200, "task") == "1,200 tasks"
    assert counted(12, "survival") == "12 events"
    assert counted(12, "binary") == "12 positive"


def test_titles_of_metrics_and_protocols() -> None:
    assert metric_title("balanced_accuracy") == "Balanced accuracy"
    assert metric_title("mean_average_precision") == "mAP"
    assert metric_title("of_a_later_version") == "Of a later version"
    assert protocol_title("a_later_one") == "a later one"
    assert protocol_title(None) == "all"
    assert (constant_score("auroc"), constant_score("r2"), constant_score("dice")) == (0.5, 0, None)


def test_a_cell_of_markdown_stays_one_cell() -> None:
    assert markdown_row(["a | b\nc", "d"]) == "| a \\| b c | d |"


def test_running_median_ignores_a_spike() -> None:
    values = np.ones(100)
    values[50] = 1000.0
    assert running_median(values.tolist()) == pytest.approx(np.ones(100))


def test_an_axis_ends_at_round_ticks_around_its_values() -> None:
    found = axis([0.437, 0.912], title="AUROC")
    assert [text for _, text in found.ticks] == ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
    assert (found.low, found.high) == pytest.approx((0.4, 1.0))
    assert [text for _, text in axis([0.0, 0.9], title="").ticks][:2] == ["0.0", "0.2"]
    assert [text for _, text in axis([0.0, 0.12], title="").ticks][:2] == ["0.000", "0.025"]
    assert [text for _, text in axis([0, 9000], title="").ticks][-1] == "10000"
    same = axis([3.0, 3.0], title="")
    assert same.low < 3.0 < same.high


def test_a_log_axis_spaces_by_ratio() -> None:
    found = Axis(1, 16, (), "shots", is_log=True)
    assert [found.share(one) for one in (1, 4, 16)] == pytest.approx([0, 0.5, 1])


def _points(svg: str, *, tag: str = "polyline") -> list[list[tuple[float, float]]]:
    """Of every line of a drawing; parsing shows that it is well-formed, too."""
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    return [
        [tuple(map(float, point.split(","))) for point in each.attrib["points"].split()]  # type: ignore[misc]
        for each in root.iter(f"{space}{tag}")
    ]


def test_few_shot_curves_rise_and_bands_enclose_them() -> None:
    line = Line([1, 4, 16], [0.5, 0.6, 0.9], [0.4, 0.5, 0.8], [0.6, 0.7, 1.0], False)
    svg = few_shot_svg(
        [line, line._replace(is_dashed=True)], unit="shots", metric="AUROC <", chance=0.5
    )
    first, second = _points(svg)
    assert first == second
    (x1, y1), (x4, y4), (x16, y16) = first
    assert x4 - x1 == pytest.approx(x16 - x4, abs=0.2)
    assert y1 > y4 > y16  # up is a smaller y
    assert (y1 - y4) / (y4 - y16) == pytest.approx(1 / 3, abs=0.01)
    band = _points(svg, tag="polygon")[0]
    assert len(band) == 6
    assert band[0][1] < y1 < band[-1][1]
    assert svg.count("<circle") == 6
    assert 'class="line dashed"' in svg
    assert "AUROC &lt;" in svg
    for colour in ("var(--series-1)", "var(--series-2)"):
        assert colour in svg
    assert not re.search(r"#[0-9a-f]{3}|font-family|\bid=", svg)


def test_fractions_are_written_as_shares() -> None:
    line = Line([0.05, 0.25, 1.0], [0.5, 0.6, 0.9], [0.4, 0.5, 0.8], [0.6, 0.7, 1.0], False)
    svg = few_shot_svg([line], unit="fraction", metric="R²", chance=None)
    for text in (">5%<", ">25%<", ">100%<"):
        assert text in svg
    assert 'class="level"' not in svg


def test_risk_begins_at_zero_and_negative_risk_is_inside() -> None:
    (line,) = _points(risk_coverage_svg([Risk([0.1, 1.0], [0.0, 0.3], False)]))
    assert line[0][1] > line[1][1]
    (below,) = _points(risk_coverage_svg([Risk([0.1, 1.0], [-0.2, 0.3], False)]))
    assert max(y for _, y in below) <= 12 + 240


def test_reliability_has_a_panel_per_model_and_one_size() -> None:
    bins = [Bin(0.1, 0.2, 5), Bin(0.9, 0.7, 5)]
    one, four = (reliability_svg([Panel("A & B", bins, bins)] * count) for count in (1, 4))
    assert len(_points(one)) == 2
    assert len(_points(four)) == 2 * MOST_PANELS
    box = re.compile(r'viewBox="[^"]*"')
    assert box.findall(one) == box.findall(four)
    (x1, y1), (x2, y2) = _points(one)[0]
    assert (x2 - x1) / 170 == pytest.approx(0.8, abs=0.01)
    assert (y1 - y2) / 170 == pytest.approx(0.5, abs=0.01)
    assert "A &amp; B" in one


def test_loss_is_drawn_twice() -> None:
    raw, smooth = _points(loss_svg([0, 1, 2], [3.0, 2.0, 1.0]))
    assert len(raw) == len(smooth) == 3
    assert raw[0][1] < raw[2][1]


def test_colours_come_again_after_ten() -> None:
    assert len(set(colours(10))) == 10
    assert colours(11)[10] == colours(1)[0]


def _pixels(address: str) -> np.ndarray:
    """The grey values of a PNG file that is written without filters."""
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    width, height, depth, colour = struct.unpack(">2I2B", data[16:26])
    assert (depth, colour) == (8, 0)
    start = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8)
    return rows.reshape(height, width + 1)[:, 1:]


def test_picture_keeps_its_axes_and_its_grey_values() -> None:
    array = np.array([[0.0, 0.5, 1.0], [1.0, np.nan, 2.0]], dtype=np.float32)
    address = picture(array, size=6)
    assert address == picture(array, size=6)
    pixels = _pixels(address)
    assert pixels.shape == (4, 6)
    assert pixels[::2, ::2].tolist() == [[0, 128, 255], [255, 0, 255]]
    assert (pixels[1::2, 1::2] == pixels[::2, ::2]).all()


def test_pictures_are_what_a_library_reads() -> None:
    import io

    from PIL import Image

    array = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    address = picture(array, size=4)
    file = io.BytesIO(base64.b64decode(address.split(",")[1]))
    with Image.open(file) as found:
        found.load()
        assert np.asarray(found).tolist() == np.round(255 * array).tolist()


def test_contact_sheet_groups_by_name() -> None:
    tiny = np.zeros((2, 3), dtype=np.float32)
    sheet = contact_sheet({"a__1__0": tiny, "a__old__1": tiny, "b__all__0": tiny})
    assert [(group, [label for label, _ in members]) for group, members in sheet] == [
        ("a", ["label 1", "old"]),
        ("b", ["all"]),
    ]
