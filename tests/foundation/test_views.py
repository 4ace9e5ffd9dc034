import pytest
import torch

from foundation.augment import AugmentConfig, CropScale
from foundation.objective.views import LocalCrops, MultiCrop
from foundation.preprocessing import Preprocessing

SHAPE = (6, 12, 15)
STILL = AugmentConfig.model_validate(
    {name: {"probability": 0} for name in AugmentConfig.model_fields if name != "flip"}
)
VIEWS = MultiCrop(
    preprocessing=Preprocessing(crop_shape=SHAPE, window_hu=(-300, 300)),
    global_scale=CropScale(in_plane=(1, 1), across=(0.5, 1), aspect=(1, 1)),
    local_crops=LocalCrops(
        num_crops=3,
        shape=(4, 8, 9),
        scale=CropScale(in_plane=(0.25, 0.25), across=(0.5, 0.5), aspect=(1, 1)),
    ),
    augment=STILL,
    channel_drop=0.0,
    seed=0,
)


def _two_channels(batch):
    return batch._replace(
        volume=batch.volume.repeat(1, 2, 1, 1, 1),
        present=torch.tensor([[True, True]] * len(batch.volume)),
        slope=batch.slope.repeat(1, 2),
        intercept=batch.intercept.repeat(1, 2),
        modality=batch.modality.repeat(1, 2),
        statistics=batch.statistics.repeat(1, 2, 1),
    )


def test_views_lie_behind_each_other_by_size_with_their_physical_spacing(crop_batch) -> None:
    batch = crop_batch(SHAPE, positions=[0, 3])
    large, small = VIEWS(batch)
    assert large.volume.shape == (4, 1, *SHAPE)
    assert small.volume.shape == (6, 1, 4, 8, 9)
    # Half the depth, and half of each edge of the slice, at (4, 8, 9) voxels.
    want = torch.tensor([3.0 * 6 * 0.5 / 4, 1.0 * 12 * 0.5 / 8, 1.5 * 15 * 0.5 / 9])
    torch.testing.assert_close(small.spacing_mm, want.expand(6, 3))
    torch.testing.assert_close(large.spacing_mm[:, 1:], torch.tensor([[1.0, 1.5]]).expand(4, 2))
    assert ((large.spacing_mm[:, 0] >= 1.5) & (large.spacing_mm[:, 0] <= 3.0)).all()
    assert len(large.spacing_mm[:, 0].unique()) == 4


def test_views_differ_and_follow_from_the_position_alone(crop_batch) -> None:
    large, small = VIEWS(crop_batch(SHAPE, positions=[0, 3]))
    alone = VIEWS(crop_batch(SHAPE, positions=[3]))
    assert torch.equal(large.volume[1::2], alone[0].volume)
    assert torch.equal(small.volume[1::2], alone[1].volume)
    assert len(small.volume.flatten(1).unique(dim=0)) == 6


def test_without_local_crops_there_is_one_size(crop_batch) -> None:
    only = VIEWS._replace(local_crops=LocalCrops(num_crops=0))
    assert len(only(crop_batch(SHAPE, positions=[0]))) == 1


def test_a_view_may_lack_a_channel_but_never_all(crop_batch) -> None:
    batch = _two_channels(crop_batch(SHAPE, positions=list(range(30))))
    batch.present[0, 1] = False
    large, small = VIEWS._replace(channel_drop=0.6)(batch)
    for part, num_views in ((large, 2), (small, 3)):
        assert part.present.shape == (30 * num_views, 2)
        assert part.present.any(dim=1).all()
        assert not part.present[::30, 1].any(), "a channel that is not there never appears"
        assert (part.volume[~part.present] == -1).all()
    share = small.present.float().mean().item()
    # Both stay in .16 of the views, else one does; a sixtieth of all is missing anyway.
    assert share == pytest.approx((2 * 0.16 + 0.84) / 2, abs=0.06)
    assert torch.equal(VIEWS(batch)[0].present, batch.present.repeat(2, 1))
