"""A backbone with a head for the labels of scans, or a decoder for their masks."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from foundation.finetuning.target import Target
from foundation.finetuning.tuning import is_trained, set_training
from foundation.network.patches import patchify
from foundation.vit import Crops, Vit3d


class TunedNetwork(nn.Module):
    """What is trained and applied: ``pooled`` gives logits of scans, ``dense`` those of voxels.

    Attributes:
        vit: The backbone, in evaluation mode as far as it is frozen.
        head: A ``PooledHead``; of a segmentation a decoder, which has ``indices``.
        target: What the logits mean.
    """

    def __init__(self, vit: Vit3d, head: nn.Module, target: Target) -> None:
        super().__init__()
        self.vit = vit
        self.head = head
        self.target = target

    @property
    def features_dim(self) -> int:
        """Width of what :meth:`features` gives."""
        return 2 * self.vit.embed_dim

    def train(self, mode: bool = True) -> "TunedNetwork":
        """What is frozen of the backbone stays in evaluation mode."""
        super().train(mode)
        set_training(self.vit, mode=mode)
        return self

    def pooled(
        self,
        crops: Crops,
        *,
        inside: Tensor,
        bag_size: int = 1,
        head_draws: Tensor | None = None,
    ) -> Tensor:
        """Logits of scans, each seen in some crops.

        Args:
            crops: The crops of a scan lie behind each other; ``draws`` in it are drop path's.
            inside: True where a voxel is the scan's and not padding, (B, 1, D, H, W).
            bag_size: Crops a scan; B is a multiple of it.
            head_draws: What the head's dropout goes by, a row for each scan.

        Returns:
            (B / ``bag_size``, ``num_logits``).
        """
        features = self.features(crops, inside=inside, bag_size=bag_size)
        logits: Tensor = self.head(features, head_draws)
        return logits

    def features(self, crops: Crops, *, inside: Tensor, bag_size: int = 1) -> Tensor:
        """(B / ``bag_size``, 2 E): mean class token, and mean of the patches that see the scan.

        The same as ``foundation.windows.pool_scan`` gives of these windows, in float32.
        """
        assert self.target.kind != "segmentation", "masks have a decoder, not a head"
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vit)):
            output = self.vit.packed([crops])[0]
            cls, patches = output.cls_token.float(), output.patch_tokens.float()
            seen = patchify(inside, patch_size=self.vit.patch_size).any(dim=2)[..., None]
            count = seen.unflatten(0, (-1, bag_size)).sum(dim=(1, 2))
            # Products, not an einsum: under autocast that would add up in half precision.
            total = (patches * seen).unflatten(0, (-1, bag_size)).sum(dim=(1, 2))
            mean_cls = cls.unflatten(0, (-1, bag_size)).mean(dim=1)
            return torch.cat([mean_cls, total / count.clamp_min(1)], dim=1)

    def dense(self, crops: Crops) -> Tensor:
        """Logits of voxels, (B, ``num_logits``, D, H, W)."""
        assert self.target.kind == "segmentation", "labels have a head, not a decoder"
        indices: Any = self.head.indices
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained(self.vit)):
            layers = self.vit.layers(crops, indices=indices)
        d, h, w = self.vit.grid(crops.volume.shape[2:])
        maps = [
            rearrange(layer.patch_tokens, "b (d h w) e -> b e d h w", d=d, h=h, w=w)
            for layer in layers
        ]
        logits: Tensor = self.head(_present(crops), maps)
        return logits


def _present(crops: Crops) -> Tensor:
    """The volume, 0 in absent channels, as the backbone sees it."""
    if crops.present is None:
        return crops.volume
    return crops.volume * crops.present.to(crops.volume.device)[..., None, None, None]
