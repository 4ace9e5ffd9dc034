"""The published artefact of a pretraining: a folder that proves itself when it is loaded.

    backbone = load_backbone("runs/demo_mae/backbone")
    features = backbone.embed_scan(read_scan("scan.nii.gz", modality="CT"))

Weights and tensors are safetensors, everything else is text: nothing on the loading path can run
code. Loading checks every byte against ``SHA256SUMS``, every tensor against the config, and
recomputes a stored embedding.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foundation.preprocessing import Preprocessing
from foundation.running.card import model_card
from foundation.running.files import sync_tree
from foundation.vit import Vit3d, VitConfig, build_vit
from foundation.windows import Layers, Tokens, pool_scan, prepare
from recipes.load import RecipeError, digest, parse
from shards.files import fresh_folder, publish_folder, sha256_of, write_json, write_text
from shards.scan import Scan, resample

SCHEMA_VERSION = 1

WEIGHTS, CONFIG, PREPROCESSING = "model.safetensors", "config.json", "preprocessing.json"
PROVENANCE, GOLDEN, SUMS = "provenance.json", "golden.safetensors", "SHA256SUMS"
RECIPE, CARD = "recipe.yaml", "README.md"
FILES = (WEIGHTS, CONFIG, PREPROCESSING, RECIPE, PROVENANCE, GOLDEN, CARD)

GOLDEN_TOLERANCE = 1e-4
_GOLDEN_GRID = (2, 3, 4)
_GOLDEN_SPACING_MM = (5.0, 1.5, 2.0)
_GOLDEN_SEED = 0


class BackboneError(ValueError):
    """A folder that is no backbone, or not the one that was published."""


class Backbone(nn.Module):
    """A frozen backbone together with what its inputs must look like.

    Attributes:
        vit: The network, in evaluation mode, without gradients.
        preprocessing: The contract its inputs obey.
        digest: 64 hex digits that change with any byte of the artefact.
        provenance: How it came to be; empty for a random one.
    """

    def __init__(
        self, vit: Vit3d, *, preprocessing: Preprocessing, digest: str, provenance: dict[str, Any]
    ) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.digest = digest
        self.provenance = provenance

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
        target = spacing_mm or self.preprocessing.spacing_mm
        scan = resample(scan, target) if target else scan
        device = self.vit.cls_token.device
        spacing = torch.tensor([scan.spacing_mm], device=device)

        def network(windows: Tensor) -> Layers:
            return [Tokens(*self.vit(windows, spacing_mm=spacing.expand(len(windows), -1)))]

        pooled = pool_scan(
            network,
            prepare(scan, preprocessing=self.preprocessing, device=device),
            crop_shape=self.preprocessing.crop_shape,
            patch_size=self.vit.patch_size,
        )
        return {"cls": pooled.cls[0].cpu().numpy(), "mean": pooled.mean[0].cpu().numpy()}


def save_backbone(
    folder: str | Path,
    *,
    vit: Vit3d,
    vit_config: VitConfig,
    preprocessing: Preprocessing,
    recipe: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Publish a backbone: the whole folder appears at once, or not at all.

    Args:
        folder: Replaced if it exists.
        vit: Trained weights; stored as float32.
        vit_config: Builds the same network again.
        preprocessing: The contract its inputs obey.
        recipe: The resolved recipe, JSON-like.
        provenance: How it came to be, JSON-like.
    """
    folder = Path(folder)
    beside = fresh_folder(folder)
    frozen = build_vit(vit_config)
    frozen.load_state_dict({name: t.float().cpu() for name, t in vit.state_dict().items()})
    _save({k: v.contiguous() for k, v in frozen.state_dict().items()}, beside / WEIGHTS)
    _save(_golden_pair(frozen.eval()), beside / GOLDEN)
    write_json(beside / CONFIG, {"schema_version": SCHEMA_VERSION, "vit": vit_config.model_dump()})
    write_json(beside / PREPROCESSING, preprocessing.model_dump())
    write_text(beside / RECIPE, yaml.safe_dump(recipe, sort_keys=False, width=100))
    write_json(beside / PROVENANCE, provenance)
    card = model_card(vit_config, preprocessing=preprocessing, provenance=provenance)
    write_text(beside / CARD, card)
    sums = "".join(f"{sha256_of(beside / name)}  {name}\n" for name in sorted(FILES))
    write_text(beside / SUMS, sums)
    sync_tree(beside)
    publish_folder(beside, folder)


