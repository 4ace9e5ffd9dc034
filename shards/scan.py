"""A scan in memory: voxels in the patient frame with their geometry.

Axes are LPS: D runs from inferior to superior, H from anterior to posterior, W from the subject's
right to left; ``spacing_mm`` is (d, h, w). Only the readers know a file format's own order.
"""

from dataclasses import dataclass

import numpy as np

MODALITIES = ("CT", "MR", "PT", "OT")


class ScanError(ValueError):
    """A scan that cannot be used. The message is the ledger's reason: no identifier, no path."""


@dataclass(frozen=True)
class Scan:
    """One volume with what is known about it.

    Attributes:
        voxels: (D, H, W) in LPS order; CT is int16 in Hounsfield units, others int16 or float32.
        spacing_mm: (d, h, w).
        modality: One of ``MODALITIES``.
        subject: Identity as the file tells it (DICOM PatientID); never written anywhere.
        metadata: Descriptions from an allow-list (``body_part``, ``manufacturer``, ...).
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    modality: str
    subject: str | None
    metadata: dict[str, str | float]
