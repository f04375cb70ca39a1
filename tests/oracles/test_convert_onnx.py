"""ONNX files, written with the onnx package and run by ONNX Runtime and by cylstm.

CYLSTM_ONNX_MODELS is the number of random models of one node; 300 takes about ten seconds.
"""

from __future__ import annotations

import copy
import os
import pickle
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import cylstm
from conformance import CONSTANT, one_node
from cylstm import load
from cylstm.convert.onnx_graph import OnnxModel
from cylstm.convert.onnx_recurrent import ACTIVATIONS
from helpers import Array, assert_close, rel

TOLERANCE = 1e-5
MODELS = int(os.environ.get("CYLSTM_ONNX_MODELS", "60"))


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


# --- one node


def random_node(seed: int) -> tuple[str, dict[str, Any], dict[str, Array], list[str]]:
    """(operator, attributes, inputs, outputs) of a random recurrent node."""
    rng = np.random.default_rng(seed)
    op = str(rng.choice(["LSTM", "GRU", "RNN"], p=[0.5, 0.3, 0.2]))
    G, n = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 1)}[op]
    T, B, I, H = (
        int(rng.choice(sizes)) for sizes in ([1, 2, 7], [1, 3, 4], [1, 3, 17], [1, 7, 16, 33])
    )
    attributes: dict[str, Any] = {"hidden_size": H}
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 2 if direction == "bidirectional" else 1
    if direction != "forward" or rng.random() < 0.5:
        attributes["direction"] = direction
    scale = 1.5 / np.sqrt(H)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {"X": normal(T, B, I), "W": normal(D, G * H, I), "R": scale * normal(D, G * H, H)}
    if rng.random() < 0.7:
        inputs["B"] = normal(D, 2 * G * H)
    if rng.random() < 0.5:
        inputs["sequence_lens"] = rng.integers(0, T + 1, B).astype(np.int32)
        inputs["sequence_lens"][rng.integers(B)] = T  # ONNX Runtime wants a step at all
    if rng.random() < 0.7:
        inputs["initial_h"] = normal(D, B, H)
    if op == "LSTM" and rng.random() < 0.7:
        inputs["initial_c"] = normal(D, B, H)
    if op == "LSTM" and rng.random() < 0.3:
        inputs["P"] = normal(D, 3 * H)
    if rng.random() < 0.2:
        attributes["clip"] = float(rng.choice([0.5, 3.0, 50.0, 999.0]))
    if op == "LSTM" and rng.random() < 0.2:
        attributes["input_forget"] = int(rng.integers(2))
    if op == "GRU" and rng.random() < 0.6:
        attributes["linear_before_reset"] = int(rng.integers(2))
    if rng.random() < 0.3:
        bounded = ["Sigmoid", "Tanh", "HardSigmoid", "Softsign"]
        attributes["activations"] = [str(a) for a in rng.choice(bounded, D * n)]
    elif rng.random() < 0.3:
        attributes["activations"] = (
            list(
                {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Relu"]}[
                    op
                ]
            )
            * D
        )
    everything = ["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"]
    outputs = [name for name in everything if rng.random() < 0.8] or ["Y"]
    return (
        op,
        attributes,
        {k: a.astype(a.dtype if k == "sequence_lens" else np.float32) for k, a in inputs.items()},
        outputs,
    )


