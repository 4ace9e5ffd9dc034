"""An export is checked after it was written: what lies on the disk is run against the backbone."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foundation.backbone import Backbone
from foundation.converting.network import OUTPUTS, ConvertError, example_inputs, frozen_network

BATCHES = (1, 3)
"""Neither is the batch that an export is traced with."""

Run = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Checked(NamedTuple):
    """How far an export's outputs are from the backbone's."""

    differences: Mapping[str, float]
    """largest absolute difference of each output"""
    tolerance: float

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.1e}" for name, value in self.differences.items())
        return f"largest difference from the backbone: {parts} ({self.tolerance:g} is allowed)"


def check_network(run: Run, backbone: Backbone, *, tolerance: float, what: str) -> Checked:
    """Compare the outputs for drawn inputs in batches of several sizes.

    Args:
        run: The export, loaded from the disk.
        backbone: What it was made from.
        tolerance: Largest absolute difference that is allowed.
        what: Names the export in an error.

    Raises:
        ConvertError: A difference beyond it, or an output of another shape.
    """
    network = frozen_network(backbone)
    differences = dict.fromkeys(OUTPUTS, 0.0)
    for seed, batch in enumerate(BATCHES):
        inputs = example_inputs(backbone, batch=batch, seed=seed)
        with torch.inference_mode():
            expected = network(**inputs)
        found = run(inputs)
        for name in OUTPUTS:
            distance = _distance(found[name], expected[name], name=name, what=what)
            differences[name] = float(np.maximum(differences[name], distance))  # NaN stays NaN
    return within(Checked(differences, tolerance), what=what)


def within(checked: Checked, *, what: str) -> Checked:
    """The same, once every difference is known to be small enough.

    Raises:
        ConvertError: One is not, or is no number.
    """
    for name, value in checked.differences.items():
        if not value <= checked.tolerance:
            raise ConvertError(
                f"{what}: its {name} comes out {value:.2g} from the backbone's, at most "
                f"{checked.tolerance:g} is allowed; nothing was written"
            )
    return checked


def _distance(found: Tensor, expected: Tensor, *, name: str, what: str) -> float:
    if found.shape != expected.shape:
        raise ConvertError(
            f"{what}: its {name} has shape {tuple(found.shape)}, the backbone's "
            f"{tuple(expected.shape)}; nothing was written"
        )
    return (found - expected).abs().amax().item()
