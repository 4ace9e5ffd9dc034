import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''"""Add one."""
from recipes.command import run_recipe
from recipes.load import Section


class Recipe(Section):
    number: int
    fail: str = "no"


def main(config: Recipe) -> None:
    if config.fail == "user":
        raise ValueError("the number\\nis wrong")
    assert config.fail == "no"
    print(config.number + 1)


run_recipe(main, Recipe, doc=__doc__)
'''


def run(folder: Path, project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "recipe.yaml").write_text("number: 1\n")
    return subprocess.run(
        [sys.executable, "program.py", *words],
        cwd=folder,
        env={"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["recipe.yaml"], 0, "2\n", ""),
        (["recipe.yaml", "number=4"], 0, "5\n", ""),
        (["recipe.yaml", "--print"], 0, "number: 1\nfail: 'no'\n", ""),
        (["recipe.yaml", "fail=user"], 2, "", "error: the number is wrong\n"),
        (["qqq.yml"], 2, "", "error: qqq.yml: no such recipe\n"),
        (["recipe.yaml", "nmber=4"], 2, "", "error: recipe.yaml: unknown key 'nmber', did you"),
    ],
)
def test_one_clear_line(
    tmp_path: Path, project: Path, words: list[str], code: int, out: str, err: str
) -> None:
    done = run(tmp_path, project, *words)
    assert (done.returncode, done.stdout) == (code, out)
    assert done.stderr.startswith(err)
    assert "Traceback" not in done.stderr


def test_help_says_what_the_command_does(tmp_path: Path, project: Path) -> None:
    done = run(tmp_path, project, "--help")
    assert done.returncode == 0
    assert "Add one." in done.stdout


def test_our_own_faults_keep_their_traceback(tmp_path: Path, project: Path) -> None:
    assert "AssertionError" in run(tmp_path, project, "recipe.yaml", "fail=ours").stderr