def load_backbone(where: str | Path, *, device: str = "cpu") -> Backbone:
    """Load and check a published backbone.

    Args:
        where: The ``backbone/`` folder.
        device: Where the network will live; the check itself runs on the CPU.

    Raises:
        BackboneError: Missing or damaged files, another schema version, tensors that do not fit
            the config, an embedding that does not come out as stored, or no such device.
    """
    folder = Path(where)
    _check_device(device)
    sums = _verified_sums(folder)
    vit_config = _vit_config(folder)
    preprocessing = _section(folder / PREPROCESSING, Preprocessing)
    vit = _with_weights(vit_config, folder / WEIGHTS).eval()
    _check_golden(vit, folder / GOLDEN)
    return Backbone(
        vit,
        preprocessing=preprocessing,
        digest=hashlib.sha256(sums).hexdigest(),
        provenance=_json(folder / PROVENANCE),
    ).to(device)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    # torch tells of a device that is not there in three types; the first sentence says enough.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise BackboneError(f"device {device!r} cannot be used ({reason})") from None


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


def _golden_pair(vit: Vit3d) -> dict[str, Tensor]:
    """A small fixed input with unequal axes, and what the network makes of it."""
    shape = [cells * patch for cells, patch in zip(_GOLDEN_GRID, vit.patch_size, strict=True)]
    generator = torch.Generator().manual_seed(_GOLDEN_SEED)
    volume = torch.rand(1, vit.in_chans, *shape, generator=generator) * 2 - 1
    golden = {"volume": volume, "spacing_mm": torch.tensor([_GOLDEN_SPACING_MM])}
    return {**golden, **_golden_embedding(vit, golden)}


def _golden_embedding(vit: Vit3d, golden: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode():
        output = vit(golden["volume"], spacing_mm=golden.get("spacing_mm"))
        return {"cls": output.cls_token.clone(), "mean": output.patch_tokens.mean(dim=1)}


def _check_golden(vit: Vit3d, path: Path) -> None:
    stored = _tensors(path)
    if missing := {"volume", "cls", "mean"} - set(stored):
        raise BackboneError(f"{path}: lacks {', '.join(sorted(missing))}; download it again")
    for name, found in _golden_embedding(vit, stored).items():
        error = (found - stored[name]).abs().max().item()
        if not error <= GOLDEN_TOLERANCE:
            raise BackboneError(
                f"{path}: the stored {name} embedding comes out {error:.2g} away, at most "
                f"{GOLDEN_TOLERANCE:g} is allowed; this code does not compute what the backbone "
                f"was published with, use the version its provenance names"
            )


def _verified_sums(folder: Path) -> bytes:
    """The content of SHA256SUMS, once every file it lists has been found to match."""
    path = folder / SUMS
    if not path.is_file():
        state = "has no SHA256SUMS" if folder.is_dir() else "is no folder"
        raise BackboneError(
            f"{folder}: {state}; a backbone is the folder backbone/ that a pretraining writes"
        )
    content = path.read_bytes()
    listed: dict[str, str] = {}
    for line in content.decode("utf-8", errors="replace").splitlines():
        expected, _, name = line.partition("  ")
        listed[name] = expected
    if set(listed) != set(FILES):
        odd = ", ".join(sorted(set(listed) ^ set(FILES)))
        raise BackboneError(f"{path}: must list exactly the files of a backbone; differs in {odd}")
    for name, expected in sorted(listed.items()):
        file = folder / name
        if not file.is_file():
            raise BackboneError(f"{file}: missing; download the backbone again")
        if sha256_of(file) != expected:
            raise BackboneError(
                f"{file}: its SHA-256 is not the one in {SUMS}; it is damaged or was changed, "
                f"download it again"
            )
    return content


def _vit_config(folder: Path) -> VitConfig:
    path = folder / CONFIG
    content = _json(path)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BackboneError(
            f"{path}: schema version {version!r}, this code reads {SCHEMA_VERSION}; "
            f"install the scanfm that wrote it, or a newer one"
        )
    return _section(path, VitConfig, content.get("vit"))


def _section(path: Path, schema: type[Any], content: Any = None) -> Any:
    try:
        return parse(_json(path) if content is None else content, schema, where=str(path))
    except RecipeError as error:
        raise BackboneError(str(error)) from None


def _with_weights(vit_config: VitConfig, path: Path) -> Vit3d:
    tensors = _tensors(path)
    with torch.device("meta"):
        vit = build_vit(vit_config)
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    if odd := sorted(set(expected) ^ set(tensors)):
        missing = [name for name in odd if name in expected]
        word = f"lacks {missing[0]!r}" if missing else f"holds the foreign tensor {odd[0]!r}"
        raise BackboneError(f"{path}: {word} ({len(odd)} names differ from {CONFIG})")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise BackboneError(
                f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, {CONFIG} asks {shape}"
            )
    vit.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return vit


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise BackboneError(f"{path}: cannot be written ({error})") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path}: not a safetensors file ({error})") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise BackboneError(f"{path}: holds {type(content).__name__}, expected a mapping")
    return content
