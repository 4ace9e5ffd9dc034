"""The files of an evaluation store: the one place that knows their names and columns.

``evaluation.run`` writes them, ``evaluation.report`` reads them and needs nothing else: neither a
backbone nor a scan. Every file is written beside its name and moved into place, and all but the
features change together (``storing/draft.py``), so a kill leaves the former version. Subjects
appear as pseudonyms only.

```
run.json                     what was run: tasks, models, chosen settings, what was skipped and why
predictions/TASK.parquet     one row per model, protocol, split, subject and output
groups/TASK.parquet          the group columns of the scored subjects
few_shot/TASK.parquet        one score per model, protocol, size of the training set and draw
few_shot/TASK.json           the draws themselves, nested: the first k subjects are the k-shot set
fractions/TASK.parquet       one row per fine-tuning, share of the training subjects, split, subject
                             and output
statistics/TASK.json         every score with its interval, and what else the report says of a task
curves/MODEL.json            the loss of each backbone's pretraining
pictures/*.npz               slices of the cohort; MODEL_reconstructions.npz
leakage.json                 what was checked before any score
leakage_failed.json          the checks of a later run that did not pass, so that nothing was scored
features/                    cached features, one file per chunk of scans
scored/                      what each model came to on each task, by what it was made from
```

Statistics name the predictions they were computed from, and are refused beside others.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from errno import EISDIR
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recipes.load import digest

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 2
PREDICTION_COLUMNS = (
    "model",
    "protocol",
    "split",
    "subject",
    "output",
    "label",
    "event",
    "score",
)
FRACTION_COLUMNS = (
    "model",
    "fraction",
    "split",
    "subject",
    "output",
    "label",
    "event",
    "score",
)
FEW_SHOT_COLUMNS = ("model", "protocol", "x", "unit", "draw", "score")
GROUP_COLUMNS = ("subject", "column", "value")


class StoreError(ValueError):
    """A store that is missing, incomplete, or of another version."""


def write_run(store: Path, run: Mapping[str, Any]) -> None:
    """Write ``run.json``; it goes last, so a store that has one is complete."""
    write_json(store / "run.json", sealed({"schema_version": SCHEMA_VERSION, **run}))


def is_complete(store: Path) -> bool:
    """Whether the statistics of every task that ``run.json`` names are there, and of its scores."""
    try:
        for task in read_run(store)["tasks"]:
            read_statistics(store, task)
    except StoreError:
        return False
    return True


def read_run(store: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        StoreError: There is no finished store here, another version wrote it, or it is damaged.
    """
    path = store / "run.json"
    if not path.is_file():
        raise StoreError(
            f"{store}: no finished evaluation here (run.json is missing); "
            "make one with python -m evaluation.run RECIPE"
        )
    run = read_json(path)
    if run.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {run.get('schema_version')}, this version reads "
            f"{SCHEMA_VERSION}; run python -m evaluation.run again"
        )
    if run.get("digest") != _digest(run):
        raise StoreError(
            f"{path}: damaged, its digest differs from its content; "
            "run python -m evaluation.run again"
        )
    return run


def write_predictions(store: Path, task: str, rows: "pandas.DataFrame") -> None:
    """Write the rows of one task; their order in the file does not depend on the order given."""
    _write_table(store / "predictions" / f"{task}.parquet", rows, PREDICTION_COLUMNS, num_keys=5)


def read_predictions(store: Path, task: str) -> "pandas.DataFrame":
    """One row per (model, protocol, split, subject, output): ``PREDICTION_COLUMNS``."""
    return _read_table(store / "predictions" / f"{task}.parquet")


def write_groups(store: Path, task: str, rows: "pandas.DataFrame") -> None:
    """Write the group columns of a task's subjects: ``GROUP_COLUMNS``."""
    _write_table(store / "groups" / f"{task}.parquet", rows, GROUP_COLUMNS, num_keys=2)


