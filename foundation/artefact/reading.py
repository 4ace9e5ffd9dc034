"""From a folder to a network that is proven to be the published one, file by file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundation.artefact.golden import check_golden
from foundation.artefact.layout import (
    CONFIG,
    FILES,
    GOLDEN,
    PREPROCESSING,
    PROVENANCE,
    SUMS,
    VERSION,
    WEIGHTS,
    BackboneError,
)
from foundation.artefact.tensors import Header, read_header, read_tensors
from foundation.artefact.versions import Texts, check_version, upgraded
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing
from foundation.vit import Vit3d, VitConfig, build_vit
from recipes.load import RecipeError, parse
from shards.files import sha256_of

MOST_SUMS_BYTES = 1 << 16
_MOST_TEXT_BYTES = 1 << 30


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
    vit_config = _section(folder / CONFIG, VitConfig, texts.config.get("vit"))
    preprocessing = _section(folder / PREPROCESSING, Preprocessing, texts.preprocessing)
    _check_crop(preprocessing, vit_config, path=folder / PREPROCESSING)
    header = read_header(folder / WEIGHTS)
    vit = _with_weights(vit_config, folder / WEIGHTS, header=header).eval()
    return Artefact(
        vit=vit,
        vit_config=vit_config,
        preprocessing=preprocessing,
        provenance=read_json(folder / PROVENANCE),
        digest=digest_of(sums),
        version=version,
        num_tensors=len(header),
        golden_error=check_golden(vit, folder / GOLDEN),
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
    if set(listed) != set(FILES):
        _refuse_newer(folder, listed)
        odd = ", ".join(sorted(set(listed) ^ set(FILES)))[:200].encode("unicode_escape").decode()
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


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a file.

    Raises:
        BackboneError: It is none, or cannot be read.
    """
    try:
        if (size := path.stat().st_size) > _MOST_TEXT_BYTES:
            raise BackboneError(f"{path}: {size} bytes, at most {_MOST_TEXT_BYTES} are read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except BackboneError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: holds {type(content).__name__}, expected a mapping")
    return content


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


def _section(path: Path, schema: type[Any], content: Any) -> Any:
    try:
        return parse(content, schema, where=str(path))
    except RecipeError as error:
        raise BackboneError(" ".join(str(error).split())) from None


def _check_crop(preprocessing: Preprocessing, vit_config: VitConfig, *, path: Path) -> None:
    try:
        patch_grid(preprocessing.crop_shape, vit_config.patch_size)
    except ValueError as error:
        raise BackboneError(f"{path}: {error}") from None


def _with_weights(vit_config: VitConfig, path: Path, *, header: Header) -> Vit3d:
    if vit_config.resolved.depth > len(header):  # before so many blocks are built
        raise BackboneError(
            f"{path}: lacks tensors, it holds {len(header)} and {CONFIG} asks for "
            f"{vit_config.resolved.depth} blocks"
        )
    try:
        with torch.device("meta"):
            vit = build_vit(vit_config)
    # Sizes that no tensor can have end in any of these.
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(f"{path.with_name(CONFIG)}: no such network ({reason})") from None
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    if odd := sorted(set(expected) ^ set(header)):
        missing = [name for name in odd if name in expected]
        word = f"lacks {missing[0]!r}" if missing else f"holds the foreign tensor {odd[0]!r}"
        raise BackboneError(f"{path}: {word} ({len(odd)} names differ from {CONFIG})")
    for name, shape in expected.items():
        if header[name].shape != shape:
            raise BackboneError(
                f"{path}: {name!r} has shape {header[name].shape}, {CONFIG} asks {shape}"
            )
    tensors = read_tensors(path)
    if odd := sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point()):
        raise BackboneError(f"{path}: {odd[0]!r} is {header[odd[0]].dtype}, expected floats")
    vit.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return vit
