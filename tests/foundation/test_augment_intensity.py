"""Each change of intensities against TorchIO, PyTorch's own resizing, or a plain loop."""

import numpy as np
import pytest
import torch
import torchio
from torch.nn import functional

from foundation.augmenting.artefacts import apply_bias_field, blur, cut_out, thicken
from foundation.augmenting.intensity import add_noise, curve, rewindow, stretch

SHAPE = (6, 11, 14)
SPACING_MM = torch.tensor([[5.0, 0.7, 0.9], [2.0, 1.0, 1.1], [1.5, 3.0, 0.5]])


def _channels(shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """(3, D, H, W), each row for numbers of its own."""
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_another_window_is_torchios_in_hounsfield_units() -> None:
    # The preprocessing's window is -800 to 1200 HU.
    hounsfield = torch.tensor([[-800.0, 1200.0], [-150.0, 250.0], [100.0, 1150.0]])
    got = rewindow(_channels(), (hounsfield - 200) / 1000)
    for row, (low, high) in enumerate(hounsfield.tolist()):
        stored = (_channels()[row : row + 1] * 1000 + 200).clamp(low, high)
        rescale = torchio.transforms.RescaleIntensity((-1, 1), in_min_max=(low, high))
        torch.testing.assert_close(got[row], rescale(stored)[0], atol=1e-5, rtol=0)


def test_gamma_is_torchios() -> None:
    gamma = torch.tensor([0.5, 1.0, 1.8])
    got = curve(_channels(), gamma)
    for row in range(3):
        unit = (_channels()[row : row + 1] + 1) / 2
        want = 2 * torchio.transforms.Gamma(gamma[row].item())(unit) - 1
        torch.testing.assert_close(got[row], want[0], atol=1e-6, rtol=0)


def test_contrast_and_brightness_are_a_line_that_is_clipped() -> None:
    contrast, brightness = torch.tensor([0.5, 1.0, 1.6]), torch.tensor([0.1, -0.3, 0.2])
    got = stretch(_channels(), contrast, brightness).numpy()
    for row in range(3):
        line = _channels()[row].numpy() * contrast[row].item() + brightness[row].item()
        np.testing.assert_allclose(got[row], np.clip(line, -1, 1), atol=1e-6)


def test_noise_has_its_spread_and_differs_by_channel() -> None:
    std, seed = torch.tensor([0.02, 0.05, 0.05]), torch.tensor([1, 2, 3])
    noise = add_noise(torch.zeros(3, 20, 30, 40), std, seed).flatten(1)
    # Five standard errors over 24,000 values: 2.3% of a deviation, 0.033 of a correlation.
    torch.testing.assert_close(noise.std(1), std, atol=0, rtol=0.023)
    assert (noise.mean(1).abs() < 0.033 * std).all()
    assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.033
    assert torch.equal(
        noise[1:2], add_noise(torch.zeros(1, 20, 30, 40), std[1:2], seed[1:2]).flatten(1)
    )


def test_blur_is_torchios_in_millimetres() -> None:
    sigma_mm = torch.tensor([1.3, 0.6, 2.0])
    got = blur(_channels(), sigma_mm, SPACING_MM)
    for row in range(3):
        affine = torch.diag(torch.cat([SPACING_MM[row], torch.ones(1)]))
        image = torchio.ScalarImage(tensor=_channels()[row : row + 1], affine=affine)
        want = torchio.transforms.Blur(std=(sigma_mm[row].item(),) * 3)(image).data
        torch.testing.assert_close(got[row], want[0], atol=2e-6, rtol=0)


def test_bias_field_is_torchios() -> None:
    coefficients = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) * 0.4 - 0.2
    got = apply_bias_field(_channels(), coefficients)
    generate = torchio.transforms.BiasField.generate_bias_field
    for row in range(3):
        field = generate(torch.zeros(1, *SHAPE), 3, coefficients[row].tolist())
        want = ((_channels()[row].numpy() + 1) * field - 1).clip(-1, 1)
        np.testing.assert_allclose(got[row].numpy(), want, atol=1e-5)
        assert field.max() / field.min() > 1.1
    assert (apply_bias_field(torch.full((3, *SHAPE), -1.0), coefficients) == -1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_means_and_lines_between_them(axis: int) -> None:
    shape = (12, 24, 36)
    thickness = torch.tensor([2.0, 3.0, 6.0])
    got = thicken(_channels(shape), thickness, axis=axis)
    for row in range(3):
        fewer = list(shape)
        fewer[axis] = round(shape[axis] / thickness[row].item())
        volume = _channels(shape)[None, row : row + 1]
        thick = functional.interpolate(volume, size=fewer, mode="area")
        want = functional.interpolate(thick, size=shape, mode="trilinear")
        torch.testing.assert_close(got[row], want[0, 0], atol=1e-5, rtol=0)


def test_slices_of_any_thickness_keep_a_constant_and_the_mean_of_a_slice() -> None:
    constant = torch.full((2, *SHAPE), 0.4)
    thickness = torch.tensor([2.4, 30.0])
    torch.testing.assert_close(thicken(constant, thickness, axis=2), constant)
    # One slice is left of a thickness beyond the axis: the mean.
    got = thicken(_channels()[:2], thickness, axis=1)[1]
    torch.testing.assert_close(got, _channels()[1].mean(1, keepdim=True).expand(SHAPE))


def test_boxes_are_cut_out_of_every_channel() -> None:
    boxes = torch.zeros(2, 2, 3, 2)
    boxes[0, 0] = torch.tensor([[0.3, 0.7], [0.0, 0.5], [0.5, 1.0]])
    boxes[0, 1] = torch.tensor([[0.9, 1.0], [0.2, 0.4], [0.1, 0.2]])
    volume = _channels()[:2][:, None].expand(2, 3, *SHAPE)
    want = volume.clone()
    for index in np.ndindex(2, *SHAPE):
        row, place = index[0], (np.array(index[1:]) + 0.5) / SHAPE
        for start, stop in (box.unbind(-1) for box in boxes[row]):
            if ((place >= start.numpy()) & (place < stop.numpy())).all():
                want[row, :, index[1], index[2], index[3]] = -1
    got = cut_out(volume, boxes)
    assert torch.equal(got, want)
    assert torch.equal(got[1], volume[1])
    assert 0.05 < (got[0] != volume[0]).float().mean() < 0.2
