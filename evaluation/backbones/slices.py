"""A 2D network of timm over slices of a scan, pooled: what natural images give for nothing.

Each scan is windowed by its modality to [0, 1] and cut into slices. A slice is resized so that its
longer side in mm fills the network's input, padded evenly, shown as three equal channels and
normalised by the network's own mean and SD. Slices are to it what windows are to a 3D network.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from evaluation.backbones.embedder import LAYERS, MOST_PATCHES, Dense, EmbedderError, Spacing
from evaluation.backbones.entry import Loaded
from evaluation.backbones.foreign import foreign
from evaluation.backbones.lines import BY_NAME, TimmLine
from evaluation.backbones.weights import digest_of, load_whole, read_tensors
from evaluation.backbones.windowed import as_arrays
from foundation.preprocessing import Preprocessing
from foundation.windows import Layers, Tokens, pool_windows, prepare
from recipes.load import digest
from shards.scan import Scan

_VERSION = 1
_SLICES_AT_ONCE = 16
_AXES = ("axial", "coronal", "sagittal")  # cut across D, H, W


@dataclass(frozen=True)
class SliceEmbedder:
    """See ``evaluation.backbones.embedder.Embedder``; a slice is a crop, and there is no grid.

    Attributes:
        network: Frozen.
        size: (height, width) of its input.
        mean, std: Of its pictures, by channel.
        slices: How many at most.
        axis: 0, 1 or 2, across which slices are cut.
        preprocessing: Names the windows; nothing else of it is used.
        digest: Over weights and all of the above.
        device: Where the network lives.
    """

    network: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    slices: int
    axis: int
    preprocessing: Preprocessing
    digest: str
    device: torch.device

    @property
    def spacing_mm(self) -> Spacing | None:
        """Each scan's own."""
        return None

    @torch.inference_mode()
    def embed(self, scan: Scan) -> dict[str, NDArray[np.float32]]:
        """Pooled over slices; ``crop_cls`` and ``crop_mean`` have a row for each."""
        volume = prepare(scan, preprocessing=self.preprocessing, device=self.device).volume
        slices = volume.movedim(self.axis, 0)[self._chosen(volume.shape[self.axis])]
        shape = self._shape_in_input(scan)
        first, outputs = _peek(self._outputs(slices, shape))
        weight = self._weight(shape, num_patches=first[0].patch_tokens.shape[1])
        pooled = pool_windows(
            outputs, weight=weight.expand(len(slices), -1), most_patches=MOST_PATCHES
        )
        return as_arrays(pooled)

    def dense(self, scan: Scan) -> Dense | None:
        """None: slices are resized, so tokens are on no grid of voxels."""
        del scan
        return None

    def _chosen(self, number: int) -> Tensor:
        count = min(self.slices, number)
        return ((torch.arange(count) + 0.5) * number / count).long().to(self.device)

    def _shape_in_input(self, scan: Scan) -> tuple[int, int]:
        """(height, width) of a slice in the input, in proportion to its size in mm."""
        extent = np.multiply(scan.voxels.shape, scan.spacing_mm)
        height, width = np.delete(extent, self.axis)
        scale = min(self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _outputs(self, slices: Tensor, shape: tuple[int, int]) -> Iterator[Layers]:
        mean, std = (
            torch.tensor(each, device=self.device).view(1, -1, 1, 1)
            for each in (self.mean, self.std)
        )
        for part in slices.split(_SLICES_AT_ONCE):
            unit = (part[:, None] + 1) / 2
            resized = functional.interpolate(
                unit, shape, mode="bilinear", antialias=True, align_corners=False
            )
            pictures = functional.pad(resized, self._padding(shape))
            pictures = (pictures.expand(-1, len(self.mean), -1, -1) - mean) / std
            yield last_layers(self.network, pictures)

    def _padding(self, shape: tuple[int, int]) -> list[int]:
        gaps = [self.size[1] - shape[1], self.size[0] - shape[0]]
        return [edge for gap in gaps for edge in (gap // 2, gap - gap // 2)]

    def _weight(self, shape: tuple[int, int], *, num_patches: int) -> Tensor:
        """(1, N): 1 for patches that see any of the slice."""
        height, width = _grid(num_patches, self.size)
        inside = functional.pad(torch.ones(1, 1, *shape, device=self.device), self._padding(shape))
        return functional.adaptive_max_pool2d(inside, (height, width)).flatten(1)


def load_timm(name: str, line: TimmLine, *, device: torch.device) -> Loaded:
    """A network of timm with the weights its line names.

    Raises:
        EmbedderError: No such network, or weights that are not to be had or not its own.
    """
    network = _build(line, pretrained=False)
    if line.weights == BY_NAME:
        network = _from_hub(line)
    elif line.weights is not None:
        load_whole(
            network,
            read_tensors(Path(line.weights)),
            where=line.weights,
            left_out=_heads(network.pretrained_cfg),
        )
    untrained = line.model_copy(update={"weights": None})

    def twin(seed: int) -> SliceEmbedder:
        drawn = untrained.model_copy(update={"seed": seed})
        return _embedder(drawn, _build(drawn, pretrained=False), device=device)

    config = network.pretrained_cfg
    if line.licence == "unknown" and line.weights == BY_NAME and config.get("license"):
        line = line.model_copy(update={"licence": config["license"]})
    return foreign(
        name,
        line,
        _embedder(line, network, device=device),
        what=f"timm's {line.timm} over {line.slices} {line.axis} slices",
        is_trained=line.weights is not None,
        provenance={"network": f"timm {line.timm}", "weights": line.weights},
        twin=twin,
    )


def last_layers(network: nn.Module, pictures: Tensor) -> Layers:
    """What the last blocks of a ViT say, or the deepest feature map of another network."""
    forward: Any = network.forward_intermediates
    if "return_prefix_tokens" not in inspect.signature(forward).parameters:
        found = forward(pictures, indices=1, intermediates_only=True, output_fmt="NCHW")
        return [Tokens(None, found[-1].flatten(2).transpose(1, 2))]
    blocks: Any = network.blocks
    found = forward(
        pictures,
        indices=min(LAYERS, len(blocks)),
        norm=True,
        output_fmt="NLC",
        return_prefix_tokens=True,
        intermediates_only=True,
    )
    has_cls = getattr(network, "cls_token", None) is not None
    return [
        Tokens(prefix[:, 0] if has_cls else None, patches) for patches, prefix in reversed(found)
    ]


def _embedder(line: TimmLine, network: nn.Module, *, device: torch.device) -> SliceEmbedder:
    import timm

    config = timm.data.resolve_model_data_config(network)
    _, height, width = config["input_size"]
    windows = Preprocessing(
        crop_shape=(1, 1, 1),
        window_hu=line.window_hu,
        window_suv=line.window_suv,
        window_other=line.window_other,
    )
    settings = {
        "version": _VERSION,
        "timm": line.timm,
        "weights": digest_of(network),
        "input": [config["input_size"], config["mean"], config["std"]],
        "slices": [line.slices, line.axis],
        "windows": windows.model_dump(mode="json"),
    }
    return SliceEmbedder(
        network=network.to(device).eval().requires_grad_(False),
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        slices=line.slices,
        axis=_AXES.index(line.axis),
        preprocessing=windows,
        digest=digest(settings),
        device=device,
    )


def _build(line: TimmLine, *, pretrained: bool) -> Any:
    import timm

    if not timm.is_model(line.timm):
        import difflib

        near = difflib.get_close_matches(line.timm, timm.list_models(), n=1, cutoff=0.5)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise EmbedderError(f"timm has no network {line.timm!r}{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(line.seed)
        network = timm.create_model(line.timm, pretrained=pretrained, num_classes=0)
    if not hasattr(network, "forward_intermediates"):
        raise EmbedderError(f"timm's {line.timm} does not give out its layers; take a ViT")
    return network


def _from_hub(line: TimmLine) -> Any:
    try:
        return _build(line, pretrained=True)
    # A hub out of reach ends in a dozen types of three libraries; none of them is our fault.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise EmbedderError(
            f"timm's weights of {line.timm} cannot be had ({type(error).__name__}: {reason}); "
            "where the hub is out of reach, bring the file here and give it as weights"
        ) from None


def _heads(config: Any) -> tuple[str, ...]:
    names = config.get("classifier") or ()
    return tuple(f"{each}." for each in ([names] if isinstance(names, str) else names))


def _grid(num_patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches over an input of ``size``."""
    height = max(1, round((num_patches * size[0] / size[1]) ** 0.5))
    assert num_patches % height == 0, "patches fill the input"
    return height, num_patches // height


def _peek(outputs: Iterator[Layers]) -> tuple[Layers, Iterator[Layers]]:
    first = next(outputs)

    def again() -> Iterator[Layers]:
        yield first
        yield from outputs

    return first, again()
