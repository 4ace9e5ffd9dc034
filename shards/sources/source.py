"""Where scans come from: a cohort's table, a tree of DICOM, image files, or tars of image files.

The order of the inputs is the order of the samples, so it depends on names alone, never on the
file system.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from recipes.load import Section
from shards.dicom.tree import Mapper
from shards.policy import Policy
from shards.sources.inputs import Input, SourceError
from shards.sources.listing import Listing
from shards.sources.select import Pattern, Selection
from shards.storage.places import FileInfo

Spacing = tuple[float, float, float]
Cell = str | int | float | None
KINDS = ("cohort", "dicom", "images", "webdataset")


class SourceConfig(Section):
    """One of ``cohort`` (a YAML file), ``dicom`` (a folder tree), ``images`` and ``webdataset``.

    The last two are patterns below ``data_root``: of NIfTI, NRRD and MetaImage files, and of tars
    that hold NIfTI files.
    """

    cohort: str | None = None
    splits: list[Literal["train", "val", "test"]] | None = Field(default=None, min_length=1)
    where: dict[str, Cell | list[Cell]] = Field(default_factory=dict)
    dicom: str | None = None
    images: str | None = None
    webdataset: str | None = None
    members: str | None = Field(
        default=None, description="pattern of the images in the tars that are wanted: *_T1w.nii.gz"
    )
    subject: Pattern | None = Field(
        default=None,
        description="regular expression: what it finds in a file's name is the subject (its groups,"
        " if it has any); without it each file is a subject",
    )
    metadata: list[str] = Field(
        default_factory=list,
        description="columns of the cohort, or of the JSON in tars, that go into the shards",
    )
    with_mask: bool = Field(
        default=False, description="the cohort's mask goes into the shards too, as mask"
    )
    name: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_]*$")
    modality: Literal["CT", "MR", "PT", "OT"] | None = None
    licence: str | None = None
    source: str | None = None
    spacing_mm: Spacing | None = None
    max_anisotropy: float | None = Field(
        default=None,
        ge=1,
        description="largest ratio of two edges of a voxel; the shorter ones grow to it",
    )
    max_spacing_mm: float | None = Field(default=None, gt=0)
    policy: Policy = Policy()
    select: Selection = Selection()

    @field_validator("spacing_mm")
    @classmethod
    def _is_positive(cls, spacing_mm: Spacing | None) -> Spacing | None:
        if spacing_mm is not None and min(spacing_mm) <= 0:
            raise ValueError("spacing_mm must be positive")
        return spacing_mm

    @model_validator(mode="after")
    def _one_kind(self) -> "SourceConfig":
        if [getattr(self, kind) for kind in KINDS].count(None) != len(KINDS) - 1:
            raise ValueError("give exactly one of cohort, dicom, images and webdataset")
        described = [self.name, self.licence, self.source]
        if self.cohort is not None and any([*described, self.modality]):
            raise ValueError("a cohort brings its own name, modality, licence and source")
        if self.cohort is None and None in described:
            raise ValueError("dicom, images and webdataset need a name, a licence and a source")
        if self.cohort is None and (self.splits or self.where or self.with_mask):
            raise ValueError("splits, where and with_mask are of a cohort's rows")
        if self.spacing_mm is not None and self.max_anisotropy is not None:
            raise ValueError("give spacing_mm or max_anisotropy, not both")
        return self

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "SourceConfig":
        files = self.images or self.webdataset
        if files is not None and self.modality is None:
            raise ValueError("images and webdataset need a modality, which the files do not tell")
        if self.subject is not None and files is None:
            raise ValueError("subject is a pattern for the file names of images and webdataset")
        if self.members is not None and self.webdataset is None:
            raise ValueError("members chooses images in the tars of webdataset")
        if self.metadata and self.cohort is None and self.webdataset is None:
            raise ValueError("metadata names columns of a cohort or of the JSON in tars")
        return self


@dataclass(frozen=True)
class Source:
    """All inputs of one entry of a recipe; ``skipped`` are reasons of files that are no scan."""

    name: str
    licence: str
    source: str
    config: SourceConfig
    inputs: tuple[Input, ...]
    skipped: tuple[str, ...]


def read_source(config: SourceConfig, *, data_root: str | Path, mapper: Mapper = map) -> Source:
    """List the inputs of one source; of DICOM files the headers are read, of tars too.

    Args:
        config: What to list.
        data_root: A folder or the URL of one.
        mapper: As of :func:`shards.dicom.tree.read_tree`: reads headers in parallel.

    Raises:
        SourceError: Nothing there.
        CohortError: The cohort cannot be used.
        PlaceError: ``data_root`` cannot be read.
    """
    listing = _listing(config, data_root)
    if config.cohort is not None:
        from shards.sources.from_cohort import cohort_inputs

        about, inputs = cohort_inputs(config, listing)
        found = Source(about.name, about.licence, about.source, config, tuple(inputs), ())
    else:
        assert config.name is not None
        assert config.licence is not None
        assert config.source is not None
        inputs, skipped = _inputs(config, listing, mapper)
        found = Source(
            config.name, config.licence, config.source, config, tuple(inputs), tuple(skipped)
        )
    if not found.inputs:
        pattern = config.dicom or config.images or config.webdataset or config.cohort
        raise SourceError(f"source {found.name}: no scans; see {listing.place}/{pattern}")
    return found


def source_files(config: SourceConfig, *, data_root: str | Path) -> list[FileInfo]:
    """The files a source reads, in order, without opening a scan."""
    listing = _listing(config, data_root)
    if config.cohort is not None:
        from shards.sources.from_cohort import cohort_files

        return cohort_files(config, listing)
    if config.dicom is not None:
        return listing.below(config.dicom)
    from shards.sources.from_files import matching

    return matching(config, listing)


def fingerprint(files: Iterable[FileInfo], *, key: bytes) -> str:
    """Changes when a file comes, goes, or is written again; keyed, as it covers names."""
    found = hmac.new(key, digestmod=sha256)
    for one in files:
        found.update(f"{one.name}\0{one.size}\0{one.stamp}\n".encode())
    return found.hexdigest()


def _inputs(
    config: SourceConfig, listing: Listing, mapper: Mapper
) -> tuple[list[Input], list[str]]:
    if config.dicom is not None:
        from shards.sources.from_dicom import dicom_inputs

        return dicom_inputs(config, listing, mapper=mapper)
    from shards.sources.from_files import image_inputs, tar_inputs

    return (image_inputs if config.images is not None else tar_inputs)(config, listing)


def _listing(config: SourceConfig, data_root: str | Path) -> Listing:
    """The files of ``data_root``, of which a cohort's recipe says by itself what is missing."""
    listing = Listing(data_root)
    if not listing.place.is_local or config.cohort is not None:
        return listing
    folder = listing.place.path / (config.dicom or "")
    if not folder.is_dir():
        raise SourceError(f"source {config.name}: {folder} does not exist; see data_root")
    return listing
