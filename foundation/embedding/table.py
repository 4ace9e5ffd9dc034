"""A table: a row for each scan, or for each subject, as CSV, Parquet or npz."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foundation.embedding.entries import Array, Entry
from foundation.embedding.inputs import JobError
from shards.files import write_bytes

Per = Literal["scan", "subject"]
Facts = dict[str, list[Any]]
Features = dict[str, Array]
Groups = Sequence[Sequence[Entry]]
"""The scans of each row."""

FORMATS = (".parquet", ".csv", ".npz")


def check_table(out: Path) -> None:
    """Told before any scan is read.

    Raises:
        JobError: No such format, or the library for it is not installed.
    """
    if out.suffix not in FORMATS:
        raise JobError(f"{out}: a table ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise JobError(
                f"{out}: Parquet needs pyarrow: pip install pyarrow; .csv and .npz need nothing"
            ) from None


def grouped(entries: Sequence[Entry], *, per: Per) -> Groups:
    """What was done, row by row: by scan, or by subject in the order of their first scans."""
    groups: dict[Any, list[Entry]] = {}
    for number, entry in enumerate(each for each in entries if each.is_done):
        groups.setdefault(number if per == "scan" else entry.subject, []).append(entry)
    return list(groups.values())


def facts_of(groups: Groups, *, per: Per) -> Facts:
    """Columns ``scan, subject, sequence, modality, uncovered``, or of subjects ``subject,
    num_scans, modality, uncovered``, where the last says why a scan is not covered.
    """
    if per == "scan":
        names = ("scan", "subject", "sequence", "modality")
        facts: Facts = {name: [getattr(one, name) for (one,) in groups] for name in names}
        return facts | {"uncovered": [one.reason for (one,) in groups]}
    return {
        "subject": [group[0].subject for group in groups],
        "num_scans": [len(group) for group in groups],
        "modality": [_joined(group, "modality", "+") for group in groups],
        "uncovered": [_joined(group, "reason", "; ") for group in groups],
    }


def means_of(groups: Groups) -> Features:
    """The arrays of the scans of each row, averaged, (rows, E) each."""
    return {
        name: np.stack([np.stack([one.arrays[name] for one in group]).mean(0) for group in groups])
        for name in groups[0][0].arrays
    }


def write_table(out: Path, facts: Facts, features: Features) -> None:
    """Write columns, whole or not at all; a cell that is NaN is empty.

    Args:
        out: Its ending chooses the format.
        facts: Columns of text or of numbers.
        features: One column a number in CSV (``cls_0``, ...), else an array each.
    """
    content = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}[out.suffix](facts, features)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)


def _joined(group: Sequence[Entry], name: str, by: str) -> str:
    return by.join(sorted({getattr(entry, name) for entry in group} - {""}))


def _csv(facts: Facts, features: Features) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [f"{kind}_{i}" for kind, array in features.items() for i in range(array.shape[1])]
    table.writerow([*facts, *names])
    for cells, *arrays in zip(zip(*facts.values(), strict=True), *features.values(), strict=True):
        # Nine digits give each float32 back exactly.
        numbers = (f"{value:.9g}" for array in arrays for value in array)
        table.writerow([*(_in_csv(cell) for cell in cells), *numbers])
    return text.getvalue().encode()


def _in_csv(cell: Any) -> Any:
    if not isinstance(cell, float):
        return cell
    return "" if math.isnan(cell) else f"{cell:.9g}"


def _npz(facts: Facts, features: Features) -> bytes:
    content = io.BytesIO()
    columns: dict[str, Any] = {name: np.array(cells) for name, cells in facts.items()}
    np.savez_compressed(content, **(columns | features))
    return content.getvalue()


def _parquet(facts: Facts, features: Features) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {
        name: pyarrow.array(cells, from_pandas=True)  # NaN is an empty cell
        for name, cells in facts.items()
    }
    for kind, array in features.items():
        flat = pyarrow.array(array.reshape(-1))
        columns[kind] = pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
