"""What an LSTM computes: against PyTorch's numbers, cylstm.reference and its own promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import (
    GOLDEN_NAMES,
    LONG,
    TOLERANCES,
    Problem,
    assert_close,
    bits_promised,
    load_golden,
    make_problem,
    rel,
    same_bits,
)


def run(p: Problem, **arguments: Any) -> list[Any]:
    """[y, h_n, c_n] of inference."""
    y, (h_n, c_n) = p.lstm()(p.x, p.states, lengths=p.lengths, **arguments)
    return [y, h_n, c_n]


def check(p: Problem, tape: reference.Tape) -> None:
    """Inference, and a tape with all it shows, against cylstm.reference."""
    tolerance, _ = TOLERANCES[p.x.dtype.name]
    y, h_n, c_n = run(p)
    assert y.dtype == h_n.dtype == c_n.dtype == p.x.dtype
    errors = {"y": rel(y, tape.y), "h_n": rel(h_n, tape.h_n), "c_n": rel(c_n, tape.c_n)}
    assert_close(errors, tolerance)

    taped = p.lstm().forward(p.x, p.states, lengths=p.lengths, train=False)
    assert same_bits([taped.y, taped.h_n, taped.c_n], [y, h_n, c_n])
    errors = {
        "gates": rel(taped.gates, tape.gates if p.x.ndim == 3 else tape.gates[:, :, 0]),
        "cells": rel(taped.cells, tape.cells if p.x.ndim == 3 else tape.cells[:, :, 0]),
    }
    assert_close(errors, tolerance)


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if not load_golden(name).dropout])
def test_golden(name: str, dtype: str) -> None:
    golden = load_golden(name)
    y, h_n, c_n = run(golden.problem.cast(dtype))
    tolerance, _ = TOLERANCES[dtype]
    errors = {"y": rel(y, golden.y), "h_n": rel(h_n, golden.h_n), "c_n": rel(c_n, golden.c_n)}
    assert_close(errors, tolerance)


@pytest.mark.parametrize("B", [1, 2, 3, 5, 6, 7, 13, 17])
@pytest.mark.parametrize("H", [1, 7, 8, 16, 17, 50])
def test_odd_sizes(B: int, H: int, dtype: str) -> None:
    """Every remainder that a kernel of 3 or 6 rows and 4 to 16 lanes can leave."""
    p = make_problem(100 * B + H, 4, B, dtype=dtype, input_size=(B * H) % 19 + 1, hidden_size=H)
    check(p, p.reference()[0])


@pytest.mark.parametrize(
    "config",
    [
        dict(input_size=50, hidden_size=17, num_layers=2, bidirectional=True),
        dict(input_size=7, hidden_size=50, proj_size=17, num_layers=2),
        dict(input_size=1, hidden_size=7, proj_size=1, bidirectional=True, bias=False),
        dict(input_size=17, hidden_size=7, num_layers=3, batch_first=True, bias=False),
        dict(input_size=1150, hidden_size=5),
        dict(input_size=5, hidden_size=130, proj_size=129),
    ],
    ids=str,
)
@pytest.mark.parametrize("B", [None, 7])
def test_arguments(config: dict[str, Any], B: int | None, dtype: str) -> None:
    p = make_problem(5, 6, B, dtype=dtype, **config)
    check(p, p.reference()[0])


@pytest.mark.slow
def test_large(dtype: str) -> None:
    """Weights that fit in no cache nearby, in sizes that are no multiple of anything."""
    p = make_problem(6, 2, 3, dtype=dtype, input_size=50, hidden_size=1150)
    check(p, p.reference()[0])


@pytest.mark.slow
@pytest.mark.parametrize("config", LONG.values(), ids=LONG)
def test_long(config: dict[str, Any], dtype: str) -> None:
    p = make_problem(7, dtype=dtype, **config)
    check(p, p.reference()[0])


def test_saturated_gates(dtype: str) -> None:
    """Pre-activations far outside of where exp is finite: exact zeros and ones, and no NaN."""
    p = make_problem(8, 5, 3, dtype=dtype, input_size=4, hidden_size=7)
    p = p._replace(x=p.x * p.x.dtype.type(1e6))
    tape, _ = p.reference()
    y, h_n, c_n = run(p)
    assert_close({"y": rel(y, tape.y), "c_n": rel(c_n, tape.c_n)}, TOLERANCES[dtype][0])
    p = p._replace(x=np.sign(p.x) * p.x.dtype.type(np.finfo(p.x.dtype).max / 1e4))
    assert np.isfinite(np.concatenate([a.ravel() for a in run(p)])).all()


def test_states_default_to_zero(dtype: str) -> None:
    p = make_problem(
        9, 4, 3, dtype=dtype, input_size=5, hidden_size=7, num_layers=2, bidirectional=True
    )
    lstm = p.lstm()
    zeros = (np.zeros_like(p.h_0), np.zeros_like(p.c_0))
    y, states = lstm(p.x)
    y_zeros, states_zeros = lstm(p.x, zeros)
    assert same_bits([y, *states], [y_zeros, *states_zeros])
    assert not same_bits(y, lstm(p.x, p.states)[0])


def test_each_state_counts(dtype: str) -> None:
    """Results move with h_0 and with c_0, each of its own layer and direction."""
    p = make_problem(
        10, 3, 2, dtype=dtype, input_size=2, hidden_size=5, num_layers=2, bidirectional=True
    )
    lstm = p.lstm()
    _, (h_n, c_n) = lstm(p.x, p.states)
    for k in range(4):
        for which in range(2):
            states = [a.copy() for a in p.states]
            states[which][k, 1, 2] += 1
            _, (h, c) = lstm(p.x, tuple(states))
            assert same_bits(c[:, 0], c_n[:, 0])  # the other sequence
            assert not same_bits(c[k, 1], c_n[k, 1])
            assert same_bits(c[: k // 2 * 2, 1], c_n[: k // 2 * 2, 1])  # the layers below
            assert same_bits(h[: k // 2 * 2, 1], h_n[: k // 2 * 2, 1])


def test_h_n_is_the_last_output(dtype: str) -> None:
    p = make_problem(
        11, 5, 3, dtype=dtype, input_size=2, hidden_size=7, num_layers=2, bidirectional=True
    )
    y, h_n, _ = run(p)
    assert same_bits(h_n[2], y[-1, :, :7])
    assert same_bits(h_n[3], y[0, :, 7:])


def test_one_step_after_another_is_the_sequence(dtype: str) -> None:
    p = make_problem(12, 6, 7, dtype=dtype, input_size=5, hidden_size=17, num_layers=2)
    lstm = p.lstm()
    y, (h_n, c_n) = lstm(p.x, p.states)
    states, steps = p.states, []
    for x_t in p.x:
        y_t, states = lstm(x_t[None], states)
        steps.append(y_t[0])
    whole, parts = [y, h_n, c_n], [np.stack(steps), *states]
    if bits_promised():
        assert same_bits(whole, parts)
    assert_close(
        {str(k): rel(a, b) for k, (a, b) in enumerate(zip(parts, whole, strict=True))}, 1e-6
    )


def test_reverse_is_forward_on_the_reversed_sequence(dtype: str) -> None:
    both = make_problem(13, 5, 3, dtype=dtype, input_size=2, hidden_size=7, bidirectional=True)
    y, h_n, c_n = run(both)
    weights = {
        name.removesuffix("_reverse"): a for name, a in both.weights.items() if "reverse" in name
    }
    one = both._replace(
        config=both.config | {"bidirectional": False},
        weights=weights,
        x=both.x[::-1].copy(),
        h_0=both.h_0[1:],
        c_0=both.c_0[1:],
    )
    y_one, h_one, c_one = run(one)
    assert same_bits([y[::-1, :, 7:], h_n[1:], c_n[1:]], [y_one, h_one, c_one])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_batch_first_only_transposes(bidirectional: bool, dtype: str) -> None:
    config: dict[str, Any] = dict(input_size=3, hidden_size=7, bidirectional=bidirectional)
    p = make_problem(14, 5, 4, dtype=dtype, num_layers=2, **config)
    first = p._replace(config=p.config | {"batch_first": True}, x=p.x.swapaxes(0, 1).copy())
    y, h_n, c_n = run(p)
    y_first, h_first, c_first = run(first)
    assert y_first.shape == (4, 5, y.shape[2])
    assert same_bits([y_first.swapaxes(0, 1), h_first, c_first], [y, h_n, c_n])


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(batch_first: bool, dtype: str) -> None:
    p = make_problem(
        15, 5, None, dtype=dtype, input_size=3, hidden_size=7, proj_size=2, bidirectional=True
    )
    lstm = p.lstm(batch_first=batch_first)
    y, (h_n, c_n) = lstm(p.x, p.states)
    assert (y.shape, h_n.shape, c_n.shape) == ((5, 4), (2, 2), (2, 7))
    x = p.x[None] if batch_first else p.x[:, None]
    batched, (h_b, c_b) = lstm(x, (p.h_0[:, None], p.c_0[:, None]))
    assert same_bits([y, h_n, c_n], [batched.reshape(5, 4), h_b[:, 0], c_b[:, 0]])


def test_shapes_of_an_empty_batch(dtype: str) -> None:
    for batch_first in (False, True):
        lstm = cylstm.LSTM(
            3, 7, 2, batch_first=batch_first, bidirectional=True, proj_size=2, dtype=dtype
        )
        x = np.zeros((0, 5, 3) if batch_first else (5, 0, 3), dtype)
        for states in (None, (np.zeros((4, 0, 2), dtype), np.zeros((4, 0, 7), dtype))):
            y, (h_n, c_n) = lstm(x, states)
            assert y.shape == ((0, 5, 4) if batch_first else (5, 0, 4))
            assert h_n.shape == (4, 0, 2) and c_n.shape == (4, 0, 7)
            assert y.dtype == h_n.dtype == c_n.dtype == np.dtype(dtype)


def test_strides_do_not_matter(dtype: str) -> None:
    """Any view has the bits of its contiguous copy: reversed, transposed, with gaps, broadcast."""
    p = make_problem(16, 6, 4, dtype=dtype, input_size=3, hidden_size=7)
    lstm = p.lstm()
    wide = np.full((12, 8, 6), np.nan, dtype)
    views = {
        "gaps": wide[::2, ::2, ::2],
        "transposed": np.empty((3, 4, 6), dtype).T,
        "batch-first memory": np.empty((4, 6, 3), dtype).swapaxes(0, 1),
        "fortran": np.empty((6, 4, 3), dtype, order="F"),
        "backwards": np.empty((6, 4, 3), dtype)[::-1, ::-1, ::-1],
    }
    want = lstm(p.x, p.states)
    for name, view in views.items():
        view[...] = p.x
        y, states = lstm(view, p.states)
        assert same_bits([y, *states], [want[0], *want[1]]), name
    h_0 = np.asfortranarray(p.h_0)
    c_0 = np.repeat(p.c_0, 2, axis=2)[:, :, ::2]
    y, states = lstm(p.x, (h_0, c_0))
    assert same_bits([y, *states], [want[0], *want[1]])
    same_row = np.broadcast_to(p.x[:, :1], p.x.shape)
    assert same_bits(lstm(same_row)[0], lstm(same_row.copy())[0])


def test_unaligned_input(dtype: str) -> None:
    """Memory that starts anywhere, even inside an element."""
    p = make_problem(17, 3, 2, dtype=dtype, input_size=5, hidden_size=7)
    want = run(p)
    for offset in (1, 4):
        raw = bytearray(p.x.nbytes + offset)
        x = np.frombuffer(raw, dtype, p.x.size, offset).reshape(p.x.shape)
        x[...] = p.x
        assert same_bits(run(p._replace(x=x)), want)


def test_inputs_stay_as_they_are(dtype: str) -> None:
    p = make_problem(18, 5, 3, [2, 5, 0], dtype=dtype, input_size=3, hidden_size=7)
    arrays = [p.x, p.h_0, p.c_0, np.asarray(p.lengths)]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    run(p)
    p.lstm().forward(p.x, p.states, lengths=p.lengths)
    assert same_bits(arrays, before)


def test_results_are_fresh(dtype: str) -> None:
    """What a call returned is the caller's: later calls leave it, and writing to it harms none."""
    p = make_problem(19, 4, 2, dtype=dtype, input_size=3, hidden_size=7)
    lstm = p.lstm()
    y, (h_n, c_n) = lstm(p.x, p.states)
    kept = [y.copy(), h_n.copy(), c_n.copy()]
    lstm(p.x * 2, p.states)
    assert same_bits([y, h_n, c_n], kept)
    for a in (y, h_n, c_n):
        assert a.flags.writeable and a.flags.c_contiguous
        a[...] = np.nan
    again = lstm(p.x, p.states)
    assert same_bits([again[0], *again[1]], kept)


