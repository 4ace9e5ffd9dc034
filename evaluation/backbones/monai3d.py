"""A 3D encoder of MONAI as an embedder: its deepest feature map, window by window.

Common networks are known; of others the line names the submodule (``layer``) whose output is taken.
What comes after it, such as a decoder, is not computed.
"""

import contextlib
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.backbones.embedder import EmbedderError
from evaluation.backbones.entry import Loaded
from evaluation.backbones.foreign import foreign
from evaluation.backbones.lines import MonaiLine
from evaluation.backbones.weights import digest_of, load_whole, read_tensors
from evaluation.backbones.windowed import WindowedEmbedder, patch_size_of, try_window
from foundation.network.patches import Shape
from foundation.windows import Layers, Tokens
from recipes.load import digest

_VERSION = 1
_LAYERS = {
    "DenseNet": "features",
    "ResNet": "layer4",
    "SEResNet50": "layer4",
    "SegResNet": "down_layers",
    "SwinUNETR": "swinViT",
    "UNETR": "vit",
    "ViT": "",
    "ViTAutoEnc": "",
}
"""By class, or one it is made from: the submodule whose output is the deepest map."""


class _Enough(Exception):
    """What was wanted has been computed."""


@dataclass(frozen=True)
class Encoder:
    """A network up to one of its submodules.

    Attributes:
        network: Frozen.
        layer: Name of the submodule; empty for the network itself.
        intensities: What -1 and 1 of a window become.
        num_cells: Tokens of a window that are places; None averages them to one.
    """

    network: nn.Module
    layer: str
    intensities: tuple[float, float]
    num_cells: int | None

    def __call__(self, windows: Tensor, spacing_mm: Tensor) -> Layers:
        """See ``evaluation.backbones.windowed.Network``."""
        del spacing_mm
        output = self.output(windows)
        tokens = output if output.dim() == 3 else output.flatten(2).transpose(1, 2)
        if self.num_cells is None:
            return [Tokens(None, tokens.mean(dim=1, keepdim=True))]
        if tokens.shape[1] == self.num_cells + 1:
            return [Tokens(tokens[:, 0], tokens[:, 1:])]
        return [Tokens(None, tokens)]

    def output(self, windows: Tensor) -> Tensor:
        """Of the submodule: a map (B, E, d, h, w), or tokens (B, N, E)."""
        low, high = self.intensities
        found: list[Any] = []

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found.append(output)
            raise _Enough

        handle = self.network.get_submodule(self.layer).register_forward_hook(stop)
        try:
            with contextlib.suppress(_Enough):
                self.network((windows + 1) / 2 * (high - low) + low)
        finally:
            handle.remove()
        if not found:
            raise EmbedderError(f"the network never comes by its layer {self.layer!r}")
        return _deepest(found[0])


def load_monai(name: str, line: MonaiLine, *, device: torch.device) -> Loaded:
    """A network of MONAI with the weights its line names.

    Raises:
        EmbedderError: No such network, arguments or layer, or weights that are not its own.
    """
    network = _build(line)
    if line.weights is not None:
        part = network.get_submodule(line.into) if line.into else network
        load_whole(part, read_tensors(line.weights), where=str(line.weights))

    def twin(seed: int) -> WindowedEmbedder:
        drawn = line.model_copy(update={"seed": seed})
        return _embedder(drawn, _build(drawn), device=device)

    return foreign(
        name,
        line,
        _embedder(line, network, device=device),
        what=f"MONAI's {line.monai}",
        is_trained=line.weights is not None,
        provenance={"network": f"monai {line.monai}", "weights": _text(line.weights)},
        twin=twin,
    )


def _embedder(line: MonaiLine, network: nn.Module, *, device: torch.device) -> WindowedEmbedder:
    network = network.to(device).eval().requires_grad_(False)
    encoder = Encoder(network, _layer(line, network), line.intensities, None)
    crop_shape = line.preprocessing.crop_shape

    def empty(windows: Tensor, spacing_mm: Tensor) -> Layers:
        del spacing_mm
        return [Tokens(None, encoder.output(windows))]

    output = try_window(empty, line.preprocessing, device=device)[0].patch_tokens
    grid = _grid(output, line, crop_shape)
    patch_size = patch_size_of(grid, crop_shape) if grid else None
    num_cells = math.prod(grid) if grid and patch_size else None
    settings = {
        "version": _VERSION,
        "monai": line.monai,
        "args": line.args,
        "layer": encoder.layer,
        "intensities": line.intensities,
        "weights": digest_of(network),
        "preprocessing": line.preprocessing.model_dump(mode="json"),
    }
    return WindowedEmbedder(
        network=Encoder(network, encoder.layer, line.intensities, num_cells),
        preprocessing=line.preprocessing,
        patch_size=patch_size or crop_shape,
        digest=digest(settings),
        device=device,
        has_grid=patch_size is not None,
    )


def _build(line: MonaiLine) -> nn.Module:
    from monai.networks import nets

    make = getattr(nets, line.monai, None)
    if not callable(make):
        near = difflib.get_close_matches(line.monai, dir(nets), n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise EmbedderError(f"MONAI has no network {line.monai!r}{hint}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(line.seed)
            network = make(**line.args)
    # Its constructors check their arguments by a dozen types of errors.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EmbedderError(
            f"MONAI's {line.monai} does not take these args ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(network, nn.Module):
        raise EmbedderError(f"MONAI's {line.monai} is no network")
    names = {name for name, _ in network.named_modules()}
    for key in ("into", "layer"):
        wanted = getattr(line, key)
        if wanted is not None and wanted not in names:
            near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.3)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise EmbedderError(f"MONAI's {line.monai} has no submodule {wanted!r} ({key}){hint}")
    return network


def _layer(line: MonaiLine, network: nn.Module) -> str:
    if line.layer is not None:
        return line.layer
    for each in type(network).__mro__:
        if each.__name__ in _LAYERS:
            return _LAYERS[each.__name__]
    children = ", ".join(name for name, _ in network.named_children())
    raise EmbedderError(
        f"which part of MONAI's {line.monai} is its encoder is not known here; name the submodule "
        f"as layer: {children}"
    )


def _deepest(output: Any) -> Tensor:
    """Of several maps the last; of tokens with a list of hidden ones beside, the tokens."""
    if isinstance(output, Sequence):
        maps = [each for each in output if isinstance(each, Tensor)]
        if not maps:
            raise EmbedderError("the layer gives no tensor; name another one as layer")
        output = maps[-1] if maps[-1].dim() == 5 else maps[0]
    if not isinstance(output, Tensor) or output.dim() not in (3, 5):
        raise EmbedderError("the layer gives neither a 3D map nor tokens; name another as layer")
    return output


def _grid(output: Tensor, line: MonaiLine, crop_shape: Shape) -> Shape | None:
    """Cells of a window's map; None for tokens that are no whole number of the line's patches."""
    if output.dim() == 5:
        d, h, w = output.shape[2:]
        return d, h, w
    patch = line.args.get("patch_size")
    sizes = [patch] * 3 if isinstance(patch, int) else patch
    if not isinstance(sizes, list | tuple) or len(sizes) != 3:
        return None
    d, h, w = (crop // size for crop, size in zip(crop_shape, sizes, strict=True))
    return (d, h, w) if output.shape[1] - d * h * w in (0, 1) else None


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
