"""What a graph takes and makes: a name, a dtype and a shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..weights import Array
from .onnx_file import import_onnx

if TYPE_CHECKING:
    import onnx


class Port(NamedTuple):
    """An input or output of a graph: its name, dtype and shape, None where any size may be."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | None, ...] | None

    def fit(self, value: Any) -> Array:
        """Return a value as an array that this input takes, or raise ValueError or TypeError."""
        if self.dtype is None or self.shape is None:
            return np.asarray(value)
        array: Array = value if isinstance(value, np.ndarray) else np.asarray(value, self.dtype)
        if array.dtype != self.dtype:
            raise TypeError(f"{self.name} is {array.dtype}, expected {self.dtype}")
        fits = array.ndim == len(self.shape)
        for want, have in zip(self.shape, array.shape):
            fits = fits and (want is None or want == have)
        if not fits:
            shape = ", ".join("any" if n is None else str(n) for n in self.shape)
            raise ValueError(f"{self.name} has shape {array.shape}, expected ({shape})")
        return array


def port_of(info: onnx.ValueInfoProto) -> Port:
    """Return the port that a file describes."""
    onnx = import_onnx()
    if not info.type.HasField("tensor_type"):
        return Port(info.name, None, None)
    tensor = info.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        raise ValueError(f"{info.name} is of type {tensor.elem_type}, which is none") from None
    if not tensor.HasField("shape"):
        return Port(info.name, dtype, None)
    sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return Port(info.name, dtype, tuple(n if n and n > 0 else None for n in sizes))