@pytest.mark.parametrize("config", [{}, {"bidirectional": True}, {"batch_first": True}])
@pytest.mark.parametrize("B", [None, 3])
def test_out_is_written_and_returned(B: int | None, config: dict[str, Any], dtype: str) -> None:
    lengths = None if B is None else [5, 0, 2]
    p = make_problem(25, 5, B, lengths, dtype=dtype, input_size=3, hidden_size=7, **config)
    want = run(p)
    memory = np.full(want[0].size + 2, 7, dtype)
    out = memory[1:-1].reshape(want[0].shape)
    got = p.lstm()(p.x, p.states, lengths=p.lengths, out=out)
    assert got[0] is out
    assert same_bits([out, *got[1]], want[:3])
    assert memory[0] == memory[-1] == 7


def test_out_may_overlap_the_inputs(dtype: str) -> None:
    p = make_problem(26, 6, 4, dtype=dtype, input_size=5, hidden_size=5)
    want, size = run(p), p.x.size
    for name in ("x", "h_0", "c_0", "strided x"):
        for shift in (0, 1, 7):
            memory = np.full(3 * size, np.nan, dtype)
            value = p.x if name == "strided x" else getattr(p, name)
            place = memory[: 2 * size].reshape(6, 4, 10)[..., :5] if name == "strided x" else None
            if place is None:
                place = memory[: value.size].reshape(value.shape)
            place[...] = value
            given = {"x": p.x, "h_0": p.h_0, "c_0": p.c_0} | {name.removeprefix("strided "): place}
            out = memory[shift : shift + size].reshape(p.x.shape)
            got = p.lstm()(given["x"], (given["h_0"], given["c_0"]), out=out)
            assert same_bits([out, *got[1]], want[:3]), (name, shift)


