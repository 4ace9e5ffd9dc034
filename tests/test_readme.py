"""The README names every source file and every make target, so neither can be added in silence."""

import re
from pathlib import Path

import pytest


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
