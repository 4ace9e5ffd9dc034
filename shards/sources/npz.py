"""The volumes of a MedMNIST archive as rows of a cohort.

It holds arrays ``{train,val,test}_images`` (N, D, H, W) and ``{train,val,test}_labels`` (N, 1).
"""

from pathlib import Path

import numpy as np

from shards.sources.cohort import SPLITS, CohortConfig, CohortRow
from shards.sources.cohort_table import CohortError


def npz_rows(config: CohortConfig, table: Path) -> list[CohortRow]:
    """A row per volume, in the official split; each is a subject of its own.

    Raises:
        CohortError: The file is no such archive.
    """
    assert not isinstance(config.modality, dict)
    rows, modality = [], config.modality
    try:
        with np.load(table, allow_pickle=False) as arrays:
            labels = {split: arrays[f"{split}_labels"].reshape(-1) for split in SPLITS}
        if any(each.dtype.kind not in "biu" for each in labels.values()):
            raise ValueError("labels that are no whole numbers")
    # The library raises a dozen types for bytes that are no archive.
    except Exception as error:
        raise CohortError(
            f"cohort {config.name}: {table} is not a MedMNIST archive ({error}); it needs"
            " {train,val,test}_images and {train,val,test}_labels"
        ) from None
    for split in SPLITS:
        rows += [
            CohortRow(
                subject=f"{split}-{index}",
                scan=f"{table}#{split}/{index}",
                mask=None,
                split=split,
                modality=modality,
                values={"label": int(label)},
            )
            for index, label in enumerate(labels[split])
        ]
    return rows
