"""Operators around recurrent ones, each beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from helpers import Array
from onnx_models import (
    compare,
    floats,
    ints,
    make_model,
    run_onnxruntime,
    typed,
    whole,
)


def node_case(op: str, arrays: list[Array], constants: list[Array], **attributes: Any) -> Any:
    names = [f"x{k}" for k in range(len(arrays))]
    weights = {f"k{k}": a for k, a in enumerate(constants)}
    node = helper.make_node(op, names + list(weights), ["y"], **attributes)
    return dict(zip(names, arrays, strict=True)), weights, node


def bytes_(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


def signed(*shape: int) -> Array:
    """Without the last bit: where a CPU has no product of bytes, ONNX Runtime adds pairs in 16."""
    return bytes_(*shape).view(np.int8) // 2


def integer_case(op: str, x: Array, W: Array, **attributes: Any) -> Any:
    """x (input), W (constant), zero point of x (input), of W (constant)."""
    zero, point = np.array(131, np.uint8), np.array(-7, np.int8)
    node = helper.make_node(op, ["x", "W", "zero", "point"], ["y"], **attributes)
    return {"x": x, "zero": zero}, {"W": W, "point": point}, node


NODES: dict[str, Any] = {
    "conv": node_case("Conv", [floats(2, 6, 11)], [floats(4, 6, 3), floats(4)], pads=[2, 1]),
    "conv strides": node_case(
        "Conv", [floats(2, 6, 11)], [floats(4, 3, 3)], group=2, strides=[2], dilations=[3]
    ),
    "conv of one row": node_case(
        "Conv", [floats(1, 6, 11)], [floats(4, 6, 3), floats(4)], pads=[2, 1], dilations=[2]
    ),
    "conv of one row, strides": node_case(
        "Conv", [floats(1, 6, 11)], [floats(4, 6, 3)], strides=[2]
    ),
    "conv of each step": node_case("Conv", [floats(1, 6, 11)], [floats(4, 6, 1), floats(4)]),
    "conv of each step, padded": node_case(
        "Conv", [floats(1, 6, 11)], [floats(4, 6, 1), floats(4)], pads=[1, 0]
    ),
    "conv depthwise": node_case("Conv", [floats(2, 6, 11)], [floats(6, 1, 3)], group=6),
    "conv 2d": node_case(
        "Conv",
        [floats(3, 4, 9, 7)],
        [floats(6, 2, 3, 2), floats(6)],
        group=2,
        pads=[1, 0, 2, 1],
        strides=[2, 1],
        dilations=[1, 2],
    ),
    "conv same": node_case("Conv", [floats(1, 2, 9)], [floats(3, 2, 4)], auto_pad="SAME_UPPER"),
    "conv of a varying kernel": node_case("Conv", [floats(1, 2, 9), floats(3, 2, 4)], []),
    "conv integer": integer_case(
        "ConvInteger", bytes_(1, 600, 9, 7), signed(4, 600, 3, 2), pads=[1, 0, 2, 1]
    ),
    "matmul integer": integer_case("MatMulInteger", bytes_(4, 600), signed(600, 5)),
    "max pool": node_case("MaxPool", [floats(2, 3, 8, 7) - 9], [], kernel_shape=[3, 2]),
    "max pool padded": node_case(
        "MaxPool", [floats(2, 3, 8) - 9], [], kernel_shape=[3], pads=[1, 2], strides=[2]
    ),
    "max pool ceiling": node_case(
        "MaxPool", [floats(2, 3, 8)], [], kernel_shape=[3], strides=[2], ceil_mode=1
    ),
    "pad": node_case("Pad", [floats(2, 5)], [ints(1, 2, 0, 3)]),
    "pad by a value": node_case("Pad", [floats(2, 5)], [ints(1, 2, 0, 3), np.array(7, np.float32)]),
    "pad reflect": node_case("Pad", [floats(3, 5)], [ints(2, 0, 1, 4)], mode="reflect"),
    "pad edge": node_case("Pad", [floats(3, 5)], [ints(2, 0, 1, 4)], mode="edge"),
    "pad by what comes in": node_case("Pad", [floats(2, 5), ints(1, 2, 0, 3)], []),
    "slice": node_case("Slice", [floats(4, 5, 6)], [ints(1, -4), ints(100, -1), ints(2, 0)]),
    "slice backwards": node_case(
        "Slice", [floats(4, 5)], [ints(-1), ints(-100), ints(1), ints(-2)]
    ),
    "slice negative axis": node_case("Slice", [floats(4, 5)], [ints(1), ints(3), ints(-1)]),
    "slice of what comes in": node_case(
        "Slice", [floats(4, 5), ints(1, 0), ints(3, 4), ints(1, 0), ints(2, 1)], []
    ),
    "gather": node_case("Gather", [floats(4, 5)], [ints(3, 0, -1)], axis=1),
    "gather rows": node_case("Gather", [floats(4, 5)], [np.array(-2)]),
    "squeeze": node_case("Squeeze", [floats(1, 4, 1)], [ints(-1)]),
    "squeeze all": node_case("Squeeze", [floats(1, 4, 1)], []),
    "squeeze of an axis that comes in": node_case("Squeeze", [floats(1, 4, 1), ints(2)], []),
    "unsqueeze": node_case("Unsqueeze", [floats(4, 5)], [ints(3, 0)]),
    "unsqueeze last": node_case("Unsqueeze", [floats(4, 5)], [ints(-1)]),
    "unsqueeze negative": node_case("Unsqueeze", [floats(4, 5)], [ints(-2, 0)]),
    "unsqueeze of an axis that comes in": node_case("Unsqueeze", [floats(4, 5), ints(1)], []),
    "reshape": node_case("Reshape", [floats(4, 5, 6)], [ints(0, -1)]),
    "reshape whole": node_case("Reshape", [floats(4, 6)], [ints(3, 8)]),
    "reshape to what comes in": node_case("Reshape", [floats(4, 5, 6), ints(0, -1)], []),
    "reshape to no elements": node_case("Reshape", [floats(4, 0)], [ints(0, 7)], allowzero=1),
    "transpose": node_case("Transpose", [floats(2, 3, 4)], []),
    "mean": node_case("ReduceMean", [floats(2, 3, 4)], [], axes=[-1, 0], keepdims=0),
    "mean of all": node_case("ReduceMean", [floats(2, 3, 4)], []),
    "gemm": node_case("Gemm", [floats(2, 3)], [floats(4, 3), floats(4)], transB=1),
    "gemm without c": node_case("Gemm", [floats(2, 3)], [floats(3, 4)]),
    "gemm turned": node_case("Gemm", [floats(3, 2)], [floats(3, 4)], transA=1),
    "gemm of a column": node_case("Gemm", [floats(2, 3)], [floats(3, 4), floats(2, 1)]),
    "gemm scaled": node_case("Gemm", [floats(2, 3)], [floats(3, 4), floats(4)], alpha=0.5),
    "matmul": node_case("MatMul", [floats(5, 2, 3)], [floats(3, 4)]),
    "matmul of a vector": node_case("MatMul", [floats(3)], [floats(3, 4)]),
    "matmul of a stack": node_case("MatMul", [floats(5, 2, 3)], [floats(5, 3, 4)]),
    "pow": node_case("Pow", [floats(5)], [np.array(2, np.float32)]),
    "pow 3": node_case("Pow", [floats(5)], [np.array(3, np.float32)]),
    "cast": node_case("Cast", [10 * floats(5)], [], to=7),
    "cast to what it is": node_case("Cast", [floats(5)], [], to=1),
    "cast bool": node_case("Cast", [floats(5)], [], to=9),
    "sigmoid": node_case("Sigmoid", [1e3 * floats(5)], []),
    "relu": node_case("Relu", [floats(5)], []),
    "softmax": node_case("Softmax", [floats(2, 5)], [], axis=-1),
    "shape": node_case("Shape", [floats(2, 5)], []),
    "size": node_case("Size", [floats(2, 5)], []),
    "divide integers": node_case("Div", [ints(7, 8, 9)], [ints(2, 3, 4)]),
    "concat": node_case("Concat", [floats(2, 5), floats(2, 5)], [floats(2, 1)], axis=1),
}


@pytest.mark.parametrize("name", NODES)
def test_other_operators(name: str, tmp_path: Path) -> None:
    inputs, weights, node = NODES[name]
    model = typed(make_model([node], inputs, ["y"], weights))
    want = run_onnxruntime(model, inputs)
    got = whole(model, tmp_path).run(inputs)
    assert got["y"].shape == want["y"].shape
    compare(got, want, 2e-6)


@pytest.mark.parametrize("index", [np.array(1), ints(-1), ints(0, 1)], ids=str)
def test_size_of_an_axis(index: Array, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "k"], ["size"]),
    ]
    inputs = {"x": floats(2, 5)}
    model = typed(make_model(nodes, inputs, ["size"], {"k": index}))
    got, want = whole(model, tmp_path).run(inputs), run_onnxruntime(model, inputs)
    assert got["size"].shape == want["size"].shape
    compare(got, want, 1e-9)


def test_large_convolution_goes_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cylstm.convert.onnx_products.COLUMNS", 100)
    inputs, weights, node = NODES["conv 2d"]
    model = typed(make_model([node], inputs, ["y"], weights))
    compare(whole(model, tmp_path).run(inputs), run_onnxruntime(model, inputs), 2e-6)


@pytest.mark.parametrize("name", [n for n in NODES if n.startswith(("conv", "gemm", "matmul"))])
def test_large_products_are_our_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half of `test_other_operators`: products too large for BLAS."""
    monkeypatch.setattr("cylstm.convert.onnx_products.SMALL", 0)
    test_other_operators(name, tmp_path)
