"""What `to_onnx` writes, checked by the onnx package, run by ONNX Runtime, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import cylstm
from cylstm import load, to_onnx
from helpers import assert_close, make_problem, rel

TOLERANCE = 1e-5


def run(path: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


@pytest.mark.parametrize("with_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("lengths", [None, [5, 1, 3]], ids=["full", "lengths"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time", "batch"])
@pytest.mark.parametrize(("bidirectional", "bias"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_lstm(
    num_layers: int,
    bidirectional: bool,
    bias: bool,
    batch_first: bool,
    lengths: list[int] | None,
    with_states: bool,
    tmp_path: Path,
) -> None:
    p = make_problem(
        0,
        5,
        3,
        lengths,
        "float32",
        input_size=4,
        hidden_size=7,
        num_layers=num_layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
    )
    lstm, path = p.lstm(), tmp_path / "lstm.onnx"
    to_onnx(lstm, path, states=with_states, lengths=lengths is not None)
    inputs = {"x": p.x}
    if with_states:
        inputs |= {"h_0": p.h_0, "c_0": p.c_0}
    if lengths is not None:
        inputs["lengths"] = np.array(lengths, np.int32)
    want = run(path, inputs)
    y, (h_n, c_n) = lstm(p.x, p.states if with_states else None, lengths=lengths)
    got = {"y": y, "h_n": h_n, "c_n": c_n}
    assert_close({name: rel(got[name], a) for name, a in want.items()}, TOLERANCE)
    again = load(path)
    assert isinstance(again, cylstm.LSTM)
    assert again._config() == lstm._config()
    for name, value in lstm.state_dict().items():
        assert np.array_equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("lengths", [None, [5, 1, 3]], ids=["full", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize(
    ("cell", "more"),
    [("GRU", {}), ("RNN", {}), ("RNN", {"nonlinearity": "relu"})],
    ids=["GRU", "RNN", "relu"],
)
def test_gru_and_rnn(
    cell: str,
    more: dict[str, Any],
    bidirectional: bool,
    lengths: list[int] | None,
    tmp_path: Path,
) -> None:
    module = getattr(cylstm, cell)(4, 7, 2, bidirectional=bidirectional, seed=1, **more)
    path = tmp_path / "model.onnx"
    cylstm.to_onnx(module, path, lengths=lengths is not None)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    h_0 = rng.standard_normal((2 + 2 * bidirectional, 3, 7)).astype(np.float32)
    inputs = {"x": x, "h_0": h_0}
    if lengths is not None:
        inputs["lengths"] = np.array(lengths, np.int32)
    want = run(path, inputs)
    y, h_n = module(x, h_0, lengths=lengths)
    assert_close({"y": rel(y, want["y"]), "h_n": rel(h_n, want["h_n"])}, TOLERANCE)
    again = load(path)
    assert type(again) is type(module) and again._config() == module._config()
    for name, value in module.state_dict().items():
        assert np.array_equal(again.state_dict()[name], value), name


LEAKY = ("leaky_relu", 0.1)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "reverse": ("LSTM", dict(reverse=True)),
    "reverse GRU": ("GRU", dict(reverse=True, clip=0.4)),
    "reverse RNN": ("RNN", dict(reverse=True, num_layers=2)),
    "clip": ("LSTM", dict(clip=0.3, bidirectional=True)),
    "peephole": ("LSTM", dict(peephole=True, num_layers=2)),
    "peephole, no bias": ("LSTM", dict(peephole=True, bias=False, bidirectional=True)),
    "coupled": ("LSTM", dict(coupled="f=1-i", bidirectional=True)),
    "coupled, peephole": ("LSTM", dict(coupled="f=1-i", peephole=True, clip=0.9)),
    "reset before": ("GRU", dict(reset_after=False, bidirectional=True)),
    "activations": (
        "LSTM",
        dict(activations=(("hard_sigmoid_keras2", 0.3, 0.4), "tanh", "softsign")),
    ),
    "activations, both": ("LSTM", dict(activations=("sigmoid", LEAKY, "tanh"), bidirectional=True)),
    "activations of each": (
        "GRU",
        dict(
            activations=("sigmoid", LEAKY, ("hard_sigmoid_keras2", 0.3, 0.4), ("leaky_relu", 0.2)),
            bidirectional=True,
        ),
    ),
    "activation": ("RNN", dict(activations=(("scaled_tanh", 0.8, 0.7),))),
}


@pytest.mark.parametrize("with_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("lengths", [None, [5, 1, 3]], ids=["full", "lengths"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(
    variant: str, lengths: list[int] | None, with_states: bool, tmp_path: Path
) -> None:
    cell, options = VARIANTS[variant]
    rng = np.random.default_rng(0)
    module = getattr(cylstm, cell)(4, 7, **options)
    state = {
        name: rng.standard_normal(a.shape).astype("f4") for name, a in module.state_dict().items()
    }
    module.load_state_dict(state)
    path = tmp_path / "variant.onnx"
    to_onnx(module, path, states=with_states, lengths=lengths is not None)
    x = rng.standard_normal((5, 3, 4)).astype(np.float32)
    wide = (module.num_layers * (1 + module.bidirectional), 3, 7)
    states = [rng.standard_normal(wide).astype(np.float32) for _ in range(1 + (cell == "LSTM"))]
    inputs = {"x": x}
    if with_states:
        inputs |= dict(zip(("h_0", "c_0"), states))
    if lengths is not None:
        inputs["lengths"] = np.array(lengths, np.int32)
    want = run(path, inputs)
    given: Any = None
    if with_states:
        given = tuple(states) if cell == "LSTM" else states[0]
    y, finals = module(x, given, lengths=lengths)
    got = dict(zip(want, [y, *(finals if cell == "LSTM" else [finals])], strict=True))
    assert_close({name: rel(got[name], a) for name, a in want.items()}, TOLERANCE)
    again: Any = load(path)
    assert type(again) is type(module)
    assert again(x, given, lengths=lengths)[0].tobytes() == y.tobytes()


@pytest.mark.parametrize("opset", [14, 18, 22])
def test_versions(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "lstm.onnx"
    to_onnx(cylstm.LSTM(3, 7), path, opset=opset)
    assert onnx.load(path).opset_import[0].version == opset
    assert isinstance(load(path), cylstm.LSTM)


def test_float64_is_written_and_read(tmp_path: Path) -> None:
    lstm = cylstm.LSTM(3, 7, dtype="float64")
    to_onnx(lstm, tmp_path / "lstm.onnx")
    again: Any = load(tmp_path / "lstm.onnx")
    assert again.dtype == np.float64
    for name, value in lstm.state_dict().items():
        assert np.array_equal(again.state_dict()[name], value), name


def test_what_onnx_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ONNX has no LSTM with proj_size 3"):
        to_onnx(cylstm.LSTM(3, 7, proj_size=3), tmp_path / "lstm.onnx")
    with pytest.raises(TypeError, match="module is a Linear"):
        to_onnx(cylstm.Linear(3, 7), tmp_path / "linear.onnx")
    for opset in (9, 99):
        with pytest.raises(ValueError, match=f"opset is {opset}, expected 14 to "):
            to_onnx(cylstm.LSTM(3, 7), tmp_path / "lstm.onnx", opset=opset)
    with pytest.raises(ValueError, match="ONNX has no LSTM with coupled 'i=1-f'"):
        to_onnx(cylstm.LSTM(3, 7, coupled="i=1-f"), tmp_path / "lstm.onnx")
    assert not list(tmp_path.iterdir())
