"""A student that embeds crops of both sizes in one pass, against a pass for each size."""

from collections.abc import Callable, Sequence

import torch

from foundation.bench.cases import Case, Extent
from foundation.bench.clock import Ground
from foundation.bench.results import Ratio, compared
from foundation.dino import DinoConfig
from foundation.network.patches import Shape
from foundation.objective.views import NUM_GLOBAL_CROPS
from foundation.vit import Crops, Vit3d, VitConfig, VitOutput, build_vit
from shards.bench.timing import take_turns

Pass = Callable[[Vit3d, Sequence[Crops]], list[VitOutput]]


def packing_ratio(case: Case, *, ground: Ground, extent: Extent) -> Ratio:
    """Forward and backward of the views of one DINO step, by turns."""
    torch.manual_seed(0)
    vit = build_vit(VitConfig(size=case.size, patch_size=case.patch_size)).to(ground.device)
    crops = _crops(case, ground)
    contenders = {
        "packed": _learning(_packed, vit=vit, crops=crops, ground=ground),
        "separate": _learning(_separate, vit=vit, crops=crops, ground=ground),
    }
    take_turns(contenders, range(extent.warmup))
    taken = take_turns(contenders, range(extent.turns))
    return compared(
        "packing",
        size=case.size,
        setting=f"ViT {case.size}, {case.grain}",
        ours=taken["packed"],
        theirs=taken["separate"],
    )


def _packed(vit: Vit3d, crops: Sequence[Crops]) -> list[VitOutput]:
    return vit.packed(crops)


def _separate(vit: Vit3d, crops: Sequence[Crops]) -> list[VitOutput]:
    return [vit.packed([each])[0] for each in crops]


def _learning(
    embed: Pass, *, vit: Vit3d, crops: Sequence[Crops], ground: Ground
) -> Callable[[int], None]:
    def learn(turn: int) -> None:
        del turn
        with ground.autocast():
            outputs = embed(vit, crops)
        loss = torch.stack([each.cls_token.float().square().mean() for each in outputs]).sum()
        vit.zero_grad()
        loss.backward()
        ground.finished()

    return learn


def _crops(case: Case, ground: Ground) -> list[Crops]:
    num_local = DinoConfig().local_crops.num_crops
    counts = ((NUM_GLOBAL_CROPS, case.crop_shape), (num_local, case.local_shape))
    return [
        Crops(_noise(count * case.micro_batch, shape).to(ground.device)) for count, shape in counts
    ]


def _noise(num: int, shape: Shape) -> torch.Tensor:
    return torch.rand(num, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
