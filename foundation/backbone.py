"""The published artefact of a pretraining: a folder that proves itself when it is loaded.

    backbone = load_backbone("runs/demo_mae/backbone")
    backbone = load_backbone("hf://org/name@v1", device="cuda")
    features = backbone.embed("scan.nii.gz", modality="CT")  # features.cls, features.mean

Weights and tensors are safetensors, everything else is text: nothing on the loading path can run
code. Loading checks every byte against ``SHA256SUMS``, every tensor against the config, and
recomputes a stored embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foundation.artefact.golden import GOLDEN_TOLERANCE
from foundation.artefact.layout import BackboneError
from foundation.artefact.loading import load_artefact
from foundation.artefact.report import LoadReport
from foundation.artefact.saving import save_backbone
from foundation.artefact.versions import SCHEMA_VERSION
from foundation.embedding import features
from foundation.embedding.token_map import TokenMap, token_map
from foundation.preprocessing import Preprocessing
from foundation.vit import Vit3d, VitConfig, build_vit
from recipes.load import digest
from shards.scan import Scan

__all__ = [
    "GOLDEN_TOLERANCE",
    "SCHEMA_VERSION",
    "Backbone",
    "BackboneError",
    "LoadReport",
    "load_backbone",
    "random_backbone",
    "save_backbone",
]


class Backbone(nn.Module):
    """A frozen backbone together with what its inputs must look like.

    Attributes:
        vit: The network, in evaluation mode, without gradients.
        preprocessing: The contract its inputs obey.
        digest: 64 hex digits that change with any byte of the artefact.
        provenance: How it came to be; empty for a random one.
        loaded: What loading it has proven; None for one that was not loaded.
    """

    def __init__(
        self,
        vit: Vit3d,
        *,
        preprocessing: Preprocessing,
        digest: str,
        provenance: dict[str, Any],
        loaded: LoadReport | None = None,
    ) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.digest = digest
        self.provenance = provenance
        self.loaded = loaded

    def report(self) -> str:
        """The load report, some lines; of a backbone that was not loaded, that it was not."""
        if self.loaded is None:
            return f"backbone  not loaded from anywhere, digest {self.digest[:16] or 'unknown'}"
        return str(self.loaded)

    @torch.inference_mode()
    def embed_scan(
        self, scan: Scan, *, spacing_mm: tuple[float, float, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Features of a whole scan, pooled over windows of the crop the backbone was trained on.

        Args:
            scan: Voxels in physical units.
            spacing_mm: Resample to this instead of to the contract's own spacing.

        Returns:
            ``cls``: (E,) float32, mean class token of the windows. ``mean``: (E,) float32, mean of
            the patch tokens that see any of the scan; pure padding does not count.
        """
        found = features.embed_scan(self, scan, spacing_mm=spacing_mm)
        return {"cls": found.cls.cpu().numpy(), "mean": found.mean.cpu().numpy()}

    def embed(
        self,
        what: str | Path | Scan | Tensor,
        *,
        modality: str | None = None,
        spacing_mm: features.Spacing | Tensor | None = None,
    ) -> features.Features:
        """Of a file, a scan or a batch of tensors: see ``foundation.embedding.features``."""
        return features.embed(self, what, modality=modality, spacing_mm=spacing_mm)

    def dense(self, scan: Scan, *, spacing_mm: features.Spacing | None = None) -> TokenMap:
        """Patch tokens of a scan, in its own space."""
        return token_map(self, scan, spacing_mm=spacing_mm)


def load_backbone(
    where: str | Path, *, device: str = "cpu", say: Callable[[str], None] | None = None
) -> Backbone:
    """Load and check a published backbone; of a fine-tuned model without its head.

    Args:
        where: A folder ``backbone/``, an archive of one (.tar, .zip), ``hf://org/name@revision``,
            any URL that fsspec opens, or a name of the index, such as ``demo``. What is fetched is
            kept in ``SCANFM_CACHE``.
        device: Where the network will live; the check itself runs on the CPU.
        say: Told the load report, which :meth:`Backbone.report` gives too; ``print`` will do.

    Raises:
        BackboneError: Missing or damaged files, a newer schema version, tensors that do not fit
            the config, an embedding that does not come out as stored, or no such device.
    """
    artefact, report = load_artefact(where, device=device, say=say)
    return Backbone(
        artefact.vit,
        preprocessing=artefact.preprocessing,
        digest=artefact.digest,
        provenance=artefact.provenance,
        loaded=report,
    ).to(device)


def random_backbone(vit_config: VitConfig, *, preprocessing: Preprocessing, seed: int) -> Backbone:
    """An untrained backbone: the floor every pretrained one has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = build_vit(vit_config)
    identity = {
        "vit": vit_config.model_dump(mode="json"),
        "preprocessing": preprocessing.model_dump(mode="json"),
        "seed": seed,
    }
    return Backbone(vit, preprocessing=preprocessing, digest=digest(identity), provenance={})
