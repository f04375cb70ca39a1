"""Random cells, variants and sizes: the library against cylstm.reference, and that against finite
differences, all in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import cylstm
from cylstm import reference
from cylstm.activations import ACTIVATIONS, resolve
from helpers import Array, refused, rel

NUMBERS = st.sampled_from([0.2, 0.5, 0.75, 1.0, 1.25])
CLIPS = st.sampled_from([None, 0.4, 0.75, 2.0])


class Case(NamedTuple):
    """A class, its arguments, the same cell of `cylstm.reference`, and the sizes of a call."""

    cls: str
    options: dict[str, Any]
    cell: Any
    T: int
    B: int
    lengths: list[int] | None
    seed: int


@st.composite
def activations(draw: st.DrawFn, count: int) -> list[Any] | None:
    if draw(st.booleans()):
        return None
    names = draw(st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=count, max_size=count))
    return [draw(st.sampled_from([name, (name, draw(NUMBERS), draw(NUMBERS))])) for name in names]


@st.composite
def cases(draw: st.DrawFn, largest: int) -> Case:
    cls = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    D, H = draw(st.integers(1, 2)), draw(st.integers(1, largest))
    of_cell = {"LSTM": 3, "GRU": 2, "RNN": 1}[cls]
    chosen = draw(activations(of_cell * draw(st.sampled_from([1, D]))))
    clip = draw(CLIPS)
    options: dict[str, Any] = dict(activations=chosen, clip=clip)
    common: dict[str, Any] = {} if clip is None else dict(clip=clip)
    if cls == "LSTM":
        options["cell_clip"] = cell_clip = draw(CLIPS)
        common |= {} if cell_clip is None else dict(cell_clip=cell_clip)
        kind = draw(st.sampled_from([None, "peephole", "f=1-i", "i=1-f"]))
        options |= dict(peephole=True) if kind == "peephole" else dict(coupled=kind)
        common |= {} if kind == "peephole" else dict(coupled=kind)
        options["proj_size"] = draw(st.integers(0, H - 1))
    if cls == "GRU":
        options["reset_after"] = common["reset_after"] = draw(st.booleans())

    def cell(d: int) -> reference.Cell:
        if chosen is None:
            return getattr(reference, cls)(**common)
        its = (list(chosen) * 2)[d * of_cell : (d + 1) * of_cell]
        resolved = tuple(resolve("activation", one) for one in its)
        if cls == "RNN":
            return reference.RNN(resolved[0], **common)
        return getattr(reference, cls)(activations=resolved, **common)

    options |= dict(
        input_size=draw(st.integers(1, 5)),
        hidden_size=H,
        num_layers=draw(st.integers(1, 2)),
        bidirectional=D == 2,
        reverse=D == 1 and draw(st.booleans()),
        bias=draw(st.booleans()),
        zoneout=draw(st.sampled_from([0.0, 0.0, 0.25])),
        dtype="float64",
    )
    T, B = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    return Case(cls, options, (cell(0), cell(1)), T, B, lengths, draw(st.integers(0, 2**16)))


class Call:
    """The network of a case, an input, states, and a gradient of each result, all drawn."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(case.seed)
        self.net = net = getattr(cylstm, case.cls)(**case.options)
        self.case, self.lengths = case, case.lengths
        self.weights = {
            name: rng.normal(size=a.shape) * (0.4 if a.ndim == 1 else 0.8 / np.sqrt(a.shape[1]))
            for name, a in net.state_dict().items()
        }
        net.load_state_dict(self.weights)
        D, H = 1 + net.bidirectional, net.hidden_size
        P = case.options.get("proj_size") or H
        widths = [P, H] if case.cls == "LSTM" else [P]
        self.x = rng.normal(size=(case.T, case.B, net.input_size))
        self.dy = rng.normal(size=(case.T, case.B, D * P))
        states = [(net.num_layers * D, case.B, width) for width in widths]
        self.states = [rng.normal(size=shape) for shape in states]
        self.dstates = [rng.normal(size=shape) for shape in states]
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[case.cls]
        steps = (net.num_layers * D, case.T, case.B)
        self.dtape = {"dgates": rng.normal(size=(*steps, gates, H))}
        if case.cls == "LSTM":
            self.dtape["dcells"] = rng.normal(size=(*steps, H))

    def given_states(self, states: list[Array]) -> Any:
        return tuple(states) if len(states) > 1 else states[0]

    def equations(self, x: Array, states: list[Array], weights: dict[str, Array]) -> reference.Tape:
        given = self.given_states(states)
        more = {name: self.case.options[name] for name in ("reverse", "zoneout")}
        with np.errstate(over="ignore", invalid="ignore"):
            tape = reference.forward(weights, x, given, self.lengths, cell=self.case.cell, **more)
        assume(np.abs(tape.gates).max(initial=0) < 1e100)  # affine ones multiply at each step
        return tape

    def terms(self, tape: reference.Tape) -> list[Array]:
        """What the loss is the sum of."""
        found = [tape.y, tape.h_n, tape.c_n, tape.gates, tape.cells]
        kinds = [self.dy, *self.dstates, *self.dtape.values()]
        pairs = zip([a for a in found if a is not None], kinds, strict=True)
        return [a * d for a, d in pairs]

    def loss(self, tape: reference.Tape) -> float:
        return sum(float(term.sum()) for term in self.terms(tape))


