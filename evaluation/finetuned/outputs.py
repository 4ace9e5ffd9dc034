"""What a fine-tuned network says of each scan, one cached file a scan, like features.

Of a segmentation the file holds the predicted classes and no Dice, so that no mask of a held-out
subject is read before its scores are asked for.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.extraction.cache import CacheFile
from evaluation.extraction.features import content_of, made_by, naming, read_row, require_finite
from evaluation.extraction.progress import progress
from evaluation.extraction.sharing import Share, shared
from evaluation.finetuned.parts import FinetunedError, Part
from evaluation.storing.store import sha256_of
from foundation.artefact.layout import SUMS
from foundation.tasks.masks import Classes, MaskedScans, MaskError, dice, overlap
from foundation.tasks.task import Task
from recipes.load import digest
from shards.scan import Scan
from shards.sources.cohort import CohortRow

Floats = NDArray[np.float64]

_VERSION = 1  # of the files below: raising it makes their caches stale
_ROOT = Path(__file__).parents[2]
_CODE = ("foundation/model.py", "foundation/finetuning/*.py", "foundation/predicting/*.py")


class Network(Protocol):
    """Of ``foundation.model.Model``, what is used here."""

    @property
    def target(self) -> Any:
        """Kind and outputs of what it was trained for."""

    def score_scan(self, scan: Scan) -> NDArray[Any]:
        """(K,), as the metrics of its kind take them."""

    def classes_of(self, scan: Scan) -> NDArray[Any]:
        """(D, H, W) on the scan's own grid: 0 is background, k the k-th class."""


def load_network(folder: Path, *, device: str) -> Network:
    """The published network of a part."""
    from foundation.model import load_model

    return load_model(folder, device=device)


class Outputs:
    """Of one part on the scans of its task.

    Args:
        task: A task with a split.
        part: Whose network.
        name: Of the line.
        folder: Of the cache.
        device: Where the network runs; it is loaded when the first scan is not in the cache.
    """

    def __init__(self, task: Task, part: Part, *, name: str, folder: Path, device: str) -> None:
        self._task, self._part, self._device = task, part, device
        self._folder, self._name = folder, f"{name}_{part.folder.name}"
        self._is_dense = task.card.kind == "segmentation"

    def fill(self, splits: Sequence[str], share: Share) -> None:
        """Fill this rank's part of the cache; every rank calls it with the same splits."""
        scans = [row for subject in self._task.rows(*splits) for row in self._task.scans[subject]]
        rows = shared(share, lambda: [row for row in scans if not self._file(row).is_there()])
        title = f"{self._task.card.name} by {self._name}"
        shows = rows and share.is_first
        for row in progress(rows, title=title, unit="scan", total=len(rows)) if shows else rows:
            self._write(row)

    def scores(self, split: str) -> Floats:
        """Of each subject of a split, (m, K): the mean over its scans; of a segmentation the Dice
        of each class over all of them, NaN for one that is neither there nor found."""
        score = self._dice if self._is_dense else self._mean
        return np.stack([score(int(subject)) for subject in self._task.rows(split)])

    def _mean(self, subject: int) -> Floats:
        found = [self._read(row)["score"] for row in self._task.scans[subject]]
        return np.mean(found, axis=0, dtype=np.float64)

    def _dice(self, subject: int) -> Floats:
        masked = MaskedScans.of(self._task)
        counts = np.zeros((3, masked.num_classes))
        for scan, row in enumerate(self._task.scans[subject]):
            found, mask = _unpacked(self._read(row)), masked.read_mask(subject, scan).classes
            if found.shape != mask.shape:
                raise MaskError(
                    f"{row.scan}: a mask of {mask.shape} voxels does not fit its scan of "
                    f"{found.shape}"
                )
            counts += overlap(found, mask, num_classes=masked.num_classes)
        return dice(counts)

    def _read(self, row: CohortRow) -> dict[str, NDArray[Any]]:
        arrays = self._file(row).read()
        if arrays is None:  # it was damaged
            self._write(row)
            arrays = self._file(row).read()
        assert arrays is not None
        return arrays

    def _write(self, row: CohortRow) -> None:
        scan = read_row(row)
        with naming(row):
            arrays = self._packed(scan) if self._is_dense else self._scored(scan)
        require_finite(arrays, self._name, row)
        self._file(row).write(arrays)

    def _scored(self, scan: Scan) -> dict[str, NDArray[Any]]:
        score = np.asarray(self._network.score_scan(scan), dtype=np.float64)
        expected = (len(self._task.outputs),)
        if score.shape != expected:
            raise FinetunedError(
                f"{self._part.model}: gives a score of shape {score.shape}, task "
                f"{self._task.card.name} asks for {expected}"
            )
        return {"score": score}

    def _packed(self, scan: Scan) -> dict[str, NDArray[Any]]:
        """Classes, compressed: most of a scan is background."""
        classes = np.ascontiguousarray(self._network.classes_of(scan), dtype=np.uint8)
        packed = np.frombuffer(zlib.compress(classes.tobytes(), 1), dtype=np.uint8)
        return {"packed": packed, "shape": np.array(classes.shape, dtype=np.int64)}

    def _file(self, row: CohortRow) -> CacheFile:
        return CacheFile(self._folder, self._name, self._made_by, content_of([row]))

    @cached_property
    def _made_by(self) -> str:
        sums = self._part.model / SUMS
        if not sums.is_file():
            raise FinetunedError(f"{sums}: missing, so there is no network here; fine-tune again")
        made_of = {"network": sha256_of(sums), "code": _network_code(), "version": _VERSION}
        return made_by(digest(made_of), None)

    @cached_property
    def _network(self) -> Network:
        network, task = load_network(self._part.model, device=self._device), self._task
        told = (network.target.kind, tuple(network.target.outputs))
        if told != (task.card.kind, task.outputs):
            raise FinetunedError(
                f"{self._part.model}: predicts {told[0]} of {', '.join(told[1])}, task "
                f"{task.card.name} is {task.card.kind} of {', '.join(task.outputs)}"
            )
        return network


def _unpacked(arrays: Mapping[str, NDArray[Any]]) -> Classes:
    found = np.frombuffer(zlib.decompress(arrays["packed"].tobytes()), dtype=np.uint8)
    return found.reshape(arrays["shape"])


@lru_cache
def _network_code() -> str:
    """Digest of the files that a voxel passes between a scan and a prediction, beside those that
    any feature depends on."""
    return digest([sha256_of(file) for part in _CODE for file in sorted(_ROOT.glob(part))])
