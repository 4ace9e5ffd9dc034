"""Resampling against SciPy and TorchIO, on volumes that are neither cubes nor isotropic."""

import numpy as np
import pytest
import torch
import torchio
from scipy.ndimage import map_coordinates

from foundation.augmenting.config import AugmentConfig, CropScale
from foundation.augmenting.draw import Geometry, draw_view, rotation_matrix
from foundation.augmenting.spatial import Resampled, resample

SHAPE = (6, 11, 14)
VIEW_SHAPE = (4, 9, 7)
SPACING_MM = torch.tensor([[5.0, 0.7, 0.9], [2.0, 1.0, 1.1], [1.5, 3.0, 0.5]])


def _volume() -> torch.Tensor:
    return torch.rand(3, 1, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _whole(linear: torch.Tensor) -> Geometry:
    num = len(linear)
    return Geometry(torch.zeros(num, 3), torch.ones(num, 3), linear, torch.zeros(num, 0, 3, 2))


def _seen(volume: torch.Tensor, geometry: Geometry, *, shape=VIEW_SHAPE, spacing_mm) -> Resampled:
    return resample(volume, geometry, shape=shape, spacing_mm=spacing_mm, inside=None)


def _places(geometry: Geometry, row: int) -> np.ndarray:
    """(3, d, h, w) voxel indices of a view's centres in its crop, worked out in millimetres."""
    spacing = SPACING_MM[row].double().numpy()
    size_mm = spacing * SHAPE
    start, extent, linear = (each[row].double().numpy() for each in geometry[:3])
    centres = [(np.arange(size) + 0.5) / size - 0.5 for size in VIEW_SHAPE]
    from_middle_mm = np.stack(np.meshgrid(*centres, indexing="ij")).reshape(3, -1)
    from_middle_mm *= (extent * size_mm)[:, None]
    place_mm = linear @ from_middle_mm + ((start + extent / 2) * size_mm)[:, None]
    return (place_mm / spacing[:, None] - 0.5).reshape(3, *VIEW_SHAPE)


def test_crop_flip_turn_and_stretch_match_scipy_sample_by_sample() -> None:
    augment = AugmentConfig.model_validate(
        {
            "flip": [0.5, 0.5, 0.5],
            "rotation": {"probability": 1, "degrees": [30, 20, 10]},
            "affine": {"probability": 1, "scale": [0.8, 1.3], "shear": 0.2},
        }
    )
    geometry = draw_view(
        torch.tensor([5, 2, 9]),
        seed=1,
        view=0,
        scale=CropScale(in_plane=(0.2, 0.9), across=(0.3, 1.0)),
        augment=augment,
        modality=torch.zeros(3, 1, dtype=torch.int64),
        window_hu=(-1000.0, 1000.0),
    ).geometry
    volume = _volume()
    got = _seen(volume, geometry, spacing_mm=SPACING_MM)
    for row in range(3):
        places = _places(geometry, row)
        want = map_coordinates(volume[row, 0].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(got.volume[row, 0].numpy(), want, atol=2e-5)
        edge = np.array(SHAPE)[:, None, None, None] - 0.5
        inside = ((places >= -0.5) & (places <= edge)).all(axis=0)
        np.testing.assert_array_equal(got.inside[row, 0].numpy(), inside)
    assert 0.05 < got.inside.float().mean() < 0.95


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_is_torchios(axis: int) -> None:
    flip = torch.ones(3)
    flip[axis] = -1
    volume = _volume()
    geometry = _whole(torch.diag(flip).expand(3, 3, 3))
    got = _seen(volume, geometry, shape=SHAPE, spacing_mm=SPACING_MM).volume
    want = torch.stack([torchio.transforms.Flip(axes=(axis,))(each) for each in volume])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axis", "degrees"), [(0, 25.0), (1, -14.0), (2, 33.0)])
def test_a_rotation_is_torchios_in_millimetres(axis: int, degrees: float) -> None:
    shape, spacing = (9, 16, 21), torch.tensor([[2.0, 1.25, 0.8]])
    volume = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(3))
    angles = torch.zeros(1, 3)
    angles[:, axis] = degrees
    got = _seen(volume, _whole(rotation_matrix(angles)), shape=shape, spacing_mm=spacing)
    image = torchio.ScalarImage(
        tensor=volume[0], affine=torch.diag(torch.cat([spacing[0], torch.ones(1)]))
    )
    turn = [0.0, 0.0, 0.0]
    turn[axis] = -degrees  # TorchIO's is how the content moves, ours where a view looks
    reference = torchio.transforms.Affine(
        scales=1, degrees=turn, translation=0, default_pad_value=-5
    )(image).data
    # Where ITK interpolates, and not where either begins to look outside.
    inner = (reference[0] >= 0) & got.inside[0, 0]
    assert inner.float().mean() > 0.4
    torch.testing.assert_close(got.volume[0, 0][inner], reference[0][inner], atol=1e-5, rtol=0)


def test_a_rotation_keeps_distances_in_millimetres() -> None:
    rotation = rotation_matrix(torch.tensor([[20.0, -35.0, 50.0], [90.0, 0.0, 0.0]]))
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(2, 3, 3))
    # About D, H turns towards W.
    torch.testing.assert_close(
        rotation[1] @ torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    )


def test_a_scale_above_one_makes_the_patient_larger() -> None:
    augment = AugmentConfig.model_validate(
        {
            "rotation": {"probability": 0},
            "affine": {"probability": 1, "scale": [1.5, 1.5], "shear": 0},
        }
    )
    geometry = draw_view(
        torch.tensor([0]),
        seed=0,
        view=0,
        scale=CropScale(in_plane=(1, 1), across=(1, 1), aspect=(1, 1)),
        augment=augment,
        modality=torch.zeros(1, 1, dtype=torch.int64),
        window_hu=(-1000.0, 1000.0),
    ).geometry
    volume = torch.zeros(1, 1, 30, 20, 24)
    volume[:, :, 10:20, 6:14, 8:16] = 1
    seen = _seen(volume, geometry, shape=(30, 20, 24), spacing_mm=torch.tensor([[1.0, 2.0, 1.5]]))
    assert seen.volume.sum() == pytest.approx(1.5**3 * volume.sum().item(), rel=0.01)
    assert seen.spacing_mm.tolist() == [[1.0, 2.0, 1.5]]
