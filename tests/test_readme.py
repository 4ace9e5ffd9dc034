"""The README names every source file and every make target, so neither can be added in silence."""

import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from evaluation.scoring.config import EvaluationConfig
from evaluation.statistics import coverage
from foundation.bench.__main__ import RECORDED
from foundation.bench.results import load_results
from foundation.bench.table import markdown
from foundation.recipe import PretrainConfig
from foundation.watching.alarms import HEALTHY
from recipes.load import parse
from shards.build import BuildConfig
from shards.streaming.reading import FolderConfig, StreamConfig


@pytest.fixture
def readme(project: Path) -> str:
    return (project / "README.md").read_text()


def test_every_source_file_has_its_line(project: Path, readme: str) -> None:
    packages = ("recipes", "shards", "foundation", "evaluation")
    files = {
        str(path.relative_to(project))
        for package in packages
        for path in (project / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert set(re.findall(r"^\| `([\w/]+\.py)` \|", readme, flags=re.MULTILINE)) == files


def test_every_make_target_is_told(project: Path, readme: str) -> None:
    targets = re.findall(r"^([a-z]+):.*## ", (project / "Makefile").read_text(), flags=re.MULTILINE)
    assert targets
    assert not [name for name in targets if name != "help" and f"make {name}" not in readme]


def test_every_dependency_is_told(project: Path, readme: str) -> None:
    text = (project / "pyproject.toml").read_text()
    named = re.findall(r'^    "([\w-]+)[\[>]', text.split("dev = [")[0], flags=re.MULTILINE)
    assert named
    assert not [name for name in named if name != "dask" and name not in readme]


def test_the_recipes_that_are_told_load(readme: str) -> None:
    """Of the sections on shards; a field that was renamed must be renamed here too."""
    build, train = re.findall(
        r"```yaml\n(.*?)```",
        readme[readme.index("## Build shards") : readme.index("## Write a recipe")],
        flags=re.DOTALL,
    )
    assert (
        parse(yaml.safe_load(build), BuildConfig, where="README").sources[1].subject == r"sub-\d+"
    )
    mixture = yaml.safe_load(train)
    assert len([parse(one, FolderConfig, where="README") for one in mixture["shards"]]) == 2
    assert parse(mixture["reading"], StreamConfig, where="README").crops_per_scan == 4


def test_the_pretraining_recipes_that_are_told_load(readme: str) -> None:
    """The second shows the sections that take the place of the first one's."""
    mae, dino = re.findall(
        r"```yaml\n(.*?)```",
        readme[readme.index("## Write a recipe") : readme.index("## Train for weeks")],
        flags=re.DOTALL,
    )
    first = yaml.safe_load(mae)
    assert parse(first, PretrainConfig, where="README").vit.position == "rope_mm"
    del first["mae"]
    second = parse({**first, **yaml.safe_load(dino)}, PretrainConfig, where="README")
    assert second.method_name == "dino"


def test_the_evaluation_recipe_that_is_told_loads(readme: str) -> None:
    """A line of every origin stands in it."""
    (told,) = re.findall(
        r"```yaml\n(.*?)```",
        readme[readme.index("## Score a backbone") : readme.index("## Bring your own cohort")],
        flags=re.DOTALL,
    )
    config = parse(yaml.safe_load(told), EvaluationConfig, where="README")
    origins = {type(line).__name__ for line in config.backbones.values()}
    assert origins == {"ArtefactLine", "RunLine", "TimmLine", "MonaiLine", "FunctionLine"}


def test_the_coverage_of_intervals_is_the_stored_one(readme: str) -> None:
    cells = {
        (cell.n, cell.method, cell.value, cell.prevalence): cell.coverage
        for cell in coverage.read()
        if cell.metric == "auroc"
    }
    for n, method in product((50, 100, 200), ("logit DeLong", "percentile bootstrap")):
        columns = [
            " / ".join(f"{100 * cells[n, method, value, share]:.1f}" for share in (0.2, 0.5))
            for value in (0.7, 0.8, 0.9)
        ]
        assert f"| {n} | {method} | {' | '.join(columns)} |" in readme


def test_the_speed_of_the_methods_is_the_recorded_one(readme: str) -> None:
    assert markdown(load_results(RECORDED)) in readme


def test_the_healthy_ranges_are_those_of_the_alarms(readme: str) -> None:
    told = re.findall(r"^\| `(\w+)` \| .* \| (\S+) to (\S+) \|$", readme, flags=re.MULTILINE)
    ranges = {name: (float(low), float(high)) for name, low, high in told}
    assert ranges == {name: (each.low, each.high) for name, each in HEALTHY.items()}
