"""`load` and `inspect`: formats are told apart by content, and errors name the file."""

from __future__ import annotations

import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import LSTM, Linear
from cylstm.convert import source
from cylstm.convert.found import Contents, Recurrent, build
from helpers import same_bits


def arrays(**sizes: Any) -> dict[str, np.ndarray]:
    return LSTM(**sizes, seed=1).state_dict()


def layer(path: str = "", **fields: Any) -> Recurrent:
    sizes: dict[str, Any] = dict(input_size=3, hidden_size=5)
    defaults: dict[str, Any] = dict(cell="LSTM", **sizes, read=lambda: arrays(**sizes))
    return Recurrent(path, **(defaults | fields))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    for name in ("model.onnx", "model.pt", "model"):
        cylstm.save(Linear(3, 2, seed=1), tmp_path / name)
        assert same_bits(
            cylstm.load(tmp_path / name)._weights.flat, Linear(3, 2, seed=1)._weights.flat
        )


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff" * 1000, b"a,b\n1,2\n"])
def test_no_known_format(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for call in (cylstm.load, cylstm.inspect):
        with pytest.raises(ValueError, match="of no format that cylstm reads: safetensors, ") as e:
            call(path)
        assert str(e.value).startswith(f"{path}: ")


def test_unknown_options(tmp_path: Path) -> None:
    cylstm.save(Linear(3, 2), tmp_path / "a")
    with pytest.raises(TypeError, match="colour"):
        cylstm.load(tmp_path / "a", colour="red")


# --- from a description to a module


def test_a_layer_becomes_a_module() -> None:
    sizes: dict[str, Any] = dict(
        input_size=3, hidden_size=5, num_layers=2, bidirectional=True, proj_size=2, bias=False
    )
    state = arrays(**sizes)
    found = layer(
        num_layers=2, directions=2, proj_size=2, bias=False, options={"batch_first": True},
        read=lambda: state,
    )  # fmt: skip
    module: Any = build(found, dropout=0.5)
    assert repr(module) == repr(LSTM(**sizes, batch_first=True, dropout=0.5))
    assert same_bits(module.state_dict().values(), state.values())
    assert not build(found, batch_first=False).batch_first  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_the_arrays(dtype: str) -> None:
    found = layer(read=lambda: arrays(input_size=3, hidden_size=5, dtype=dtype))
    assert build(found).dtype == dtype
    assert build(found, dtype="float64").dtype == "float64"
    half = {n: a.astype(np.float16) for n, a in found.read().items()}
    assert build(layer(read=lambda: half)).dtype == "float32"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"problem": "its gates are shuffled"}, "a.b: its gates are shuffled"),
        ({"cell": "SRU"}, "a.b: this version has no SRU"),
        ({"options": {"teapot": True}}, "a.b: this version's LSTM has no teapot=True"),
        ({"hidden_size": 6}, r"weight_ih_l0 has shape \(20, 3\), expected \(24, 3\)"),
        ({"directions": 2}, "missing: weight_ih_l0_reverse"),
    ],
)
def test_what_does_not_load(fields: dict[str, Any], message: str) -> None:
    found = layer("a.b", **fields)
    with pytest.raises(ValueError, match=message):
        build(found)
    if message.startswith("a.b: "):  # known before the arrays are read
        assert f"does not load: {message[5:]}" in repr(Contents("test", (found,)))


def test_one_of_several() -> None:
    contents = Contents("test", (layer("encoder.rnn"), layer("decoder.rnn"), layer("a.rnn2")))
    assert contents.find("decoder.rnn") is contents.layers[1]
    assert contents.find("rnn2") is contents.layers[2]
    with pytest.raises(ValueError, match="2 recurrent layers end in 'rnn', expected one of"):
        contents.find("rnn")
    with pytest.raises(ValueError, match="3 recurrent layers, expected one of 'encoder.rnn', 'dec"):
        contents.find(None)
    with pytest.raises(ValueError, match="no recurrent layer 'x', expected one of 'enc"):
        contents.find("x")
    assert Contents("test", (layer("only"),)).find(None).path == "only"
    with pytest.raises(ValueError, match="no recurrent layer in this test file"):
        Contents("test", ()).find(None)


