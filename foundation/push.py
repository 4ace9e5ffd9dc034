"""Publish an artefact: to the Hugging Face hub, a folder, an archive, or a URL of fsspec.

    python -m foundation.push runs/demo_mae/backbone hf://org/name --public
    python -m foundation.push runs/demo_mae/backbone backbone.tar.gz
    python -m foundation.push runs/demo_mae/backbone s3://bucket/demo_mae \\
        --store stores/demo
    python -m foundation.push runs/demo_tune/adrenal/model hf://org/adrenal --store stores/demo

It is loaded first, with every check. With --store the model card gets a table of what evaluation
has found of this backbone, or of this fine-tuned model on its task, which makes it another artefact
with another digest. The hub's token is taken from HF_TOKEN or the login of its client.
"""

import argparse
from pathlib import Path

from foundation.artefact.benchmark import Scored, model_with, read_statistics, scored
from foundation.artefact.loading import load_artefact
from foundation.artefact.pushing import push_backbone
from foundation.artefact.reading import Artefact
from recipes.command import errors_in_one_line


def main() -> None:
    """Read the command line and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", help="a folder backbone/, or whatever load_backbone takes")
    parser.add_argument("to", help="hf://org/name[@branch], a folder, a .tar(.gz) file, or a URL")
    parser.add_argument("--message", default="Publish a backbone", help="of the commit on the hub")
    parser.add_argument("--public", action="store_true", help="if the repository is made")
    parser.add_argument("--overwrite", action="store_true", help="replace another backbone there")
    parser.add_argument("--store", type=Path, help="stores/NAME of an evaluation, for the card")
    parser.add_argument(
        "--model",
        help="its name there; else a backbone is found by its digest, a model by its task",
    )
    words = parser.parse_args()
    with errors_in_one_line():
        print(f"reads   {words.backbone}\nwrites  {words.to}", flush=True)
        artefact, report = load_artefact(words.backbone, device="cpu", say=print)
        rows = _rows(words.store, model=words.model, artefact=artefact) if words.store else []
        at = push_backbone(
            report.folder,
            words.to,
            message=words.message,
            private=not words.public,
            overwrite=words.overwrite,
            benchmark=rows,
        )
        print(f"published: {at}", flush=True)


def _rows(store: Path, *, model: str | None, artefact: Artefact) -> list[Scored]:
    if artefact.tuned is not None:
        task = artefact.tuned.settings.target.task
        return scored(read_statistics(store), model=model, tuned_for=task)
    return scored(read_statistics(store), model=model or model_with(artefact.digest, store))


if __name__ == "__main__":
    main()
