"""Weights of foreign networks: read without running code, and loaded whole or not at all."""

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation.backbones.embedder import EmbedderError

_PICKLES = (".pth", ".pt", ".ckpt", ".bin")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights")
_PARALLEL = "module."
_SHOWN = 3


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    A pickle is read by torch's own reader of tensors (``weights_only``), which runs nothing. Where
    a training's checkpoint holds the weights beside other things, the weights are taken; names that
    all begin with ``module.`` lose it.

    Raises:
        EmbedderError: No such file, or not one of tensors.
    """
    if not path.is_file():
        raise EmbedderError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise EmbedderError(f"{path}: not a safetensors file ({error})") from None
    if path.suffix not in _PICKLES:
        raise EmbedderError(f"{path}: weights are .safetensors, or {', '.join(_PICKLES)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EmbedderError(
            f"{path}: cannot be read as tensors alone ({reason}); convert it to .safetensors with "
            "the tools of whoever published it"
        ) from None
    return _unwrapped(content, path)


def load_whole(
    network: nn.Module, tensors: Mapping[str, Tensor], *, where: str, left_out: Sequence[str] = ()
) -> None:
    """Give a network its weights: every one of its own, and every one of the file.

    Args:
        network: Changed.
        tensors: By name.
        where: Begins the error.
        left_out: Beginnings of names that the file may have and the network has not, such as the
            head of a classifier.

    Raises:
        EmbedderError: A name or shape differs; it names them.
    """
    used = {name: value for name, value in tensors.items() if not name.startswith(tuple(left_out))}
    expected = network.state_dict()
    problems = []
    if missing := sorted(set(expected) - set(used)):
        problems.append(f"lacks {_some(missing)}")
    if unexpected := sorted(set(used) - set(expected)):
        problems.append(f"holds {_some(unexpected)}, which the network does not have")
    for name in sorted(set(expected) & set(used)):
        if expected[name].shape != used[name].shape:
            found, asked = tuple(used[name].shape), tuple(expected[name].shape)
            problems.append(f"{name!r} has shape {found}, the network asks {asked}")
            break
    if problems:
        raise EmbedderError(
            f"{where}: {'; '.join(problems)}; nothing is loaded in part, so give the file and the "
            "arguments of one network"
        )
    network.load_state_dict(used)


def digest_of(network: nn.Module) -> str:
    """64 hex digits over every tensor of a network and its name."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise EmbedderError(f"{path}: not a table of tensors by name")
    if all(name.startswith(_PARALLEL) for name in content):
        return {name.removeprefix(_PARALLEL): value for name, value in content.items()}
    return content


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
