"""All statistics of one task, from its stored predictions: what ``statistics/TASK.json`` holds.

Nothing is read or written here, and no model is loaded. The same predictions and settings give the
same numbers.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import ArrayLike

from evaluation.statistics.drawing import SharedDraws
from evaluation.statistics.few_shot import MAIN_PROTOCOL, few_shot_curves
from evaluation.statistics.fractions import Training, ceilings, fraction_curves
from evaluation.statistics.kinds import BACKBONE, FINE_TUNED, FLOOR, place_of
from evaluation.statistics.one_model import Facts, model_entry
from evaluation.statistics.pairs import Pairs
from evaluation.statistics.reliability import Shown
from evaluation.statistics.shown import Key, all_shown
from foundation.metrics.by_name import METRICS, METRICS_OF
from foundation.metrics.rows import StatisticsError

if TYPE_CHECKING:
    import pandas

FUSED = "linear_clinical"
"""The linear probe on a backbone's features beside the cohort's clinical columns."""
_CLINICAL: Key = ("clinical", "linear")


class Settings(NamedTuple):
    """How much is drawn.

    Attributes:
        num_bootstraps: Draws of subjects.
        seed: Of draws, flips and folds.
        num_permutations: Random flips of a comparison.
        cv_folds: Folds of one repeat of the task's cross-validation, or None.
    """

    num_bootstraps: int = 2000
    seed: int = 0
    num_permutations: int = 2000
    cv_folds: int | None = None


def summarise_task(
    predictions: "pandas.DataFrame",
    *,
    task: Mapping[str, Any],
    kinds: Mapping[str, str],
    split: str,
    settings: Settings,
    groups: Mapping[str, Mapping[str, Any]] | None = None,
    few_shot: "pandas.DataFrame | None" = None,
    few_shot_missing: Sequence[Mapping[str, Any]] = (),
    training_spread: Mapping[Key, ArrayLike] | None = None,
    folds: Mapping[Key, ArrayLike] | None = None,
    shuffled: Mapping[str, Any] | None = None,
    fractions: "pandas.DataFrame | None" = None,
    trainings: Sequence[Training] = (),
) -> dict[str, Any]:
    """Everything that is said of a task, as JSON: see the store's description.

    Args:
        predictions: ``PREDICTION_COLUMNS``, all splits that are stored.
        task: Name, kind, metric (the primary one), outputs, and prevalence: the training share of
            positives, or of each class, which is where balanced accuracy cuts.
        kinds: "backbone", "trained" or "floor" of each model, in the order of the table.
        split: The shown one.
        settings: Of draws.
        groups: By column: the value of each subject.
        few_shot: Score of every few-shot draw.
        few_shot_missing: Sizes that could not be drawn: x, unit, reason.
        training_spread: Primary metric over resampled training sets.
        folds: Primary metric of each outer fold.
        shuffled: The check with shuffled labels, passed on as it is.
        fractions: ``FRACTION_COLUMNS`` of what was trained on shares of the training subjects.
        trainings: Of each of these networks what it was trained on.
    """
    kind, metric = task["kind"], task["metric"]
    facts = Facts(
        kind,
        shown_metrics(kind, metric),
        tuple(task["outputs"]),
        task.get("prevalence"),
        groups or {},
        settings.cv_folds,
    )
    shown = all_shown(predictions, split, kind, seed=settings.seed)
    draws = SharedDraws(num=settings.num_bootstraps, seed=settings.seed)
    models = []
    for key in _in_order(shown, kinds):
        entry = model_entry(
            shown[key],
            facts,
            draws=draws,
            training_scores=(training_spread or {}).get(key),
            fold_scores=(folds or {}).get(key),
        )
        models.append({"model": key[0], "kind": kinds[key[0]], "protocol": key[1], **entry})
    return {
        "task": task["name"],
        "kind": kind,
        "metric": metric,
        "metrics": list(facts.metrics),
        "split": split,
        "n": max((each["n"] for each in models), default=0),
        "positives": models[0]["positives"] if models else None,
        "outputs": list(facts.outputs),
        "num_bootstraps": settings.num_bootstraps,
        "num_permutations": settings.num_permutations,
        "seed": settings.seed,
        "models": models,
        "comparisons": _comparisons(shown, models, facts, draws, settings, ceilings(trainings)),
        "few_shot": _few_shot(few_shot, few_shot_missing, kinds, metric),
        "fractions": None
        if fractions is None
        else fraction_curves(
            fractions,
            trainings,
            facts,
            split=split,
            draws=draws,
            num_permutations=settings.num_permutations,
            seed=settings.seed,
        ),
        "shuffled": dict(shuffled) if shuffled is not None else None,
    }


def shown_metrics(kind: str, metric: str) -> tuple[str, ...]:
    """The metrics of a kind of task, its primary one first.

    Raises:
        StatisticsError: The metric does not score tasks of this kind.
    """
    if metric not in METRICS or kind not in METRICS[metric].kinds:
        fitting = ", ".join(name for name, each in METRICS.items() if kind in each.kinds)
        raise StatisticsError(f"{metric!r} does not score a task of kind {kind!r}; take {fitting}")
    return (metric, *(each for each in METRICS_OF[kind] if each != metric))


def _in_order(shown: Mapping[Key, Shown], kinds: Mapping[str, str]) -> list[Key]:
    """By kind, models in the order of ``kinds``, the main protocol first."""
    places = {model: place for place, model in enumerate(kinds)}
    return sorted(
        shown,
        key=lambda key: (
            place_of(kinds[key[0]]),
            places[key[0]],
            key[1] != MAIN_PROTOCOL,
            key[1],
        ),
    )


def _comparisons(
    shown: Mapping[Key, Shown],
    models: Sequence[Mapping[str, Any]],
    facts: Facts,
    draws: SharedDraws,
    settings: Settings,
    tops: Sequence[str],
) -> list[dict[str, Any]]:
    """Each pair of backbones, each against the best floor and every supervised ceiling (``tops``),
    and each together with the clinical columns against these alone, by the primary metric."""
    metric = facts.metrics[0]
    values = {(each["model"], each["protocol"]): each["scores"][metric]["value"] for each in models}
    mains = [(kind, key) for kind, key in _contenders(models) if values[key] is not None]
    backbones = [key for kind, key in mains if kind == BACKBONE]
    floors = [key for kind, key in mains if kind == FLOOR]
    pairs = list(combinations(backbones, 2))
    if floors:
        sign = -1.0 if METRICS[metric].lower_is_better else 1.0
        best = max(floors, key=lambda key: sign * values[key])
        pairs += [(key, best) for key in backbones]
    known = [(top, FINE_TUNED) for top in tops if values.get((top, FINE_TUNED)) is not None]
    pairs += [(key, top) for key in backbones for top in known]
    together = [(model, FUSED) for model, _ in backbones]
    if values.get(_CLINICAL) is not None:
        pairs += [(key, _CLINICAL) for key in together if values.get(key) is not None]
    compared = {key: shown[key] for key in {key for pair in pairs for key in pair}}
    made = Pairs(
        compared,
        facts,
        draws=draws,
        num_permutations=settings.num_permutations,
        seed=settings.seed,
    )
    return [
        {"a": a[0], "b": b[0], "protocol": a[1], "b_protocol": b[1], "metric": metric}
        | made.compare(a, b)
        for a, b in pairs
    ]


def _contenders(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, Key]]:
    """Kind and (model, protocol) of what is compared: each model by its first protocol in the
    table, linear if it is, and a floor also by each protocol that no backbone has (RBF-SVM)."""
    of_backbones = {each["protocol"] for each in models if each["kind"] == BACKBONE}
    found: dict[str, list[tuple[str, Key]]] = {}
    for each in models:
        mine = found.setdefault(each["model"], [])
        is_own = each["kind"] == FLOOR and each["protocol"] not in of_backbones
        if not mine or is_own:
            mine.append((each["kind"], (each["model"], each["protocol"])))
    return [one for mine in found.values() for one in mine]


def _few_shot(
    scores: "pandas.DataFrame | None",
    missing: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str],
    metric: str,
) -> dict[str, Any] | None:
    if scores is None or not len(scores):
        return None
    if "protocol" not in scores:
        scores = scores.assign(protocol=MAIN_PROTOCOL)
    lower = METRICS[metric].lower_is_better
    return few_shot_curves(scores, kinds=kinds, missing=missing, lower_is_better=lower)
