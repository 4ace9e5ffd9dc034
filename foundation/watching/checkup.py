"""Embed the pinned scans now and then, while the backbone is trained, and measure the features."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from foundation.health import LEAST_SCANS, knn_auroc
from foundation.preprocessing import Preprocessing, normalise_batch
from foundation.running.ranks import gather_from_ranks
from foundation.vit import Vit3d
from foundation.watching.monitors import cls_patch_cosine, feature_monitors
from foundation.watching.pinned import PinnedSet
from shards.streaming.batch import CropBatch


class Embedded(NamedTuple):
    """Features of n pinned scans, float32 on the CPU."""

    cls_token: Tensor
    """(n, E)"""
    patch_mean: Tensor
    """(n, E), each scan's mean over its patch tokens"""
    labels: list[str | None]


class Checkup:
    """Measures the backbone of the moment; every rank embeds its share, and all get the numbers."""

    def __init__(
        self,
        pinned: PinnedSet,
        *,
        backbone: Vit3d,
        preprocessing: Preprocessing,
        pooled: Literal["cls", "mean"],
        every_steps: int,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        """Prepare.

        Args:
            pinned: This rank's.
            backbone: The method's, wherever its weights will be by then.
            preprocessing: Of the run.
            pooled: The features that are measured: those that the method trains.
            every_steps: Updates between two checks.
            device: Of the backbone.
            precision: That layers compute in; bf16 is autocast.
        """
        self._pinned = pinned
        self._backbone = backbone
        self._preprocessing = preprocessing
        self._pooled = pooled
        self._every_steps = every_steps
        self._device = device
        self._precision = precision

    @property
    def is_over(self) -> bool:
        """Never: a run is rolled back or stopped by its alarms, not ended by what is measured."""
        return False

    def kept(self) -> dict[str, Any]:
        """Nothing: what is measured depends on the weights alone."""
        return {}

    def after(self, done: int) -> dict[str, float]:
        """The monitors, where a check is due after ``done`` updates; a collective call.

        Fewer than 8 scans in all tell nothing, and give nothing.
        """
        if done % self._every_steps:
            return {}
        return measure(_joined(gather_from_ranks(self._embed())), pooled=self._pooled)

    @torch.no_grad()
    def _embed(self) -> Embedded:
        """This rank's scans, with nothing masked and no path dropped."""
        backbone, training = self._backbone, self._backbone.training
        backbone.eval()
        bf16 = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            found = [self._features(batch) for batch in self._pinned.batches]
        backbone.train(training)
        empty = torch.empty(0, backbone.embed_dim)
        return Embedded(
            torch.cat([empty, *(cls_token for cls_token, _ in found)]),
            torch.cat([empty, *(patch_mean for _, patch_mean in found)]),
            self._pinned.labels,
        )

    def _features(self, batch: CropBatch) -> tuple[Tensor, Tensor]:
        normalised = normalise_batch(batch.to(self._device), preprocessing=self._preprocessing)
        output = self._backbone(
            normalised.volume, spacing_mm=normalised.spacing_mm, present=batch.present
        )
        patch_mean = output.patch_tokens.float().mean(dim=1)
        return output.cls_token.float().cpu(), patch_mean.cpu()


def measure(embedded: Embedded, *, pooled: Literal["cls", "mean"]) -> dict[str, float]:
    """Every monitor of the features of one scan each of n subjects."""
    cls_token, patch_mean, labels = embedded
    if len(labels) < LEAST_SCANS:
        return {}
    features = cls_token if pooled == "cls" else patch_mean
    monitors = feature_monitors(features)
    monitors["cls_patch_cosine"] = cls_patch_cosine(cls_token, patch_mean=patch_mean)
    score = knn_auroc(features.double().numpy(), labels=labels)
    return monitors if score is None else {**monitors, "knn_auroc": score}


def _joined(parts: list[Embedded]) -> Embedded:
    """Of all ranks."""
    return Embedded(
        torch.cat([part.cls_token for part in parts]),
        torch.cat([part.patch_mean for part in parts]),
        [label for part in parts for label in part.labels],
    )
