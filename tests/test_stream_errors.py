"""What a stream refuses, and that it is then as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import (
    Array,
    assert_same,
    f32,
    make_problem,
    refused,
    same_bits,
    stream_of,
    whole,
)


def refused_by(
    stream: Any, call: Callable[[], Any], error: type[Exception], *words: object
) -> None:
    """As `refused`, and the state is what it was."""
    before = stream.state
    refused(call, *words, error=error)
    assert same_bits(stream.state, before)


def read_only(a: Array) -> Array:
    a.flags.writeable = False
    return a


Refusals = dict[str, tuple[type[Exception], Any, tuple[object, ...]]]  # error, what is given, words

# For LSTM(3, 5), a stream of 4.
X_T: Refusals = {
    "none": (TypeError, None, ("None", "float32")),
    "list": (TypeError, [[1.0] * 3] * 4, ("list", "float64", "float32")),
    "number": (TypeError, 1.0, ("float", "float32")),
    "text": (TypeError, "x", ("str", "float32")),
    "float64": (TypeError, np.zeros((4, 3)), ("float64", "float32")),
    "integers": (TypeError, np.zeros((4, 3), np.int64), ("int64", "float32")),
    "bytes swapped": (TypeError, np.zeros((4, 3), ">f4"), (">f4", "byte order")),
    "masked": (TypeError, np.ma.zeros((4, 3), "f4"), ("mask", "filled")),
    "unbatched": (ValueError, f32(3), ("(3,)", "(4, 3)")),
    "one row": (ValueError, f32(1, 3), ("(1, 3)", "(4, 3)")),
    "a row more": (ValueError, f32(5, 3), ("(5, 3)", "(4, 3)")),
    "narrow": (ValueError, f32(4, 2), ("(4, 2)", "(4, 3)")),
    "wide": (ValueError, f32(4, 4), ("(4, 4)", "(4, 3)")),
    "transposed": (ValueError, f32(3, 4), ("(3, 4)", "(4, 3)")),
    "a block": (ValueError, f32(1, 4, 3), ("(1, 4, 3)", "(4, 3)")),
    "scalar": (ValueError, f32(), ("()", "(4, 3)")),
    "empty": (ValueError, f32(0, 3), ("(0, 3)", "(4, 3)")),
}
BLOCK: Refusals = {
    "none": (TypeError, None, ("None", "float32")),
    "list": (TypeError, [[[1.0] * 3] * 4], ("list", "float64", "float32")),
    "float64": (TypeError, np.zeros((2, 4, 3)), ("float64", "float32")),
    "bytes swapped": (TypeError, np.zeros((2, 4, 3), ">f4"), (">f4", "byte order")),
    "masked": (TypeError, np.ma.zeros((2, 4, 3), "f4"), ("mask", "filled")),
    "a step": (ValueError, f32(4, 3), ("(4, 3)", "(T, N, I)", 3)),
    "four axes": (ValueError, f32(2, 4, 3, 1), ("(2, 4, 3, 1)", "(T, N, I)", 3)),
    "rows": (ValueError, f32(2, 5, 3), ("(2, 5, 3)", "(2, 4, 3)")),
    "width": (ValueError, f32(2, 4, 1), ("(2, 4, 1)", "(2, 4, 3)")),
    "empty but wrong": (ValueError, f32(0, 4, 1), ("(0, 4, 1)", "(0, 4, 3)")),
}
OUT: Refusals = {
    "list": (TypeError, [[0.0] * 5] * 4, ("list", "float32")),
    "text": (TypeError, "out", ("str", "float32")),
    "float64": (TypeError, np.zeros((4, 5)), ("float64", "float32")),
    "bytes swapped": (TypeError, np.zeros((4, 5), ">f4"), (">f4", "float32")),
    "masked": (TypeError, np.ma.zeros((4, 5), "f4"), ("float32",)),
    "shape of x_t": (ValueError, f32(4, 3), ("(4, 3)", "(4, 5)")),
    "a row less": (ValueError, f32(3, 5), ("(3, 5)", "(4, 5)")),
    "transposed": (ValueError, f32(5, 4), ("(5, 4)", "(4, 5)")),
    "a block": (ValueError, f32(1, 4, 5), ("(1, 4, 5)", "(4, 5)")),
    "strided": (ValueError, f32(4, 10)[:, ::2], ("is not contiguous", "(4, 5)")),
    "fortran": (ValueError, f32(5, 4).T, ("is not contiguous", "(4, 5)")),
    "backwards": (ValueError, f32(4, 5)[::-1], ("is not contiguous", "(4, 5)")),
    "read-only": (ValueError, read_only(f32(4, 5)), ("is read-only", "(4, 5)")),
    "unaligned": (
        ValueError,
        np.frombuffer(bytearray(81), "f4", 20, 1).reshape(4, 5),
        ("is not aligned", "(4, 5)"),
    ),
}
ACTIVE: Refusals = {
    "negative": (ValueError, [0, -1], ("[0, -1]", "0 to 3")),
    "too large": (ValueError, [0, 4], ("[0, 4]", "0 to 3")),
    "wraps in 64 bits": (ValueError, np.array([0, 2**64 - 1], np.uint64), (2**64 - 1, "0 to 3")),
    "twice": (ValueError, [2, 2], ("[2, 2]", "distinct")),
    "one number": (ValueError, 2, ("()",)),
    "two axes": (ValueError, [[0, 1]], ("(1, 2)",)),
    "mask": (TypeError, [True, False, True, False], ("bool", "integer")),
    "mask of NumPy": (TypeError, np.array([True, True, False, False]), ("bool", "integer")),
    "floats": (TypeError, [0.0, 1.0], ("float64", "integer")),
    "set": (TypeError, {0, 1}, ("integer",)),
    "text": (TypeError, "01", ("integer",)),
    "slice": (TypeError, slice(2), ("integer",)),
    "beyond 64 bits": (TypeError, [0, 2**70], ("integer",)),
    "masked": (TypeError, np.ma.array([0, 1], mask=[False, True]), ("MaskedArray", "integer")),
    "ragged": (ValueError, [[0], [1, 2]], ("[[0], [1, 2]]", "indices")),
}
STATE: Refusals = {
    "none": (TypeError, None, ("NoneType", "(h, c)")),
    "one array": (TypeError, f32(2, 1, 4, 5), ("ndarray", "(h, c)")),
    "three": (TypeError, (f32(1, 4, 5),) * 3, ("tuple", "(h, c)")),
    "no h": (TypeError, (None, f32(1, 4, 5)), ("h is None", "float32")),
    "no c": (TypeError, (f32(1, 4, 5), None), ("c is None", "float32")),
    "float64": (TypeError, (np.zeros((1, 4, 5)), f32(1, 4, 5)), ("h ", "float64", "float32")),
    "bytes swapped": (TypeError, (f32(1, 4, 5), np.zeros((1, 4, 5), ">f4")), ("c ", ">f4")),
    "rows of h": (ValueError, (f32(1, 3, 5), f32(1, 4, 5)), ("h ", "(1, 3, 5)", "(1, 4, 5)")),
    "layers of c": (ValueError, (f32(1, 4, 5), f32(2, 4, 5)), ("c ", "(2, 4, 5)", "(1, 4, 5)")),
    "unbatched": (ValueError, (f32(1, 5), f32(1, 5)), ("h ", "(1, 5)", "(1, 4, 5)")),
}

# Argument: its refusals, and the calls that take it.
ARGUMENTS: dict[str, tuple[Refusals, list[Callable[[Any, Any], Any]]]] = {
    "x_t": (X_T, [lambda s, x: s.step(x), lambda s, x: s.step(x, out=f32(4, 5))]),
    "block": (BLOCK, [lambda s, x: s.run(x), lambda s, x: s.run(x, active=[3, 1, 0, 2])]),
    "out": (
        OUT,
        [lambda s, out: s.step(f32(4, 3), out=out)],
    ),
    "active": (
        ACTIVE,
        [
            lambda s, rows: s.step(f32(2, 3), active=rows),
            lambda s, rows: s.run(f32(2, 2, 3), active=rows),
            lambda s, rows: s.run(f32(0, 2, 3), active=rows),
            lambda s, rows: s.reset(rows),
        ],
    ),
    "state": (STATE, [lambda s, state: setattr(s, "state", state)]),
}
CASES = [(name, case) for name, (refusals, _) in ARGUMENTS.items() for case in refusals]


@pytest.mark.parametrize(("name", "case"), CASES, ids=lambda a: a)
def test_bad_arguments(name: str, case: str) -> None:
    refusals, calls = ARGUMENTS[name]
    error, given, words = refusals[case]
    p = make_problem(21, 1, 4, dtype="float32", input_size=3, hidden_size=5)
    for call in calls:
        stream = stream_of(p)
        refused_by(stream, partial(call, stream, given), error, *words)
        assert_same([stream.run(p.x)], whole(p)[:1])  # and it can still be used


def test_bad_out_of_a_block() -> None:
    stream = cylstm.LSTM(3, 5).stream(4)
    run = partial(stream.run, f32(2, 4, 3))
    for out in (f32(4, 5), f32(3, 4, 5), f32(2, 4, 10)[:, :, ::2], read_only(f32(2, 4, 5))):
        refused_by(stream, partial(run, out=out), ValueError, "(2, 4, 5)")
    refused_by(stream, partial(run, out=np.zeros((2, 4, 5))), TypeError, "float64", "float32")


def test_rows_are_those_that_are_active() -> None:
    stream = cylstm.LSTM(3, 5).stream(4)
    active = [0, 3]
    all_rows, two_rows, block = f32(4, 3), f32(2, 3), f32(2, 4, 3)
    for call, shape, expected in (
        (lambda: stream.step(all_rows, active=active), "(4, 3)", "(2, 3)"),
        (lambda: stream.step(two_rows, out=f32(4, 5), active=active), "(4, 5)", "(2, 5)"),
        (lambda: stream.run(block, active=active), "(2, 4, 3)", "(2, 2, 3)"),
        (lambda: stream.step(all_rows, active=[]), "(4, 3)", "(0, 3)"),
    ):
        refused_by(stream, call, ValueError, shape, expected)


def test_a_single_stream_has_no_batch_axis() -> None:
    stream = cylstm.LSTM(3, 5).stream()
    refused_by(stream, lambda: stream.step(f32(1, 3)), ValueError, "(1, 3)", "(3,)")
    refused_by(stream, lambda: stream.step(f32(3), out=f32(1, 5)), ValueError, "(1, 5)", "(5,)")
    refused_by(stream, lambda: stream.run(f32(2, 1, 3)), ValueError, "(2, 1, 3)", "(T, I)")
    refused_by(stream, lambda: stream.step(f32(3), active=[0]), ValueError, "active", "batch")
    refused_by(stream, lambda: stream.reset([0]), ValueError, "batch")
    state = (f32(1, 1, 5), f32(1, 1, 5))
    refused_by(stream, lambda: setattr(stream, "state", state), ValueError, "(1, 1, 5)", "(1, 5)")
    assert stream.batch_size is None and stream.step(f32(3)).shape == (5,)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "3", True, [2], 2**40], ids=str)
def test_batch_size(batch_size: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="batch_size"):
        cylstm.LSTM(3, 5).stream(batch_size)
    assert cylstm.LSTM(3, 5).stream(np.int64(2)).batch_size == 2


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, "2", True], ids=str)
def test_threads_of_a_stream(threads: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="threads"):
        cylstm.LSTM(3, 5).stream(threads=threads)


def test_a_reverse_direction_starts_at_the_end() -> None:
    lstm = cylstm.LSTM(3, 5, bidirectional=True)
    for batch_size in (None, 2):
        with pytest.raises(ValueError, match="bidirectional"):
            lstm.stream(batch_size)
