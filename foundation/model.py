"""A fine-tuned model: a published backbone with the head, or the decoder, that was trained on it.

    model = load_model("runs/demo_tune/adrenal/model")
    found = model.predict("scan.nii.gz", modality="CT")
    found["label"], found["probability_1"], found["uncertainty"]
    mask = load_model("runs/demo_tune/hippocampus/model").segment(scan)

What is loaded is proven as a backbone is, its head too. ``foundation.predicting.cells`` says what
is told of each kind of task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foundation.artefact.head import HeadSettings
from foundation.artefact.layout import BackboneError
from foundation.artefact.loading import load_artefact
from foundation.artefact.saving import save_model
from foundation.backbone import Backbone
from foundation.embedding.features import InputError, check_takes_scans
from foundation.finetuning.calibration import Calibration
from foundation.finetuning.mask_space import Classes, Labels, labels_of
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.predicting.cells import Cell, cells_of
from foundation.predicting.outcome import Floats, Outcome, label_outcome, mask_outcome
from shards.scan import Scan, read_scan

__all__ = ["BackboneError", "HeadSettings", "Model", "Prediction", "load_model", "save_model"]


@dataclass(frozen=True)
class Prediction:
    """Of one scan.

    Attributes:
        cells: What is told, by the names of the columns of a table; calibrated.
        outcome: What it was told from, not calibrated.
        mask: Of a segmentation, (D, H, W) on the scan's own grid, with the values of the task's
            masks.
    """

    cells: Mapping[str, Cell]
    outcome: Outcome
    mask: Labels | None = None

    def __getitem__(self, name: str) -> Cell:
        """One cell."""
        return self.cells[name]


class Model(nn.Module):
    """A backbone with its head, in evaluation mode, without gradients.

    Attributes:
        network: Backbone and head.
        settings: Of the head: what its outputs mean, and how far they can be trusted.
        backbone: The same backbone, tuned, with the contract its inputs obey.
    """

    def __init__(self, backbone: Backbone, network: TunedNetwork, settings: HeadSettings) -> None:
        super().__init__()
        assert network.vit is backbone.vit, "one backbone"
        self.backbone = backbone
        self.network = network.eval().requires_grad_(False)
        self.settings = settings

    @property
    def target(self) -> Target:
        """What it predicts."""
        return self.settings.target

    @property
    def calibration(self) -> Calibration | None:
        """Fitted on subjects it was not trained on."""
        return self.settings.calibration

    @property
    def digest(self) -> str:
        """64 hex digits that change with any byte of the artefact."""
        return self.backbone.digest

    @property
    def provenance(self) -> dict[str, Any]:
        """How it came to be."""
        return self.backbone.provenance

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.backbone.vit.cls_token.device

    def report(self) -> str:
        """The load report, some lines."""
        return self.backbone.report()

    def score_scan(self, scan: Scan) -> Floats:
        """Scores as evaluation takes them, (K,) float64, not calibrated.

        Those of several scans of a subject are averaged.

        Raises:
            InputError: A segmentation is scored by its masks: see :meth:`classes_of`.
            ScanError: The scan is too thin, or what is computed is not finite.
        """
        self._check_kind(is_mask=False)
        return label_outcome(self, scan)["scores"]

    def classes_of(self, scan: Scan) -> Classes:
        """(D, H, W) on the scan's own grid: 0 is background, k the k-th class of the target.

        Raises:
            InputError: It is no segmentation.
            ScanError: The scan is too thin, or what is computed is not finite.
        """
        self._check_kind(is_mask=True)
        return mask_outcome(self, scan)[1]

    def segment(self, scan: Scan) -> Labels:
        """(D, H, W) on the scan's own grid, with the values of the task's masks.

        Raises:
            InputError: It is no segmentation.
            ScanError: The scan is too thin, or what is computed is not finite.
        """
        return labels_of(self.classes_of(scan), self.target)

    def predict_scan(self, scan: Scan) -> Prediction:
        """What is told of a scan.

        Raises:
            ScanError: The scan is too thin, or what is computed is not finite.
        """
        mask: NDArray[np.unsignedinteger[Any]] | None = None
        if self.target.kind == "segmentation":
            outcome, classes = mask_outcome(self, scan)
            mask = labels_of(classes, self.target)
        else:
            outcome = label_outcome(self, scan)
        return Prediction(cells_of(outcome, self.target, self.calibration), outcome, mask)

    def predict(self, where: str | Path, *, modality: str | None = None) -> Prediction:
        """What is told of a file or a DICOM folder, whether training has seen its like or not.

        Args:
            where: See :func:`shards.scan.read_scan`.
            modality: Of an image file, which does not tell.

        Raises:
            ScanError: It cannot be read, is too thin, or what is computed is not finite.
        """
        return self.predict_scan(read_scan(where, modality=modality))

    def _check_kind(self, *, is_mask: bool) -> None:
        if is_mask != (self.target.kind == "segmentation"):
            way = "classes_of or segment" if not is_mask else "score_scan"
            raise InputError(f"{self.target.task} is of kind {self.target.kind}: call {way}")


def load_model(
    where: str | Path, *, device: str = "cpu", say: Callable[[str], None] | None = None
) -> Model:
    """Load and check a fine-tuned model.

    Args:
        where: As :func:`foundation.backbone.load_backbone` takes it.
        device: Where the network will live; the check itself runs on the CPU.
        say: Told the load report.

    Raises:
        BackboneError: Whatever :func:`foundation.backbone.load_backbone` refuses, or a backbone
            without a head.
        InputError: It takes several sequences at once.
    """
    artefact, report = load_artefact(where, device=device, say=say)
    if artefact.tuned is None:
        raise BackboneError(
            f"{where}: is a backbone without a head, which predicts nothing; fine-tune it with "
            f"foundation.finetune, or embed with foundation.embed"
        )
    backbone = Backbone(
        artefact.vit,
        preprocessing=artefact.preprocessing,
        digest=artefact.digest,
        provenance=artefact.provenance,
        loaded=report,
    )
    check_takes_scans(backbone)
    return Model(backbone, artefact.tuned.network, artefact.tuned.settings).to(device)
