"""Gradients of what a tape shows, gates and cells; and their picture."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import EACH_ISA, TOLERANCES, Array, assert_close, numerical_gradient, refused, rel
from make_digests import network, numbers

# Cells by name, with every option that a gate's gradient passes through.
CELLS: dict[str, dict[str, Any]] = {
    "LSTM": dict(),
    "projection": dict(proj_size=3),
    "peephole": dict(peephole=True, cell_clip=0.9, clip=1.5),
    "f=1-i": dict(coupled="f=1-i"),
    "i=1-f": dict(coupled="i=1-f", activations=("sigmoid", "softsign", "tanh")),
    "GRU": dict(cell="GRU"),
    "GRU, reset before": dict(cell="GRU", reset_after=False),
    "RNN": dict(cell="RNN"),
}
REFERENCES: dict[str, reference.Cell] = {
    "LSTM": reference.LSTM(),
    "projection": reference.LSTM(),
    "GRU": reference.GRU(),
    "GRU, reset before": reference.GRU(False),
    "RNN": reference.RNN(),
}
SHAPES: dict[str, dict[str, Any]] = {
    "lengths": dict(T=7, B=5, lengths=[7, 0, 3, 1, 6], input_size=3, hidden_size=17)
    | dict(num_layers=2, bidirectional=True),
    "units": dict(T=40, B=1, input_size=7, hidden_size=150),
    "unbatched": dict(T=6, B=None, lengths=5, input_size=3, hidden_size=7),
    "batch first": dict(T=6, B=4, input_size=3, hidden_size=9, batch_first=True),
}


class Call:
    """A network, one call of it, and a gradient for everything that its tape shows."""

    def __init__(self, cell: str, shape: dict[str, Any], dtype: str, isa: str | None = None):
        config = CELLS[cell] | shape
        self.lengths = config.get("lengths")
        self.net: Any = network({**config, "dtype": dtype}, isa)
        T, B, I, H = (config[name] for name in ("T", "B", "input_size", "hidden_size"))
        n = config.get("num_layers", 1) * (1 + config.get("bidirectional", False))
        batch = () if B is None else (B,)
        outer = (*batch, T) if config.get("batch_first") else (T, *batch)
        widths = [config.get("proj_size", H), H] if config.get("cell", "LSTM") == "LSTM" else [H]
        self.x = numbers("x", *outer, I, scale=1.5).astype(dtype)
        self.states = [
            numbers(name, n, *batch, width).astype(dtype)
            for name, width in zip(("h_0", "c_0"), widths)
        ]
        self.tape = self.forward(self.x, *self.states)
        self.given = {
            "d" + name: numbers("d" + name, *getattr(self.tape, name).shape).astype(dtype)
            for name in ("y", "h_n", "c_n", "cells", "gates")
            if getattr(self.tape, name) is not None
        }

    def forward(self, x: Array, *states: Array) -> Any:
        state = states if len(states) > 1 else states[0]
        return self.net.forward(x, state, lengths=self.lengths)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cell", REFERENCES)
def test_against_the_reference(
    cell: str, shape: dict[str, Any], threads: int, isa: str, dtype: str
) -> None:
    call = Call(cell, shape, dtype, isa)
    grads = call.tape.backward(**call.given, threads=threads)
    weights = {name: a.astype(np.float64) for name, a in call.net.state_dict().items()}
    states = [s.astype(np.float64) for s in call.states]
    tape = reference.forward(
        weights,
        call.x.astype(np.float64),
        (states[0], states[1]) if len(states) > 1 else states[0],
        call.lengths,
        cell=REFERENCES[cell],
        batch_first=call.net.batch_first,
    )
    given = {name: a.astype(np.float64) for name, a in call.given.items()}
    for name in {"dcells", "dgates"} & set(given):
        given[name] = given[name] if tape.batched else given[name][:, :, None]
    want = reference.backward(tape, **given)
    found = {name: (getattr(grads, name), getattr(want, name)) for name in ("x", "h_0", "c_0")}
    found |= {name: (grads.weights[name], a) for name, a in want.weights.items()}
    errors = {name: rel(a, b) for name, (a, b) in found.items() if b is not None}
    assert_close(errors, 4 * TOLERANCES[dtype][1])


@pytest.mark.slow
@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell: str, isa: str) -> None:
    shape = dict(T=4, B=3, lengths=[4, 0, 2], input_size=2, hidden_size=5, num_layers=2)
    call = Call(cell, shape | dict(bidirectional=True), "float64", isa)
    grads = call.tape.backward(dcells=call.given.get("dcells"), dgates=call.given["dgates"])
    weights = {name: a.copy() for name, a in call.net.state_dict().items()}
    at = dict(zip(("x", "h_0", "c_0"), [call.x, *call.states]))

    def loss(name: str, value: Array) -> float:
        call.net.load_state_dict(weights | ({name: value} if name in weights else {}))
        tape = call.forward(*(at | ({name: value} if name in at else {})).values())
        total = (tape.gates * call.given["dgates"]).sum()
        if tape.cells is not None:
            total += (tape.cells * call.given["dcells"]).sum()
        return float(total)

    for name, value in (at | weights).items():
        grad = grads.weights[name] if name in weights else getattr(grads, name)
        of = partial(loss, name)
        want = numerical_gradient(of, value, range(0, value.size, 3))
        assert np.abs(grad.flat[::3] - want).max() < 1e-7 * max(np.abs(grad).max(), 1), name


def test_past_a_length_nothing_is_read() -> None:
    call = Call("LSTM", SHAPES["lengths"], "float32")
    want = call.tape.backward(**call.given)
    past = np.arange(7)[:, None] >= np.asarray(call.lengths)
    for name in ("dcells", "dgates"):
        call.given[name][:, past] = np.nan
    assert np.array_equal(call.tape.backward(**call.given).weights.flat, want.weights.flat)


def test_refused() -> None:
    call, gru = (Call(cell, SHAPES["lengths"], "float32") for cell in ("LSTM", "GRU"))
    shape = call.tape.gates.shape
    refused(lambda: call.tape.backward(dgates=np.zeros((7, 4), "f")), "(7, 4)", shape)
    refused(lambda: call.tape.backward(dcells=call.given["dgates"]), "dcells has shape", shape)
    refused(lambda: gru.tape.backward(dcells=call.given["dcells"]), "dcells", "GRU", "no c")
    refused(call.tape.backward, "dcells", "dgates")
    doubles = call.given["dgates"].astype(np.float64)
    refused(lambda: call.tape.backward(dgates=doubles), "dgates", "float64", error=TypeError)


# --- the picture


@pytest.mark.slow
def test_plot_draws_each_gate_of_the_sequence() -> None:
    pytest.importorskip("matplotlib")
    for cell, names, last in (("LSTM", "igfco", 3), ("GRU", "rnz", 1), ("RNN", "h", 0)):
        call = Call(cell, SHAPES["lengths"], "float32")
        figure = cylstm.plot.gates(call.tape, sequence=2, direction=1, units=[3, 0], title="t")
        panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
        assert [ax.get_title(loc="left")[0] for ax in panels] == list(names)
        drawn = np.asarray(panels[-1].images[0].get_array())
        assert drawn.shape == (2, 3)  # units, steps before the length
        assert np.array_equal(drawn, call.tape.gates[3, :3, 2, last][:, [3, 0]].T)


@pytest.mark.slow
def test_plot_labels_steps_and_chooses_units() -> None:
    pytest.importorskip("matplotlib")
    tape = Call("LSTM", SHAPES["unbatched"], "float32").tape
    last = cylstm.plot.gates(tape, labels="abcd", units=2).axes[4]
    assert [text.get_text() for text in last.get_xticklabels()] == list("abcd")
    moves = np.sort(np.argsort(-tape.cells[0, :4].std(axis=0))[:2])
    assert [text.get_text() for text in last.get_yticklabels()] == [str(u) for u in moves]
    long = network(dict(input_size=3, hidden_size=40), None).forward(
        numbers("x", 300, 1, 3).astype("f")
    )
    assert len(cylstm.plot.gates(long).axes) == 10
    assert cylstm.plot.gates(long, labels=range(300), units=99).get_figwidth() <= 16


def test_plot_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    tape = Call("LSTM", SHAPES["lengths"], "float32").tape
    draw = cylstm.plot.gates
    refused(lambda: draw(tape, sequence=5), "sequence is 5, expected -5 to 4")
    refused(lambda: draw(tape, layer=2), "layer is 2, expected -2 to 1")
    refused(lambda: draw(tape, direction=2), "direction is 2, expected 0 to 1")
    refused(lambda: draw(tape, units=[17]), "units is 17, expected 0 to 16")
    refused(lambda: draw(tape, units=[]), "units is empty")
    refused(lambda: draw(tape, labels="abcdefgh"), "labels has 8 entries, expected 1 to 7")
    refused(lambda: draw(tape.y), "tape is an ndarray", error=TypeError)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(lambda: draw(tape), "pip install cylstm[plot]", error=ImportError)
