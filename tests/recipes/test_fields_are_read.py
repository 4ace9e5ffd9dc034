"""A setting that is configured and never applied is the commonest defect of the field."""

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import pytest

from evaluation.scoring.config import EvaluationConfig
from foundation.finetuning.recipe import FinetuneConfig
from foundation.recipe import PretrainConfig
from foundation.tasks.card import TaskCard
from recipes.load import Section, load
from shards.build import BuildConfig
from shards.sources.cohort import CohortConfig

SCHEMAS: dict[str, type[Section]] = {
    "cohorts": CohortConfig,
    "evaluation": EvaluationConfig,
    "finetune": FinetuneConfig,
    "pretrain": PretrainConfig,
    "shards": BuildConfig,
    "tasks": TaskCard,
}
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections_in(field.annotation)
    for part in get_args(annotation):
        yield from sections_in(part)


@lru_cache
def attributes_read(project: Path) -> set[str]:
    """Every ``x.name`` that some module of the packages loads, and the keys of its tables."""
    found: set[str] = set()
    for package in ("recipes", "shards", "foundation", "evaluation"):
        for path in (project / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found.add(node.attr)
                elif isinstance(node, ast.Dict):  # METHODS is looked up by the section's name
                    found.update(str(k.value) for k in node.keys if isinstance(k, ast.Constant))
    return found


@pytest.mark.parametrize("kind", sorted(SCHEMAS))
def test_every_field_of_the_schema_is_read_by_code(kind: str, project: Path) -> None:
    read = attributes_read(project)
    unread = {
        f"{section.__name__}.{name}"
        for section in sections_in(SCHEMAS[kind])
        for name in section.model_fields
        if name not in read
    }
    assert not unread


@pytest.mark.parametrize(
    "path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_recipe_loads_and_refuses_a_misspelt_key(path: Path) -> None:
    schema = SCHEMAS[path.relative_to(RECIPES).parts[0]]
    load(path, schema)
    with pytest.raises(ValueError, match="unknown key 'namee', did you mean 'name'"):
        load(path, schema, ["namee=x"])
