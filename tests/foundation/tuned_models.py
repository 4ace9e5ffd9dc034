"""Small fine-tuned models of every kind, untrained, for tests."""

from pathlib import Path
from typing import Any

import torch

from foundation.finetuning.calibration import Calibration
from foundation.finetuning.decoders import DecoderConfig
from foundation.finetuning.heads import HeadConfig
from foundation.finetuning.target import Target
from foundation.model import HeadSettings, save_model
from foundation.preprocessing import Preprocessing
from foundation.vit import VitConfig, build_vit

CONFIG = VitConfig(
    size="toy", patch_size=(2, 8, 4), embed_dim=24, depth=2, num_heads=1, position="rope_mm"
)
PREPROCESSING = Preprocessing(crop_shape=(8, 16, 12), spacing_mm=(3.0, 1.5, 2.0))

TARGETS = {
    "binary": Target(task="tumour", kind="binary", outputs=("1",), classes=("0", "1")),
    "multiclass": Target(
        task="organ",
        kind="multiclass",
        outputs=("liver", "lung", "heart"),
        classes=("liver", "lung", "heart"),
    ),
    "multilabel": Target(
        task="findings", kind="multilabel", outputs=("gas", "fluid"), classes=("gas", "fluid")
    ),
    "ordinal": Target(
        task="stage", kind="ordinal", outputs=("I", "II", "III"), classes=("I", "II", "III")
    ),
    "regression": Target(task="age", kind="regression", outputs=("age",), centre=60, scale=9),
    "survival": Target(
        task="death", kind="survival", outputs=("risk",), ends_days=(100.0, 250.0, 400.0)
    ),
    "segmentation": Target(
        task="vessels",
        kind="segmentation",
        outputs=("vein", "artery"),
        mask_values={"vein": 7, "artery": 2},
    ),
}


def settings_of(kind: str, *, calibration: Calibration | None = None) -> HeadSettings:
    """A head, or a light decoder."""
    if kind == "segmentation":
        return HeadSettings(target=TARGETS[kind], decoder=DecoderConfig(kind="light", features=4))
    return HeadSettings(target=TARGETS[kind], head=HeadConfig(), calibration=calibration)


def write_model(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    calibration: Calibration | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """A model whose outputs differ between scans, as those of a trained one do."""
    torch.manual_seed(seed)
    vit = build_vit(CONFIG)
    settings = settings_of(kind, calibration=calibration)
    head = settings.build(vit)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    save_model(
        folder,
        vit=vit,
        vit_config=CONFIG,
        preprocessing=PREPROCESSING,
        head=head,
        settings=settings,
        recipe={"name": "small"},
        provenance=provenance or {},
    )
    return folder
