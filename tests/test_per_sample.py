"""Gradients of the weights for each sequence by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import EACH_ISA, TOLERANCES, assert_close, bits_promised, refused, rel, same_bits
from make_digests import network, numbers

CELLS: dict[str, tuple[dict[str, Any], reference.Cell | None]] = {
    "LSTM": (dict(), reference.LSTM()),
    "projection": (dict(proj_size=3), reference.LSTM()),
    "no bias": (dict(bias=False), reference.LSTM()),
    "peephole": (dict(peephole=True), None),
    "f=1-i": (dict(coupled="f=1-i"), None),
    "layer norm": (dict(layer_norm="litert", proj_size=3), None),
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
}
SHAPES: dict[str, dict[str, Any]] = {
    "lengths": dict(T=9, B=7, lengths=[9, 0, 1, 9, 4, 8, 2], input_size=5, hidden_size=17)
    | dict(num_layers=2, bidirectional=True),
    "chunks": dict(T=70, B=3, input_size=3, hidden_size=7, num_layers=2),
    "many": dict(T=3, B=600, input_size=3, hidden_size=7),
    "units": dict(T=40, B=2, input_size=7, hidden_size=150),
    "batch first": dict(T=6, B=4, input_size=3, hidden_size=9, batch_first=True),
}


class Call:
    """A network, a tape of it, and gradients of its results."""

    def __init__(self, cell: str, shape: str, dtype: str, isa: str | None = None, **options: Any):
        config = CELLS[cell][0] | SHAPES[shape]
        self.cell = CELLS[cell][1]
        self.net: Any = network({**config, "dtype": dtype}, isa)
        T, B, I, H = (config[name] for name in ("T", "B", "input_size", "hidden_size"))
        n = config.get("num_layers", 1) * (1 + config.get("bidirectional", False))
        self.first = config.get("batch_first", False)
        outer = (B, T) if self.first else (T, B)
        self.x = numbers("x", *outer, I, scale=1.5).astype(dtype)
        widths = [config.get("proj_size", H), H] if config.get("cell", "LSTM") == "LSTM" else [H]
        self.states = [
            numbers(name, n, B, width).astype(dtype) for name, width in zip(("h_0", "c_0"), widths)
        ]
        self.lengths = config.get("lengths")
        state = tuple(self.states) if len(widths) > 1 else self.states[0]
        self.tape = self.net.forward(self.x, state, lengths=self.lengths, **options)
        names = ("y", "h_n", "c_n")[: 1 + len(widths)]
        self.given = {
            "d" + name: numbers("d" + name, *getattr(self.tape, name).shape).astype(dtype)
            for name in names
        }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", [name for name, (_, its) in CELLS.items() if its])
def test_against_the_reference(cell: str, shape: str, dtype: str) -> None:
    call = Call(cell, shape, dtype)
    grads = call.tape.backward(**call.given, per_sample=True, threads=2)
    again = call.tape.backward(**call.given, per_sample=True, threads=1)
    whole = call.tape.backward(**call.given)
    if bits_promised():
        assert same_bits([grads.x, grads.h_0], [whole.x, whole.h_0])
    same = {"x": rel(grads.x, whole.x), "h_0": rel(grads.h_0, whole.h_0)}
    assert_close(same, TOLERANCES[dtype][1])
    assert list(grads.weights) == list(whole.weights)
    weights = {name: a.astype(np.float64) for name, a in call.net.state_dict().items()}
    for name, a in grads.weights.items():
        assert a.shape == (call.tape.h_n.shape[1], *weights[name].shape)
        assert same_bits(a, again.weights[name])
    total = {name: rel(a.sum(axis=0), whole.weights[name]) for name, a in grads.weights.items()}
    assert_close(total, 4 * TOLERANCES[dtype][1])
    axis = 0 if call.first else 1
    for b in range(min(7, call.tape.h_n.shape[1])):
        at = np.array([b])
        states = [s[:, at].astype(np.float64) for s in call.states]
        d = {name: a.astype(np.float64) for name, a in call.given.items()}
        tape = reference.forward(
            weights,
            call.x.take(at, axis).astype(np.float64),
            (states[0], states[1]) if len(states) > 1 else states[0],
            None if call.lengths is None else [call.lengths[b]],
            cell=call.cell,
            batch_first=call.first,
        )
        its = {name: a.take(at, axis if name == "dy" else 1) for name, a in d.items()}
        want = reference.backward(tape, **its).weights
        errors = {name: rel(grads.weights[name][b], a) for name, a in want.items()}
        assert_close(errors, 4 * TOLERANCES[dtype][1])


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_each_is_that_of_its_sequence_alone(cell: str, isa: str) -> None:
    """With resets, a mask, dropout's absence and a checkpoint, on every kernel set."""
    rng = np.random.default_rng(3)
    options = dict(mask=rng.random((9, 7)) < 0.8, reset=rng.random((9, 7)) < 0.2)
    call = Call(cell, "lengths", "float64", isa, checkpoint=True, train=False, **options)
    grads = call.tape.backward(**call.given, per_sample=True)
    for b in range(7):
        rows = slice(b, b + 1)
        states = [s[:, rows] for s in call.states]
        tape = call.net.forward(
            call.x[:, rows],
            tuple(states) if len(states) > 1 else states[0],
            lengths=(call.lengths or [])[rows],
            mask=options["mask"][:, rows],
            reset=options["reset"][:, rows],
        )
        want = tape.backward(**{name: d[:, rows] for name, d in call.given.items()}).weights
        assert_close({name: rel(grads.weights[name][b], a) for name, a in want.items()}, 1e-12)


def test_unbatched_and_empty() -> None:
    lstm = cylstm.LSTM(3, 5, seed=1)
    tape = lstm.forward(numbers("x", 4, 3).astype("f"))
    one, own = (tape.backward(tape.y, per_sample=each).weights for each in (False, True))
    assert all(np.allclose(own[name], a, atol=1e-6) for name, a in one.items())
    for shape in (0, 2, 3), (4, 0, 3):
        tape = lstm.forward(np.zeros(shape, np.float32))
        own = tape.backward(tape.y, per_sample=True).weights
        assert own["weight_ih_l0"].shape == (shape[1], 20, 3) and not own["weight_ih_l0"].any()


def test_truncated_has_no_samples() -> None:
    tape: Any = Call("LSTM", "chunks", "float32").tape
    refused(
        lambda: tape.backward_truncated(1, 2, tape.y, per_sample=True),
        "per_sample",
        error=TypeError,
    )
