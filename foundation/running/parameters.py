"""What an optimiser must know about each trainable parameter."""

from collections.abc import Collection
from typing import NamedTuple, TypedDict

from torch import nn

_TOKENS = ("cls_token", "mask_token", "registers", "absent_embed", "position_table")
_KINDS = ("decay", "no_decay", "last_layer")


class LayerRates(NamedTuple):
    """Shares of the learning rate that a backbone's lower layers get (Clark et al. 2020, ELECTRA).

    Of a backbone with L blocks, block i (from 0) gets ``decay ** (L - i)`` and what embeds patches
    ``decay ** (L + 1)``; the final norm and everything else get the whole.
    """

    decay: float = 1.0
    patch_embed: float = 1.0
    """beside it, for the projection of patches alone"""


UNIFORM = LayerRates()


class ParameterGroup(TypedDict):
    """One entry of an optimiser's ``param_groups``."""

    params: list[nn.Parameter]
    weight_decay: float
    name: str
    last_layer: bool
    lr_scale: float
    """share of the learning rate"""


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float,
    rates: LayerRates = UNIFORM,
    backbone: nn.Module | None = None,
    last_layer: Collection[str] = (),
) -> list[ParameterGroup]:
    """Trainable parameters in groups that share weight decay and learning rate.

    Args:
        module: Whose parameters; those with ``requires_grad`` off are nobody's.
        weight_decay: For weights; biases, norms and learned tokens have none.
        rates: Of the layers of ``backbone``.
        backbone: The part of ``module`` with layers: ``patch_embed``, ``blocks`` and ``norm``.
        last_layer: Names of the parameters that a method holds still in its first steps. They are
            a group of their own, to be held by a learning rate of 0.

    Returns:
        Groups without members are left out. Those with the whole learning rate come first, of these
        the one with weight decay.
    """
    shares = {} if backbone is None else _layer_shares(backbone, rates)
    members: dict[tuple[float, str], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            share = shares.get(id(parameter), 1.0)
            kind = _kind_of(name, parameter, last_layer)
            members.setdefault((share, kind), []).append(parameter)
    order = sorted(members, key=lambda group: (-group[0], _KINDS.index(group[1])))
    return [
        ParameterGroup(
            params=members[share, kind],
            weight_decay=0.0 if kind == "no_decay" else weight_decay,
            name=kind,
            last_layer=kind == "last_layer",
            lr_scale=share,
        )
        for share, kind in order
    ]


def _layer_shares(backbone: nn.Module, rates: LayerRates) -> dict[int, float]:
    """Share of the learning rate by ``id`` of a parameter of ``backbone``."""
    blocks = backbone.get_submodule("blocks")
    depth = len(list(blocks.children()))
    layers = {f"blocks.{index}": index + 1 for index in range(depth)} | {"norm": depth + 1}
    shares = {id(parameter): rates.decay ** (depth + 1) for parameter in backbone.parameters()}
    for part, layer in layers.items():
        for parameter in backbone.get_submodule(part).parameters():
            shares[id(parameter)] = rates.decay ** (depth + 1 - layer)
    for parameter in backbone.get_submodule("patch_embed").parameters():
        shares[id(parameter)] *= rates.patch_embed
    return shares


def _kind_of(name: str, parameter: nn.Parameter, last_layer: Collection[str]) -> str:
    if name in last_layer:
        return "last_layer"
    is_token = name.rpartition(".")[2] in _TOKENS
    return "no_decay" if is_token or parameter.ndim < 2 else "decay"
