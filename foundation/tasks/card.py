"""A task card: which data, which label of which kind, how it is split, what a model must beat.

It is a YAML file in ``recipes/tasks/``; licence and source of the data are those of its cohort.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from foundation.metrics.by_name import METRICS_OF, PRIMARY, Kind
from recipes.load import Section

CLASSIFIED: tuple[Kind, ...] = ("binary", "multiclass", "ordinal", "retrieval")
"""Kinds whose label is one class of each subject."""

OF_ONE_SUBJECT: tuple[Kind, ...] = ("segmentation", "retrieval")
"""Kinds whose score of a subject needs no other subject's: a Dice, a query."""

Cell = str | int | float

_LABEL_KEYS: dict[Kind, tuple[set[str], set[str]]] = {
    "binary": ({"column"}, {"positive", "at_most_quantile"}),
    "multiclass": ({"column"}, {"classes"}),
    "multilabel": ({"columns"}, {"positive"}),
    "regression": ({"column"}, set()),
    "ordinal": ({"column", "levels"}, set()),
    "survival": ({"time_days", "event"}, {"positive"}),
    "segmentation": ({"classes"}, {"mask"}),
    "retrieval": ({"column"}, {"classes"}),
}
"""By kind, the keys a label needs and those it may have, beside ``definition``."""


class Label(Section):
    """What is predicted; the kind says which keys it takes. An empty cell is a missing label."""

    definition: str = Field(
        default="", description="what the label means and who decided it, in words"
    )
    column: str | None = None
    positive: Cell | None = Field(
        default=None, description="the value that counts as 1, where the column is not 0 and 1"
    )
    at_most_quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="1 where the column is at most this quantile of the training split",
    )
    classes: dict[str, str | int] | tuple[str | int, ...] | None = Field(
        default=None,
        description="the column's values in order, or name: value; without it, all values sorted."
        " Of a segmentation name: value in the mask",
    )
    levels: tuple[str | int, ...] = Field(default=(), description="values in order, lowest first")
    columns: tuple[str, ...] = Field(default=(), description="one 0/1 label each")
    time_days: str | None = Field(default=None, description="column: days to event or censoring")
    event: str | None = Field(default=None, description="column: 1 event, 0 censored")
    mask: str | None = Field(
        default=None, description="one of the cohort's masks; without it, its mask"
    )

    @field_validator("positive", "classes", "levels", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        """YAML reads an unquoted yes, no, on, off, true or false as a truth value."""
        inside = value.values() if isinstance(value, dict) else value
        for each in inside if isinstance(inside, Iterable) else [value]:
            if isinstance(each, bool):
                raise ValueError(
                    "quote yes, no, on, off, true and false: YAML takes them for bools"
                )
        return value

    @property
    def class_values(self) -> Mapping[str, str | int]:
        """Values of the classes or levels by name, in order; empty where the column tells them."""
        if isinstance(self.classes, dict):
            return self.classes
        return {str(value): value for value in self.classes or self.levels}

    @property
    def mask_values(self) -> Mapping[str, int]:
        """Of a segmentation: value in the mask of each class, in the order of its scores."""
        return {name: int(value) for name, value in self.class_values.items()}

    @property
    def read_columns(self) -> tuple[str, ...]:
        """Columns of the cohort that hold the label; empty for a segmentation."""
        single = (self.column, self.time_days, self.event)
        return (*(name for name in single if name is not None), *self.columns)


class RepeatedCv(Section):
    """Cross-validation by subject, stratified by class, repeated with new folds."""

    folds: int = Field(default=5, ge=2)
    repeats: PositiveInt = 20
    seed: int = 0


class Protocol(Section):
    """Either the split the data set came with or our cohort's own, or repeated cross-validation."""

    split: Literal["official", "cohort"] | None = None
    repeated_cv: RepeatedCv | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Protocol":
        if (self.split is None) == (self.repeated_cv is None):
            raise ValueError("give either split or repeated_cv")
        return self


class VoxelFloor(Section):
    """Raw voxels: each scan is brought to ``spacing_mm``, padded or cut about its centre to
    ``grid`` voxels, mean-pooled by ``pool`` and reduced to ``pca`` components."""

    spacing_mm: tuple[float, float, float] | None = None
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]
    pool: PositiveInt = 1
    pca: PositiveInt = 128

    @model_validator(mode="after")
    def _divides(self) -> "VoxelFloor":
        if any(edge % self.pool for edge in self.grid):
            raise ValueError(f"pool {self.pool} does not divide the grid {self.grid}")
        return self


