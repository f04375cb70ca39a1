"""Operators of ONNX in NumPy, for those of a whole graph that the evaluator is slow at.

Everything here is also in the onnx package's reference evaluator, which runs what is not here.
What makes the difference for a model that is called step by step is what is done before the call:
a Slice by constants is an index here, an Unsqueeze a shape. What is of elements and shapes is in
this file, `onnx_products.py` has the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..weights import Array
from . import onnx_products  # noqa: F401 (its makers, for the table)
from .onnx_makers import ABSENT, MAKERS, Constants, Made, integers, maker

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
    index = constants[1]
    if axis == 0 and index is not None and not index.ndim:
        row = int(index), ...
        return (lambda x: x[row]), (0,)
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
        count = x.size // max(y.size, 1)
        return y if count == 1 else y / x.dtype.type(count)

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

    changed = [(axis, b, a) for axis, (b, a) in enumerate(zip(before, after)) if b or a]

    def reflect(x: Array) -> Array:
        for axis, b, a in changed:
            if max(a, b) >= x.shape[axis]:
                raise ValueError(f"reflects {max(a, b)} of axis {axis} of x of shape {x.shape}")
            y = x.swapaxes(0, axis)
            x = np.concatenate([y[b:0:-1], y, y[-2 : -2 - a : -1]]).swapaxes(0, axis)
        return x

    return reflect, (0,)
