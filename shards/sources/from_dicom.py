"""The series of a DICOM tree as inputs; what headers alone decide is decided here."""

from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from shards.dicom.tree import Header, Mapper, Series, read_header, refusal, sort_headers
from shards.index import VOLUME
from shards.sources.inputs import Input, identity_of
from shards.sources.listing import Listing
from shards.sources.select import refusal_by_header
from shards.sources.visit import Part
from shards.storage.errors import PlaceError
from shards.storage.places import Place

if TYPE_CHECKING:
    from shards.sources.source import SourceConfig


def dicom_inputs(
    config: "SourceConfig", listing: Listing, *, mapper: Mapper
) -> tuple[list[Input], list[str]]:
    """An input for each series, and why each other file is none."""
    assert config.dicom is not None
    files = {Path(one.name): one for one in listing.below(config.dicom)}
    paths = sorted(files)
    headers = mapper(partial(_header, listing.place), paths)
    tree = sort_headers(zip(paths, headers, strict=True))
    inputs = []
    for place, series in enumerate(tree.series):
        names = tuple(path.as_posix() for path in series.files)
        # Where the files name nobody, each folder counts as a subject.
        subject = series.subject or PurePosixPath(names[0]).parent.as_posix()
        infos = [files[path] for path in series.files]
        inputs.append(
            Input(
                position=place,
                subject=subject,
                sequences=(Part(VOLUME, "", config.modality, names),),
                root=listing.root,
                # A slice that arrives later may come first by name; the series stays the same.
                name=series.uid or names[0],
                identity=identity_of(names[0], infos, subject),
                verdict=_verdict(config, series),
            )
        )
    return inputs, [reason for _, reason in tree.skipped]


def _header(place: Place, path: Path) -> Header | str:
    if place.is_local:
        return read_header(place.path / path)
    try:
        with place.open(path.as_posix()) as file:
            return read_header(file)  # type: ignore[arg-type]
    except PlaceError:
        return "a file that cannot be read"


def _verdict(
    config: "SourceConfig", series: Series
) -> tuple[Literal["rejected", "skipped"], str] | None:
    """What needs no pixels."""
    facts = series.facts
    # Enhanced objects keep some facts by frame, so their header alone may not tell all.
    if series.num_frames == 1:
        unwanted = refusal_by_header(
            config.select,
            modality=facts.modality,
            body_part=facts.body_part,
            description=facts.description,
            slice_thickness_mm=facts.slice_thickness_mm,
        )
        if unwanted is not None:
            return "skipped", unwanted
    refused = refusal(series, policy=config.policy)
    return None if refused is None else ("rejected", refused)
