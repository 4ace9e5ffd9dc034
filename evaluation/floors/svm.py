"""A support vector machine with a radial kernel: what a linear probe on few components misses."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Estimator, Floats, Setting

CS = (0.1, 1.0, 10.0, 100.0)
GAMMAS = (0.1, 1.0)  # times 1 / (number of features x variance), scikit-learn's "scale"
KINDS = ("binary", "multiclass", "multilabel", "ordinal", "regression")

_EPSILON = 0.1  # of the tube, in standard deviations of the training values

_Learn = Callable[
    [Floats, Floats, Setting, Floats], Floats
]  # inside, label, setting, all -> (n, K)


def rbf_svm(kind: str, *, num_outputs: int) -> Estimator:
    """A machine for each class, label or threshold, or support vector regression.

    Its probabilities are sigmoids of margins: they rank, and are not calibrated.

    Args:
        kind: One of ``KINDS``.
        num_outputs: Columns of a score, as in ``Task.outputs``.
    """
    settings = tuple({"C": c, "gamma": gamma} for c in CS for gamma in GAMMAS)
    learn: dict[str, _Learn] = {
        "binary": _binary,
        "multiclass": lambda *fit: _multiclass(*fit, num_classes=num_outputs),
        "multilabel": _multilabel,
        "ordinal": lambda *fit: _ordinal(*fit, num_levels=num_outputs),
        "regression": _regression,
    }
    return Estimator("svm", settings, _each_problem(learn[kind]))


def _each_problem(
    learn: _Learn,
) -> Callable[[Floats, Floats, NDArray[np.bool_], Sequence[Setting]], Floats]:
    def predict(
        features: Floats, label: Floats, train: NDArray[np.bool_], settings: Sequence[Setting]
    ) -> Floats:
        import sklearn

        scores = []
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            for rows, setting in zip(train, settings, strict=True):
                inside = features[rows]
                # One scale for all: dividing each component by its own would lift the last ones'
                # noise.
                centre, spread = inside.mean(axis=0), max(float(inside.std()), 1e-12)
                everyone = (features - centre) / spread
                scores.append(learn(everyone[rows], label[rows], setting, everyone))
        return np.stack(scores)

    return predict


def _margin(
    inside: Floats, is_positive: NDArray[np.bool_], setting: Setting, all: Floats
) -> Floats:
    """Distance to the boundary, (n,); without both classes there is none, and the share is all
    that is known."""
    from sklearn.svm import SVC

    if is_positive.all() or not is_positive.any():
        return np.full(len(all), 50.0 if is_positive.any() else -50.0)
    machine = SVC(C=setting["C"], gamma=_gamma(inside, setting))
    margin: Floats = machine.fit(inside, is_positive).decision_function(all)
    return margin


def _binary(inside: Floats, label: Floats, setting: Setting, all: Floats) -> Floats:
    return _sigmoid(_margin(inside, label == 1, setting, all))[:, None]


def _multilabel(inside: Floats, label: Floats, setting: Setting, all: Floats) -> Floats:
    columns = []
    for each in label.T:
        known = np.isfinite(each)
        columns.append(_sigmoid(_margin(inside[known], each[known] == 1, setting, all)))
    return np.stack(columns, axis=1)


def _multiclass(
    inside: Floats, label: Floats, setting: Setting, all: Floats, *, num_classes: int
) -> Floats:
    """One against the rest, shares of the sigmoids."""
    margins = [_margin(inside, label == level, setting, all) for level in range(num_classes)]
    score = np.stack([_sigmoid(margin) for margin in margins], axis=1)
    shares: Floats = score / score.sum(axis=1, keepdims=True)
    return shares


def _ordinal(
    inside: Floats, label: Floats, setting: Setting, all: Floats, *, num_levels: int
) -> Floats:
    """A machine for each threshold (Frank and Hall 2001), made monotone."""
    above = [
        _sigmoid(_margin(inside, label > level, setting, all)) for level in range(num_levels - 1)
    ]
    ends = [np.ones(len(all)), *np.minimum.accumulate(above), np.zeros(len(all))]
    return -np.diff(np.stack(ends, axis=1), axis=1)


def _regression(inside: Floats, label: Floats, setting: Setting, all: Floats) -> Floats:
    from sklearn.svm import SVR

    mean, sd = label.mean(), max(float(label.std()), 1e-12)
    machine = SVR(C=setting["C"], gamma=_gamma(inside, setting), epsilon=_EPSILON)
    value: Floats = machine.fit(inside, (label - mean) / sd).predict(all)
    return (mean + sd * value)[:, None]


def _gamma(inside: Floats, setting: Setting) -> float:
    return float(setting["gamma"]) / max(1, inside.shape[1])


def _sigmoid(value: Floats) -> Floats:
    """Probability from log-odds, without overflow."""
    probability: Floats = 0.5 * (1.0 + np.tanh(0.5 * value))
    return probability
