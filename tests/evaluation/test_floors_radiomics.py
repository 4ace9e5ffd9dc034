"""Radiomics against closed forms: a ball, an ellipsoid and a box of anisotropic voxels."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.floors.radiomics import (
    FIRST_ORDER,
    NAMES,
    SHAPE,
    first_order,
    radiomics,
    shape,
    surface_mm2,
)
from shards.scan import Scan, read_scan

SPACING = (2.0, 0.8, 1.25)


def ellipsoid(radii_mm: tuple[float, float, float], spacing_mm: Any = SPACING) -> Any:
    """A mask whose centre is off the centre of a box that is no cube."""
    axes = [
        (np.arange(int(2 * radius / step) + 7 + axis) - int(radius / step) - 3) * step
        for axis, (radius, step) in enumerate(zip(radii_mm, spacing_mm, strict=True))
    ]
    d, h, w = np.meshgrid(*axes, indexing="ij")
    return sum((x / radius) ** 2 for x, radius in zip((d, h, w), radii_mm, strict=True)) <= 1


def shape_of(mask: Any, spacing_mm: Any = SPACING) -> dict[str, float]:
    return dict(zip(SHAPE, shape(mask, spacing_mm=spacing_mm), strict=True))


def scan_of(place: Any, voxels: Any, spacing_mm: Any = SPACING) -> Scan:
    return replace(
        read_scan(str(place.data / "scans" / "000_scan.nii"), modality="MR"),
        voxels=voxels,
        spacing_mm=spacing_mm,
    )


@pytest.mark.parametrize("radius", [12.0, 20.0])
def test_a_ball(radius: float) -> None:
    found = shape_of(ellipsoid((radius, radius, radius)))
    assert found["volume_mm3"] == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.01)
    assert found["surface_mm2"] == pytest.approx(4 * np.pi * radius**2, rel=0.02)
    assert found["sphericity"] == pytest.approx(1.0, abs=0.02)
    assert found["surface_to_volume_per_mm"] == pytest.approx(3 / radius, rel=0.02)
    for axis in ("longest", "middle", "shortest"):
        assert found[f"{axis}_axis_mm"] == pytest.approx(2 * radius, rel=0.01)
    assert found["elongation"] == pytest.approx(1.0, abs=0.02)
    assert found["flatness"] == pytest.approx(1.0, abs=0.02)


def test_an_ellipsoid_along_its_own_axes() -> None:
    found = shape_of(ellipsoid((20.0, 8.0, 12.0)))
    axes = [found[f"{axis}_axis_mm"] for axis in ("longest", "middle", "shortest")]
    assert axes == pytest.approx([40.0, 24.0, 16.0], rel=0.02)
    assert found["elongation"] == pytest.approx(0.6, rel=0.02)
    assert found["flatness"] == pytest.approx(0.4, rel=0.02)
    p = 1.6075  # Thomsen's approximation, within 1.1%
    a, b, c = 20.0**p, 8.0**p, 12.0**p
    area = 4 * np.pi * ((a * b + a * c + b * c) / 3) ** (1 / p)
    assert found["surface_mm2"] == pytest.approx(area, rel=0.07)


def test_a_box() -> None:
    mask = np.zeros((16, 40, 30), bool)
    mask[3:13, 5:35, 4:20] = True
    found = shape_of(mask)
    d, h, w = 10 * 2.0, 30 * 0.8, 16 * 1.25
    assert found["volume_mm3"] == pytest.approx(d * h * w)
    assert [found[f"extent_{axis}_mm"] for axis in "dhw"] == pytest.approx([d, h, w])
    # Second moments of a box are length^2 / 12, and an axis is 2 sqrt(5) times their root.
    axes = sorted((length * np.sqrt(5 / 3) for length in (d, h, w)), reverse=True)
    assert [found[f"{axis}_axis_mm"] for axis in ("longest", "middle", "shortest")] == (
        pytest.approx(axes)
    )
    area = 2 * (d * h + d * w + h * w)
    assert area * 0.8 < found["surface_mm2"] < area  # flat faces: too small, as the docstring says


def test_the_surface_does_not_depend_on_where_the_body_lies() -> None:
    mask = ellipsoid((6.0, 9.0, 12.0))
    whole = surface_mm2(mask, spacing_mm=SPACING)
    assert surface_mm2(np.pad(mask, ((3, 0), (0, 2), (1, 4))), spacing_mm=SPACING) == whole
    turned = surface_mm2(mask.transpose(2, 0, 1), spacing_mm=(1.25, 2.0, 0.8))
    assert turned == pytest.approx(whole, rel=1e-9)


def test_axes_do_not_mind_a_turn() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((5, 9, 7)) > 0.6
    mask[1:4, 2:5, :] = True
    d, h, w = np.nonzero(mask)
    places = np.stack([d * 2.0, h * 0.8, w * 1.25])
    moments = np.cov(places, bias=True) + np.diag(np.square(SPACING) / 12)
    expected = 2 * np.sqrt(5 * np.linalg.eigvalsh(moments))[::-1]
    found = shape_of(mask)
    assert [found[f"{axis}_axis_mm"] for axis in ("longest", "middle", "shortest")] == (
        pytest.approx(expected)
    )


def test_first_order_features() -> None:
    values = np.random.default_rng(1).gamma(2.0, 10.0, 501)
    found = dict(zip(FIRST_ORDER, first_order(values, voxel_mm3=1.5), strict=True))
    assert found["mean"] == pytest.approx(values.mean())
    assert found["sd"] == pytest.approx(values.std())
    assert found["skewness"] == pytest.approx(stats.skew(values))
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(values))
    assert found["percentile_90"] == pytest.approx(np.quantile(values, 0.9))
    assert found["energy_mm3"] == pytest.approx(1.5 * (values @ values))
    assert found["root_mean_square"] == pytest.approx(np.linalg.norm(values) / np.sqrt(501))
    counts = np.histogram(values, bins=32)[0]
    assert found["entropy_bits"] == pytest.approx(stats.entropy(counts, base=2))


def test_a_region_of_one_value_has_no_spread_and_no_entropy() -> None:
    found = dict(zip(FIRST_ORDER, first_order(np.full(9, 4.0), voxel_mm3=1.0), strict=True))
    assert (found["sd"], found["skewness"], found["kurtosis"], found["entropy_bits"]) == (
        0.0, 0.0, 0.0, 0.0
    )  # fmt: skip


def test_an_empty_region_is_all_zero_and_everything_is_finite(place: Any) -> None:
    scan = scan_of(place, np.zeros((5, 9, 7)))
    empty = radiomics(scan, np.zeros((5, 9, 7), bool))
    assert empty.tolist() == [0.0] * len(NAMES)
    one = np.zeros((5, 9, 7), bool)
    one[2, 3, 4] = True
    assert np.isfinite(radiomics(scan, one)).all()
