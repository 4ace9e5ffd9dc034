"""From a folder to a network that is proven to be the published one, file by file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foundation.artefact.golden import check_golden
from foundation.artefact.head import Tuned, read_head
from foundation.artefact.layout import (
    CONFIG,
    GOLDEN,
    HEAD,
    PREPROCESSING,
    PROVENANCE,
    SUMS,
    VERSION,
    WEIGHTS,
    BackboneError,
    odd_names,
)
from foundation.artefact.tensors import Header, read_header
from foundation.artefact.texts import read_json, section_of
from foundation.artefact.versions import Texts, check_version, upgraded
from foundation.artefact.weights import with_weights
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing
from foundation.vit import Vit3d, VitConfig, build_vit
from shards.files import sha256_of

MOST_SUMS_BYTES = 1 << 16


class Artefact(NamedTuple):
    """Everything a folder holds, verified."""

    vit: Vit3d
    """on the CPU, in evaluation mode"""
    vit_config: VitConfig
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    digest: str
    version: int
    """of the schema it was written with"""
    num_tensors: int
    golden_error: float
    tuned: Tuned | None
    """its head, if it was fine-tuned; it shares ``vit``"""


def read_artefact(folder: Path) -> Artefact:
    """Read and check a folder.

    Raises:
        BackboneError: Missing or damaged files, a newer schema version, tensors that do not fit
            the config, or an embedding that does not come out as stored.
    """
    sums = verified_sums(folder)
    config = read_json(folder / CONFIG)
    version = check_version(config.get(VERSION), where=str(folder / CONFIG))
    texts = Texts(config, read_json(folder / PREPROCESSING))
    texts = upgraded(texts, where=str(folder / CONFIG))
    vit_config = section_of(folder / CONFIG, VitConfig, texts.config.get("vit"))
    preprocessing = section_of(folder / PREPROCESSING, Preprocessing, texts.preprocessing)
    _check_crop(preprocessing, vit_config, path=folder / PREPROCESSING)
    header = read_header(folder / WEIGHTS)
    vit = _vit_of(vit_config, folder / WEIGHTS, header=header)
    tuned = read_head(folder, vit) if HEAD in listed_sums(sums) else None
    return Artefact(
        vit=vit,
        vit_config=vit_config,
        preprocessing=preprocessing,
        provenance=read_json(folder / PROVENANCE),
        digest=digest_of(sums),
        version=version,
        num_tensors=len(header),
        golden_error=check_golden(vit, folder / GOLDEN, tuned=tuned),
        tuned=tuned,
    )


def digest_of(sums: bytes) -> str:
    """64 hex digits that change with any byte of the artefact, from its SHA256SUMS."""
    return hashlib.sha256(sums).hexdigest()


def verified_sums(folder: Path) -> bytes:
    """The content of SHA256SUMS, once every file it lists has been found to match.

    Raises:
        BackboneError: It is missing, does not list exactly the files of a backbone, or one of them
            is missing or another.
    """
    path = folder / SUMS
    if not path.is_file():
        state = "has no SHA256SUMS" if folder.is_dir() else "is no folder"
        raise BackboneError(
            f"{folder}: {state}; a backbone is the folder backbone/ that a pretraining writes"
        )
    with path.open("rb") as file:
        content = file.read(MOST_SUMS_BYTES)
    listed = listed_sums(content)
    if odd_names(listed):
        _refuse_newer(folder, listed)
        odd = ", ".join(sorted(odd_names(listed)))[:200].encode("unicode_escape").decode()
        raise BackboneError(f"{path}: must list exactly the files of a backbone; differs in {odd}")
    for name in sorted(listed):
        _check_sum(folder / name, listed[name])
    return content


def listed_sums(content: bytes) -> dict[str, str]:
    """What SHA256SUMS says of each name, whatever that is."""
    listed: dict[str, str] = {}
    for line in content.decode("utf-8", errors="replace").split("\n"):
        expected, _, name = line.partition("  ")
        if line:
            listed[name] = expected
    return listed


def _check_sum(file: Path, expected: str) -> None:
    if not file.is_file():
        raise BackboneError(f"{file}: missing; download the backbone again")
    if sha256_of(file) != expected:
        raise BackboneError(
            f"{file}: its SHA-256 is not the one in {SUMS}; it is damaged or was changed, "
            f"download it again"
        )


def _refuse_newer(folder: Path, listed: Mapping[str, str]) -> None:
    """A newer version may have other files: then that is what to tell, not which."""
    if CONFIG in listed:
        _check_sum(folder / CONFIG, listed[CONFIG])
        check_version(read_json(folder / CONFIG).get(VERSION), where=str(folder / CONFIG))


def _check_crop(preprocessing: Preprocessing, vit_config: VitConfig, *, path: Path) -> None:
    try:
        patch_grid(preprocessing.crop_shape, vit_config.patch_size)
    except ValueError as error:
        raise BackboneError(f"{path}: {error}") from None


def _vit_of(vit_config: VitConfig, path: Path, *, header: Header) -> Vit3d:
    if vit_config.resolved.depth > len(header):  # before so many blocks are built
        raise BackboneError(
            f"{path}: lacks tensors, it holds {len(header)} and {CONFIG} asks for "
            f"{vit_config.resolved.depth} blocks"
        )
    return with_weights(lambda: build_vit(vit_config), path, header=header, described_by=CONFIG)
