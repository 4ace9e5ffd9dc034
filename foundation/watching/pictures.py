"""What a MAE rebuilds: middle slices of training crops, for the report."""

import io
from pathlib import Path

import numpy as np
import torch

from foundation.mae import Mae
from shards.files import write_bytes
from shards.streaming.batch import CropBatch

NAME = "reconstructions.npz"


def save_reconstructions(folder: Path, *, method: Mae, batch: CropBatch) -> None:
    """Write ``reconstructions.npz``: original, masked and reconstruction, (B, H, W) in [0, 1].

    Each is the middle slice along D of one crop of the batch; hidden patches are 0 in ``masked``.
    """
    was_training = method.training
    method.eval()
    found = method.reconstruct(batch)
    method.train(was_training)
    middle = found.original.shape[2] // 2
    original, rebuilt = (
        ((volume[:, 0, middle].float() + 1) / 2).clamp(0, 1).cpu()
        for volume in (found.original, found.reconstruction)
    )
    masked = torch.where(found.mask[:, 0, middle].cpu(), 0.0, original)
    content = io.BytesIO()
    np.savez_compressed(
        content,
        original=original.numpy(),
        masked=masked.numpy(),
        reconstruction=rebuilt.numpy(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / NAME, content.getvalue())
