"""sigmoid and tanh of every kernel set against the next wider type of NumPy.

A sample; `make ulp` (tests/ulp.c) goes over all of float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import cylstm
from cylstm import _core

MAX_ULP = 4  # units in the last place, where the result is a normal number
FUNCTIONS = ["sigmoid", "tanh"]


@pytest.fixture(params=cylstm.show_config()["isa_available"])
def any_isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def activation(name: str, x: NDArray[Any], isa: str) -> NDArray[Any]:
    """The kernel's result: x and y (n,), float32 or float64."""
    y: NDArray[Any] = _core._activation(name, x, isa=isa)
    assert y.dtype == x.dtype and y.shape == x.shape
    return y


def any_bits(dtype: str, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Arrays of any bit pattern but the NaNs."""
    unsigned = np.dtype(dtype).str.replace("f", "u")
    x = rng.integers(0, np.iinfo(unsigned).max, count, unsigned, endpoint=True).view(dtype)
    return np.ascontiguousarray(x[~np.isnan(x)])


@cache
def samples(dtype: str) -> NDArray[Any]:
    """The middle, the tails, both sides of every seam, and all sizes: (n,)."""
    rng = np.random.default_rng(0)
    limit = 90 if dtype == "float32" else 720
    parts = [rng.uniform(-width, width, 50_000) for width in (1, 4, 25, limit)]
    parts.append(np.geomspace(1e-30, limit, 20_000))
    parts.append(-parts[-1])
    # The argument reductions turn over at the odd multiples of these.
    turns = np.arange(-4 * limit, 4 * limit) * (np.log(2) / 4)
    parts += [turns * (1 + e) for e in (-1e-6, -1e-15, 0, 1e-15, 1e-6)]
    return np.concatenate([np.concatenate(parts).astype(dtype), any_bits(dtype, 50_000, rng)])


@cache
def truth(name: str, dtype: str) -> NDArray[Any]:
    """The function at `samples`, in the next wider type."""
    wide: Any = np.float64 if dtype == "float32" else np.longdouble
    if np.finfo(wide).nmant <= np.finfo(dtype).nmant:
        pytest.skip("no wider type than float64 here")
    with np.errstate(over="ignore"):
        x = samples(dtype).astype(wide)
        y: NDArray[Any] = np.tanh(x) if name == "tanh" else 1 / (1 + np.exp(-x))
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_is_small(name: str, dtype: str, any_isa: str) -> None:
    x = samples(dtype)
    true, got = truth(name, dtype), activation(name, x, any_isa)
    info = np.finfo(dtype)
    _, exponent = np.frexp(true)  # |true| is in [2^(exponent - 1), 2^exponent)
    ulp = np.ldexp(np.ones_like(true), exponent - 1 - info.nmant)
    normal = np.abs(true) >= info.smallest_normal
    error = np.abs(got - true)[normal] / ulp[normal]
    worst = error.argmax()
    assert error[worst] <= MAX_ULP, f"at {x[normal][worst]!r}"
    # A result below the normal numbers may be flushed to zero.
    assert np.all(np.abs(got - true)[~normal] <= info.smallest_normal)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_stay_in_the_range(name: str, dtype: str, any_isa: str) -> None:
    rng = np.random.default_rng(1)
    parts = [any_bits(dtype, 200_000, rng)]
    parts += [rng.uniform(-width, width, 200_000).astype(dtype) for width in (10, 20, 40)]
    y = activation(name, np.concatenate(parts), any_isa)
    assert y.min() == (0 if name == "sigmoid" else -1)
    assert y.max() == 1


def test_special_values(dtype: str, any_isa: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], dtype)
    np.testing.assert_array_equal(activation("sigmoid", x, any_isa), [np.nan, 1, 0, 0.5, 0.5])
    y = activation("tanh", x, any_isa)
    np.testing.assert_array_equal(y, [np.nan, 1, -1, 0, 0])
    np.testing.assert_array_equal(np.signbit(y[1:]), np.signbit(x[1:]))


def test_tanh_is_odd_to_the_bit(dtype: str, any_isa: str) -> None:
    x = samples(dtype)
    np.testing.assert_array_equal(activation("tanh", -x, any_isa), -activation("tanh", x, any_isa))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lane_knows_nothing_of_its_neighbours(name: str, dtype: str, any_isa: str) -> None:
    x = samples(dtype)[:40]
    whole = activation(name, x, any_isa)
    for count in range(40):
        part = activation(name, x[1 : 1 + count], any_isa)
        np.testing.assert_array_equal(part, whole[1 : 1 + count])
    among_nan = np.full(42, np.nan, dtype)
    among_nan[1:-1] = x
    np.testing.assert_array_equal(activation(name, among_nan, any_isa)[1:-1], whole)
