"""The end of a fine-tuning's run: scores of who was not learnt from, then the model.

A fold leaves ``held_out.csv``. The run that makes the model leaves ``predictions.csv`` (validation
subjects, or everybody by the fold that did not see them), ``part.json`` and at last ``model/``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foundation.artefact.curve import loss_curve
from foundation.artefact.head import HeadSettings
from foundation.artefact.saving import save_model
from foundation.beginning.initial import kept_beginning, with_beginning
from foundation.finetuning.calibration import fit_calibration
from foundation.finetuning.lora import merge_lora
from foundation.finetuning.method import Finetune
from foundation.finetuning.parts import Part
from foundation.finetuning.predictions import (
    Predicted,
    out_of_fold,
    summary,
    write_predictions,
)
from foundation.finetuning.scoring import Scored, score_rows
from foundation.finetuning.start import SCRATCH
from foundation.finetuning.validation import BEST
from foundation.finetuning.work import HELD_OUT, MODEL, Finetuning, chosen_step
from foundation.log import read_log
from foundation.running.job import device_name
from foundation.running.provenance import finished_today, versions
from foundation.running.runs import LOG
from foundation.tasks.describe import describe_label
from recipes.load import digest
from shards.files import write_json
from shards.index import VOLUME

PREDICTIONS, PART = "predictions.csv", "part.json"


def score_held_out(work: Finetuning, method: Finetune, *, alive: Callable[[], None]) -> Scored:
    """Of a fold its held-out subjects, else the validation subjects; a collective call."""
    part, config = work.part, work.config
    return score_rows(
        method,
        part.task,
        part.val if part.fold is None else part.held_out,
        scans=work.scans,
        ranks=work.ranks,
        precision=config.deepspeed.precision,
        overlapping=config.decoder.overlap,
        alive=alive,
        with_surfaces=True,
    )


def publish_fold(work: Finetuning, scored: Scored) -> None:
    """Write ``held_out.csv``, and forget what only training needed."""
    part = work.part
    assert part.fold is not None
    folds = np.full(len(part.held_out), part.fold)
    found = Predicted(part.held_out, folds, scored.scores, scored.distances_mm, "cv")
    write_predictions(part.folder / HELD_OUT, part, found)
    forget_best(part.folder)


def publish_model(
    work: Finetuning, method: Finetune, *, scored: Scored, folds: Sequence[Part]
) -> None:
    """Write predictions, facts and the model; where that is, the run is finished.

    Args:
        work: The run that makes the model.
        method: With its best weights.
        scored: Its validation subjects.
        folds: Of cross-validation, finished; else empty.
    """
    part, task = work.part, work.part.task
    nobody = np.zeros(len(part.val), np.int64)
    predicted = Predicted(part.val, nobody, scored.scores, scored.distances_mm, "val")
    if folds:
        predicted = out_of_fold([(each, each.folder / HELD_OUT) for each in folds])
    label = task.label[predicted.rows]
    facts = facts_of(work, predicted, folds=folds)
    settings = HeadSettings(
        target=work.target,
        head=None if work.target.kind == "segmentation" else work.config.head,
        decoder=work.config.decoder if work.target.kind == "segmentation" else None,
        calibration=fit_calibration(
            label,
            predicted.scores,
            work.target,
            fitted_on="out of fold" if folds else "validation",
        ),
    )
    write_predictions(part.folder / PREDICTIONS, part, predicted)
    write_json(part.folder / PART, facts)
    save_model(
        part.folder / MODEL,
        vit=merge_lora(method.network.vit),
        vit_config=work.start.vit_config,
        preprocessing=method.preprocessing,
        head=method.network.head,
        settings=settings,
        recipe=work.config.model_dump(mode="json"),
        provenance=provenance_of(work, facts),
    )
    forget_best(part.folder)


def facts_of(work: Finetuning, predicted: Predicted, *, folds: Sequence[Part]) -> dict[str, Any]:
    """``part.json``: what evaluation must know of a run, JSON-like."""
    part, task = work.part, work.part.task
    names = task.subjects
    return {
        "task": task.card.name,
        "task_digest": task.digest,
        "kind": task.card.kind,
        "fraction": part.fraction,
        "num_train": len(part.train),
        "num_val": len(part.val),
        "begun": work.start.name,
        "begun_digest": work.start.digest,
        "tune": work.config.tune.mode,
        "subjects_trained": sorted(names[row] for row in part.train),
        "folds": [sorted(names[row] for row in (*each.train, *each.val)) for each in folds],
        "metric": task.card.metric,
        "best_step": chosen_step(work),
        "steps": work.config.train.steps,
        "validation": summary(part, predicted, seed=work.config.seed),
    }


def provenance_of(work: Finetuning, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How the model came to be: the facts, what it has seen, and what it began from."""
    part, ranks = work.part, work.ranks
    lines = read_log(part.folder / LOG)
    cohort = part.task.cohort.config
    trained = {part.task.subjects[row] for row in part.train}
    samples = [index for name in sorted(trained) for index in work.scans.samples[name]]
    scans = [work.scans.reader.samples[index] for index in samples]
    volumes = [each.sequences[work.scans.sequence] for each in scans]
    found = {
        "name": f"{work.config.name}_{part.name}",
        "method": "fine-tuning" if work.start.name != SCRATCH else "supervised from scratch",
        **{name: facts[name] for name in facts if name not in ("subjects_trained", "folds")},
        "title": part.task.card.title,
        "definition": describe_label(part.task),
        "steps": max((int(line["step"]) for line in lines), default=0),
        "hours": max((line.get("wall_s", 0.0) for line in lines), default=0.0) / 3600,
        "world_size": ranks.world_size,
        "device": device_name(ranks.device),
        "finished": finished_today(),
        "recipe_digest": digest(work.config),
        "versions": versions(),
        "shards": {
            "name": cohort.name,
            "digest": work.scans.reader.dataset["digest"],
            "num_samples": len(samples),
            "num_subjects": len(trained),
            "sources": [
                {
                    "name": cohort.name,
                    "num_samples": len(samples),
                    "licence": cohort.licence,
                    "source": cohort.source,
                }
            ],
            "sequence": None if work.scans.sequence == VOLUME else work.scans.sequence,
            "modalities": _counted([each.modality for each in volumes]),
            "spacing_mm": _spacings([each.spacing_mm for each in scans]),
        },
        "subjects": sorted(trained),
        "source_digests": sorted({each.source_digest for each in volumes}),
        "perceptual_hashes": sorted({each.perceptual_hash for each in volumes} - {""}),
        "loss_curve": loss_curve(lines),
    }
    begun = kept_beginning(part.folder)
    # By the recipe's word for it: where it lay on this machine is nobody else's matter.
    return with_beginning(found, {**begun, "name": work.start.name}) if begun else found


def forget_best(run: Path) -> None:
    """The best weights are in the model now, or their scores are written."""
    for path in (run / BEST).glob("*"):
        path.unlink()
    if (run / BEST).is_dir():
        (run / BEST).rmdir()


def read_facts(part: Path) -> dict[str, Any]:
    """What ``part.json`` holds."""
    facts: dict[str, Any] = json.loads((part / PART).read_text(encoding="utf-8"))
    return facts


def _counted(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _spacings(spacings: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    found = np.array(spacings)
    return {"low": found.min(axis=0).tolist(), "high": found.max(axis=0).tolist()}
