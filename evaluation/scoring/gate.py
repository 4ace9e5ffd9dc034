"""The leakage gate of a run: marks of all tasks before anything is scored, then the canaries."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.extraction.progress import progress
from evaluation.floors.shuffled import shuffled_check
from evaluation.leakage.checks import Check
from evaluation.leakage.finetuning import check_finetuning
from evaluation.leakage.fitting import check_fitting
from evaluation.leakage.gate import FAILED, as_stored, check_task, excused, require_clean, unused
from evaluation.probing.estimator import Candidate
from evaluation.scoring.config import EvaluationConfig
from evaluation.scoring.gather import marks_of
from evaluation.scoring.inputs import Inputs
from evaluation.storing.memo import Kept, remember
from evaluation.storing.store import write_json
from foundation.tasks.task import Task
from recipes.load import digest

GATE = "gate"


class Gate:
    """Asks every question, keeps the answers, and stops the run at a hard hit.

    Args:
        config: Its ``allow_leaks`` override checks by name.
        folder: Of the store; checks that failed are written there, apart from the store itself.
    """

    def __init__(self, config: EvaluationConfig, *, folder: Path) -> None:
        self._overrides = config.allow_leaks
        self._folder = folder
        self._seed = config.seed
        self._open_test = config.test == "open"
        self.checks: list[Check] = []
        self.used: set[str] = set()
        (folder / FAILED).unlink(missing_ok=True)

    def check_scans(self, inputs: Inputs, *, features: Path) -> None:
        """Subjects, copies, pretraining and fine-tuning, of every task."""
        found = []
        for task in inputs.tasks:
            marks = marks_of(task, folder=features)
            found += check_task(task, marks, inputs.entries_of(task))
            found += check_finetuning(task, inputs.lines.of(task))
        self._require(found)
        print(f"leakage {len(found)} checks of subjects and scans passed", flush=True)

    def check_models(
        self, task: Task, candidates: Mapping[str, Candidate], inputs: Inputs
    ) -> dict[str, Any] | None:
        """Canaries on what is fitted, and shuffled labels; answers are kept like scores are.

        Returns:
            The check with shuffled labels that came furthest from chance, of all backbones (of the
            raw voxels where there is none); None where the task trains on no labels.
        """
        found, shuffled = [], []
        trained = _shuffled_models(candidates, inputs.kinds)
        made_from = inputs.made_from(task)
        title = f"canaries of {task.card.name}"
        for model, candidate in progress(
            candidates.items(), title=title, unit="model", total=len(candidates)
        ):
            key = digest([made_from[model], self._seed, self._open_test, model in trained])
            self.used.add(key)
            kept = remember(
                self._folder / GATE,
                name=f"{task.card.name}_{model}",
                digest=key,
                make=partial(self._ask, task, model, candidate, is_shuffled=model in trained),
            )
            found += [Check(**each) for each in kept.content["checks"]]
            shuffled += kept.content["shuffled"]
        self._require(found)
        known = [each for each in shuffled if each["mean"] is not None]
        return max(known, key=_distance, default=shuffled[0] if shuffled else None)

    def finish(self) -> dict[str, Any]:
        """For ``leakage.json``; overrides that excused nothing are named."""
        for override in unused(self.checks, self._overrides):
            print(
                f"allow_leaks: {override.check!r} of {override.task} excused nothing; take it out",
                flush=True,
            )
        return as_stored(self.checks)

    def _ask(self, task: Task, model: str, candidate: Candidate, *, is_shuffled: bool) -> Kept:
        checks = check_fitting(task, {model: candidate})
        shuffled = []
        if is_shuffled:
            shuffled = [
                shuffled_check(
                    task,
                    candidate.scorers[0],
                    model=model,
                    open_test=self._open_test,
                    seed=self._seed,
                )
            ]
        return Kept({}, {"checks": [asdict(check) for check in checks], "shuffled": shuffled})

    def _require(self, found: list[Check]) -> None:
        known = excused(found, self._overrides)
        self.checks += known
        if any(check.status == "failed" for check in known):
            write_json(self._folder / FAILED, as_stored(self.checks))
        require_clean(known)


def _shuffled_models(candidates: Mapping[str, Candidate], kinds: Mapping[str, str]) -> set[str]:
    """Backbones; without one the raw voxels."""
    backbones = {name for name in candidates if kinds[name] == "backbone"}
    return backbones or candidates.keys() & {"voxels"}


def _distance(shuffled: Mapping[str, Any]) -> float:
    return abs(shuffled["mean"] - shuffled["chance"]) / max(shuffled["se"], 1e-12)
