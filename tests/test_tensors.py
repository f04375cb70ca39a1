"""The safetensors layout, held against the safetensors package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from cylstm import tensors, weights
from helpers import same_bits

ARRAYS: dict[str, Any] = {
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5),
    "flags": np.array([True, False, True]),
    "strided": np.arange(24.0).reshape(4, 6)[::2, ::-1],
    'ünï/"code"': np.arange(5, dtype=np.int16),
    "half": np.array([1.5, np.inf, np.nan], np.float16),
    **{f"u{n}": np.arange(n, dtype=f"u{n}") for n in (1, 2, 4, 8)},
    **{f"i{n}": -np.arange(n + 1, dtype=f"i{n}") for n in (1, 2, 4, 8)},
    "float": np.random.default_rng(1).standard_normal((7, 17)).astype(np.float32),
}


def read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with open(path, "rb") as file:
        metadata, entries = tensors.read_header(file, path.stat().st_size)
        return metadata, {name: entry.read(file) for name, entry in entries.items()}


def test_the_package_reads_what_is_written(tmp_path: Path) -> None:
    parts = tensors.to_bytes(ARRAYS, {"key": "välue"})
    (tmp_path / "a").write_bytes(b"".join(parts))
    found = safetensors.numpy.load_file(tmp_path / "a")
    assert found.keys() == ARRAYS.keys()
    assert all(same_bits(found[name], array) for name, array in ARRAYS.items())
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as opened:
        assert opened.metadata() == {"key": "välue"}


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    contiguous = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    for metadata in (None, {"key": "välue"}):
        safetensors.numpy.save_file(contiguous, tmp_path / "a", metadata)
        found_metadata, found = read(tmp_path / "a")
        assert found_metadata == (metadata or {})
        assert all(same_bits(found[name], array) for name, array in contiguous.items())


def test_arrays_lie_at_multiples_of_their_items(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"".join(tensors.to_bytes(ARRAYS, {})))
    with open(tmp_path / "a", "rb") as file:
        _, entries = tensors.read_header(file, tensors.size_of(file))
    for entry in entries.values():
        assert entry.start % tensors.ITEM_SIZES[entry.kind] == 0


def test_bfloat16_is_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    wide = weights.widened(bits)
    assert wide.dtype == np.float32
    assert np.array_equal(wide.view(np.uint32) >> 16, bits)
    assert list(weights.widened(np.array([0x3F80, 0xC040, 0x7F80], np.uint16))) == [1, -3, np.inf]


def header(text: str, rest: int = 0) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode() + bytes(rest)


A = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
B = A.replace('"a"', '"b"')


def with_a(old: str, new: str, rest: int = 8) -> bytes:
    """A file with one array, in whose entry something is replaced."""
    return header("{" + A.replace(old, new) + "}", rest)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "its header would have 0 bytes, the file has 0"),
        (b"\xff" * 8, "its header would have 18446744073709551615 bytes, the file has 8"),
        (header("[]"), "does not begin with a brace"),
        (header("{]"), "Expecting property name"),
        (with_a("", "", 7), "its arrays end at byte 77, the file at 76"),
        (with_a("", "", 9), "its arrays end at byte 77, the file at 78"),
        (header("{" + A + "," + A + "}", 8), "'a' stands there twice"),
        (with_a("F32", "F31"), "'a' has dtype 'F31'"),
        (with_a("[2]", "[3]"), r"'a' has 8 bytes, its shape \[3\] needs 12"),
        (with_a("[2]", "[-2]"), "at most 32 sizes"),
        (with_a("[2]", "[2.0]"), "at most 32 sizes"),
        (with_a("[2]", "[true, 2]"), "at most 32 sizes"),
        (with_a("[2]", "[" + "1, " * 40 + "1]"), "at most 32 sizes"),
        (with_a("[2]", f"[2, {10**25}]"), "is no size"),
        (with_a("[2]", f"[2, {10**19}]"), "'a' has 8 bytes"),
        (with_a("0, 8", "8, 0"), "'a' has -8 bytes"),
        (with_a("0, 8", "4, 12", 12), "'a' starts at 74, expected 70"),
        (header("{" + A + "," + B + "}", 8), "'b' starts at 129, expected 137"),
        (header('{"a": {"dtype": "F32"}}'), "expected dtype, shape, data_offsets"),
        (header('{"__metadata__": {"a": 1}}'), "its metadata is"),
        (header('{"a": "' + "x" * 10**6 + '"}'), r"\.\.\. \(1000002 characters\)"),
        (b"\x04\0\0\0\0\0\0\0{\xff\xff}", "codec can't decode"),
    ],
)
def test_broken_files(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path / "a")
    assert str(error.value).startswith("not a whole safetensors file: ")
