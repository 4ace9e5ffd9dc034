"""The table of features: a row for each scan, or for each subject, as CSV, Parquet or npz."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foundation.embedding.entries import KINDS, Array, Entry
from foundation.embedding.inputs import EmbedError
from shards.files import write_bytes

Per = Literal["scan", "subject"]
Facts = dict[str, list[Any]]
Features = dict[str, Array]

FORMATS = (".parquet", ".csv", ".npz")


def check_table(out: Path) -> None:
    """Told before anything is embedded.

    Raises:
        EmbedError: No such format, or the library for it is not installed.
    """
    if out.suffix not in FORMATS:
        raise EmbedError(f"{out}: a table ends in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise EmbedError(
                f"{out}: Parquet needs pyarrow: pip install pyarrow; .csv and .npz need nothing"
            ) from None


def write_table(out: Path, entries: Sequence[Entry], *, per: Per) -> int:
    """Write what was embedded, whole or not at all.

    Columns are ``scan, subject, sequence, modality, spacing_{d,h,w}_mm, uncovered``, or ``subject,
    num_scans, modality, uncovered``, where the latter says why a scan is not covered; then the
    features: one column a number in CSV (``cls_0``, ...), else one array ``cls`` and one ``mean``.

    Args:
        out: Its ending chooses the format.
        entries: All of them, in the order of the rows.
        per: A row is a scan, or the mean of a subject's scans.

    Returns:
        The number of rows.
    """
    embedded = [entry for entry in entries if entry.status == "embedded"]
    facts, features = (_by_scan if per == "scan" else _by_subject)(embedded)
    content = {".parquet": _parquet, ".csv": _csv, ".npz": _npz}[out.suffix](facts, features)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    return len(features[KINDS[0]])


def _by_scan(entries: Sequence[Entry]) -> tuple[Facts, Features]:
    facts: Facts = {
        name: [getattr(entry, name) for entry in entries]
        for name in ("scan", "subject", "sequence", "modality")
    }
    for axis, name in enumerate("dhw"):
        facts[f"spacing_{name}_mm"] = [entry.spacing_mm[axis] for entry in entries]
    facts["uncovered"] = [entry.reason for entry in entries]
    return facts, {kind: np.stack([entry.features[kind] for entry in entries]) for kind in KINDS}


def _by_subject(entries: Sequence[Entry]) -> tuple[Facts, Features]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.subject, []).append(entry)
    facts: Facts = {
        "subject": list(groups),
        "num_scans": [len(group) for group in groups.values()],
        "modality": [_joined(group, "modality", "+") for group in groups.values()],
        "uncovered": [_joined(group, "reason", "; ") for group in groups.values()],
    }
    means = {
        kind: np.stack(
            [
                np.stack([one.features[kind] for one in group]).mean(axis=0)
                for group in groups.values()
            ]
        )
        for kind in KINDS
    }
    return facts, means


def _joined(group: Sequence[Entry], name: str, by: str) -> str:
    return by.join(sorted({getattr(entry, name) for entry in group} - {""}))


def _csv(facts: Facts, features: Features) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [f"{kind}_{i}" for kind, array in features.items() for i in range(array.shape[1])]
    table.writerow([*facts, *names])
    for cells, *arrays in zip(zip(*facts.values(), strict=True), *features.values(), strict=True):
        # Nine digits give each float32 back exactly.
        table.writerow([*cells, *(f"{value:.9g}" for array in arrays for value in array)])
    return text.getvalue().encode()


def _npz(facts: Facts, features: Features) -> bytes:
    content = io.BytesIO()
    columns: dict[str, Any] = {name: np.array(cells) for name, cells in facts.items()}
    np.savez_compressed(content, **(columns | features))
    return content.getvalue()


def _parquet(facts: Facts, features: Features) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {name: pyarrow.array(cells) for name, cells in facts.items()}
    for kind, array in features.items():
        flat = pyarrow.array(array.reshape(-1))
        columns[kind] = pyarrow.FixedSizeListArray.from_arrays(flat, array.shape[1])
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
