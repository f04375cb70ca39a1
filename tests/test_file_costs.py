"""What a hostile file may cost, until it is refused."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import cylstm

on_posix = pytest.mark.skipif(os.name != "posix", reason="files as on POSIX")


def header_of(path: Path, entries: dict[str, Any], metadata: dict[str, str]) -> int:
    """Write a file that is all header; return the position after it."""
    text = json.dumps({"__metadata__": metadata, **entries}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)


METADATA = {
    "cylstm.format": "1",
    "cylstm.class": "Linear",
    "cylstm.config": '{"in_features": 3, "out_features": 2, "dtype": "float32"}',
}


def refused_in(path: Path, seconds: float, megabytes: float) -> str:
    """The message of a load that must end with ValueError within these bounds."""
    start = time.process_time()
    with pytest.raises(ValueError) as error:
        cylstm.load(path)
    assert time.process_time() - start < seconds
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            cylstm.load(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 3000
    return str(error.value)


@pytest.mark.slow
def test_many_names(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header_of(tmp_path / "a", {f"n{i}": entry for i in range(40_000)}, METADATA)
    message = refused_in(tmp_path / "a", 5, 200)
    assert "missing: weight, bias; unexpected: n0, n1" in message


def test_a_sparse_file_is_compared_before_it_is_read(tmp_path: Path) -> None:
    size = 9 * 2**30
    entry = {"dtype": "F32", "shape": [3, size // 12], "data_offsets": [0, size]}
    start = header_of(tmp_path / "a", {"weight": entry}, METADATA)
    os.truncate(tmp_path / "a", start + size)
    assert "weight has shape (3, 805306368), expected (2, 3)" in refused_in(tmp_path / "a", 2, 2)


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    length = 87 * 2**20
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + b"{")
    os.truncate(tmp_path / "a", length + 8)
    assert "expected at most 8388608" in refused_in(tmp_path / "a", 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[" * 4_000_000, '{"a":' * 1_500_000, "1" * 8_000_000])
def test_json_that_costs(text: str, tmp_path: Path) -> None:
    header = b'{"a": ' + text.encode()
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header)
    refused_in(tmp_path / "a", 5, 100)


def test_long_names_and_values(tmp_path: Path) -> None:
    long = "n" * 1_000_000
    header_of(tmp_path / "a", {long: {"dtype": long}}, METADATA)
    refused_in(tmp_path / "a", 2, 20)
    header_of(tmp_path / "a", {}, METADATA | {"cylstm.class": long})
    refused_in(tmp_path / "a", 2, 20)
    header_of(tmp_path / "a", {}, METADATA | {"cylstm.config": json.dumps({long: 1})})
    refused_in(tmp_path / "a", 2, 20)


def test_many_layers_without_arrays(tmp_path: Path) -> None:
    config = {"input_size": 1, "hidden_size": 1, "num_layers": 60_000, "dtype": "float32"}
    metadata = METADATA | {"cylstm.class": "LSTM", "cylstm.config": json.dumps(config)}
    header_of(tmp_path / "a", {}, metadata)
    assert "60000 layers, but 0 arrays" in refused_in(tmp_path / "a", 1, 2)


@on_posix
def test_no_regular_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(ValueError, match="not a regular file"):
            cylstm.load(path)
