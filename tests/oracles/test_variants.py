"""Variants of the cells against ONNX Runtime, and their gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import ISAS, Array, assert_close, numerical_gradient, rel
from make_digests import numbers

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


HARD = ("hard_sigmoid_keras2", 0.25, 0.45)

# Arguments of ours, and what they are in ONNX: attributes of the node.
LSTMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "peephole": (dict(peephole=True), {}),
    "coupled": (dict(coupled="f=1-i"), dict(input_forget=1)),
    "clip": (dict(clip=0.3), dict(clip=0.3)),
    "clip, peephole": (dict(clip=0.4, peephole=True), dict(clip=0.4)),
    "hard": (
        dict(activations=(HARD, "tanh", "tanh")),
        dict(
            activations=["HardSigmoid", "Tanh", "Tanh"],
            activation_alpha=[0.25],
            activation_beta=[0.45],
        ),
    ),
    "all others": (
        dict(activations=("sigmoid", "relu", "softsign"), coupled="f=1-i"),
        dict(activations=["Sigmoid", "Relu", "Softsign"], input_forget=1),
    ),
    "peephole, coupled": (
        dict(peephole=True, coupled="f=1-i", clip=0.9),
        dict(input_forget=1, clip=0.9),
    ),
    "scaled": (
        dict(activations=("sigmoid", ("scaled_tanh", 1.2, 0.7), ("elu", 0.8, 0))),
        dict(
            activations=["Sigmoid", "ScaledTanh", "Elu"],
            activation_alpha=[1.2, 0.8],
            activation_beta=[0.7],
        ),
    ),
    "leaky": (
        dict(activations=(("affine", 0.3, 0.5), ("leaky_relu", 0.2, 0), "softplus")),
        dict(
            activations=["Affine", "LeakyRelu", "Softplus"],
            activation_alpha=[0.3, 0.2],
            activation_beta=[0.5],
        ),
    ),
}
OTHERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GRU": (
        "GRU",
        dict(activations=(HARD, "softsign"), clip=0.7),
        dict(
            activations=["HardSigmoid", "Softsign"],
            activation_alpha=[0.25],
            activation_beta=[0.45],
            clip=0.7,
            linear_before_reset=1,
        ),
    ),
    "GRU, reset before": (
        "GRU",
        dict(activations=("sigmoid", "relu"), reset_after=False),
        dict(activations=["Sigmoid", "Relu"], linear_before_reset=0),
    ),
    "RNN": (
        "RNN",
        dict(activations=(("thresholded_relu", 0.2, 0),)),
        dict(activations=["ThresholdedRelu"], activation_alpha=[0.2]),
    ),
}
# ONNX's order of gates, as places in ours: i, o, f, c; z, r, h. A coupled cell has no f.
ORDERS = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def make(cls: str, isa: str | None = None, I: int = 5, H: int = 17, **options: Any) -> Any:
    cell = getattr(cylstm, cls)
    if isa is not None:
        cell = type(cls, (cell,), {"_isa": isa})
    net = cell(I, H, **options)
    state = {
        name: numbers(name, *a.shape, scale=1.2 / np.sqrt(H) if a.ndim > 1 else 0.4)
        for name, a in net.state_dict().items()
    }
    net.load_state_dict(state, cast=True)
    return net


def onnx_session(op: str, net: Any, states: int, **attributes: Any) -> Any:
    weights, H = net.state_dict(), net.hidden_size

    def gates(name: str) -> Array:
        a = weights[f"{name}_l0"]
        parts = list(a.reshape(-1, H, *a.shape[1:]))
        if getattr(net, "coupled", None):  # i, g, o, and an f that nobody reads
            parts = [parts[0], np.zeros_like(parts[0]), parts[1], parts[2]]
        return np.concatenate([parts[k] for k in ORDERS[op]])[None]

    initial = {"W": gates("weight_ih"), "R": gates("weight_hh")}
    initial["bias"] = np.concatenate([gates("bias_ih"), gates("bias_hh")], axis=1)
    names = ["x", "W", "R", "bias", "", "h_0"]
    if op == "LSTM":
        names += ["c_0"]
        if net.peephole:
            p = weights["weight_peep_l0"].reshape(-1, H)  # i, f, o; ONNX has i, o, f
            if net.coupled:  # i, o
                p = np.stack([p[0], np.full_like(p[0], 9), p[1]])
            initial["P"] = np.concatenate([p[0], p[2], p[1]])[None]
            names += ["P"]
    results = ["y", "h_n", "c_n"][: 1 + states]
    node = onnx.helper.make_node(op, names, results, hidden_size=H, **attributes)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "cell",
        [value(name, 1, None) for name in names if name in ("x", "h_0", "c_0")],
        [value(name, 1, None) for name in results],
        [onnx.numpy_helper.from_array(a, name) for name, a in initial.items()],
    )
    opset = [onnx.helper.make_opsetid("", 14)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", LSTMS)
def test_lstm(variant: str, isa: str) -> None:
    options, attributes = LSTMS[variant]
    net = make("LSTM", isa, **options)
    T, B = 9, 7
    x = numbers("x", T, B, 5, scale=1.5).astype(np.float32)
    h_0, c_0 = (numbers(name, 1, B, 17).astype(np.float32) for name in ("h_0", "c_0"))
    y, (h_n, c_n) = net(x, (h_0, c_0))
    want = onnx_session("LSTM", net, 2, **attributes).run(None, {"x": x, "h_0": h_0, "c_0": c_0})
    found = {"y": rel(y, want[0][:, 0]), "h_n": rel(h_n, want[1]), "c_n": rel(c_n, want[2])}
    assert_close(found, 5e-6)
    stream = net.stream(B)
    stream.state = h_0, c_0
    steps = np.array([stream.step(x_t) for x_t in x])
    assert_close({"stream": rel(steps, y)}, 1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", OTHERS)
def test_gru_and_rnn(variant: str, isa: str) -> None:
    cls, options, attributes = OTHERS[variant]
    net = make(cls, isa, **options)
    x = numbers("x", 9, 7, 5, scale=1.5).astype(np.float32)
    h_0 = numbers("h_0", 1, 7, 17).astype(np.float32)
    y, h_n = net(x, h_0)
    want = onnx_session(cls, net, 1, **attributes).run(None, {"x": x, "h_0": h_0})
    assert_close({"y": rel(y, want[0][:, 0]), "h_n": rel(h_n, want[1])}, 5e-6)


DIFFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("LSTM", options) for name, (options, _) in LSTMS.items()},
    **{name: (cls, options) for name, (cls, options, _) in OTHERS.items()},
    "i=1-f": ("LSTM", dict(coupled="i=1-f")),
    "i=1-f, peephole": ("LSTM", dict(coupled="i=1-f", peephole=True, cell_clip=0.6)),
    "layer norm": ("LSTM", dict(layer_norm="litert")),
    "layer norm, all": (
        "LSTM",
        dict(layer_norm="litert", peephole=True, coupled="i=1-f", cell_clip=0.6, clip=1.5)
        | dict(proj_size=4, proj_bias=True, activations=("sigmoid", "softsign", "tanh")),
    ),
    "Haste's norm": ("LSTM", dict(layer_norm="haste")),
    "Haste's norm, all": (
        "LSTM",
        dict(layer_norm="haste", cell_clip=0.6, clip=1.5, proj_size=4, proj_bias=True)
        | dict(activations=("sigmoid", "softsign", "tanh"), zoneout=0.3),
    ),
    "layer norm, f=1-i": ("LSTM", dict(layer_norm="litert", peephole=True, coupled="f=1-i")),
    "projection": ("LSTM", dict(proj_size=3, proj_bias=True, proj_clip=0.12)),
    "projection, all": (
        "LSTM",
        dict(proj_size=4, proj_clip=0.1, peephole=True, coupled="f=1-i", clip=0.5, cell_clip=0.3),
    ),
    "cell_clip, projection": ("LSTM", dict(cell_clip=0.4, peephole=True, proj_size=3)),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("variant", DIFFERENCES)
def test_finite_differences(variant: str, isa: str) -> None:
    cls, options = DIFFERENCES[variant]
    more = dict(num_layers=2, bidirectional=True, dtype="float64")
    net = make(cls, isa, I=3, H=5, **options, **more)
    T, B, lengths = 4, 3, [4, 0, 3]
    x = numbers("x", T, B, 3, scale=1.5)
    R = options.get("proj_size", 5)
    states = [numbers("h_0", 4, B, R), numbers("c_0", 4, B, 5)][: 2 if cls == "LSTM" else 1]
    state = tuple(states) if cls == "LSTM" else states[0]
    tape = net.forward(x, state, lengths=lengths, train=False)
    dy, last = numbers("dy", *tape.y.shape), [tape.h_n, tape.c_n][: len(states)]
    dlast = [numbers(f"d{n}", *a.shape) for n, a in enumerate(last)]
    grads = tape.backward(dy, *dlast)
    weights = {name: a.copy() for name, a in net.state_dict().items()}

    def loss(**changed: Array) -> float:
        net.load_state_dict({**weights, **{k: a for k, a in changed.items() if k in weights}})
        given = [changed.get(name, s) for name, s in zip(("h_0", "c_0"), states)]
        given_state = tuple(given) if cls == "LSTM" else given[0]
        y, out = net(changed.get("x", x), given_state, lengths=lengths)
        outs = out if isinstance(out, tuple) else (out,)
        return float((y * dy).sum() + sum((a * d).sum() for a, d in zip(outs, dlast)))

    at = {"x": (x, grads.x), "h_0": (states[0], grads.h_0)}
    if len(states) == 2:
        at["c_0"] = (states[1], grads.c_0)
    at |= {name: (a, grads.weights[name]) for name, a in weights.items()}
    for name, (value, grad) in at.items():
        indices = range(0, value.size, 5)

        def of(a: Array, name: str = name) -> float:
            return loss(**{name: a})

        want = numerical_gradient(of, value, indices, 1e-6)
        assert np.abs(grad.flat[::5] - want).max() < 1e-6 * max(np.abs(grad).max(), 1), name


@pytest.mark.parametrize("threads", [1, 2])
def test_one_raw_step_is_a_packed_one(threads: int) -> None:
    """Peepholes are read raw and packed."""
    net = make("LSTM", I=64, H=150, peephole=True, coupled=None, cell_clip=0.5)
    x, state = numbers("x", 1, 3, 64).astype(np.float32), None
    first = net.forward(x, state, threads=threads)
    dy = numbers("dy", 1, 3, 150).astype(np.float32)
    raw = first.backward(dy, threads=threads)
    again = net.forward(x, state, threads=threads)
    packed = again.backward(dy, threads=threads)
    packed = again.backward(dy, threads=threads)
    assert np.array_equal(first.y, again.y) and np.array_equal(
        raw.weights.flat, packed.weights.flat
    )


def test_arguments() -> None:
    for bad in (
        dict(coupled="f"),
        dict(activations=("sigmoid", "tanh")),
        dict(activations=("sigmoid", "tanh", "sin")),
        dict(clip=-1.0),
        dict(cell_clip=0.0),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            cylstm.LSTM(3, 5, **bad)
    for wrong in (dict(peephole=1), dict(activations="tanh"), dict(clip="1")):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            cylstm.LSTM(3, 5, **wrong)
