"""From an opened input to its entries: judged, embedded, its token map written."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundation.backbone import Backbone
from foundation.embedding.coverage import Coverage
from foundation.embedding.entries import Entry
from foundation.embedding.features import embed_scan
from foundation.embedding.inputs import Item
from foundation.embedding.reading import Opened
from foundation.embedding.token_map import TokenMap, token_map, write_token_map
from shards.scan import Scan, ScanError


@dataclass(frozen=True)
class Embedding:
    """What is done with every scan.

    Attributes:
        backbone: In evaluation mode.
        coverage: What it is for.
        allow_uncovered: Embed and mark what it is not for.
        dense: Folder of the token maps, if any.
    """

    backbone: Backbone
    coverage: Coverage
    allow_uncovered: bool = False
    dense: Path | None = None


def map_path(folder: Path, scan: str) -> Path:
    """Of the token map of a row: ``a/first.nii.gz`` gives ``FOLDER/a/first.nii.gz.tokens.nii``."""
    parts = [part for part in Path(scan).parts if part not in ("..", "/")]
    return folder.joinpath(*parts[:-1], f"{parts[-1]}.tokens.nii")


def entries_of(how: Embedding, item: Item, opened: Opened, *, key: str) -> Iterator[Entry]:
    """An entry for each volume of an input, or one that says why there is none."""

    def entry(status: Any, *, number: int, **about: Any) -> Entry:
        name = item.name if number == 1 else f"{item.name}@{number}"
        return Entry(key, name, item.subject, item.sequence, status, **about)

    if opened.first is None:
        status = "refused" if item.verdict else "failed"
        yield entry(status, number=1, reason=item.verdict or opened.failure)
        return
    scan: Scan | None = opened.first
    number = 0
    while scan is not None:
        number += 1
        about, tokens = _of_scan(how, scan, is_oriented=opened.is_oriented)
        made = entry(number=number, **about)
        if how.dense is not None and tokens is not None:
            write_token_map(map_path(how.dense, made.scan), tokens)
        yield made
        try:
            scan = next(opened.others, None)
        except ScanError as error:
            yield entry("failed", number=number + 1, reason=str(error))
            return


def _of_scan(
    how: Embedding, scan: Scan, *, is_oriented: bool
) -> tuple[dict[str, Any], TokenMap | None]:
    """Status, reason, modality, spacing and features of one scan, and its map where wanted."""
    uncovered = "; ".join(how.coverage.reasons(scan, is_oriented=is_oriented))
    about = {"modality": scan.modality, "spacing_mm": tuple(map(float, scan.spacing_mm))}
    if uncovered and not how.allow_uncovered:
        return {"status": "refused", "reason": uncovered, **about}, None
    try:
        features = embed_scan(how.backbone, scan)
        tokens = token_map(how.backbone, scan) if how.dense is not None else None
    except ScanError as error:
        return {"status": "failed", "reason": str(error), **about}, None
    except torch.OutOfMemoryError:
        shape = " x ".join(map(str, scan.voxels.shape))
        reason = f"{shape} voxels do not fit into the memory of the device"
        return {"status": "failed", "reason": reason, **about}, None
    arrays = {name: tensor.cpu().numpy() for name, tensor in features._asdict().items()}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return {"status": "failed", "reason": "the features are not finite", **about}, None
    return {"status": "embedded", "reason": uncovered, "features": arrays, **about}, tokens
