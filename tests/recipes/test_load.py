from pathlib import Path
from typing import Literal

import pytest
from pydantic import field_validator

from recipes.load import RecipeError, Section, digest, load, to_yaml


class Optimiser(Section):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


class Source(Section):
    folder: Path
    splits: tuple[str, ...] = ()


class Recipe(Section):
    name: str
    steps: int = 10
    precision: Literal["fp32", "bf16"] = "fp32"
    optimiser: Optimiser = Optimiser()
    warmup: Optimiser | None = None
    sources: tuple[Source, ...] = ()

    @field_validator("steps")
    @classmethod
    def _positive(cls, steps: int) -> int:
        if steps < 1:
            raise ValueError("at least one step is needed")
        return steps


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_values_defaults_and_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\noptimiser: {lr: 1e-4}\nsources: [{folder: x}]\n")
    words = ["steps=20", "optimiser.betas=[0.8, 0.9]", "sources.0.splits=[train]", "warmup.lr=2e-3"]
    recipe = load(path, Recipe, words)
    assert recipe.steps == 20
    assert recipe.optimiser == Optimiser(lr=1e-4, betas=(0.8, 0.9))
    assert recipe.sources[0].splits == ("train",)
    assert recipe.warmup == Optimiser(lr=2e-3)


@pytest.mark.parametrize("text", ["1e-4", "1.e-4", "1E-4", "+1e-4", "0.0001"])
def test_scientific_notation_is_a_number(tmp_path: Path, text: str) -> None:
    recipe = load(write(tmp_path, f"name: a\noptimiser: {{lr: {text}}}\n"), Recipe)
    assert recipe.optimiser.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("name: a\nstep: 3\n", [], "unknown key 'step', did you mean 'steps'?"),
        ("name: a\noptimiser: {lrr: 3}\n", [], "'optimiser.lrr', did you mean 'lr'?"),
        ("name: a\nwarmup: {lrr: 3}\n", [], "'warmup.lrr', did you mean 'lr'?"),
        ("name: a\nsources: [{foldr: x}]\n", [], "'sources.0.foldr', did you mean 'folder'?"),
        ("name: a\n", ["optimiser.beta=1"], "'optimiser.beta', did you mean 'betas'?"),
        ("steps: 3\n", [], "name is missing"),
        ("name: a\nsteps: many\n", [], "steps: input should be a valid integer"),
        ("name: a\nsteps: 0\n", [], "steps: at least one step is needed"),
        ("name: a\nprecision: fp16\n", [], "precision: input should be 'fp32' or 'bf16', got"),
        ("name: a\noptimiser: {lr: .nan}\n", [], "optimiser.lr: input should be a finite number"),
        ("name: a\nname: b\n", [], "the key 'name' stands twice"),
        ("name: a\noptimiser:\n  lr: 1\n  lr: 2\n", [], "the key 'lr' stands twice"),
        ("- name\n", [], "a recipe is a mapping of sections, got list"),
        ("name: [a\n", [], "not valid YAML"),
        ("name: a\n", ["steps"], "write section.field=value"),
        ("name: a\n", ["name.first=b"], "'name' holds a value, not a section"),
        (
            "name: a\nsources: [{folder: x}]\n",
            ["sources.1.folder=y"],
            "'1' is not one of the items",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, text), Recipe, words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_mistake_is_in_the_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"name is missing.*'stps'"):
        load(write(tmp_path, "stps: 3\n"), Recipe)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, "name: a\n")
    with pytest.raises(RecipeError, match=r"no such recipe, did you mean .*recipe\.yaml"):
        load(tmp_path / "recpe.yaml", Recipe)


def test_a_config_cannot_change(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "name: a\n"), Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 5  # type: ignore[misc]


def test_the_resolved_recipe_reads_back_and_has_one_digest(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "name: a\nwarmup: {lr: 1e-5}\nsources: [{folder: x}]\n"), Recipe)
    again = load(write(tmp_path, to_yaml(recipe)), Recipe)
    assert again == recipe
    assert digest(again) == digest(recipe)
    assert digest(recipe) != digest(load(write(tmp_path, to_yaml(recipe)), Recipe, ["steps=11"]))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
