"""What a batch shows a network that is tuned, its labels, and where its gradient falls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foundation.augment import AugmentConfig
from foundation.finetuning.decoders import DecoderConfig, build_decoder
from foundation.finetuning.heads import HeadConfig, build_head
from foundation.finetuning.losses import LossConfig, loss_weights
from foundation.finetuning.method import Finetune, LabelTable
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.target import Target
from foundation.finetuning.tuning import TuneConfig, set_tuning
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit
from shards.streaming.batch import CropBatch

Batches = Callable[..., CropBatch]

PATCH, CROP = (2, 4, 4), (8, 12, 20)
MASKS = Target(
    task="t", kind="segmentation", outputs=("rib", "spot"), mask_values={"rib": 9, "spot": 7}
)
LABELS = Target(task="t", kind="regression", outputs=("mm",), centre=10.0, scale=2.0)
NAMES = ("00000000000000a0", "f0000000000000c0", "1000000000000000")
TURNS = AugmentConfig.model_validate(
    {
        "flip": [0.5, 0.5, 0.5],
        "rotation": {"probability": 1.0, "degrees": [25, 25, 25]},
        "affine": {"probability": 1.0},
        **{
            name: {"probability": 0.0}
            for name in ("window", "bias_field", "low_resolution", "blur", "noise", "gamma",
                         "contrast", "brightness")
        },
    }
)  # fmt: skip


def method_of(target: Target, **changes: Any) -> Finetune:
    torch.manual_seed(3)
    vit = build_vit(VitConfig(size="toy", embed_dim=24, num_heads=1, depth=2, patch_size=PATCH))
    set_tuning(vit, changes.pop("tune", TuneConfig()))
    head: nn.Module = (
        build_decoder(DecoderConfig(features=2), vit=vit, num_logits=target.num_logits)
        if target.kind == "segmentation"
        else build_head(HeadConfig(), embed_dim=24, target=target)
    )
    label = np.array([4.0, 11.0, 30.0])
    settings: dict[str, Any] = {
        "preprocessing": Preprocessing(crop_shape=CROP),
        "labels": LabelTable(NAMES, label),
        "loss": LossConfig(),
        "weights": loss_weights(label, target=target, config=LossConfig()),
        "augment": None,
        "bag_size": 1,
        "seed": 5,
    }
    return Finetune(TunedNetwork(vit, head, target), **{**settings, **changes})


def masked(crop_batch: Batches, *, num: int) -> tuple[CropBatch, Tensor]:
    """Crops of air with a bright box, and of a mask: the box 7, beside it values of other things.

    Returns:
        The batch, and (B, D, H, W) True in the box.
    """
    batch = crop_batch(CROP, positions=list(range(num)))
    volume = torch.full_like(batch.volume, -1000)
    masks = torch.zeros(num, 1, *CROP, dtype=torch.uint8)
    masks[:, :, :, :, 17:] = 3  # none of the target's
    for place in range(num):
        box = (place, slice(None), slice(3, 7), slice(2 + place % 3, 7), slice(4, 13))
        volume[box] = 1000
        masks[box] = 7
    shown = batch._replace(volume=volume, masks=masks)
    return shown, masks[:, 0] == 7


def test_a_mask_is_told_by_the_targets_values(crop_batch: Batches) -> None:
    batch, box = masked(crop_batch, num=3)
    shown = method_of(MASKS).prepare(batch)
    assert shown.classes is not None
    assert shown.classes.dtype == torch.int64
    assert shown.classes.equal(2 * box.long())  # the second of its classes; 3 is background
    assert shown.inside[:, 0, :1].sum() < shown.inside[:, 0, 1:2].sum()  # the batch has padding
    assert shown.crops.volume.shape == (3, 1, *CROP)  # a mask hides nothing and is no channel


def test_a_bright_box_stays_under_its_mask(crop_batch: Batches) -> None:
    """Turned, flipped and stretched, on voxels of 3 x 1 x 1.5 mm."""
    batch, box = masked(crop_batch, num=6)
    shown = method_of(MASKS, augment=TURNS).prepare(batch)
    assert shown.classes is not None
    visible = shown.inside[:, 0]
    bright = (shown.crops.volume[:, 0] > 0) & visible
    found = (shown.classes == 2) & visible
    assert set(shown.classes.unique().tolist()) == {0, 2}
    for place in range(6):
        both = (bright[place] & found[place]).sum()
        assert both > 20
        assert both / (bright[place] | found[place]).sum() > 0.97
        moved = (found[place] & box[place]).sum() / (found[place] | box[place]).sum()
        assert moved < 0.8


def test_a_view_depends_on_its_position_alone(crop_batch: Batches) -> None:
    """Not on what else is in the batch, and so not on the ranks."""
    method = method_of(MASKS, augment=AugmentConfig())
    batch, _ = masked(crop_batch, num=4)
    together = method.prepare(batch)
    last = [each[2:] if isinstance(each, Tensor) else each for each in batch]
    alone = method.prepare(CropBatch(*last))
    assert torch.allclose(together.crops.volume[2:], alone.crops.volume, atol=1e-6)
    assert together.classes[2:].equal(alone.classes)
    assert together.inside[2:].equal(alone.inside)


def test_the_gradient_of_masks_falls_on_the_scan_alone(crop_batch: Batches) -> None:
    """Padding has no part in it."""
    method = method_of(MASKS)
    batch, _ = masked(crop_batch, num=3)
    logits = torch.randn(3, 3, *CROP, requires_grad=True)
    method.network.dense = lambda _: logits  # type: ignore[method-assign]
    loss, metrics = method(batch, 0)
    loss.backward()
    assert metrics["loss"] == loss
    assert logits.grad is not None
    inside = method.prepare(batch).inside
    assert 0 < inside.sum() < inside.numel()
    assert (logits.grad != 0).all(dim=1, keepdim=True).equal(inside)


def test_labels_are_found_by_subject_and_told_once_a_bag(crop_batch: Batches) -> None:
    """Two crops of a scan, pooled: a scan's loss is the square of its error in deviations."""
    method = method_of(LABELS, bag_size=2)
    numbers = torch.tensor([int(NAMES[place][:15], 16) for place in (1, 1, 0, 0)])
    batch = crop_batch(CROP, positions=[8, 9, 10, 11])._replace(subject=numbers)
    predicted = torch.tensor([[0.5], [-0.25]], requires_grad=True)
    asked: list[int] = []

    def pooled(*_: Any, bag_size: int, **__: Any) -> Tensor:
        asked.append(bag_size)
        return predicted

    method.network.pooled = pooled  # type: ignore[method-assign]
    loss, _ = method(batch, 0)
    by_hand = ((0.5 - (11 - 10) / 2) ** 2 + (-0.25 - (4 - 10) / 2) ** 2) / 2
    assert float(loss.detach()) == pytest.approx(by_hand)
    assert asked == [2]


