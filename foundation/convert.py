"""Convert a backbone to a format that runs without this package, or in MONAI.

    python -m foundation.convert runs/demo_mae/backbone --to torch --out backbone.pt2
    python -m foundation.convert BACKBONE --to onnx --out backbone.onnx
    python -m foundation.convert BACKBONE --to monai --modality CT --out bundles/demo

``torch`` writes a program of torch.export, ``onnx`` a graph for onnxruntime; both take windows of
the contract's crop, in any number, already oriented, resampled and in [-1, 1]. ``monai`` writes a
bundle that begins at image files. What was written is read back and run against the backbone before
it gets its name: the last line but one tells the largest difference.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from foundation.backbone import Backbone, load_backbone
from foundation.converting import bundle, graph, program
from foundation.converting.checking import Checked
from foundation.converting.network import ConvertError
from foundation.running.files import sync_tree
from recipes.command import errors_in_one_line
from shards.files import discard_draft, fresh_folder, publish_folder
from shards.scan import MODALITIES

FORMATS = ("torch", "onnx", "monai")
_SUFFIXES = {"torch": program.SUFFIX, "onnx": graph.SUFFIX}

Write = Callable[[Backbone, Path], Checked]


def main() -> None:
    """Read the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone", help="a folder, or whatever load_backbone takes")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="file.pt2, file.onnx or a folder")
    parser.add_argument("--modality", choices=MODALITIES, help="of the images a bundle reads")
    words = parser.parse_args()
    with errors_in_one_line():
        convert(words.backbone, to=words.to, out=words.out, modality=words.modality)


def convert(where: str | Path, *, to: str, out: Path, modality: str | None = None) -> Checked:
    """Write the export, check it, and give it its name; what fails the check leaves nothing.

    Args:
        where: The backbone.
        to: One of ``FORMATS``.
        out: A file of the format's suffix, replaced if it exists; for ``monai`` a folder, replaced
            if it holds a bundle.
        modality: Of the images a bundle reads, which do not tell.

    Raises:
        ConvertError: It cannot be converted, or does not compute what the backbone does.
        BackboneError: The backbone is not what was published.
    """
    _check_out(out, to=to)
    write = _writer(to, modality=modality)
    print(f"reads   {where}\nwrites  {out}", flush=True)
    backbone = load_backbone(where)
    if backbone.loaded is not None and backbone.loaded.predicts is not None:
        raise ConvertError(
            f"{where}: is a fine-tuned model, and its head cannot be converted: it looks at a "
            f"whole scan and not at a window; apply it with foundation.predict, or convert the "
            f"backbone it began from"
        )
    draft = fresh_folder(out)
    try:
        path = draft / out.name
        checked = write(backbone, path)
        sync_tree(draft)
        _publish(path, out)
    finally:
        discard_draft(out)
    print(f"checked {checked}\nexport: {out}", flush=True)
    return checked


def _writer(to: str, *, modality: str | None) -> Write:
    if to == "torch":
        return program.write_program
    if to == "onnx":
        graph.needs_libraries()
        return graph.write_graph
    if modality is None:
        raise ConvertError(
            f"image files do not tell what they are: give --modality, one of "
            f"{', '.join(MODALITIES)}"
        )
    bundle.needs_library()
    return partial(bundle.write_bundle, modality=modality)


def _check_out(out: Path, *, to: str) -> None:
    """Nothing that is not an export is ever replaced."""
    suffix = _SUFFIXES.get(to)
    if suffix is not None and out.suffix != suffix:
        raise ConvertError(f"{out}: a file of --to {to} ends in {suffix}")
    if suffix is not None and out.is_dir():
        raise ConvertError(f"{out}: is a folder; give the name of a file")
    if suffix is None and out.exists() and not bundle.is_bundle(out):
        raise ConvertError(f"{out}: is there and is no bundle; give a name that is free")


def _publish(path: Path, out: Path) -> None:
    if path.is_dir():
        publish_folder(path, out)
    else:
        path.replace(out)


if __name__ == "__main__":
    main()
