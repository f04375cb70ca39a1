"""ONNX files of one recurrent node, run by ONNX Runtime and by cylstm."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from conformance import CONSTANT, one_node
from cylstm import load
from cylstm.convert.onnx_recurrent import ACTIVATIONS
from helpers import Array, rel
from onnx_models import (
    TOLERANCE,
    compare,
    lstm_weights,
    make_model,
    run_onnxruntime,
    saved,
    whole,
)


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
    swapped = {k: a if k == "sequence_lens" else a.swapaxes(0, 1) for k, a in fed.items()}
    model = whole(one_node("LSTM", attributes | {"layout": 1}, inputs, outputs, 22), tmp_path)
    got = model.run({k: np.ascontiguousarray(a) for k, a in swapped.items()})
    want = {
        "Y": want["Y"].transpose(2, 0, 1, 3),
        "Y_h": want["Y_h"].swapaxes(0, 1),
        "Y_c": want["Y_c"].swapaxes(0, 1),
    }
    compare(got, want, TOLERANCE)


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


def quantized(W: Array, R: Array, zero: int, per_row: bool = True) -> tuple[Any, Any, Array]:
    """A DynamicQuantizeLSTM of both directions, an LSTM of the floats it stands for, and x."""
    rng = np.random.default_rng(5)
    (D, I, rows), H = W.shape, R.shape[1]
    scales = rng.uniform(0.01, 0.02, (2, D, rows if per_row else 1)).astype(np.float32)
    bias = rng.standard_normal((D, 8 * H)).astype(np.float32)
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["X", "W", "R", "B", "", "", "", "", "ws", "wz", "rs", "rz"],
        ["Y"],
        domain="com.microsoft",
        hidden_size=H,
        direction="bidirectional",
    )
    x = rng.standard_normal((5, 3, I)).astype(np.float32)
    weights = {"W": W, "R": R, "B": bias}
    for name, scale, codes in zip("wr", scales, (W, R)):
        scale = scale if per_row else scale[:, 0]
        weights |= {f"{name}s": scale, f"{name}z": np.full(scale.shape, zero, codes.dtype)}
    model = make_model([node], {"X": x}, ["Y"], weights, domains={"com.microsoft": 1})
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    )
    floats = [
        ((codes.astype(np.float32) - zero) * scale[:, None]).swapaxes(1, 2)
        for codes, scale in zip((W, R), scales)
    ]
    plain = {"X": x, "W": floats[0], "R": floats[1], "B": bias}
    attributes = {"hidden_size": H, "direction": "bidirectional"}
    return model, one_node("LSTM", attributes, plain, ["Y"]), x


@pytest.mark.parametrize("per_row", [True, False], ids=["rows", "matrices"])
@pytest.mark.parametrize(
    ("dtype", "zero", "low", "high", "narrow"),
    [
        ("int8", 0, -63, 64, True),
        ("int8", 3, -60, 67, True),
        ("uint8", 128, 65, 192, True),
        ("int8", 0, -128, 64, False),
        ("uint8", 3, 0, 140, False),
    ],
)
def test_quantized(
    dtype: str, zero: int, low: int, high: int, narrow: bool, per_row: bool, tmp_path: Path
) -> None:
    """com.microsoft.DynamicQuantizeLSTM: bytes that mean what ours do stay, others become floats.

    Either way the weights are those that it stands for. ONNX Runtime quantises x and h as well, at
    every step and all rows together, hence the wide tolerance; and where a CPU has no product of
    bytes it adds pairs in 16 bits, hence weights below 64 where it is asked.
    """
    rng = np.random.default_rng(4)
    W, R = (rng.integers(low, high, (2, n, 64)).astype(dtype) for n in (8, 16))
    W[0, 0, 0], R = low, (R.astype(int) - zero) // 2 + zero
    model, plain, x = quantized(W, R.astype(dtype), zero, per_row)
    want = flat(run_onnxruntime(plain, {"X": x})["Y"])
    path = saved(model, tmp_path)
    lstm: Any = load(path)
    state, y = lstm.state_dict(), lstm(x)[0]
    assert (state["weight_ih_l0"].dtype == np.int8) == narrow == ("weights='int8'" in repr(lstm))
    assert rel(y, want) < (0.05 if narrow else TOLERANCE)
    assert np.array_equal(flat(whole(model, tmp_path).run({"X": x})["Y"]), y)
    if not narrow:
        return
    wide: Any = load(path, dequantize=True)
    assert rel(wide(x)[0], want) < TOLERANCE
    for name, array in wide.state_dict().items():
        if array.ndim == 2:
            scale = state[name.replace("_l0", "_scale_l0")]
            np.testing.assert_array_equal(state[name] * scale[:, None], array)
    if zero != 3:  # which ONNX Runtime refuses
        assert rel(y, flat(run_onnxruntime(model, {"X": x})["Y"])) < 0.1


def flat(Y: Array) -> Array:
    """(T, D, B, H) as (T, B, D*H)."""
    return Y.swapaxes(1, 2).reshape(Y.shape[0], Y.shape[2], -1)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_one_step_is_a_step_of_a_layer(op: str, tmp_path: Path) -> None:
    """A graph that is called step by step keeps its states outside, in any number of threads."""
    rng = np.random.default_rng(2)
    G, H, I = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 7, 5
    shapes = {"X": (1, 1, I), "W": (1, G * H, I), "R": (1, G * H, H), "B": (1, 2 * G * H)}
    shapes |= {"initial_h": (1, 1, H)} | ({"initial_c": (1, 1, H)} if op == "LSTM" else {})
    inputs = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if op == "LSTM" else 2]
    attributes = {"hidden_size": H} | ({"linear_before_reset": 1} if op == "GRU" else {})
    model = one_node(op, attributes, inputs, outputs)
    graph = whole(model, tmp_path)
    (layer,) = graph.layers.values()

    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            fed = {k: rng.standard_normal(shapes[k]).astype(np.float32) for k in graph_inputs}
            got = graph.run(fed)
            states = tuple(fed[k] for k in graph_inputs[1:])
            y, after = layer(fed["X"], states if op == "LSTM" else states[0])  # type: ignore[operator]
            assert np.array_equal(got["Y"][:, 0], y)
            for name, state in zip(outputs[1:], after if op == "LSTM" else (after,)):
                assert np.array_equal(got[name], state)

    graph_inputs = [port.name for port in graph.inputs]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(8)))
    fed = {k: inputs[k] for k in graph_inputs}
    compare(graph.run(fed), run_onnxruntime(model, fed), TOLERANCE)
