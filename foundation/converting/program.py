"""A program of ``torch.export`` (.pt2): runs wherever torch does, without this package.

    program = torch.export.load("backbone.pt2")
    features = program.module()(volume)["cls"]

The file is a zip of JSON and plain bytes of tensors. Torch would add the example inputs as a
pickle; they are left out, and a file with any pickle in it is not published. Another's file may
well hold one, and ``torch.export.load`` would run it: load a program from whom you trust.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from foundation.backbone import Backbone
from foundation.converting.checking import Checked, check_network
from foundation.converting.network import (
    ConvertError,
    example_inputs,
    facts_of,
    frozen_network,
)

SUFFIX = ".pt2"
FACTS = "scanfm.json"
TOLERANCE = 1e-5

_TRACED_BATCH = 2
_KEPT = ("val", "tensor_meta")
"""What a node must know of its result; the rest is where in which file it comes from."""

_TENSOR = re.compile(r"/data/(weights/weight|constants/tensor)_\d+$")
"""Plain bytes of numbers, which may begin in any way; their config tells if one is unpickled."""

_PICKLES = (b"\x80", b"PK\x03\x04")
"""How a pickle begins, and the zip that torch.save puts one into."""


def traced(backbone: Backbone) -> torch.export.ExportedProgram:
    """The network as a graph of any batch.

    Places in our own code, which torch notes at every node, are taken out: they are paths of the
    machine that exported.
    """
    inputs = example_inputs(backbone, batch=_TRACED_BATCH, seed=0)
    batch = torch.export.Dim("batch")
    # The strict tracer keeps len(tensor) symbolic, the other one fixes the batch there.
    program = torch.export.export(
        frozen_network(backbone),
        (),
        kwargs=inputs,
        dynamic_shapes={name: {0: batch} for name in inputs},
        strict=True,
    )
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta = {key: node.meta[key] for key in _KEPT if key in node.meta}
    program.example_inputs = None
    return program


def write_program(backbone: Backbone, path: Path) -> Checked:
    """Export, write and check.

    Raises:
        ConvertError: It holds a pickle, or computes something else.
    """
    facts = {FACTS: json.dumps(facts_of(backbone), indent=1, sort_keys=True)}
    torch.export.save(traced(backbone), path, extra_files=facts)
    check_no_pickle(path)
    module = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            found: dict[str, Tensor] = module(**inputs)
        return found

    return check_network(run, backbone, tolerance=TOLERANCE, what=path.name)


def check_no_pickle(path: Path) -> None:
    """Raises ConvertError when a member of the zip is a pickle, or tells torch to unpickle one."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            content = archive.read(member)
            if member.filename.endswith("_config.json"):
                entries = json.loads(content)["config"]
                if pickled := [name for name, each in entries.items() if each["use_pickle"]]:
                    raise ConvertError(f"{path.name}: {pickled[0]} would be unpickled")
            elif not _TENSOR.search(member.filename) and content.startswith(_PICKLES):
                raise ConvertError(f"{path.name}: {member.filename} is a pickle")
