"""Resets and masks inside a sequence: forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cylstm import reference
from helpers import (
    ISAS,
    TOLERANCES,
    Array,
    assert_close,
    bits_promised,
    numerical_gradient,
    refused,
    rel,
    same_bits,
)
from make_digests import network, numbers

CELLS: dict[str, tuple[dict[str, Any], reference.Cell | None]] = {
    "LSTM": (dict(), reference.LSTM()),
    "projection": (dict(proj_size=3), reference.LSTM()),
    "peephole": (dict(peephole=True), None),
    "f=1-i": (dict(coupled="f=1-i"), None),
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
}
LENGTHS = [9, 0, 1, 9, 4, 8, 2]
SHAPES: dict[str, dict[str, Any]] = {
    "lengths": dict(T=9, B=7, lengths=LENGTHS, input_size=5, hidden_size=17, num_layers=2)
    | dict(bidirectional=True),
    "reverse": dict(T=9, B=7, input_size=4, hidden_size=7, num_layers=2, reverse=True),
    "merged": dict(T=60, B=2, input_size=5, hidden_size=50),
    "units": dict(T=40, B=1, input_size=7, hidden_size=150),
    "chunks": dict(T=300, B=3, input_size=3, hidden_size=7, num_layers=3),
    "unbatched": dict(T=7, B=None, lengths=5, input_size=3, hidden_size=7),
    "batch first": dict(T=6, B=4, input_size=3, hidden_size=9, batch_first=True),
}
KINDS = ["mask", "reset", "both", "held"]


class Call:
    """A network and one call of it, with a mask, resets or both."""

    def __init__(
        self, cell: str, shape: dict[str, Any], kind: str, dtype: str, isa: str | None = None
    ) -> None:
        config = CELLS[cell][0] | shape
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
        rng = np.random.default_rng(5)
        self.options: dict[str, Any] = {"lengths": config.get("lengths")}
        if kind != "reset":
            self.options["mask"] = rng.random(self.outer) < 0.6
        if kind != "mask":
            self.options["reset"] = rng.random(self.outer) < 0.25
        if kind == "held":
            self.options["hold_output"] = True

    @property
    def state(self) -> Any:
        return tuple(self.states) if len(self.states) > 1 else self.states[0]

    def given(self, tape: Any) -> dict[str, Array]:
        names = ("y", "h_n", "c_n", "cells", "gates")
        arrays = {name: getattr(tape, name) for name in names}
        return {
            "d" + name: numbers("d" + name, *a.shape).astype(a.dtype)
            for name, a in arrays.items()
            if a is not None
        }


# Every shape and kind on one kernel set, and every kernel set on one of them.
CASES: list[Any] = [(shape, kind, None) for shape in SHAPES for kind in KINDS if shape != "chunks"]
CASES += [("lengths", "both", isa) for isa in ISAS]
CASES += [pytest.param("chunks", kind, None, marks=pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize(("shape", "kind", "isa"), CASES)
@pytest.mark.parametrize("cell", [name for name, (_, its) in CELLS.items() if its])
def test_against_the_reference(
    cell: str, shape: str, kind: str, isa: str | None, dtype: str
) -> None:
    call = Call(cell, SHAPES[shape], kind, dtype, isa)
    results, gradients = TOLERANCES[dtype]
    y, last = call.net(call.x, call.state, threads=2, **call.options)
    tape = call.net.forward(call.x, call.state, threads=1, **call.options)
    assert same_bits([y, last[0] if len(call.states) > 1 else last], [tape.y, tape.h_n])
    given = call.given(tape)
    grads = tape.backward(**given, threads=2)
    assert same_bits([tape.backward(**given, threads=1).x], [grads.x])

    def doubles(a: Array) -> Array:
        return a.astype(np.float64)

    want = reference.forward(
        {name: doubles(a) for name, a in call.net.state_dict().items()},
        doubles(call.x),
        (doubles(call.states[0]), doubles(call.states[1]))
        if len(call.states) > 1
        else doubles(call.states[0]),
        cell=CELLS[cell][1],
        batch_first=call.net.batch_first,
        reverse=call.net.reverse,
        **call.options,
    )
    found = {name: (getattr(tape, name), getattr(want, name)) for name in ("y", "h_n", "c_n")}
    found["gates"] = (tape.gates, want.gates if want.batched else want.gates[:, :, 0])
    errors = {name: rel(a, b) for name, (a, b) in found.items() if b is not None}
    assert_close(errors, results)
    for name in {"dcells", "dgates"} & set(given):
        given[name] = given[name] if want.batched else given[name][:, :, None]
    want_grads = reference.backward(want, **{name: doubles(a) for name, a in given.items()})
    found = {
        name: (getattr(grads, name), getattr(want_grads, name)) for name in ("x", "h_0", "c_0")
    }
    found |= {name: (grads.weights[name], a) for name, a in want_grads.weights.items()}
    errors = {name: rel(a, b) for name, (a, b) in found.items() if b is not None}
    assert_close(errors, 4 * gradients)


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(cell: str) -> None:
    shape = dict(T=5, B=3, lengths=[5, 0, 4], input_size=2, hidden_size=5, num_layers=2)
    call = Call(cell, shape | dict(bidirectional=True), "held", "float64")
    tape = call.net.forward(call.x, call.state, **call.options)
    given = call.given(tape)
    del given["dgates"]
    given.pop("dcells", None)
    grads = tape.backward(**given)
    weights = {name: a.copy() for name, a in call.net.state_dict().items()}
    at = dict(zip(("x", "h_0", "c_0"), [call.x, *call.states]))

    def loss(name: str, value: Array) -> float:
        call.net.load_state_dict(weights | ({name: value} if name in weights else {}))
        x, *states = (at | ({name: value} if name in at else {})).values()
        state = tuple(states) if len(states) > 1 else states[0]
        tape = call.net.forward(x, state, **call.options)
        return float(sum((getattr(tape, name[1:]) * d).sum() for name, d in given.items()))

    for name, value in (at | weights).items():
        grad = grads.weights[name] if name in weights else getattr(grads, name)
        indices = range(0, value.size, 3)
        want = numerical_gradient(lambda a, n=name: loss(n, a), value, indices)  # type: ignore[misc]
        assert np.abs(grad.flat[::3] - want).max() < 1e-7 * max(np.abs(grad).max(), 1), name


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_a_mask(cell: str) -> None:
    """To the bit, and what is masked is never looked at."""
    call = Call(cell, SHAPES["lengths"], "mask", "float32")
    masked = np.arange(9)[:, None] < np.array(LENGTHS)
    want = call.net.forward(call.x, call.state, lengths=LENGTHS)
    call.x[~masked] = np.nan
    got = call.net.forward(call.x, call.state, mask=masked)
    given = call.given(want)
    want_grads = want.backward(**given)
    given["dy"][~masked] = np.nan
    got_grads = got.backward(**given)
    assert same_bits([got.y, got.h_n, got.gates], [want.y, want.h_n, want.gates])
    assert same_bits([got_grads.x, got_grads.h_0], [want_grads.x, want_grads.h_0])
    assert same_bits(got_grads.weights.flat, want_grads.weights.flat)


@pytest.mark.parametrize("cell", CELLS)
def test_a_masked_step_is_not_there(cell: str) -> None:
    """The bits of the same sequence without the steps that a mask leaves out."""
    call = Call(
        cell, dict(T=20, B=1, input_size=5, hidden_size=17, num_layers=2), "mask", "float32"
    )
    mask = call.options["mask"][:, 0]
    got = call.net.forward(call.x, call.state, **call.options)
    want = call.net.forward(call.x[mask], call.state)
    assert same_bits([got.y[mask], got.h_n], [want.y, want.h_n]) and not got.y[~mask].any()
    dy = numbers("dy", *got.y.shape).astype("f")
    weights = got.backward(dy).weights.flat, want.backward(dy[mask]).weights.flat
    assert same_bits(*weights)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_begins_another_sequence(cell: str) -> None:
    """In both directions: the two halves are as if each were alone."""
    shape = dict(T=12, B=3, input_size=5, hidden_size=17, bidirectional=True)
    call = Call(cell, shape, "reset", "float32")
    reset = np.zeros((12, 3), bool)
    reset[5] = True
    y, _ = call.net(call.x, reset=reset)
    first, _ = call.net(call.x[:5])
    second, _ = call.net(call.x[5:])
    assert same_bits(y, np.concatenate([first, second]))


def test_chunks_of_time_are_the_whole() -> None:
    """Also where a reset stands at a masked step, and behind the last valid one."""
    call = Call("LSTM", dict(T=12, B=5, input_size=5, hidden_size=17), "both", "float32")
    mask, reset = call.options["mask"], call.options["reset"]
    mask[5:7], reset[6] = False, True
    want, (h_n, c_n) = call.net(call.x, call.state, **call.options)
    state, parts = call.state, []
    for begin in range(0, 12, 7):
        part = slice(begin, begin + 7)
        y, state = call.net(call.x[part], state, mask=mask[part], reset=reset[part])
        parts.append(y)
    found = [np.concatenate(parts), *state]
    assert same_bits(found, [want, h_n, c_n]) or not bits_promised()
    errors = {str(n): rel(a, b) for n, (a, b) in enumerate(zip(found, [want, h_n, c_n]))}
    assert_close(errors, TOLERANCES["float32"][0])


def test_refused() -> None:
    call = Call("LSTM", SHAPES["batch first"], "mask", "float32")
    for name in ("mask", "reset"):
        run: Any = call.net
        refused(lambda: run(call.x, **{name: np.ones((6, 4), bool)}), name, "(6, 4)", "(4, 6)")  # noqa: B023
        wrong = np.ones((4, 6))
        refused(lambda: run(call.x, **{name: wrong}), name, "float64", "bools", error=TypeError)  # noqa: B023
        masked = np.ma.array(np.ones((4, 6), bool))
        refused(lambda: run(call.x, **{name: masked}), name, "MaskedArray", error=TypeError)  # noqa: B023
        with pytest.raises(ValueError, match=name):
            call.net.forward(call.x, **{name: [True]})
    refused(lambda: call.net(call.x, hold_output=True), "hold_output", "mask")
    empty = call.net(call.x[:0], mask=np.ones((0, 6), bool), reset=np.ones((0, 6), bool))
    assert empty[0].shape == (0, 6, 9)
