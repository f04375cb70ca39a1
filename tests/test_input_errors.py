"""Bad input is refused, in words that say what was given and what was expected."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import _core
from helpers import f32, refused, same_bits

DTYPE_ERRORS = (TypeError, ValueError)

# ---------------------------------------------------------------------------------------------
# The constructor
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(input_size=0), ("input_size", "0")),
        (dict(input_size=-1), ("input_size", "-1")),
        (dict(hidden_size=0), ("hidden_size", "0")),
        (dict(hidden_size=-3), ("hidden_size", "-3")),
        (dict(num_layers=0), ("num_layers", "0")),
        (dict(num_layers=-2), ("num_layers", "-2")),
        (dict(proj_size=-1), ("proj_size", "-1")),
        (dict(proj_size=5), ("proj_size", "5", "hidden_size")),
        (dict(proj_size=6), ("proj_size", "6", "hidden_size")),
        (dict(dropout=1.5), ("dropout", "1.5")),
        (dict(dropout=-0.1), ("dropout", "-0.1")),
        (dict(dropout=float("nan")), ("dropout", "nan")),
    ],
    ids=str,
)
def test_values_of_arguments(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(lambda: cylstm.LSTM(**{"input_size": 3, "hidden_size": 5} | arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(input_size=3.0), ("input_size", "3.0")),
        (dict(input_size="10"), ("input_size", "'10'")),
        (dict(input_size=None), ("input_size", "None")),
        (dict(hidden_size=5.0), ("hidden_size", "5.0")),
        (dict(num_layers=1.0), ("num_layers", "1.0")),
        (dict(proj_size=2.0), ("proj_size", "2.0")),
        (dict(bias=0), ("bias", "True or False", "0")),
        (dict(bias=1), ("bias", "True or False", "1")),
        (dict(bias="True"), ("bias", "True or False", "'True'")),
        (dict(batch_first=0), ("batch_first", "True or False", "0")),
        (dict(batch_first=1), ("batch_first", "True or False", "1")),
        (dict(batch_first="False"), ("batch_first", "True or False", "'False'")),
        (dict(bidirectional=1), ("bidirectional", "True or False", "1")),
        (dict(bidirectional=None), ("bidirectional", "True or False", "None")),
        (dict(dropout=True), ("dropout", "True")),
        (dict(dropout="a"), ("dropout", "'a'")),
        (dict(dropout=None), ("dropout", "None")),
        (dict(foo=1), ("foo",)),
    ],
    ids=str,
)
def test_types_of_arguments(arguments: dict[str, Any], words: tuple[str, ...]) -> None:
    refused(
        lambda: cylstm.LSTM(**{"input_size": 3, "hidden_size": 5} | arguments),
        *words,
        error=TypeError,
    )


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex64", ">f4", "O", None, "nonsense"])
def test_dtype(dtype: Any) -> None:
    refused(lambda: cylstm.LSTM(3, 5, dtype=dtype), "dtype", "float32", "float64", repr(dtype))


def test_missing_arguments() -> None:
    make: Any = cylstm.LSTM
    refused(lambda: make(), "input_size", error=TypeError)
    refused(lambda: make(3), "hidden_size", error=TypeError)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(input_size=2**62, hidden_size=5),
        dict(input_size=5, hidden_size=2**62),
        dict(input_size=2**31, hidden_size=2**31),  # 4 * 2^62 wraps to 0 in 64 bits
        dict(input_size=1, hidden_size=2**31),
        dict(input_size=10**30, hidden_size=5),
        dict(input_size=5, hidden_size=10**30),
        dict(input_size=3, hidden_size=5, num_layers=2**62),
        dict(input_size=3, hidden_size=2**40, proj_size=2**39),
    ],
    ids=str,
)
def test_sizes_beyond_any_memory(arguments: dict[str, Any]) -> None:
    refused(lambda: cylstm.LSTM(**arguments), error=(ValueError, MemoryError))


def test_sizes_may_be_numpy_integers() -> None:
    lstm = cylstm.LSTM(np.int64(3), np.int32(5), np.uint8(2), proj_size=np.int16(4))
    assert lstm(f32(2, 1, 3))[0].shape == (2, 1, 4)
    assert all(type(n) is int for n in (lstm.input_size, lstm.hidden_size, lstm.num_layers))


@pytest.mark.filterwarnings("ignore")
def test_dropout_with_one_layer_is_accepted() -> None:
    lstm = cylstm.LSTM(3, 5, dropout=0.5)
    x = np.ones((2, 1, 3), np.float32)
    assert same_bits(lstm.forward(x).y, lstm(x)[0])


# ---------------------------------------------------------------------------------------------
# Calls. All of them go through `both`: inference and training check alike.
# ---------------------------------------------------------------------------------------------


def both(lstm: Any, *arguments: Any, **options: Any) -> list[Callable[[], Any]]:
    return [
        lambda: lstm(*arguments, **options),
        lambda: lstm.forward(*arguments, **options),
    ]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), ("()",)),
        ((3,), ("(3,)",)),
        ((2, 2, 2, 3), ("(2, 2, 2, 3)",)),
        ((6, 4, 7), ("(6, 4, 7)", "3")),
        ((6, 4, 1), ("(6, 4, 1)", "3")),
        ((6, 4, 0), ("(6, 4, 0)", "3")),
        ((6, 4), ("(6, 4)", "3")),
    ],
    ids=str,
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_shape_of_x(shape: tuple[int, ...], words: tuple[str, ...], bidirectional: bool) -> None:
    for call in both(cylstm.LSTM(3, 5, bidirectional=bidirectional), f32(*shape)):
        refused(call, "x", *words)


@pytest.mark.parametrize(
    "x",
    [None, 1.0, "x", [[1.0, 2.0, 3.0]], ((1.0, 2.0, 3.0),), {"x": 1}],
    ids=str,
)
def test_x_that_is_no_array(x: Any) -> None:
    """NumPy makes float64 of a list, so where float32 is expected a list is the wrong dtype."""
    for call in both(cylstm.LSTM(3, 5), x):
        refused(call, "x", "float32", error=TypeError)


def test_masked_arrays() -> None:
    """What they mask would enter the sums."""
    lstm = cylstm.LSTM(3, 5)
    x, state = np.ma.ones((2, 4, 3), "f4"), np.ma.zeros((1, 4, 5), "f4")
    calls = {
        "x": both(lstm, x),
        "h_0": both(lstm, f32(2, 4, 3), (state, f32(1, 4, 5))),
        "c_0": both(lstm, f32(2, 4, 3), (f32(1, 4, 5), state)),
        "lengths": both(lstm, f32(2, 4, 3), lengths=np.ma.ones(4, int)),
        "dy": [lambda: lstm.forward(f32(2, 4, 3)).backward(np.ma.zeros((2, 4, 5), "f4"))],
        "dh_n": [lambda: lstm.forward(f32(2, 4, 3)).backward(dh_n=state)],
        "dc_n": [lambda: lstm.forward(f32(2, 4, 3)).backward(dc_n=state)],
    }
    for name, of_name in calls.items():
        for call in of_name:
            refused(call, name, "mask", error=TypeError)


@pytest.mark.parametrize(
    "given", ["float64", "float16", "int64", "int32", "bool", "complex64", "O"]
)
def test_dtype_of_x(given: str) -> None:
    for call in both(cylstm.LSTM(3, 5), np.zeros((2, 4, 3), given)):
        refused(call, "x", np.dtype(given), "float32", error=DTYPE_ERRORS)
    for call in both(cylstm.LSTM(3, 5, dtype="float64"), f32(2, 4, 3)):
        refused(call, "x", "float32", "float64", error=DTYPE_ERRORS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_byte_order(dtype: str) -> None:
    lstm = cylstm.LSTM(3, 5, dtype=dtype)
    good = np.zeros((2, 4, 3), dtype), np.zeros((1, 4, 5), dtype)
    x, h = (a.astype(a.dtype.newbyteorder()) for a in good)
    for call in both(lstm, x):
        refused(call, "x", "byte order", error=DTYPE_ERRORS)
    for call in both(lstm, good[0], (h, good[1])):
        refused(call, "h_0", "byte order", error=DTYPE_ERRORS)
    refused(
        lambda: lstm.forward(good[0]).backward(np.zeros((2, 4, 5), x.dtype)),
        "dy",
        "byte order",
        error=DTYPE_ERRORS,
    )


STATES: list[tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...], str]] = [
    # proj_size, x, h_0, c_0, the one that is wrong
    (0, (6, 7, 3), (2, 4, 5), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 7, 5), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (2, 7, 5), "c_0"),
    (0, (6, 4, 3), (2, 4, 7), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (2, 4, 7), "c_0"),
    (0, (6, 4, 3), (7, 4, 5), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (7, 4, 5), "c_0"),
    (0, (6, 4, 3), (2, 4, 7), (2, 4, 7), "h_0"),
    (0, (6, 4, 3), (2, 9, 5), (2, 9, 5), "h_0"),
    (2, (6, 7, 3), (2, 4, 2), (2, 4, 5), "h_0"),
    (2, (6, 4, 3), (2, 7, 2), (2, 7, 5), "h_0"),
    (2, (6, 4, 3), (2, 4, 7), (2, 4, 7), "h_0"),
    (2, (6, 4, 3), (7, 4, 2), (7, 4, 5), "h_0"),
    (2, (6, 4, 3), (5, 4, 2), (2, 4, 5), "h_0"),
    (2, (6, 4, 3), (7, 4, 2), (2, 4, 5), "h_0"),
    (2, (6, 4, 3), (2, 4, 2), (7, 4, 5), "c_0"),
    (2, (6, 4, 3), (2, 4, 5), (2, 4, 5), "h_0"),  # h as wide as the cell
    (2, (6, 4, 3), (2, 4, 2), (2, 4, 2), "c_0"),  # c as narrow as the projection
    # Nothing is broadcast.
    (0, (6, 4, 3), (2, 1, 5), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (2, 1, 5), "c_0"),
    (0, (6, 4, 3), (2, 4, 1), (2, 4, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (2, 4, 1), "c_0"),
    (0, (6, 4, 3), (1, 4, 5), (2, 4, 5), "h_0"),
    # Another rank than x asks for.
    (0, (6, 4, 3), (2, 5), (2, 5), "h_0"),
    (0, (6, 4, 3), (2, 4, 5), (4, 5), "c_0"),
    (0, (6, 4, 3), (2, 1, 4, 5), (2, 1, 4, 5), "h_0"),
    (0, (6, 3), (2, 1, 5), (2, 1, 5), "h_0"),
    (0, (6, 3), (2, 5), (2, 1, 5), "c_0"),
    (0, (6, 3), (1, 5), (2, 5), "h_0"),
    # An empty batch has states of no rows.
    (0, (6, 0, 3), (2, 1, 5), (2, 1, 5), "h_0"),
    (0, (6, 0, 3), (2, 0, 5), (2, 4, 5), "c_0"),
]


@pytest.mark.parametrize(("proj_size", "x", "h_0", "c_0", "wrong"), STATES, ids=str)
def test_shapes_of_states(proj_size: int, x: Any, h_0: Any, c_0: Any, wrong: str) -> None:
    given = h_0 if wrong == "h_0" else c_0
    width = proj_size if proj_size and wrong == "h_0" else 5
    expected = (2, x[1], width) if len(x) == 3 else (2, width)
    for call in both(cylstm.LSTM(3, 5, 2, proj_size=proj_size), f32(*x), (f32(*h_0), f32(*c_0))):
        refused(call, wrong, given, expected)


def test_batch_first_does_not_transpose_states() -> None:
    lstm = cylstm.LSTM(3, 5, 2, batch_first=True)
    for call in both(lstm, f32(4, 6, 3), (f32(4, 2, 5), f32(4, 2, 5))):
        refused(call, "h_0", "(4, 2, 5)", "(2, 4, 5)")


@pytest.mark.parametrize(
    "states",
    [
        f32(1, 4, 5),
        f32(2, 1, 4, 5),
        (f32(1, 4, 5),),
        (f32(1, 4, 5),) * 3,
        (),
        7,
        "hc",
        {"h_0": f32(1, 4, 5), "c_0": f32(1, 4, 5)},
    ],
    ids=lambda s: f"{type(s).__name__} of {len(s) if hasattr(s, '__len__') else 'one'}",
)
def test_states_that_are_no_pair(states: Any) -> None:
    for call in both(cylstm.LSTM(3, 5), f32(6, 4, 3), states):
        refused(call, "h_0", "c_0", error=(TypeError, ValueError))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "bad",
    [None, 0.0, [[[0.0] * 5] * 4], "h"],
    ids=str,
)
def test_states_that_are_no_arrays(which: int, bad: Any) -> None:
    states = [f32(1, 4, 5), f32(1, 4, 5)]
    states[which] = bad
    for call in both(cylstm.LSTM(3, 5), f32(6, 4, 3), tuple(states)):
        refused(call, ("h_0", "c_0")[which], "float32", error=TypeError)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("given", ["float64", "int32", "float16"])
def test_dtypes_of_states(which: int, given: str) -> None:
    states = [f32(1, 4, 5), f32(1, 4, 5)]
    states[which] = states[which].astype(given)
    for call in both(cylstm.LSTM(3, 5), f32(6, 4, 3), tuple(states)):
        refused(call, ("h_0", "c_0")[which], given, "float32", error=DTYPE_ERRORS)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([6, -1, 2, 3], ("-1", "6")),
        ([6, 7, 2, 3], ("7", "6")),
        ([6, 2**40, 2, 3], (2**40, "6")),
        (np.array([6, 2**63 + 1, 2, 3], np.uint64), (2**63 + 1, "6")),
        (np.array([6, 255, 2, 3], np.uint8), ("255", "6")),
        (np.array([1, 2**64 - 1, 2, 3], np.uint64), (2**64 - 1, "6")),
        ([6, 5, 4], ("3", "4")),
        ([6, 5, 4, 3, 2], ("5", "4")),
        ([], ("0", "4")),
        ([[6, 5, 4, 3]], ("(1, 4)", "4")),
        ([[6], [5], [4], [3]], ("(4, 1)", "4")),
        (6, ("()", "4")),
        ([[6, 5], [4]], ("lengths",)),
    ],
    ids=str,
)
def test_values_of_lengths(lengths: Any, words: tuple[object, ...]) -> None:
    for call in both(cylstm.LSTM(3, 5), f32(6, 4, 3), lengths=lengths):
        refused(call, "lengths", *words)


@pytest.mark.parametrize(
    "lengths",
    [
        [6.0, 5.0, 4.0, 3.0],
        [6, 5, 4, 3.5],
        [True, False, True, True],
        np.ones(4, bool),
        np.ones(4, np.float32),
        np.ones(4, np.complex64),
        np.array([6, 5, 4, 3], object),
        [None, 1, 2, 3],
        ["6", "5", "4", "3"],
        "6543",
        {6, 5, 4, 3},
        [6, 2**70, 2, 3],
        [6, 2**63 + 1, -1, 3],  # NumPy has no integer for all of these
    ],
    ids=str,
)
def test_types_of_lengths(lengths: Any) -> None:
    for call in both(cylstm.LSTM(3, 5), f32(6, 4, 3), lengths=lengths):
        refused(call, "lengths", "integer", error=(TypeError, ValueError))


@pytest.mark.parametrize("lengths", [-1, 7, 2.0, True, "6", [6, 6], [[6]]], ids=str)
def test_length_of_an_unbatched_sequence(lengths: Any) -> None:
    for call in both(cylstm.LSTM(3, 5), f32(6, 3), lengths=lengths):
        refused(call, "lengths", error=(TypeError, ValueError))


def test_lengths_of_batch_first_input() -> None:
    """They are bound by T, not by B."""
    lstm = cylstm.LSTM(3, 5, batch_first=True)
    assert lstm(f32(2, 6, 3), lengths=[6, 6])[0].shape == (2, 6, 5)
    for call in both(lstm, f32(6, 2, 3), lengths=[3, 1, 1, 1, 1, 1]):
        refused(call, "lengths", "3", "2")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, [1]], ids=str)
def test_threads(threads: Any) -> None:
    lstm = cylstm.LSTM(3, 5)
    for call in both(lstm, f32(6, 4, 3), threads=threads):
        refused(call, "threads", repr(threads), error=(TypeError, ValueError))
    tape = lstm.forward(f32(6, 4, 3))
    refused(
        lambda: tape.backward(f32(6, 4, 5), threads=threads),
        "threads",
        repr(threads),
        error=(TypeError, ValueError),
    )


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", None, True], ids=str)
def test_set_num_threads(threads: Any) -> None:
    before = cylstm.get_num_threads()
    refused(lambda: cylstm.set_num_threads(threads), repr(threads), error=(TypeError, ValueError))
    assert cylstm.get_num_threads() == before


def test_results_beyond_any_memory() -> None:
    """Sizes whose product does not fit into an address: an error, and no attempt."""
    row = np.zeros((1, 1, 1), np.float32)
    bits = 8 * np.dtype(np.uintp).itemsize
    half = 2 ** (bits // 2 - 2)
    lstm = cylstm.LSTM(1, 33)
    for shape in ((2 ** (bits - 5), 1, 1), (1, 2 ** (bits - 5), 1), (half, half // 2, 1)):
        for call in both(lstm, np.broadcast_to(row, shape)):
            refused(call, error=(ValueError, MemoryError))


def test_a_tape_beyond_any_memory() -> None:
    """Much longer than x and y: its size in bytes wraps to that of a row."""
    lstm = cylstm.LSTM(1, 1024, proj_size=1)
    rows = sys.maxsize // (5 * 1024 * 4 // 2) + 1
    x = np.broadcast_to(np.zeros((1, 1, 1), np.float32), (rows, 1, 1))
    refused(lambda: lstm.forward(x), error=(ValueError, MemoryError))


# ---------------------------------------------------------------------------------------------
# Backward
# ---------------------------------------------------------------------------------------------

UPSTREAM: dict[str, tuple[int, ...]] = {"dy": (6, 4, 4), "dh_n": (2, 4, 2), "dc_n": (2, 4, 5)}


def small_tape(dtype: str = "float32", **options: Any) -> Any:
    lstm = cylstm.LSTM(3, 5, bidirectional=True, proj_size=2, dtype=dtype, **options)
    return lstm.forward(np.ones((6, 4, 3), dtype))


@pytest.mark.parametrize("name", UPSTREAM)
def test_shapes_of_upstream_gradients(name: str) -> None:
    tape, right = small_tape(), UPSTREAM[name]
    wrong = [right[1:], (*right, 1), (1, *right), right[:2], (), (4, *right[:1], right[2])]
    wrong += [(*right[:2], right[2] + 1), (*right[:2], 1), (right[0], 1, right[2])]
    wrong += [(right[0] + 1, *right[1:]), (0, *right[1:])]
    for shape in wrong:
        refused(lambda shape=shape: tape.backward(**{name: f32(*shape)}), name, shape, right)


@pytest.mark.parametrize("name", UPSTREAM)
def test_types_of_upstream_gradients(name: str) -> None:
    tape, right = small_tape(), UPSTREAM[name]
    for bad in (1.0, f32(*right).tolist(), "d"):
        refused(lambda bad=bad: tape.backward(**{name: bad}), name, "float32", error=TypeError)
    for given in ("float64", "int64", "float16"):
        refused(
            lambda given=given: tape.backward(**{name: np.zeros(right, given)}),
            name,
            given,
            "float32",
            error=DTYPE_ERRORS,
        )


def test_dy_of_batch_first_is_batch_first() -> None:
    lstm = cylstm.LSTM(3, 5, batch_first=True)
    tape = lstm.forward(f32(4, 6, 3))
    refused(lambda: tape.backward(f32(6, 4, 5)), "dy", "(6, 4, 5)", "(4, 6, 5)")


def test_dy_of_an_unbatched_sequence_is_unbatched() -> None:
    tape = cylstm.LSTM(3, 5).forward(f32(6, 3))
    refused(lambda: tape.backward(f32(6, 1, 5)), "dy", "(6, 1, 5)", "(6, 5)")
    refused(lambda: tape.backward(dh_n=f32(1, 1, 5)), "dh_n", "(1, 1, 5)", "(1, 5)")


# ---------------------------------------------------------------------------------------------
# What is no error, and what an error leaves behind
# ---------------------------------------------------------------------------------------------


def test_nan_and_infinity_are_data() -> None:
    lstm = cylstm.LSTM(3, 5)
    for value in (np.nan, np.inf, -np.inf):
        x = np.full((6, 4, 3), value, np.float32)
        y, _ = lstm(x)
        assert y.shape == (6, 4, 5)
        grads = lstm.forward(x).backward(np.ones_like(y))
        assert grads.x.shape == x.shape


@pytest.mark.parametrize(
    ("error", "out", "words"),
    [
        (TypeError, [[[0.0] * 5] * 4] * 6, ("list", "float32")),
        (TypeError, np.zeros((6, 4, 5)), ("float64", "float32")),
        (TypeError, np.ma.zeros((6, 4, 5), "f4"), ("MaskedArray", "float32")),
        (ValueError, np.zeros((6, 4, 3), "f4"), ("(6, 4, 3)", "(6, 4, 5)")),
        (ValueError, np.zeros((4, 6, 5), "f4").swapaxes(0, 1), ("is not contiguous",)),
        (ValueError, np.broadcast_to(np.zeros(5, "f4"), (6, 4, 5)), ("is read-only",)),
    ],
)
def test_out_that_cannot_be_written_to(
    error: type[Exception], out: Any, words: tuple[str, ...]
) -> None:
    with pytest.raises(error) as caught:
        cylstm.LSTM(3, 5)(np.ones((6, 4, 3), np.float32), out=out)
    assert all(word in str(caught.value) for word in ("out", *words))
    assert not np.any(out)


def test_array_subclasses_without_meaning_of_their_own_are_arrays() -> None:
    class Plain(np.ndarray[Any, Any]):
        pass

    lstm = cylstm.LSTM(3, 5)
    x = np.ones((6, 4, 3), np.float32)
    y, _ = lstm(x.view(Plain))
    assert type(y) is np.ndarray
    assert same_bits(y, lstm(x)[0])


def test_a_refused_call_changes_nothing() -> None:
    """Not even which dropout mask the next call draws."""
    x = np.ones((6, 4, 3), np.float32)

    def lstm() -> Any:
        return cylstm.LSTM(3, 5, 2, dropout=0.5, seed=1)

    calm, harassed = lstm(), lstm()
    for bad in (dict(lengths=[7, 1, 1, 1]), dict(threads=0), dict(states=(x, x))):
        with pytest.raises(ValueError):
            harassed.forward(x, **bad)
    want, got = calm.forward(x), harassed.forward(x)
    assert same_bits(got.y, want.y)
    dy = np.ones_like(want.y)
    with pytest.raises(ValueError):
        got.backward(dy[:1])
    assert same_bits(got.backward(dy).x, want.backward(dy).x)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "a NoneType"),
        (1, "an int"),
        ([], "a list"),
        (object(), "an object"),
        (np.zeros(1), "an ndarray"),
        (np.uint8(1), "a uint8"),
        (cylstm.LSTM(1, 1), "an LSTM"),
        (cylstm.GRU(1, 1), "a GRU"),
        (cylstm.RNN(1, 1), "an RNN"),
        (cylstm.Embedding(1, 1), "an Embedding"),
    ],
)
def test_what_a_wrong_value_is_called(value: Any, kind: str) -> None:
    assert _core.kind_of(value) == kind
