"""Cells other than the LSTM: GRU and RNN, with all that an LSTM can do.

What they compute is held against cylstm.reference here, and against PyTorch and ONNX Runtime in
tests/oracles/test_cells.py.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import (
    EACH_ISA,
    ISAS,
    TOLERANCES,
    Array,
    assert_close,
    bits_promised,
    numerical_gradient,
    rel,
    same_bits,
)
from make_digests import network, numbers

# The arguments that make a cell of its own, and the same cell of cylstm.reference.
CELLS: dict[str, tuple[dict[str, Any], reference.Cell]] = {
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
    "RNN relu": (dict(cell="RNN", nonlinearity="relu"), reference.RNN("relu")),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "smallest": dict(T=1, B=1, input_size=1, hidden_size=1),
    "odd": dict(T=7, B=3, input_size=7, hidden_size=17),
    "one row": dict(T=17, B=1, input_size=17, hidden_size=50, num_layers=2),
    "few rows, merged": dict(T=60, B=2, input_size=4, hidden_size=50),
    "whole panels": dict(T=4, B=12, input_size=64, hidden_size=128, bias=False),
    "lengths": dict(T=9, B=7, lengths=[9, 0, 1, 9, 4, 8, 2], input_size=5, hidden_size=33),
    "directions": dict(
        T=9, B=7, lengths=[9, 0, 1, 9, 4, 8, 2], input_size=5, hidden_size=33, num_layers=2
    )
    | dict(bidirectional=True),
    "chunks": dict(T=600, B=2, input_size=3, hidden_size=7, num_layers=2),
    "batch first": dict(T=6, B=5, input_size=4, hidden_size=9, batch_first=True),
    "unbatched": dict(T=7, B=None, lengths=5, input_size=3, hidden_size=7),
}


class Call:
    """A network and one call of it, made of numbers that are exact in float32."""

    def __init__(
        self, cell: str, config: dict[str, Any], dtype: str = "float32", isa: str | None = None
    ) -> None:
        options, self.reference = CELLS[cell]
        self.net = network({**options, **config, "dtype": dtype}, isa)
        B, D = config["B"], 1 + config.get("bidirectional", False)
        H, first = config["hidden_size"], config.get("batch_first", False)
        outer = (config["T"],) if B is None else (B, config["T"]) if first else (config["T"], B)
        state = (config.get("num_layers", 1) * D, *(() if B is None else (B,)), H)
        self.lengths = config.get("lengths")
        self.x = numbers("x", *outer, config["input_size"], scale=1.5).astype(dtype)
        self.dy = numbers("dy", *outer, D * H).astype(dtype)
        self.h_0, self.dh_n = (numbers(name, *state).astype(dtype) for name in ("h_0", "dh_n"))

    def expected(self) -> tuple[reference.Tape, reference.Grads]:
        """By cylstm.reference, in float64."""
        weights = {name: a.astype(np.float64) for name, a in self.net.state_dict().items()}
        x, h_0, dy, dh_n = (a.astype(np.float64) for a in (self.x, self.h_0, self.dy, self.dh_n))
        first = self.net.batch_first
        tape = reference.forward(
            weights, x, h_0, self.lengths, cell=self.reference, batch_first=first
        )
        return tape, reference.backward(tape, dy, dh_n)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("cell", CELLS)
def test_against_the_reference(cell: str, config: dict[str, Any], isa: str, dtype: str) -> None:
    call = Call(cell, config, dtype, isa)
    results, gradients = TOLERANCES[dtype]
    y, h_n = call.net(call.x, call.h_0, lengths=call.lengths)
    tape = call.net.forward(call.x, call.h_0, lengths=call.lengths)
    grads = tape.backward(call.dy, call.dh_n)
    want, want_grads = call.expected()
    assert same_bits([y, h_n], [tape.y, tape.h_n]) or not bits_promised()
    assert tape.c_n is None and tape.cells is None and grads.c_0 is None
    gates = want.gates if want.batched else want.gates[:, :, 0]
    found = {"y": (tape.y, want.y), "h_n": (tape.h_n, want.h_n), "gates": (tape.gates, gates)}
    assert_close({name: rel(a, b) for name, (a, b) in found.items()}, results)
    assert list(grads.weights) == list(want_grads.weights)
    found = {name: (grads.weights[name], a) for name, a in want_grads.weights.items()}
    found |= {"x": (grads.x, want_grads.x), "h_0": (grads.h_0, want_grads.h_0)}
    assert_close({name: rel(a, b) for name, (a, b) in found.items()}, 4 * gradients)


@pytest.mark.parametrize("where", ["x", "h_0"])
@pytest.mark.parametrize("H", [1, 3, 7, 17, 50])
@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", ["GRU", "GRU, reset before", "RNN"])
def test_an_infinity_reaches_what_it_is_multiplied_with(
    cell: str, isa: str, H: int, where: str, dtype: str
) -> None:
    """And no padding: zeros of a panel would make NaN of it. With raw weights, packed ones, merged
    inputs and in streams."""
    for B, T, value in (1, 9, np.inf), (1, 9, -np.inf), (3, 2, np.inf), (11, 2, -np.inf):
        call = Call(cell, dict(T=T, B=B, input_size=5, hidden_size=H), dtype, isa)
        if where == "x":
            call.x[0, 0, 1] = value
        else:
            call.h_0[0, 0, 0] = value
        with np.errstate(all="ignore"):
            tape, grads = call.expected()
        assert np.isfinite(tape.y[0, 0]).any() or where == "h_0"

        def check(want: Array, got: Array) -> None:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)

        raw = call.net(call.x[:1], call.h_0)
        got = call.net.forward(call.x, call.h_0)
        check(tape.y, got.y)
        check(tape.gates, got.gates)
        check(tape.y[:1], raw[0])
        assert same_bits(raw, call.net(call.x[:1], call.h_0)) or not bits_promised()
        stream = call.net.stream(B)
        stream.state = call.h_0
        check(tape.y[0], stream.step(call.x[0]))
        check(tape.y[1:], stream.run(call.x[1:]))
        back = got.backward(call.dy, call.dh_n)
        check(grads.x, back.x)
        check(grads.h_0, back.h_0)
        for name, array in grads.weights.items():
            check(array, back.weights[name])


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell: str) -> None:
    config = dict(T=4, B=3, lengths=[4, 0, 2], input_size=2, hidden_size=5, num_layers=2)
    call = Call(cell, config | dict(bidirectional=True), "float64")
    grads = call.net.forward(call.x, call.h_0, lengths=call.lengths).backward(call.dy, call.dh_n)
    weights = {name: a.copy() for name, a in call.net.state_dict().items()}

    def loss(x: Array, h_0: Array, **changed: Array) -> float:
        call.net.load_state_dict(weights | changed)
        y, h_n = call.net(x, h_0, lengths=call.lengths)
        return float((y * call.dy).sum() + (h_n * call.dh_n).sum())

    def check(name: str, at: Array, grad: Array, of: Any) -> None:
        want = numerical_gradient(of, at, range(0, at.size, 3))
        assert rel(grad.flat[::3], want) < 1e-7, name

    check("x", call.x, grads.x, lambda a: loss(a, call.h_0))
    check("h_0", call.h_0, grads.h_0, lambda a: loss(call.x, a))
    for name, at in weights.items():
        check(
            name, at, grads.weights[name], lambda a, name=name: loss(call.x, call.h_0, **{name: a})
        )


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_batch_or_cut(cell: str, isa: str, dtype: str) -> None:
    """A sequence alone, in a batch, and step by step."""
    if not bits_promised():
        pytest.skip("a BLAS sums as it likes")
    config = dict(T=20, B=7, input_size=5, hidden_size=33, num_layers=2)
    call = Call(cell, config, dtype, isa)
    y, h_n = call.net(call.x, call.h_0)
    alone, h_alone = call.net(call.x[:, 3:4], call.h_0[:, 3:4])
    assert same_bits([alone, h_alone], [y[:, 3:4], h_n[:, 3:4]])
    first, h = call.net(call.x[:9], call.h_0)
    second, h = call.net(call.x[9:], h)
    assert same_bits([first, second, h], [y[:9], y[9:], h_n])
    stream = call.net.stream(7)
    stream.state = call.h_0
    steps = [stream.step(x_t).copy() for x_t in call.x[:4]]
    assert same_bits([*steps, stream.run(call.x[4:])], [*y[:4], y[4:]])
    assert same_bits([stream.state], [h_n])
    lone = call.net.stream()
    lone.state = call.h_0[:, 3]
    assert same_bits([lone.run(call.x[:, 3])], [y[:, 3]])


@pytest.mark.parametrize("cell", CELLS)
def test_streams_of_some_rows(cell: str) -> None:
    call = Call(cell, dict(T=6, B=5, input_size=3, hidden_size=17))
    stream = call.net.stream(5)
    for x_t in call.x:
        stream.step(x_t[[4, 1]], active=[4, 1])
    y, h_n = call.net(call.x[:, [4, 1]])
    assert_close({"h": rel(stream.state[:, [4, 1]], h_n)}, 1e-6)
    assert not stream.state[:, [0, 2, 3]].any()
    again = pickle.loads(pickle.dumps(stream))
    assert same_bits([again.state], [stream.state])
    stream.reset([1])
    assert not stream.state[:, 1].any() and stream.state[:, 4].any()


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_between_layers(cell: str) -> None:
    config = dict(T=5, B=4, input_size=3, hidden_size=9, num_layers=2, dropout=0.5)
    calls = [Call(cell, config, "float64") for _ in range(2)]
    tapes = [call.net.forward(call.x, call.h_0) for call in calls]
    assert same_bits([tapes[0].y], [tapes[1].y])  # one seed, one mask
    assert not same_bits([tapes[0].y], [calls[0].net(calls[0].x, calls[0].h_0)[0]])
    grads = tapes[0].backward(calls[0].dy)
    dropped = np.isclose(grads.weights["weight_ih_l1"], 0).mean()
    assert np.isfinite(grads.x).all() and dropped < 0.5


@pytest.mark.parametrize("cell", CELLS)
def test_copies_pickles_and_files(cell: str, tmp_path: Path) -> None:
    call = Call(cell, dict(T=3, B=2, input_size=3, hidden_size=9))
    net = call.net
    cylstm.save(net, tmp_path / "net")
    for other in (copy.copy(net), pickle.loads(pickle.dumps(net)), cylstm.load(tmp_path / "net")):
        assert type(other) is type(net) and repr(other) == repr(net)
        assert same_bits(other(call.x, call.h_0), net(call.x, call.h_0))


@pytest.mark.parametrize("cell", CELLS)
def test_names_and_shapes(cell: str) -> None:
    call = Call(
        cell, dict(T=1, B=1, input_size=3, hidden_size=5, bidirectional=True), "float32", ISAS[0]
    )
    gates = call.reference.gates
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates * 5, 3), "weight_hh": (gates * 5, 5)}
    shapes |= {"bias_ih": (gates * 5,), "bias_hh": (gates * 5,)}
    want = {f"{k}_l0{end}": shape for end in ("", "_reverse") for k, shape in shapes.items()}
    assert {name: a.shape for name, a in call.net.state_dict().items()} == want
    bound = 1 / np.sqrt(5)
    fresh = type(call.net)(3, 5, seed=3).state_dict().values()
    assert all(np.abs(a).max() <= bound for a in fresh)


@pytest.mark.parametrize("cell", CELLS)
def test_an_optimiser_steps(cell: str) -> None:
    call = Call(cell, dict(T=5, B=4, input_size=3, hidden_size=9))
    adam = cylstm.optim.Adam(call.net, lr=0.01)
    target = np.zeros_like(call.dy)
    losses = []
    for _ in range(30):
        tape = call.net.forward(call.x, call.h_0)
        loss, dy = cylstm.losses.mse(tape.y, target)
        losses.append(loss)
        adam.step(tape.backward(dy).weights)
    assert losses[-1] < 0.7 * losses[0]


def test_a_state_is_one_array() -> None:
    gru, x = cylstm.GRU(3, 5), np.zeros((4, 2, 3), np.float32)
    h = np.zeros((1, 2, 5), np.float32)
    bad: Any
    for bad in ((h, h), (h,), [h, h]):
        with pytest.raises((TypeError, ValueError), match="h_0"):
            gru(x, bad)
    with pytest.raises(ValueError, match=r"h_0 has shape \(1, 5\), expected \(1, 2, 5\)"):
        gru(x, h[:, 0])
    with pytest.raises(ValueError, match="dc_n.*GRU"):
        gru.forward(x, h).backward(dc_n=h)
    with pytest.raises((TypeError, ValueError), match="h"):
        gru.stream(2).state = (h, h)


def test_arguments() -> None:
    for bad in ("sigmoid", "Tanh", None, 1):
        with pytest.raises(ValueError, match="nonlinearity"):
            cylstm.RNN(3, 5, nonlinearity=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        cylstm.GRU(3, 5, proj_size=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="GRU can't stream"):
        cylstm.GRU(3, 5, bidirectional=True).stream()
    assert repr(cylstm.RNN(3, 5, nonlinearity="relu")).startswith("RNN(input_size=3, hidden_size=5")