def test_a_table_of_labels_keeps_all_digits_and_every_column() -> None:
    label = np.array([[1.0, np.nan], [16777217.0, 0.0], [3.0, 1.0]])
    table = LabelTable(NAMES, label)
    numbers = torch.tensor([int(NAMES[place][:15], 16) for place in (2, 0, 1, 2)])
    found = table(numbers)
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), label[[2, 0, 1, 2]], equal_nan=True)
    with pytest.raises(AssertionError, match="without a label"):
        table(numbers + 1)
    assert not table.state_dict()  # who is who is nobody's to read from weights


@pytest.mark.parametrize("target", [LABELS, MASKS], ids=lambda each: each.kind)
def test_what_is_frozen_gets_no_gradient_and_no_group(target: Target, crop_batch: Batches) -> None:
    method = method_of(target, tune=TuneConfig(mode="last_blocks", num_blocks=1))
    batch, _ = masked(crop_batch, num=2)
    numbers = torch.tensor([int(NAMES[place][:15], 16) for place in (0, 2)])
    loss, _ = method(batch._replace(subject=numbers), 0)
    loss.backward()
    moved = {name for name, each in method.named_parameters() if each.grad is not None}
    own = {name for name in dict(method.named_parameters()) if name.startswith("network.head.")}
    tail = {
        name
        for name in dict(method.named_parameters())
        if name.startswith(("network.vit.blocks.1.", "network.vit.norm."))
    }
    assert moved == own | tail
    grouped = {id(p) for group in method.param_groups(0.05) for p in group["params"]}
    assert grouped == {id(p) for name, p in method.named_parameters() if name in moved}
    assert not method.network.vit.blocks[0].training
    assert method.network.vit.blocks[1].training
