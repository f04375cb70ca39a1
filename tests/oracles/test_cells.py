"""GRU and RNN against PyTorch in float64, and against ONNX Runtime."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import TOLERANCES, Array, assert_close, rel
from make_digests import numbers

torch = pytest.importorskip("torch")

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
}
# input_size, hidden_size, T, B, and more arguments
CONFIGS: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "smallest": (1, 1, 1, 1, {}),
    "odd": (7, 17, 7, 3, {"num_layers": 2, "bidirectional": True}),
    "no bias": (3, 50, 9, 1, {"num_layers": 3, "bias": False}),
    "merged": (4, 33, 60, 2, {}),
    "whole panels": (64, 128, 4, 12, {"bidirectional": True}),
    "large": (50, 130, 3, 100, {}),
}


def as_torch(a: Array) -> Any:
    return torch.tensor(a.astype(np.float64), requires_grad=True)


def weights_of(net: Any) -> dict[str, Array]:
    scale = 1.2 / np.sqrt(net.hidden_size)
    return {name: numbers(name, *a.shape, scale=scale) for name, a in net.state_dict().items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cell", CELLS)
def test_torch(cell: str, config: Any, dtype: str) -> None:
    name, options = CELLS[cell]
    I, H, T, B, more = config
    net = getattr(cylstm, name)(I, H, **more, **options, dtype=dtype)
    want = getattr(torch.nn, name)(I, H, **more, **options, dtype=torch.float64)
    net.load_state_dict(weights_of(net), cast=True)
    want.load_state_dict(
        {k: torch.tensor(a.astype(np.float64)) for k, a in net.state_dict().items()}
    )
    LD = more.get("num_layers", 1) * (1 + more.get("bidirectional", False))
    x = numbers("x", T, B, I, scale=1.5).astype(dtype)
    h_0 = numbers("h_0", LD, B, H).astype(dtype)
    tape = net.forward(x, h_0)
    dy, dh_n = numbers("dy", *tape.y.shape).astype(dtype), numbers("dh_n", LD, B, H).astype(dtype)
    grads = tape.backward(dy, dh_n)

    x_t, h_t = as_torch(x), as_torch(h_0)
    y, h_n = want(x_t, h_t)
    ((y * as_torch(dy)).sum() + (h_n * as_torch(dh_n)).sum()).backward()
    results, gradients = TOLERANCES[dtype]
    assert_close({"y": rel(tape.y, y.detach()), "h_n": rel(tape.h_n, h_n.detach())}, results)
    errors = {k: rel(grads.weights[k], p.grad) for k, p in want.named_parameters()}
    errors |= {"x": rel(grads.x, x_t.grad), "h_0": rel(grads.h_0, h_t.grad)}
    assert_close(errors, 4 * gradients)


@pytest.mark.parametrize("where", ["x", "h_0"])
@pytest.mark.parametrize("H", [1, 3, 7, 17, 50])
@pytest.mark.parametrize("cell", ["GRU", "RNN"])
def test_infinities(cell: str, H: int, where: str, dtype: str) -> None:
    """Of a call that reads raw weights, of one that reads packed ones, and of streams."""
    net = getattr(cylstm, cell)(5, H, dtype=dtype)
    net.load_state_dict(weights_of(net), cast=True)
    model = getattr(torch.nn, cell)(5, H, dtype=torch.float64)
    model.load_state_dict(
        {k: torch.tensor(a.astype(np.float64)) for k, a in net.state_dict().items()}
    )
    for value in (np.inf, -np.inf):
        x, h_0 = numbers("x", 2, 3, 5).astype(dtype), numbers("h_0", 1, 3, H).astype(dtype)
        (x if where == "x" else h_0)[0, 1, 0] = value
        want = model(as_torch(x), as_torch(h_0))[0].detach().numpy()
        stream = net.stream(3)
        stream.state = h_0
        steps = np.stack([stream.step(x_t) for x_t in x])
        again = copy.deepcopy(net)  # whose weights are not packed yet
        for y in (again(x[:1], h_0)[0], again(x[:1], h_0)[0], net(x, h_0)[0], steps):
            np.testing.assert_allclose(y, want[: len(y)], rtol=0, atol=1e-5)


def onnx_session(op: str, net: Any, **attributes: Any) -> Any:
    """One layer of ONNX with these weights, whose gates stand in ONNX's order: z, r, h."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, D = onnx.helper, 1 + net.bidirectional
    order = {"GRU": [1, 0, 2], "RNN": [0]}[op]

    def gates(name: str) -> Array:
        ends = ("", "_reverse")[:D]
        arrays = [net.state_dict()[f"{name}_l0{end}"] for end in ends]
        split = [np.split(a, len(order))[k] for a in arrays for k in order]
        return np.stack(np.split(np.concatenate(split), D))

    W, R = gates("weight_ih"), gates("weight_hh")
    bias = np.concatenate([gates("bias_ih"), gates("bias_hh")], axis=1)
    node = make.make_node(
        op,
        ["x", "W", "R", "bias", "", "h_0"],
        ["y", "h_n"],
        hidden_size=net.hidden_size,
        direction="bidirectional" if D == 2 else "forward",
        **attributes,
    )
    value = make.make_tensor_value_info
    graph = make.make_graph(
        [node],
        "cell",
        [value("x", 1, None), value("h_0", 1, None)],
        [value("y", 1, None), value("h_n", 1, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in (("W", W), ("R", R), ("bias", bias))],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=8)
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, "GRU, reset before"])
def test_onnx_runtime(cell: str, bidirectional: bool) -> None:
    before = cell == "GRU, reset before"
    name, options = ("GRU", {"reset_after": False}) if before else CELLS[cell]
    net = getattr(cylstm, name)(5, 17, bidirectional=bidirectional, **options)
    net.load_state_dict(weights_of(net), cast=True)
    attributes: dict[str, Any] = {}
    if name == "GRU":
        attributes["linear_before_reset"] = 0 if before else 1
    if "relu" in cell:
        attributes["activations"] = ["Relu"] * (1 + bidirectional)
    session = onnx_session(name, net, **attributes)
    T, B, D = 9, 7, 1 + bidirectional
    x = numbers("x", T, B, 5, scale=1.5).astype(np.float32)
    h_0 = numbers("h_0", D, B, 17).astype(np.float32)
    want, want_h = session.run(None, {"x": x, "h_0": h_0})  # y (T, D, B, H)
    y, h_n = net(x, h_0)
    want = want.swapaxes(1, 2).reshape(T, B, D * 17)
    assert_close({"y": rel(y, want), "h_n": rel(h_n, want_h)}, 5e-6)
