"""How fast evaluation's probes are solved here, as ratios within this run.

    python -m evaluation.bench [--quick] [--out FILE.json]

Batched probes against a loop over scikit-learn, both converged to 1e-8 and with coefficients that
agree to 1e-4, or the bench fails. One core, one thread; contenders take turns. ``--quick`` only
shows in seconds that everything runs: its ratios mean nothing.
"""

import argparse
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Floats
from evaluation.probing.linear import CS
from evaluation.probing.logistic import fit_logistic
from recipes.command import errors_in_one_line
from shards.bench.__main__ import table, verdict
from shards.bench.timing import Line, machine, one_core, one_thread, spread, take_turns
from shards.files import write_json

CONVERGED = 1e-8
AGREE = 1e-4
AT_LEAST = 10.0

_MOST_ITERATIONS = 100_000


class BenchError(ValueError):
    """The contenders do not compute the same."""


class Sizes(NamedTuple):
    """How much is solved.

    Attributes:
        num_subjects: Of the training split.
        num_features: Of a backbone's pooled tokens.
        shots: Subjects per class in a draw.
        num_draws: Sets of rows.
        repeats: Of every measurement.
    """

    num_subjects: int
    num_features: int
    shots: int
    num_draws: int
    repeats: int


FULL = Sizes(num_subjects=140, num_features=384, shots=16, num_draws=100, repeats=5)
QUICK = Sizes(num_subjects=40, num_features=24, shots=4, num_draws=3, repeats=1)


class Problems(NamedTuple):
    """Logistic regressions over shared features: every draw at every C.

    Attributes:
        features: (n, P).
        label: (n,).
        rows: Of each draw, (draws, n).
        strengths: C.
    """

    features: Floats
    label: Floats
    rows: NDArray[np.bool_]
    strengths: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part")
    words = parser.parse_args()
    with errors_in_one_line():
        if words.out:
            words.out.parent.mkdir(parents=True, exist_ok=True)
        print(f"reads features that it draws at random, writes {words.out or 'nothing'}")
        lines = run(QUICK if words.quick else FULL, parts=[words.only] if words.only else [*PARTS])
        if words.out:
            write_json(words.out, as_json(lines, is_quick=words.quick))
            print(f"figures: {words.out}")
        print(verdict(lines))


def run(sizes: Sizes, *, parts: Sequence[str]) -> list[Line]:
    """Measure and print one part after the other."""
    one_thread()
    lines: list[Line] = []
    for name in parts:
        with one_core():
            found = PARTS[name](sizes)
        print("\n" + table(found), flush=True)
        lines += found
    return lines


def as_json(lines: Sequence[Line], *, is_quick: bool) -> dict[str, Any]:
    """Figures with what is needed to judge them."""
    facts = machine()
    facts["libraries"] = {name: version(name) for name in ("numpy", "torch", "scikit-learn")}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "quick": is_quick,
        "machine": facts,
        "lines": [
            {**asdict(line), "spread": line.spread._asdict(), "met": line.is_met} for line in lines
        ],
    }


def draw_lines(sizes: Sizes) -> list[Line]:
    """Few-shot draws at every C."""
    what = f"{sizes.num_draws} draws of {2 * sizes.shots} subjects"
    return _against_a_loop(what, lambda seed: draws_at_every_c(sizes, seed=seed), sizes)


def grid_lines(sizes: Sizes) -> list[Line]:
    """A grid of C on the training split: the one set of rows that every choice begins with."""
    everyone = sizes._replace(num_draws=1, shots=sizes.num_subjects // 2)
    what = f"{sizes.num_subjects} subjects"
    lines = _against_a_loop(what, lambda seed: draws_at_every_c(everyone, seed=seed), sizes)
    # Twelve problems are too few to be worth a requirement: it is about all draws at once.
    return [Line(one.part, one.contender, one.spread, one.unit, one.ratio) for one in lines]


PARTS: dict[str, Callable[[Sizes], list[Line]]] = {"draws": draw_lines, "grid": grid_lines}


def draws_at_every_c(sizes: Sizes, *, seed: int) -> Problems:
    """Features with a weak signal in a few of them, and draws of as many subjects of each class."""
    rng = np.random.default_rng(seed)
    label = np.arange(sizes.num_subjects, dtype=np.float64) % 2
    features = rng.normal(size=(sizes.num_subjects, sizes.num_features))
    features[:, :10] += 0.5 * label[:, None]
    features *= rng.uniform(0.1, 10.0, sizes.num_features)
    features += 3.0
    rows = np.zeros((sizes.num_draws, sizes.num_subjects), dtype=np.bool_)
    for mask in rows:
        for level in (0, 1):
            mask[rng.choice(np.flatnonzero(label == level), sizes.shots, replace=False)] = True
    return Problems(features, label, rows, CS)


def batched(problems: Problems) -> Floats:
    """Coefficients of raw features, (draws, C, P), all solved together."""
    count = len(problems.strengths)
    models = fit_logistic(
        problems.features,
        problems.label,
        np.repeat(problems.rows, count, axis=0),
        np.tile(problems.strengths, len(problems.rows)),
        tolerance=CONVERGED,
        max_iterations=_MOST_ITERATIONS,
    )
    return models.coefficient.reshape(len(problems.rows), count, -1)


def one_by_one(problems: Problems) -> Floats:
    """The same by scikit-learn, its checks of parameters switched off, one scaler a draw."""
    import sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    found = np.empty((len(problems.rows), len(problems.strengths), problems.features.shape[1]))
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for draw, rows in enumerate(problems.rows):
            scaler = StandardScaler().fit(problems.features[rows])
            inside, label = scaler.transform(problems.features[rows]), problems.label[rows]
            for number, strength in enumerate(problems.strengths):
                model = LogisticRegression(C=strength, tol=CONVERGED, max_iter=_MOST_ITERATIONS)
                found[draw, number] = model.fit(inside, label).coef_[0] / scaler.scale_
    return found


def require_agreement(problems: Problems) -> None:
    """Raise unless both give the same coefficients of standardised features."""
    ours, theirs = batched(problems), one_by_one(problems)
    scale = np.stack([problems.features[rows].std(axis=0) for rows in problems.rows])[:, None]
    apart = float(np.abs((ours - theirs) * scale).max())
    if not apart <= AGREE:
        raise BenchError(
            f"coefficients of the batched probes and of scikit-learn's are {apart:.1e} apart, "
            f"{AGREE:g} is allowed: a ratio of their times would mean nothing"
        )


def _against_a_loop(what: str, make: Callable[[int], Problems], sizes: Sizes) -> list[Line]:
    require_agreement(make(0))
    given = [make(seed) for seed in range(1, sizes.repeats + 1)]
    taken = take_turns({"batched": batched, "scikit-learn, one by one": one_by_one}, given)
    ours, theirs = taken.values()
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    part = f"logistic probes: {what} x {len(CS)} values of C, {sizes.num_features} features"
    return [
        Line(part, "batched", spread(ours), "s", spread(ratios).median, at_least=AT_LEAST),
        Line(part, "scikit-learn, one by one", spread(theirs), "s"),
    ]


if __name__ == "__main__":
    main()
