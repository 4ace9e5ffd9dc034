"""The part of a recipe that says which shards are read, and how."""

from pydantic import Field, model_validator

from recipes.load import Section
from shards.index import VOLUME
from shards.storage.storage import CacheConfig
from shards.streaming.crops import CropPlan, Shape

Millimetres = tuple[float | None, float | None, float | None]


class FolderConfig(Section):
    """One folder of a mixture."""

    folder: str = Field(min_length=1, description="a folder of shards, or its URL")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="its share of all scans seen is this, by the sum of the weights; null, then "
        "for all folders: by their numbers of scans",
    )
    balance: str | None = Field(
        default=None,
        description="column whose values are all seen equally often: modality, source, split, or "
        "one of the cohort's own",
    )


class StreamConfig(Section):
    """What is taken from each scan, and what happens when one cannot be."""

    sequences: tuple[str, ...] = Field(
        default=(VOLUME,), min_length=1, description="the model's channels, in this order"
    )
    ignore_masks: tuple[str, ...] = Field(
        default=(), description="no loss falls on voxels under these, such as face"
    )
    crops_per_scan: int = Field(default=1, ge=1, description="crops that one read of a scan gives")
    foreground: float = Field(
        default=1.0, ge=0, le=1, description="share of the crops that are centred in the foreground"
    )
    crop_mm: Millimetres | None = Field(
        default=None,
        description="edges (d, h, w) of a crop in mm, resized to crop_shape on the device; null, "
        "also for one axis: the voxels of crop_shape",
    )
    max_damaged: int = Field(
        default=0, ge=0, description="damaged scans that each rank replaces before the run stops"
    )
    timeout_s: float = Field(default=600, gt=0, description="longest wait for one batch")
    cache: CacheConfig | None = Field(default=None, description="for shards at a URL")

    @model_validator(mode="after")
    def _check(self) -> "StreamConfig":
        for name in ("sequences", "ignore_masks"):
            found = getattr(self, name)
            if len(set(found)) != len(found):
                raise ValueError(f"{name}: a name stands twice in {list(found)}")
        if any(edge is not None and edge <= 0 for edge in self.crop_mm or ()):
            raise ValueError(f"crop_mm must be positive, got {list(self.crop_mm or ())}")
        return self

    def plan(self, crop_shape: Shape) -> CropPlan:
        """What to cut, for a model that takes crops of this shape."""
        return CropPlan(
            shape=crop_shape,
            size_mm=self.crop_mm or (None, None, None),
            per_scan=self.crops_per_scan,
            foreground=self.foreground,
            sequences=self.sequences,
            masks=self.ignore_masks,
        )


def folder_list(shards: str | tuple[FolderConfig, ...]) -> list[FolderConfig]:
    """A recipe's ``shards``: one folder, or several.

    Raises:
        ValueError: No folder is named, or one twice.
    """
    if isinstance(shards, str):
        return [FolderConfig(folder=shards)]
    folders = [each.folder for each in shards]
    if not folders or len(set(folders)) != len(folders):
        raise ValueError(f"shards: name each folder once, and one at least; got {folders}")
    return list(shards)
