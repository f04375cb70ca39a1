"""`compare`: how far a module's outputs are from another's."""

from __future__ import annotations

import numpy as np
import pytest

import cylstm
from helpers import rel, same_bits


@pytest.mark.parametrize("batch_first", [False, True])
def test_compare_counts_what_is_valid(batch_first: bool) -> None:
    lstm = cylstm.LSTM(5, 9, batch_first=batch_first, seed=0)
    narrow = cylstm.quantize(lstm)
    shape = (3, 12, 5) if batch_first else (12, 3, 5)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    lengths = [12, 0, 5]
    want, got = (m(x, lengths=lengths)[0].astype(np.float64) for m in (lstm, narrow))
    if batch_first:
        want, got = want.swapaxes(0, 1), got.swapaxes(0, 1)
    valid = np.concatenate([(got - want)[:12, 0], (got - want)[:5, 2]])
    found = cylstm.compare(lstm, narrow, x, lengths)
    assert found.largest == np.abs(valid).max() > 0
    assert rel(found.rms, np.sqrt(np.square(valid).mean())) < 1e-12
    assert rel(found.by_step[7], np.sqrt(np.square((got - want)[7, 0]).mean())) < 1e-12
    noise = np.square(valid).sum()
    assert rel(found.snr_db, 10 * np.log10(np.square(want).sum() / noise)) < 1e-12
    assert "int8" in repr(found) and "12 steps" in repr(found)


def test_compare_of_equals_and_of_none() -> None:
    linear = cylstm.Linear(5, 3, seed=0)
    x = np.ones((7, 5), np.float32)
    found = cylstm.compare(linear, linear, x)
    assert (found.largest, found.rms, found.snr_db) == (0, 0, np.inf)
    assert 0 < cylstm.compare(linear, cylstm.quantize(linear), x).largest < 0.01
    lstm = cylstm.LSTM(5, 3)
    nothing = cylstm.compare(lstm, lstm, np.ones((4, 2, 5), np.float32), [0, 0])
    assert nothing.rms == 0 and np.isnan(nothing.by_step).all()
    with pytest.raises(ValueError, match="expected the same"):
        cylstm.compare(lstm, cylstm.LSTM(5, 4), np.ones((4, 2, 5), np.float32))
    with pytest.raises(ValueError, match="lengths was given for a Linear"):
        cylstm.compare(linear, linear, x, [1])


@pytest.mark.slow
def test_compare_draws() -> None:
    pytest.importorskip("matplotlib")
    lstm = cylstm.LSTM(5, 9, seed=0)
    found = cylstm.compare(lstm, cylstm.quantize(lstm), np.ones((12, 3, 5), np.float32))
    (line,) = found.plot().lines
    assert same_bits(np.asarray(line.get_ydata()), found.by_step)
