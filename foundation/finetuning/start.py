"""What a fine-tuning begins from: a backbone's network and contract, or a recipe's own."""

from pathlib import Path
from typing import NamedTuple

import torch

from foundation.backbone import BackboneError, load_backbone
from foundation.beginning.initial import Beginning, InitialConfig, begin_from, find_beginning
from foundation.finetuning.data import LabelledScans
from foundation.finetuning.decoders import build_decoder
from foundation.finetuning.heads import build_head
from foundation.finetuning.losses import loss_weights
from foundation.finetuning.method import Finetune, LabelTable
from foundation.finetuning.network import TunedNetwork
from foundation.finetuning.parts import Part
from foundation.finetuning.recipe import FinetuneConfig
from foundation.finetuning.target import Target
from foundation.finetuning.tuning import set_tuning
from foundation.network.patches import patch_grid
from foundation.preprocessing import Preprocessing
from foundation.tasks.task import Task
from foundation.vit import VitConfig, build_vit

SCRATCH = "scratch"


class Start(NamedTuple):
    """The same for all runs of a recipe, but for the spacing that a card asks for.

    Attributes:
        vit_config: Of the network.
        preprocessing: The contract of the backbone.
        source: Folder of the backbone whose weights are taken; None where they are drawn.
        digest: Of that backbone.
        name: For people: where the weights are from, or ``scratch``.
    """

    vit_config: VitConfig
    preprocessing: Preprocessing
    source: Path | None
    digest: str | None
    name: str

    def contract(self, task: Task) -> Preprocessing:
        """What the model's inputs must look like: a card may ask for a spacing of its own."""
        spacing_mm = task.card.spacing_mm or self.preprocessing.spacing_mm
        return self.preprocessing.model_copy(update={"spacing_mm": spacing_mm})

    @property
    def initial(self) -> InitialConfig | None:
        """As a pretraining would name the weights."""
        return None if self.source is None else InitialConfig(weights=str(self.source))

    def beginning(self) -> Beginning | None:
        """The weights, read; None where they are drawn."""
        initial = self.initial
        return None if initial is None else find_beginning(initial, vit_config=self.vit_config)


def find_start(config: FinetuneConfig, *, say: bool) -> Start:
    """Load and check the backbone, or take the recipe's network.

    Args:
        config: The recipe.
        say: Print the load report.

    Raises:
        BackboneError: It cannot be loaded, or takes several sequences at once.
        ValueError: Its patches do not tile ``crop_shape``.
    """
    if config.backbone is None:
        assert config.vit is not None
        assert config.preprocessing is not None
        start = Start(config.vit, config.preprocessing, None, None, SCRATCH)
    else:
        backbone = load_backbone(config.backbone, say=print if say else None)
        assert backbone.loaded is not None
        takes = not config.begins_from_scratch
        start = Start(
            backbone.loaded.vit_config,
            backbone.preprocessing,
            backbone.loaded.folder if takes else None,
            backbone.digest if takes else None,
            config.backbone if takes else SCRATCH,
        )
    vit_config, preprocessing = start.vit_config, start.preprocessing
    if vit_config.in_chans != 1:
        raise BackboneError(
            f"{config.backbone or 'vit'}: it takes {vit_config.in_chans} sequences at once "
            "(in_chans), and a network is tuned on one; take one with a single channel"
        )
    if config.drop_path_rate is not None:
        changed = {"drop_path_rate": config.drop_path_rate}
        vit_config = vit_config.model_copy(update=changed)
    if config.crop_shape is not None:
        patch_grid(config.crop_shape, vit_config.patch_size)
        preprocessing = preprocessing.model_copy(update={"crop_shape": config.crop_shape})
    return start._replace(vit_config=vit_config, preprocessing=preprocessing)


def first_method(
    config: FinetuneConfig, part: Part, *, start: Start, target: Target, resumed: bool
) -> Finetune:
    """The method with its first weights, the same on every rank; a checkpoint's come later.

    Raises:
        InitialError: This rank finds another backbone under the name than rank 0 did.
        ValueError: No decoder fits its patches, or there are fewer blocks than are to be tuned.
    """
    torch.manual_seed(config.seed)
    vit = build_vit(start.vit_config)
    initial = start.initial
    if initial is not None and not resumed:
        assert start.digest is not None
        begin_from(vit, initial, vit_config=start.vit_config, digest=start.digest)
    set_tuning(vit, config.tune)
    if target.kind == "segmentation":
        head: torch.nn.Module = build_decoder(config.decoder, vit=vit, num_logits=target.num_logits)
    else:
        head = build_head(config.head, embed_dim=vit.embed_dim, target=target)
    label = part.task.label[part.train]
    return Finetune(
        TunedNetwork(vit, head, target),
        preprocessing=start.contract(part.task),
        labels=LabelTable([part.task.subjects[row] for row in part.train], label),
        loss=config.loss,
        weights=loss_weights(label, target=target, config=config.loss),
        augment=config.augment,
        bag_size=bag_size(config, target),
        seed=config.seed,
    )


def bag_size(config: FinetuneConfig, target: Target) -> int:
    """Crops that are pooled to one scan; of a segmentation each is a sample by itself."""
    return 1 if target.kind == "segmentation" else config.reading.crops_per_scan


def masks_of(scans: LabelledScans) -> tuple[str, ...]:
    """What is cut out beside the scan."""
    return () if scans.mask is None else (scans.mask,)
