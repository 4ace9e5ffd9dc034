"""Export a checkpoint of a run as a backbone: any step, finished or not, student or teacher.

    python -m foundation.export runs/demo_mae
    python -m foundation.export runs/demo_dino step=500 weights=student out=early

The newest healthy checkpoint is taken where no step is named, and the backbone lands in
RUN/exports/step-000500 where no folder is. What the weights have seen is read from the run's
shards, or, where these are gone, from the backbone that the run itself has published.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from foundation.artefact.checkpoints import Trained, TrainedError, read_trained
from foundation.artefact.curve import loss_curve
from foundation.artefact.layout import PROVENANCE, SUMS
from foundation.artefact.saving import save_backbone
from foundation.artefact.texts import read_json
from foundation.backbone import Backbone, load_backbone
from foundation.beginning.initial import kept_beginning
from foundation.checkpoint import step_name
from foundation.log import read_log
from foundation.running.provenance import provenance_of
from foundation.running.runs import BACKBONE, LOG
from recipes.command import errors_in_one_line
from recipes.load import RecipeError, Section, digest, parse
from shards.storage.places import PlaceError
from shards.streaming.corpus import Corpus, open_corpus
from shards.streaming.reading import folder_list

EXPORTS = "exports"
_UNKNOWN = "unknown"


class ExportConfig(Section):
    """The words of the command."""

    step: int | None = Field(default=None, ge=0, description="null: the newest healthy checkpoint")
    weights: Literal["student", "teacher"] | None = Field(
        default=None, description="of DINO; null: the teacher, which its run publishes"
    )
    out: Path | None = Field(default=None, description="null: RUN/exports/step-000500")


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="runs/NAME")
    parser.add_argument("words", nargs="*", metavar="step=N weights=student|teacher out=FOLDER")
    found = parser.parse_args()
    with errors_in_one_line():
        config = parse(_pairs(found.words), ExportConfig, where="export")
        export(found.run, config)


def export(run: Path, config: ExportConfig) -> Backbone:
    """Write the backbone, load it again as anybody would, and say what that has found.

    Raises:
        ValueError: No such checkpoint, or nobody can say what it has seen.
    """
    trained = read_trained(run, step=config.step, weights=config.weights)
    out = config.out or run / EXPORTS / "-".join(
        filter(None, [step_name(trained.step), config.weights])
    )
    print(f"reads   {run}, step {trained.step}\nwrites  {out}", flush=True)
    if out.exists() and not (out / SUMS).is_file():
        raise TrainedError(f"{out}: is there, and is no backbone; choose another folder with out=")
    save_backbone(
        out,
        vit=trained.vit,
        vit_config=trained.config.vit,
        preprocessing=trained.config.preprocessing,
        recipe=trained.config.model_dump(mode="json"),
        provenance=provenance_at(run, trained),
    )
    backbone = load_backbone(out, say=print)
    print(f"backbone: {out}", flush=True)
    return backbone


def provenance_at(run: Path, trained: Trained) -> dict[str, Any]:
    """As the run's own backbone has it, of as many steps as the checkpoint has.

    Raises:
        TrainedError: The shards are gone or are others, and the run has published no backbone.
    """
    config, step = trained.config, trained.step
    lines = (
        [line for line in read_log(run / LOG) if line["step"] <= step]
        if (run / LOG).is_file()
        else []
    )
    published = _published(run, trained)
    ran = {
        "name": config.name,
        "method": config.method_name,
        "steps": step,
        "scans_seen": step * config.train.global_batch,
        "wall_s": max((line.get("wall_s", 0.0) for line in lines), default=0.0),
        "world_size": _num_ranks(lines),
        "device": published.get("device", _UNKNOWN),
        "recipe_digest": digest(config),
    }
    corpus = _corpus(run, trained, needed=not published)
    if corpus is None:
        wall_s = ran.pop("wall_s")
        provenance = {**published, **ran, "hours": wall_s / 3600}
        done = step / max(1, published["steps"])
        provenance["epochs"] = {name: n * done for name, n in published["epochs"].items()}
    else:
        per_scan = config.reading.crops_per_scan
        begun = kept_beginning(run)
        provenance = provenance_of(corpus, **ran, crops_per_scan=per_scan, begun=begun)
    return {**provenance, "weights": trained.weights, "loss_curve": loss_curve(lines)}


def _published(run: Path, trained: Trained) -> dict[str, Any]:
    """Provenance of the run's own backbone, if it has one of the same shards."""
    path = run / BACKBONE / PROVENANCE
    if not path.is_file():
        return {}
    found = read_json(path)
    same = found.get("shards", {}).get("digest") == trained.facts["shards_digest"]
    return found if same and "epochs" in found else {}


def _corpus(run: Path, trained: Trained, *, needed: bool) -> Corpus | None:
    """The shards that the run was begun with; None where they are gone and not needed."""
    config = trained.config
    try:
        corpus = open_corpus(
            folder_list(config.shards),
            plan=config.plan,
            seed=config.seed,
            cache=config.reading.cache,
        )
    except (PlaceError, ValueError, OSError) as error:
        if not needed:
            return None
        raise TrainedError(
            f"{run}: its shards {config.shards} cannot be read ({error}), so nobody can say what "
            "it has seen; bring them back"
        ) from None
    then, now = trained.facts["shards_digest"], corpus.digest
    if now == then:
        return corpus
    if not needed:
        return None
    raise TrainedError(
        f"{run}: its shards {config.shards} are not those the run was begun with (digest "
        f"{now[:8]}, then {then[:8]}), so nobody can say what it has seen; bring them back"
    )


def _num_ranks(lines: Sequence[Mapping[str, Any]]) -> int:
    """The log keeps the seconds of every rank."""
    for line in reversed(lines):
        for seconds in line.get("ranks", {}).values():
            return len(seconds)
    return 1


def _pairs(words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RecipeError(
                f"{word!r} is no setting; write step=500, weights=student or out=early"
            )
        pairs[name] = value
    return pairs


if __name__ == "__main__":
    main()
