"""An ONNX graph: runs in onnxruntime and in whatever else reads ONNX, without torch.

session = onnxruntime.InferenceSession("backbone.onnx")
cls, mean, patch_tokens = session.run(None, {"volume": volume})
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.backbone import Backbone
from foundation.converting.checking import Checked, check_network
from foundation.converting.network import OUTPUTS, ConvertError, facts_of
from foundation.converting.program import traced

SUFFIX = ".onnx"
TOLERANCE = 1e-4
OPSET = 20
"""The first with GELU as one operator; onnxruntime reads it from 1.17 on."""

_MOST_BYTES = 1_900_000_000
"""A protobuf message ends at 2 GiB."""


def write_graph(backbone: Backbone, path: Path) -> Checked:
    """Export, write and check in onnxruntime.

    Raises:
        ConvertError: The libraries are not there, the weights are too large for one file, or it
            computes something else.
    """
    needs_libraries()
    size = sum(each.numel() * 4 for each in backbone.vit.state_dict().values())
    if size > _MOST_BYTES:
        raise ConvertError(
            f"{path.name}: {size / 1e9:.1f} GB of weights do not fit into one ONNX file of 2 GB; "
            f"export with --to torch"
        )
    program = traced(backbone)
    names = [spec.arg.name for spec in program.graph_signature.input_specs if _is_given(spec)]
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        input_names=names,
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    _tidy(exported.model, facts=facts_of(backbone))
    exported.save(path)
    return check_network(_session(path), backbone, tolerance=TOLERANCE, what=path.name)


def needs_libraries() -> None:
    """Raises ConvertError, before anything is computed, where ONNX cannot be written or run."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConvertError(
            f"ONNX needs a library that is not installed ({error.name}): "
            f"pip install 'scanfm[export]'"
        ) from None


def _is_given(spec: Any) -> bool:
    """Whether an input is the caller's, not a weight."""
    return bool(spec.kind == torch.export.graph_signature.InputKind.USER_INPUT)


def _tidy(model: Any, *, facts: Mapping[str, Any]) -> None:
    """Name the free axis, tell the facts, and forget the paths of the machine that exported."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "batch"
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props["scanfm"] = json.dumps(facts, sort_keys=True)


def _session(path: Path) -> Any:
    """A run of what was written, by onnxruntime on one CPU core."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )

    def run(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        found = session.run(list(OUTPUTS), given)
        return {name: torch.from_numpy(array) for name, array in zip(OUTPUTS, found, strict=True)}

    return run
