"""A checkpoint of a run as a backbone, without an export: what training has come to so far.

The run's folder is read and nothing else: a damaged checkpoint is passed over where it lies, so a
run that is still going on is not disturbed.
"""

from typing import Any

import torch

from evaluation.backbones.embedder import EmbedderError
from evaluation.backbones.entry import Loaded
from evaluation.backbones.lines import RunLine
from evaluation.backbones.own import loaded
from foundation.artefact.checkpoints import Trained, read_trained
from foundation.backbone import Backbone
from foundation.beginning.initial import kept_beginning, with_beginning
from foundation.running.provenance import seen_in, shards_of
from recipes.load import digest
from shards.streaming.corpus import open_corpus
from shards.streaming.reading import folder_list


def load_run(name: str, line: RunLine, *, device: torch.device) -> Loaded:
    """The backbone in a checkpoint.

    Raises:
        ValueError: No run or no whole checkpoint there, weights that the method does not have, or
            shards that are no longer what the run was begun with.
    """
    trained = read_trained(line.run, step=line.step, weights=line.weights)
    config = trained.config
    identity = {
        "weights": trained.sha256,
        "of": trained.weights,
        "vit": config.vit.model_dump(mode="json"),
        "preprocessing": config.preprocessing.model_dump(mode="json"),
    }
    backbone = Backbone(
        trained.vit,
        preprocessing=config.preprocessing,
        digest=digest(identity),
        provenance=_provenance(line, trained),
    )
    return loaded(name, backbone.to(device), config.vit, where=str(line.run), device=device)


def _provenance(line: RunLine, trained: Trained) -> dict[str, Any]:
    """As an export's, of so many steps; a checkpoint says neither when nor how long."""
    config = trained.config
    corpus = open_corpus(
        folder_list(config.shards),
        plan=config.plan,
        seed=config.seed,
        cache=config.reading.cache,
    )
    begun_with = trained.facts["shards_digest"]
    if corpus.digest != begun_with:
        raise EmbedderError(
            f"{line.run}: its shards {config.shards} are not those the run was begun with (digest "
            f"{corpus.digest[:8]}, then {begun_with[:8]}), so nobody can say what it has seen; "
            "bring them back, or score the exported backbone"
        )
    provenance = {
        "name": config.name,
        "method": config.method_name,
        "steps": trained.step,
        "weights": trained.weights,
        "scans_seen": trained.step * config.train.global_batch,
        "recipe_digest": digest(config),
        "shards": shards_of(corpus),
        **seen_in(corpus.readers),
    }
    begun = kept_beginning(line.run)
    return with_beginning(provenance, begun) if begun else provenance
