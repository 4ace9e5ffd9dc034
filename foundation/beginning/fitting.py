"""Which weights of another network a backbone takes over, and what that leaves out."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from foundation.beginning.inflate import (
    ABSENT,
    LEARNED,
    PATCH,
    POSITIONS,
    REGISTERS,
    InflationError,
    Weights,
    fitted_patch,
    fitted_positions,
)
from foundation.network.positions import PositionScheme
from foundation.vit import Vit3d

# What a backbone may have or not without the rest of it becoming another function.
_OPTIONAL = (POSITIONS, REGISTERS, ABSENT)
_NAMED = 3


class FitReport(NamedTuple):
    """What became of every tensor on both sides."""

    loaded: tuple[str, ...]
    """of the backbone, taken as they are"""
    resized: tuple[str, ...]
    """of the backbone, made from tensors of another shape"""
    missing: tuple[str, ...]
    """of the backbone, left as they were drawn"""
    unexpected: tuple[str, ...]
    """of the source, with no place in the backbone"""
    unused: tuple[str, ...]
    """of the source, understood and not wanted"""
    positions: str
    """how places enter the backbone, and how they entered the source where that was otherwise"""
    coverage: float
    """share of the backbone's parameters that were loaded or resized"""

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self._asdict().items()
        }

    def lines(self) -> list[str]:
        """For people: one line of what was taken, one for each way in which something was not."""
        taken = f"{self.coverage:.1%} of the backbone, {len(self.loaded)} tensors as they are"
        told = {
            "positions": (self.positions,),
            "resized": self.resized,
            "missing, left as drawn": self.missing,
            "unexpected": self.unexpected,
            "unused": self.unused,
        }
        return [taken, *(f"{word}: {_some(names)}" for word, names in told.items() if names)]


class Fitted(NamedTuple):
    """Weights in the shapes of a backbone, and how they came about."""

    tensors: dict[str, Tensor]
    report: FitReport


def fit(weights: Weights, vit: Vit3d) -> Fitted:
    """Bring weights into the shapes of ``vit``, whose values are not looked at nor changed.

    Raises:
        InflationError: Shapes differ that cannot be resized, the heads are others, or blocks have
            other parts; half a block computes nothing.
    """
    wanted = {name: tensor for name, tensor in vit.state_dict().items() if tensor.numel()}
    _check_heads(weights.num_heads, vit)
    _check_blocks(weights.tensors, wanted)
    tensors: dict[str, Tensor] = {}
    loaded: list[str] = []
    resized: list[str] = []
    for name, target in wanted.items():
        value = _fitted(name, target, weights=weights, vit=vit)
        if value is None:
            continue
        tensors[name] = value.flatten(1) if name == PATCH else value
        _check_shape(name, tensors[name], target)
        changed = value is not weights.tensors[name] or (weights.flat and name == PATCH)
        (resized if changed else loaded).append(name)
    left = [name for name in weights.tensors if name not in tensors]
    report = FitReport(
        loaded=tuple(loaded),
        resized=tuple(resized),
        missing=tuple(name for name in wanted if name not in tensors),
        unexpected=tuple(weights.source_name(each) for each in left if each not in _OPTIONAL),
        unused=tuple(weights.source_name(each) for each in left if each in _OPTIONAL),
        positions=_positions(weights.positions, positions_in_words(vit.positions)),
        coverage=_num_elements(tensors.values()) / _num_elements(wanted.values()),
    )
    return Fitted(tensors, report)


def positions_in_words(scheme: PositionScheme) -> str:
    """What of a scheme changes features though no tensor shows it."""
    if scheme.kind == "sincos":
        return f"sincos x {scheme.scale:g}"
    if scheme.kind == "learned":
        return LEARNED
    shortest, longest = scheme.periods
    return f"{scheme.kind} {shortest:g}-{longest:g}"


def _positions(theirs: str, ours: str) -> str:
    return ours if theirs == ours else f"{ours}, where the source has {theirs}"


def _fitted(name: str, target: Tensor, *, weights: Weights, vit: Vit3d) -> Tensor | None:
    """The tensor for ``name``, or None where the source has none that could be it."""
    value = weights.tensors.get(name)
    if value is None:
        return None
    if name == PATCH:
        return fitted_patch(value, in_chans=vit.in_chans, patch_size=vit.patch_size)
    if name == POSITIONS:
        d, h, w = target.shape[2:]
        return fitted_positions(value, grid=(d, h, w), flat=weights.flat)
    if name in _OPTIONAL and value.shape[:-1] != target.shape[:-1]:
        return None
    return value


def _check_heads(num_heads: int, vit: Vit3d) -> None:
    if num_heads != vit.num_heads:
        raise InflationError(
            f"its attention has {num_heads} heads, the backbone's {vit.num_heads}; shapes do not "
            f"show it and features would be others: set vit.num_heads={num_heads}"
        )


def _check_shape(name: str, value: Tensor, target: Tensor) -> None:
    if value.shape != target.shape:
        raise InflationError(
            f"its {name} is {tuple(value.shape)}, the backbone's {tuple(target.shape)}; set "
            f"vit.embed_dim, vit.num_heads, vit.mlp and vit.mlp_ratio as there"
        )


def _check_blocks(source: Collection[str], wanted: Collection[str]) -> None:
    """Blocks that both have must have the same parts."""
    theirs, ours = _parts_of_blocks(source), _parts_of_blocks(wanted)
    for number in sorted(theirs.keys() & ours.keys()):
        if odd := sorted(theirs[number] ^ ours[number]):
            without = "the backbone" if odd[0] in theirs[number] else "the source"
            advice = "; see vit.layer_scale" if odd[0].startswith("ls") else ""
            raise InflationError(f"{without} has no blocks.{number}.{odd[0]}{advice}")


def _parts_of_blocks(names: Iterable[str]) -> Mapping[int, set[str]]:
    found: dict[int, set[str]] = {}
    for name in names:
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            found.setdefault(int(match[1]), set()).add(match[2])
    return found


def _num_elements(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() for each in tensors)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
