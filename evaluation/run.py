"""Score frozen backbones, fine-tuned networks and floors, and store predictions and statistics.

    python -m evaluation.run recipes/evaluation/demo.yaml
    python -m evaluation.run recipes/evaluation/real.yaml test=open
    python -m foundation.launch 4 evaluation.run recipes/evaluation/real.yaml

Choices are made on validation; fine-tuned networks are applied as they are. The test split is read
only with ``test=open``, and each opening of a recipe is one line in the ledger. Features, scores
and statistics are each made again only when what they are made of changes; a killed run goes on
where it stopped. With several processes, features are extracted together and the first one goes on
to score them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.lines import run_of, source_of
from evaluation.extraction.pictures import cohort_slices, reconstructions
from evaluation.extraction.sharing import Share, decide, join_share, leave_to_first
from evaluation.finetuned.scores import score_trained
from evaluation.scoring.candidates import candidates
from evaluation.scoring.config import EvaluationConfig
from evaluation.scoring.gate import GATE, Gate
from evaluation.scoring.gather import FEATURES, Gathered, fill_features
from evaluation.scoring.inputs import Inputs, load_inputs
from evaluation.scoring.model import How
from evaluation.scoring.record import announce, record, run_content
from evaluation.scoring.statistics import store_task
from evaluation.scoring.task import SCORED, TaskScores, score_task
from evaluation.statistics.summary import Settings
from evaluation.storing import store
from evaluation.storing.draft import drafted, publish
from evaluation.storing.memo import forget_others
from foundation.log import read_log
from foundation.running.ranks import run_on_ranks
from foundation.tasks.task import Task


def main(config: EvaluationConfig) -> None:
    """Extract, check for leakage, score, compute statistics, store."""
    folder = config.out / config.name
    share = join_share(device=config.device)
    inputs = _load(config, share)
    if decide(share, lambda: _is_up_to_date(folder, inputs.inputs_digest)):
        leave_to_first(share)
        print(f"up to date: {folder}", flush=True)
        return
    is_open = config.test == "open"
    fill_features(inputs, open_test=is_open, folder=folder / FEATURES, share=share)
    leave_to_first(share)
    gate = Gate(config, folder=folder)
    gate.check_scans(inputs, features=folder / FEATURES)
    notes = [announce(config, recipe_digest=inputs.recipe_digest)] if is_open else []
    with drafted(folder) as draft:
        features = Gathered(inputs.entries, folder=folder / FEATURES)
        scored = [_score(config, task, inputs, gate, features, draft) for task in inputs.tasks]
        statistics = {each.scores.task: each.statistics for each in scored}
        store.write_leakage(draft, gate.finish())
        _store_pictures(config, draft, inputs)
        if is_open:
            record(config, recipe_digest=inputs.recipe_digest, statistics=statistics)
        store.write_run(draft, _run_content(config, inputs, scored, notes))
    for part, used in ((SCORED, [each.scores.used for each in scored]), (GATE, [gate.used])):
        forget_others(folder / part, used=set().union(*used))
    print(f"\n{summarise(statistics)}\nstored in {folder}", flush=True)


class Scored(NamedTuple):
    """One task: predictions and what they say."""

    scores: TaskScores
    statistics: dict[str, Any]


def _load(config: EvaluationConfig, share: Share) -> Inputs:
    """Rank 0 first, so that what is wrong with a recipe is told once."""
    loaded: list[Inputs] = []

    def load() -> None:
        loaded.append(load_inputs(config, device=share.device))

    def announce_and_load() -> None:
        print(f"reads   {len(config.tasks)} tasks under {config.data_root}", flush=True)
        for name, line in config.backbones.items():
            print(f"reads   backbone {name}: {source_of(line)}", flush=True)
        for name, where in config.finetuned.items():
            print(f"reads   fine-tuned {name}: {where}", flush=True)
        folder = config.out / config.name
        print(f"writes  {folder}", flush=True)
        load()
        publish(folder)

    decide(share, announce_and_load)
    if not share.is_first:
        load()
    return loaded[0]


def _is_up_to_date(folder: Path, inputs_digest: str) -> bool:
    if not store.is_complete(folder):
        return False
    return bool(store.read_run(folder)["inputs_digest"] == inputs_digest)


def _score(
    config: EvaluationConfig,
    task: Task,
    inputs: Inputs,
    gate: Gate,
    features: Gathered,
    draft: Path,
) -> Scored:
    folder = config.out / config.name
    models = candidates(
        task,
        inputs.entries,
        features.of(task),
        protocols=config.protocols,
        folder=folder / FEATURES,
    )
    shuffled = gate.check_models(task, models, inputs)
    how = _how(config, task)
    scores = score_task(task, models, how=how, made_from=inputs.made_from(task), folder=folder)
    trained = score_trained(
        task,
        inputs.lines.of(task),
        open_test=how.open_test,
        folder=folder / FEATURES,
        device=inputs.device,
    )
    scores = scores.beside(trained)
    statistics = store_task(
        task,
        scores,
        kinds=inputs.kinds,
        settings=_settings(config, task),
        shuffled=shuffled,
        code=inputs.statistics_code,
        folder=folder,
        draft=draft,
    )
    return Scored(scores, statistics)


def _how(config: EvaluationConfig, task: Task) -> How:
    return How(
        open_test=config.test == "open",
        spread=config.amounts.spread,
        few_shot=config.drawn if task.card.few_shot else None,
        seed=config.seed,
    )


def _settings(config: EvaluationConfig, task: Task) -> Settings:
    cv = task.card.protocol.repeated_cv
    amounts = config.amounts
    return Settings(
        num_bootstraps=amounts.num_bootstraps,
        seed=config.seed,
        num_permutations=amounts.num_permutations,
        cv_folds=cv.folds if cv else None,
    )


def _run_content(
    config: EvaluationConfig, inputs: Inputs, scored: Sequence[Scored], notes: Sequence[str]
) -> dict[str, Any]:
    return run_content(
        config,
        tasks=inputs.tasks,
        entries=inputs.entries,
        digests={"recipe_digest": inputs.recipe_digest, "inputs_digest": inputs.inputs_digest},
        selections=[one for each in scored for one in each.scores.selections],
        skipped=[
            *(one for each in scored for one in each.scores.skipped),
            *(one for task in inputs.tasks for one in inputs.lines.skipped(task)),
        ],
        notes=notes,
    )


def _store_pictures(config: EvaluationConfig, draft: Path, inputs: Inputs) -> None:
    """Slices of the cohorts, and what the runs of our own backbones have drawn."""
    slices: dict[str, NDArray[np.float32]] = {}
    for task in inputs.tasks:
        slices |= cohort_slices(task)
    store.write_pictures(draft, "cohort", slices)
    for name, line in config.backbones.items():
        run = run_of(line)
        if run is None:
            continue
        if (run / "log.jsonl").is_file():
            store.write_curve(draft, name, _curve(run, inputs.entries[name].provenance))
        if pictures := reconstructions(run):
            store.write_pictures(draft, f"{name}_reconstructions", pictures)


def _curve(run: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
    lines = [line for line in read_log(run / "log.jsonl") if isinstance(line.get("loss"), float)]
    return {
        "steps": [line["step"] for line in lines],
        "loss": [line["loss"] for line in lines],
        "method": provenance.get("method"),
        "wall_s": lines[-1].get("wall_s") if lines else None,
    }


def summarise(statistics: Mapping[str, Mapping[str, Any]]) -> str:
    """A line per task: the score of each model by its main protocol, for the console."""
    lines = []
    for task, each in statistics.items():
        shown: dict[str, str] = {}
        for row in each["models"]:
            value = row["scores"][each["metric"]]["value"]
            text = "none" if value is None else f"{value:.3f}"
            shown.setdefault(row["model"], f"{row['model']} {text}")
        lines.append(f"{task} ({each['metric']}, {each['split']}): {', '.join(shown.values())}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_on_ranks(main, EvaluationConfig, doc=__doc__)
