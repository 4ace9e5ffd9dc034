"""What a MONAI bundle's configuration builds: network, transforms and inferer over our own code.

So a feature never depends on who computed it: resampling, an MR's own window, windows and pooling
are those of ``Backbone.embed_scan``. Everything else in a bundle is MONAI's. Images lie in MONAI's
(C, D, H, W) with axes ``SPL``, which is our LPS order.
"""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from foundation.converting.network import ConvertError
from foundation.network.patches import Shape
from foundation.preprocessing import AIR
from foundation.vit import VitConfig, build_vit
from foundation.windows import Layers, Prepared, Tokens, pool_scan
from recipes.load import parse
from shards.files import sha256_of, write_text
from shards.measure.intensity import intensity_statistics
from shards.scan import Scan, physical_units, resample, to_lps

FEATURES = "features.csv"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class BundleNetwork(nn.Module):
    """A backbone that gives a map of patch tokens, as MONAI's sliding windows take it."""

    def __init__(
        self,
        *,
        vit: Mapping[str, Any],
        weights: str | None = None,
        sha256: str | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> None:
        """Build the network, frozen and in evaluation mode.

        Args:
            vit: Its configuration.
            weights: A safetensors file; None leaves it as drawn.
            sha256: What the file must be; None for weights that were trained further.
            spacing_mm: (d, h, w) of images, where the caller does not give it.

        Raises:
            ConvertError: Not these weights, or not of this network.
        """
        super().__init__()
        self.vit = build_vit(parse(dict(vit), VitConfig, where="network_def"))
        self.spacing_mm = None if spacing_mm is None else torch.tensor([list(spacing_mm)])
        if weights is not None:
            _load(self.vit, Path(weights), sha256=sha256)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, spacing_mm: Tensor | None = None) -> Tensor:
        """Patch tokens on their grid, (B, E, d, h, w).

        Args:
            image: (B, C, D, H, W) in [-1, 1]; whole patches on every axis.
            spacing_mm: (B, 3), or (1, 3) for all.
        """
        d, h, w = self.vit.grid(image.shape[2:])
        tokens = self.tokens(image, spacing_mm).patch_tokens
        return rearrange(tokens, "b (d h w) e -> b e d h w", d=d, h=h, w=w)

    def tokens(self, image: Tensor, spacing_mm: Tensor | None = None) -> Tokens:
        """Class token and patch tokens; the arguments are those of ``forward``."""
        given = self.spacing_mm if spacing_mm is None else spacing_mm
        plain = image.as_subclass(Tensor)  # MONAI's images carry more than a network needs
        if given is not None:
            given = given.to(plain.device, torch.float32).expand(len(plain), -1)
        return Tokens(*self.vit(plain, spacing_mm=given))


def _load(vit: nn.Module, path: Path, *, sha256: str | None) -> None:
    if not path.is_file():
        raise ConvertError(f"{path}: no such weights; is bundle_root the bundle's folder?")
    if sha256 is not None and sha256_of(path) != sha256:
        raise ConvertError(
            f"{path}: not the weights this bundle was made with (SHA-256 differs); set "
            f"network_def#sha256 to null if they were trained further"
        )
    try:
        vit.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ConvertError(f"{path}: not the weights of this network ({error})") from None


