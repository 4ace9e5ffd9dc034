"""The part of a method that makes what its network sees of a batch: a module, to be timed."""

from collections.abc import Callable
from typing import Any

from torch import nn

from shards.streaming.batch import CropBatch


class Preparation(nn.Module):
    """A function of the batch, without parameters."""

    def __init__(self, make: Callable[[CropBatch], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, batch: CropBatch) -> Any:
        """What ``make`` gives."""
        return self.make(batch)
