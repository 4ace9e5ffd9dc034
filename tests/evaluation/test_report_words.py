"""How the report writes numbers and draws."""

import numpy as np
import pytest

from evaluation.reporting.figures import Line, few_shot_svg, loss_svg, picture, running_median
from evaluation.reporting.pages import forest
from evaluation.reporting.tables import ModelScores, Score
from evaluation.reporting.words import (
    Footnotes,
    interval,
    number,
    provenance_value,
    quantity,
    settings,
    signed,
    table_cell,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (-0.12345, "\N{MINUS SIGN}0.123"),
        (-0.0001, "0.000"),
        (0.0, "0.000"),
        (9.99949, "9.999"),
        (12.3456, "12.35"),
        (3412.74, "3413"),
        (-3412.74, "\N{MINUS SIGN}3413"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_a_value_and_its_interval_have_the_same_digits() -> None:
    assert number(98.76, 90.0, 112.5) == "98.8"
    assert interval(90.0, 112.5, 98.76) == "[90.0, 112.5]"
    assert interval(-0.2, 0.1, 0.0) == "[\N{MINUS SIGN}0.200, 0.100]"
    assert signed(0.1) == "+0.100"
    assert signed(-0.1) == "\N{MINUS SIGN}0.100"


def test_provenance_values_have_units() -> None:
    assert provenance_value("hours", 0.0226) == "1.4 min"
    assert provenance_value("hours", 12.25) == "12.2 h"
    assert provenance_value("method", "mae") == "MAE"
    assert provenance_value("scans_seen", 9600) == "9,600"


def test_quantities_and_settings() -> None:
    assert quantity(12345) == "12,345"
    assert quantity(0.123456) == "0.1235"
    assert quantity("cpu") == "cpu"
    assert settings({"features": "cls", "C": 10.0**-4.5}) == "features = cls, C = 3.16e-05"


def test_a_cell_stays_one_cell() -> None:
    assert table_cell("a | b\nc") == "a \\| b c"


def test_footnotes_letter_each_reason_once() -> None:
    notes = Footnotes()
    assert [notes.mark(reason) for reason in ("x", "y", "x")] == ["a", "b", "a"]
    assert list(notes) == [("a", "x"), ("b", "y")]


def _row(value: float | None, low: float | None, high: float | None) -> ModelScores:
    score = Score("r2", value, low, high, 9, None, reason=None if value else "why")
    return ModelScores("m", "floor", "linear", "val", (score,))


def test_forest_puts_rows_on_one_scale_with_chance_and_cuts_the_far_end() -> None:
    rows = [_row(0.5, 0.25, 0.75), _row(None, None, None), _row(-20.0, -30.0, 0.0)]
    first, none, last = forest(rows)
    assert none is None
    assert first == {"chance": 40.0, "low": 60.0, "value": 80.0, "high": 100.0}
    assert last == {"chance": 40.0, "low": 0.0, "value": 0.0, "high": 40.0}
    assert forest([_row(None, None, None)]) == [None]


def test_running_median_ignores_a_spike() -> None:
    values = np.ones(100)
    values[50] = 1000.0
    assert running_median(values.tolist()) == pytest.approx(np.ones(100))


def test_drawings_have_the_colours_of_the_page_and_the_same_bytes() -> None:
    line = Line([1, 2, 4], [0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.6, 0.7, 0.8], False)
    text = few_shot_svg([line, line._replace(is_floor=True)], name="stroke")
    assert text == few_shot_svg([line, line._replace(is_floor=True)], name="stroke")
    for colour in ("var(--ink)", "var(--line)", "var(--series-1)", "var(--series-2)"):
        assert colour in text
    assert "#0a0b" not in text
    assert text.startswith("<svg")
    assert text.endswith("</svg>")
    assert 'id="stroke-figure_1"' in text
    assert "font-family" not in text
    assert loss_svg([0, 1, 2], [3.0, 2.0, 1.0], name="a").count("<svg") == 1


def test_picture_keeps_its_axes_and_its_grey_values() -> None:
    import base64
    import io

    from matplotlib import image

    array = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 2.0]], dtype=np.float32)
    address = picture(array, size=6)
    assert address == picture(array, size=6)
    pixels = image.imread(io.BytesIO(base64.b64decode(address.split(",")[1])))
    assert pixels.shape[:2] == (4, 6)
    assert pixels[::2, ::2, 0] == pytest.approx(np.clip(array, 0, 1), abs=1 / 255)
