"""Publish a backbone: the Hugging Face hub, a folder, an archive, or a URL that fsspec writes.

    python -m foundation.push runs/demo_mae/backbone hf://org/name --public
    python -m foundation.push runs/demo_mae/backbone backbone.tar.gz
    python -m foundation.push runs/demo_mae/backbone s3://bucket/demo_mae \\
        --store stores/demo

It is loaded first, with every check. With --store the model card gets a table of what evaluation
has found of this backbone, which makes it another artefact with another digest. The hub's token is
taken from HF_TOKEN or the login of its client.
"""

import argparse
from pathlib import Path

from foundation.artefact.benchmark import Scored, model_with, read_statistics, scored
from foundation.artefact.pushing import push_backbone
from foundation.backbone import load_backbone
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
    parser.add_argument("--model", help="the backbone's name there; else found by its digest")
    words = parser.parse_args()
    with errors_in_one_line():
        print(f"reads   {words.backbone}\nwrites  {words.to}", flush=True)
        backbone = load_backbone(words.backbone, say=print)
        rows = _rows(words.store, model=words.model, digest=backbone.digest) if words.store else []
        assert backbone.loaded is not None, "it was loaded just now"
        at = push_backbone(
            backbone.loaded.folder,
            words.to,
            message=words.message,
            private=not words.public,
            overwrite=words.overwrite,
            benchmark=rows,
        )
        print(f"published: {at}", flush=True)


def _rows(store: Path, *, model: str | None, digest: str) -> list[Scored]:
    return scored(read_statistics(store), model=model or model_with(digest, store))


if __name__ == "__main__":
    main()
