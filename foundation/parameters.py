"""What an optimiser must know about each trainable parameter."""

from collections.abc import Collection
from typing import TypedDict

from torch import nn

_TOKENS = ("cls_token", "mask_token", "registers")


class ParameterGroup(TypedDict):
    """One entry of an optimiser's ``param_groups``."""

    params: list[nn.Parameter]
    weight_decay: float
    name: str
    last_layer: bool


def parameter_groups(
    module: nn.Module, *, weight_decay: float, last_layer: Collection[str] = ()
) -> list[ParameterGroup]:
    """Trainable parameters in groups that share weight decay; a group without members is left out.

    Args:
        module: Whose parameters; those with ``requires_grad`` off are nobody's.
        weight_decay: For weights; biases, norms and learned tokens have none.
        last_layer: Names of the parameters that a method holds still in its first steps. They are
            a group of their own, to be held by a learning rate of 0.
    """
    members: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "last_layer": []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name, parameter, last_layer)].append(parameter)
    return [
        ParameterGroup(
            params=params,
            weight_decay=0.0 if name == "no_decay" else weight_decay,
            name=name,
            last_layer=name == "last_layer",
        )
        for name, params in members.items()
        if params
    ]


def _group_of(name: str, parameter: nn.Parameter, last_layer: Collection[str]) -> str:
    if name in last_layer:
        return "last_layer"
    is_token = name.rpartition(".")[2] in _TOKENS
    return "no_decay" if is_token or parameter.ndim < 2 else "decay"