def read_groups(store: Path, task: str) -> "pandas.DataFrame":
    """One row per (subject, column): ``GROUP_COLUMNS``."""
    return _read_table(store / "groups" / f"{task}.parquet")


def predictions_digest(store: Path, task: str) -> str:
    """Of everything that the statistics of a task are computed from.

    Raises:
        StoreError: A file of the task is missing.
    """
    parts = ("predictions", "groups", "few_shot", "fractions")
    files = [store / part / f"{task}.parquet" for part in parts]
    if not files[0].is_file():
        raise StoreError(f"{files[0]}: missing; run python -m evaluation.run again")
    found = {file.parent.name: sha256_of(file) for file in files if file.is_file()}
    return digest(found)


def write_statistics(
    store: Path, task: str, content: Mapping[str, Any], *, inputs_digest: str = ""
) -> None:
    """Write what the report says of a task, naming the predictions in the same store.

    Args:
        store: Holds the task's predictions.
        task: Its name.
        content: See ``evaluation/statistics/summary.py``.
        inputs_digest: Of predictions, settings and code; the statistics are kept while it is so.
    """
    made_of = {
        "inputs_digest": inputs_digest,
        "predictions_digest": predictions_digest(store, task),
    }
    write_json(store / "statistics" / f"{task}.json", sealed({**made_of, **content}))


def read_statistics(store: Path, task: str) -> dict[str, Any]:
    """Read what :func:`write_statistics` wrote.

    Raises:
        StoreError: Missing, damaged, or computed from other predictions than those in the store.
    """
    path = store / "statistics" / f"{task}.json"
    if not path.is_file():
        raise StoreError(f"{path}: missing; run python -m evaluation.run again")
    content = read_sealed(path)
    if content.get("predictions_digest") != predictions_digest(store, task):
        raise StoreError(
            f"{path}: computed from other predictions than those in the store; "
            "run python -m evaluation.run again"
        )
    return content


def write_few_shot(
    store: Path, task: str, scores: "pandas.DataFrame", draws: Mapping[str, Any]
) -> None:
    """Write the scores of every draw and the draws they came from."""
    _write_table(store / "few_shot" / f"{task}.parquet", scores, FEW_SHOT_COLUMNS, num_keys=5)
    write_json(store / "few_shot" / f"{task}.json", draws)


def read_few_shot(store: Path, task: str) -> "pandas.DataFrame | None":
    """One row per (model, protocol, x, unit, draw): ``FEW_SHOT_COLUMNS``; None without."""
    path = store / "few_shot" / f"{task}.parquet"
    return _read_table(path) if path.is_file() else None


def read_few_shot_draws(store: Path, task: str) -> dict[str, Any] | None:
    """The stored draws: ``{seed, shots, draws: [{class: [subject, ...]}]}``, nested by order."""
    path = store / "few_shot" / f"{task}.json"
    return read_json(path) if path.is_file() else None


def write_fractions(store: Path, task: str, rows: "pandas.DataFrame") -> None:
    """Write the predictions of networks that were trained on shares of the training subjects."""
    _write_table(store / "fractions" / f"{task}.parquet", rows, FRACTION_COLUMNS, num_keys=5)


def read_fractions(store: Path, task: str) -> "pandas.DataFrame | None":
    """One row per (model, fraction, split, subject, output): ``FRACTION_COLUMNS``; None without."""
    path = store / "fractions" / f"{task}.parquet"
    return _read_table(path) if path.is_file() else None


def write_curve(store: Path, model: str, curve: Mapping[str, Any]) -> None:
    """Write the loss curve of a backbone's pretraining: steps, loss, method, wall_s."""
    write_json(store / "curves" / f"{model}.json", curve)


def read_curves(store: Path) -> dict[str, dict[str, Any]]:
    """The curve of each backbone that has one, by model, sorted."""
    return {path.stem: read_json(path) for path in sorted((store / "curves").glob("*.json"))}


