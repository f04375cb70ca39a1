"""Long sequences: truncated backpropagation through time, and tapes that keep h and c alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from cylstm.reference import network as network_reference
from helpers import (
    EACH_ISA,
    TOLERANCES,
    Array,
    all_grads,
    assert_close,
    bits_promised,
    refused,
    rel,
    same_bits,
)
from make_digests import network, numbers

CELLS: dict[str, tuple[dict[str, Any], reference.Cell | None]] = {
    "LSTM": (dict(), reference.LSTM()),
    "projection": (dict(proj_size=3), reference.LSTM()),
    "peephole": (dict(peephole=True, clip=1.5), None),
    "f=1-i": (dict(coupled="f=1-i"), None),
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
}
SHAPES: dict[str, dict[str, Any]] = {
    "lengths": dict(
        T=17, B=5, lengths=[17, 0, 6, 11, 1], input_size=3, hidden_size=7, num_layers=2
    ),
    "units": dict(T=23, B=1, input_size=7, hidden_size=150),
    "chunks": dict(T=50, B=70, input_size=3, hidden_size=9),
    "unbatched": dict(T=9, B=None, input_size=3, hidden_size=7, num_layers=2),
    "batch first": dict(T=9, B=4, input_size=3, hidden_size=9, batch_first=True),
}


class Call:
    def __init__(
        self, cell: str, shape: dict[str, Any], dtype: str, isa: str | None = None, **more: Any
    ) -> None:
        config = CELLS[cell][0] | shape | more
        self.reference = CELLS[cell][1]
        self.net: Any = network({**config, "dtype": dtype}, isa)
        T, B, I, H = (config[name] for name in ("T", "B", "input_size", "hidden_size"))
        n = config.get("num_layers", 1) * (1 + config.get("bidirectional", False))
        batch = () if B is None else (B,)
        self.outer = (*batch, T) if config.get("batch_first") else (T, *batch)
        self.x = numbers("x", *self.outer, I, scale=1.5).astype(dtype)
        widths = [config.get("proj_size", H), H] if config.get("cell", "LSTM") == "LSTM" else [H]
        self.states = [
            numbers(name, n, *batch, width).astype(dtype)
            for name, width in zip(("h_0", "c_0"), widths)
        ]
        self.lengths = config.get("lengths")

    def tape(self, **options: Any) -> Any:
        state = tuple(self.states) if len(self.states) > 1 else self.states[0]
        options.setdefault("train", False)
        return self.net.forward(self.x, state, lengths=self.lengths, **options)


def given(tape: Any, *names: str) -> dict[str, Array]:
    arrays = {name: getattr(tape, name) for name in names or ("y", "h_n", "c_n", "cells", "gates")}
    return {
        "d" + name: numbers("d" + name, *a.shape).astype(a.dtype)
        for name, a in arrays.items()
        if a is not None
    }


# --- truncated


def expected(call: Call, k1: int, k2: int, d: dict[str, Array]) -> dict[str, Array]:
    """By its definition: backward of every window of the sequence, from the states before it, with
    those parts of the loss that are its own."""
    weights = {name: a.astype(np.float64) for name, a in call.net.state_dict().items()}
    first, batched = call.net.batch_first, call.x.ndim == 3

    def to_time(a: Array) -> Array:
        return network_reference.time_major(a.astype(np.float64), first, batched)

    x, dy = to_time(call.x), to_time(d["dy"])
    T, B, _ = x.shape
    states = [(s if batched else s[:, None]).astype(np.float64) for s in call.states]
    lasts = [
        (d[name] if batched else d[name][:, None]).astype(np.float64)
        for name in ("dh_n", "dc_n")[: len(states)]
    ]
    n = np.full(B, T) if call.lengths is None else np.asarray(call.lengths)
    total: dict[str, Array] = {"x": np.zeros_like(x)}

    def run(begin: int, end: int, start: list[Array]) -> reference.Tape:
        state = (start[0], start[1]) if len(start) > 1 else start[0]
        lengths = np.clip(n - begin, 0, end - begin)
        return reference.forward(weights, x[begin:end], state, lengths, cell=call.reference)

    for loss in range(0, max(n), k1):
        end = min(loss + k1, max(n))
        begin = max(end - k2, 0)
        before = run(0, begin, states)
        start = states if begin == 0 else [s for s in (before.h_n, before.c_n) if s is not None]
        own = (n <= end) & ((n > loss) | (loss == 0))
        part = np.where(np.arange(begin, end)[:, None, None] >= loss, dy[begin:end], 0)
        ends = [np.where(own[:, None], last, 0) for last in lasts]
        grads = reference.backward(run(begin, end, start), part, *ends)
        total["x"][begin:end] += grads.x
        found = {name: grads.weights[name] for name in weights}
        if begin == 0:
            found["h_0"] = grads.h_0
            if grads.c_0 is not None:
                found["c_0"] = grads.c_0
        for name, a in found.items():
            total[name] = total.get(name, 0) + a
    total["x"] = network_reference.from_time_major(total["x"], first, batched)
    if not batched:
        total |= {name: total[name][:, 0] for name in ("h_0", "c_0") if name in total}
    return total


TRUNCATED = [(5, 5), (3, 7), (4, 100), (100, 100), (1, 2)]


@pytest.mark.parametrize(("k1", "k2"), TRUNCATED)
@pytest.mark.parametrize(
    "shape",
    [pytest.param(s, marks=[pytest.mark.slow] * (s in ("chunks", "units"))) for s in SHAPES],
)
@pytest.mark.parametrize("cell", [name for name, (_, its) in CELLS.items() if its])
def test_truncated(cell: str, shape: str, k1: int, k2: int, dtype: str) -> None:
    call = Call(cell, SHAPES[shape], dtype)
    tape = call.tape()
    d = given(tape, "y", "h_n", "c_n")
    grads = tape.backward_truncated(k1, k2, **d, threads=2)
    again = tape.backward_truncated(k1, k2, **d, threads=1)
    assert same_bits(grads.weights.flat, again.weights.flat) or not bits_promised()
    want = expected(call, k1, k2, d)
    found = {"x": grads.x, "h_0": grads.h_0, "c_0": grads.c_0, **grads.weights}
    errors = {name: rel(found[name], a) for name, a in want.items()}
    assert_close(errors, 4 * TOLERANCES[dtype][1])


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_truncated_by_all_steps_is_exact(cell: str, isa: str) -> None:
    """With everything that a loss may speak of, resets, a mask and one reversed direction."""
    call = Call(cell, SHAPES["lengths"], "float64", isa, reverse=True)
    rng = np.random.default_rng(1)
    tape = call.tape(mask=rng.random((17, 5)) < 0.7, reset=rng.random((17, 5)) < 0.2)
    d = given(tape)
    want = all_grads(tape.backward(**d))
    for k1, k2 in ((17, 17), (4, 17), (1, 99)):
        got = all_grads(tape.backward_truncated(k1, k2, **d))
        errors = {str(n): rel(a, b) for n, (a, b) in enumerate(zip(got, want)) if b is not None}
        assert_close(errors, 1e-12)


def test_truncated_refused() -> None:
    tape = Call("LSTM", SHAPES["lengths"], "float32").tape()
    dy = given(tape, "y")
    refused(lambda: tape.backward_truncated(5, 3, **dy), "k1 is 5 and k2 is 3", "at most k2")
    refused(lambda: tape.backward_truncated(0, 3, **dy), "k1 is 0, expected at least 1")
    refused(
        lambda: tape.backward_truncated(1, 2.0, **dy), "k2 is 2.0, expected an", error=TypeError
    )
    refused(lambda: tape.backward_truncated(True, 2, **dy), "k1 is True", error=TypeError)
    refused(lambda: tape.backward_truncated(1, 2), "no gradient")
    both = Call("LSTM", SHAPES["lengths"], "float32", bidirectional=True).tape()
    refused(lambda: both.backward_truncated(1, 2, **given(both, "y")), "bidirectional")


# --- checkpoints

KEPT = SHAPES | {
    "directions": SHAPES["lengths"] | dict(bidirectional=True, dropout=0.4),
    "reverse": SHAPES["lengths"] | dict(reverse=True, dropout=0.4),
    "long": dict(T=600, B=2, input_size=3, hidden_size=17, num_layers=3, dropout=0.2),
}


@pytest.mark.parametrize("shape", KEPT)
@pytest.mark.parametrize("cell", CELLS)
def test_a_checkpoint_has_the_same_bits(cell: str, shape: str, dtype: str) -> None:
    call, other = (Call(cell, KEPT[shape], dtype) for _ in range(2))
    rng = np.random.default_rng(2)
    options = dict(mask=rng.random(call.outer) < 0.8, reset=rng.random(call.outer) < 0.1)
    for more in {}, options:
        tape = call.tape(train=True, **more)
        kept = other.tape(train=True, checkpoint=True, **more)
        assert same_bits([tape.y, tape.h_n], [kept.y, kept.h_n])
        assert kept.gates is None
        if tape.cells is not None:
            assert same_bits(tape.cells, kept.cells)
        for d in given(tape, "y"), given(tape):
            for threads in 1, 2:
                want, got = (t.backward(**d, threads=threads) for t in (tape, kept))
                found = [want.x, want.h_0, want.weights.flat], [got.x, got.h_0, got.weights.flat]
                if bits_promised():
                    assert same_bits(*found)
                assert_close({str(n): rel(a, b) for n, (a, b) in enumerate(zip(*found))}, 1e-4)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_a_checkpoint_on_every_kernel_set(cell: str, isa: str) -> None:
    tapes = [
        Call(cell, SHAPES["lengths"], "float32", isa).tape(checkpoint=checkpoint)
        for checkpoint in (False, True)
    ]
    d = given(tapes[0], "y", "h_n")
    grads = [tape.backward_truncated(4, 6, **d).weights.flat for tape in tapes]
    assert same_bits(*grads) or not bits_promised()


def test_a_checkpoint_keeps_c_alone() -> None:
    """One vector of H for every step and sequence, beside y."""
    tape = Call("LSTM", SHAPES["chunks"], "float32").tape(checkpoint=True)
    assert tape.cells.strides == (50 * 70 * 9 * 4, 70 * 9 * 4, 9 * 4, 4)
    whole = Call("LSTM", SHAPES["chunks"], "float32").tape()
    assert whole.cells.strides[-2] == 5 * 9 * 4


def test_checkpoint_refused() -> None:
    lstm: Any = cylstm.LSTM(3, 5)
    x = np.zeros((2, 1, 3), np.float32)
    refused(lambda: lstm.forward(x, checkpoint=1), "checkpoint is 1", error=TypeError)
    tape = lstm.forward(x, checkpoint=True)
    refused(lambda: cylstm.plot.gates(tape), "checkpoint")
