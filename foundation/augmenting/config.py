"""What may happen to a view: for each change how often, and how much at most."""

import math
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from recipes.load import Section

Range = tuple[float, float]


def _within(low: float, high: float = math.inf) -> AfterValidator:
    def check(bounds: Range) -> Range:
        if not low <= bounds[0] <= bounds[1] <= high:
            raise ValueError(f"a rising range within [{low:g}, {high:g}] is needed, got {bounds}")
        return bounds

    return AfterValidator(check)


Share = Annotated[float, Field(ge=0, le=1)]


class CropScale(Section):
    """How much of the read crop a view shows; in the slice and across slices apart (3DINO)."""

    in_plane: Range = Field(description="share of the area of a slice, H x W")
    across: Range = Field(description="share of the length across slices, D")
    aspect: Range = Field(
        default=(0.75, 4 / 3), description="edge along H by edge along W, as shares"
    )

    @model_validator(mode="after")
    def _check(self) -> "CropScale":
        for name, (low, high) in (("in_plane", self.in_plane), ("across", self.across)):
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} is a range within (0, 1], got ({low}, {high})")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect is a range of positive ratios, got {self.aspect}")
        return self


class Rotation(Section):
    """A rigid motion of the patient, in millimetres: right on voxels of any shape."""

    probability: Share = 0.3
    degrees: tuple[float, float, float] = Field(
        default=(10.0, 10.0, 10.0),
        description="largest angle about the axes D, H, W, either way; about D turns a slice",
    )

    @model_validator(mode="after")
    def _check(self) -> "Rotation":
        if not all(0 <= angle <= 180 for angle in self.degrees):
            raise ValueError(f"degrees lie within [0, 180], got {self.degrees}")
        return self


class Affine(Section):
    """A patient of another size and build; the view's spacing stays what it is."""

    probability: Share = 0.3
    scale: Annotated[Range, _within(0.5, 2.0)] = Field(
        default=(0.9, 1.1), description="factor of length, of each axis by itself"
    )
    shear: float = Field(default=0.05, ge=0, le=0.5, description="largest tangent, either way")


class WindowJitter(Section):
    """CT only: another window, which lies inside the one of the preprocessing."""

    probability: Share = 0.5
    level_hu: Range = Field(default=(-100.0, 100.0), description="shift of the window's middle, HU")
    width: Annotated[Range, _within(0.05, 1.0)] = Field(
        default=(0.6, 1.0), description="share of the preprocessing window's width"
    )

    @model_validator(mode="after")
    def _check(self) -> "WindowJitter":
        if self.level_hu[0] > self.level_hu[1]:
            raise ValueError(f"level_hu must rise, got {self.level_hu}")
        return self


class BiasField(Section):
    """MR only: intensities times a smooth field, exp of a polynomial of order 3 (TorchIO)."""

    probability: Share = 0.3
    coefficient: float = Field(
        default=0.2, ge=0, description="largest of the polynomial's coefficients, either way"
    )


class LowResolution(Section):
    """MR only: slices of a multiple of their thickness along one axis, interpolated back."""

    probability: Share = 0.2
    factor: Annotated[Range, _within(1.0)] = (1.5, 4.0)


class Blur(Section):
    """A Gaussian of the same width in millimetres along every axis."""

    probability: Share = 0.2
    sigma_mm: Annotated[Range, _within(0.0)] = (0.3, 1.5)


class Noise(Section):
    """Gaussian, independent in every voxel."""

    probability: Share = 0.5
    std: Annotated[Range, _within(0.0)] = Field(
        default=(0.0, 0.1), description="where intensities span [-1, 1]"
    )


class Gamma(Section):
    """An exponent on intensities in [0, 1]."""

    probability: Share = 0.5
    exponent: Annotated[Range, _within(0.1)] = (0.7, 1.5)


class Contrast(Section):
    """A factor on intensities, about the middle of the window."""

    probability: Share = 0.5
    factor: Annotated[Range, _within(0.0)] = (0.8, 1.2)


class Brightness(Section):
    """A number added to intensities in [-1, 1]."""

    probability: Share = 0.5
    shift: Annotated[Range, _within(-2.0, 2.0)] = (-0.1, 0.1)


class Cutout(Section):
    """Boxes of a view filled with air, in all its channels alike."""

    probability: Share = 0.0
    num_boxes: int = Field(default=2, ge=1)
    edge: Annotated[Range, _within(0.0, 1.0)] = Field(
        default=(0.1, 0.3), description="of a box, as a share of the view, each axis by itself"
    )


class AugmentConfig(Section):
    """Every change of a view; a probability of 0 turns one off.

    Geometry and cutout are drawn once per view, intensity changes for each of its channels. Nothing
    is flipped by default: hearts and livers have a side, and the patient has a front.
    """

    flip: tuple[Share, Share, Share] = Field(
        default=(0.0, 0.0, 0.0), description="probability along D, H, W"
    )
    rotation: Rotation = Rotation()
    affine: Affine = Affine()
    bias_field: BiasField = BiasField()
    low_resolution: LowResolution = LowResolution()
    blur: Blur = Blur()
    noise: Noise = Noise()
    window: WindowJitter = WindowJitter()
    gamma: Gamma = Gamma()
    contrast: Contrast = Contrast()
    brightness: Brightness = Brightness()
    cutout: Cutout = Cutout()
