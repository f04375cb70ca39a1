"""Validators: every argument of the package's constructors and functions is checked here.

One strictness and one form of message, "num_layers is 0, expected 1 to 65536": what was given, then
what was expected. TypeError where no value of that kind could do, else ValueError. Each returns the
argument in its canonical type. Arrays are checked by `_core.as_floats`, which all of the package
shares with the compiled part.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from math import inf, isfinite
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from ._core import kind_of

MAX_SIZE = 2**31 - 1  # of every size: BLAS counts in C ints
MAX_INT8 = 2**17  # products of 127 * 127 whose sum fits 32 bits: INT8_MOST_K of the core
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def integer(name: str, value: Any, least: int = 1, most: int = MAX_SIZE) -> int:
    """Return an integer, which any object but a bool may have as its index; by default a size."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value!r}, expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}, expected an integer") from None
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, expected {least} to {most}")
    return number


def flag(name: str, value: Any) -> bool:
    """Return a bool; numbers and strings, which are true by accident, are refused."""
    return _core.flag(name, value)


def number(
    name: str,
    value: Any,
    least: float = 0.0,
    *,
    most: float = inf,
    below: float = inf,
    finite: bool = True,
) -> float:
    """Return a real number from `least` to `most` and less than `below`; inf unless `finite`."""
    if most < inf:
        expected = f"a number from {least:g} to {most:g}"
    elif below < inf:
        expected = f"a number from {least:g} to less than {below:g}"
    elif least > -inf:
        expected = f"a number of at least {least:g}"
    else:
        expected = "a finite number"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    real = float(value)
    allowed = least <= real <= most and (not finite or (isfinite(real) and real < below))
    if not allowed:  # nan never is
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return real


def choice(name: str, value: Any, among: Collection[str]) -> str:
    """Return one of several words."""
    expected = " or ".join(map(repr, among))
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}, expected {expected}")
    if value not in among:
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return value


def choice_or_none(name: str, value: Any, among: Collection[str]) -> str | None:
    """Return one of several words, or None."""
    return None if value is None else choice(name, value, among)


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return `dtype` as a NumPy dtype, if a module can compute in it."""
    try:
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found not in DTYPES:  # (None equals float64 to NumPy)
        raise ValueError(f"dtype is {dtype!r}, expected float32 or float64")
    return found


def compact(
    weights: Any, arithmetic: Any, inputs: Any, dtype: np.dtype[Any], widest: int
) -> dict[str, str]:
    """Return the arguments of a module whose weights have fewer bits, none if they have not.

    `dtype` is the module's; the widest rows of its matrices are so long.
    """
    if weights is arithmetic is inputs is None:
        return {}
    choice("weights", weights, ("bfloat16", "int8"))
    if dtype != np.float32:
        raise ValueError(f"weights is {weights!r} in {dtype}, expected float32")
    if weights == "int8" and widest > MAX_INT8:
        raise ValueError(
            f"weights is 'int8' with sums of {widest} products, expected at most {MAX_INT8}: "
            "those of more may not fit 32 bits"
        )
    found = {"weights": weights}
    for name, value, only, known in (
        ("arithmetic", arithmetic, "bfloat16", "bfloat16"),
        ("inputs", inputs, "int8", "int16"),
    ):
        if value is None:
            continue
        if weights != only:
            raise ValueError(
                f"{name} is {value!r} with weights {weights!r}, expected None, or weights {only!r}"
            )
        found[name] = choice(name, value, (known,))
    return found


def array(
    name: str, value: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Return an array-like of this dtype (None: float32 or float64) and shape as an array."""
    found = _core.as_floats(value, name, dtype)
    if shape is not None and found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}, expected {shape}")
    return found


def mask(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return an array-like of bools, broadcast to this shape."""
    if _core.is_masked(value):
        raise TypeError(f"{name} is {kind_of(value)}, expected a plain array of bools")
    found = np.asarray(value)
    if found.dtype != np.bool_:
        raise TypeError(f"{name} is an array of {found.dtype}, expected bools")
    try:
        return np.broadcast_to(found, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {found.shape}, expected one that broadcasts to {shape}"
        ) from None


def integers(name: str, value: Any, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """Return an array-like of integers of this shape, if it is given, as an array."""
    if _core.is_masked(value):
        raise TypeError(
            f"{name} is {kind_of(value)}, whose mask would be ignored; expected integers"
        )
    found = np.asarray(value)
    if found.size == 0 and isinstance(value, (list, tuple)):
        found = found.astype(np.intp)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} is an array of {found.dtype}, expected integers")
    if shape is not None and found.shape != shape:
        raise ValueError(f"{name} has shape {found.shape}, expected {shape}")
    return found