def test_random_nodes(tmp_path: Path) -> None:
    """What is taken agrees with ONNX Runtime, and what is refused says why."""
    taken = 0
    for seed in range(MODELS):
        op, attributes, inputs, outputs = random_node(seed)
        model = one_node(op, attributes, inputs, outputs)
        onnx.checker.check_model(model)
        fed = {name: a for name, a in inputs.items() if name not in CONSTANT}
        try:
            got = whole(model, tmp_path).run(fed)
        except ValueError as error:
            assert "this version" in str(error)
            continue
        taken += 1
        want = run_onnxruntime(model, fed)
        try:
            compare(got, want, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {op} {attributes} {list(inputs)}") from error
    assert taken >= MODELS // 3


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_layout_1(direction: str, tmp_path: Path) -> None:
    """ONNX Runtime has no layout 1: its layout 0, transposed."""
    rng = np.random.default_rng(7)
    D = 2 if direction == "bidirectional" else 1
    shapes = {"X": (5, 3, 4), "W": (D, 28, 4), "R": (D, 28, 7), "B": (D, 56)}
    shapes |= {"initial_h": (D, 3, 7), "initial_c": (D, 3, 7)}
    inputs = {k: (rng.standard_normal(s) / 2).astype(np.float32) for k, s in shapes.items()}
    inputs["sequence_lens"] = np.array([5, 0, 2], np.int32)
    outputs = ["Y", "Y_h", "Y_c"]
    attributes = {"hidden_size": 7, "direction": direction}
    fed = {k: a for k, a in inputs.items() if k not in CONSTANT}
    want = run_onnxruntime(one_node("LSTM", attributes, inputs, outputs), fed)
    turned = {k: a if k == "sequence_lens" else a.swapaxes(0, 1) for k, a in fed.items()}
    model = whole(one_node("LSTM", attributes | {"layout": 1}, inputs, outputs, 22), tmp_path)
    got = model.run({k: np.ascontiguousarray(a) for k, a in turned.items()})
    want = {
        "Y": want["Y"].transpose(2, 0, 1, 3),
        "Y_h": want["Y_h"].swapaxes(0, 1),
        "Y_c": want["Y_c"].swapaxes(0, 1),
    }
    compare(got, want, TOLERANCE)


def lstm_weights(I: int, H: int, D: int = 1, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"W": (D, 4 * H, I), "R": (D, 4 * H, H), "B": (D, 8 * H)}
    return {k: (rng.standard_normal(s) / 2).astype(np.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("opset", [1, 6, 7, 13, 14, 21, 22])
def test_every_version_of_the_operator_set(opset: int, tmp_path: Path) -> None:
    """The same node in all of them; ONNX Runtime starts at 7."""
    x = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    weights = lstm_weights(3, 7)
    inputs = {"X": x, **weights}
    outputs = ["Y", "Y_h", "Y_c"]
    want = run_onnxruntime(one_node("LSTM", {"hidden_size": 7}, inputs, outputs), {"X": x})
    got = whole(one_node("LSTM", {"hidden_size": 7}, inputs, outputs, opset), tmp_path).run(
        {"X": x}
    )
    compare(got, want, TOLERANCE)


def test_activation_defaults(tmp_path: Path) -> None:
    """Every activation either agrees with ONNX Runtime or is refused by its name."""
    x = np.random.default_rng(1).standard_normal((3, 2, 3)).astype(np.float32)
    for name, (ours, _) in ACTIVATIONS.items():
        numbers = {"Affine": (0.7, 0.1), "ScaledTanh": (0.8, 0.6)}.get(name)
        attributes: dict[str, Any] = {"hidden_size": 7, "activations": ["Sigmoid", name, "Tanh"]}
        if numbers:
            attributes |= {"activation_alpha": numbers[:1], "activation_beta": numbers[1:]}
        model = one_node("LSTM", attributes, {"X": x, **lstm_weights(3, 7)}, ["Y", "Y_c"])
        try:
            got = whole(model, tmp_path).run({"X": x})
        except ValueError as error:
            assert ours in str(error)
            continue
        compare(got, run_onnxruntime(model, {"X": x}), TOLERANCE)


def test_float16(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 2, 3)).astype(np.float16)
    weights = {k: a.astype(np.float16) for k, a in lstm_weights(3, 7).items()}
    got = whole(one_node("LSTM", {"hidden_size": 7}, {"X": x, **weights}, ["Y"]), tmp_path).run(
        {"X": x}
    )
    wide = {k: a.astype(np.float32) for k, a in weights.items()} | {"X": x.astype(np.float32)}
    want = run_onnxruntime(one_node("LSTM", {"hidden_size": 7}, wide, ["Y"]), {"X": wide["X"]})
    assert got["Y"].dtype == np.float16
    assert rel(got["Y"], want["Y"]) < 1e-3  # half a unit of float16


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


def test_quantized(tmp_path: Path) -> None:
    """com.microsoft.DynamicQuantizeLSTM: ours with the weights that its integers stand for.

    ONNX Runtime quantises x and h as well, at every step, hence the wide second tolerance.
    """
    rng = np.random.default_rng(5)
    T, B, I, H, D = 5, 3, 8, 16, 2
    scale = rng.uniform(0.01, 0.02, (2, D, 4 * H)).astype(np.float32)
    zero = np.zeros((2, D, 4 * H), np.int8)
    W = rng.integers(-100, 100, (D, I, 4 * H)).astype(np.int8)
    R = rng.integers(-30, 30, (D, H, 4 * H)).astype(np.int8)
    bias = rng.standard_normal((D, 8 * H)).astype(np.float32)
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["X", "W", "R", "B", "", "", "", "", "ws", "wz", "rs", "rz"],
        ["Y"],
        domain="com.microsoft",
        hidden_size=H,
        direction="bidirectional",
    )
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    weights = {
        "W": W,
        "R": R,
        "B": bias,
        "ws": scale[0],
        "wz": zero[0],
        "rs": scale[1],
        "rz": zero[1],
    }
    model = make_model([node], {"X": x}, ["Y"], weights, domains={"com.microsoft": 1})
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    )
    got = whole(model, tmp_path).run({"X": x})["Y"]
    plain = {
        "X": x,
        "W": (W * scale[0][:, None]).swapaxes(1, 2),
        "R": (R * scale[1][:, None]).swapaxes(1, 2),
        "B": bias,
    }
    attributes = {"hidden_size": H, "direction": "bidirectional"}
    want = run_onnxruntime(one_node("LSTM", attributes, plain, ["Y"]), {"X": x})["Y"]
    assert rel(got, want) < TOLERANCE
    assert rel(got, run_onnxruntime(model, {"X": x})["Y"]) < 0.1