def close(got: dict[str, Array], want: dict[str, Array], tolerance: float) -> None:
    assert list(got) == list(want)
    for name, a in want.items():
        assert rel(got[name], a) < tolerance, name


def named(grads: Any) -> dict[str, Array]:
    states = {"h_0": grads.h_0} | ({} if grads.c_0 is None else {"c_0": grads.c_0})
    return {"x": grads.x} | states | dict(grads.weights)


@settings(max_examples=120, deadline=None)
@given(cases(largest=19))
def test_the_library_computes_the_equations(case: Case) -> None:
    call = Call(case)
    given = call.given_states(call.states)
    y, last = call.net(call.x, given, lengths=call.lengths)
    tape = call.net.forward(call.x, given, lengths=call.lengths, train=False)
    grads = tape.backward(call.dy, *call.dstates, **call.dtape)
    want = call.equations(call.x, call.states, call.weights)
    states = {"h_n": want.h_n} | ({} if want.c_n is None else {"c_n": want.c_n})
    results = {"y": want.y} | states | {"gates": want.gates}
    found = dict(zip(states, last if len(states) > 1 else [last], strict=True))
    close({"y": y} | found | {"gates": tape.gates}, results, 1e-12)
    want_grads = reference.backward(want, call.dy, *call.dstates, **call.dtape)
    close(named(grads), named(want_grads), 1e-10)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(cases(largest=3))
def test_the_equations_have_their_derivatives(case: Case) -> None:
    """Along a random direction in each argument, by central differences where the loss is smooth:
    of two steps that do not agree, one has met a kink. A loss that has grown too large, as affine
    gates make it, hides the difference in its rounding."""
    call, rng = Call(case), np.random.default_rng(case.seed)
    tape = call.equations(call.x, call.states, call.weights)
    grads = named(reference.backward(tape, call.dy, *call.dstates, **call.dtape))
    arguments = {"x": call.x} | dict(zip(["h_0", "c_0"], call.states, strict=False)) | call.weights
    rounding = 1e-15 / 1e-6 * sum(float(np.abs(term).sum()) for term in call.terms(tape))

    def difference(name: str, step: Array) -> float:
        def loss(sign: int) -> float:
            at = arguments | {name: arguments[name] + sign * step}
            states = [at[state] for state in ("h_0", "c_0") if state in at]
            return call.loss(call.equations(at["x"], states, {n: at[n] for n in call.weights}))

        return (loss(1) - loss(-1)) / 2

    for name, grad in grads.items():
        way = rng.normal(size=grad.shape)
        coarse, fine = difference(name, 2e-6 * way) / 2e-6, difference(name, 1e-6 * way) / 1e-6
        if max(rounding, abs(coarse - fine)) < 1e-7 * (1 + abs(fine)):
            assert abs(float((grad * way).sum()) - fine) < 1e-6 * (1 + abs(fine)), name


SMOOTH = np.array([-2.3, -0.9, -0.35, 0.15, 0.45, 0.85, 1.7])


@pytest.mark.parametrize("name", reference.FUNCTIONS)
def test_slopes(name: str) -> None:
    """Of every activation, at points that are no kinks; beyond the clip there is none."""
    f = reference.Activation(name, 0.6, 0.3, clip=2.0)
    eps = 1e-6
    want = (f(SMOOTH + eps) - f(SMOOTH - eps)) / (2 * eps)
    assert np.abs(f.slope(SMOOTH) - want).max() < 1e-8
    assert f.slope(SMOOTH)[0] == 0 and f(SMOOTH)[0] == f(np.array([-2.0]))[0]


@pytest.mark.parametrize("name", ["leaky_relu", "elu"])
def test_a_function_that_turns_is_refused(name: str) -> None:
    """Its slope does not follow from its result."""
    refused(lambda: cylstm.RNN(2, 3, activations=[(name, -0.1)]), name, "-0.1", "at least 0")


def test_a_scaled_tanh_of_height_0_is_zero() -> None:
    """Its slope too, though that is an expression with a division by its height."""
    rnn = cylstm.RNN(2, 3, activations=[("scaled_tanh", 0, 1)], seed=1)
    tape = rnn.forward(np.ones((4, 2, 2), np.float32))
    assert not tape.y.any()
    grads = tape.backward(np.ones_like(tape.y))
    assert not grads.x.any() and not grads.weights.flat.any()
