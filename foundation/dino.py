"""Self-distillation without labels (Caron et al. 2021, DINO) in 3D.

A student learns to give each view of a scan the prototypes that a slowly moving teacher gives to
other views of it.
"""

import copy
import math
import warnings

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.augment import AugmentConfig, CropScale, apply_view, draw_view
from foundation.dino_loss import DinoLoss
from foundation.parameters import ParameterGroup, parameter_groups
from foundation.preprocessing import Preprocessing, normalise_batch
from foundation.schedule import cosine
from foundation.vit import Vit3d
from recipes.load import Section
from shards.streaming.batch import CropBatch

NUM_GLOBAL_CROPS = 2


class LocalCrops(Section):
    """The small views, which only the student sees."""

    num_crops: int = Field(default=8, ge=0)
    shape: tuple[int, int, int] = Field(default=(48, 48, 48), description="voxels (d, h, w)")
    scale: CropScale = CropScale(in_plane=(0.16, 0.48), across=(0.2, 0.5))


class HeadConfig(Section):
    """The projection to prototypes, thrown away after pretraining."""

    num_prototypes: int = Field(default=16_384, ge=2)
    hidden_dim: int = Field(default=2048, ge=1)
    bottleneck_dim: int = Field(default=256, ge=1)


class DinoConfig(Section):
    """The objective. Its two global crops have the size of the recipe's ``crop_shape``."""

    global_scale: CropScale = CropScale(in_plane=(0.48, 1.0), across=(0.5, 1.0))
    local_crops: LocalCrops = LocalCrops()
    augment: AugmentConfig = AugmentConfig()
    head: HeadConfig = HeadConfig()
    student_temp: float = Field(default=0.1, gt=0)
    warmup_teacher_temp: float = Field(default=0.04, gt=0)
    teacher_temp: float = Field(default=0.04, gt=0, description="up to 0.07 after a warm-up")
    warmup_teacher_temp_steps: int = Field(default=0, ge=0)
    momentum_teacher: float = Field(default=0.994, ge=0, le=1, description="rises to 1 by a cosine")
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    freeze_last_layer_steps: int = Field(default=0, ge=0)


