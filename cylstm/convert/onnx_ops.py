"""Operators of ONNX in NumPy, for those of a whole graph that the evaluator is slow at.

Everything here is also in the onnx package's reference evaluator, which runs what is not here.
What makes the difference for a model that is called step by step is what is done before the call:
a Slice by constants is an index here, an Unsqueeze a shape; and a convolution is a product by
BLAS. A maker gets a node's attributes and those of its inputs that are constants, and returns
(function, which inputs it takes), or None: the evaluator's form is then used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

import numpy as np

from .. import _core
from ..weights import Array

Constants = Sequence["Array | None"]
Made = tuple[Callable[..., Any], tuple[int, ...]]
Maker = Callable[[dict[str, Any], Constants], "Made | None"]

COLUMNS = 1 << 20  # elements that a convolution lays out at a time
SMALL = 1 << 19  # multiply-adds of a product that BLAS gets: from about there it starts threads

MAKERS: dict[str, Maker] = {}


def maker(*names: str) -> Callable[[Maker], Maker]:
    def register(function: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, function))
        return function

    return register


ZERO = {np.dtype(t): np.array(0, t) for t in "efdbhilBHIL"}
HALF = {np.dtype(t): np.array(0.5, t) for t in "efd"}


def _sigmoid(x: Array) -> Array:
    half = HALF[x.dtype]  # (an array without axes: quicker than a number)
    return np.multiply(np.tanh(np.multiply(x, half)), half) + half  # never overflows


def _relu(x: Array) -> Array:
    return np.maximum(x, ZERO[x.dtype])


UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "Mul": np.multiply,
    "Or": np.logical_or,
    "Sub": np.subtract,
}


def make(op_type: str, opset: int, attributes: dict[str, Any], constants: Constants) -> Made | None:
    """Return (function, indices of the inputs it takes), or None."""
    if op_type in UNARY and set(attributes) <= {"consumed_inputs"}:
        return UNARY[op_type], (0,)
    if op_type in BINARY:
        # Before version 7, "broadcast" and "axis" aligned the second with the first.
        return None if opset < 7 or attributes else (BINARY[op_type], (0, 1))
    return MAKERS[op_type](attributes, constants) if op_type in MAKERS else None


def integers(attributes: dict[str, Any], constants: Constants, name: str, index: int) -> Any:
    """Integers that newer versions take as an input and older ones as an attribute.

    None where they are absent; raises LookupError where they are no constant.
    """
    if name in attributes:
        value = attributes[name]
        return [value] if isinstance(value, int) else list(value)
    if index >= len(constants) or constants[index] is ABSENT:
        return None
    value = constants[index]
    if value is None:
        raise LookupError(name)
    return [int(n) for n in np.ravel(value)]


ABSENT: Any = np.empty(0)  # stands among the constants for an input that is not there


@maker("Pow")
def _pow(attributes: dict[str, Any], constants: Constants) -> Made | None:
    exponent = constants[1]
    if exponent is None or exponent.size != 1 or exponent.ndim or exponent != 2:
        return None
    return (lambda x: x * x), (0,)


@maker("Cast")
def _cast(attributes: dict[str, Any], constants: Constants) -> Made | None:
    dtype: np.dtype[Any] | None = PLAIN_TYPES.get(attributes["to"])
    if dtype is None:
        return None

    def convert(x: Array) -> Array:
        if x.dtype == dtype:
            return x
        if x.dtype.kind not in "biuf":
            raise TypeError(f"from {x.dtype}")
        return x.astype(dtype)

    return convert, (0,)


# onnx.TensorProto.DataType of what NumPy has
PLAIN_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
}


@maker("Shape")
def _shape(attributes: dict[str, Any], constants: Constants) -> Made | None:
    part = slice(attributes.get("start", 0), attributes.get("end"))
    return (lambda x: np.array(x.shape[part], np.int64)), (0,)


@maker("Size")
def _size(attributes: dict[str, Any], constants: Constants) -> Made | None:
    return (lambda x: np.array(x.size, np.int64)), (0,)


@maker("Gather")
def _gather(attributes: dict[str, Any], constants: Constants) -> Made | None:
    axis = attributes.get("axis", 0)
    if axis == 0:
        return (lambda x, indices: x[indices]), (0, 1)
    return (lambda x, indices: x.take(indices, axis)), (0, 1)


@maker("Concat")
def _concat(attributes: dict[str, Any], constants: Constants) -> Made | None:
    axis = attributes.get("axis", 1)
    return (lambda *parts: np.concatenate(parts, axis)), tuple(range(len(constants)))


@maker("Transpose")
def _transpose(attributes: dict[str, Any], constants: Constants) -> Made | None:
    order = attributes.get("perm")
    return (lambda x: x.transpose(order)), (0,)


@maker("Slice")
def _slice(attributes: dict[str, Any], constants: Constants) -> Made | None:
    try:
        starts = integers(attributes, constants, "starts", 1)
        ends = integers(attributes, constants, "ends", 2)
        axes = integers(attributes, constants, "axes", 3)
        steps = integers(attributes, constants, "steps", 4)
    except LookupError:
        return None
    axes = range(len(starts)) if axes is None else axes
    if any(axis < 0 for axis in axes):
        return None
    index = [slice(None)] * (max(axes, default=-1) + 1)
    for k, axis in enumerate(axes):
        step = 1 if steps is None else steps[k]
        if step < 0:  # an end past the start is written as a large negative number
            return None
        index[axis] = slice(starts[k], ends[k], step)
    key = tuple(index)
    return (lambda x: x[key]), (0,)


@maker("Squeeze")
def _squeeze(attributes: dict[str, Any], constants: Constants) -> Made | None:
    try:
        axes = integers(attributes, constants, "axes", 1)
    except LookupError:
        return None
    chosen = None if axes is None else tuple(axes)
    return (lambda x: x.squeeze(chosen)), (0,)


@maker("Unsqueeze")
def _unsqueeze(attributes: dict[str, Any], constants: Constants) -> Made | None:
    try:
        axes = integers(attributes, constants, "axes", 1)
    except LookupError:
        return None
    if axes is None or len(set(axes)) < len(axes):
        return None
    if min(axes) < 0:
        if axes == [-1]:
            return (lambda x: x[..., None]), (0,)
        return (lambda x: np.expand_dims(x, axes)), (0,)
    # An index of None makes an axis; the axes are those of the result.
    key = tuple(None if axis in axes else slice(None) for axis in range(max(axes) + 1))
    return (lambda x: x[key]), (0,)


@maker("Reshape")
def _reshape(attributes: dict[str, Any], constants: Constants) -> Made | None:
    try:
        wanted = integers(attributes, constants, "shape", 1)
    except LookupError:
        return None
    if attributes.get("allowzero", 0) or wanted is None:
        return None
    if 0 not in wanted:
        shape = tuple(wanted)
        return (lambda x: x.reshape(shape)), (0,)
    return (lambda x: x.reshape([n or x.shape[k] for k, n in enumerate(wanted)])), (0,)


@maker("ReduceMean")
def _reduce_mean(attributes: dict[str, Any], constants: Constants) -> Made | None:
    try:
        axes = integers(attributes, constants, "axes", 1)
    except LookupError:
        return None
    if axes is None:
        return None
    chosen: Any = axes[0] if len(axes) == 1 else tuple(axes)
    keep, add = bool(attributes.get("keepdims", 1)), cast(Any, np.add.reduce)

    def mean(x: Array) -> Array:
        if x.dtype.kind != "f":
            raise TypeError(f"mean of {x.dtype}")
        y: Array = add(x, chosen, keepdims=keep)
        return y / x.dtype.type(x.size // max(y.size, 1))

    return mean, (0,)


@maker("Pad")
def _pad(attributes: dict[str, Any], constants: Constants) -> Made | None:
    mode = attributes.get("mode", "constant")
    try:
        pads = integers(attributes, constants, "pads", 1)
    except LookupError:
        return None
    if mode not in ("constant", "reflect") or pads is None or min(pads) < 0:
        return None
    if len(constants) > 3 and constants[3] is not ABSENT:  # of some axes only
        return None
    n = len(pads) // 2
    before, after = pads[:n], pads[n:]
    if mode == "constant":
        value = attributes.get("value", 0)
        if len(constants) > 2 and constants[2] is not ABSENT:
            if constants[2] is None:
                return None
            value = constants[2]

        def pad(x: Array) -> Array:
            padded = np.full([b + m + a for b, m, a in zip(before, x.shape, after)], value, x.dtype)
            padded[tuple(slice(b, b + m) for b, m in zip(before, x.shape))] = x
            return padded

        return pad, (0,)

    if mode == "edge":
        return None
    changed = [(axis, b, a) for axis, (b, a) in enumerate(zip(before, after)) if b or a]

    def reflect(x: Array) -> Array:
        for axis, b, a in changed:
            if max(a, b) >= x.shape[axis]:
                raise ValueError(f"reflects {max(a, b)} of axis {axis} of x of shape {x.shape}")
            y = x.swapaxes(0, axis)
            x = np.concatenate([y[b:0:-1], y, y[-2 : -2 - a : -1]]).swapaxes(0, axis)
        return x

    return reflect, (0,)


def product(W: Array, bias: Array | None) -> Callable[[Array], Array]:
    """Return x (N, K) to x W^T + bias (N, M), for W (M, K).

    BLAS is quick to start; our own kernels hold what `set_num_threads` says, and do not wait for
    a thread that has lost its core.
    """
    W, WT = np.ascontiguousarray(W), np.ascontiguousarray(W.T)
    if bias is not None:
        bias = np.ascontiguousarray(bias)
    ours = W.dtype in (np.float32, np.float64) and (bias is None or bias.dtype == W.dtype)

    def multiply(x: Array) -> Array:
        if ours and len(x) * W.size > SMALL and x.dtype == W.dtype:
            x = np.ascontiguousarray(x)
            return _core.linear_forward(x, W, bias, _core._threads(None))
        y: Array = x @ WT
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
    turn_a, turn_b = attributes.get("transA", 0), attributes.get("transB", 0)
    if alpha != 1 or beta != 1 or "broadcast" in attributes:
        return None

    W, bias = constants[1], constants[2] if len(constants) > 2 else ABSENT
    simple = bias is not None and (bias is ABSENT or bias.ndim == 1) and not turn_a
    if W is not None and W.size and W.dtype.kind == "f" and simple:
        W = W if turn_b else W.T
        vector = None if bias is None or bias is ABSENT else bias
        if vector is None or len(vector) == len(W):
            return product(W, vector), (0,)

    def gemm(a: Array, b: Array, c: Array | None = None) -> Array:
        y = (a.T if turn_a else a) @ (b.T if turn_b else b)
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
        """A row of a few steps, (1, C, T) to (1, M, T'): turning axes would take longer."""
        windows = shape.of_row(x)
        if M * windows.size > SMALL:
            return None
        y: Array = by_channel @ windows.reshape(taps, -1)
        if column is not None:
            y += column
        return y[None]

    is_row = W.ndim == 3 and groups == 1

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
