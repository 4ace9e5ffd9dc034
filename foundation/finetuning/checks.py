"""What must hold before a fine-tuning begins, and only a task or a key can tell."""

from pathlib import Path

import numpy as np

from foundation.finetuning.parts import Part
from foundation.finetuning.recipe import FinetuneConfig
from foundation.metrics.quality import measures
from foundation.tasks.labels import TaskError


def check_key(config: FinetuneConfig) -> None:
    """A backbone of this place was made from shards, by whose key alone its subjects are known.

    Raises:
        TaskError: That key is not there.
    """
    is_own = config.backbone is not None and Path(config.backbone).exists()
    if is_own and not config.pseudonym_key.is_file():
        raise TaskError(
            f"{config.pseudonym_key}: no such key; that nobody who was pretrained on is scored is "
            "proved by the key the shards were made with, name that one as pseudonym_key"
        )


def check_monitor(config: FinetuneConfig, part: Part) -> None:
    """Whoever decides can be scored by the metric that decides: any numbers give a value of it.

    Raises:
        TaskError: None do, as of one class.
    """
    card = part.task.card
    if config.validation.monitor == "loss" or card.kind == "segmentation":
        return
    label = part.task.label[part.val]
    scores = np.random.default_rng(0).random((1, len(label), len(part.task.outputs)))
    if card.kind in ("multiclass", "ordinal"):
        scores /= scores.sum(axis=2, keepdims=True)
    if not np.isfinite(measures(label, scores, card.metric)[0]):
        raise TaskError(
            f"{part.title}: its {len(label)} validation subjects define no {card.metric}, as "
            "of one class, and it decides which weights stay; set validation.monitor=loss, or give "
            "the split other subjects"
        )