def test_contents_print_as_a_table() -> None:
    contents = Contents(
        "test",
        (
            layer("encoder.rnn", num_layers=2, directions=2, around="embedding -> *"),
            layer("b", proj_size=2, bias=False, options={"batch_first": True}, problem="a reason"),
        ),
        "3 other arrays",
    )
    first, *rows, last = repr(contents).splitlines()
    assert (first, last) == ("test", "also: 3 other arrays")
    starts = [rows[0].index(word) for word in rows[0].split()]
    cells = [
        [row[start:stop].strip() for start, stop in zip(starts, [*starts[1:], None])]
        for row in rows
    ]
    assert cells == [
        ["path", "cell", "input", "hidden", "layers", "directions", "options", "around"],
        ["encoder.rnn", "LSTM", "3", "5", "2", "2", "", "embedding -> *  loads"],
        ["b", "LSTM", "3", "5", "1", "1", "proj_size=2, bias=False, batch_first=True",
         "does not load: a reason"],
    ]  # fmt: skip
    assert "no recurrent layers" in repr(Contents("test", ()))


def test_what_save_wrote_is_listed_and_taken_by_name(tmp_path: Path) -> None:
    cylstm.save(cylstm.LSTM(8, 32, 2, bidirectional=True, peephole=True), tmp_path / "a")
    (layer,) = cylstm.inspect(tmp_path / "a").layers
    assert (layer.path, layer.cell, layer.num_layers, layer.directions) == ("", "LSTM", 2, 2)
    assert layer.options == {"peephole": True} and not layer.obstacle()
    cylstm.save(cylstm.quantize(cylstm.GRU(8, 32), "int8"), tmp_path / "b")
    (layer,) = cylstm.inspect(tmp_path / "b").layers
    assert layer.options == {"weights": "int8"} and not layer.obstacle()

    rnn = cylstm.RNN(4, 5, batch_first=True)
    chain = cylstm.Sequential([("rnn", rnn), ("head", cylstm.Linear(5, 2))])
    cylstm.save(chain, tmp_path / "c")
    found = cylstm.inspect(tmp_path / "c")
    assert [layer.path for layer in found.layers] == ["rnn"]
    assert found.around == "rnn (RNN) -> head (Linear)"
    again = cylstm.load(tmp_path / "c", "rnn")
    assert same_bits(list(again.state_dict().values()), list(rnn.state_dict().values()))
    cylstm.save(cylstm.Linear(5, 2), tmp_path / "d")
    assert not cylstm.inspect(tmp_path / "d").layers
    assert "cylstm.LSTM, safetensors" in repr(cylstm.inspect(tmp_path / "a"))


# --- archives


@contextmanager
def opened(path: Path) -> Iterator[source.Source]:
    with open(path, "rb") as file:
        yield source.Source(str(path), file)


def test_members_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("folder/stored", b"x" * 1000)
        archive.writestr("deflated", b"x" * 1000, zipfile.ZIP_DEFLATED)
    with opened(tmp_path / "a") as found:
        assert found.names == {"folder/stored", "deflated"}
        for name in found.names:
            assert found.member(name, 1000) == b"x" * 1000
            with pytest.raises(ValueError, match="has 1000 bytes, expected at most 999"):
                found.member(name, 999)
        with pytest.raises(ValueError, match="the archive has no other"):
            found.member("other", 1000)


def test_a_bomb_unpacks_to_no_more_than_was_asked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 50_000_000)
    content = (tmp_path / "a").read_bytes()
    lying = content.replace((50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    assert lying != content
    tracemalloc.start()
    for honest in (True, False):
        (tmp_path / "a").write_bytes(content if honest else lying)
        with opened(tmp_path / "a") as found, pytest.raises(ValueError):
            found.member("bomb", 1000)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


@pytest.mark.slow
def test_broken_archives(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", os.urandom(1000))
    content = (tmp_path / "a").read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(1000):
        broken = bytearray(content[: rng.integers(4, 2 * len(content))])
        for _ in range(rng.integers(4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        (tmp_path / "a").write_bytes(broken)
        with opened(tmp_path / "a") as found, suppress(ValueError):
            for name in found.names:
                found.member(name, 2000)


def test_a_directory_that_lies_about_its_length(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("a", b"a")
    content = bytearray((tmp_path / "a").read_bytes())
    end = content.rindex(b"PK\5\6")
    size = 100 * 2**20
    content[end + 12 : end + 16] = size.to_bytes(4, "little")
    with open(tmp_path / "a", "wb") as file:
        file.write(content[:end])
        file.seek(end + size)
        file.write(content[end:])
    with opened(tmp_path / "a") as found:
        with pytest.raises(ValueError, match="not a whole zip file"):
            print(found.names)


FILES = sorted((Path(__file__).parents[1] / "fuzz" / "files").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_that_are_fuzzed_load(path: Path) -> None:
    """One of each format: what starts broken would find nothing."""
    for suffix, package in ((".onnx", "onnx"), (".h5", "h5py"), (".keras", "h5py")):
        if path.suffix == suffix:
            pytest.importorskip(package)
    assert cylstm.load(path) is not None
    assert repr(cylstm.inspect(path))
