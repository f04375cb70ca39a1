"""Pickles written opcode by opcode, and files as torch.save lays them out, without torch."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int8": "CharStorage",
    "int32": "IntStorage",
}  # fmt: skip


class Global:
    """A name that a pickle refers to."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """A call of a name, with what is set afterwards: by BUILD, and by key."""

    def __init__(self, module: str, name: str, *args: Any, state: Any = None, **items: Any) -> None:
        self.of, self.args, self.state, self.items = Global(module, name), args, state, items


class Persistent:
    """What a persistent id stands for."""

    def __init__(self, value: Any) -> None:
        self.value = value


class String:
    """Bytes as Python 2 wrote them."""

    def __init__(self, content: bytes) -> None:
        self.content = content


def opcodes(value: Any) -> bytes:
    """The opcodes that leave a value on the stack."""
    if isinstance(value, String):
        return b"T" + struct.pack("<i", len(value.content)) + value.content
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        made = opcodes(value.of) + opcodes(value.args) + b"R"
        if value.items:
            made += b"(" + b"".join(map(opcodes, _flat(value.items))) + b"u"
        return made + (opcodes(value.state) + b"b" if value.state is not None else b"")
    if isinstance(value, Persistent):
        return opcodes(value.value) + b"Q"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(map(opcodes, _flat(value))) + b"u"
    return pickle.dumps(value, 2)[2:-1]  # a plain value, without its frame


def _flat(items: dict[Any, Any]) -> list[Any]:
    return [part for pair in items.items() for part in pair]


def dumped(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def bits(array: np.ndarray, dtype: str | None = None) -> tuple[str, np.ndarray]:
    """The dtype that a storage has, and its elements; float32 can be stored as bfloat16."""
    if dtype == "bfloat16":
        return dtype, (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return array.dtype.name, array


class TorchFile:
    """Tensors on their way into a file: `tensor` returns the placeholder of one in the value."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.ids: list[Persistent] = []
        self.storages: dict[str, tuple[str, np.ndarray]] = {}

    def storage(self, array: np.ndarray, dtype: str | None = None) -> Persistent:
        key = str(len(self.storages))
        kind, elements = self.storages[key] = bits(array.reshape(-1), dtype)
        of = Global("torch", STORAGES[kind])
        self.ids.append(Persistent(("storage", of, key, "cpu", elements.size)))
        return self.ids[-1]

    def tensor(
        self,
        array: np.ndarray,
        dtype: str | None = None,
        *,
        offset: Any = 0,
        size: Any = None,
        stride: Any = None,
        storage: Persistent | None = None,
    ) -> Call:
        size = array.shape if size is None else size
        whole = tuple(step // array.itemsize for step in np.array(array, order="C").strides)
        return Call(
            "torch._utils", "_rebuild_tensor_v2", storage or self.storage(array, dtype), offset,
            size, whole if stride is None else stride, False, Call("collections", "OrderedDict"),
        )  # fmt: skip

    def content(self, key: str) -> bytes:
        elements = self.storages[key][1]
        return elements.astype(elements.dtype.newbyteorder(self.order)).tobytes()  # type: ignore[arg-type]

    def zip(self, path: Path, value: Any, root: str = "archive", **more: bytes) -> None:
        members = {"data.pkl": value if isinstance(value, bytes) else dumped(value), **more}
        members["version"] = b"3\n"
        members |= {f"data/{key}": self.content(key) for key in self.storages}
        if self.order == ">":
            members["byteorder"] = b"big"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{root}/{name}", content)

    def old(self, path: Path, value: Any) -> None:
        for persistent in self.ids:
            persistent.value = (*persistent.value[:5], None)  # it is no view of another
        system = {"protocol_version": 1001, "little_endian": self.order == "<"}
        parts = [dumped(0x1950A86A20F9469CFC6C), dumped(1001), dumped(system), dumped(value)]
        parts.append(dumped(list(self.storages)))
        for key in self.storages:
            parts.append(struct.pack(f"{self.order}q", self.storages[key][1].size))
            parts.append(self.content(key))
        path.write_bytes(b"".join(parts))


def numpy_array(array: np.ndarray, core: str = "core", python2: bool = False) -> Call:
    """What pickle makes of a NumPy array."""
    order = "<" if array.dtype.byteorder in "=<" else ">"
    dtype = Call(
        "numpy", "dtype", array.dtype.str[1:], False, True,
        state=(3, order, None, None, None, -1, -1, 0),
    )  # fmt: skip
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    content = array.tobytes("A")
    raw: Any = Call("_codecs", "encode", content.decode("latin1"), "latin1")
    raw = String(content) if python2 else raw
    return Call(
        f"numpy.{core}.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,), "b",
        state=(1, array.shape, dtype, bool(fortran), raw),
    )  # fmt: skip
