"""Self-distillation in 3D: DINO, iBOT and KoLeo together (Oquab et al. 2023, DINOv2, sec. 4).

A student learns to give each view of a scan, and each patch that it lacks, the prototypes that a
slowly moving teacher gives to other views and to the whole patches.
"""

import copy
from typing import NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from timm.layers import trunc_normal_
from torch import Tensor, nn

from foundation.augment import AugmentConfig, CropScale
from foundation.network.branch import Branch, BranchOutput
from foundation.network.heads import LAST_LAYER, HeadConfig, build_head
from foundation.objective.dino_loss import (
    Temperatures,
    ln_k_distance,
    prototype_use,
    teacher_entropy,
    view_cross_entropy,
)
from foundation.objective.ibot import (
    HiddenPatches,
    IbotConfig,
    PatchHiding,
    patch_cross_entropy,
    patch_hiding,
)
from foundation.objective.koleo import koleo_loss
from foundation.objective.preparation import Preparation
from foundation.objective.targets import Centring, SinkhornKnopp, TargetKind, build_targets
from foundation.objective.views import NUM_GLOBAL_CROPS, LocalCrops, MultiCrop
from foundation.preprocessing import Preprocessing
from foundation.running.parameters import UNIFORM, LayerRates, ParameterGroup, parameter_groups
from foundation.running.randomness import path_draws
from foundation.running.schedule import cosine
from foundation.vit import Crops, Vit3d
from foundation.watching.monitors import normalised_std
from recipes.load import Section
from shards.streaming.batch import CropBatch

Targets = Centring | SinkhornKnopp


class DinoConfig(Section):
    """The objective. Its two global crops have the size of the recipe's ``crop_shape``."""

    weight: float = Field(default=1.0, gt=0, description="of the loss on class tokens")
    ibot: IbotConfig | None = Field(default=IbotConfig(), description="null: no hidden patches")
    koleo_weight: float = Field(default=0.1, ge=0, description="0: no spreading of features")
    global_scale: CropScale = CropScale(in_plane=(0.48, 1.0), across=(0.5, 1.0))
    local_crops: LocalCrops = LocalCrops()
    augment: AugmentConfig = AugmentConfig()
    channel_drop: float = Field(
        default=0.0, ge=0, lt=1, description="probability that a view lacks a channel"
    )
    head: HeadConfig = HeadConfig()
    targets: TargetKind = "sinkhorn"
    center_momentum: float = Field(
        default=0.9, ge=0, le=1, description="of targets: centring; 1 never moves the centre"
    )
    student_temp: float = Field(default=0.1, gt=0)
    warmup_teacher_temp: float = Field(default=0.04, gt=0)
    teacher_temp: float = Field(default=0.04, gt=0, description="up to 0.07 after a warm-up")
    warmup_teacher_temp_steps: int = Field(default=0, ge=0)
    momentum_teacher: float = Field(default=0.994, ge=0, le=1)
    momentum_teacher_end: float = Field(default=1.0, ge=0, le=1, description="by half a cosine")
    freeze_last_layer_steps: int = Field(default=0, ge=0)

    @property
    def hiding(self) -> IbotConfig | None:
        """``ibot`` where it has any weight."""
        return self.ibot if self.ibot is not None and self.ibot.weight > 0 else None


class Shares(NamedTuple):
    """The teacher's targets, float32."""

    cls_token: Tensor
    """(G, B, K) of the G global crops"""
    patches: Tensor | None
    """(M, K) of the hidden patches"""


class Weights(NamedTuple):
    """Of the losses on class tokens, on hidden patches and on the spread of features."""

    cls_token: float
    patches: float
    koleo: float


