"""quantize and compare of whole ONNX graphs, against ONNX Runtime on rounded weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import cylstm
import cylstm.torch as cylstm_torch
from cylstm.convert.onnx_graph import OnnxModel
from helpers import Array, rel, same_bits
from onnx_models import compare, floats, lstm_weights, make_model, run_onnxruntime, typed, whole

I, H = 6, 9


def rounded(array: Array) -> Array:
    """To bfloat16 and back, by PyTorch."""
    return np.asarray(torch.from_numpy(array.copy()).to(torch.bfloat16).float().numpy())


def graph(change: Any = lambda a: a) -> Any:
    """A layer both ways, an If whose branches hold a layer each, and a product behind them."""
    weights = {f"first {k}": a for k, a in lstm_weights(I, H, 2).items()}
    for n, branch in enumerate(("then", "else")):
        weights |= {f"{branch} {k}": a for k, a in lstm_weights(2 * H, H, seed=n + 1).items()}
    weights["out"] = floats(H, 2)
    given = {k: a if k[-1] == "B" or k == "out" else change(a) for k, a in weights.items()}

    def layer(name: str, x: str, y: str, direction: str) -> list[Any]:
        inputs = [x, *(f"{name} {k}" for k in "WRB")]
        more = {"hidden_size": H, "direction": direction}
        return [
            helper.make_node("LSTM", inputs, [f"{name} Y"], name=name, **more),
            helper.make_node("Transpose", [f"{name} Y"], [f"{name} T"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"{name} T", "flat"], [y]),
        ]

    branches = {
        f"{name}_branch": helper.make_graph(
            layer(name, "h", f"{name} y", "reverse" if name == "else" else "forward"),
            name,
            [],
            [helper.make_tensor_value_info(f"{name} y", TensorProto.FLOAT, [None] * 3)],
        )
        for name in ("then", "else")
    }
    nodes = [
        *layer("first", "x", "h", "bidirectional"),
        helper.make_node("If", ["which"], ["y"], name="if", **branches),
        helper.make_node("MatMul", ["y", "out"], ["z"]),
    ]
    inputs = {"x": floats(5, 3, I), "which": np.array(True)}
    model = make_model(nodes, inputs, ["z", "h"], given | {"flat": np.array([0, 0, -1])})
    return typed(model)


@pytest.mark.parametrize("which", [True, False])
def test_layers_of_a_graph_become_narrow(which: bool, tmp_path: Path) -> None:
    model = whole(graph(), tmp_path)
    given = {"x": floats(5, 3, I), "which": np.array(which)}
    before = model.run(given)
    want = run_onnxruntime(graph(rounded), given)
    compare(cylstm.quantize(model, "bfloat16").run(given), want, 1e-5)
    small = cylstm.quantize(model)
    got = small.run(given)
    errors = {name: rel(got[name], a) for name, a in before.items()}
    assert all(1e-6 < error < 0.05 for error in errors.values()), errors
    again = model.run(given)  # the original is as it was
    assert all(same_bits(again[name], a) for name, a in before.items())
    first = small.layers["first"]
    assert isinstance(first, cylstm.LSTM)
    assert same_bits(first(given["x"])[0], got["h"])


def test_what_it_is(tmp_path: Path) -> None:
    model = whole(graph(), tmp_path)
    small = cylstm.quantize(model, "int8")
    assert isinstance(small, OnnxModel) and list(small.layers) == list(model.layers)
    assert all(layer._format == "int8" for layer in small.layers.values())
    assert repr(small).endswith(", weights: int8)") and "weights" not in repr(model)
    for use in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            use(small)
    with pytest.raises(ValueError, match="first: LSTM has weights of int8 already"):
        cylstm.quantize(small)
    with pytest.raises(ValueError, match=r"else: weight_hh_l0\[0, 1\] is inf"):
        cylstm.quantize(whole(broken(), tmp_path))
    plain = make_model([helper.make_node("Neg", ["x"], ["y"])], {"x": floats(2)}, ["y"])
    with pytest.raises(ValueError, match="OnnxModel has neither a recurrent layer nor a Linear"):
        cylstm.quantize(whole(plain, tmp_path))


def broken() -> Any:
    model = graph()
    for tensor in model.graph.initializer:
        if tensor.name == "else R":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[0, 0, 1] = np.inf
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def test_a_step_of_a_stream(tmp_path: Path) -> None:
    """The short way that a graph takes with a state and one step is narrow too."""
    weights = lstm_weights(I, H)
    node = helper.make_node("LSTM", ["x", *"WRB", "", "h", "c"], ["", "hn", "cn"], hidden_size=H)
    given = {"x": floats(1, 1, I), "h": floats(1, 1, H), "c": floats(1, 1, H) / 2}
    model = whole(make_model([node], given, ["hn", "cn"], weights), tmp_path)
    by = {k: rounded(a) if k != "B" else a for k, a in weights.items()}
    want = run_onnxruntime(typed(make_model([node], given, ["hn", "cn"], by)), given)
    compare(cylstm.quantize(model, "bfloat16").run(given), want, 1e-5)


def test_compare_of_graphs(tmp_path: Path) -> None:
    model = whole(graph(), tmp_path)
    small = cylstm.quantize(model)
    given = {"x": floats(5, 3, I), "which": np.array(True)}
    for output, name in ((None, "z"), ("h", "h")):
        error = small.run(given)[name].astype(np.float64) - model.run(given)[name]
        found = cylstm.compare(model, small, given, output=output)
        assert found.largest == np.abs(error).max() and found.name == "int8"
        assert rel(found.by_step, np.sqrt(np.square(error).mean(axis=(1, 2)))) < 1e-12
    with pytest.raises(ValueError, match="output is 'y', expected one of z, h"):
        cylstm.compare(model, small, given, output="y")
    with pytest.raises(ValueError, match="lengths was given for an OnnxModel, expected None"):
        cylstm.compare(model, small, given, [5, 5, 5])
    with pytest.raises(ValueError, match="output was given for an LSTM, expected None"):
        cylstm.compare(model.layers["first"], small.layers["first"], given["x"], output="h")


def test_torch_modules_are_converted_first() -> None:
    torch_lstm = torch.nn.LSTM(I, H)
    accelerated = cylstm_torch.LSTM(I, H)
    for module in (torch_lstm, accelerated, torch.nn.Sequential(torch_lstm)):
        with pytest.raises(TypeError, match=r"of torch, .*: quantize cylstm.from_torch\(module\)"):
            cylstm.quantize(module)
    small = cylstm.quantize(cylstm.from_torch(torch_lstm))
    x = floats(5, 3, I)
    want = torch_lstm(torch.from_numpy(x))[0].detach().numpy()
    assert 0 < rel(small(x)[0], want) < 0.05


def test_compare_of_chains() -> None:
    chain = cylstm.Sequential(
        [("lstm", cylstm.LSTM(I, H, batch_first=True, seed=0)), ("head", cylstm.Linear(H, 2))]
    )
    small, x = cylstm.quantize(chain, "bfloat16"), floats(4, 5, I)
    error = np.asarray(small(x), np.float64) - np.asarray(chain(x))
    found = cylstm.compare(chain, small, x)
    assert found.name == "bfloat16" and found.largest == np.abs(error).max() > 0
    with pytest.raises(ValueError, match="neither a recurrent layer nor a Linear to quantize"):
        cylstm.quantize(cylstm.Sequential([cylstm.steps.Activation("tanh")]))
