"""What a backbone says of scans, as one more extractor: the same cache, the same pass."""

from typing import Any

from numpy.typing import NDArray

from evaluation.backbones.embedder import Embedder, Spacing
from evaluation.backbones.tables import TableEmbedder
from evaluation.extraction.features import Extractor
from recipes.load import digest
from shards.scan import Scan
from shards.sources.cohort import CohortRow

_VERSION = 1  # of the arrays below: raising it makes their caches stale
_RAGGED = ("crop_cls", "crop_mean", "patch")


def embedder_extractor(name: str, embedder: Embedder, *, spacing_mm: Spacing | None) -> Extractor:
    """All arrays of ``Embedder.embed``; crops and patch tokens are bags.

    Args:
        name: Of the backbone in the table.
        embedder: What embeds.
        spacing_mm: The task's, which goes before the backbone's own. Either way it is named, so
            backbones that share a spacing share one resampling.
    """
    spacing = spacing_mm or embedder.spacing_mm

    def extract(scan: Scan, row: CohortRow) -> dict[str, NDArray[Any]]:
        if isinstance(embedder, TableEmbedder):
            return dict(embedder.embed_subject(row.subject))
        return dict(embedder.embed(scan))

    made_by = digest({"embedder": embedder.digest, "version": _VERSION})
    return Extractor(name, made_by, spacing, extract, ragged=_RAGGED)
