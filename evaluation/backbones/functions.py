"""Anything that can be imported as an embedder: ``function: module:name``.

With ``preprocessing`` it is a function of a window: a (1, 1, d, h, w) tensor of ``crop_shape`` in
[-1, 1], windowed by modality, at ``spacing_mm`` if the line gives it, on the device of the run. A
class is made once, from ``args``; a function is given them at each call. It returns a mapping of
tensors or arrays:

    cls           (E,), or (L, E) of the last L blocks, the last one first
    mean          the same, where no patch tokens are given
    patch_tokens  (d, h, w, E), or (L, d, h, w, E): they tile the window

at least one of them. Without ``preprocessing``, ``name(**args)`` returns an object that obeys
``evaluation.backbones.embedder.Embedder`` itself. A line's ``weights`` are handed over as the
argument ``weights``, a path.

Features are kept by a digest over the source file of the module, the arguments and the weights. A
change in what that file imports is not seen.
"""

import functools
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.backbones.embedder import LAYERS, Dense, EmbedderError
from evaluation.backbones.entry import Loaded
from evaluation.backbones.foreign import foreign
from evaluation.backbones.lines import FunctionLine
from evaluation.backbones.windowed import WindowedEmbedder, patch_size_of, try_window
from foundation.network.patches import Shape
from foundation.windows import Layers, Tokens
from recipes.load import digest
from shards.files import sha256_of
from shards.scan import Scan

_KEYS = {"cls", "mean", "patch_tokens"}
_EMBEDDER = ("digest", "spacing_mm", "embed", "dense")
_ARRAYS = ("cls", "mean", "crop_cls", "crop_mean")


def load_function(name: str, line: FunctionLine, *, device: torch.device) -> Loaded:
    """What a line names.

    Raises:
        EmbedderError: It cannot be imported or made, or does not keep to the contract above.
    """
    found, source = _imported(line.function)
    args = dict(line.args)
    if line.weights is not None:
        if not line.weights.is_file():
            raise EmbedderError(f"{line.weights}: no such file of weights")
        args["weights"] = str(line.weights)
    identity = {
        "function": line.function,
        "source": hashlib.sha256(source.read_bytes()).hexdigest(),
        "args": line.args,
        "weights": sha256_of(line.weights) if line.weights else None,
        "preprocessing": line.preprocessing and line.preprocessing.model_dump(mode="json"),
    }
    if line.preprocessing is None:
        embedder = _made(found, args, line.function)
        if missing := [each for each in _EMBEDDER if not hasattr(embedder, each)]:
            raise EmbedderError(
                f"{line.function} returns no embedder, it lacks {', '.join(missing)}; a function "
                "of a window needs preprocessing"
            )
        named = digest({**identity, "own": embedder.digest})
        embedder = _Named(embedder, digest=named, where=line.function)
    else:
        embedder = _windowed(found, args, line, digest=digest(identity), device=device)
    about = {"network": line.function, "weights": str(line.weights) if line.weights else None}
    return foreign(name, line, embedder, what=line.function, is_trained=True, provenance=about)


class _Named:
    """An embedder of somebody else's under a digest that covers its source as well."""

    def __init__(self, embedder: Any, *, digest: str, where: str) -> None:
        self.digest = digest
        self.spacing_mm = embedder.spacing_mm
        self._own, self._where = embedder, where

    def embed(self, scan: Scan) -> dict[str, NDArray[np.float32]]:
        """See ``evaluation.backbones.embedder.Embedder``, whose shapes are checked."""
        with _somebody_elses(self._where, f"a scan of {scan.voxels.shape}"):
            given = dict(self._own.embed(scan))
            found = {name: np.asarray(values, dtype=np.float32) for name, values in given.items()}
        wrong = [name for name in _ARRAYS if name not in found or found[name].ndim != 2]
        if wrong:
            raise EmbedderError(
                f"{self._where} gives {sorted(found)}, expected {', '.join(_ARRAYS)} and perhaps "
                f"patch, each of two axes; {wrong[0]} is not so"
            )
        return found

    def dense(self, scan: Scan) -> Dense | None:
        """As above."""
        with _somebody_elses(self._where, f"a scan of {scan.voxels.shape}"):
            found: Dense | None = self._own.dense(scan)
        return found


@contextmanager
def _somebody_elses(where: str, what: str) -> Iterator[None]:
    """Code of somebody else's can fail by anything; it is told in one line."""
    try:
        yield
    except EmbedderError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EmbedderError(
            f"{where} fails on {what} ({type(error).__name__}: {reason})"
        ) from error


