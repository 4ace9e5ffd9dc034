"""Segmentation's features: patch tokens on grids beside the masks they are to tell.

An estimator of a segmentation takes ``MaskedScans`` (a floor that looks at voxels) or
:class:`DenseFeatures` (a probe on a frozen backbone's tokens).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.backbones.embedder import Dense
from evaluation.extraction.dense import load_dense
from evaluation.probing.estimator import Rows
from foundation.tasks.masks import MaskedScans
from foundation.tasks.task import Task


@dataclass(frozen=True)
class DenseFeatures:
    """Patch tokens of a backbone beside the masks they are to tell.

    Attributes:
        masked: Whose masks.
        load: Tokens of a subject's scan, ``load(subject, scan)``; called when they are needed, so
            one scan's tokens are in memory at a time.
    """

    masked: MaskedScans
    load: Callable[[int, int], Dense]

    @classmethod
    def of(cls, task: Task, files: Sequence[Sequence[Path]]) -> "DenseFeatures":
        """Those of a segmentation task from what ``dense_features`` wrote of its scans."""
        return cls(MaskedScans.of(task), lambda subject, scan: load_dense(files[subject][scan]))

    def __len__(self) -> int:
        return len(self.masked)

    def take(self, rows: Rows) -> "DenseFeatures":
        """Those of some subjects, so that the others cannot be read."""
        return DenseFeatures(
            self.masked.take(rows), lambda subject, scan: self.load(int(rows[subject]), scan)
        )