def test_tape_is_read_only(dtype: str) -> None:
    p = make_problem(20, 4, 2, dtype=dtype, input_size=3, hidden_size=7)
    tape = p.lstm().forward(p.x, p.states)
    for a in (tape.y, tape.h_n, tape.c_n, tape.gates, tape.cells):
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0


def test_nan_stays_in_its_sequence(dtype: str) -> None:
    p = make_problem(21, 4, 7, dtype=dtype, input_size=3, hidden_size=17)
    clean = run(p)[0]
    x = p.x.copy()
    x[1, 3, 0] = np.nan
    y = run(p._replace(x=x))[0]
    others = [b for b in range(7) if b != 3]
    assert same_bits(y[:, others], clean[:, others])
    assert same_bits(y[:1], clean[:1])
    assert np.isnan(y[1:, 3]).all()


def test_weights_go_in_by_name(dtype: str) -> None:
    """The order of a loaded dict does not matter; that of state_dict() is PyTorch's."""
    p = make_problem(23, 3, 2, dtype=dtype, input_size=2, hidden_size=5, num_layers=2)
    lstm = p.lstm()
    assert {name: a.shape for name, a in lstm.state_dict().items()} == {
        name: a.shape for name, a in p.weights.items()
    }
    want = run(p)[0]
    backwards = dict(reversed(list(p.weights.items())))
    assert list(lstm.state_dict()) == list(p.weights)
    assert same_bits(run(p._replace(weights=backwards))[0], want)
