"""Fine-tuning as a method of the training loop: what a batch shows, its labels, and the loss."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from foundation.augment import AugmentConfig, CropScale, ViewParameters, apply_view, draw_view
from foundation.augmenting.spatial import resample
from foundation.finetuning.data import class_table
from foundation.finetuning.heads import PooledHead, head_draws
from foundation.finetuning.losses import LossConfig, LossWeights, label_loss
from foundation.finetuning.mask_loss import mask_loss
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.objective.preparation import Preparation
from foundation.preprocessing import NormalisedBatch, Preprocessing, normalise_batch
from foundation.running.parameters import UNIFORM, LayerRates, ParameterGroup, parameter_groups
from foundation.running.randomness import path_draws
from foundation.vit import Crops, Vit3d
from shards.streaming.batch import SUBJECT_DIGITS, CropBatch

_WHOLE = CropScale(in_plane=(1.0, 1.0), across=(1.0, 1.0), aspect=(1.0, 1.0))


class Shown(NamedTuple):
    """What the network sees of a batch."""

    crops: Crops
    inside: Tensor
    """(B, 1, D, H, W) bool, False on padding"""
    classes: Tensor | None
    """(B, D, H, W) int64 of a segmentation"""


class LabelTable(nn.Module):
    """Labels of the training subjects, found by the numbers that a batch names them by."""

    def __init__(self, subjects: Sequence[str], label: NDArray[np.float64]) -> None:
        """``subjects`` are n pseudonyms, ``label`` is (n,) or (n, L)."""
        super().__init__()
        numbers = torch.tensor([int(subject[:SUBJECT_DIGITS], 16) for subject in subjects])
        order = numbers.argsort()
        # In float64: days and volumes keep all their digits.
        self.register_buffer("_numbers", numbers[order], persistent=False)
        self.register_buffer("_label", torch.from_numpy(label)[order], persistent=False)
        self._numbers: Tensor
        self._label: Tensor

    def forward(self, subject: Tensor) -> Tensor:
        """Labels of the subjects of a batch, (B,) or (B, L)."""
        number = subject.to(self._numbers.device).contiguous()
        place = torch.searchsorted(self._numbers, number).clamp(max=len(self._numbers) - 1)
        assert torch.equal(self._numbers[place].cpu(), subject.cpu()), "a subject without a label"
        return self._label[place]


class Finetune(nn.Module):
    """A network with a head or a decoder, trained on the labels of a task.

    Attributes:
        network: What is trained.
        prepare: Makes what the network sees of a batch.
    """

    freeze_last_layer_steps = 0

    def __init__(
        self,
        network: TunedNetwork,
        *,
        preprocessing: Preprocessing,
        labels: LabelTable,
        loss: LossConfig,
        weights: LossWeights,
        augment: AugmentConfig | None,
        bag_size: int,
        seed: int,
    ) -> None:
        """``bag_size`` crops that lie behind each other in the stream are of one scan."""
        super().__init__()
        self.network = network.train()  # of what is frozen evaluation mode, from the first step on
        self.labels = labels
        self.preprocessing = preprocessing
        self.loss = loss
        self.weights = weights
        self.augment = augment
        self.bag_size = bag_size
        self.seed = seed
        self.prepare = Preparation(self._shown)
        table = torch.from_numpy(class_table(network.target).astype(np.int64))
        self.register_buffer("_class_table", table, persistent=False)
        self._class_table: Tensor

    @property
    def target(self) -> Target:
        """What is predicted."""
        return self.network.target

    @property
    def backbone(self) -> Vit3d:
        """The network without its head."""
        return self.network.vit

    def forward(self, batch: CropBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the scans of a batch; of a segmentation of its crops."""
        del step  # everything drawn follows from each sample's position
        shown: Shown = self.prepare(batch)
        losses = (
            self._of_masks(shown)
            if self.target.kind == "segmentation"
            else self._of_labels(shown, batch)
        )
        loss = losses.mean()
        return loss, {"loss": loss.detach()}

    def after_update(self, step: int) -> None:
        """Nothing moves beside the weights."""

    def param_groups(
        self, weight_decay: float, *, rates: LayerRates = UNIFORM
    ) -> list[ParameterGroup]:
        """Every trainable parameter, for the optimiser."""
        return parameter_groups(
            self, weight_decay=weight_decay, rates=rates, backbone=self.network.vit
        )

    def scan_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss (n,) of whole scans by their logits (n, num_logits) and labels."""
        return label_loss(
            logits,
            label,
            self.target,
            self.weights,
            label_smoothing=self.loss.label_smoothing,
            huber_delta=self.loss.huber_delta,
        )

    def _of_labels(self, shown: Shown, batch: CropBatch) -> Tensor:
        head = self.network.head
        assert isinstance(head, PooledHead)
        firsts = batch.position[:: self.bag_size].tolist()
        draws = None
        if head.num_draws:
            draws = head_draws(self.seed, positions=firsts, num_values=head.num_draws)
        logits = self.network.pooled(
            shown.crops, inside=shown.inside, bag_size=self.bag_size, head_draws=draws
        )
        return self.scan_loss(logits, self.labels(batch.subject[:: self.bag_size]))

    def _of_masks(self, shown: Shown) -> Tensor:
        assert shown.classes is not None
        return mask_loss(self.network.dense(shown.crops), shown.classes, shown.inside[:, 0])

    @torch.no_grad()
    def _shown(self, batch: CropBatch) -> Shown:
        classes = None
        if self.target.kind == "segmentation":
            classes = self._class_table[batch.masks[:, 0].long().to(self._class_table.device)]
        # Masks in here are labels, and hide nothing.
        plain = batch._replace(masks=batch.masks[:, :0])
        seen = normalise_batch(plain, preprocessing=self.preprocessing)
        if self.augment is None:
            crops = Crops(seen.volume, seen.spacing_mm, draws=self._path_draws(batch))
            return Shown(crops, seen.inside, classes)
        return self._augmented(batch, seen, classes=classes)

    def _augmented(
        self, batch: CropBatch, seen: NormalisedBatch, *, classes: Tensor | None
    ) -> Shown:
        assert self.augment is not None
        drawn = draw_view(
            batch.position,
            seed=self.seed,
            view=0,
            scale=_WHOLE,
            augment=self.augment,
            modality=batch.modality,
            window_hu=self.preprocessing.window_hu,
        )
        shape = self.preprocessing.crop_shape
        view = apply_view(
            seen.volume, drawn, shape=shape, spacing_mm=seen.spacing_mm, inside=seen.inside
        )
        if classes is not None:
            classes = self._turned(classes, drawn, spacing_mm=seen.spacing_mm)
        crops = Crops(view.volume, view.spacing_mm, draws=self._path_draws(batch))
        return Shown(crops, view.inside, classes)

    def _turned(self, classes: Tensor, drawn: ViewParameters, *, spacing_mm: Tensor) -> Tensor:
        """The masks as the views show the scans: the class with the largest share of each voxel."""
        shares = functional.one_hot(classes, self.target.num_logits).movedim(-1, 1)
        turned = resample(
            shares.float(),
            drawn.geometry,
            shape=classes.shape[1:],
            spacing_mm=spacing_mm,
            inside=None,
        )
        return turned.volume.argmax(dim=1)

    def _path_draws(self, batch: CropBatch) -> Tensor | None:
        """(B, R): what drop path takes."""
        num_values = self.network.vit.num_draws
        if not num_values:
            return None
        positions = batch.position.tolist()
        return path_draws(self.seed, positions=positions, num_views=1, num_values=num_values)
