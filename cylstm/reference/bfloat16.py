"""Matrices of bfloat16 whose products with rows round the rows as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def round_bfloat16(array: Array) -> Array:
    """float32 numbers -> the nearest bfloat16, halves to even, as float64; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    near = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(array), np.nan, near.astype(np.float64))


class Bfloat16Matrix:
    """W (M, K) of bfloat16, which stands where the equations want a matrix.

    ``x @ W.T`` rounds x, and sums exact products in float64.
    """

    __array_ufunc__ = None  # so that x @ W.T asks here
    dtype = np.dtype(np.float64)  # of the products

    def __init__(self, bits: Array) -> None:
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, rows: slice) -> Bfloat16Matrix:
        return Bfloat16Matrix(self.bits[rows])

    @property
    def T(self) -> Bfloat16Matrix:
        """Itself: it stands to the right of a product, and only there."""
        return self

    def _widened(self) -> Array:
        return (self.bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)

    def __rmatmul__(self, x: Array) -> Array:
        return round_bfloat16(x) @ self._widened().T

    def bound(self, x: Array) -> Array:
        """How far float32 sums of ``x @ W.T`` may be off: each pair of products is rounded into the
        sum twice, by at most 2^-24 or, to odd, by less than 2^-23."""
        pairs = -(-self.bits.shape[1] // 2)
        magnitudes = np.abs(round_bfloat16(x)) @ np.abs(self._widened()).T
        return (pairs + 1) * 2.0**-23 * magnitudes


def bfloat16_weights(weights: Mapping[str, Array]) -> dict[str, Any]:
    """Weights of bfloat16, as their bits, by name, as `forward` takes them."""
    return {
        name: Bfloat16Matrix(array) if array.dtype == np.uint16 else array.astype(np.float64)
        for name, array in weights.items()
    }
