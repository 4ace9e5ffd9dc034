"""How many floating point operations a method needs for a volume, counted on paper.

Only matrix products count, a multiplication with its addition as two. A backward pass is twice its
forward pass. What is computed again (activation checkpoints), or for nothing, does not count.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from foundation.dino import Dino
from foundation.mae import Mae
from foundation.objective.masking import hidden_count
from foundation.objective.views import NUM_GLOBAL_CROPS
from foundation.vit import Vit3d

TRAINED = 3
"""Passes through what learns: forward, and backward to its inputs and to its weights."""


class Work(NamedTuple):
    """What one volume of a batch costs in an update."""

    flops: float
    tokens: float
    """patches that go through the encoder that learns"""


def work_of(method: object) -> Work:
    """For a MAE the visible patches alone; for DINO the teacher's forward pass as well.

    Raises:
        TypeError: A method that nobody has counted yet.
    """
    if isinstance(method, Mae):
        return _mae_work(method)
    if isinstance(method, Dino):
        return _dino_work(method)
    raise TypeError(f"the operations of {type(method).__name__} are not counted")


def vit_flops(vit: Vit3d, *, num_patches: int) -> float:
    """Forward of one sample of which the backbone sees ``num_patches``."""
    embedding = num_patches * linear_flops([vit.patch_embed])
    return embedding + _blocks_flops(
        vit.blocks, num_tokens=vit.num_prefix + num_patches, embed_dim=vit.embed_dim
    )


def linear_flops(modules: Iterable[nn.Module]) -> float:
    """Forward of one row through every linear layer in ``modules``."""
    layers = (layer for module in modules for layer in module.modules())
    return sum(
        2.0 * layer.in_features * layer.out_features
        for layer in layers
        if isinstance(layer, nn.Linear)
    )


def _blocks_flops(blocks: nn.ModuleList, *, num_tokens: int, embed_dim: int) -> float:
    """Of one sample: its linear layers, and each token's logits and mean over all tokens."""
    attention = len(blocks) * 2 * 2.0 * num_tokens * embed_dim
    return num_tokens * (linear_flops(blocks) + attention)


def _mae_work(mae: Mae) -> Work:
    num_patches = math.prod(mae.grid)
    num_visible = num_patches - hidden_count(num_patches, mask_ratio=mae.mask_ratio)
    decoder = mae.decoder
    forward = (
        vit_flops(mae.backbone, num_patches=num_visible)
        + (1 + num_visible) * linear_flops([decoder.embed])
        + _blocks_flops(decoder.blocks, num_tokens=1 + num_patches, embed_dim=decoder.embed_dim)
        + num_patches * linear_flops([decoder.head])
    )
    return Work(TRAINED * mae.num_masks * forward, float(mae.num_masks * num_visible))


def _dino_work(dino: Dino) -> Work:
    """Hidden patches are counted as many as are drawn in the mean."""
    vit, local = dino.student.backbone, dino.views.local_crops
    num_global = math.prod(vit.grid(dino.views.preprocessing.crop_shape))
    num_local = math.prod(vit.grid(local.shape))
    globals_ = NUM_GLOBAL_CROPS * vit_flops(vit, num_patches=num_global)
    locals_ = local.num_crops * vit_flops(vit, num_patches=num_local)
    head = linear_flops([dino.student.head])
    hidden = 0.0
    if dino.hiding is not None:
        share = dino.hiding.mask_share * sum(dino.hiding.mask_ratio) / 2
        patch_head = linear_flops([dino.student.patch_head or dino.student.head])
        hidden = NUM_GLOBAL_CROPS * num_global * share * patch_head
    teacher = globals_ + NUM_GLOBAL_CROPS * head + hidden
    student = globals_ + locals_ + (NUM_GLOBAL_CROPS + local.num_crops) * head + hidden
    tokens = NUM_GLOBAL_CROPS * num_global + local.num_crops * num_local
    return Work(teacher + TRAINED * student, float(tokens))
