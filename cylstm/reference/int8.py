"""One step of an LSTM with int8 weights: codes and sums are integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .activations import sigmoid

Array = NDArray[Any]


def quantize_rows(rows: Array) -> tuple[Array, Array]:
    """float32 (N, K) -> integers (N, K) from -127 to 127 and scales (N,): row ~ scale * integers.

    Each row by itself, in float32, to nearest even; a row whose largest value is below 2^-119 is
    zero.
    """
    largest = np.abs(rows).max(axis=1)
    largest[largest < 2.0**-119] = 0
    by = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(rows * by[:, None]).astype(np.int64), largest / np.float32(127)


def int8_product(rows: Array, codes: Array, scales: Array) -> Array:
    """float32 (N, K) times int8 (M, K) with a scale for each of its M rows: sums of integers."""
    integers, by = quantize_rows(rows)
    return (integers @ codes.T.astype(np.int64)) * (by[:, None] * scales).astype(np.float64)


def lstm_int8_step(
    weights: Mapping[str, Array], x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    """One step of an LSTM with int8 weights, those of layer 0; x and h are quantised by row."""

    def product(rows: Array, kind: str) -> Array:
        return int8_product(rows, weights[f"{kind}_l0"], weights[f"{kind}_scale_l0"])

    a = product(x, "weight_ih") + product(h, "weight_hh")
    if "bias_ih_l0" in weights:
        a += weights["bias_ih_l0"] + weights["bias_hh_l0"]
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * c + i * g
    h = o * np.tanh(c)
    if "weight_hr_l0" in weights:
        h = product(h.astype(np.float32), "weight_hr")
    return h, c