# --- stacks


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


def test_initial_states_of_the_file_are_not_lost(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, h = (rng.standard_normal(s).astype(np.float32) for s in ((4, 2, 5), (1, 2, 7)))
    node = helper.make_node("LSTM", ["X", "W", "R", "B", "", "h"], ["Y"], hidden_size=7, name="n")
    model = typed(make_model([node], {"X": x}, ["Y"], lstm_weights(5, 7) | {"h": h}))
    graph = load(saved(model, tmp_path))
    assert isinstance(graph, OnnxModel)
    compare(graph(X=x), run_onnxruntime(model, {"X": x}), TOLERANCE)
    with pytest.raises(ValueError, match="its initial_h is a constant of the file"):
        load(tmp_path / "model.onnx", "n")


# --- whole graphs


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


def node_case(op: str, arrays: list[Array], constants: list[Array], **attributes: Any) -> Any:
    names = [f"x{k}" for k in range(len(arrays))]
    weights = {f"k{k}": a for k, a in enumerate(constants)}
    node = helper.make_node(op, names + list(weights), ["y"], **attributes)
    return dict(zip(names, arrays, strict=True)), weights, node


def floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def bytes_(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


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
        "ConvInteger", bytes_(1, 600, 9, 7), bytes_(4, 600, 3, 2).view(np.int8), pads=[1, 0, 2, 1]
    ),
    "matmul integer": integer_case("MatMulInteger", bytes_(4, 600), bytes_(600, 5).view(np.int8)),
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
    "slice": node_case("Slice", [floats(4, 5, 6)], [ints(1, -4), ints(100, -1), ints(2, 0)]),
    "slice backwards": node_case(
        "Slice", [floats(4, 5)], [ints(-1), ints(-100), ints(1), ints(-2)]
    ),
    "slice negative axis": node_case("Slice", [floats(4, 5)], [ints(1), ints(3), ints(-1)]),
    "gather": node_case("Gather", [floats(4, 5)], [ints(3, 0, -1)], axis=1),
    "gather rows": node_case("Gather", [floats(4, 5)], [np.array(-2)]),
    "squeeze": node_case("Squeeze", [floats(1, 4, 1)], [ints(-1)]),
    "squeeze all": node_case("Squeeze", [floats(1, 4, 1)], []),
    "unsqueeze": node_case("Unsqueeze", [floats(4, 5)], [ints(3, 0)]),
    "unsqueeze last": node_case("Unsqueeze", [floats(4, 5)], [ints(-1)]),
    "unsqueeze negative": node_case("Unsqueeze", [floats(4, 5)], [ints(-2, 0)]),
    "reshape": node_case("Reshape", [floats(4, 5, 6)], [ints(0, -1)]),
    "reshape whole": node_case("Reshape", [floats(4, 6)], [ints(3, 8)]),
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
    monkeypatch.setattr("cylstm.convert.onnx_ops.COLUMNS", 100)
    inputs, weights, node = NODES["conv 2d"]
    model = typed(make_model([node], inputs, ["y"], weights))
    compare(whole(model, tmp_path).run(inputs), run_onnxruntime(model, inputs), 2e-6)


@pytest.mark.parametrize("name", [n for n in NODES if n.startswith(("conv", "gemm", "matmul"))])
def test_large_products_are_our_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half of `test_other_operators`: products too large for BLAS."""
    monkeypatch.setattr("cylstm.convert.onnx_ops.SMALL", 0)
    test_other_operators(name, tmp_path)


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
