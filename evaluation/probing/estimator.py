"""What every protocol is made of: features, fitted features, bags of tokens, and an estimator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Setting = Mapping[str, float | int | str]


@dataclass(frozen=True)
class Fitted:
    """Features that are fitted before they are used, on training rows and on nothing else.

    Attributes:
        values: Rows of n subjects: an array, or a table of objects, that is indexed by rows.
        fit: Given the training rows of ``values``, returns what turns any rows of ``values`` into
            (rows, P) features. It sees neither labels nor other rows.
    """

    values: NDArray[Any]
    fit: Callable[[NDArray[Any]], Callable[[NDArray[Any]], Floats]]

    def features(self, train: Rows) -> Floats:
        """(n, P) features of every subject, fitted on ``train``."""
        return self.fit(self.values[train])(self.values)


@dataclass(frozen=True)
class Bags:
    """A varying number of tokens of each subject, for what pools them itself.

    Attributes:
        tokens: (T, E) float32, those of the first subject first.
        starts: (n + 1,): the tokens of subject i are ``tokens[starts[i]:starts[i + 1]]``.
    """

    tokens: NDArray[np.float32]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, subject: int) -> NDArray[np.float32]:
        return self.tokens[self.starts[subject] : self.starts[subject + 1]]


Features = Floats | Fitted | Bags | Any
"""(n, P) of all subjects, or one of the classes above; an estimator says which it takes. Dense
features of a segmentation are a class of their own (``evaluation/probing/dense.py``)."""


class Estimator(NamedTuple):
    """A way to learn from features.

    Attributes:
        name: The protocol's name in the store.
        settings: To choose from, the most cautious first: it wins a tie.
        predict: ``(features, label, train (B, n) bool, settings (B))`` -> scores (B, n, K). K is 1
            for binary, regression and survival (a risk), the number of classes for multiclass and
            ordinal (probabilities), of labels for multilabel. Only rows outside ``train`` are read.
            A row of ``train`` may be False for a label that is missing: see ``Task.label``.
    """

    name: str
    settings: tuple[Setting, ...]
    predict: Callable[[Any, Floats, NDArray[np.bool_], Sequence[Setting]], Floats]


class Scorer(NamedTuple):
    """A protocol of one model on one task: features by name, of which one is chosen."""

    features: Mapping[str, Features]
    estimator: Estimator


class Candidate(NamedTuple):
    """One model on one task.

    Attributes:
        scorers: The protocols, in the order of the table.
        few_shot: Features of the few-shot probe, or None.
    """

    scorers: tuple[Scorer, ...]
    few_shot: Features | None
