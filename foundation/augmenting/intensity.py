"""Changes of single voxels' intensities, each channel by its own numbers.

Here N is samples x channels; every function takes (N, d, h, w) in [-1, 1] and gives the same.
"""

from torch import Tensor

from foundation.running.randomness import normal_field


def add_noise(volume: Tensor, std: Tensor, seed: Tensor) -> Tensor:
    """Gaussian noise of ``std`` (N,), from ``seed`` (N,) int64."""
    noise = normal_field(seed, num_values=volume[0].numel()).view_as(volume)
    return noise.mul_(_wide(std)).add_(volume).clamp_(-1, 1)


def rewindow(volume: Tensor, window: Tensor) -> Tensor:
    """Show ``window`` (N, 2), which becomes -1 and 1; what lies beyond is clipped."""
    low, high = _wide(window[:, 0]), _wide(window[:, 1])
    return ((volume - low) * (2 / (high - low)) - 1).clamp_(-1, 1)


def curve(volume: Tensor, gamma: Tensor) -> Tensor:
    """Raise intensities, taken as [0, 1], to ``gamma`` (N,)."""
    return 2 * ((volume + 1) / 2).clamp_(0, 1) ** _wide(gamma) - 1


def stretch(volume: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """Times ``contrast`` (N,), plus ``brightness`` (N,)."""
    return (volume * _wide(contrast) + _wide(brightness)).clamp_(-1, 1)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