def write_pictures(store: Path, name: str, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write ``pictures/NAME.npz``; every array is in [0, 1]."""
    write_arrays(store / "pictures" / f"{name}.npz", arrays)


def read_pictures(store: Path, name: str) -> dict[str, NDArray[np.float32]]:
    """The arrays of ``pictures/NAME.npz``, in the order written; empty where there is none."""
    path = store / "pictures" / f"{name}.npz"
    return read_arrays(path) if path.is_file() else {}


def write_leakage(store: Path, leakage: Mapping[str, Any]) -> None:
    """Write ``leakage.json``: ``{checks: [...], passed}``."""
    write_json(store / "leakage.json", leakage)


def read_leakage(store: Path) -> dict[str, Any]:
    """Read ``leakage.json``."""
    return read_json(store / "leakage.json")


def write_json(path: Path, value: Any) -> None:
    """Write JSON that has the same bytes for the same value; NaN is refused, write None."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    replace(path, lambda file: file.write(text.encode() + b"\n"))


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its own digest; :func:`read_sealed` refuses it once it has changed."""
    return {**content, "digest": _digest(content)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what was :func:`sealed`.

    Raises:
        StoreError: It is missing, damaged or was changed.
    """
    content = read_json(path)
    if content.get("digest") != _digest(content):
        raise StoreError(f"{path}: damaged; run python -m evaluation.run again")
    return content


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an npz without pickles."""
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError("arrays of objects would be written as pickles")
    replace(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz written by :func:`write_arrays`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # The library raises a dozen types for bytes that are no archive.
    except Exception as error:
        raise StoreError(f"{path}: cannot be read ({error}); remove it and run again") from None


def replace(path: Path, write: Callable[[IO[bytes]], Any], *, synced: bool = True) -> None:
    """Write a file whole or not at all: beside its name, synced, then moved into place.

    Without ``synced`` a power cut may leave a torn file: for what is checked when it is read, and
    can be made again.
    """
    replace_all({path: write}, synced=synced)


def replace_all(writers: Mapping[Path, Callable[[IO[bytes]], Any]], *, synced: bool = True) -> None:
    """:func:`replace` several files: none is moved before all of them are written."""
    beside: dict[Path, str] = {}
    try:
        for path, write in writers.items():
            if path.is_dir():
                raise IsADirectoryError(EISDIR, "a folder has this name")
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, beside[path] = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                if synced:
                    os.fsync(file.fileno())
            os.chmod(beside[path], 0o644)
        for path in writers:
            os.replace(beside[path], path)
            del beside[path]
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        for name in beside.values():
            os.unlink(name)


def sha256_of(path: Path) -> str:
    """64 hex digits over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_parquet(path: Path, table: "pandas.DataFrame") -> None:
    """Write a table; the same table gives the same bytes."""
    replace(path, lambda file: table.to_parquet(file, index=False, compression="zstd"))


def read_parquet(path: Path) -> "pandas.DataFrame":
    """Read a table written by :func:`write_parquet`.

    Raises:
        StoreError: It is missing or damaged.
    """
    import pandas

    try:
        return pandas.read_parquet(path)
    # The library raises a dozen types for bytes that are no table.
    except Exception as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None


def _write_table(
    path: Path, rows: "pandas.DataFrame", columns: tuple[str, ...], *, num_keys: int
) -> None:
    keys = list(columns[:num_keys])
    assert not rows.duplicated(subset=keys).any(), f"{path.name}: two rows for the same {keys}"
    table = rows[list(columns)].sort_values(keys, kind="stable").reset_index(drop=True)
    write_parquet(path, table)


def _read_table(path: Path) -> "pandas.DataFrame":
    if not path.is_file():
        raise StoreError(f"{path}: missing; run python -m evaluation.run again")
    return read_parquet(path)


def _digest(run: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in run.items() if name != "digest"})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StoreError: It is missing, damaged or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value
