"""The pretraining methods, chosen by the section that a recipe holds."""

from collections.abc import Callable
from typing import Any, Protocol

from pydantic import model_validator
from torch import Tensor, nn

from foundation.dino import DinoConfig, build_dino
from foundation.mae import MaeConfig, build_mae
from foundation.preprocessing import Preprocessing
from foundation.running.parameters import UNIFORM, LayerRates, ParameterGroup
from foundation.vit import Vit3d
from recipes.load import Section
from shards.streaming.batch import CropBatch


class Method(Protocol):
    """What the training loop needs; every method is a ``torch.nn.Module`` beside.

    ``step`` counts the run's updates from 0 and is the same for every micro batch of an update.
    Masks, views and what drop path leaves out follow from the run's seed and each sample's
    position, never from torch's global generator: they are the same on any number of ranks.
    """

    freeze_last_layer_steps: int
    """updates in which groups with ``last_layer`` are held by a learning rate of 0"""

    @property
    def prepare(self) -> nn.Module:
        """Turns a batch into what the network sees; timed apart from the network."""

    @property
    def backbone(self) -> Vit3d:
        """The module to publish."""

    def __call__(self, batch: CropBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a micro batch and what to log, scalars without gradient."""

    def after_update(self, step: int) -> None:
        """Called once after each update that was applied, not after a skipped one."""

    def param_groups(
        self, weight_decay: float, *, rates: LayerRates = UNIFORM
    ) -> list[ParameterGroup]:
        """Every trainable parameter, once; a weight decay of 0 stays 0."""


class MethodSections(Section):
    """The part of a recipe that names the method: exactly one of these sections."""

    mae: MaeConfig | None = None
    dino: DinoConfig | None = None

    @model_validator(mode="after")
    def _one_method(self) -> "MethodSections":
        present = [name for name in METHODS if getattr(self, name) is not None]
        if len(present) != 1:
            raise ValueError(
                f"a recipe has exactly one of the sections {', '.join(METHODS)}; "
                f"this one has {' and '.join(present) or 'none'}"
            )
        return self

    @property
    def method_name(self) -> str:
        """The key of ``METHODS``."""
        return next(name for name in METHODS if getattr(self, name) is not None)


METHODS: dict[str, Callable[..., Any]] = {"mae": build_mae, "dino": build_dino}
COMPARES_SAMPLES = frozenset({"dino"})
"""Methods whose loss of one scan depends on which others are in the micro batch, over all ranks."""
HAS_TEACHER = frozenset({"dino"})


def build_method(
    sections: MethodSections,
    *,
    vit: Vit3d,
    preprocessing: Preprocessing,
    total_steps: int,
    seed: int,
) -> Method:
    """The recipe's method around ``vit``; new weights come from torch's global generator."""
    name = sections.method_name
    method: Method = METHODS[name](
        getattr(sections, name),
        vit=vit,
        preprocessing=preprocessing,
        total_steps=total_steps,
        seed=seed,
    )
    return method
