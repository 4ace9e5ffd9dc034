"""Student and teacher: a backbone with its heads, which embeds all crops in one pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foundation.vit import Crops, Vit3d


class BranchOutput(NamedTuple):
    """What a student or teacher makes of V views of B scans, view by view."""

    cls_token: Tensor
    """(V B, E)"""
    logits: Tensor
    """(V B, K) of the class tokens"""
    patch_logits: Tensor | None
    """(M, K) of the hidden patches"""


class Branch(nn.Module):
    """A backbone with its heads; the student is one, the teacher another.

    ``patch_head`` is None where patches share the head of class tokens, ``mask_token`` (1, 1, E)
    where nothing is ever hidden.
    """

    def __init__(
        self,
        backbone: Vit3d,
        head: nn.Module,
        *,
        patch_head: nn.Module | None,
        mask_token: nn.Parameter | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.patch_head = patch_head
        self.mask_token = mask_token

    def forward(self, crops: Sequence[Crops], rows: Tensor | None) -> BranchOutput:
        """Embed all crops in one pass, with one call of each head.

        Args:
            crops: One entry for each size.
            rows: (M,) the patches of the first entry whose logits are asked for, or None.
        """
        outputs = self.backbone.packed(crops, mask_token=self.mask_token)
        cls_token = torch.cat([output.cls_token for output in outputs])
        if rows is None:
            return BranchOutput(cls_token, self.head(cls_token), None)
        patches = outputs[0].patch_tokens.flatten(0, 1).index_select(0, rows)
        if self.patch_head is not None:
            return BranchOutput(cls_token, self.head(cls_token), self.patch_head(patches))
        logits = self.head(torch.cat([cls_token, patches]))
        return BranchOutput(cls_token, *logits.split([len(cls_token), len(patches)]))
