"""Problems that train on the same rows share their features: distinct sets of rows, in chunks.

A grid of settings is one set of rows with many problems, cross-validation is many sets. Sets of
like size go into one chunk, so little is padded, and a chunk is small enough to stay in memory.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.probing.estimator import Floats, Rows

_ENTRIES_AT_ONCE = 4_000_000  # float64 of a chunk's features, coefficients or history: 32 MB
_HISTORY_ENTRIES = 24  # the minimiser keeps, for each coefficient


class Chunk(NamedTuple):
    """S sets of m rows, each with Q problems that train on it.

    Attributes:
        rows: Positions in the feature table, (S, m); a set of fewer rows repeats its first.
        weight: Of those rows, (S, m); 0 for what only fills up.
        problems: (S, Q); a set of fewer problems repeats its last.
    """

    rows: Rows
    weight: Floats
    problems: Rows

    @property
    def weights(self) -> Tensor:
        """Of the rows of each problem, (S * Q, 1, m)."""
        repeated = np.repeat(self.weight, self.problems.shape[1], axis=0)
        return torch.from_numpy(repeated[:, None])

    def of_problems(self, values: Floats) -> Tensor:
        """(B, ...) to (S * Q, ...)."""
        return torch.from_numpy(values[self.problems.ravel()])

    def of_rows(self, values: Floats) -> Tensor:
        """(B, N, ...) to (S * Q, m, ...); a view broadcast over B costs no more than (N, ...)."""
        taken = values[self.problems[:, :, None], self.rows[:, None, :]]
        return torch.from_numpy(taken.reshape(self.problems.size, *taken.shape[2:]))


def chunks(weight: Floats, *, num_features: int, num_outputs: int) -> Iterator[Chunk]:
    """Cut B problems into chunks of distinct row sets.

    Args:
        weight: Of each row in each problem, (B, N); 0 leaves a row out.
        num_features: P; it and the K outputs say how many sets fit into a chunk.
        num_outputs: K.
    """
    members = _problems_of_sets(weight)
    sizes = np.array([np.count_nonzero(weight[problems[0]]) for problems in members])
    taken: list[int] = []
    most_problems = 0
    for number in np.argsort(sizes, kind="stable"):
        most = max(most_problems, len(members[number]))
        entries = max(
            sizes[number] * num_features,
            most * num_outputs * num_features,
            most * num_outputs * _HISTORY_ENTRIES * min(sizes[number], num_features),
        )
        if taken and (len(taken) + 1) * entries > _ENTRIES_AT_ONCE:
            yield _chunk(weight, [members[each] for each in taken])
            taken, most = [], len(members[number])
        taken.append(int(number))
        most_problems = most
    if taken:
        yield _chunk(weight, [members[each] for each in taken])


def _problems_of_sets(weight: Floats) -> list[list[int]]:
    found: dict[bytes, list[int]] = {}
    for problem, row in enumerate(np.ascontiguousarray(weight)):
        found.setdefault(row.tobytes(), []).append(problem)
    return list(found.values())


def _chunk(weight: Floats, members: list[list[int]]) -> Chunk:
    inside = [np.flatnonzero(weight[problems[0]]) for problems in members]
    rows = _filled(inside, [max(each[:1], default=0) for each in inside])
    counted = np.arange(rows.shape[1]) < np.array([[len(each)] for each in inside])
    first = np.array([[problems[0]] for problems in members])
    problems = _filled([np.array(each) for each in members], [each[-1] for each in members])
    return Chunk(rows, np.where(counted, weight[first, rows], 0.0), problems)


def _filled(ragged: list[NDArray[np.int64]], fill: list[int]) -> Rows:
    """Rows of different length to one table, the rest of each filled with its own value."""
    longest = max(1, *(len(each) for each in ragged))
    table = np.repeat(np.array(fill, dtype=np.int64)[:, None], longest, axis=1)
    for line, each in zip(table, ragged, strict=True):
        line[: len(each)] = each
    return table
