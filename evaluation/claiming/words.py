"""What the claims say: tables for people, JSON for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.claiming.methods import SEEDS_NEEDED, Duel, Verdict
from evaluation.claiming.pretraining import Finding
from evaluation.claiming.scored import Scored, share_subjects
from foundation.metrics.by_name import METRICS


def markdown(
    findings: Mapping[str, Finding],
    stores: Sequence[Scored],
    duels: Sequence[Duel] = (),
    verdicts: Sequence[Verdict] = (),
) -> str:
    """One line for each method and one below for each task; then each pair of methods."""
    lines = [_heading(stores), "", *_against_random(findings)]
    if duels:
        lines += ["", *_against_each_other(duels, verdicts)]
    return "\n".join(lines)


def as_json(
    findings: Mapping[str, Finding],
    stores: Sequence[Scored],
    duels: Sequence[Duel] = (),
    verdicts: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """Everything that :func:`markdown` says, unrounded."""
    return {
        "date": max((each.date for each in stores if each.date), default=None),
        "split": stores[0].split,
        "stores": [each.where for each in stores],
        "protocol": next(iter(stores[0].tasks.values())).protocol,
        "methods": {
            method: {**each._asdict(), "interval": list(each.interval)}
            for method, each in findings.items()
        },
        "pairs": [_pair_json(duel, verdict) for duel, verdict in zip(duels, verdicts, strict=True)],
    }


def _heading(stores: Sequence[Scored]) -> str:
    split = {"val": "validation", "test": "test", "cv": "cross-validation"}[stores[0].split]
    metric = METRICS[next(iter(stores[0].tasks.values())).metric].title
    num, tasks = len(stores), len(stores[0].tasks)
    about, over = f"{num} cohort{'s' * (num > 1)}", "cohorts, pretraining seeds and subjects"
    if share_subjects(stores):
        about, over = f"{num} stores of one cohort", "pretraining seeds and subjects"
    what = f"Mean {metric} of {tasks} tasks" if tasks > 1 else f"{metric} of 1 task"
    return (
        f"{what} on {split}, {about}; 95% bootstrap intervals over {over}, widened for how few of "
        "them there are."
    )


def _against_random(findings: Mapping[str, Finding]) -> list[str]:
    lines = [
        "| method | pretrained | random initialisation | difference | n |",
        "|---|---|---|---|---|",
    ]
    for method, each in findings.items():
        low, high = each.interval
        lines.append(
            f"| {method} | {each.pretrained:.3f} | {each.random:.3f} | {each.difference:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] | {each.num_runs} runs, {each.num_subjects} subjects |"
        )
    if any(each.num_runs < SEEDS_NEEDED for each in findings.values()):
        lines += ["", "With fewer than three pretraining seeds: of these files, not of the method."]
    lines += ["", f"| difference | {' | '.join(findings)} |", f"|---|{'---|' * len(findings)}"]
    for part in ("by_store", "by_task"):
        for name in getattr(next(iter(findings.values())), part):
            cells = [f"{getattr(each, part)[name]:+.3f}" for each in findings.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _against_each_other(duels: Sequence[Duel], verdicts: Sequence[Verdict]) -> list[str]:
    lines = [
        "Methods against each other; intervals made alike.",
        "",
        "| methods | first | second | difference | seeds | Holm p | claim |",
        "|---|---|---|---|---|---|---|",
    ]
    for duel, verdict in zip(duels, verdicts, strict=True):
        low, high = duel.estimate.interval
        p = "" if verdict.p_holm is None else _p(verdict.p_holm)
        said = verdict.claim or f"no claim: {verdict.reason}"
        lines.append(
            f"| {duel.a} - {duel.b} | {duel.pretrained[0]:.3f} | {duel.pretrained[1]:.3f} "
            f"| {duel.estimate.difference:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"| {duel.num_seeds[0]} and {duel.num_seeds[1]} | {p} | {said} |"
        )
    return lines


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _pair_json(duel: Duel, verdict: Verdict) -> dict[str, Any]:
    freedom = duel.estimate.freedom
    return {
        "a": duel.a,
        "b": duel.b,
        "metric": duel.metric,
        "difference": duel.estimate.difference,
        "interval": list(duel.estimate.interval),
        "p": duel.estimate.p,
        "degrees_of_freedom": freedom if freedom != float("inf") else None,
        "num_seeds": list(duel.num_seeds),
        "pretrained": list(duel.pretrained),
        "by_store": duel.by_store,
        "by_task": duel.by_task,
        **verdict._asdict(),
    }
