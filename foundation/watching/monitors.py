"""Numbers that tell whether features have collapsed, of one feature vector a subject.

All are computed in float32 on (n, E) features of n scans of different subjects. Ranks are given as
a share of what n scans and E channels can reach, so that one healthy range fits every size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

_EPSILON = 1e-7


def feature_monitors(features: Tensor) -> dict[str, float]:
    """Every monitor of one kind of features, (n, E) with n at least 2."""
    return {
        "feature_std": float(normalised_std(features)),
        "effective_rank": effective_rank(features),
        "rankme": rankme(features),
        "gram_off_diagonal": gram_off_diagonal(features),
    }


def normalised_std(features: Tensor) -> Tensor:
    """Spread of unit-length features (n, E) over the batch, times sqrt(E).

    About 1 where directions are all over the sphere; towards 0 is collapse (Chen & He 2021,
    sec. 4.1).
    """
    unit = functional.normalize(features.float(), dim=-1)
    return unit.std(dim=0, unbiased=False).mean() * math.sqrt(features.shape[-1])


def effective_rank(features: Tensor) -> float:
    """Entropy of the singular values of centred features (n, E), as a rank (Roy & Vetterli 2007).

    Returns:
        In (0, 1], of the attainable min(n - 1, E); 0 where all rows are equal.
    """
    centred = features.double() - features.double().mean(dim=0)
    # Below this, singular values are the rounding of equal rows.
    noise = torch.finfo(torch.float32).eps * float(features.double().norm())
    values = torch.linalg.svdvals(centred)
    if float(values[0]) <= noise:
        return 0.0
    return _entropy_rank(values) / min(len(features) - 1, features.shape[1])


def rankme(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023, eq. 1) of features (n, E), which are not centred.

    Returns:
        In (0, 1], of the attainable min(n, E).
    """
    return _entropy_rank(torch.linalg.svdvals(features.double())) / min(features.shape)


def gram_off_diagonal(features: Tensor) -> float:
    """Mean cosine between the features (n, E) of two scans, which goes to 1 as they become one."""
    unit = functional.normalize(features.double(), dim=-1)
    count = len(unit)
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))


def cls_patch_cosine(cls_token: Tensor, *, patch_mean: Tensor) -> float:
    """Mean cosine of a scan's class token with the mean of its patch tokens, (n, E) each."""
    return float(functional.cosine_similarity(cls_token.double(), patch_mean.double()).mean())


def _entropy_rank(values: Tensor) -> float:
    share = values / values.sum().clamp(min=_EPSILON) + _EPSILON
    return float((-(share * share.log()).sum()).exp())
