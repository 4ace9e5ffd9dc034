"""The loss of a mask: soft Dice plus cross-entropy, for each sample by itself."""

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5


def mask_loss(
    logits: Tensor, classes: Tensor, counted: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Soft Dice (Milletari et al. 2016; here without squares) and cross-entropy, one to one.

    Dice is ``1 - (2 sum(p g) + s) / (sum(p) + sum(g) + s)`` over the voxels that count, averaged
    over the foreground classes that the sample has. A class that it lacks has no part in its Dice:
    its false voxels are the cross-entropy's, and what MONAI's smoothing gives there is a constant 1
    almost without gradient. In a sample without foreground, Dice is 0. Cross-entropy is the mean
    over the voxels that count of ``-w[class] log p[class]``.

    Nothing here looks at two samples at once, so the mean over ranks is that of the joined batch.

    Args:
        logits: (B, K, D, H, W), background first; computed in float32 whatever autocast says.
        classes: (B, D, H, W) int64, 0 to K - 1.
        counted: (B, D, H, W) bool; other voxels, such as padding, have no part and no gradient.
        weights: (K,) of the cross-entropy; their mean over the voxels of the training set is 1.

    Returns:
        (B,) float32; 0 for a sample without a voxel that counts.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # Filled, not multiplied: what is not counted may be anything, infinities too.
        logits = logits.float().masked_fill(~counted[:, None], 0.0)
        classes = classes.masked_fill(~counted, 0)
        log_shares = logits.log_softmax(dim=1)
        entropy = functional.nll_loss(log_shares, classes, weight=weights, reduction="none")
        entropy = (entropy * counted).flatten(1).sum(dim=1) / _num(counted).clamp(min=1)
        return entropy + _dice_loss(log_shares.exp(), classes, counted)


def _dice_loss(shares: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    """(B,) of (B, K, D, H, W) shares of the classes."""
    truth = torch.zeros_like(shares).scatter_(1, classes[:, None], 1.0)
    # Background is class 0 in both.
    here = counted[:, None]
    shares, truth = (each[:, 1:] * here for each in (shares, truth))
    both, found, true = (each.flatten(2).sum(dim=2) for each in (shares * truth, shares, truth))
    loss = 1 - (2 * both + _SMOOTH) / (found + true + _SMOOTH)
    present = true > 0
    return (loss * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)


def _num(counted: Tensor) -> Tensor:
    return counted.flatten(1).sum(dim=1)
