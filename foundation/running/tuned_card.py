"""What the model card of a fine-tuned model tells beside that of its backbone.

Of the provenance it reads ``title`` and ``definition`` of the task, ``num_train``, ``num_val``,
``fraction``, ``begun`` and ``begun_digest``, ``tune``, ``best_step``, and ``validation``: how many
subjects (``n``), of which ``split`` (``cv``: of cross-validation), and of each metric under
``scores`` a number, or its ``value`` with ``low`` and ``high`` of the 95% interval.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.artefact.head import HeadSettings
from foundation.finetuning.calibration import Calibration
from foundation.finetuning.target import Target

Row = tuple[str, Any]
Rows = Sequence[Row]

OPENING = "A model for 3D medical scans: a pretrained or new backbone, trained for one task."
USE = """
    python -m foundation.predict THIS_FOLDER SCANS --out predictions.csv{masks}

Orientation, spacing, intensity windows and crop are in `preprocessing.json`, what the outputs mean
is in `head.json`; both are applied by the command. Checksums and stored outputs are verified on
loading; no file can run code. `foundation.embed` takes the folder too, as a backbone.
"""
INTENDED = """
For research on the task above, with scans like those it was trained on, and as the first weights of
another training. Whoever uses its outputs measures them first, on subjects of their own.
"""
LIMITS = """
Not a medical device, and no part of one: nothing here was validated for any single patient. No
claim is made for other modalities, body parts, scanners, populations or spacings, nor for another
definition of the label. {held_out}
What counts is a test on sites that training has not seen. Probabilities, sets and intervals hold
for the population they were fitted on, on average over it.
"""
_CHOSEN_ON = (
    "Validation subjects chose the step that was kept, so that their scores are better than those "
    "of new subjects."
)
_FOLDS = (
    "Its scores are those of the models of the folds, each on subjects that it had not seen; the "
    "model itself learnt from all of them."
)
_TAGS = {
    "segmentation": "image-segmentation",
    "binary": "image-classification",
    "multiclass": "image-classification",
    "multilabel": "image-classification",
    "ordinal": "image-classification",
}


def pipeline_tag(target: Target) -> str:
    """The hub's word for such a model."""
    return _TAGS.get(target.kind, "other")


def use_of(target: Target) -> str:
    """The command that applies it."""
    return USE.format(masks=" --masks masks/" if target.kind == "segmentation" else "")


def limits_of(provenance: Mapping[str, Any]) -> str:
    """What it is not for, and what its scores are worth."""
    text = LIMITS.format(held_out=_FOLDS if _is_cross_validated(provenance) else _CHOSEN_ON)
    return textwrap.fill(" ".join(text.split()), width=100)


def predicts(settings: HeadSettings, provenance: Mapping[str, Any]) -> Rows:
    """The task, and what a number of the output means."""
    target = settings.target
    rows: list[Row] = [
        ("task", f"{provenance.get('title') or target.task} (`{target.task}`)"),
        ("kind", target.kind),
        ("label", provenance.get("definition") or "not defined in its task card"),
    ]
    if target.classes or target.kind == "segmentation":
        rows.append(("classes", ", ".join(target.classes or target.outputs)))
    if target.mask_values:
        named = (f"{value} {name}" for name, value in target.mask_values.items())
        rows.append(("values in a mask", ", ".join(named)))
    if target.kind == "regression":
        rows.append(("unit", f"that of the column {target.outputs[0]}"))
    if target.ends_days:
        rows.append(("intervals", f"{len(target.ends_days)}, up to {target.ends_days[-1]:g} days"))
    return rows


def training(settings: HeadSettings, provenance: Mapping[str, Any]) -> Rows:
    """From what, on whom and how it was trained."""
    told = provenance.get("fraction")
    share = "" if told is None else f", {100 * float(told):g}% of the training subjects"
    digest = str(provenance.get("begun_digest") or "")[:16]
    begun = provenance.get("begun", "unknown")
    return [
        ("begun from", f"{begun} (digest `{digest}`)" if digest else begun),
        ("training subjects", f"{provenance.get('num_train', 'unknown')}{share}"),
        ("validation subjects", provenance.get("num_val", "unknown")),
        ("trained", _mode(provenance.get("tune"))),
        ("head", _head(settings)),
        ("step kept", provenance.get("best_step", "unknown")),
    ]


def validation(provenance: Mapping[str, Any]) -> tuple[str, Rows]:
    """A sentence, and a row for each metric; empty where nothing is recorded."""
    found = provenance.get("validation")
    if not isinstance(found, Mapping):
        return "", []
    scores = found.get("scores")
    scores = scores if isinstance(scores, Mapping) else {}
    rows = [(f"{name}", _score(value)) for name, value in scores.items()]
    told = f"{found.get('n', 'an unknown number of')} subjects"
    if _is_cross_validated(provenance):
        return f"{told}, each by the model of the fold that had not seen it.", rows
    return f"{told} of the split {found.get('split', '?')}, which chose the step as well.", rows


def calibration(found: Calibration | None) -> Rows:
    """What was fitted afterwards, and what was not and why."""
    if found is None:
        return [("calibration", "none")]
    if not any(each is not None for each in (*found.temperatures, *found.limits)):
        return [("calibration", f"none: {found.reason}" if found.reason else "none")]
    rows: list[Row] = [("fitted on", f"{found.num_subjects} subjects, {found.fitted_on}")]
    if any(each is not None for each in found.temperatures):
        rows.append(("temperature", _numbers(found.temperatures)))
    if any(each is not None for each in found.limits):
        rows.append((f"limit of {found.level:.0%} sets or intervals", _numbers(found.limits)))
    return [*rows, ("missing", found.reason)] if found.reason else rows


def _is_cross_validated(provenance: Mapping[str, Any]) -> bool:
    found = provenance.get("validation")
    return isinstance(found, Mapping) and found.get("split") == "cv"


def _mode(tune: Any) -> str:
    return {
        "full": "all of the backbone",
        "last_blocks": "the last blocks of the backbone",
        "lora": "low-rank adapters, merged into the backbone's weights",
        "head": "the head alone, on a frozen backbone",
    }.get(str(tune), "unknown")


def _head(settings: HeadSettings) -> str:
    section = settings.head or settings.decoder
    assert section is not None, "one of the two is there"
    told = section.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _score(found: Any) -> str:
    if not isinstance(found, Mapping):
        return _number(found)
    value, low, high = (found.get(name) for name in ("value", "low", "high"))
    if value is None:
        return f"none ({found.get('reason', 'not defined')})"
    return _number(value) + (f" [{_number(low)}, {_number(high)}]" if low is not None else "")


def _number(found: Any) -> str:
    return f"{found:.3f}" if isinstance(found, int | float) else str(found)


def _numbers(found: Sequence[float | None]) -> str:
    return ", ".join("none" if each is None else f"{each:.3g}" for each in found)
