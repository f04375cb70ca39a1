"""The command on ONNX files: graphs of many inputs, and stacks with states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import cylstm
from cylstm.cli import main
from onnx_models import lstm_weights, make_model, saved, typed


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y = relu(LSTM(x)) with its state as an input and an output."""
    path = tmp_path / "graph.onnx"
    cylstm.to_onnx(cylstm.LSTM(3, 7, seed=1), path)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["T", "B", 7])
    )
    onnx.save(model, path)
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_check(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "check", str(graph), "--against", "onnxruntime", "--batch", "3")
    assert list(found["differences"]) == ["z", "h_n", "c_n"]
    assert found["passed"]
    shape = ("--shape", "x=5,2,3", "--shape", "h_0=1,2,7", "--shape", "c_0=1,2,7")
    assert told(capsys, "check", str(graph), "--against", "onnxruntime", *shape)["passed"]


def test_check_finds_a_difference(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        cylstm.cli.PEERS,
        "onnxruntime",
        lambda given, model: lambda x: [y + 1e-3 for y in model.run(x).values()],
    )
    assert main(["check", str(graph), "--against", "onnxruntime"]) == 1


@pytest.mark.parametrize("lengths", [False, True], ids=["states", "lengths"])
def test_check_of_a_stack_with_states(
    lengths: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stack.onnx"
    cylstm.to_onnx(cylstm.LSTM(3, 7, 2, batch_first=True), path, lengths=lengths)
    found = told(
        capsys, "check", str(path), "--against", "onnxruntime", "--batch", "3", "--steps", "5"
    )
    assert found["passed"]


def test_run(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    inputs = {"x": (5, 2, 3), "h_0": (1, 2, 7), "c_0": (1, 2, 7)}
    arrays: dict[str, Any] = {name: rng.standard_normal(shape) for name, shape in inputs.items()}
    np.savez(tmp_path / "in.npz", **arrays)  # float64: converted
    out = tmp_path / "out.npz"
    found = told(capsys, "run", str(graph), str(tmp_path / "in.npz"), "-o", str(out))
    assert found["shapes"] == {"z": [5, 2, 7], "h_n": [1, 2, 7], "c_n": [1, 2, 7]}
    model: Any = cylstm.load(graph)
    want = model.run({name: a.astype(np.float32) for name, a in arrays.items()})
    with np.load(out) as got:
        assert all(np.array_equal(got[name], want[name]) for name in want)


def test_bench(graph: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "bench", str(graph), "--seconds", "0.01")
    assert set(found["seconds"]) == {"call", "call, onnxruntime"}


def test_run_of_one_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A graph with one input and one output takes and gives a plain array."""
    node = helper.make_node("Relu", ["x"], ["y"])
    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3])] for n in "xy"]
    path, x = tmp_path / "relu.onnx", np.random.default_rng(0).standard_normal((5, 3))
    onnx.save(helper.make_model(helper.make_graph([node], "relu", *ports), ir_version=8), path)
    np.save(tmp_path / "x.npy", x)
    for end, read in ((".npy", np.load), (".csv", lambda name: np.loadtxt(name, delimiter=","))):
        out = tmp_path / f"y{end}"
        told(capsys, "run", str(path), str(tmp_path / "x.npy"), "-o", str(out))
        np.testing.assert_allclose(read(out), np.maximum(x, 0), rtol=1e-6)
    inputs = ("--input", str(tmp_path / "x.npy"))
    found = told(capsys, "check", str(path), "--against", "onnxruntime", *inputs)
    assert found["passed"] and list(found["differences"]) == ["y", "y of random input"]


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
def test_check_of_a_plain_operator(both: bool, tmp_path: Path) -> None:
    """Whose Y has an axis of directions, which our layer's y has not."""
    weights = lstm_weights(3, 7, 1 + both)
    direction = {"direction": "bidirectional"} if both else {}
    node = helper.make_node("LSTM", ["x", "W", "R", "B"], ["Y"], hidden_size=7, **direction)
    model = typed(make_model([node], {"x": np.zeros((4, 2, 3), np.float32)}, ["Y"], weights))
    path = str(saved(model, tmp_path))
    assert main(["check", path, "--against", "onnxruntime", "--batch", "3", "--steps", "5"]) == 0


@pytest.mark.parametrize("end", ["onnx", "pt"])
def test_convert(end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, path = cylstm.LSTM(3, 7, 2, seed=1), str(tmp_path / "m.safetensors")
    cylstm.save(module, path)
    told(capsys, "convert", path, str(tmp_path / f"m.{end}"))
    state = module.state_dict()
    if end == "pt":
        found = {n: a.numpy() for n, a in torch.load(tmp_path / "m.pt").items()}
        assert list(found) == list(state) and all(np.array_equal(found[n], state[n]) for n in state)
    again: Any = cylstm.load(tmp_path / f"m.{end}")
    assert all(np.array_equal(a, state[n]) for n, a in again.state_dict().items())
    x = np.ones((5, 2, 3), np.float32)
    assert again(x)[0].tobytes() == module(x)[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "in.npy", "-o", "y.npz"], "expected .npz, with x, h_0, c_0"),
        (["run", "in.npz", "-o", "y.npy"], "expected .npz, for z, h_n, c_n"),
        (["run", "short.npz", "-o", "y.npz"], "input 'h_0' is missing"),
        (["check", "--against", "onnxruntime", "--shape", "x=5,2,4"], "x has shape"),
        (["check", "--against", "onnxruntime", "--shape", "q=5"], "'q', expected one of x, h_0"),
        (
            ["check", "--against", "onnxruntime", "--inside", "Y_0"],
            "onnxruntime runs the whole file, without --inside",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    graph: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(graph.parent)
    x, state = np.zeros((5, 2, 3)), np.zeros((1, 2, 7))
    np.savez("in.npz", x=x, h_0=state, c_0=state)
    np.savez("short.npz", x=x)
    np.save("in.npy", x)
    assert main([arguments[0], graph.name, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
