"""ONNX files that are a stack of recurrent layers, and weights that their graphs compute."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import cylstm
from cylstm import load
from cylstm.convert.onnx_graph import OnnxModel
from helpers import Array, assert_close, rel
from onnx_models import (
    TOLERANCE,
    compare,
    lstm_weights,
    make_model,
    run_onnxruntime,
    saved,
    typed,
)


def test_weights_made_of_constants(tmp_path: Path) -> None:
    """As exporters of LSTM cells write them: slices in another order, one axis more."""
    rng = np.random.default_rng(3)
    H, I = 7, 5
    raw = {
        "w": rng.standard_normal((4 * H, I)).astype(np.float32),  # i, f, g, o
        "r": (rng.standard_normal((4 * H, H)) / 3).astype(np.float32),
        "b": rng.standard_normal(8 * H).astype(np.float32),
    }
    nodes, counter = [], iter(range(100))

    def constant(*values: int) -> str:
        name = f"c{next(counter)}"
        tensor = numpy_helper.from_array(np.array(values, np.int64), name)
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        return name

    def reordered(source: str, target: str, starts: list[int]) -> None:
        parts = []
        for k, start in enumerate(starts):
            part = f"{target}_{k}"
            nodes.append(
                helper.make_node(
                    "Slice",
                    [source, constant(start), constant(start + H), constant(0)],
                    [part],
                )
            )
            parts.append(part)
        nodes.append(helper.make_node("Concat", parts, [f"{target}_flat"], axis=0))
        nodes.append(helper.make_node("Unsqueeze", [f"{target}_flat", constant(0)], [target]))

    iofc = [0, 3 * H, H, 2 * H]
    reordered("w", "W", iofc)
    reordered("r", "R", iofc)
    reordered("b", "B", [*iofc, *[4 * H + k for k in iofc]])
    nodes.append(helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=H, name="n"))
    x = rng.standard_normal((6, 2, I)).astype(np.float32)
    model = typed(make_model(nodes, {"X": x}, ["Y"], raw))
    want = run_onnxruntime(model, {"X": x})
    lstm: Any = load(saved(model, tmp_path))
    assert isinstance(lstm, cylstm.LSTM)
    assert np.array_equal(lstm.state_dict()["weight_ih_l0"], raw["w"])
    assert rel(lstm(x)[0], want["Y"][:, 0]) < TOLERANCE
    alone: Any = load(tmp_path / "model.onnx", "n")
    assert np.array_equal(alone(x)[0], lstm(x)[0])


@pytest.mark.parametrize("states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
def test_stacks_of_torch(
    bidirectional: bool, batch_first: bool, states: bool, tmp_path: Path
) -> None:
    """What torch.onnx writes of an nn.LSTM of two layers is one cylstm.LSTM."""
    torch.manual_seed(0)
    module = torch.nn.LSTM(5, 7, 2, bidirectional=bidirectional, batch_first=batch_first).eval()
    rows = 2 * (1 + bidirectional)
    x = torch.randn(3, 4, 5)
    B = 3 if batch_first else 4
    given = (torch.randn(rows, B, 7), torch.randn(rows, B, 7)) if states else None
    path = tmp_path / "stack.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (x, given) if states else (x,),
            str(path),
            input_names=["x", "h", "c"][: 3 if states else 1],
            dynamic_axes={"x": {0: "a", 1: "b"}},
            dynamo=False,
        )
    lstm = load(path)
    assert isinstance(lstm, cylstm.LSTM)
    assert (lstm.num_layers, lstm.batch_first) == (2, batch_first)
    with torch.no_grad():
        want, (h_n, c_n) = module(x, given)
    y, (h, c) = lstm(x.numpy(), tuple(s.numpy() for s in given) if given else None)
    assert_close({"y": rel(y, want), "h": rel(h, h_n), "c": rel(c, c_n)}, TOLERANCE)


def stack_nodes(between: list[Any], second: str = "between") -> list[Any]:
    """Two LSTM nodes and the nodes between them."""
    return [
        helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y0"], hidden_size=7, name="first"),
        *between,
        helper.make_node("LSTM", [second, "W1", "R1"], ["Y"], hidden_size=7, name="second"),
    ]


def stack_weights() -> dict[str, Array]:
    second = lstm_weights(7, 7, seed=1)
    return {"axis": np.array([1])} | lstm_weights(5, 7) | {"W1": second["W"], "R1": second["R"]}


SQUEEZE = helper.make_node("Squeeze", ["Y0", "axis"], ["squeezed"])


@pytest.mark.parametrize(
    ("between", "is_stack"),
    [
        ([SQUEEZE], True),
        ([SQUEEZE, helper.make_node("Dropout", ["squeezed"], ["dropped"])], True),
        ([SQUEEZE, helper.make_node("Relu", ["squeezed"], ["rectified"])], False),
        ([SQUEEZE, helper.make_node("Transpose", ["squeezed"], ["turned"], perm=[1, 0, 2])], False),
    ],
    ids=["squeeze", "dropout", "relu", "time and batch exchanged"],
)
def test_what_is_a_stack(between: list[Any], is_stack: bool, tmp_path: Path) -> None:
    """One layer has biases and the other none; either way the numbers are ONNX Runtime's."""
    x = np.random.default_rng(0).standard_normal((4, 4, 5)).astype(np.float32)
    nodes = stack_nodes(between, between[-1].output[0])
    model = typed(make_model(nodes, {"X": x}, ["Y"], stack_weights()))
    want = run_onnxruntime(model, {"X": x})["Y"]
    got: Any = load(saved(model, tmp_path))
    assert isinstance(got, cylstm.LSTM) == is_stack
    y = got(x)[0][:, None] if is_stack else got(X=x)["Y"]
    assert rel(y, want) < TOLERANCE


