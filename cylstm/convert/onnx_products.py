"""Operators of ONNX that are products: of matrices, and over the windows of a convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from .. import _core
from ..weights import Array
from .onnx_makers import ABSENT, Constants, Made, maker

COLUMNS = 1 << 20  # elements that a convolution lays out at a time

SMALL = 1 << 19  # multiply-adds of a product that BLAS gets: from about there it starts threads


def product(W: Array, bias: Array | None) -> Callable[[Array], Array]:
    """Return x (N, K) to x W^T + bias (N, M), for W (M, K).

    BLAS is quick to start, by `dot` more than by `@`; our own kernels hold what `set_num_threads`
    says, and do not wait for a thread that has lost its core.
    """
    W, WT = np.ascontiguousarray(W), np.ascontiguousarray(W.T)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    ours = W.dtype in (np.float32, np.float64) and (bias is None or bias.dtype == W.dtype)

    def multiply(x: Array) -> Array:
        if ours and len(x) * W.size > SMALL and x.dtype == W.dtype:
            x = np.ascontiguousarray(x)
            return _core.linear_forward(x, W, bias, _core._threads(None))
        y: Array = x.dot(WT)
        if bias is not None:
            y += bias
        return y

    return multiply


@maker("MatMul")
def _matmul(attributes: dict[str, Any], constants: Constants) -> Made | None:
    W = constants[1]
    if W is None or W.ndim != 2 or W.dtype.kind != "f" or not W.size:
        return np.matmul, (0, 1)
    multiply = product(W.T, None)

    def matmul(x: Array) -> Array:
        if x.ndim < 2 or x.shape[-1] != W.shape[0] or x.dtype != W.dtype or not x.size:
            return np.matmul(x, W)
        return multiply(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    return matmul, (0,)


@maker("Gemm")
def _gemm(attributes: dict[str, Any], constants: Constants) -> Made | None:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    transposed_a, transposed_b = attributes.get("transA", 0), attributes.get("transB", 0)
    if alpha != 1 or beta != 1 or "broadcast" in attributes:
        return None

    W, bias = constants[1], constants[2] if len(constants) > 2 else ABSENT
    simple = bias is not None and (bias is ABSENT or bias.ndim == 1) and not transposed_a
    if W is not None and W.size and W.dtype.kind == "f" and simple:
        W = W if transposed_b else W.T
        vector = None if bias is None or bias is ABSENT else bias
        if vector is None or len(vector) == len(W):
            return product(W, vector), (0,)

    def gemm(a: Array, b: Array, c: Array | None = None) -> Array:
        y = (a.T if transposed_a else a) @ (b.T if transposed_b else b)
        return y if c is None else y + c

    return gemm, tuple(k for k, c in enumerate(constants) if c is not ABSENT)


class Windows:
    """The windows of a convolution or a pooling over one or two axes.

    Channels stand last in memory, so that what a window sees of a row is one piece. One axis is
    two, the first of them 1.
    """

    def __init__(self, attributes: dict[str, Any], kernel: Sequence[int]) -> None:
        n = len(kernel)
        before: list[int] = list(attributes.get("pads") or [0] * (2 * n))
        after = before[n:]
        self.flat = [0] * (2 - n)
        self.kh, self.kw = [1] * (2 - n) + list(kernel)
        self.sh, self.sw = [1] * (2 - n) + list(attributes.get("strides") or [1] * n)
        self.dh, self.dw = [1] * (2 - n) + list(attributes.get("dilations") or [1] * n)
        self.top, self.left = self.flat + before[:n]
        self.bottom, self.right = self.flat + after
        self.padded = any(before)
        # How much a window spans.
        self.height, self.width = self.dh * (self.kh - 1) + 1, self.dw * (self.kw - 1) + 1

    @staticmethod
    def supports(attributes: dict[str, Any], axes: int) -> bool:
        return (
            axes in (1, 2)
            and attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
            and min(attributes.get("pads") or [0]) >= 0
        )

    def of(self, x: Array, fill: float = 0) -> Array:
        """Return the windows (N, ho, wo, kh, kw, C) of x (N, C, ...), a view of a padded copy."""
        if x.ndim != 4 - len(self.flat):
            raise ValueError(f"x has shape {x.shape}, expected {4 - len(self.flat)} axes")
        if self.flat:
            x = x[:, :, None]
        x = x.transpose(0, 2, 3, 1)
        N, h, w, C = x.shape
        if self.padded:
            size = (N, h + self.top + self.bottom, w + self.left + self.right, C)
            whole = np.full(size, fill, x.dtype) if fill else np.zeros(size, x.dtype)
            whole[:, self.top : self.top + h, self.left : self.left + w] = x
            x = whole
            _, h, w, _ = size
        elif not x.flags.c_contiguous:
            x = np.ascontiguousarray(x)
        ho, wo = (h - self.height) // self.sh + 1, (w - self.width) // self.sw + 1
        if ho < 1 or wo < 1:
            raise ValueError(f"x is {h} by {w}, a window {self.height} by {self.width}: no output")
        a, b, c, d = x.strides
        return np.ndarray(
            (N, ho, wo, self.kh, self.kw, C),
            x.dtype,
            x,
            0,
            (a, b * self.sh, c * self.sw, b * self.dh, c * self.dw, d),
        )

    def of_row(self, x: Array) -> Array:
        """Return the windows (C, kw, wo) of x (1, C, T), a view of it or of a padded copy."""
        _, C, T = x.shape
        if self.left or self.right:
            whole = np.zeros((C, self.left + T + self.right), x.dtype)
            whole[:, self.left : self.left + T] = x[0]
            x, T = whole, whole.shape[1]
        elif not x.flags.c_contiguous:
            x = np.ascontiguousarray(x)
        wo = (T - self.width) // self.sw + 1
        if wo < 1:
            raise ValueError(f"x has {T} steps, a window {self.width}: no output")
        step = x.itemsize
        strides = T * step, self.dw * step, self.sw * step
        return np.ndarray((C, self.kw, wo), x.dtype, x, 0, strides)

    def back(self, y: Array) -> Array:
        """Return (N, ho, wo, M) as (N, M, ...)."""
        y = y.transpose(0, 3, 1, 2)
        return y[:, :, 0] if self.flat else y


def convolution(
    attributes: dict[str, Any], W: Array, bias: Array | None
) -> Callable[[Array], Array] | None:
    """A convolution by constant weights (M, C / groups, ...), as one product for each group."""
    groups = attributes.get("group", 1)
    if not Windows.supports(attributes, W.ndim - 2) or groups < 1 or W.shape[0] % groups:
        return None
    shape = Windows(attributes, W.shape[2:])
    M, channels, dtype = W.shape[0], W.shape[1] * groups, W.dtype
    taps = prod(W.shape[1:])
    # (M, taps), the channel of a tap running fastest
    weights = W.transpose(0, *range(2, W.ndim), 1).reshape(M, taps)
    multiply = product(weights, bias)
    of_groups = weights.reshape(groups, M // groups, taps).swapaxes(1, 2)

    def times_weights(windows: Array) -> Array:
        """Windows times weights: (N, ho, wo, M)."""
        N, ho, wo, kh, kw, _ = windows.shape
        if groups == 1:
            return multiply(windows.reshape(-1, taps)).reshape(N, ho, wo, M)
        windows = windows.reshape(N, ho, wo, kh, kw, groups, -1).transpose(0, 5, 1, 2, 3, 4, 6)
        y = windows.reshape(N, groups, -1, taps) @ of_groups
        y = y.swapaxes(1, 2).reshape(N, ho, wo, M)
        return y if bias is None else y + bias

    by_channel = np.ascontiguousarray(W.reshape(M, taps))  # as the file has them
    column = None if bias is None else np.ascontiguousarray(bias[:, None])

    def of_one_row(x: Array) -> Array | None:
        """A row of a few steps, (1, C, T) to (1, M, T'): moving axes would take longer."""
        windows = x[0] if is_point else shape.of_row(x).reshape(taps, -1)
        if M * windows.size > SMALL:
            return None
        y: Array = by_channel.dot(windows)
        if column is not None:
            y += column
        return y[None]

    is_row = W.ndim == 3 and groups == 1
    is_point = shape.kw == shape.sw == 1 and not shape.padded  # each step by itself

    def conv(x: Array) -> Array:
        if x.dtype != dtype or x.shape[1] != channels:
            raise ValueError(
                f"x is {x.dtype} of shape {x.shape}, expected {dtype} and {channels} channels"
            )
        if is_row and x.ndim == 3 and len(x) == 1 and (y := of_one_row(x)) is not None:
            return y
        windows = shape.of(x)
        if windows.size <= COLUMNS:
            y = times_weights(windows)
        else:  # a few rows at a time, for a column has a value for every tap
            ho = windows.shape[1]
            rows = max(1, COLUMNS * ho // windows.size)
            y = np.concatenate(
                [times_weights(windows[:, k : k + rows]) for k in range(0, ho, rows)], 1
            )
        return shape.back(y)

    return conv


@maker("Conv")
def _conv(attributes: dict[str, Any], constants: Constants) -> Made | None:
    W, bias = constants[1], constants[2] if len(constants) > 2 else ABSENT
    if W is None or W.dtype.kind != "f" or bias is None:
        return None
    function = convolution(attributes, W, None if bias is ABSENT else bias)
    return function and (function, (0,))


@maker("ConvInteger")
def _conv_integer(attributes: dict[str, Any], constants: Constants) -> Made | None:
    """In float64, where BLAS is and sums of such products are exact."""
    W = constants[1]
    zeros = [constants[k] if len(constants) > k else ABSENT for k in (2, 3)]
    if W is None or zeros[1] is None or (zeros[1] is not ABSENT and zeros[1].size > 1):
        return None
    W = W.astype(np.float64) - (0.0 if zeros[1] is ABSENT else float(zeros[1].reshape(())))
    function = convolution(attributes, W, None)
    if function is None:
        return None

    def conv(x: Array, zero: Any = 0) -> Array:
        return function(np.subtract(x, zero, dtype=np.float64)).astype(np.int32)

    return conv, (0,) if zeros[0] is ABSENT else (0, 2)


@maker("MatMulInteger")
def _matmul_integer(attributes: dict[str, Any], constants: Constants) -> Made | None:
    zeros = [constants[k] if len(constants) > k else ABSENT for k in (2, 3)]
    if any(zero is None or zero.ndim for zero in zeros[1:] if zero is not ABSENT):
        return None
    weights = constants[1]
    if weights is None or (zeros[0] is not None and zeros[0] is not ABSENT and zeros[0].ndim):
        return None
    weights = weights - np.float64(0 if zeros[1] is ABSENT else zeros[1])

    def matmul(x: Array, zero: Any = 0) -> Array:
        if np.ndim(zero):
            raise ValueError("a zero point for each row of the first matrix is not supported")
        return (np.subtract(x, zero, dtype=np.float64) @ weights).astype(np.int32)

    return matmul, (0,) if zeros[0] is ABSENT else (0, 2)


@maker("MaxPool")
def _max_pool(attributes: dict[str, Any], constants: Constants) -> Made | None:
    kernel = attributes["kernel_shape"]
    if not Windows.supports(attributes, len(kernel)) or attributes.get("ceil_mode", 0):
        return None
    shape = Windows(attributes, kernel)

    def pool(x: Array) -> Array:
        least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        return shape.back(shape.of(x, least).max((3, 4)))

    return pool, (0,)
