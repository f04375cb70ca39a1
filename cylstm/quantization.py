"""Modules with weights of fewer bits: bfloat16 or int8."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from . import _checks
from .tensors import widened
from .weights import BFLOAT16, Array, Module

M = TypeVar("M", bound=Module)

LEAST = np.float32(2.0**-119)  # a row of smaller weights is zero, as the kernels take it


def to_bfloat16(array: Array) -> Array:
    """Return float32 numbers rounded to nearest even, as the bits of bfloat16: uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(BFLOAT16)


def to_int8(matrix: Array) -> tuple[Array, Array]:
    """Return (codes, scales) of a float32 matrix (rows, K), codes (rows, K) and scales (rows,).

    Symmetric, each row on its own: row ~ scale * codes, with the largest of a row at 127 or -127.
    """
    largest = np.abs(matrix).max(axis=1, initial=0)
    largest[largest < LEAST] = 0
    scales = (largest / np.float32(127)).astype(np.float32)
    by = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(matrix * by[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scales


def quantize(module: M, weights: str = "int8") -> M:
    """Return an inference module of the same kind with weights of fewer bits.

    Parameters
    ----------
    module : LSTM, GRU, RNN or Linear of float32
        It stays as it is.
    weights : "int8" or "bfloat16"
        How its matrices are stored; biases stay float32. With "bfloat16" they are rounded to
        nearest even, and all arithmetic is float32's: the results are, to the bit, those of a
        float32 module that holds the rounded weights. With "int8" each row of a matrix has a
        scale of its own, and so has each row of activations (x_t and h_t of one sequence), which
        is quantised as it is met; products are sums of integers, exact on every CPU, and gate
        math is float32's. A sequence's results depend on it alone, as ever: not on the batch, the
        threads, or how it is cut in time.

    Returns
    -------
    module of the same class, which calls, streams, copies, pickles and saves as the original does.
        It can't be trained: `forward` and optimisers refuse it. A Linear is widened as it is
        called, and computes in float32 with either format.

    Raises
    ------
    TypeError
        `module` is none of these.
    ValueError
        An unknown format, a float64 module, one that is quantised already, or weights that hold
        a NaN or an infinity.

    Examples
    --------
    >>> import cylstm
    >>> lstm = cylstm.LSTM(3, 5, seed=1)
    >>> small = cylstm.quantize(lstm, "int8")
    >>> small
    LSTM(input_size=3, hidden_size=5, num_layers=1, bias=True, batch_first=False, dropout=0.0, \
bidirectional=False, proj_size=0, dtype='float32', weights='int8')
    """
    name = type(module).__name__
    if not isinstance(module, Module) or not module._quantizes:
        raise TypeError(f"module is a {name}, expected an LSTM, GRU, RNN or Linear")
    _checks.choice("weights", weights, ("bfloat16", "int8"))
    if module._format is not None:
        raise ValueError(f"{name} has weights of {module._format} already, expected float32")
    if module.dtype != np.float32:
        raise ValueError(f"{name} is of {module.dtype}, expected float32")
    state: dict[str, Array] = {}
    for key, array in module.state_dict().items():
        if not np.isfinite(array).all():
            raise ValueError(f"{key} holds a NaN or an infinity, which has no place in {weights}")
        if array.ndim < 2:
            state[key] = array
        elif weights == "bfloat16":
            rounded = state[key] = to_bfloat16(array)
            if not np.isfinite(widened(rounded)).all():
                raise ValueError(f"{key} holds a weight that rounds to infinity in bfloat16")
        else:
            state[key], state[scale_of(key)] = to_int8(array)
    return type(module)._from({**module._config(), "weights": weights}, state)


def scale_of(name: str) -> str:
    """Return the name of the scales of a matrix: weight_ih_scale_l0 of weight_ih_l0."""
    kind, layer, rest = name.partition("_l")
    return f"{kind}_scale{layer}{rest}"
