"""Operations counted on paper are those that torch counts while the method runs."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foundation.bench.cases import synthetic_batch
from foundation.bench.flops import linear_flops, vit_flops, work_of
from foundation.dino import Dino, DinoConfig
from foundation.mae import MaeConfig
from foundation.methods import Method, MethodSections, build_method
from foundation.network.heads import HeadConfig
from foundation.objective.ibot import IbotConfig
from foundation.objective.views import LocalCrops
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

CROP, LOCAL, PATCH = (16, 32, 24), (8, 16, 16), (8, 16, 8)
NUM_SAMPLES = 2
BATCH = synthetic_batch(CROP, size=NUM_SAMPLES, modality="CT")
MAE = MethodSections(
    mae=MaeConfig(num_masks=2, decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=2)
)

# One of a sample's two global crops then hides just 3 of its 12 patches.
IBOT = IbotConfig(mask_ratio=(0.25, 0.25), mask_share=0.5)


def dino(ibot: IbotConfig | None) -> MethodSections:
    return MethodSections(
        dino=DinoConfig(
            ibot=ibot,
            local_crops=LocalCrops(num_crops=3, shape=LOCAL),
            head=HeadConfig(num_prototypes=48, hidden_dim=40, bottleneck_dim=16),
        )
    )


def build(sections: MethodSections) -> Method:
    torch.manual_seed(0)
    return build_method(
        sections,
        vit=build_vit(VitConfig(size="toy", patch_size=PATCH, depth=2)),
        preprocessing=Preprocessing(crop_shape=CROP),
        total_steps=10,
        seed=0,
    )


def counted(run: Callable[[], object]) -> float:
    """What torch counts, for one sample."""
    # Torch's other kernels compute the weights of attention again on their way back.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / NUM_SAMPLES


def learn(method: Method) -> None:
    loss, _ = method(BATCH, 0)
    loss.backward()


def to_voxels(method: Method, *, num_patches: int) -> float:
    """The way back to the voxels, which the rule of three counts and torch does not walk."""
    return num_patches * linear_flops([method.backbone.patch_embed])


def test_mae_counts_visible_patches_alone() -> None:
    method = build(MAE)
    work = work_of(method)
    visible = 3  # of 2 x 2 x 3
    assert work.tokens == 2 * visible
    expected = work.flops - to_voxels(method, num_patches=2 * visible)
    assert counted(lambda: learn(method)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ibot", [None, IBOT, IBOT.model_copy(update={"separate_head": True})])
def test_dino(ibot: IbotConfig | None) -> None:
    method = build(dino(ibot))
    work = work_of(method)
    tokens = 2 * 12 + 3 * 2
    assert work.tokens == tokens
    assert isinstance(method, Dino)
    views = counted(lambda: method.views(BATCH))
    expected = work.flops - to_voxels(method, num_patches=tokens) + views
    # Sinkhorn and KoLeo are not counted; a single row through the head would be 1.3e-4 of all.
    assert counted(lambda: learn(method)) == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_backbone(mlp: Literal["gelu", "swiglu"]) -> None:
    vit = build_vit(
        VitConfig(size="toy", patch_size=PATCH, mlp=mlp, num_registers=3, layer_scale=1)
    )
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vit(torch.zeros(1, 1, *CROP))
    assert counter.get_total_flops() == vit_flops(vit, num_patches=12)


def test_unknown_method() -> None:
    with pytest.raises(TypeError, match="the operations of Linear are not counted"):
        work_of(torch.nn.Linear(2, 3))
