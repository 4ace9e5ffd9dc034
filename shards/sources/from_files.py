"""Image files and tars of image files, found by a pattern, as inputs."""

import fnmatch
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shards.images.tar import TarImage, list_tar
from shards.index import VOLUME
from shards.scan import ITK, NIFTI, ScanError
from shards.sources.inputs import Input, SourceError, identity_of, subject_in
from shards.sources.listing import Listing
from shards.sources.visit import Part
from shards.storage.places import FileInfo

if TYPE_CHECKING:
    from shards.sources.source import SourceConfig

DETACHED = (".nhdr", ".mhd")


def matching(config: "SourceConfig", listing: Listing) -> list[FileInfo]:
    """The files that the pattern finds, with those that hold the voxels of a detached header.

    Raises:
        SourceError: The pattern is none below ``data_root``.
    """
    pattern = config.images or config.webdataset or ""
    try:
        found = listing.matching(pattern)
    except ValueError:
        kind = "images" if config.images is not None else "webdataset"
        raise SourceError(
            f"source {config.name}: {kind} is a pattern below data_root, such as images/*.nii.gz"
        ) from None
    files = {one.name: one for one in found}
    for one in found:
        partner = partner_info(one.name, listing)
        if partner is not None:
            files[partner.name] = partner
    return [files[name] for name in sorted(files)]


def partner_info(name: str, listing: Listing) -> FileInfo | None:
    """The file with the voxels that a header names; None where there is none, or a wrong one."""
    from shards.images.itk import HEADER_BYTES, partner_name

    if not name.lower().endswith(DETACHED):
        return None
    try:
        partner = partner_name(listing.head(name, HEADER_BYTES))
    except (ScanError, OSError):
        return None  # the reader gives the reason
    if partner is None:
        return None
    folder, slash, _ = name.rpartition("/")
    return listing.info(folder + slash + partner)


def image_inputs(config: "SourceConfig", listing: Listing) -> tuple[list[Input], list[str]]:
    """An input for each image, and why each other file is none."""
    found = matching(config, listing)
    partners = {one.name: partner_info(one.name, listing) for one in found}
    voxels = {one.name for one in partners.values() if one is not None}
    inputs: list[Input] = []
    skipped = []
    for one in found:
        if not one.name.lower().endswith((*NIFTI, *ITK)):
            if one.name not in voxels:
                skipped.append("not a NIfTI, NRRD or MetaImage file")
            continue
        partner = partners[one.name]
        files = [one] if partner is None else [one, partner]
        subject = subject_in(one.name, config.subject, source=config.name)
        names = tuple(each.name for each in files)
        inputs.append(
            Input(
                position=len(inputs),
                subject=subject,
                sequences=(Part(VOLUME, one.name, config.modality, names),),
                root=listing.root,
                name=one.name,
                identity=identity_of(one.name, files, subject),
            )
        )
    return inputs, skipped


def tar_inputs(config: "SourceConfig", listing: Listing) -> tuple[list[Input], list[str]]:
    """An input for each image in a tar, also for one that the tar was cut off in."""
    inputs: list[Input] = []
    skipped = []
    for tar in matching(config, listing):
        if not tar.name.endswith(".tar"):
            skipped.append("not a tar")
            continue
        with listing.place.open(tar.name) as file:
            images = _wanted(list(list_tar(file)), config.members)
        met: Counter[str] = Counter()
        for image in images:
            met[image.name] += 1
            inputs.append(_of_image(config, listing, tar, image, len(inputs), met[image.name]))
    return inputs, skipped


def _wanted(images: Sequence[TarImage], members: str | None) -> list[TarImage]:
    return [
        image
        for image in images
        if members is None or not image.name or fnmatch.fnmatchcase(image.name, members)
    ]


def _of_image(
    config: "SourceConfig",
    listing: Listing,
    tar: FileInfo,
    image: TarImage,
    position: int,
    times: int,
) -> Input:
    """``times``: how often this name was met in the tar; each time is an input of its own."""
    name = f"{tar.name}#{image.name}" + (f"#{times}" if times > 1 else "")
    subject = subject_in(name, config.subject, source=config.name) if image.name else name
    values = {column: image.values.get(column) for column in config.metadata}
    where = f"{tar.name}#{image.first}+{image.size}"
    return Input(
        position=position,
        subject=subject,
        sequences=(Part(VOLUME, where, config.modality, (tar.name,)),),
        root=listing.root,
        name=name,
        identity=identity_of(name, [tar], subject, values, where),
        values=values,
        verdict=None if image.fault is None else ("rejected", image.fault),
    )