class ContractGridd:
    """An image as our readers give it, at the contract's spacing: physical units, axes LPS.

    MONAI's ``Spacingd`` may stand here instead; it neither smooths before it coarsens nor keeps the
    centre, and features differ by that.
    """

    def __init__(
        self, keys: str | Sequence[str], *, modality: str, spacing_mm: Sequence[float] | None
    ) -> None:
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.modality = modality
        self.spacing_mm = spacing_mm

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Each image (1, D, H, W) with its affine on the new grid.

        Raises:
            ScanError: Sheared axes, no finite voxel, or thinner than one new voxel.
        """
        return {**data, **{key: self._regridded(data[key]) for key in self.keys}}

    def _regridded(self, image: Any) -> Any:
        if len(image) != 1:
            raise ConvertError(f"an image of {len(image)} channels; the bundle reads one")
        voxels = np.asarray(image[0])
        oriented = to_lps(voxels, affine=np.asarray(image.affine, dtype=np.float64))
        units = physical_units(oriented.voxels, modality=self.modality)
        scan = Scan(units, oriented.spacing_mm, self.modality, oriented.affine)
        if self.spacing_mm is not None:
            d, h, w = self.spacing_mm
            scan = resample(scan, (d, h, w))
        assert scan.affine is not None
        values = torch.from_numpy(scan.voxels.astype(np.float32))[None]
        affine = torch.from_numpy(_LPS_TO_RAS @ scan.affine)
        meta = {name: value for name, value in image.meta.items() if name != "affine"}
        return type(image)(values, affine=affine, meta=meta)


class OwnWindowd:
    """Each image from its own p00_5 to p99_5 of what is above its minimum, to [-1, 1]: an MR."""

    def __init__(self, keys: str | Sequence[str]) -> None:
        self.keys = [keys] if isinstance(keys, str) else list(keys)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """A constant image becomes -1."""
        return {**data, **{key: self._windowed(data[key]) for key in self.keys}}

    def _windowed(self, image: Any) -> Any:
        found = intensity_statistics(np.asarray(image))
        span = found.p99_5 - found.p00_5
        unit = (image - found.p00_5) * (2.0 / (span if span > 0 else 1.0)) - 1.0
        return unit.clamp(-1.0, 1.0)


class ScanPooling:
    """An inferer: features of a whole scan, pooled over windows that cover it evenly."""

    def __init__(self, *, crop_shape: Sequence[int]) -> None:
        d, h, w = crop_shape
        self.crop_shape: Shape = (d, h, w)

    @torch.inference_mode()
    def __call__(
        self, inputs: Tensor, network: BundleNetwork, spacing_mm: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``cls`` and ``mean``, (1, E) each, of one image (1, 1, D, H, W)."""
        if inputs.shape[:2] != (1, 1):
            raise ConvertError(f"one image of one channel at a time, got {tuple(inputs.shape)}")

        def windows_through(windows: Tensor) -> Layers:
            return [network.tokens(windows, spacing_mm)]

        pooled = pool_scan(
            windows_through,
            _centred(inputs[0, 0].as_subclass(Tensor), self.crop_shape),
            crop_shape=self.crop_shape,
            patch_size=network.vit.patch_size,
        )
        return {"cls": pooled.cls, "mean": pooled.mean}


def _centred(volume: Tensor, crop_shape: Shape) -> Prepared:
    """At least one window large, the scan in the middle of its padding."""
    gaps = [max(crop - size, 0) for crop, size in zip(crop_shape, volume.shape, strict=True)]
    pad = [edge for gap in reversed(gaps) for edge in (gap // 2, gap - gap // 2)]
    inside = functional.pad(torch.ones_like(volume), pad, value=0.0)
    before = (gaps[0] // 2, gaps[1] // 2, gaps[2] // 2)
    return Prepared(functional.pad(volume, pad, value=AIR), inside, before)


class Embedding:
    """The bundle's evaluator: one row of features for each image of a dataset."""

    def __init__(
        self,
        *,
        dataset: Sequence[Mapping[str, Any]],
        network: BundleNetwork,
        inferer: Callable[..., Mapping[str, Tensor]],
        device: torch.device | str,
        root: str,
        folder: str,
    ) -> None:
        """Rows are named by the image's path below ``root``; the table lies in ``folder``."""
        self.dataset = dataset
        self.network = network
        self.inferer = inferer
        self.device = torch.device(device)
        self.root = root
        self.folder = Path(folder)

    def embed(self, image: Any) -> dict[str, np.ndarray]:
        """``cls`` and ``mean``, (E,) each, of an image that the transforms have prepared."""
        spacing = torch.as_tensor(np.asarray(image.pixdim), dtype=torch.float32)[None]
        given = image[None].as_subclass(Tensor).to(self.device)
        found = self.inferer(given, self.network, spacing_mm=spacing)
        return {name: tensor[0].cpu().numpy() for name, tensor in found.items()}

    def run(self) -> Path:
        """Embed all and write the table.

        Raises:
            ConvertError: There is no image.
        """
        if not len(self.dataset):
            raise ConvertError(f"{self.root}: no NIfTI file; set dataset_dir to their folder")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        for number in tqdm(range(len(self.dataset)), unit="scan", disable=None):
            image = self.dataset[number]["image"]
            row = self.embed(image)
            if not number:
                columns = [f"{kind}_{i}" for kind, value in row.items() for i in range(len(value))]
                table.writerow(["scan", *columns])
            name = os.path.relpath(image.meta["filename_or_obj"], self.root)
            # Nine digits give each float32 back exactly.
            table.writerow([name, *(f"{one:.9g}" for value in row.values() for one in value)])
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / FEATURES, text.getvalue())
        print(f"features: {self.folder / FEATURES}", flush=True)
        return self.folder / FEATURES
