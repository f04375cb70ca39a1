"""Arrays of files that are not read yet, and those that pickles describe: torch's and NumPy's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np

from ..tensors import shown
from ..weights import Array, widened
from .unpickle import Makers, Name

MAX_AXES = 32


class Unread(NamedTuple):
    """An array whose values are not read yet.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        A NumPy name, or bfloat16, which is read as float32.
    read : function
        Returns the array, in native byte order.
    place : hashable or None
        Equal for two that are the same piece of the file.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]
    place: Any = None


def sizes(value: Any, what: str) -> tuple[int, ...]:
    """Return a shape or strides that a file claims as a tuple, or raise ValueError."""
    if (
        not isinstance(value, (tuple, list))
        or len(value) > MAX_AXES
        or not all(type(n) is int and 0 <= n < 2**62 for n in value)
    ):
        raise ValueError(f"{what} is {shown(value)}, expected sizes")
    return tuple(value)


# --- torch

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
# Bytes of an element of those that are not read, but passed over.
OTHER_WIDTHS = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16}
DTYPES = {
    "float32": "float32", "float": "float32", "float64": "float64", "double": "float64",
    "float16": "float16", "half": "float16", "bfloat16": "bfloat16", "int64": "int64",
    "int32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8", "bool": "bool",
}  # fmt: skip


def item_type(dtype: str) -> np.dtype[Any]:
    """Return how NumPy holds items of a dtype; those of bfloat16 as the bits that they are."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


@dataclass(frozen=True)
class Storage:
    """A piece of memory of torch's, which tensors are views of.

    Attributes
    ----------
    dtype : str, or None for one that has no place here
    count : int
        Elements.
    read : function
        Returns its bytes, `count` times the item size, in the byte order of `order`.
    order : "<" or ">"
    key : str
        Its name in the file; empty if it has none.
    """

    dtype: str | None
    count: int
    read: Callable[[], bytes]
    order: Literal["<", ">"] = "<"
    key: str = ""


def tensor(
    storage: Any, offset: Any = 0, size: Any = (), stride: Any = (), *rest: Any, dtype: Any = None
) -> Any:
    """Return the tensor that torch._utils._rebuild_tensor would make, unread."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = sizes(size, "a tensor's size"), sizes(stride, "a tensor's stride")
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise ValueError(f"a tensor of size {shown(shape)}, stride {shown(strides)}")
    if storage.dtype is None:
        return Unread(shape, "unknown", _of_unknown_type)
    stop = offset + sum((n - 1) * step for n, step in zip(shape, strides)) + 1
    if prod(shape) and (stop > storage.count or prod(shape) > storage.count):
        raise ValueError(
            f"a tensor of size {shown(shape)} and stride {shown(strides)} from {offset} on in a "
            f"storage of {storage.count} elements"
        )
    kind = storage.dtype
    # The last of `rest` says of a view of a conjugate that its values are the negatives.
    negative = any(isinstance(one, dict) and one.get("neg") for one in rest)

    def read() -> Array:
        held = item_type(kind)
        items = np.frombuffer(storage.read(), held.newbyteorder(storage.order), storage.count)
        steps = tuple(step * held.itemsize for step in strides)
        if not prod(shape):
            return np.zeros(shape, np.float32 if kind == "bfloat16" else held)
        view = np.lib.stride_tricks.as_strided(items[offset:], shape, steps)
        array = np.ascontiguousarray(view, held).reshape(shape)
        array = widened(array) if kind == "bfloat16" else array
        return -array if negative else array

    place = (storage.key, offset, shape, strides, negative) if storage.key else None
    return Unread(shape, kind, read, place)


def _of_unknown_type() -> Array:
    raise ValueError("an array of a type that cylstm does not read")


def tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """A tensor over bytes, whose dtype is the third of `rest`."""
    named = rest[2] if len(rest) > 2 else None
    dtype = DTYPES.get(named.name) if isinstance(named, Name) else None
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    width = item_type(dtype).itemsize if dtype else 1
    typed = Storage(dtype, storage.count // width, storage.read, storage.order, storage.key)
    return tensor(typed, offset, size, stride, *rest)


def sparse(layout: Any, data: Any, *rest: Any) -> Any:
    """A tensor that is refused by its name."""
    _, _, size, *_ = data
    return Unread(sizes(size, "a tensor's size"), "sparse", _of_unknown_type)


def without_values(dtype: Any, size: Any, *rest: Any) -> Any:
    """A tensor on torch's device "meta"; likewise."""
    return Unread(sizes(size, "a tensor's size"), "without values", _of_unknown_type)


def parameter(data: Any, *rest: Any) -> Any:
    """A parameter is its data."""
    return data


def torch_size(size: Any = ()) -> Any:
    return sizes(size, "a torch.Size")


TORCH: Makers = {
    Name("torch._utils", "_rebuild_tensor"): tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): tensor_v3,
    Name("torch._utils", "_rebuild_sparse_tensor"): sparse,
    Name("torch._utils", "_rebuild_meta_tensor_no_storage"): without_values,
    Name("torch._utils", "_rebuild_parameter"): parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): parameter,
    Name("torch.nn.parameter", "Parameter"): parameter,
    Name("torch", "Size"): torch_size,
}


# --- NumPy


class PickledDtype:
    """numpy.dtype, of a plain number."""

    def __init__(self, code: Any, *rest: Any) -> None:
        known = isinstance(code, str) and re.fullmatch(r"[<>|=]?([fiu][1248]|b1|\?)", code)
        self.dtype = np.dtype(code) if known else None

    def build(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if self.dtype is not None and order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """numpy.ndarray, whose content is set after it is made."""

    def __init__(self, *args: Any) -> None:
        self.unread: Unread | None = None

    def build(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, content = state
            self.unread = _numpy_array(content, dtype, shape, "F" if fortran is True else "C")


def _numpy_array(content: Any, dtype: Any, shape: Any, order: str) -> Unread | None:
    """The array, or None if it is not of plain numbers."""
    if isinstance(content, str):  # as Python 2 wrote bytes
        content = content.encode("latin1")
    if not isinstance(dtype, PickledDtype) or dtype.dtype is None:
        return None
    shape, item, held = sizes(shape, "an array's shape"), dtype.dtype.itemsize, dtype.dtype
    if not isinstance(content, (bytes, bytearray)) or prod(shape) * item != len(content):
        raise ValueError(f"an array of shape {shown(shape)}, whose content has another length")

    def read() -> Array:
        array = np.frombuffer(content, held, prod(shape)).reshape(shape, order=order)  # type: ignore[call-overload]
        return np.ascontiguousarray(array, held.newbyteorder("=")).reshape(shape)

    return Unread(shape, held.name, read)


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> Any:
    """What protocol 5 makes of an array."""
    made = PickledArray()
    made.unread = _numpy_array(content, dtype, shape, "F" if order == "F" else "C")
    return made


NUMPY: Makers = {
    Name("numpy", "dtype"): PickledDtype,
    **{
        Name(f"numpy.{core}.{module}", name): maker
        for core in ("core", "_core")
        for module, name, maker in (
            ("multiarray", "_reconstruct", PickledArray),
            ("numeric", "_frombuffer", from_buffer),
        )
    },
}
