"""A MONAI bundle of a backbone, checked by MONAI's own loader on an image file.

configs/inference.json  configs/metadata.json  models/model.safetensors
docs/README.md  LICENSE
"""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from foundation.artefact.layout import CARD
from foundation.artefact.tensors import write_tensors
from foundation.backbone import Backbone
from foundation.converting.bundle_config import (
    WEIGHTS,
    inference_config,
    licence,
    metadata,
    readme,
    window_of,
)
from foundation.converting.checking import Checked, within
from foundation.converting.network import ConvertError
from shards.files import sha256_of, write_json, write_text
from shards.scan import read_scan

INFERENCE, METADATA = "configs/inference.json", "configs/metadata.json"
TOLERANCE = 1e-4

_SPACING_MM = (4.0, 1.5, 2.0)
_OFF_CONTRACT = (0.8, 1.25, 0.9)
"""Of the image that checks, against the contract's spacing: finer, coarser, finer."""


def needs_library() -> None:
    """Raises ConvertError, before anything is computed, where MONAI is not installed."""
    try:
        import monai  # noqa: F401
    except ImportError:
        raise ConvertError(
            "a bundle is checked by MONAI, which is not installed: pip install monai"
        ) from None


def is_bundle(folder: Path) -> bool:
    """Whether a folder is one that :func:`write_bundle` wrote."""
    return all((folder / name).is_file() for name in (INFERENCE, METADATA, WEIGHTS))


def write_bundle(backbone: Backbone, folder: Path, *, modality: str) -> Checked:
    """Write all files and check them.

    Args:
        backbone: Loaded from an artefact.
        folder: Does not exist yet.
        modality: Of the images it reads.

    Raises:
        ConvertError: Several channels, or features that are not the backbone's.
    """
    if backbone.vit.in_chans != 1:
        raise ConvertError(
            f"the backbone takes {backbone.vit.in_chans} channels and a bundle reads one image; "
            f"export with --to torch or --to onnx"
        )
    if backbone.loaded is None:
        raise ConvertError("the backbone was not loaded from an artefact; save and load it first")
    vit_config = backbone.loaded.vit_config
    for name in (INFERENCE, WEIGHTS, "docs/README.md"):
        (folder / name).parent.mkdir(parents=True)
    write_json(folder / METADATA, metadata(backbone, vit_config, modality=modality))
    tensors = {name: each.contiguous() for name, each in backbone.vit.state_dict().items()}
    write_tensors(tensors, folder / WEIGHTS, mode_of=folder / METADATA)
    sha256 = sha256_of(folder / WEIGHTS)
    config = inference_config(backbone, vit_config, modality=modality, sha256=sha256)
    write_json(folder / INFERENCE, config)
    card = (backbone.loaded.folder / CARD).read_text(encoding="utf-8")
    write_text(folder / "docs/README.md", readme(card, modality=modality, digest=backbone.digest))
    write_text(folder / "LICENSE", licence(backbone.provenance))
    return check_bundle(backbone, folder, modality=modality)


def check_bundle(backbone: Backbone, folder: Path, *, modality: str) -> Checked:
    """Embed an image file by the bundle, in MONAI, and by the backbone.

    Raises:
        ConvertError: The features differ.
    """
    with tempfile.TemporaryDirectory() as place, _without_warnings():
        image = Path(place) / "scan.nii.gz"
        _write_image(image, backbone, modality=modality)
        expected = backbone.embed_scan(read_scan(image, modality=modality))
        parser = bundle_parser(folder, device="cpu", dataset_dir=place, output_dir=place)
        prepared = parser.get_parsed_content("dataset")[0]["image"]
        found = parser.get_parsed_content("evaluator").embed(prepared)
    differences = {
        name: float(np.abs(found[name] - feature).max()) for name, feature in expected.items()
    }
    return within(Checked(differences, TOLERANCE), what=folder.name)


def bundle_parser(folder: Path, **settings: Any) -> Any:
    """MONAI's parser of a bundle, its settings replaced by those that are given."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / INFERENCE))
    parser.read_meta(str(folder / METADATA))
    parser.update({"bundle_root": str(folder), **settings})
    return parser


@contextmanager
def _without_warnings() -> Iterator[None]:
    """MONAI's, of readers that are not installed and no NIfTI needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_image(path: Path, backbone: Backbone, *, modality: str) -> None:
    """Noise of several windows, off the contract's spacing, stored in another order of axes."""
    import nibabel

    contract = backbone.preprocessing
    if contract.spacing_mm is None:
        spacing = np.asarray(_SPACING_MM)
    else:
        spacing = np.multiply(contract.spacing_mm, _OFF_CONTRACT)
    # In files W runs to the right, then D to superior, then H to anterior.
    d, h, w = (size + size // 3 + 1 for size in contract.crop_shape)
    low, high = window_of(contract, modality) or (0.0, 1000.0)
    noise = np.random.default_rng(0).normal((low + high) / 2, (high - low) / 3, (w, d, h))
    voxels = noise.round().astype(np.int16) if high - low > 50 else noise.astype(np.float32)
    affine = np.zeros((4, 4))
    affine[[0, 2, 1], [0, 1, 2]] = spacing[[2, 0, 1]]
    affine[:, 3] = (-30.0, 12.0, 7.5, 1.0)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