def _imported(where: str) -> tuple[Callable[..., Any], Path]:
    module_name, _, name = where.partition(":")
    try:
        module = importlib.import_module(module_name)
    # Importing runs somebody else's code, which can fail by anything.
    except Exception as error:
        raise EmbedderError(
            f"{where}: {module_name} cannot be imported ({type(error).__name__}: {error}); it is "
            f"looked for in the working directory and in {sys.prefix}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise EmbedderError(f"{where}: {module_name} has nothing to call by the name {name!r}")
    source = inspect.getsourcefile(module)
    if source is None:
        raise EmbedderError(f"{where}: {module_name} has no source file, so its change is unseen")
    return found, Path(source)


def _made(make: Callable[..., Any], args: Mapping[str, Any], where: str) -> Any:
    try:
        return make(**args)
    # As above.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EmbedderError(
            f"{where} fails with these args ({type(error).__name__}: {reason})"
        ) from error


def _windowed(
    found: Callable[..., Any],
    args: Mapping[str, Any],
    line: FunctionLine,
    *,
    digest: str,
    device: torch.device,
) -> WindowedEmbedder:
    assert line.preprocessing is not None
    if inspect.isclass(found):
        call = _made(found, args, line.function)
        if isinstance(call, nn.Module):
            call = call.to(device).eval().requires_grad_(False)
    else:
        call = functools.partial(found, **args)

    network = PerWindow(call, line.function, device)
    crop_shape = line.preprocessing.crop_shape
    try_window(network, line.preprocessing, device=device)
    patch_size = patch_size_of(network.grid, crop_shape) if network.grid else None
    if network.grid and patch_size is None:
        raise EmbedderError(
            f"{line.function}: patch tokens on a grid of {network.grid} do not tile a window of "
            f"{crop_shape} voxels"
        )
    return WindowedEmbedder(
        network=network,
        preprocessing=line.preprocessing,
        patch_size=patch_size or crop_shape,
        digest=digest,
        device=device,
        has_grid=patch_size is not None,
    )


class PerWindow:
    """A function of one window as a network of many; it checks what comes back.

    Attributes:
        grid: Cells (d, h, w) of the last window's patch tokens; None without any.
    """

    def __init__(self, call: Callable[[Tensor], Any], where: str, device: torch.device) -> None:
        """See the contract above; ``where`` begins each error."""
        self.grid: Shape | None = None
        self._call, self._where, self._device = call, where, device
        self._width: tuple[int, int] | None = None

    def __call__(self, windows: Tensor, spacing_mm: Tensor) -> Layers:
        """See ``evaluation.backbones.windowed.Network``."""
        del spacing_mm
        each = [self._layers(self._called(window[None])) for window in windows]
        return [_together(layer) for layer in zip(*each, strict=True)]

    def _called(self, window: Tensor) -> Any:
        if self._width is None:
            return self._call(window)  # the empty window that every function is tried with
        with _somebody_elses(self._where, f"a window of {tuple(window.shape)}"):
            return self._call(window)

    def _require_width(self, tokens: Tensor) -> None:
        layers, _, width = tokens.shape
        if self._width not in (None, (layers, width)):
            raise EmbedderError(
                f"{self._where} returns {layers} layers of {width} features, and of another "
                f"window {self._width[0]} of {self._width[1]}; they must be the same of all"
            )
        self._width = (layers, width)

    def _layers(self, result: Any) -> list[Tokens]:
        """Of one window; what is no patch token stands as the one token of the whole window."""
        if not isinstance(result, Mapping) or not result or set(result) - _KEYS:
            told = sorted(map(str, result)) if isinstance(result, Mapping) else type(result)
            raise EmbedderError(
                f"{self._where} returns {told}, expected a mapping with some of "
                f"{', '.join(sorted(_KEYS))}"
            )
        cls, mean = self._rows(result, "cls", dims=1), self._rows(result, "mean", dims=1)
        patches = self._rows(result, "patch_tokens", dims=4)
        self.grid = None
        if patches is not None:
            d, h, w = patches.shape[1:4]
            self.grid = (d, h, w)
            tokens = patches.flatten(1, 3)
        else:
            one = cls if mean is None else mean
            assert one is not None
            tokens = one[:, None]
        self._require_width(tokens)
        if cls is not None and len(cls) != len(tokens):
            raise EmbedderError(
                f"{self._where} returns {len(cls)} layers of cls and {len(tokens)} of the others"
            )
        classes = [None] * len(tokens) if cls is None else [each[None] for each in cls]
        return [Tokens(one, each[None]) for one, each in zip(classes, tokens, strict=True)]

    def _rows(self, result: Mapping[str, Any], key: str, *, dims: int) -> Tensor | None:
        """(L, ...) float32 on the device, at most LAYERS of them."""
        if key not in result:
            return None
        values = torch.as_tensor(result[key], device=self._device).float()
        if values.dim() not in (dims, dims + 1):
            raise EmbedderError(
                f"{self._where} returns {key} of shape {tuple(values.shape)}, expected {dims} or "
                f"{dims + 1} axes"
            )
        return (values if values.dim() > dims else values[None])[:LAYERS]


def _together(layers: Sequence[Tokens]) -> Tokens:
    """One layer of several windows."""
    classes = [each.cls_token for each in layers if each.cls_token is not None]
    patches = torch.cat([each.patch_tokens for each in layers])
    return Tokens(torch.cat(classes) if classes else None, patches)
