"""Features that were computed elsewhere, as a table of one or more rows for each subject."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evaluation.backbones.embedder import Dense, EmbedderError, Spacing
from evaluation.backbones.entry import Loaded
from evaluation.backbones.foreign import foreign
from evaluation.backbones.lines import FeaturesLine
from recipes.load import digest
from shards.files import sha256_of
from shards.scan import Scan

if TYPE_CHECKING:
    import pandas

_READERS = {".csv": "read_csv", ".parquet": "read_parquet"}


@dataclass(frozen=True)
class TableEmbedder:
    """See ``evaluation.backbones.embedder.Embedder``; it looks at the subject, not at the scan.

    Attributes:
        values: (E,) of each subject, by its name in the cohort.
        where: The table, for errors.
        digest: Of the table's bytes.
    """

    values: Mapping[str, NDArray[np.float32]]
    where: str
    digest: str

    @property
    def spacing_mm(self) -> Spacing | None:
        """None: no scan is looked at."""
        return None

    def embed(self, scan: Scan) -> dict[str, NDArray[np.float32]]:
        """Never asked: see :meth:`embed_subject`."""
        raise EmbedderError(f"{self.where}: a table knows subjects, not a {scan.modality} scan")

    def embed_subject(self, subject: str) -> dict[str, NDArray[np.float32]]:
        """``cls`` and ``mean``, (1, E), and the same as the only crop.

        Raises:
            EmbedderError: The table has no row of the subject.
        """
        if subject not in self.values:
            raise EmbedderError(
                f"{self.where}: has no row of a subject of the cohort; it must have one for each, "
                "by the names that the cohort uses"
            )
        row = self.values[subject][None]
        return {"cls": row, "mean": row, "crop_cls": row, "crop_mean": row}

    def dense(self, scan: Scan) -> Dense | None:
        """None: a table has no tokens."""
        del scan
        return None


def load_table(name: str, line: FeaturesLine) -> Loaded:
    """A table of features; several rows of a subject are averaged.

    Raises:
        EmbedderError: No such table or column, no numbers, or numbers that are not finite.
    """
    table, columns = _read(line.features, line.subject)
    subjects = table[line.subject].astype(str)
    rows = table[columns].astype(np.float64).groupby(subjects, sort=True).mean()
    values = rows.to_numpy().astype(np.float32)
    embedder = TableEmbedder(
        dict(zip(rows.index, values, strict=True)),
        str(line.features),
        digest({"features": sha256_of(line.features), "subject": line.subject}),
    )
    return foreign(
        name,
        line,
        embedder,
        what=f"{len(columns)} features of {len(rows)} subjects, computed elsewhere",
        is_trained=True,
        provenance={"network": str(line.features), "weights": None},
    )


def _read(path: Path, subject: str) -> tuple["pandas.DataFrame", list[str]]:
    import pandas

    if path.suffix not in _READERS:
        raise EmbedderError(f"{path}: a table of features is {' or '.join(_READERS)}")
    try:
        if path.suffix == ".csv":
            table = pandas.read_csv(path, dtype={subject: str})
        else:
            table = pandas.read_parquet(path)
    # The readers raise a dozen types for what is no table.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise EmbedderError(f"{path}: cannot be read as a table ({reason})") from None
    if subject not in table.columns:
        raise EmbedderError(f"{path}: has no column {subject!r}; name it as subject")
    columns = [each for each in table.columns if each != subject]
    words = [each for each in columns if not pandas.api.types.is_numeric_dtype(table[each])]
    if words or not columns:
        raise EmbedderError(f"{path}: every other column is a feature, but {words} are no numbers")
    if not np.isfinite(table[columns].to_numpy(np.float64)).all():
        raise EmbedderError(f"{path}: holds features that are missing or not finite")
    return table, [str(each) for each in columns]
