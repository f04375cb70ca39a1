"""The loop in C gives what the same loop in Python gives, to the bit."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import cylstm

feedback = importlib.import_module("feedback")  # a compiled module, which has no types


def filled(stream: Any, first: Any) -> Any:
    out = np.full((20, 8), np.nan, np.float32)
    feedback.generate(stream, first, out)
    return out


@pytest.mark.parametrize("weights", [None, "int8"])
@pytest.mark.parametrize("sizes", [dict(hidden_size=8), dict(hidden_size=11, proj_size=8)])
def test_generate(sizes: dict[str, Any], weights: str | None) -> None:
    lstm = cylstm.LSTM(8, num_layers=2, seed=1, **sizes)
    other = cylstm.LSTM(8, num_layers=2, seed=2, **sizes)
    if weights:
        lstm, other = (cylstm.quantize(each, weights) for each in (lstm, other))
    first = np.linspace(-1, 1, 8, dtype=np.float32)
    ours, theirs = lstm.stream(), lstm.stream()
    for _ in range(2):  # the second time from a state that is not zero, and with new weights
        x = first
        for row in filled(ours, first):
            x = theirs.step(x)
            assert np.array_equal(row, x) and np.any(x)
        for a, b in zip(ours.state, theirs.state, strict=True):
            assert np.array_equal(a, b)
        lstm.load_state_dict(other.state_dict())


def test_refused() -> None:
    first = np.zeros(8, np.float32)
    lstm = cylstm.LSTM(8, 8, seed=1)
    refused: list[tuple[Any, type[Exception], str]] = [
        (cylstm.LSTM(8, 8, dtype="float64").stream(), ValueError, "float32 .* expected float64"),
        (cylstm.LSTM(8, 9).stream(), ValueError, "expected float32, 1 x 8 -> 1 x 9"),
        (cylstm.LSTM(7, 8).stream(), ValueError, "expected float32, 1 x 7 -> 1 x 8"),
        (lstm.stream(batch_size=2), ValueError, "expected float32, 2 x 8 -> 2 x 8"),
        (lstm, TypeError, "stream is an LSTM"),
        (None, TypeError, "stream is a NoneType"),
    ]
    for stream, error, message in refused:
        with pytest.raises(error, match=message):
            feedback.generate(stream, first, np.empty((1, 8), np.float32))
    stream = lstm.stream()
    with pytest.raises(ValueError, match="expected 8"):
        feedback.generate(stream, first[:7], np.empty((1, 8), np.float32))
    assert np.any(stream.step(first))  # and was never left entered