class Dino(nn.Module):
    """Student and teacher, their views, and the losses.

    The teacher and the centres are part of ``state_dict``. They move in :meth:`after_update`
    alone, so an update that was skipped (not finite on some rank) leaves them as they were.
    Without ``hiding`` there are no ``patch_targets``.
    """

    def __init__(
        self,
        student: Branch,
        *,
        teacher: Branch,
        targets: Targets,
        patch_targets: Targets | None,
        views: MultiCrop,
        hiding: PatchHiding | None,
        weights: Weights,
        temperatures: Temperatures,
        momentum_teacher: tuple[float, float],
        freeze_last_layer_steps: int,
        total_steps: int,
    ) -> None:
        super().__init__()
        for shape in (views.preprocessing.crop_shape, views.local_crops.shape):
            student.backbone.grid(shape)
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        weights_of_student = student.state_dict()
        teacher.load_state_dict({name: weights_of_student[name] for name in teacher.state_dict()})
        self.targets = targets
        self.patch_targets = patch_targets
        self.views = views
        self.prepare = Preparation(views.__call__)
        self.hiding = hiding
        self.weights = weights
        self.temperatures = temperatures
        self.momentum_teacher = momentum_teacher
        self.freeze_last_layer_steps = freeze_last_layer_steps
        self.total_steps = total_steps
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
        """The weighed sum of the losses of a micro batch; the student runs once."""
        crops = self.prepare(batch)
        hidden = None
        if self.hiding is not None:
            hidden = self.hiding(batch.position, num_views=NUM_GLOBAL_CROPS)
            hidden = hidden.to(batch.volume.device)
        shares = self._shares(crops[0], hidden=hidden, step=step)
        if hidden is not None:
            crops[0] = crops[0]._replace(hidden=hidden.hidden)
        crops = self._with_path_draws(crops, positions=batch.position.tolist())
        student = self.student(crops, None if hidden is None else hidden.rows)
        losses = self._losses(student, shares=shares, hidden=hidden, subject=batch.subject)
        loss = torch.stack([getattr(self.weights, name) * losses[name] for name in losses]).sum()
        return loss, {"loss": loss.detach(), **self._metrics(losses, student, shares.cls_token)}

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the teacher towards the student, and centres towards this update's logits."""
        start, end = self.momentum_teacher
        momentum = cosine(step, total=self.total_steps, start=start, end=end)
        student = dict(self.student.named_parameters())
        teacher: list[Tensor] = list(self.teacher.parameters())
        towards: list[Tensor] = [student[name] for name, _ in self.teacher.named_parameters()]
        torch._foreach_lerp_(teacher, towards, 1 - momentum)
        self.targets.after_update()
        if self.patch_targets is not None:
            self.patch_targets.after_update()

    def param_groups(
        self, weight_decay: float, *, rates: LayerRates = UNIFORM
    ) -> list[ParameterGroup]:
        """The student's parameters; the last layer of each head is a group of its own."""
        names = dict(self.named_parameters())
        last = {f"student.{head}.{LAST_LAYER}" for head in ("head", "patch_head")} & set(names)
        return parameter_groups(
            self,
            weight_decay=weight_decay,
            rates=rates,
            backbone=self.student.backbone,
            last_layer=last,
        )

    def _with_path_draws(self, crops: list[Crops], *, positions: list[int]) -> list[Crops]:
        """What the student's drop path takes, from each sample and view."""
        num_values = self.student.backbone.num_draws
        if not num_values:
            return crops
        sizes = [len(each.volume) for each in crops]
        draws = path_draws(
            self.views.seed,
            positions=positions,
            num_views=sum(sizes) // len(positions),
            num_values=num_values,
        )
        parts = draws.split(sizes)
        return [each._replace(draws=part) for each, part in zip(crops, parts, strict=True)]

    @torch.no_grad()
    def _shares(self, crops: Crops, *, hidden: HiddenPatches | None, step: int) -> Shares:
        """The teacher's targets: it sees the global crops whole."""
        seen: BranchOutput = self.teacher([crops], None if hidden is None else hidden.rows)
        temp = self.temperatures.teacher_at(step)
        shares = self.targets(seen.logits, temp=temp, step=step)
        patches = None
        if self.patch_targets is not None:
            patches = self.patch_targets(seen.patch_logits, temp=temp, step=step)
        return Shares(rearrange(shares, "(g b) k -> g b k", g=NUM_GLOBAL_CROPS), patches)

    def _losses(
        self,
        student: BranchOutput,
        *,
        shares: Shares,
        hidden: HiddenPatches | None,
        subject: Tensor,
    ) -> dict[str, Tensor]:
        """By the names of :class:`Weights`, those that count."""
        size, temp = len(subject), self.temperatures.student
        logits = rearrange(student.logits, "(v b) k -> v b k", b=size)
        losses = {
            "cls_token": view_cross_entropy(shares.cls_token, logits, student_temp=temp),
        }
        if hidden is not None and shares.patches is not None and student.patch_logits is not None:
            losses["patches"] = patch_cross_entropy(
                shares.patches,
                student.patch_logits,
                weight=hidden.weight,
                num_crops=hidden.num_crops,
                student_temp=temp,
            )
        if self.weights.koleo:
            # As in the authors' code: view by view, and the sum of both.
            views = student.cls_token.split(size)[:NUM_GLOBAL_CROPS]
            subject = subject.to(student.cls_token.device)
            each = [koleo_loss(view, subject=subject) for view in views]
            losses["koleo"] = torch.stack(each).sum()
        return losses

    @torch.no_grad()
    def _metrics(
        self, losses: dict[str, Tensor], student: BranchOutput, shares: Tensor
    ) -> dict[str, Tensor]:
        num_global = shares.shape[0] * shares.shape[1]
        parts = {f"loss_{name}": loss.detach() for name, loss in losses.items()}
        return parts | {
            "teacher_entropy": teacher_entropy(shares),
            "ln_k_distance": ln_k_distance(parts["loss_cls_token"], num_prototypes=shares.shape[2]),
            "prototype_use": prototype_use(shares),
            "student_std": normalised_std(student.cls_token[:num_global].detach()),
        }


