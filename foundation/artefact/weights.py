"""Tensors of a file into a network that a config describes: all of them, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from foundation.artefact.layout import BackboneError
from foundation.artefact.tensors import Header, read_tensors

Network = TypeVar("Network", bound=nn.Module)


def with_weights(
    build: Callable[[], Network], path: Path, *, header: Header, described_by: str
) -> Network:
    """The network with the weights of a file, float32 on the CPU, in evaluation mode.

    Args:
        build: Makes the network; it is called where no memory is taken.
        path: The file of tensors.
        header: Of it.
        described_by: Name of the file beside it that says which network it is.

    Raises:
        BackboneError: There is no such network, or its tensors are not those of the file.
    """
    try:
        with torch.device("meta"):
            network = build()
    # Sizes that no tensor can have end in any of these.
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(f"{path.with_name(described_by)}: no such network ({reason})") from None
    _check_names(network, header, path=path, described_by=described_by)
    tensors = read_tensors(path)
    if odd := sorted(name for name, tensor in tensors.items() if not tensor.is_floating_point()):
        raise BackboneError(f"{path}: {odd[0]!r} is {header[odd[0]].dtype}, expected floats")
    values = {name: tensor.float() for name, tensor in tensors.items()}
    network.load_state_dict(values, assign=True)
    return network.eval()


def _check_names(network: nn.Module, header: Header, *, path: Path, described_by: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if odd := sorted(set(expected) ^ set(header)):
        missing = [name for name in odd if name in expected]
        word = f"lacks {missing[0]!r}" if missing else f"holds the foreign tensor {odd[0]!r}"
        raise BackboneError(f"{path}: {word} ({len(odd)} names differ from {described_by})")
    for name, shape in expected.items():
        if header[name].shape != shape:
            raise BackboneError(
                f"{path}: {name!r} has shape {header[name].shape}, {described_by} asks {shape}"
            )
