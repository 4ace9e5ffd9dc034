"""The figures of a run as markdown, for the README and for the screen."""

from collections.abc import Iterable, Iterator, Sequence

from foundation.bench.results import (
    FlowFigures,
    Ratio,
    Requirement,
    Results,
    StepFigures,
)

_NOT_MEASURED = "not measured"
_RATIOS = {
    "packing": "separate student calls, against one packed call",
    "augmentation": "MONAI's transforms one by one, against one batch",
}


def markdown(results: Results) -> str:
    """Everything that was measured, and what was not."""
    parts = [_heading(results), _steps(results.steps), _flows(results.flows)]
    parts += [_ratios(results.ratios), _requirements(results.requirements)]
    if results.left_out:
        parts.append("Left out:\n\n" + "\n".join(f"- {each}" for each in results.left_out))
    return "\n\n".join(parts)


def verdict(requirements: Iterable[Requirement]) -> str:
    """One line: what is missed in this run, and whether all was measured."""
    requirements = tuple(requirements)
    missed = [each.name for each in requirements if each.met is False]
    unknown = [each.name for each in requirements if each.met is None]
    told = f"not met in this run: {'; '.join(missed)}" if missed else ""
    if unknown:
        asked = "all" if len(unknown) == len(requirements) else "; ".join(unknown)
        told += f"{'. ' * bool(told)}not measured, as they ask for a GPU: {asked}"
    return told or "every requirement is met in this run"


def _heading(results: Results) -> str:
    device, peak = results.device, results.peak
    libraries = ", ".join(f"{name} {version}" for name, version in device.libraries.items())
    where = device.name
    if device.memory_bytes is not None:
        where += f" ({device.memory_bytes / 2**30:.0f} GiB)"
    else:
        where += f", {device.threads} thread{'s' * (device.threads > 1)}"
    toy = " Toy sizes: the figures mean nothing." if results.quick else ""
    return (
        f"{results.date}, {where}, {peak.precision}, {libraries}, Python {device.python}. The "
        f"fastest product of two {peak.edge} x {peak.edge} matrices, to which utilisation refers: "
        f"{peak.flops_per_s / 1e12:.3g} TFLOP/s.{toy}"
    )


def _steps(steps: Sequence[StepFigures]) -> str:
    head = (
        "update, batch on the device",
        "crop",
        "patch",
        "batch",
        "blocks",
        "volumes/s",
        "tokens/s",
        "utilisation",
        "peak memory",
    )
    rows = [
        (
            f"{each.case.method} {each.case.size}",
            _edges(each.case.crop_shape),
            _edges(each.case.patch_size),
            str(each.case.micro_batch),
            "compiled" if each.compiled else "eager",
            _number(each.volumes_per_s),
            _number(each.tokens_per_s),
            f"{each.utilisation:.0%}",
            _NOT_MEASURED
            if each.peak_memory_bytes is None
            else f"{_number(each.peak_memory_bytes / 1e6)} MB",
        )
        for each in steps
    ]
    return _table(head, rows)


def _flows(flows: Sequence[FlowFigures]) -> str:
    head = (
        "from shards to update",
        "patch",
        "batch",
        "reading processes",
        "volumes/s",
        "share of the time without a batch",
    )
    rows = [
        (
            f"{each.case.method} {each.case.size}",
            _edges(each.case.patch_size),
            str(each.case.micro_batch),
            str(each.workers),
            _number(each.volumes_per_s),
            f"{each.wait_share:.1%}",
        )
        for each in flows
    ]
    return _table(head, rows)


def _ratios(ratios: Sequence[Ratio]) -> str:
    head = ("what", "setting", "ours", "the other", "times as long")
    rows = [
        (
            _RATIOS[each.what],
            each.setting,
            f"{_number(1000 * each.ours_s.median)} ms",
            f"{_number(1000 * each.theirs_s.median)} ms",
            f"{each.ratio:.2f}",
        )
        for each in ratios
    ]
    return _table(head, rows)


def _requirements(requirements: Sequence[Requirement]) -> str:
    words = {True: "met", False: "not met", None: _NOT_MEASURED}
    rows = [
        (
            each.name,
            each.required,
            "" if each.measured is None else f"{each.measured:.3g}",
            words[each.met],
        )
        for each in requirements
    ]
    return _table(("required on a GPU", "needed", "measured", ""), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield from (_row(head), _row(["---"] * len(head)))
        yield from map(_row, rows)

    return "\n".join(lines())


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _edges(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _number(value: float) -> str:
    """Three digits, and none of them as a power of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
