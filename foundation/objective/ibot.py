"""iBOT (Zhou et al. 2022): predict the teacher's prototypes of patches that the student lacks."""

import math
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from foundation.network.patches import Shape
from foundation.objective.collectives import num_ranks, sum_over_ranks
from foundation.objective.masking import boxes, hidden_count
from foundation.running.randomness import sample_generator
from recipes.load import Section


class IbotConfig(Section):
    """Which patches of the global crops the student must do without, and how much they count."""

    weight: float = Field(default=1.0, ge=0, description="0 turns it off, as null does")
    mask_ratio: tuple[float, float] = Field(
        default=(0.1, 0.5), description="range of the share of a crop's patches that are hidden"
    )
    mask_share: float = Field(
        default=0.5, gt=0, le=1, description="share of the global crops that hide any"
    )
    separate_head: bool = Field(
        default=False, description="own prototypes for patches; false shares the class token's"
    )

    @model_validator(mode="after")
    def _check(self) -> "IbotConfig":
        low, high = self.mask_ratio
        if not 0 < low <= high < 1:
            raise ValueError(f"mask_ratio is a range within (0, 1), got ({low}, {high})")
        return self


class HiddenPatches(NamedTuple):
    """The patches that global crops hide; M in all, unequally many in each crop, in some none."""

    hidden: Tensor
    """(V B, N) bool, the crops view by view"""
    rows: Tensor
    """(M,) int64, their places among the V B N patches"""
    weight: Tensor
    """(M,) float32, 1 over the number of patches that the same crop hides"""
    num_crops: Tensor
    """() int64, the crops that hide any"""

    def to(self, device: torch.device) -> "HiddenPatches":
        """The same on another device."""
        return HiddenPatches(*(value.to(device) for value in self))


class PatchHiding(NamedTuple):
    """How boxes of patches are drawn that global crops hide.

    Of the views of one scan, ``mask_share`` hide patches: with a half of two views just one does,
    so that no batch is without.
    """

    grid: Shape
    """patches per axis of a crop"""
    mask_ratio: tuple[float, float]
    """range of the share of patches to hide, drawn evenly for each crop"""
    mask_share: float
    """of the crops that hide any"""
    seed: int
    """of the run"""

    def __call__(self, positions: Tensor, *, num_views: int) -> HiddenPatches:
        """Draw for V views of each sample, on the CPU, from the (B,) positions in the stream."""
        hidden = torch.zeros(num_views, len(positions), math.prod(self.grid), dtype=torch.bool)
        for sample, position in enumerate(positions.tolist()):
            for view in self._views(position, num_views):
                hidden[view, sample] = self._boxes(position, view)
        return _hidden_patches(hidden.flatten(0, 1))

    def _views(self, position: int, num_views: int) -> list[int]:
        """Those that hide patches: wherever a count in steps of ``mask_share`` grows by one."""
        generator = sample_generator(self.seed, position=position, purpose="hidden views")
        start = float(torch.rand((), generator=generator))
        counts = [math.floor(start + self.mask_share * view) for view in range(num_views + 1)]
        return [view for view in range(num_views) if counts[view + 1] > counts[view]]

    def _boxes(self, position: int, view: int) -> Tensor:
        generator = sample_generator(self.seed, position=position, purpose=f"hidden {view}")
        low, high = self.mask_ratio
        ratio = low + (high - low) * float(torch.rand((), generator=generator))
        count = hidden_count(math.prod(self.grid), mask_ratio=ratio)
        return boxes(self.grid, num_hidden=count, generator=generator)


def patch_hiding(config: IbotConfig, *, grid: Shape, seed: int) -> PatchHiding:
    """What the recipe says, for crops of ``grid``.

    Raises:
        ValueError: A crop of one patch, of which none can be hidden.
    """
    hidden_count(math.prod(grid), mask_ratio=config.mask_ratio[0])
    return PatchHiding(grid, config.mask_ratio, config.mask_share, seed)


def _hidden_patches(hidden: Tensor) -> HiddenPatches:
    per_crop = hidden.sum(dim=1)
    crop, _ = hidden.nonzero(as_tuple=True)
    return HiddenPatches(
        hidden=hidden,
        rows=hidden.flatten().nonzero()[:, 0],
        weight=1 / per_crop[crop].float(),
        num_crops=(per_crop > 0).sum(),
    )


def patch_cross_entropy(
    shares: Tensor, student: Tensor, *, weight: Tensor, num_crops: Tensor, student_temp: float
) -> Tensor:
    """The mean over a crop's hidden patches, then over the crops that hide any (eq. 2).

    Args:
        shares: (M, K) float32, the teacher's targets for the hidden patches; M may be 0.
        student: (M, K) logits.
        weight: (M,), of :class:`HiddenPatches`.
        num_crops: (), of :class:`HiddenPatches`.
        student_temp: Of the student.

    Returns:
        A scalar whose mean over ranks is the loss of the joined batch.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_shares = (student.float() / student_temp).log_softmax(dim=-1)
        per_patch = -(shares * log_shares).sum(dim=-1)
        total = sum_over_ranks(num_crops).clamp(min=1)
        return num_ranks() * (per_patch * weight).sum() / total
