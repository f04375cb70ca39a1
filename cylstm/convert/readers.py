"""The formats of model files, and how one tells them apart by what a file begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .source import Source


class Reader(NamedTuple):
    """One format: its name for people, the module that reads it, and whether a file is of it."""

    name: str
    module: str
    sniff: Callable[[Source], bool]


def _is_safetensors(source: Source) -> bool:
    return source.head[8:9] == b"{" and int.from_bytes(source.head[:8], "little") < source.size


def _is_torch(source: Source) -> bool:
    """An archive of torch.save, or a pickle of protocol 2 or later, as before 1.6."""
    is_pickle = source.head[:1] == b"\x80" and source.head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    return is_pickle or any(name.endswith("/data.pkl") for name in source.names)


def _is_numpy(source: Source) -> bool:
    return bool(source.names) and all(name.endswith(".npy") for name in source.names)


def _is_keras(source: Source) -> bool:
    hdf5 = source.head.startswith(b"\x89HDF\r\n\x1a\n")
    return hdf5 or {"config.json", "model.weights.h5"} <= source.names


def _is_onnx(source: Source) -> bool:
    """A protobuf that starts with a small ir_version and goes on with a field of ModelProto."""
    head = source.head
    return len(head) > 2 and head[0] == 0x08 and head[1] < 64 and head[2] in b'\x12\x1a"(2:B'


READERS = (
    Reader("safetensors", "safetensors", _is_safetensors),
    Reader("PyTorch", "torch", _is_torch),
    Reader("NumPy", "npz", _is_numpy),
    Reader("Keras", "keras", _is_keras),
    Reader("ONNX", "onnx", _is_onnx),
)