def test_a_node_whose_input_has_no_shape_is_a_layer(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 2, 5)).astype(np.float32)
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], hidden_size=7)
    model = typed(make_model([node], {"X": x}, ["Y"], lstm_weights(5, 7)))
    want = run_onnxruntime(model, {"X": x})["Y"]
    model.graph.input[0].type.tensor_type.ClearField("shape")
    layer = load(saved(model, tmp_path))
    assert isinstance(layer, cylstm.LSTM)
    assert rel(layer(x)[0][:, None], want) < TOLERANCE


def test_initial_states_of_the_file_are_not_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, h = (rng.standard_normal(s).astype(np.float32) for s in ((4, 2, 5), (1, 2, 7)))
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h"], ["Y"], hidden_size=7, name="n")
    model = typed(make_model([node], {"X": x}, ["Y"], lstm_weights(5, 7) | {"h": h}))
    unknown = onnx.ModelProto.FromString(model.SerializeToString())
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    listed = onnx.ModelProto.FromString(model.SerializeToString())  # as a default, by old writers
    listed.graph.input.append(helper.make_tensor_value_info("h", 1, h.shape))
    for file in (unknown, listed, model):
        graph = load(saved(file, tmp_path))
        assert isinstance(graph, OnnxModel)
        compare(graph(X=x), run_onnxruntime(model, {"X": x}), TOLERANCE)
    with pytest.raises(ValueError, match="its initial_h is a constant of the file"):
        load(tmp_path / "model.onnx", "n")


def layer_node(k: int, x: str, h: str = "", lengths: str = "", **more: Any) -> Any:
    inputs = [x, f"W{k}", f"R{k}", f"B{k}", lengths, h or f"h_0_{k}", f"c_0_{k}"]
    outputs = [f"Y{k}", f"h_n_{k}", f"c_n_{k}"]
    return helper.make_node("LSTM", inputs, outputs, hidden_size=7, **more)


def rows_of(state: str, k: int, *numbers: int, source: str = "") -> Any:
    """What layer k takes of h_0 or c_0: from, to, axis, step."""
    names = [f"n{n}" for n in numbers or (k, k + 1, 0)]
    return helper.make_node("Slice", [source or state, *names], [f"{state}_{k}"])


def joined(state: str, *parts: str, axis: int = 0) -> Any:
    parts = parts or (f"{state}_0", f"{state}_1")
    return helper.make_node("Concat", list(parts), [state], axis=axis)


def same(source: str, target: str) -> Any:
    return helper.make_node("Identity", [source], [target])