class Floors(Section):
    """What a backbone must beat. The constant, the intensity histogram and random
    initialisations of each backbone always stand in the table.

    ``volume`` is one feature, ``radiomics`` are first-order and shape features of the same part,
    ``mask_intensity`` the mean and maximum inside the cohort's mask; beside clinical columns, all
    of them together are one more floor. ``voxels: auto`` chooses a grid by the scans."""

    volume: Literal["foreground", "mask"] | None = "foreground"
    radiomics: Literal["foreground", "mask"] | None = "foreground"
    clinical: tuple[str, ...] = ()
    mask_intensity: bool = False
    voxels: VoxelFloor | Literal["auto"] | None = "auto"

    @property
    def uses_mask(self) -> bool:
        """Whether any of them reads the cohort's mask."""
        return "mask" in (self.volume, self.radiomics) or self.mask_intensity


class TaskCard(Section):
    """Of ``recipes/tasks/NAME.yaml``; ``recipes/tasks/template.yaml`` explains every key."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_]*$")
    title: str
    disease: str
    cohort: str
    data_digest: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{12,64}$",
        description="of the cohort's recipe and table, or its beginning; another one is refused",
    )
    where: dict[str, list[Cell]] = Field(default_factory=dict)
    sequences: tuple[str, ...] = Field(
        default=(), description="of the cohort's, those that are used; without it, all of them"
    )
    kind: Kind
    label: Label
    unit: str = Field(default="subject", description="of independence: what one row of a score is")
    split_provenance: str = Field(default="", description="who drew the split, and how")
    spacing_mm: tuple[float, float, float] | None = None
    protocol: Protocol
    few_shot: bool = True
    primary_metric: str | None = Field(
        default=None, description="by which choices are made; without it, the kind's own"
    )
    floors: Floors = Floors()
    groups: tuple[str, ...] = ()
    near_duplicates: Literal["checked", "allowed"] = "checked"
    near_duplicates_reason: str = ""
    known_floors: str = ""
    known_leaks: str = ""

    @property
    def metric(self) -> str:
        """The primary metric, by which every choice is made."""
        return self.primary_metric or PRIMARY[self.kind]

    @model_validator(mode="after")
    def _label_fits_its_kind(self) -> "TaskCard":
        needs, may = _LABEL_KEYS[self.kind]
        given = {name for name in self.label.model_fields_set if getattr(self.label, name)} | (
            {"positive"} if self.label.positive is not None else set()
        )
        if missing := sorted(needs - given):
            raise ValueError(f"kind {self.kind}: the label needs {' and '.join(missing)}")
        if unfit := sorted(given - needs - may - {"definition"}):
            takes = ", ".join(sorted(needs | may))
            raise ValueError(
                f"kind {self.kind}: the label has no {' and no '.join(unfit)}; it takes {takes}"
            )
        return self

    @model_validator(mode="after")
    def _label_is_whole(self) -> "TaskCard":
        label = self.label
        if label.at_most_quantile is not None and (
            self.protocol.split is None or label.positive is not None
        ):
            raise ValueError(
                "label.at_most_quantile makes a binary task of a task with a split, without "
                "label.positive"
            )
        values = label.classes.values() if isinstance(label.classes, dict) else label.classes
        named = [str(value) for value in values or label.levels or label.columns]
        if len(set(named)) < len(named):
            raise ValueError("label names the same class, level or column twice")
        if self.kind in ("multiclass", "ordinal", "retrieval") and len(named) == 1:
            raise ValueError(f"kind {self.kind}: the label has at least two classes")
        if self.kind == "segmentation":
            _check_mask_values(label)
        return self

    @model_validator(mode="after")
    def _choices_fit(self) -> "TaskCard":
        known = METRICS_OF[self.kind]
        if self.primary_metric is not None and self.primary_metric not in known:
            raise ValueError(
                f"kind {self.kind} has no metric {self.primary_metric!r}; it has {', '.join(known)}"
            )
        if (self.near_duplicates == "allowed") != bool(self.near_duplicates_reason):
            raise ValueError("near_duplicates: allowed and near_duplicates_reason go together")
        if self.kind == "segmentation" and self.floors.uses_mask:
            raise ValueError("the mask is what a segmentation predicts, so no floor may read it")
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> "TaskCard":
        given = {"groups": self.groups, "sequences": self.sequences,
                 "floors.clinical": self.floors.clinical}  # fmt: skip
        for key, names in given.items():
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{key} names {twice!r} twice")
        for name in self.floors.clinical:
            if name in self.label.read_columns:
                raise ValueError(f"floors.clinical: {name!r} is the label, which no floor may read")
        return self


def _check_mask_values(label: Label) -> None:
    if not isinstance(label.classes, dict):
        raise ValueError("label.classes of a segmentation is a mapping, name: value in the mask")
    wrong = [value for value in label.classes.values() if not isinstance(value, int) or value < 1]
    if wrong:
        raise ValueError(
            f"label.classes: a value in the mask is a whole number from 1, got {wrong[0]!r}; 0 is "
            "the background"
        )
