"""Safetensors files: read their headers first, so that nothing unasked for fills the memory."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from foundation.artefact.layout import BackboneError


class Stored(NamedTuple):
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, such as ``F32``"""


Header = Mapping[str, Stored]


def read_header(path: Path) -> Header:
    """Names, shapes and types of the tensors in a file; none is read.

    Raises:
        BackboneError: It is not a safetensors file, whatever its name.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Stored(tuple(each.get_shape()), str(each.get_dtype()))
                for name, each in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(f"{path}: not a safetensors file ({_in_one_line(error)})") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, on the CPU.

    Raises:
        BackboneError: It is not a safetensors file, or cut short.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{path}: not a safetensors file ({_in_one_line(error)})") from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, mode_of: Path) -> None:
    """Write a file that those may read who may read ``mode_of``; safetensors' own are private.

    Raises:
        BackboneError: It cannot be written.
    """
    try:
        save_file(dict(tensors), path)
        shutil.copymode(mode_of, path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: cannot be written ({_in_one_line(error)})") from None


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
