"""NumPy's .npz archives of arrays with PyTorch's names."""

from __future__ import annotations

import io
from math import prod

import numpy as np

from ..weights import Array
from . import state_dict
from .arrays import Unread
from .found import Contents
from .source import Source

MAX_HEADER = 2**16  # bytes of a member before its values


def read(source: Source, *, nonlinearity: str | None = None) -> Contents:
    """Return what an .npz file holds.

    `nonlinearity`, "tanh" or "relu", is that of an RNN, which names and shapes do not tell.
    """
    arrays = {name.removesuffix(".npy"): _unread(source, name) for name in sorted(source.names)}
    layers, around = state_dict.layers(arrays, {}, source.size, nonlinearity)
    return Contents("NumPy, npz", layers, around)


def _unread(source: Source, name: str) -> Unread:
    head = io.BytesIO(source.start(name, MAX_HEADER))
    version = np.lib.format.read_magic(head)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"{name} is of version {version}, expected 1.0 or 2.0")
    shape, _, dtype = read_header(head)
    most = head.tell() + prod(shape) * dtype.itemsize

    def values() -> Array:
        array = np.lib.format.read_array(io.BytesIO(source.member(name, most)), allow_pickle=False)
        return np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)

    return Unread(tuple(shape), dtype.name, values)
