"""What is done with a scan whose geometry or origin is not that of one plain volume.

Every case a hospital archive holds has a field here, and its default never invents a voxel that a
scanner did not measure nearby. Colour images and series without a known geometry are always
refused. What is interpolated or marked stands in the sample's metadata.
"""

from typing import Literal

from pydantic import Field

from recipes.load import Section


class Policy(Section):
    """Of ``policy:`` of a source. ``reject`` writes the scan to the ledger with the reason."""

    min_slices: int = Field(default=8, ge=1, description="fewest voxels along the shortest axis")
    tilt: Literal["resample", "reject"] = Field(
        default="resample", description="gantry tilt: slices are sheared back in their own plane"
    )
    missing_slices: Literal["resample", "reject"] = Field(
        default="reject", description="a gap of up to three slices: filled by linear interpolation"
    )
    uneven_slices: Literal["resample", "reject"] = Field(
        default="resample", description="varying distances: interpolated at the usual (median) one"
    )
    repeated_slices: Literal["take", "reject"] = Field(
        default="take", description="the same pixels at the same place: one of them counts"
    )
    time_points: Literal["split", "first", "reject"] = Field(
        default="split",
        description="several volumes at one place (time points, echoes, diffusion weightings): "
        "each is a scan, or the first one is, or none",
    )
    orientations: Literal["split", "reject"] = Field(
        default="split",
        description="several slice directions in one series, scouts aside: each is a scan, or none",
    )
    localisers: Literal["take", "reject"] = Field(
        default="reject", description="planning images, by their type or as few slices of 2-3 axes"
    )
    secondary_captures: Literal["mark", "reject"] = Field(
        default="reject",
        description="grey images of a screen: marked secondary_capture, or refused",
    )
    burned_in_annotation: Literal["mark", "reject"] = Field(
        default="reject", description="flagged as having text in the pixels: marked, or refused"
    )


LENIENT = Policy(min_slices=1)
"""For a scan that a person names: it is read if it can be placed at all."""
