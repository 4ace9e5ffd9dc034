"""The recipe of an evaluation: what is scored on what, how thoroughly, and what it may look at."""

import datetime
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import Field, NonNegativeInt, PositiveInt

from evaluation.backbones.lines import BackboneLine
from evaluation.leakage.gate import AllowedLeak
from evaluation.probing.draws import FewShotConfig
from recipes.load import Section


class Tier(NamedTuple):
    """How much is drawn."""

    num_draws: int
    num_bootstraps: int
    num_permutations: int
    spread: int


TIERS = {
    "quick": Tier(num_draws=100, num_bootstraps=500, num_permutations=5000, spread=20),
    "standard": Tier(num_draws=100, num_bootstraps=2000, num_permutations=10000, spread=50),
    "full": Tier(num_draws=1000, num_bootstraps=2000, num_permutations=20000, spread=200),
}


Protocol = Literal["linear", "knn", "prototypes", "attentive", "linear_clinical"]


class RandomInit(Section):
    """Untrained twins of every backbone's architecture, one per seed."""

    seeds: tuple[NonNegativeInt, ...] = (0, 1)


class EvaluationConfig(Section):
    """Of ``recipes/evaluation/NAME.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    date: datetime.date | None = Field(
        default=None, description="of the report where no backbone tells when it was finished"
    )
    data_root: Path
    out: Path = Path("stores")
    pseudonym_key: Path
    backbones: dict[str, BackboneLine] = Field(default_factory=dict)
    finetuned: dict[str, Path] = Field(
        default_factory=dict,
        description="name: folder of a fine-tuning, whose parts are rows of their tasks; one that "
        "began from scratch is the supervised ceiling",
    )
    random_init: RandomInit = RandomInit()
    tasks: tuple[Path, ...] = Field(min_length=1)
    tier: Literal["quick", "standard", "full"] = Field(
        default="standard", description="how many draws, bootstraps, permutations and refits"
    )
    protocols: tuple[Protocol, ...] = Field(
        default=get_args(Protocol),
        min_length=1,
        description="of backbones, where a task has one label a subject; floors have their own",
    )
    few_shot: FewShotConfig | None = FewShotConfig()
    num_bootstraps: PositiveInt | None = Field(default=None, description="null: of the tier")
    num_permutations: PositiveInt | None = Field(default=None, description="null: of the tier")
    spread: NonNegativeInt | None = Field(
        default=None, description="refits on resampled training sets; null: of the tier"
    )
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    test: Literal["closed", "open"] = "closed"
    ledger: Path = Path("evaluation/test_openings.jsonl")
    allow_leaks: tuple[AllowedLeak, ...] = ()

    @property
    def amounts(self) -> Tier:
        """What the tier says, where the recipe does not say otherwise."""
        tier = TIERS[self.tier]
        own = {name: getattr(self, name) for name in Tier._fields if hasattr(self, name)}
        return tier._replace(**{name: value for name, value in own.items() if value is not None})

    @property
    def drawn(self) -> FewShotConfig | None:
        """The few-shot section, with the tier's number of draws unless it has its own."""
        if self.few_shot is None or "num_draws" in self.few_shot.model_fields_set:
            return self.few_shot
        return self.few_shot.model_copy(update={"num_draws": TIERS[self.tier].num_draws})
