"""The safetensors layout: named arrays behind a JSON header, read and written with NumPy alone.

    8 bytes   length n of the header, little-endian
    n bytes   {"__metadata__": {string: string}, name: {"dtype", "shape", "data_offsets"}, ...}
    the rest  the arrays one after another, little-endian, C order, without gaps

A header is read and checked whole before any array is: what a file says costs no memory beyond
the file's own size, and every fault is a ValueError. (The safetensors package takes the header's
word for sizes, knows no bfloat16 under NumPy, and ends some broken files in a panic, which is no
Exception; the tests hold this module against it.)
"""

from __future__ import annotations

import json
import os
import reprlib
import sys
from collections.abc import Collection, Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .weights import Array, widened

MAX_HEADER = 8 * 2**20  # bytes, about 90,000 names; larger ones are neither written nor read
DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip
ITEM_SIZES = {name: np.dtype(code).itemsize for name, code in DTYPES.items()}
NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


class Entry(NamedTuple):
    """One array of a file, not read yet.

    Attributes
    ----------
    name : str
    kind : str
        Its dtype as the file names it, a key of `DTYPES`.
    shape : tuple of int
    start, stop : int
        Its bytes, counted from the start of the file.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self, file: BinaryIO) -> Array:
        """Return the array, in native byte order; bfloat16 becomes float32, which is exact."""
        file.seek(self.start)
        content = file.read(self.stop - self.start)
        if len(content) != self.stop - self.start:
            raise ValueError(f"the file ends within {shown(self.name)}")
        array = np.frombuffer(content, DTYPES[self.kind]).reshape(self.shape)
        if self.kind == "BF16":
            return widened(array)
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def shown(value: Any) -> str:
    """Return what a file holds as a message may show it: in one line, never long, and soon."""
    # repr of ((x, x), (x, x)) nested forty times over takes for ever; reprlib stops at a depth.
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    """Return the metadata and the entries of a file of `size` bytes.

    Raises ValueError unless header and sizes are those of a whole file.
    """
    try:
        return _entries(_header(file, size), size)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error


def _header(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError(f"its header would have {length} bytes, the file has {size}")
    if length > MAX_HEADER:
        raise ValueError(f"its header has {length} bytes, expected at most {MAX_HEADER}")
    header = file.read(length)
    if len(header) != length or header[:1] != b"{":
        raise ValueError("its header does not begin with a brace")
    return header


def _entries(header: bytes, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    content = parse_json(header.decode())
    metadata = content.pop("__metadata__", {})
    if not _is_object(metadata, str):
        raise ValueError(f"its metadata is {shown(metadata)}, expected strings by name")
    base = 8 + len(header)
    entries = {name: _entry(name, fields, base) for name, fields in content.items()}
    position = base
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != position:
            raise ValueError(f"{shown(entry.name)} starts at {entry.start}, expected {position}")
        position = entry.stop
    if position != size:
        raise ValueError(f"its arrays end at byte {position}, the file at {size}")
    return metadata, entries


def _entry(name: str, fields: Any, base: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(name)} is {shown(fields)}, expected dtype, shape, data_offsets")
    kind, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"{shown(name)} has dtype {shown(kind)}, expected {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > 32:
        raise ValueError(f"{shown(name)} has shape {shown(shape)}, expected at most 32 sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown(name)} has offsets {shown(offsets)}, expected two")
    start, stop = offsets
    needed = prod(shape) * ITEM_SIZES[kind]
    if stop - start != needed or max(shape, default=0) > sys.maxsize:
        raise ValueError(
            f"{shown(name)} has {stop - start} bytes, its shape {shown(shape)} needs {needed}"
        )
    return Entry(name, kind, tuple(shape), base + start, base + stop)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _is_object(value: Any, of: type) -> bool:
    return isinstance(value, dict) and all(isinstance(item, of) for item in value.values())


def parse_json(text: str) -> dict[str, Any]:
    """Return a JSON object as a dict; ValueError for anything else, and for a name given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(a for a, b in zip(sorted(names), sorted(names)[1:]) if a == b)
            raise ValueError(f"{shown(twice)} stands there twice")
        return found

    def integer(digits: str) -> int:
        if len(digits) > 20:  # more take time by the square of their number
            raise ValueError(f"{shown(digits)} is no size")
        return int(digits)

    found = json.loads(text, object_pairs_hook=unique, parse_int=integer)
    if not isinstance(found, dict):
        raise ValueError(f"{shown(found)} is no JSON object")
    return found


def to_bytes(
    arrays: Mapping[str, Array], metadata: Mapping[str, str], bfloat16: Collection[str] = ()
) -> list[bytes | memoryview]:
    """Return the parts of a file, in order: its header, then each array.

    The arrays named by `bfloat16` are uint16 and hold the bits of such numbers.

    Raises ValueError if there are more names than a header may hold.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[bytes | memoryview] = []
    position = 0
    # Wider items first, so that every array lies at a multiple of its item size.
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):
        kind = "BF16" if name in bfloat16 else NAMES[array.dtype]
        content = np.ascontiguousarray(array, DTYPES[kind]).reshape(-1).view(np.uint8).data
        offsets = [position, position + len(content)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        position = offsets[1]
        parts.append(content)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"the names of {len(arrays)} arrays take {len(text)} bytes, a file's header holds "
            f"at most {MAX_HEADER}"
        )
    return [len(text).to_bytes(8, "little") + text, *parts]


def size_of(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size
