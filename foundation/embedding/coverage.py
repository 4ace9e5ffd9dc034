"""Which scans a backbone's contract and provenance cover, and what is odd about the others.

A backbone answers to anything; what it says of a scan unlike those it was trained on means little.
"""

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundation.embedding.features import InputError
from shards.scan import NIFTI, Scan

if TYPE_CHECKING:
    from foundation.backbone import Backbone

Spacing = tuple[float, float, float]

MARGIN = 1.1
"""How far beyond the recorded spacings a voxel's edge may lie, as a factor."""
MOST_MADE_UP = 2.0
"""How much coarser than the contract's spacing an edge may be: voxels are then interpolated."""
ROUNDING = 1e-3
"""Of edges that headers give, as a share."""
_HEAD_BYTES = 540
# Offsets of qform_code and sform_code, and their type, by the header's length.
_CODES = {348: (252, "hh"), 540: (344, "ii")}


@dataclass(frozen=True)
class Coverage:
    """What is known of the scans a backbone was trained on; None: nothing, so all is covered.

    Attributes:
        modalities: That it has seen.
        target_mm: Spacing (d, h, w) of the contract; None: each scan's own.
        low_mm, high_mm: Smallest and largest edge of the voxels it has seen, along each axis.
        sequence: Of a visit, which it was trained on alone.
    """

    modalities: frozenset[str] | None = None
    target_mm: Spacing | None = None
    low_mm: Spacing | None = None
    high_mm: Spacing | None = None
    sequence: str | None = None

    def reasons(self, scan: Scan, *, sequence: str = "", is_oriented: bool = True) -> list[str]:
        """Why a scan is not covered, in a few words each; empty where it is.

        Args:
            scan: As it was read, before any resampling.
            sequence: Of its visit, as the user names it; empty where nobody does.
            is_oriented: False where the file does not say how it lies in the patient.
        """
        return [
            *self._of_modality(scan),
            *self._of_sequence(sequence),
            *self._of_spacing(scan),
            *_of_axes(scan, is_oriented),
        ]

    def _of_modality(self, scan: Scan) -> list[str]:
        if self.modalities is None or scan.modality in self.modalities:
            return []
        return [f"modality {scan.modality}, the backbone has seen {_list(self.modalities)}"]

    def _of_sequence(self, sequence: str) -> list[str]:
        if not sequence or self.sequence in (None, sequence):
            return []
        return [f"sequence {sequence}, the model has learnt from {self.sequence}"]

    def _of_spacing(self, scan: Scan) -> list[str]:
        found = []
        for name, own, low, high in zip("DHW", scan.spacing_mm, *self._limits(), strict=True):
            if not low * (1 - ROUNDING) <= own <= high * (1 + ROUNDING):
                wanted = f"at most {high:.3g}" if low == 0 else f"{low:.3g} to {high:.3g}"
                found.append(f"spacing of {own:.3g} mm along {name}, covered is {wanted}")
        return found

    def _limits(self) -> tuple[Sequence[float], Sequence[float]]:
        """Edges (d, h, w) in mm that a scan may have."""
        if self.target_mm is not None:
            # Finer voxels are averaged on the way to the contract's; coarser ones are made up.
            return (0.0,) * 3, [MOST_MADE_UP * edge for edge in self.target_mm]
        if self.low_mm is None or self.high_mm is None:
            return (0.0,) * 3, (float("inf"),) * 3
        return [edge / MARGIN for edge in self.low_mm], [edge * MARGIN for edge in self.high_mm]


def coverage_of(backbone: "Backbone") -> Coverage:
    """By the contract, and by ``shards`` of the provenance: ``modalities``, ``spacing_mm``, and
    ``sequence`` where a network was tuned on one of several.

    Raises:
        InputError: The provenance says something else than it should there.
    """
    shards = backbone.provenance.get("shards") or {}
    try:
        modalities = [str(name) for name in shards.get("modalities") or ()]
        spacing = shards.get("spacing_mm") or {}
        low, high = (_edges(spacing.get(key)) for key in ("low", "high"))
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            "the provenance of the backbone does not say what it has seen: shards.modalities names "
            "modalities, shards.spacing_mm is {low: [d, h, w], high: [d, h, w]}"
        ) from None
    return Coverage(
        modalities=frozenset(modalities) or None,
        target_mm=backbone.preprocessing.spacing_mm,
        low_mm=low,
        high_mm=high,
        sequence=str(shards["sequence"]) if shards.get("sequence") else None,
    )


def _edges(found: Any) -> Spacing | None:
    if found is None:
        return None
    d, h, w = (float(edge) for edge in found)
    return d, h, w


def _of_axes(scan: Scan, is_oriented: bool) -> list[str]:
    if scan.affine is not None and is_oriented:
        return []
    return ["the file does not say how the scan lies in the body"]


def is_oriented(where: str) -> bool:
    """False for a NIfTI file that leaves both of its transforms open (codes 0).

    Anything that cannot be read as such a file is True: its reader has the word.
    """
    path = Path(where.partition("#")[0])
    if not path.name.lower().endswith(NIFTI) or not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        return _states_orientation(head)
    except (OSError, EOFError, ValueError, struct.error):
        return True


def _states_orientation(head: bytes) -> bool:
    for order in "<>":
        (length,) = struct.unpack_from(f"{order}i", head)
        if length in _CODES:
            offset, kind = _CODES[length]
            return any(code > 0 for code in struct.unpack_from(order + kind, head, offset))
    return True


def _list(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))
