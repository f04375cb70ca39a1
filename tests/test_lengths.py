"""Sequences of different lengths in one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import (
    TOLERANCES,
    Problem,
    all_grads,
    assert_close,
    bits_promised,
    make_problem,
    rel,
    rel_grads,
    same_bits,
)

NET: dict[str, Any] = dict(input_size=3, hidden_size=17, num_layers=2, bidirectional=True)

# For T = 7: any order, none, all, one, and more rows than a kernel takes at once.
LENGTHS: dict[str, list[int]] = {
    "falling": [7, 5, 3, 1],
    "rising": [1, 3, 5, 7],
    "any order": [3, 7, 1, 5, 2],
    "with zero": [0, 4, 0, 7, 2],
    "first zero": [0, 7],
    "last zero": [7, 0],
    "all zero": [0, 0, 0],
    "one row": [4],
    "one row of zero": [0],
    "none full": [3, 2, 5],
    "all full": [7, 7],
    "all equal": [4, 4, 4],
    "many": [7, 0, 3, 3, 6, 1, 2, 5, 0, 7, 4, 4, 1, 6, 2, 7, 3],
}


def run(p: Problem, **arguments: Any) -> tuple[list[Any], Any]:
    """[y, h_n, c_n] and the gradients."""
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths, **arguments)
    return [tape.y, tape.h_n, tape.c_n], tape.backward(p.dy, p.dh_n, p.dc_n, **arguments)


@pytest.mark.parametrize(
    "config",
    [NET, NET | {"proj_size": 5}, NET | {"batch_first": True}, NET | {"bidirectional": False}],
    ids=["bidirectional", "projection", "batch_first", "forward"],
)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_against_the_reference(config: dict[str, Any], lengths: list[int], dtype: str) -> None:
    p = make_problem(1, 7, len(lengths), lengths, dtype=dtype, **config)
    results, grads = run(p)
    tape, want = p.reference()
    tolerance, grad_tolerance = TOLERANCES[dtype]
    errors = {
        name: rel(a, getattr(tape, name))
        for name, a in zip(("y", "h_n", "c_n"), results, strict=True)
    }
    assert_close(errors, tolerance)
    assert_close(rel_grads(grads, want), grad_tolerance)
    y, states = p.lstm()(p.x, p.states, lengths=p.lengths)
    assert same_bits([y, *states], results)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_gates_and_cells(lengths: list[int], dtype: str) -> None:
    p = make_problem(2, 7, len(lengths), lengths, dtype=dtype, **NET)
    tape, want = p.lstm().forward(p.x, p.states, lengths=lengths), p.reference()[0]
    errors = {"gates": rel(tape.gates, want.gates), "cells": rel(tape.cells, want.cells)}
    assert_close(errors, TOLERANCES[dtype][0])
    past = ~p.valid()
    assert not tape.gates[:, past].any() and not tape.cells[:, past].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("batch_first", [False, True])
def test_padding_changes_nothing(poison: float, batch_first: bool, dtype: str) -> None:
    """Neither x past a length, nor dy there."""
    lengths = LENGTHS["many"]
    p = make_problem(3, 7, len(lengths), lengths, dtype=dtype, batch_first=batch_first, **NET)
    results, grads = run(p)
    padding = ~p.valid().T if batch_first else ~p.valid()
    x, dy = p.x.copy(), p.dy.copy()
    x[padding] = poison
    dy[padding] = poison
    poisoned, poisoned_grads = run(p._replace(x=x, dy=dy))
    assert same_bits(poisoned, results)
    assert same_bits(all_grads(poisoned_grads), all_grads(grads))
    y, states = p.lstm()(x, p.states, lengths=lengths)
    assert same_bits([y, *states], results)
    assert not results[0][padding].any()
    assert not grads.x[padding].any()


def test_each_sequence_is_as_if_alone(dtype: str) -> None:
    """So its reverse direction starts at its own last step, and its h_n is its own."""
    lengths = LENGTHS["many"]
    p = make_problem(4, 7, len(lengths), lengths, dtype=dtype, **NET)
    (y, h_n, c_n), grads = run(p)
    for b, n in enumerate(lengths):
        if n == 0:
            continue
        alone = p._replace(
            x=p.x[:n, b],
            h_0=p.h_0[:, b],
            c_0=p.c_0[:, b],
            lengths=None,
            dy=p.dy[:n, b],
            dh_n=p.dh_n[:, b],
            dc_n=p.dc_n[:, b],
        )
        results, alone_grads = run(alone)
        together = [y[:n, b], h_n[:, b], c_n[:, b]]
        if bits_promised():
            assert same_bits(results, together)
        pairs = list(zip(results, together, strict=True))
        pairs += [(alone_grads.x, grads.x[:n, b]), (alone_grads.h_0, grads.h_0[:, b])]
        pairs += [(alone_grads.c_0, grads.c_0[:, b])]
        assert_close({str(k): rel(a, b) for k, (a, b) in enumerate(pairs)}, TOLERANCES[dtype][1])


def test_the_order_of_sequences_does_not_matter(dtype: str) -> None:
    lengths = np.array(LENGTHS["many"])
    p = make_problem(5, 7, len(lengths), lengths, dtype=dtype, **NET)
    (y, h_n, c_n), grads = run(p)
    order = np.random.default_rng(0).permutation(len(lengths))
    shuffled, shuffled_grads = run(p.take(order))
    if bits_promised():
        assert same_bits(shuffled, [a[:, order] for a in (y, h_n, c_n)])
    assert rel(shuffled[0], y[:, order]) < TOLERANCES[dtype][0]
    # Sums over the batch are in another order now, so weight gradients differ by rounding.
    in_order = reference.Grads(
        grads.x[:, order], grads.h_0[:, order], grads.c_0[:, order], grads.weights
    )
    assert_close(rel_grads(shuffled_grads, in_order), TOLERANCES[dtype][1])


def test_length_zero_passes_the_state_through(dtype: str) -> None:
    p = make_problem(6, 5, 3, [3, 0, 5], dtype=dtype, **NET)
    (y, h_n, c_n), grads = run(p)
    assert same_bits([h_n[:, 1], c_n[:, 1]], [p.h_0[:, 1], p.c_0[:, 1]])
    assert same_bits([grads.h_0[:, 1], grads.c_0[:, 1]], [p.dh_n[:, 1], p.dc_n[:, 1]])
    assert not y[:, 1].any() and not grads.x[:, 1].any()


def test_full_lengths_are_no_lengths(dtype: str) -> None:
    p = make_problem(7, 5, 7, [5] * 7, dtype=dtype, **NET)
    (results, grads), (plain, plain_grads) = run(p), run(p._replace(lengths=None))
    assert same_bits(results, plain)
    assert same_bits(all_grads(grads), all_grads(plain_grads))


@pytest.mark.parametrize(
    "lengths",
    [
        [2, 0, 5],
        (2, 0, 5),
        np.array([2, 0, 5], np.int8),
        np.array([2, 0, 5], np.int32),
        np.array([2, 0, 5], np.int64),
        np.array([2, 0, 5], np.uint64),
        np.array([2, 9, 0, 9, 5, 9])[::2],
        [np.int64(2), 0, np.uint8(5)],
    ],
    ids=["list", "tuple", "int8", "int32", "int64", "uint64", "strided", "numpy integers"],
)
def test_lengths_may_be_any_integers(lengths: Any) -> None:
    p = make_problem(8, 5, 3, [2, 0, 5], **NET)
    want = p.lstm()(p.x, p.states, lengths=p.lengths)
    y, states = p.lstm()(p.x, p.states, lengths=lengths)
    assert same_bits([y, *states], [want[0], *want[1]])


@pytest.mark.parametrize("length", [0, 1, 4, 5, np.int64(4)])
def test_unbatched_length_is_one_number(length: Any, dtype: str) -> None:
    p = make_problem(9, 5, None, int(length), dtype=dtype, **NET)
    tape, grads = p.reference()
    results, got = run(p._replace(lengths=length))
    assert [a.ndim for a in results] == [2, 2, 2]
    assert rel(results[0], tape.y) < TOLERANCES[dtype][0]
    assert_close(rel_grads(got, grads), TOLERANCES[dtype][1])


def test_an_empty_batch_has_no_lengths(dtype: str) -> None:
    lstm = cylstm.LSTM(**NET, dtype=dtype)
    empty: list[Any] = [[], (), np.zeros(0, np.int64)]
    for lengths in empty:
        tape = lstm.forward(np.zeros((5, 0, 3), dtype), lengths=lengths)
        assert tape.y.shape == (5, 0, 34)
        assert tape.backward(tape.y).x.shape == (5, 0, 3)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("B", [None, 1, 3, 0])
def test_no_steps(B: int | None, batch_first: bool, dtype: str) -> None:
    """y is empty, states go through as they are, and so do their gradients."""
    config: dict[str, Any] = dict(input_size=2, hidden_size=5, num_layers=2, bidirectional=True)
    p = make_problem(7, 1, B, dtype=dtype, proj_size=3, **config)
    lstm = p.lstm(batch_first=batch_first)
    x = p.x[:0] if B is None or not batch_first else p.x.swapaxes(0, 1)[:, :0]
    lengths = None if B is None else [0] * B
    tape = lstm.forward(x, p.states, lengths=lengths)
    for y, (h_n, c_n) in (lstm(x, p.states), (tape.y, (tape.h_n, tape.c_n))):
        assert y.shape == (*x.shape[:-1], 6) and y.dtype == dtype
        assert same_bits([h_n, c_n], list(p.states))
    assert not any(np.any(state) for state in lstm(x)[1])
    assert tape.gates.shape[1] == tape.cells.shape[1] == 0
    grads = tape.backward(dh_n=p.dh_n, dc_n=p.dc_n)
    assert grads.x.shape == x.shape
    assert same_bits([grads.h_0, grads.c_0], [p.dh_n, p.dc_n])
    assert not grads.weights.flat.any()
    assert not tape.backward(np.zeros_like(tape.y)).h_0.any()
    if B:
        with pytest.raises(ValueError, match="lengths holds 1, expected 0 to 0"):
            lstm(x, lengths=[1] * B)
