"""What a fine-tuned model finds in a scan, as numbers that several scans of a subject average."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from foundation.finetuning.links import scores_of, survival_at_ends
from foundation.finetuning.mask_space import Classes, classes_of, mean_entropy, volumes_ml
from foundation.finetuning.whole_scan import scan_logits, scan_probabilities
from shards.scan import Scan, ScanError

if TYPE_CHECKING:  # which delegates to this
    from foundation.model import Model

Floats = NDArray[np.float64]
Outcome = Mapping[str, Floats]
"""``scores`` (K,) as evaluation takes them, and of a survival ``survival`` (J,) at the ends of its
intervals; of a segmentation ``volumes_ml`` (K,) and ``entropy`` (1,) instead. A mean over scans is
an outcome again."""


def label_outcome(model: "Model", scan: Scan) -> Outcome:
    """Of any kind but a segmentation, not calibrated.

    Raises:
        ScanError: The scan is thinner than a voxel of the contract's spacing, or what is computed
            of it is not finite.
    """
    logits = scan_logits(
        model.network, scan, preprocessing=model.backbone.preprocessing, device=model.device
    )
    with torch.inference_mode():
        precise = logits.double()[None]
        found = {"scores": scores_of(precise, model.target)[0].numpy()}
        if model.target.kind == "survival":
            found["survival"] = survival_at_ends(precise)[0].numpy()
    return _finite(found)


def mask_outcome(model: "Model", scan: Scan) -> tuple[Outcome, Classes]:
    """Of a segmentation, and the class (D, H, W) of each voxel in the scan's own grid.

    Raises:
        ScanError: The scan is thinner than a voxel of the contract's spacing, or what is computed
            of it is not finite.
    """
    decoder = model.settings.decoder
    assert decoder is not None, "a segmentation has one"
    contract = model.backbone.preprocessing
    probabilities = scan_probabilities(
        model.network, scan, preprocessing=contract, device=model.device, overlap=decoder.overlap
    )
    classes = classes_of(probabilities, scan, spacing_mm=contract.spacing_mm)
    volumes = volumes_ml(classes, spacing_mm=scan.spacing_mm, num_classes=len(model.target.outputs))
    found = {"volumes_ml": volumes, "entropy": np.array([mean_entropy(probabilities)])}
    return _finite(found), classes


def _finite(outcome: Outcome) -> Outcome:
    """As it is: a class can be read off any numbers, and a mask too."""
    if not all(np.isfinite(array).all() for array in outcome.values()):
        raise ScanError("what was computed is not finite")
    return outcome
