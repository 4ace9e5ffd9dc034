"""Some subjects of a table of features, so that the others cannot be read."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Bags, Features, Fitted, Floats, Rows


def take(features: Features, rows: Rows) -> Features | None:
    """The features of these subjects in this order, or None for a class that cannot be cut."""
    if isinstance(features, np.ndarray):
        return features[rows]
    if isinstance(features, Fitted):
        return Fitted(features.values[rows], features.fit)
    if isinstance(features, Bags):
        lengths = np.diff(features.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        # Token t of the result is the (t - start)-th of its subject.
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return Bags(features.tokens[np.repeat(features.starts[rows], lengths) + within], starts)
    return features.take(rows) if hasattr(features, "take") else None


class Part(NamedTuple):
    """Subjects that may be read.

    Attributes:
        features: Of these subjects alone; of all where their class cannot be cut.
        label: Likewise.
        rows: Positions in the task of the rows of ``features``, ascending.
    """

    features: Features
    label: Floats
    rows: Rows

    @classmethod
    def of(cls, features: Features, label: Floats, rows: Rows) -> "Part":
        """The subjects at ``rows``."""
        cut = take(features, rows)
        if cut is None:
            return cls(features, label, np.arange(len(label)))
        return cls(cut, label[rows], rows)

    def positions(self, rows: Rows) -> Rows:
        """Where subjects of the task stand in this part."""
        return np.searchsorted(self.rows, rows)

    def masks(self, parts: list[Rows]) -> NDArray[np.bool_]:
        """Training masks over this part from positions in the task, (B, n)."""
        masks = np.zeros((len(parts), len(self.rows)), dtype=np.bool_)
        for mask, rows in zip(masks, parts, strict=True):
            mask[self.positions(rows)] = True
        return masks

    def fitted(self, train: Rows) -> Any:
        """Features that need no more fitting, fitted on ``train``, positions in the task."""
        if isinstance(self.features, Fitted):
            return self.features.features(self.positions(train))
        return self.features
