"""Cases with literal numbers that other projects test their LSTMs by.

They are not part of this repository. CYLSTM_CASES names a folder that holds them, with a
`load_cases.py` whose functions `onnx_node`, `ort`, `ort_training` and `keras` yield them as dicts
of arrays. What an LSTM is not (peepholes, clipping, other activations) is left out here.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import Array

if "CYLSTM_CASES" not in os.environ:
    pytest.skip("CYLSTM_CASES names no folder of cases: NOT RUN", allow_module_level=True)


def load_cases() -> Any:
    path = Path(os.environ["CYLSTM_CASES"]) / "load_cases.py"
    spec = importlib.util.spec_from_file_location("load_cases", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = load_cases()
Case = dict[str, Any]


# ---------------------------------------------------------------------------------------------
# ONNX: gates i, o, f, c
# ---------------------------------------------------------------------------------------------


def from_iofc(a: Array) -> Array:
    """The blocks i, o, f, c of the first axis as i, f, g, o."""
    i, o, f, c = np.split(a, 4)
    return np.concatenate([i, f, c, o])


def is_plain(case: Case) -> bool:
    attributes, inputs = case["attributes"], case["inputs"]
    names = [name.lower() for name in attributes.get("activations", [])]
    return bool(
        not np.any(inputs.get("P", 0))
        and names in ([], ["sigmoid", "tanh", "tanh"], ["sigmoid", "tanh", "tanh"] * 2)
        and not attributes.get("input_forget")
        and attributes.get("clip", np.inf) >= 999  # beyond any number in a case
    )


def onnx_weights(W: Array, R: Array, B: Array | None) -> dict[str, Array]:
    """(D, 4H, I), (D, 4H, H) and (D, 8H) as a state dict."""
    weights = {}
    for d, suffix in enumerate(("", "_reverse")[: len(W)]):
        weights[f"weight_ih_l0{suffix}"] = from_iofc(W[d])
        weights[f"weight_hh_l0{suffix}"] = from_iofc(R[d])
        if B is not None:
            for name, part in zip(("ih", "hh"), np.split(B[d], 2), strict=True):
                weights[f"bias_{name}_l0{suffix}"] = from_iofc(part)
    return weights


def run_onnx(case: Case) -> dict[str, Array]:
    """Y (T, D, B, H), Y_h and Y_c (D, B, H), or these as layout 1 has them."""
    attributes, inputs = case["attributes"], dict(case["inputs"])
    X, H = inputs["X"], attributes["hidden_size"]
    if attributes.get("layout", 0) == 1:
        X = X.swapaxes(0, 1)
    T, B, I = X.shape
    direction = attributes.get("direction", "forward")
    D = 2 if direction == "bidirectional" else 1
    states = tuple(
        inputs.get(name, np.zeros((D, B, H), np.float32)) for name in ("initial_h", "initial_c")
    )
    lengths = inputs.get("sequence_lens")
    weights = onnx_weights(inputs["W"], inputs["R"], inputs.get("B"))
    if direction == "reverse":
        # One direction alone is the second of two, the first of which nobody looks at.
        weights = {
            name: a
            for suffix in ("", "_reverse")
            for name, a in ((f"{name}{suffix}", a) for name, a in weights.items())
        }
        states = tuple(np.concatenate([a, a]) for a in states)
    lstm = cylstm.LSTM(I, H, bias="B" in inputs, bidirectional=direction != "forward")
    lstm.load_state_dict(weights)
    y, (h_n, c_n) = lstm(X, states, lengths)
    Y = y.reshape(T, B, -1, H).transpose(0, 2, 1, 3)
    if direction == "reverse":
        Y, h_n, c_n = Y[:, 1:], h_n[1:], c_n[1:]
    if attributes.get("layout", 0) == 1:
        Y, h_n, c_n = Y.transpose(2, 0, 1, 3), h_n.swapaxes(0, 1), c_n.swapaxes(0, 1)
    return {"Y": Y, "Y_h": h_n, "Y_c": c_n}


def named(cases: Any, name: str) -> list[Any]:
    return [pytest.param(case, id=case[name]) for case in cases]


ONNX_NODE = [case for case in CASES.onnx_node("LSTM") if is_plain(case)]
ORT = [case for case in CASES.ort("LSTM", "success") if is_plain(case)]


@pytest.mark.parametrize("case", named(ONNX_NODE, "npz"))
def test_onnx_node(case: Case) -> None:
    got = run_onnx(case)
    assert case["outputs"]
    for name, want in case["outputs"].items():
        np.testing.assert_allclose(got[name], want, case["rtol"], case["atol"], err_msg=name)


@pytest.mark.parametrize("case", named(ORT, "id"))
def test_onnxruntime(case: Case) -> None:
    got = run_onnx(case)
    assert case["outputs"]
    for name, want in case["outputs"].items():
        np.testing.assert_allclose(got[name], want, 0, case["atol"], err_msg=name)


def test_onnxruntime_training() -> None:
    """Its LSTM that keeps all gates and cells.

    The gradient's case is left out: it starts from gates and cells drawn at random, which no
    forward pass leaves behind.
    """
    forward = next(case for case in CASES.ort_training() if case["op"] == "LSTMTraining")
    x, H = forward["inputs"]["input_tensor"], forward["attributes"]["hidden_size"]
    lstm = cylstm.LSTM(x.shape[2], H)
    names = ("weights", "recurrence_weights", "bias")
    lstm.load_state_dict(onnx_weights(*(forward["inputs"][name] for name in names)))
    tape = lstm.forward(x)
    got = {
        "HAll": tape.y[:, None],
        "CAll": tape.cells[0][:, None],
        "iofc": tape.gates[0][:, :, [0, 3, 1, 2]].reshape(2, 1, 2, 4 * H),
        "final_h": tape.h_n,
        "final_c": tape.c_n,
    }
    for name, want in forward["outputs"].items():
        np.testing.assert_allclose(got[name], want, 0, forward["atol"], err_msg=name)


# ---------------------------------------------------------------------------------------------
# Keras: gates i, f, c, o, kernels (I, 4H), one bias
# ---------------------------------------------------------------------------------------------


def run_keras(case: Case) -> Array:
    """The output of a case's last call."""
    config, weights = case["config"], case["weights"]
    I, H = weights["kernel"].shape[0], config["units"]
    lstm = cylstm.LSTM(I, H, bias=config["use_bias"], batch_first=True)
    state = {"weight_ih_l0": weights["kernel"].T, "weight_hh_l0": weights["recurrent_kernel"].T}
    if config["use_bias"]:
        state |= {"bias_ih_l0": weights["bias"], "bias_hh_l0": np.zeros(4 * H, np.float32)}
    lstm.load_state_dict(state)
    states: Any = None
    for call in case["calls"]:
        x, mask = call["sequence"].astype(np.float32), call["mask"]
        if call["initial_state"] is not None:
            states = tuple(a[None].astype(np.float32) for a in call["initial_state"])
        elif not config["stateful"]:
            states = None
        if config["go_backwards"]:
            x, mask = x[:, ::-1], None if mask is None else mask[:, ::-1]
        lengths = None
        if mask is not None:
            lengths = mask.sum(1)
            assert np.array_equal(mask, np.arange(x.shape[1]) < lengths[:, None])
        y, states = lstm(x, states, lengths)
    if not config["return_sequences"]:
        return np.asarray(states[0][0])
    if lengths is not None and not config["zero_output_for_mask"]:
        for b, n in enumerate(lengths):  # masked steps repeat the last output
            y[b, n:] = y[b, n - 1]
    return np.asarray(y)


KERAS = [
    case
    for case in CASES.keras("LSTM")
    if case["config"]["activation"] == "tanh"
    and case["config"]["recurrent_activation"] == "sigmoid"
]


@pytest.mark.parametrize("case", named(KERAS, "id"))
def test_keras(case: Case) -> None:
    got = run_keras(case)
    for index in case["output_path"]:
        got = got[index]
    np.testing.assert_allclose(got, case["expected"], case["rtol"], case["atol"])


def test_cases_were_found() -> None:
    """An empty folder would pass all of the above."""
    assert len(ONNX_NODE) >= 6 and len(ORT) >= 20 and len(KERAS) >= 15
