"""Everything an evaluation reads, loaded and named by digests."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from evaluation.backbones.entries import load_embedders
from evaluation.backbones.entry import Entry
from evaluation.extraction.features import content_of
from evaluation.finetuned.lines import Lines, load_lines
from evaluation.floors.registry import floor_entries
from evaluation.scoring.config import EvaluationConfig
from evaluation.storing.store import sha256_of
from foundation.tasks.task import Task, load_task
from recipes.load import digest
from shards.pseudonym import load_key

ROOT = Path(__file__).parent.parent.parent
# Whose change leaves every prediction as it was.
_NEVER_SCORED_BY = ("reporting", "claiming", "statistics", "storing", "bench", "finetuned")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
_CHOSEN_BY = ("storing/rows.py",)
# What hands predictions to the statistics.
_SUMMARISED_BY = (
    "statistics/",
    "finetuned/",
    "storing/rows.py",
    "scoring/statistics.py",
    "scoring/record.py",
)
# Labels are what is predicted, metrics what settings are chosen by and what is reported.
_TASKS, _METRICS = "foundation/tasks", "foundation/metrics"


class Inputs(NamedTuple):
    """What a run reads.

    Attributes:
        tasks: In the order of the recipe.
        entries: Every row of the tables: backbones, untrained networks, fine-tunings, floors.
        recipe_digest: Of settings and backbones, which is what a test split is opened for.
        inputs_digest: Of everything, so that a run that would give the same is not repeated.
        task_digests: Of each task with its scans and its pseudonyms.
        scoring_code: Of the files that make predictions, and of the libraries they use.
        statistics_code: Of the files that make statistics, likewise.
        protocols: Of backbones, in the recipe.
        lines: The fine-tunings, with their parts by task.
        device: Where networks run.
    """

    tasks: list[Task]
    entries: dict[str, Entry]
    recipe_digest: str
    inputs_digest: str
    task_digests: dict[str, str]
    scoring_code: str
    statistics_code: str
    protocols: tuple[str, ...]
    lines: Lines
    device: str

    @property
    def kinds(self) -> dict[str, str]:
        """``backbone``, ``trained`` or ``floor`` of each row, in the order of the tables."""
        return {name: entry.kind for name, entry in self.entries.items()}

    def made_from(self, task: Task) -> dict[str, str]:
        """By model, what its scores on a task depend on."""
        made_of = [self.task_digests[task.card.name], self.scoring_code, *self.protocols]
        return {name: digest([*made_of, entry.digest]) for name, entry in self.entries.items()}

    def entries_of(self, task: Task) -> dict[str, Entry]:
        """The rows of a task's tables, without the fine-tunings that have no part of it."""
        own = self.lines.entries_of(task)
        others = self.lines.entries.keys() - own.keys()
        entries = {name: own.get(name, entry) for name, entry in self.entries.items()}
        return {name: entry for name, entry in entries.items() if name not in others}


def load_inputs(config: EvaluationConfig, *, device: str) -> Inputs:
    """Read tasks and backbones.

    Raises:
        ValueError: Anything that a recipe, a table or a backbone has wrong.
    """
    tasks = _load_tasks(config)
    seeds = config.random_init.seeds
    entries = load_embedders(config.backbones, random_seeds=seeds, device=device)
    floors = floor_entries(tasks)
    if taken := next((name for name in entries if name in floors), None):
        raise ValueError(f"backbones.{taken}: this is the name of a floor; choose another")
    lines = load_lines(config.finetuned, tasks, backbones=entries)
    if taken := next((name for name in lines.entries if name in entries | floors), None):
        raise ValueError(
            f"finetuned.{taken}: this is the name of a backbone or a floor; choose another"
        )
    entries |= lines.entries | floors
    scoring, statistics = map(_digest_of, code_files())
    recipe_digest = digest(
        {
            "tasks": [task.digest for task in tasks],
            "models": {name: entry.digest for name, entry in entries.items()},
            "protocols": list(config.protocols),
            "few_shot": config.drawn.model_dump(mode="json") if config.drawn else None,
            "seed": config.seed,
        }
    )
    task_digests = {
        # Pseudonyms are of a key: with another one, nothing that names a subject is the same.
        task.card.name: digest([task.digest, content_of(task.candidates), list(task.subjects)])
        for task in tasks
    }
    inputs_digest = digest(
        {
            "recipe": recipe_digest,
            "config": config.model_dump(mode="json", exclude={"out", "device"}),
            "tasks": task_digests,
            "seen": {name: entry.seen for name, entry in entries.items()},
            "code": [scoring, statistics],
        }
    )
    return Inputs(
        tasks,
        entries,
        recipe_digest,
        inputs_digest,
        task_digests,
        scoring,
        statistics,
        config.protocols,
        lines,
        device,
    )


def _load_tasks(config: EvaluationConfig) -> list[Task]:
    if (config.backbones or config.finetuned) and not config.pseudonym_key.is_file():
        raise ValueError(
            f"{config.pseudonym_key}: no such key; overlap with pretraining is proved by the key "
            "the shards were made with, name that one as pseudonym_key"
        )
    key = load_key(config.pseudonym_key)
    tasks = [load_task(path, data_root=config.data_root, key=key) for path in config.tasks]
    names = [task.card.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"tasks: two cards are named {twice!r}; a name stands once")
    return tasks


def code_files() -> tuple[list[Path], list[Path]]:
    """What makes predictions, and what makes statistics of them."""
    own = ROOT / "evaluation"
    files = {path.relative_to(own).as_posix(): path for path in sorted(own.rglob("*.py"))}
    packages = {name: path for name, path in files.items() if "/" in name}
    tasks, metrics = (sorted((ROOT / each).glob("*.py")) for each in (_TASKS, _METRICS))
    scoring = [
        path
        for name, path in packages.items()
        if not name.startswith(_NEVER_SCORED_BY) or name in _CHOSEN_BY
    ]
    statistics = [path for name, path in packages.items() if name.startswith(_SUMMARISED_BY)]
    coverage = own / "statistics" / "coverage.json"
    return [*scoring, *tasks, *metrics], [*statistics, *metrics, coverage]


def _digest_of(files: Iterable[Path]) -> str:
    libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
    return digest([*map(sha256_of, files), *libraries])


def entries_with_network(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Backbones and untrained networks."""
    return {name: entry for name, entry in entries.items() if entry.embedder is not None}
