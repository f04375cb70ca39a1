"""Arguments that say one thing and are another, or change while a call reads them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

import cylstm
from helpers import refused, same_bits

# A subclass that says what it likes of itself; its buffer says something else.
Lying: Any = type(
    "Lying",
    (np.ndarray,),
    {
        "shape": (3,),
        "ndim": 1,
        "size": 3,
        "dtype": np.dtype(np.float32),
        "min": lambda self: 0,
        "max": lambda self: 1,
        "sum": lambda self: 1,
        "tolist": lambda self: [0, 1, 2],
        "copy": lambda self, *args: self,
        "astype": lambda self, *args, **kwargs: self,
    },
)


def lying(values: Any, dtype: Any) -> Any:
    return np.array(values, dtype).view(Lying)


def test_arrays_are_what_their_buffers_say() -> None:
    lstm = cylstm.LSTM(4, 5, 2)
    stream = lstm.stream(3)
    x, far = np.ones((6, 3, 4), np.float32), 10**9
    lengths = lying([far, far, far], np.intp)
    refused(lambda: lstm(x, lengths=lengths), "lengths holds", far, "expected 0 to 6")
    refused(lambda: lstm(x, lengths=lying([1], np.intp)), "lengths has shape (1,)")
    refused(lambda: stream.step(x[0], active=lying([far, far, far], np.intp)), "active", far)
    refused(lambda: stream.reset(lying([far], np.intp)), "indices", far)
    h_0, c_0 = lying([[1.0]], np.float32), np.zeros((2, 3, 5), np.float32)
    refused(lambda: lstm(x, (h_0, c_0)), "h_0 has shape (1, 1), expected (2, 3, 5)")
    refused(lambda: lstm(lying([1.0], np.float32)), "x has shape (1,)")
    refused(lambda: stream.step(lying([[1.0]], np.float32)), "x_t has shape (1, 1)")
    tape = lstm.forward(x)
    refused(lambda: tape.backward(lying([1.0], np.float32)), "dy has shape (1,)")


def test_an_array_whose_shape_is_set_meanwhile() -> None:
    """By code of the user's that runs while the other arguments are read."""
    x = np.ones((6, 3, 4), np.float32)

    class Meddling:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            with warnings.catch_warnings():  # NumPy would not have it
                warnings.simplefilter("ignore")
                x.shape = (1, 72, 1)
            return np.zeros((1, 3, 5), np.float32)

    lstm: Any = cylstm.LSTM(4, 5, seed=1)
    want = lstm(x.copy())[0]
    assert same_bits(lstm(x, (Meddling(), np.zeros((1, 3, 5), np.float32)))[0], want)


def test_flags_are_bools() -> None:
    lstm, linear = cylstm.LSTM(3, 5, seed=1), cylstm.Linear(3, 5)
    x, mask = np.zeros((4, 2, 3), np.float32), np.ones((4, 2), bool)
    tape: Any = lstm.forward(x)
    calls: dict[str, Any] = {
        "hold_output": lambda one: lstm(x, mask=mask, hold_output=one),
        "hold_output ": lambda one: lstm.forward(x, mask=mask, hold_output=one),
        "train": lambda one: lstm.forward(x, train=one),
        "per_sample": lambda one: tape.backward(tape.y, per_sample=one),
        "need_x": lambda one: tape.backward(tape.y, need_x=one),
        "need_x ": lambda one: tape.backward_truncated(1, 2, tape.y, need_x=one),
        "need_x  ": lambda one: linear.forward(x).backward(np.zeros((4, 2, 5), "f"), need_x=one),
    }
    for name, call in calls.items():
        wrong: Any
        for wrong in (1, "no", None, []):
            words = f"{name.strip()} is {wrong!r}, expected a bool"
            refused(lambda: call(wrong), words, error=TypeError)  # noqa: B023
        call(np.True_)


def test_an_index_is_asked_for_once() -> None:
    class Index:
        asked = 0

        def __index__(self) -> int:
            self.asked += 1
            return 2

    tape: Any = cylstm.LSTM(3, 5, seed=1).forward(np.zeros((4, 2, 3), np.float32))
    k1, k2 = Index(), Index()
    tape.backward_truncated(k1, k2, tape.y)
    assert (k1.asked, k2.asked) == (1, 1)
