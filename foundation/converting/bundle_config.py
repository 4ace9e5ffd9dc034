"""The text of a MONAI bundle: how it infers, what it is, how it is used, under which licence."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from foundation.backbone import Backbone
from foundation.converting.network import licences_of
from foundation.preprocessing import AIR, Preprocessing
from foundation.vit import VitConfig

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
WEIGHTS = "models/model.safetensors"
AXES = "SPL"
"""MONAI's name of our order: D to superior, H to posterior, W to the left."""

_OURS = "foundation.converting.bundled"


def inference_config(
    backbone: Backbone, vit_config: VitConfig, *, modality: str, sha256: str
) -> dict[str, Any]:
    """``configs/inference.json``: from NIfTI files to a table of features.

    ``inferer`` gives a scan's features, ``dense_inferer`` is MONAI's own and gives a token map.
    """
    contract = backbone.preprocessing
    spacing = contract.spacing_mm
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "images": "$sorted(glob.glob(@dataset_dir + '/**/*.nii*', recursive=True))",
        "network_def": {
            "_target_": f"{_OURS}.BundleNetwork",
            "vit": vit_config.model_dump(mode="json"),
            "weights": f"$@bundle_root + '/{WEIGHTS}'",
            "sha256": sha256,
            "spacing_mm": None if spacing is None else list(spacing),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": _transforms(contract, modality=modality),
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': each} for each in @images]",
            "transform": "@preprocessing",
        },
        "inferer": {
            "_target_": f"{_OURS}.ScanPooling",
            "crop_shape": list(contract.crop_shape),
        },
        "whole_patches": {
            "_target_": "DivisiblePadd",
            "keys": "image",
            "k": list(backbone.vit.patch_size),
            "method": "end",
            "constant_values": AIR,
        },
        "dense_inferer": {
            "_target_": "SlidingWindowInfererAdapt",
            "roi_size": list(contract.crop_shape),
            "sw_batch_size": 4,
            "overlap": 0.0,
            "mode": "constant",
            "padding_mode": "constant",
            "cval": AIR,
        },
        "evaluator": {
            "_target_": f"{_OURS}.Embedding",
            "dataset": "@dataset",
            "network": "@network",
            "inferer": "@inferer",
            "device": "@device",
            "root": "@dataset_dir",
            "folder": "@output_dir",
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }


def window_of(contract: Preprocessing, modality: str) -> tuple[float, float] | None:
    """The fixed window of a modality; None where each scan has its own."""
    fixed = {
        "CT": contract.window_hu,
        "PT": contract.window_suv,
        "OT": contract.window_other,
    }
    return fixed.get(modality)


def _transforms(contract: Preprocessing, *, modality: str) -> list[dict[str, Any]]:
    """The contract as transforms: MONAI's, and ours where only ours gives the same numbers."""
    window = window_of(contract, modality)
    scaling: dict[str, Any] = {"_target_": f"{_OURS}.OwnWindowd", "keys": "image"}
    if window is not None:
        low, high = window
        ends = {"a_min": low, "a_max": high, "b_min": -1.0, "b_max": 1.0, "clip": True}
        scaling = {"_target_": "ScaleIntensityRanged", "keys": "image", **ends}
    return [
        {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": AXES, "labels": None},
        {
            "_target_": f"{_OURS}.ContractGridd",
            "keys": "image",
            "modality": modality,
            "spacing_mm": None if contract.spacing_mm is None else list(contract.spacing_mm),
        },
        scaling,
    ]


def metadata(backbone: Backbone, vit_config: VitConfig, *, modality: str) -> dict[str, Any]:
    """``configs/metadata.json``, as MONAI's schema asks."""
    provenance = backbone.provenance
    grid = list(backbone.vit.grid(backbone.preprocessing.crop_shape))
    sources = provenance.get("shards", {}).get("sources", [])
    return {
        "schema": SCHEMA,
        "name": str(provenance.get("name", "backbone")),
        "version": "1.0.0",
        "changelog": {"1.0.0": f"converted from the backbone {backbone.digest}"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {
            package: _version(package) for package in ("scanfm", "safetensors", "nibabel", "timm")
        },
        "supported_apps": {},
        "task": "Features of 3D scans from a frozen backbone",
        "description": _description(vit_config, modality=modality),
        "authors": "see docs/README.md",
        "copyright": f"weights: {', '.join(licences_of(provenance)) or 'licence not recorded'}",
        "data_source": "; ".join(str(each["source"]) for each in sources) or "not recorded",
        "data_type": "nibabel",
        "image_classes": f"{modality}, one channel, scaled to [-1, 1], axes {AXES}",
        "pred_classes": "patch tokens, one channel for each feature",
        "intended_use": "Research on features of scans; not a medical device",
        "network_data_format": {
            "inputs": {"image": _image(backbone, modality=modality)},
            "outputs": {"pred": _tokens(vit_config.resolved.embed_dim, grid)},
        },
    }


def _description(vit_config: VitConfig, *, modality: str) -> str:
    width, depth, heads = vit_config.resolved
    return (
        f"A 3D vision transformer (width {width}, depth {depth}, {heads} heads) pretrained without "
        f"labels; it turns a {modality} scan into a vector, or into a map of tokens"
    )


def _image(backbone: Backbone, *, modality: str) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "hounsfield" if modality == "CT" else "magnitude",
        "modality": modality,
        "num_channels": backbone.vit.in_chans,
        "spatial_shape": list(backbone.preprocessing.crop_shape),
        "dtype": "float32",
        "value_range": [-1, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }


def _tokens(width: int, grid: list[int]) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "latent",
        "num_channels": width,
        "spatial_shape": grid,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {},
    }


def readme(card: str, *, modality: str, digest: str) -> str:
    """``docs/README.md``: how to run the bundle, then the backbone's own card."""
    return "\n".join(
        [
            "# A MONAI bundle",
            "",
            f"Features of {modality} scans from the backbone `{digest[:16]}`, whose card follows.",
            "It needs `pip install scanfm monai fire`. One row for each NIfTI file below a folder:",
            "",
            "    python -m monai.bundle run --config_file configs/inference.json \\",
            "        --bundle_root . --dataset_dir SCANS --output_dir OUT",
            "",
            f"The weights are `{WEIGHTS}`: safetensors, never a pickle. `monai.bundle.load` reads",
            "pickles alone, so build the network by `ConfigParser` or `ConfigWorkflow`",
            "(`network_def`). A configuration of MONAI can run code: use it from whom you trust.",
            "",
            "`inferer` pools over windows, as the backbone does, and gives `cls` and `mean`.",
            "`dense_inferer` is MONAI's sliding window and gives the map of patch tokens; put",
            "`whole_patches` behind `preprocessing` for it.",
            "",
            "`ContractGridd` resamples as in pretraining: around the same centre, smoothed where",
            "it gets coarser. MONAI's `Spacingd` does neither; with it, features are near but not",
            "equal.",
            "",
            card,
        ]
    )


def licence(provenance: Mapping[str, Any]) -> str:
    """``LICENSE``: of the configuration, and what holds for the weights."""
    found = licences_of(provenance)
    weights = (
        "derived from sources under: " + ", ".join(found)
        if found
        else "not recorded; ask who gave them to you"
    )
    return (
        "Configuration and documentation of this bundle: Apache-2.0\n"
        "(https://www.apache.org/licenses/LICENSE-2.0).\n\n"
        f"Weights ({WEIGHTS}): {weights}.\n"
        "The most restrictive of these holds for them.\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