# Two layers, their states rows of h_0 and c_0, and what makes another graph of them: other nodes of
# these names, or more before them. All axes but the layers' are as long, so that any order fits.
STACK: dict[str, Any] = {
    "h_0 0": rows_of("h_0", 0),
    "h_0 1": rows_of("h_0", 1),
    "c_0 0": rows_of("c_0", 0),
    "c_0 1": rows_of("c_0", 1),
    "first": layer_node(0, "X"),
    "between": helper.make_node("Squeeze", ["Y0", "n1"], ["y0"]),
    "second": layer_node(1, "y0"),
    "y": helper.make_node("Squeeze", ["Y1", "n1"], ["y"]),
    "h_n": joined("h_n"),
    "c_n": joined("c_n"),
}
ONE = numpy_helper.from_array(np.ones(1, np.float32))
NEAR_MISSES: dict[str, dict[str, Any]] = {
    "rows exchanged": {"h_0 0": rows_of("h_0", 0, 1, 2, 0), "h_0 1": rows_of("h_0", 1, 0, 1, 0)},
    "one row for both": {"c_0 1": rows_of("c_0", 1, 0, 1, 0)},
    "rows from the end": {"h_0 0": rows_of("h_0", 0, -2, -1, 0)},
    "every other row": {"h_0 0": rows_of("h_0", 0, 0, 2, 0, 2)},
    "rows of a transposed h_0": {
        "turned": helper.make_node("Transpose", ["h_0"], ["turned"], perm=[0, 2, 1]),
        "h_0 0": rows_of("h_0", 0, source="turned"),
    },
    "h_0 in the file": {"second": layer_node(1, "y0", "h_in_file")},
    "h_0 of zeros for one": {"second": layer_node(1, "y0", "zeros")},
    "h_0 of ones": {
        "ones": helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=ONE),
        "second": layer_node(1, "y0", "ones"),
    },
    "h_0 computed": {
        "twice": helper.make_node("Add", ["h", "h"], ["twice"]),
        "second": layer_node(1, "y0", "twice"),
    },
    "h_0 of the layer below": {"second": layer_node(1, "y0", "h_n_0")},
    "h_0 an input of its own": {"second": layer_node(1, "y0", "h")},
    "h_0 from c_0": {"h_0 1": rows_of("h_0", 1, source="c_0")},
    "lengths of one layer": {"second": layer_node(1, "y0", lengths="lengths")},
    "another activation": {"second": layer_node(1, "y0", activations=["Sigmoid", "Tanh", "Relu"])},
    "another clip": {"second": layer_node(1, "y0", clip=0.2)},
    "both on the input": {"second": layer_node(1, "X")},
    "a part of the input": {
        "part": helper.make_node("Slice", ["X", "n1", "n5"], ["part"]),
        "first": layer_node(0, "part"),
    },
    "a state between": {"second": layer_node(1, "h_n_0")},
    "as many steps as the file says": {
        "between": helper.make_node("Reshape", ["Y0", "sizes"], ["y0"])
    },
    "final states exchanged": {"h_n": joined("h_n", "h_n_1", "h_n_0")},
    "final states side by side": {"h_n": joined("h_n", axis=2)},
    "final states of both kinds": {"h_n": joined("h_n", "h_n_0", "c_n_1")},
    "the final state of one": {"h_n": same("h_n_1", "h_n")},
    "the lower layer's output": {"y": helper.make_node("Squeeze", ["Y0", "n1"], ["y"])},
    "an output that is an input": {"y": same("X", "y")},
    "an output that is a state": {"h_n": same("h_0", "h_n")},
}


@pytest.mark.parametrize("name", ["a stack", *NEAR_MISSES])
def test_near_misses_of_a_stack(name: str, tmp_path: Path) -> None:
    """They load as graphs, whose numbers are ONNX Runtime's."""
    changed = NEAR_MISSES.get(name, {})
    nodes = {k: node for k, node in changed.items() if k not in STACK} | STACK | changed
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    weights = {f"{role}{k}": a for k in (0, 1) for role, a in lstm_weights(7, 7, seed=k).items()}
    weights |= {f"n{n}": np.array([n]) for n in (-2, -1, 0, 1, 2, 5)}
    weights |= {"h_in_file": draw(1, 7, 7), "zeros": np.zeros((1, 7, 7), np.float32)}
    weights |= {"shape": np.array([1, 7, 7]), "sizes": np.array([7, 7, 7])}
    inputs = {"X": draw(7, 7, 7), "h_0": draw(2, 7, 7), "c_0": draw(2, 7, 7), "h": draw(1, 7, 7)}
    inputs["lengths"] = np.array([7, 3, 1, 5, 7, 2, 6], np.int32)
    read = {source for node in nodes.values() for source in node.input}
    inputs = {k: a for k, a in inputs.items() if k in read}
    weights = {k: a for k, a in weights.items() if k in read}
    model = typed(make_model(list(nodes.values()), inputs, ["y", "h_n", "c_n"], weights))
    want = run_onnxruntime(model, inputs)
    got: Any = load(saved(model, tmp_path))
    if name != "a stack":
        assert isinstance(got, OnnxModel)
        compare(got.run(inputs), want, TOLERANCE)
        return
    assert isinstance(got, cylstm.LSTM) and got.num_layers == 2
    y, (h_n, c_n) = got(inputs["X"], (inputs["h_0"], inputs["c_0"]))
    compare({"y": y, "h_n": h_n, "c_n": c_n}, want, TOLERANCE)
