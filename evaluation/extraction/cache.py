"""One file of cached features: what it was made of stands in its name and, in full, inside it.

A file whose inside does not say what its name says was put there by hand, or from another store:
it is refused, never used. One that cannot be read is made again.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.probing.estimator import Bags
from evaluation.storing.store import StoreError, read_arrays, replace

FORMAT = 2  # of the files: raising it makes every cache stale
_MADE_OF = "made_of"
_STARTS = ".starts"

Arrays = Mapping[str, NDArray[Any]]
Stacked = dict[str, NDArray[Any] | Bags]
"""(n, ...) of n scans, or their tokens where each scan has its own number."""


class FeatureError(ValueError):
    """A scan of a task that cannot be read or embedded, or features that are not its own."""


@dataclass(frozen=True)
class CacheFile:
    """Where features lie, and what they are made of.

    Attributes:
        folder: Of the cache.
        name: Of what makes them, for people.
        made_by: 64 hex digits: the extractor and its view.
        content: 64 hex digits: the scans.
    """

    folder: Path
    name: str
    made_by: str
    content: str

    @property
    def path(self) -> Path:
        """Named by the beginnings of both digests."""
        return self.folder / f"{self.name}-{self.made_by[:16]}" / f"{self.content[:24]}.npz"

    def write(self, arrays: Arrays) -> None:
        """Whole or not at all."""
        marked = {_MADE_OF: self._mark, **arrays}
        # Features are noise to a compressor.
        replace(self.path, lambda file: np.savez(file, **marked), synced=False)  # type: ignore[arg-type]

    def read(self) -> dict[str, NDArray[Any]] | None:
        """The arrays; None where there are none, or a damaged file, which is said.

        Raises:
            FeatureError: The file is of something else than its name says.
        """
        if not self.path.is_file():
            return None
        try:
            arrays = read_arrays(self.path)
        except StoreError:
            self._damaged()
            return None
        self._check(arrays.pop(_MADE_OF, None))
        return arrays

    def is_there(self) -> bool:
        """Whether there is a file that is no torso; its mark is checked, its arrays are not.

        Raises:
            FeatureError: As in :meth:`read`.
        """
        if not self.path.is_file():
            return False
        try:
            with np.load(self.path, allow_pickle=False) as file:
                mark = file[_MADE_OF] if _MADE_OF in file.files else None
        # The library raises a dozen types for bytes that are no archive.
        except Exception:
            self._damaged()
            return False
        self._check(mark)
        return True

    @property
    def _mark(self) -> NDArray[np.uint8]:
        content = {"made_by": self.made_by, "content": self.content}
        return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)

    def _check(self, mark: NDArray[np.uint8] | None) -> None:
        if mark is None or not np.array_equal(mark, self._mark):
            raise FeatureError(
                f"{self.path}: made of something else than its name says, so features of two "
                f"origins would be mixed; remove {self.path.parent} and run again"
            )

    def _damaged(self) -> None:
        print(f"redone  {self.path}: damaged", flush=True)


def stacked(
    name: str, scans: Sequence[Arrays], *, ragged: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Arrays of several scans as one of each name; those of varying length behind each other.

    Raises:
        FeatureError: Scans give arrays of different shapes.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        for key in scans[0]:
            each = [arrays[key] for arrays in scans]
            if key in ragged:
                found[key] = np.concatenate(each)
                found[key + _STARTS] = np.cumsum([0, *map(len, each)], dtype=np.int64)
            else:
                found[key] = np.stack(each)
    except (ValueError, KeyError):
        raise _unlike(name) from None
    return found


def joined(name: str, files: Sequence[Arrays]) -> Stacked:
    """What several files hold, as :func:`stacked` wrote them, behind each other."""
    found: Stacked = {}
    try:
        for key in (key for key in files[0] if not key.endswith(_STARTS)):
            values = np.concatenate([arrays[key] for arrays in files])
            if key + _STARTS in files[0]:
                lengths = [np.diff(arrays[key + _STARTS]) for arrays in files]
                starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
                found[key] = Bags(values, starts.astype(np.int64))
            else:
                found[key] = values
    except (ValueError, KeyError):
        raise _unlike(name) from None
    return found


def _unlike(name: str) -> FeatureError:
    return FeatureError(f"{name}: scans give arrays of different shapes")
