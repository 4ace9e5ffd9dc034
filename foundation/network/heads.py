"""The projection from features to prototypes, thrown away after pretraining."""

import warnings

from pydantic import Field
from torch import nn

from recipes.load import Section


class HeadConfig(Section):
    """Three layers and prototypes of unit length."""

    num_prototypes: int = Field(default=16_384, ge=2)
    hidden_dim: int = Field(default=2048, ge=1)
    bottleneck_dim: int = Field(default=256, ge=1)


LAST_LAYER = "last_layer.weight_v"
"""The prototypes' directions, by name within a head."""


def build_head(config: HeadConfig, *, embed_dim: int) -> nn.Module:
    """(N, E) features to (N, K) logits, cosines with the prototypes (Caron et al. 2021, app. C).

    Weights come from torch's global generator.
    """
    from lightly.models.modules.heads import DINOProjectionHead

    with warnings.catch_warnings():
        # Lightly uses torch's older weight norm, whose parameters are plain weight_g and weight_v.
        warnings.simplefilter("ignore", FutureWarning)
        head: nn.Module = DINOProjectionHead(
            input_dim=embed_dim,
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            output_dim=config.num_prototypes,
            norm_last_layer=True,
        )
    return head
