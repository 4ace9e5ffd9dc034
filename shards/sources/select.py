"""Which scans of a source a recipe wants: by their header before pixels are read, then by voxels.

A refusal is a reason for the ledger: it names the rule and numbers, never what a header says.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from recipes.load import Section
from shards.dicom.facts import BODY_PARTS

REFUSED = "not selected: "

Shape = tuple[PositiveInt, PositiveInt, PositiveInt]
ExtentMm = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


def _known_body_part(name: str) -> str:
    """The name as the headers' allow-list writes it."""
    upper = name.upper()
    if upper in BODY_PARTS:
        return upper
    close = difflib.get_close_matches(upper, sorted(BODY_PARTS), n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted(BODY_PARTS))}"
    raise ValueError(f"unknown body part {name!r}; {hint}")


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return pattern


BodyPart = Annotated[str, AfterValidator(_known_body_part)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_compiles)]


class Selection(Section):
    """Of ``select:`` of a source. A rule that is not given takes everything.

    What a rule asks for and a scan does not tell refuses the scan.
    """

    modalities: list[Literal["CT", "MR", "PT", "OT"]] | None = Field(default=None, min_length=1)
    body_parts: list[BodyPart] | None = Field(default=None, min_length=1)
    description: Pattern | None = Field(
        default=None, description="found in the series description, whatever its case"
    )
    description_not: Pattern | None = Field(
        default=None, description="not found in the series description"
    )
    min_slice_thickness_mm: float | None = Field(default=None, gt=0)
    max_slice_thickness_mm: float | None = Field(default=None, gt=0)
    min_shape: Shape | None = Field(default=None, description="(d, h, w) voxels")
    max_shape: Shape | None = Field(default=None, description="(d, h, w) voxels")
    min_extent_mm: ExtentMm | None = Field(default=None, description="(d, h, w)")
    min_quality: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _takes_something(self) -> "Selection":
        low, high = self.min_slice_thickness_mm, self.max_slice_thickness_mm
        if low is not None and high is not None and low > high:
            raise ValueError("min_slice_thickness_mm exceeds max_slice_thickness_mm: takes nothing")
        if self.min_shape is not None and self.max_shape is not None:
            pairs = zip(self.min_shape, self.max_shape, strict=True)
            if any(least > most for least, most in pairs):
                raise ValueError("min_shape exceeds max_shape: takes nothing")
        return self


def refusal_by_header(
    selection: Selection,
    *,
    modality: str | None,
    body_part: str | None,
    description: str | None,
    slice_thickness_mm: float | None,
) -> str | None:
    """Why a recipe does not want a scan of which only the header was read; None if it does.

    Args:
        selection: The rules.
        modality, body_part, description, slice_thickness_mm: None where the scan does not tell.
    """
    rules = (
        _outside("modality", modality, selection.modalities),
        _outside("body part", body_part, selection.body_parts),
        _by_description(selection, description),
        _by_thickness(selection, slice_thickness_mm),
    )
    return next((REFUSED + reason for reason in rules if reason is not None), None)


def refusal_by_voxels(
    selection: Selection,
    *,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    quality: float,
) -> str | None:
    """Why a recipe does not want a scan that was read; None if it does.

    Args:
        selection: The rules.
        shape: (d, h, w) voxels.
        spacing_mm: (d, h, w).
        quality: Of :func:`shards.measure.quality.quality_score`.
    """
    extent_mm = [length * edge for length, edge in zip(shape, spacing_mm, strict=True)]
    rules = (
        _short(shape, selection.min_shape, unit="voxels"),
        _long(shape, selection.max_shape),
        _short(extent_mm, selection.min_extent_mm, unit="mm"),
        _by_quality(selection, quality),
    )
    return next((REFUSED + reason for reason in rules if reason is not None), None)


def _outside(rule: str, value: str | None, wanted: Sequence[str] | None) -> str | None:
    if wanted is None or value in wanted:
        return None
    return f"unknown {rule}" if value is None else rule


def _by_description(selection: Selection, description: str | None) -> str | None:
    wanted, unwanted = selection.description, selection.description_not
    if wanted is None and unwanted is None:
        return None
    if description is None:
        return "unknown series description"
    if wanted is not None and not re.search(wanted, description, re.IGNORECASE):
        return "series description"
    if unwanted is not None and re.search(unwanted, description, re.IGNORECASE):
        return "series description is excluded"
    return None


def _by_thickness(selection: Selection, thickness_mm: float | None) -> str | None:
    low, high = selection.min_slice_thickness_mm, selection.max_slice_thickness_mm
    if low is None and high is None:
        return None
    if thickness_mm is None:
        return "unknown slice thickness"
    if low is not None and thickness_mm < low:
        return f"{thickness_mm:g} mm slices, the recipe takes at least {low:g}"
    if high is not None and thickness_mm > high:
        return f"{thickness_mm:g} mm slices, the recipe takes at most {high:g}"
    return None


def _short(
    found: Sequence[float], least: Sequence[float] | None, *, unit: Literal["voxels", "mm"]
) -> str | None:
    if least is None or all(one >= limit for one, limit in zip(found, least, strict=True)):
        return None
    return f"{_product(found)} {unit}, the recipe takes at least {_product(least)}"


def _long(shape: Sequence[int], most: Sequence[int] | None) -> str | None:
    if most is None or all(one <= limit for one, limit in zip(shape, most, strict=True)):
        return None
    return f"{_product(shape)} voxels, the recipe takes at most {_product(most)}"


def _by_quality(selection: Selection, quality: float) -> str | None:
    least = selection.min_quality
    if least is None or quality >= least:
        return None
    return f"quality {quality:.3f}, the recipe takes at least {least:g}"


def _product(numbers: Sequence[Any]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
