"""What tests of ONNX files share: models, and ONNX Runtime to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from cylstm import load
from cylstm.convert.onnx_graph import OnnxModel
from helpers import Array, assert_close, rel

TOLERANCE = 1e-5


def run_onnxruntime(model: Any, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """{output: array}, of a model or of a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(inputs)), strict=True))


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def whole(model: Any, folder: Path) -> OnnxModel:
    """A model as a graph, though it may be a stack."""
    return cast(OnnxModel, load(saved(model, folder), graph=True))


def compare(got: Mapping[str, Array], want: Mapping[str, Array], tolerance: float) -> None:
    assert list(got) == list(want)
    assert {k: a.dtype for k, a in got.items()} == {k: a.dtype for k, a in want.items()}
    assert_close({name: rel(got[name], a) for name, a in want.items()}, tolerance)


def make_model(
    nodes: list[Any],
    inputs: Mapping[str, Array],
    outputs: list[str],
    weights: Mapping[str, Array] | None = None,
    opset: int = 17,
    domains: Mapping[str, int] | None = None,
) -> Any:
    """A graph of these nodes; the shapes of its inputs are open, its outputs' types unknown."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim
            )
            for name, a in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(a, name) for name, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def typed(model: Any) -> Any:
    """The model with the types of its outputs, which ONNX Runtime wants to be told."""
    return onnx.shape_inference.infer_shapes(model)


def lstm_weights(I: int, H: int, D: int = 1, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"W": (D, 4 * H, I), "R": (D, 4 * H, H), "B": (D, 8 * H)}
    return {k: (rng.standard_normal(s) / 2).astype(np.float32) for k, s in shapes.items()}


def floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)
