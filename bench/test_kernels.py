"""Single kernels and single calls, by pytest-benchmark, for the one who changes them:

make bench-kernels ARGS="--benchmark-autosave"
make bench-kernels ARGS="--benchmark-compare -k 'avx2 and step'"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytest_benchmark  # noqa: F401  (an error where it is missing, not a skip)

import cylstm
from cylstm import _core

ISAS = list(cylstm.show_config()["isa_available"])
LAYERS = [(100, 1, 64, 64), (100, 1, 256, 256), (100, 8, 128, 128), (50, 32, 256, 256)]
STEPS = [(1, 16), (1, 64), (1, 128), (64, 128)]

by_isa = pytest.mark.parametrize("isa", ISAS)
by_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make_lstm(isa: str, I: int, H: int, dtype: str) -> cylstm.LSTM:
    """An LSTM on the kernels of one ISA, whatever CYLSTM_ISA says."""
    return type("LSTM", (cylstm.LSTM,), {"_isa": isa})(I, H, dtype=dtype, seed=0)


def normal(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@by_isa
@by_dtype
@pytest.mark.parametrize("T, B, I, H", LAYERS)
def test_layer(
    benchmark: Callable[..., Any], isa: str, dtype: str, T: int, B: int, I: int, H: int
) -> None:
    """A whole layer, forward, one thread."""
    lstm, x = make_lstm(isa, I, H, dtype), normal(dtype, T, B, I)
    benchmark(lstm, x, threads=1)
    assert isa in _core._last_kernels()


@by_isa
@pytest.mark.parametrize("T, B, I, H", LAYERS)
def test_backward(benchmark: Callable[..., Any], isa: str, T: int, B: int, I: int, H: int) -> None:
    """The backward pass of a layer, one thread."""
    lstm, x = make_lstm(isa, I, H, "float32"), normal("float32", T, B, I)
    tape, dy = lstm.forward(x, threads=1), normal("float32", T, B, H)
    benchmark(tape.backward, dy, threads=1)
    assert isa in _core._last_kernels()


@by_isa
@pytest.mark.parametrize("B, H", STEPS)
def test_step(benchmark: Callable[..., Any], isa: str, B: int, H: int) -> None:
    """A stream's step into `out`; at H = 16 it is nearly all overhead."""
    N = B if B > 1 else None
    stream = make_lstm(isa, H, H, "float32").stream(N, threads=1)
    x = normal("float32", H) if N is None else normal("float32", N, H)
    out = np.empty_like(x)
    benchmark(stream.step, x, out=out)
    assert isa in _core._last_kernels()


@by_isa
@by_dtype
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activation(benchmark: Callable[..., Any], isa: str, dtype: str, name: str) -> None:
    """4096 elements, which stay in the first cache."""
    x = normal(dtype, 4096)
    y = benchmark(_core._activation, name, x, isa)
    exact = np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))
    assert np.abs(y - exact).max() < 1e-5
