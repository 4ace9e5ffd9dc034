"""Weights to begin a pretraining from: a 2D network of timm, or one of our own backbones.

init: {weights: timm:vit_small_patch14_dinov2.lvd142m}
init: {weights: model.safetensors, architecture: vit_base_patch16_224.mae, licence: cc-by-nc-4.0}
init: {weights: runs/first/backbone, min_coverage: 0.8}
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator

from foundation.beginning.fitting import Fitted, fit
from foundation.beginning.inflate import InflationError
from foundation.beginning.sources import TIMM, Source, read_backbone, read_file, read_timm
from foundation.vit import Vit3d, VitConfig, build_vit
from recipes.load import Section
from shards.files import write_json

INITIAL = "init.json"
_FILE = ".safetensors"
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".npz")
_SEEN = ("subjects", "source_digests", "perceptual_hashes")


class InitialError(ValueError):
    """Weights that a run cannot begin from."""


class InitialConfig(Section):
    """What the backbone's weights are before the first step."""

    weights: str = Field(
        description="timm:NAME, a .safetensors file of a ViT of timm, or a folder backbone/"
    )
    architecture: str | None = Field(
        default=None,
        description="timm's name of the network in a file: its heads and the normalisation of its "
        "pictures are not in the file",
    )
    licence: str | None = Field(
        default=None, description="of the weights in a file; elsewhere it is known"
    )
    min_coverage: float = Field(
        default=0.9, gt=0, le=1, description="least share of the backbone's parameters to take over"
    )

    @property
    def is_file(self) -> bool:
        """A file alone does not say what it is."""
        return self.weights.endswith(_FILE)

    @model_validator(mode="after")
    def _check(self) -> "InitialConfig":
        if self.weights.endswith(_PICKLES):
            raise ValueError(
                f"{self.weights}: files of this kind can run code when they are opened; convert it "
                f"to .safetensors with the tools of whoever published it"
            )
        for name in ("architecture", "licence"):
            stated = getattr(self, name) is not None
            if self.is_file and not stated:
                raise ValueError(
                    f"{self.weights} is a file, which does not tell its {name}: add it"
                )
            if stated and not self.is_file:
                raise ValueError(
                    f"{name} is for a .safetensors file; {self.weights} states its own"
                )
        return self


class Beginning(NamedTuple):
    """Where a run's weights come from, and how they were taken over."""

    source: Source
    fitted: Fitted

    @property
    def whole(self) -> dict[str, Any]:
        """JSON-like: the source, its licence and past, and the report."""
        source = self.source._asdict()
        del source["weights"]
        return {**source, "report": self.fitted.report.as_json()}

    @property
    def summary(self) -> dict[str, Any]:
        """The same without its long lists; of a backbone's past its shards and licence stay."""
        return _without_lists(self.whole)


def read_source(config: InitialConfig) -> Source:
    """The weights that the recipe names."""
    if config.weights.startswith(TIMM):
        return read_timm(config.weights)
    if config.is_file:
        assert config.architecture is not None
        assert config.licence is not None
        return read_file(
            Path(config.weights), architecture=config.architecture, licence=config.licence
        )
    return read_backbone(Path(config.weights))


def find_beginning(config: InitialConfig, *, vit_config: VitConfig) -> Beginning:
    """Read the source and see what of it the backbone can take over; nothing heavy is built.

    Raises:
        ValueError: The source cannot be read, does not fit, or covers less than ``min_coverage``.
    """
    with torch.device("meta"):
        vit = build_vit(vit_config)
    source = read_source(config)
    try:
        fitted = fit(source.weights, vit)
    except InflationError as error:
        raise InitialError(f"init.weights {source.name}: {error}") from None
    report = fitted.report
    if report.coverage < config.min_coverage:
        raise InitialError(
            f"init.weights {source.name}: gives {'; '.join(report.lines())}; at least "
            f"{config.min_coverage:.1%} is asked (init.min_coverage)"
        )
    return Beginning(source, fitted)


def begin_from(vit: Vit3d, config: InitialConfig, *, vit_config: VitConfig, digest: str) -> None:
    """Give the backbone its first weights, on every rank; torch's generators stay as they are.

    Raises:
        InitialError: This rank finds other weights under the name than rank 0 did.
    """
    beginning = find_beginning(config, vit_config=vit_config)
    if beginning.source.digest != digest:
        raise InitialError(
            f"init.weights {beginning.source.name}: its content is not the same on every rank"
        )
    vit.load_state_dict({**vit.state_dict(), **beginning.fitted.tensors})


def keep_beginning(folder: Path, beginning: Beginning) -> None:
    """Write a run's ``init.json``, and say what it holds."""
    write_json(folder / INITIAL, beginning.whole)
    source = beginning.source
    head, *more = beginning.fitted.report.lines()
    print(f"begins  {source.name} ({source.licence}): {head}", flush=True)
    for line in more:
        print(f"        {line}", flush=True)


def kept_beginning(folder: Path) -> dict[str, Any] | None:
    """What :func:`keep_beginning` wrote, or None where a run's weights were drawn."""
    path = folder / INITIAL
    if not path.is_file():
        return None
    begun: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return begun


def with_beginning(provenance: Mapping[str, Any], begun: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a provenance what its weights began from.

    What an earlier backbone had seen, this one has seen: its subjects and scans join the others.
    A list that the earlier one does not have is unknown, and left out.

    Args:
        provenance: JSON-like.
        begun: The content of ``init.json``.
    """
    past = begun["past"]
    unknown = {name for name in _SEEN if past and name not in past}
    kept = {name: value for name, value in provenance.items() if name not in unknown}
    seen = {name: sorted({*kept[name], *past.get(name, ())}) for name in _SEEN if name in kept}
    return {**kept, **seen, "initialised_from": _without_lists(begun)}


def _without_lists(begun: Mapping[str, Any]) -> dict[str, Any]:
    past = {name: value for name, value in begun["past"].items() if name not in _SEEN}
    report = {**begun["report"], "loaded": len(begun["report"]["loaded"])}
    return {**begun, "past": past, "report": report}
