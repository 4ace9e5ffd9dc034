"""Selection rules: what is taken, what is refused, and the words of the refusal."""

from typing import Any

import pytest

from recipes.load import RecipeError, parse
from shards.sources.select import Selection, refusal_by_header, refusal_by_voxels

HEADER = {
    "modality": "CT",
    "body_part": "CHEST",
    "description": "THORAX  3.0 B30f Mr Smith",
    "slice_thickness_mm": 3.0,
}


def header(rules: dict[str, Any], **changes: Any) -> str | None:
    said = {**HEADER, **changes}
    return refusal_by_header(parse(rules, Selection, where="recipe"), **said)


def voxels(rules: dict[str, Any], quality: float = 0.8) -> str | None:
    return refusal_by_voxels(
        parse(rules, Selection, where="recipe"),
        shape=(30, 256, 200),
        spacing_mm=(4.0, 0.7, 0.75),
        quality=quality,
    )


def test_without_rules_everything_is_taken() -> None:
    assert header({}) is None
    nothing = dict.fromkeys(HEADER)
    assert header({}, **nothing) is None
    assert voxels({}, quality=0.0) is None


@pytest.mark.parametrize(
    "rules",
    [
        {"modalities": ["MR", "CT"]},
        {"body_parts": ["Chest"]},
        {"description": r"^thorax\s+3"},
        {"description_not": "scout|localiser"},
        {"min_slice_thickness_mm": 3, "max_slice_thickness_mm": 3},
    ],
)
def test_a_header_that_fits_is_taken(rules: dict[str, Any]) -> None:
    assert header(rules) is None


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"modalities": ["MR"]}, "not selected: modality"),
        ({"body_parts": ["HEAD", "NECK"]}, "not selected: body part"),
        ({"description": "lung"}, "not selected: series description"),
        ({"description_not": "b30F"}, "not selected: series description is excluded"),
        (
            {"max_slice_thickness_mm": 2.5},
            "not selected: 3 mm slices, the recipe takes at most 2.5",
        ),
        ({"min_slice_thickness_mm": 5}, "not selected: 3 mm slices, the recipe takes at least 5"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(rules: dict[str, Any], reason: str) -> None:
    assert header(rules) == reason


@pytest.mark.parametrize(
    ("rules", "silent", "reason"),
    [
        ({"modalities": ["MR"]}, "modality", "not selected: unknown modality"),
        ({"body_parts": ["HEAD"]}, "body_part", "not selected: unknown body part"),
        ({"description": "."}, "description", "not selected: unknown series description"),
        ({"description_not": "x"}, "description", "not selected: unknown series description"),
        (
            {"max_slice_thickness_mm": 9},
            "slice_thickness_mm",
            "not selected: unknown slice thickness",
        ),
    ],
)
def test_what_a_rule_needs_and_nobody_tells_is_refused(
    rules: dict[str, Any], silent: str, reason: str
) -> None:
    assert header(rules, **{silent: None}) == reason


def test_no_reason_holds_header_text() -> None:
    rules = {"modalities": ["MR"], "description": "knee", "description_not": "Smith"}
    for name in rules:
        reason = header({name: rules[name]})
        assert reason is not None
        assert "smith" not in reason.lower()


def test_voxels_that_fit_are_taken() -> None:
    rules = {
        "min_shape": [30, 256, 200],
        "max_shape": [30, 256, 200],
        "min_extent_mm": [120, 179, 150],
        "min_quality": 0.8,
    }
    assert voxels(rules) is None


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"min_shape": [31, 1, 1]}, "30 x 256 x 200 voxels, the recipe takes at least 31 x 1 x 1"),
        (
            {"max_shape": [512, 255, 512]},
            "30 x 256 x 200 voxels, the recipe takes at most 512 x 255 x 512",
        ),
        (
            {"min_extent_mm": [100, 100, 151]},
            "120 x 179.2 x 150 mm, the recipe takes at least 100 x 100 x 151",
        ),
        ({"min_quality": 0.81}, "quality 0.800, the recipe takes at least 0.81"),
    ],
)
def test_voxels_that_do_not_fit_are_refused(rules: dict[str, Any], reason: str) -> None:
    assert voxels(rules) == f"not selected: {reason}"


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"description": "thorax("}, "description.*not a regular expression"),
        ({"description_not": ""}, "description_not"),
        ({"body_parts": ["CHST"]}, "unknown body part 'CHST'; did you mean CHEST"),
        ({"modalities": []}, "modalities"),
        ({"modalities": ["XR"]}, "modalities"),
        ({"min_slice_thickness_mm": 5, "max_slice_thickness_mm": 3}, "takes nothing"),
        ({"min_shape": [9, 9, 9], "max_shape": [99, 8, 99]}, "takes nothing"),
        ({"min_shape": [0, 9, 9]}, "min_shape"),
        ({"min_quality": 1.5}, "min_quality"),
        ({"min_quallity": 0.5}, "did you mean 'min_quality'"),
    ],
)
def test_a_rule_that_cannot_be_used_is_an_error_of_the_recipe(
    rules: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        parse(rules, Selection, where="recipe")