class Branch(nn.Module):
    """A backbone with its projection head; the student is one, the teacher another."""

    def __init__(self, backbone: Vit3d, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, D, H, W) to the class token (B, E) and the prototype logits (B, K)."""
        cls_token = self.backbone(volume).cls_token
        return cls_token, self.head(cls_token)


class Dino(nn.Module):
    """Student and teacher, their views, and the loss.

    The teacher and the loss's centre are part of ``state_dict``. They move in :meth:`after_update`
    alone, so an update that was skipped (not finite on some rank) leaves them as they were.
    """

    def __init__(
        self,
        student: Branch,
        *,
        teacher: Branch,
        loss: DinoLoss,
        preprocessing: Preprocessing,
        global_scale: CropScale,
        local_crops: LocalCrops,
        augment: AugmentConfig,
        momentum_teacher: float,
        freeze_last_layer_steps: int,
        total_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        for shape in (preprocessing.crop_shape, local_crops.shape):
            student.backbone.grid(shape)
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        self.teacher.load_state_dict(student.state_dict())
        self.loss = loss
        self.preprocessing = preprocessing
        self.global_scale = global_scale
        self.local_crops = local_crops
        self.augment = augment
        self.momentum_teacher = momentum_teacher
        self.freeze_last_layer_steps = freeze_last_layer_steps
        self.total_steps = total_steps
        self.seed = seed
        self.train()

    @property
    def backbone(self) -> Vit3d:
        """The teacher's: an average over the run, better than any one student (sec. 5.2)."""
        return self.teacher.backbone

    def train(self, mode: bool = True) -> "Dino":
        """The teacher never drops a path."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: CropBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy between the teacher's and the student's prototypes over pairs of views."""
        global_crops, local_crops = self._views(batch)
        size = len(batch.volume)
        with torch.no_grad():
            teacher = list(self.teacher(global_crops)[1].split(size))
        # Crops of one size go through the student together: one call per size.
        cls_token, logits = self.student(global_crops)
        student = list(logits.split(size))
        if local_crops is not None:
            student += self.student(local_crops)[1].split(size)
        loss = self.loss(teacher, student, step=step)
        metrics = {
            "loss": loss.detach(),
            "teacher_entropy": self.loss.teacher_entropy(teacher, step=step),
            "student_std": normalised_std(cls_token.detach().float()),
        }
        return loss, metrics

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the teacher towards the student, and the centre towards this update's logits."""
        momentum = cosine(step, total=self.total_steps, start=self.momentum_teacher, end=1.0)
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)
        self.loss.update_center()

    def param_groups(self, weight_decay: float) -> list[ParameterGroup]:
        """The student's parameters; its last layer is a group of its own."""
        return parameter_groups(
            self, weight_decay=weight_decay, last_layer={"student.head.last_layer.weight_v"}
        )

    def _views(self, batch: CropBatch) -> tuple[Tensor, Tensor | None]:
        """Global crops (2 B, C, D, H, W) and local crops (n B, C, d, h, w), view by view."""
        volume = normalise_batch(batch, preprocessing=self.preprocessing).volume
        shape, local = self.preprocessing.crop_shape, self.local_crops
        plan = [(self.global_scale, shape)] * NUM_GLOBAL_CROPS
        plan += [(local.scale, local.shape)] * local.num_crops
        views = []
        for index, (scale, view_shape) in enumerate(plan):
            parameters = draw_view(
                batch.position, seed=self.seed, view=index, scale=scale, augment=self.augment
            )
            views.append(apply_view(volume, parameters, shape=view_shape))
        global_crops, local_crops = views[:NUM_GLOBAL_CROPS], views[NUM_GLOBAL_CROPS:]
        return torch.cat(global_crops), torch.cat(local_crops) if local_crops else None


def normalised_std(features: Tensor) -> Tensor:
    """Spread of unit-length features (B, E) over the batch, times sqrt(E).

    About 1 where directions are all over the sphere; towards 0 is collapse (Chen & He 2021,
    sec. 4.1).
    """
    unit = nn.functional.normalize(features, dim=-1)
    return unit.std(dim=0, unbiased=False).mean() * math.sqrt(features.shape[-1])


def _build_head(embed_dim: int, config: HeadConfig) -> nn.Module:
    """Three layers, unit length, and prototypes of fixed norm."""
    from lightly.models.modules.heads import DINOProjectionHead

    with warnings.catch_warnings():
        # Lightly uses torch's older weight norm, whose parameters are plain weight_g and weight_v.
        warnings.simplefilter("ignore", FutureWarning)
        head: nn.Module = DINOProjectionHead(
            input_dim=embed_dim,
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            output_dim=config.num_prototypes,
            norm_last_layer=True,
        )
    return head


def build_dino(
    config: DinoConfig, *, vit: Vit3d, preprocessing: Preprocessing, total_steps: int, seed: int
) -> Dino:
    """DINO with ``vit`` as the student's backbone; head weights come from the global generator."""
    loss = DinoLoss(
        num_prototypes=config.head.num_prototypes,
        student_temp=config.student_temp,
        teacher_temp=config.teacher_temp,
        warmup_teacher_temp=config.warmup_teacher_temp,
        warmup_teacher_temp_steps=config.warmup_teacher_temp_steps,
        center_momentum=config.center_momentum,
    )
    return Dino(
        Branch(vit, _build_head(vit.embed_dim, config.head)),
        teacher=Branch(copy.deepcopy(vit), _build_head(vit.embed_dim, config.head)),
        loss=loss,
        preprocessing=preprocessing,
        global_scale=config.global_scale,
        local_crops=config.local_crops,
        augment=config.augment,
        momentum_teacher=config.momentum_teacher,
        freeze_last_layer_steps=config.freeze_last_layer_steps,
        total_steps=total_steps,
        seed=seed,
    )
