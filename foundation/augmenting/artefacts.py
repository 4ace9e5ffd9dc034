"""What a scanner does to an image, and boxes cut out of one; each channel by its own numbers.

Here N is samples x channels. What is linear along an axis is a matrix per channel, so channels of
different widths and thicknesses go through one batched product (in float32, unless the process asks
for TF32 in every matrix product).
"""

import torch
from torch import Tensor

from foundation.preprocessing import AIR

BIAS_ORDER = 3
_BIAS_POWERS = [
    (d, h, w)
    for d in range(BIAS_ORDER + 1)
    for h in range(BIAS_ORDER + 1 - d)
    for w in range(BIAS_ORDER + 1 - d - h)
]
NUM_BIAS_TERMS = len(_BIAS_POWERS)
_TRUNCATE = 4.0  # standard deviations of a Gaussian


def apply_bias_field(volume: Tensor, coefficients: Tensor) -> Tensor:
    """Times the exponential of a polynomial over the view, intensities taken from 0 (air).

    Van Leemput et al. 1999, sec. II, in the form of TorchIO's ``RandomBiasField``: each axis runs
    from -1 to 1 between the outermost voxel centres.

    Args:
        volume: (N, d, h, w) in [-1, 1].
        coefficients: (N, 20), of D^i H^j W^k with i + j + k <= 3, k counting fastest.
    """
    cube = volume.new_zeros(len(volume), *[BIAS_ORDER + 1] * 3)
    d, h, w = torch.tensor(_BIAS_POWERS, device=volume.device).unbind(1)
    cube[:, d, h, w] = coefficients
    for size in reversed(volume.shape[1:]):
        # Sums of products, not a matrix product, which may be cut to TF32: exp amplifies.
        powers = _powers(size, volume.device)
        cube = (cube[..., None] * powers).sum(-2).movedim(-1, 1)
    return ((volume + 1) * cube.exp() - 1).clamp_(-1, 1)


def thicken(volume: Tensor, thickness: Tensor, *, axis: int) -> Tensor:
    """Average slices of ``thickness`` (N,) voxels across ``axis`` (0-2), and interpolate back."""
    return _along(volume, _thick_slices(thickness, size=volume.shape[1 + axis]), axis=axis)


def blur(volume: Tensor, sigma_mm: Tensor, spacing_mm: Tensor) -> Tensor:
    """A Gaussian of ``sigma_mm`` (N,) on voxels of ``spacing_mm`` (N, 3); the edge is a mirror."""
    for axis in range(3):
        matrix = _gaussian(sigma_mm / spacing_mm[:, axis], size=volume.shape[1 + axis])
        volume = _along(volume, matrix, axis=axis)
    return volume


def cut_out(volume: Tensor, boxes: Tensor) -> Tensor:
    """Fill ``boxes`` (B, K, 3, 2), shares [start, stop), of (B, C, d, h, w) with air."""
    per_axis = []
    for axis, size in enumerate(volume.shape[2:]):
        centres = (torch.arange(size, device=volume.device) + 0.5) / size
        start, stop = boxes[:, :, axis, :1], boxes[:, :, axis, 1:]
        per_axis.append((centres >= start) & (centres < stop))
    d, h, w = per_axis
    covered = d[..., :, None, None] & h[..., None, :, None] & w[..., None, None, :]
    return volume.masked_fill(covered.any(dim=1)[:, None], AIR)


def _along(volume: Tensor, matrix: Tensor, *, axis: int) -> Tensor:
    """(N, d, h, w) times (N, L, L) along one of its last three axes."""
    if axis == 0:
        return (matrix @ volume.flatten(2)).view_as(volume)
    if axis == 1:
        return matrix[:, None] @ volume
    return volume @ matrix.mT[:, None]


def _gaussian(sigma: Tensor, *, size: int) -> Tensor:
    """(N,) in voxels to (N, L, L): a truncated Gaussian, reflected at both ends."""
    place = torch.arange(size, device=sigma.device)
    row, column = place[:, None], place[None, :]
    sigma = sigma[:, None, None]
    radius = (_TRUNCATE * sigma + 0.5).floor()
    matrix = torch.zeros((), device=sigma.device)
    for turn in (-1, 0, 1):
        for image in (column, -1 - column):
            distance = row - image - 2 * size * turn
            weight = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-6)) ** 2)
            matrix = matrix + weight * (distance.abs() <= radius)
    return matrix / matrix.sum(dim=-1, keepdim=True)


def _thick_slices(thickness: Tensor, *, size: int) -> Tensor:
    """(N,) in voxels to (N, L, L): means over slices, then linear between their middles.

    The slices fill the axis, so their number is rounded. Beyond the outermost middles a slice's
    value holds.
    """
    num = (size / thickness).round().clamp(min=1)[:, None, None]
    edge = size / num  # of a slice, in voxels
    place = torch.arange(size, device=thickness.device)
    slices, voxels = place[:, None], place[None, :]
    overlap = torch.minimum((slices + 1) * edge, voxels + 1) - torch.maximum(slices * edge, voxels)
    average = overlap.clamp(min=0) / edge
    middle = ((place + 0.5)[:, None] / edge - 0.5).clamp(min=0).minimum(num - 1)
    interpolate = (1 - (middle - place).abs()).clamp(min=0)
    return interpolate @ average


def _powers(size: int, device: torch.device) -> Tensor:
    """(4, L): 1, x, x^2, x^3 of the centres, the outermost at -1 and 1."""
    middle = (size - 1) / 2
    place = (torch.arange(size, device=device) - middle) / max(middle, 0.5)
    return torch.stack([place**power for power in range(BIAS_ORDER + 1)])
