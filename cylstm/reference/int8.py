"""Matrices of int8, whose products with rows are sums of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def quantize_rows(rows: Array, wide: bool = False) -> tuple[Array, Array]:
    """float32 (N, K) -> integers (N, K) from -127 to 127 and scales (N,): row ~ scale * integers.

    Each row by itself, in float32, to nearest even; a row whose largest value is below 2^-119 is
    zero. With `wide`, what the integers leave is counted in units of 1/254: integers from -32385 to
    32385, and scales that are so much smaller.
    """
    largest = np.abs(rows).max(axis=1)
    largest[largest < 2.0**-119] = 0
    by = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    multiples, scales = rows * by[:, None], largest / np.float32(127)
    integers = np.rint(multiples)
    if wide:
        integers = 254 * integers + np.rint((multiples - integers) * np.float32(254))
        scales /= np.float32(254)
    return integers.astype(np.int64), scales


class Int8Matrix:
    """Codes (M, K) with a scale for each row, which stands where the equations want W (M, K).

    ``x @ W.T`` quantises the rows of x, to 16 bits if they are `wide`, sums integers, and scales
    the sums.
    """

    __array_ufunc__ = None  # so that x @ W.T asks here
    dtype = np.dtype(np.float64)  # of the products

    def __init__(self, codes: Array, scales: Array, wide: bool = False) -> None:
        self.codes, self.scales, self.wide = codes, scales, wide

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> Int8Matrix:
        return Int8Matrix(self.codes[rows], self.scales[rows], self.wide)

    @property
    def T(self) -> Int8Matrix:
        """Itself: it stands to the right of a product, and only there."""
        return self

    def __rmatmul__(self, x: Array) -> Array:
        integers, by = quantize_rows(np.asarray(x, np.float32), self.wide)
        sums = integers @ self.codes.T.astype(np.int64)
        return sums * (by[:, None] * self.scales).astype(np.float64)


def int8_weights(weights: Mapping[str, Array], wide_inputs: bool = False) -> dict[str, Any]:
    """Weights of int8, codes and scales by name, as `forward` takes them."""
    matrices: dict[str, Any] = {}
    for name, array in weights.items():
        kind, layer, rest = name.partition("_l")
        scales = weights.get(f"{kind}_scale{layer}{rest}")
        if scales is not None:
            wide = wide_inputs and kind == "weight_ih"
            matrices[name] = Int8Matrix(array, scales, wide)
        elif not kind.endswith("_scale"):
            matrices[name] = array.astype(np.float64)
    return matrices
