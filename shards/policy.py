"""What is done with a scan whose geometry or origin is not that of one plain volume.

Every case a hospital archive holds has a field here, and its default never invents a voxel that a
scanner did not measure nearby.
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
        default="reject", description="a gap of whole slices: filled by linear interpolation"
    )
    uneven_slices: Literal["resample", "reject"] = Field(
        default="resample", description="varying distances: interpolated at the usual one"
    )
    repeated_slices: Literal["take", "reject"] = Field(
        default="take", description="the same pixels at the same place: one of them counts"
    )
    time_points: Literal["split", "first", "reject"] = Field(
        default="split", description="several volumes at one place: each is a scan, or one, or none"
    )
    orientations: Literal["split", "reject"] = Field(
        default="split", description="several slice directions in one series"
    )
    localisers: Literal["take", "reject"] = "reject"
    secondary_captures: Literal["mark", "reject"] = "reject"
    burned_in_annotation: Literal["mark", "reject"] = "reject"


LENIENT = Policy(min_slices=1)
"""For a scan that a person names: it is read if it can be placed at all."""
