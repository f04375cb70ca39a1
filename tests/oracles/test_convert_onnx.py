"""Whole ONNX graphs, run by ONNX Runtime and by cylstm."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cylstm import load
from cylstm.convert.onnx_graph import OnnxModel
from helpers import Array
from onnx_models import (
    TOLERANCE,
    compare,
    floats,
    ints,
    lstm_weights,
    make_model,
    run_onnxruntime,
    saved,
    typed,
    whole,
)


def test_streaming_through_if_and_loop(tmp_path: Path) -> None:
    """Recurrent nodes in branches and in a loop, states from call to call."""
    rng = np.random.default_rng(0)
    weights = lstm_weights(5, 7) | {"conv": rng.standard_normal((5, 3, 2)).astype(np.float32)}
    weights |= {"axis": np.array([1]), "half": np.array(0.5, np.float32), "twice": np.array(2)}

    def branch(name: str, direction: str) -> Any:
        node = helper.make_node(
            "LSTM",
            ["seq", "W", "R", "B", "", "h", "c"],
            [f"{name}_{o}" for o in "yhc"],
            hidden_size=7,
            direction=direction,
            name=name,
        )
        infos = [
            helper.make_tensor_value_info(
                o, TensorProto.FLOAT, [None] * (4 if o.endswith("y") else 3)
            )
            for o in node.output
        ]
        return helper.make_graph([node], name, [], infos)

    def info(name: str, kind: int, rank: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [None] * rank)

    body = helper.make_graph(
        [
            helper.make_node(
                "LSTM", ["seq", "W", "R", "B", "", "state", "c"], ["ly", "lh"], hidden_size=7
            ),
            helper.make_node("Identity", ["going"], ["go_on"]),
            helper.make_node("ReduceMean", ["ly"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        ],
        "body",
        [
            info("k", TensorProto.INT64, 0),
            info("going", TensorProto.BOOL, 0),
            info("state", TensorProto.FLOAT, 3),
        ],
        [
            info("go_on", TensorProto.BOOL, 0),
            info("lh", TensorProto.FLOAT, 3),
            info("mean", TensorProto.FLOAT, 0),
        ],
    )
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["features"], pads=[1, 0]),
        helper.make_node("Transpose", ["features"], ["seq"], perm=[2, 0, 1]),
        helper.make_node("ReduceMean", ["x"], ["level"], keepdims=0),
        helper.make_node("Greater", ["level", "half"], ["loud"]),
        helper.make_node(
            "If",
            ["loud"],
            ["Y", "h_n", "c_n"],
            then_branch=branch("then", "forward"),
            else_branch=branch("else", "reverse"),
            name="choice",
        ),
        helper.make_node("Loop", ["twice", "", "h_n"], ["looped", "means"], body=body, name="loop"),
        helper.make_node("Concat", ["h_n", "c_n"], ["state_n"], axis=0),
    ]
    inputs: dict[str, Array] = {
        "x": rng.standard_normal((2, 3, 6)).astype(np.float32),
        "h": rng.standard_normal((1, 2, 7)).astype(np.float32),
        "c": rng.standard_normal((1, 2, 7)).astype(np.float32),
    }
    outputs = ["Y", "looped", "means", "state_n", "h_n", "c_n"]
    model = typed(make_model(nodes, inputs, outputs, weights))
    ours: Any = load(saved(model, tmp_path))
    assert set(ours.layers) == {
        "choice.then_branch.then",
        "choice.else_branch.else",
        "loop.body.LSTM_0",
    }
    for shift in (0.0, 2.0, -1.0, 3.0):
        want = run_onnxruntime(model, inputs | {"x": inputs["x"] + np.float32(shift)})
        got = ours.run(inputs | {"x": inputs["x"] + np.float32(shift)})
        compare(got, want, TOLERANCE)
        inputs["h"], inputs["c"] = want["h_n"], want["c_n"]


@pytest.mark.parametrize(("most", "start"), [(0, True), (3, False), (3, True), (None, True)])
def test_loops(most: int | None, start: bool, tmp_path: Path) -> None:
    """A Loop by count, by condition, by both, and one that never runs."""

    def info(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [
            helper.make_node("Add", ["total", "x"], ["more"]),
            helper.make_node("ReduceMax", ["more"], ["largest"], keepdims=0),
            helper.make_node("Less", ["largest", "bound"], ["go_on"]),
            helper.make_node("Mul", ["more", "x"], ["row"]),
        ],
        "body",
        [
            info("k", TensorProto.INT64, []),
            info("going", TensorProto.BOOL, []),
            info("total", TensorProto.FLOAT, [3]),
        ],
        [
            info("go_on", TensorProto.BOOL, []),
            info("more", TensorProto.FLOAT, [3]),
            info("row", TensorProto.FLOAT, [3]),
        ],
    )
    weights = {"bound": np.array(9, np.float32), "start": np.array(start)}
    if most is not None:
        weights["most"] = np.array(most)
    node = helper.make_node(
        "Loop", ["" if most is None else "most", "start", "x"], ["sum", "rows"], body=body
    )
    x = np.array([1, 2, 3], np.float32)
    model = typed(make_model([node], {"x": x}, ["sum", "rows"], weights))
    got, want = whole(model, tmp_path)(x=x), run_onnxruntime(model, {"x": x})
    assert got["rows"].shape == want["rows"].shape
    compare(got, want, 1e-9)


def test_whole_model_of_torch(tmp_path: Path) -> None:
    """Embedding, a stack, layer norm, a head: as torch.onnx writes them, in another batch size."""
    torch.manual_seed(0)

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(20, 8)
            self.lstm = torch.nn.LSTM(8, 17, 2, batch_first=True, bidirectional=True)
            self.norm = torch.nn.LayerNorm(34)
            self.head = torch.nn.Linear(34, 5)

        def forward(self, ids: Any) -> Any:
            y, (h_n, _) = self.lstm(self.embedding(ids))
            return torch.softmax(self.head(torch.relu(self.norm(y.mean(1)))), -1), y[:, -1], h_n

    model, path = Model().eval(), tmp_path / "whole.onnx"
    names = ["p", "last", "h_n"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randint(0, 20, (3, 11)),),
            str(path),
            input_names=["ids"],
            output_names=names,
            dynamic_axes={"ids": {0: "B", 1: "T"}},
            dynamo=False,
        )
    ours = cast(OnnxModel, load(path))
    assert len(ours.layers) == 2
    ids = torch.randint(0, 20, (2, 7))
    with torch.no_grad():
        want = dict(zip(names, (a.numpy() for a in model(ids)), strict=True))
    compare(ours(ids=ids.numpy()), want, TOLERANCE)


def test_outputs_are_the_callers_own(tmp_path: Path) -> None:
    """No output is a view of an input or of a constant that a caller could write to."""
    x = floats(2, 3)
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Transpose", ["x"], ["turned"]),
        helper.make_node("Identity", ["k"], ["constant"]),
    ]
    model = typed(make_model(nodes, {"x": x}, ["same", "turned", "constant"], {"k": x}))
    ours = whole(model, tmp_path)
    got = ours(x=x)
    assert not any(np.may_share_memory(got[name], x) for name in ("same", "turned"))
    with pytest.raises(ValueError, match="read-only"):
        got["constant"][0] = 7


def test_memory_of_a_call(tmp_path: Path) -> None:
    """A value is released when its last reader has run, however long the chain."""
    x = np.ones((512, 512), np.float32)
    names = ["x", *[f"v{k}" for k in range(60)]]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in zip(names, names[1:])]
    nodes.append(helper.make_node("Add", ["v0", names[-1]], ["y"]))  # v0 lives as long as this
    ours = whole(typed(make_model(nodes, {"x": x}, ["y"])), tmp_path)
    tracemalloc.start()
    y = ours(x=x)["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.all(y == 2)
    assert peak < 5 * x.nbytes


def test_neither_copied_nor_pickled(tmp_path: Path) -> None:
    ours = whole(
        make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ints(1)}, ["y"]), tmp_path
    )
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="load model.onnx again"):
            attempt(ours)


def test_the_other_name_of_the_standard_domain(tmp_path: Path) -> None:
    nodes = [
        helper.make_node(op, [a], [b], domain="ai.onnx")
        for op, a, b in (("Elu", "x", "y"), ("Relu", "y", "z"))
    ]
    model = make_model(nodes, {"x": floats(2, 3)}, ["z"])
    model.opset_import[0].domain = "ai.onnx"
    assert np.array_equal(whole(model, tmp_path)(x=floats(2, 3))["z"], floats(2, 3).clip(0))


@pytest.mark.parametrize("axes", [(1, 4, 7), (4, 7)], ids=["squeezed", "as it is"])
def test_an_if_whose_condition_is_known(axes: tuple[int, ...], tmp_path: Path) -> None:
    """As exporters write a squeeze: the branch is taken at load, its values have names outside."""
    x, node = floats(3, 2, 5), helper.make_node

    def branch(name: str, kind: str, *inputs: str) -> Any:
        nodes = [node(kind, ["Y", *inputs], [f"{name}_out"]), node("Neg", ["x"], [f"{name}_neg"])]
        outputs = [onnx.ValueInfoProto(name=o) for o in (f"{name}_out", f"{name}_neg")]
        return helper.make_graph(nodes, name, [], outputs)

    nodes = [
        node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=7),
        node("Shape", ["zeros"], ["shape"]),
        node("Gather", ["shape", "first"], ["size"]),
        node("Equal", ["size", "one"], ["is_one"]),
        node(
            "If",
            ["is_one"],
            ["chosen", "negative"],
            then_branch=branch("then", "Squeeze", "axis"),
            else_branch=branch("else", "Identity"),
        ),
        node("Relu", ["chosen"], ["y"]),
    ]
    weights = lstm_weights(5, 7) | {"zeros": np.zeros(axes), "first": np.array(0)}
    weights |= {"one": np.array(1), "axis": ints(1)}
    model = make_model(nodes, {"x": x}, ["y", "negative", "chosen"], weights)
    for output in model.graph.output:
        output.type.tensor_type.elem_type = TensorProto.FLOAT
    got, want = whole(model, tmp_path)(x=x), run_onnxruntime(model, {"x": x})
    assert got["y"].ndim == 4 - (axes[0] == 1)
    compare(got, want, TOLERANCE)


def test_functions_of_the_file(tmp_path: Path) -> None:
    """A layer within a function of the model's own is in the graph like any other."""
    x = floats(3, 2, 5)
    body = [
        helper.make_node("LSTM", ["a", "w", "r"], ["s"], hidden_size=7),
        helper.make_node("Relu", ["s"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 17)]
    block = helper.make_function("own", "Block", ["a", "w", "r"], ["b"], body, opsets)
    nodes = [
        helper.make_node("Block", ["x", "W", "R"], ["y"], domain="own"),
        helper.make_node("Neg", ["y"], ["z"]),
    ]
    weights = {name: lstm_weights(5, 7)[name] for name in "WR"}
    model = make_model(nodes, {"x": x}, ["z"], weights, domains={"own": 1})
    model.functions.append(block)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    ours = whole(model, tmp_path)
    assert len(ours.layers) == 1
    compare(ours(x=x), run_onnxruntime(model, {"x": x}), TOLERANCE)


@pytest.mark.parametrize("training", [None, True, False])
def test_a_dropout_that_is_turned_on(training: bool | None, tmp_path: Path) -> None:
    """By a constant or by an input, None here: it drops, and else hands on what came in."""
    x = floats(300, 2, 5)
    node = helper.make_node("Dropout", ["x", "ratio", "training"], ["y"])
    weights = {"ratio": np.array(0.5, np.float32)}
    inputs: dict[str, Any] = {"x": x}
    if training is None:
        inputs["training"] = np.array(True)
    else:
        weights["training"] = np.array(training)
    y = whole(typed(make_model([node], inputs, ["y"], weights)), tmp_path).run(inputs)["y"]
    kept = y != 0
    assert np.array_equal(y, x * 2 * kept if training is not False else x)
    assert training is False or 0.4 < kept.mean() < 0.6


CALLS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda m: m(X=floats(3, 2, 5), y=1), ValueError, "unknown input 'y', expected X"),
    (lambda m: m(), ValueError, "input 'X' is missing"),
    (lambda m: m(X=np.zeros((3, 2, 5))), TypeError, "X is float64, expected float32"),
    (lambda m: m(X=floats(3, 5)), ValueError, r"X has shape \(3, 5\), expected \(any, any, any\)"),
    (lambda m: m(X=floats(3, 2, 6)), ValueError, r"model.onnx: LSTM_0: .*\(3, 2, 6\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_wrong_calls(
    call: Callable[[Any], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=7)
    model = make_model([node], {"X": floats(3, 2, 5)}, ["Y"], lstm_weights(5, 7))
    ours = whole(model, tmp_path)
    with pytest.raises(error, match=message):
        call(ours)