def _branch(config: DinoConfig, vit: Vit3d, *, is_student: bool) -> Branch:
    hiding = config.hiding
    patch_head, mask_token = None, None
    head = build_head(config.head, embed_dim=vit.embed_dim)
    if hiding is not None and hiding.separate_head:
        patch_head = build_head(config.head, embed_dim=vit.embed_dim)
    if hiding is not None and is_student:
        mask_token = nn.Parameter(torch.empty(1, 1, vit.embed_dim))
        trunc_normal_(mask_token, std=0.02)
    return Branch(vit, head, patch_head=patch_head, mask_token=mask_token)


def build_dino(
    config: DinoConfig, *, vit: Vit3d, preprocessing: Preprocessing, total_steps: int, seed: int
) -> Dino:
    """DINO with ``vit`` as the student's backbone; head weights come from the global generator.

    Raises:
        ValueError: Crops that patches do not tile, or channels to drop where there is but one.
    """
    if config.channel_drop and vit.in_chans == 1:
        raise ValueError(
            "dino.channel_drop needs several channels, the backbone takes 1 (in_chans)"
        )
    hiding, num_prototypes = config.hiding, config.head.num_prototypes

    def targets() -> Targets:
        return build_targets(
            config.targets, num_prototypes=num_prototypes, center_momentum=config.center_momentum
        )

    return Dino(
        _branch(config, vit, is_student=True),
        teacher=_branch(config, copy.deepcopy(vit), is_student=False),
        targets=targets(),
        patch_targets=None if hiding is None else targets(),
        views=MultiCrop(
            preprocessing=preprocessing,
            global_scale=config.global_scale,
            local_crops=config.local_crops,
            augment=config.augment,
            channel_drop=config.channel_drop,
            seed=seed,
        ),
        hiding=None
        if hiding is None
        else patch_hiding(hiding, grid=vit.grid(preprocessing.crop_shape), seed=seed),
        weights=Weights(config.weight, hiding.weight if hiding else 0.0, config.koleo_weight),
        temperatures=Temperatures(
            student=config.student_temp,
            teacher=config.teacher_temp,
            warmup_teacher=config.warmup_teacher_temp,
            warmup_teacher_steps=config.warmup_teacher_temp_steps,
        ),
        momentum_teacher=(config.momentum_teacher, config.momentum_teacher_end),
        freeze_last_layer_steps=config.freeze_last_layer_steps,
        total_steps=total_steps,
    )
