"""Pickles as data: the values that Python's own unpickler gives, and nothing is ever called."""

from __future__ import annotations

import collections
import io
import os
import pickle
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cylstm
from cylstm.convert import unpickle
from cylstm.convert.unpickle import Opaque, Stub
from pickled import Call, Global, dumped, numpy_array

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
    | st.lists(inner, max_size=5).map(tuple),
    max_leaves=20,
)  # fmt: skip


def loads(content: bytes, **arguments: Any) -> Any:
    file = io.BytesIO(content + b"behind")
    value = unpickle.unpickle(file, unpickle.PLAIN, **arguments)
    assert file.read() == b"behind"
    return value


@settings(max_examples=150, deadline=None)
@given(protocol=st.integers(0, 5), value=plain)
def test_plain_values(protocol: int, value: Any) -> None:
    content = pickle.dumps(value, protocol)
    assert loads(content) == value


@pytest.mark.parametrize("protocol", range(6))
def test_sets_and_ordered_dicts(protocol: int) -> None:
    value = [collections.OrderedDict(a=1, b={3, 4}), frozenset([5]), {"c": bytearray(b"x")}]
    first, second, third = loads(pickle.dumps(value, protocol))
    assert first["a"] == 1 and sorted(first["b"]) == [3, 4] and second == [5]
    assert list(third) == ["c"]


def test_shared_and_cyclic_values() -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    got = loads(pickle.dumps({"a": inner, "b": inner}))
    assert got["a"] is got["b"] and got["a"][1] is got["a"]


class Foreign:
    def __init__(self) -> None:
        self.a = 1
        self.weights = [2.5]


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_stubs(protocol: int) -> None:
    got = loads(pickle.dumps(Foreign(), protocol))
    assert isinstance(got, Stub) and got.state == {"a": 1, "weights": [2.5]}


def test_keys_that_are_no_plain_values() -> None:
    (key,) = loads(pickle.dumps({(1, 2): 3}))
    assert isinstance(key, Opaque) and key.value == (1, 2)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_numpy_arrays(protocol: int, tmp_path: Path) -> None:
    """As NumPy itself pickles them, in either order of axes and of bytes."""
    state: Any = cylstm.LSTM(3, 5, seed=1).state_dict()
    turned = {name: np.asfortranarray(array) for name, array in state.items()}
    swapped = {name: array.astype(">f4") for name, array in state.items()}
    apart = {name: np.stack([array, array], -1)[..., 0] for name, array in state.items()}
    for arrays in (state, turned, swapped, apart):
        (tmp_path / "state.pkl").write_bytes(pickle.dumps({**arrays, "epoch": 3}, protocol))
        got: Any = cylstm.load(tmp_path / "state.pkl")
        assert all(np.array_equal(got.state_dict()[name], state[name]) for name in state)


def test_numpy_arrays_of_python_2(tmp_path: Path) -> None:
    state: Any = cylstm.LSTM(3, 5, seed=1).state_dict()
    content = dumped({name: numpy_array(array, python2=True) for name, array in state.items()})
    (tmp_path / "state.pkl").write_bytes(content)
    theirs = pickle.loads(content, encoding="latin1")
    got: Any = cylstm.load(tmp_path / "state.pkl")
    for name, array in state.items():
        assert np.array_equal(got.state_dict()[name], array) and np.array_equal(theirs[name], array)


# --- hostile ones


class Evil:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call = call, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called(protocol: int, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    for evil in (
        Evil(os.system, f"touch {proof}"),
        Evil(eval, f"__import__('pathlib').Path({str(proof)!r}).touch()"),
        Evil(os.mkdir, str(proof)),
    ):
        content = pickle.dumps({"weight_ih_l0": evil}, protocol)
        assert isinstance(loads(content)["weight_ih_l0"], Stub)
        (tmp_path / "model.pt").write_bytes(content)
        if protocol >= 2:
            with pytest.raises(ValueError, match="no recurrent layer"):
                cylstm.load(tmp_path / "model.pt")
        pickle.loads(content)  # it would have been
        assert proof.exists()
        proof.rmdir() if proof.is_dir() else proof.unlink()


def test_what_is_ours_cannot_be_changed() -> None:
    """BUILD on a name sets nothing: there is no object behind it."""
    for of in (Global("collections", "OrderedDict"), Global("torch._utils", "_rebuild_tensor_v2")):
        name = of.module, of.name
        content = dumped(of)[:-1] + dumped({"__code__": 1, "__defaults__": (2,)})[2:-1] + b"b."
        assert tuple(loads(content)) == name
    assert unpickle.dict_of.__defaults__ == ((),)


@pytest.mark.parametrize(
    "content",
    [
        b"", b".", b"\x80\x02", b"\x80\x02.", b"]e.", b"(u.", b"0.", b"a.", b"NNa.", b"R.", b"NR.",
        b"}Ns.", b"}(Nu.", b"h\0.", b"j\0\0\0\0.", b"q\0.", b"(", b"(t", b"X\xff\xff\xff\xffabc.",
        b"\x8d" + b"\xff" * 8 + b"abc.", b"\x8e" + b"\xff" * 7 + b"\x7f.", b"Iabc\n.", b"F1..2\n.",
        b"\x8b\xff\xff\xff\x7f1.", b"\x8b\xff\xff\xff\xff1.", b"cabc\n.", b"NNs.", b"b.",
        b"Q.", b"NQ.", b"\x97.", b"\x82\x01.", b"S'abc\n.", b"Vabc.", b"(o.", b"(i.", b"\x85.",
        b"1.", b"2.", b"N(.", b"\xff.", b"NN\x93.",
    ],
)  # fmt: skip
def test_broken_pickles(content: bytes) -> None:
    with pytest.raises(ValueError):
        unpickle.unpickle(io.BytesIO(content), unpickle.PLAIN)


def test_strings_of_python_2() -> None:
    """Quoted, in bytes that are no text: what an array of Python 2 holds."""
    content = b"(S'a\\x91\\n\x91\"'\nS\"it's\"\nt."
    assert loads(content) == ('a\x91\n\x91"', "it's")


def nested_key(depth: int) -> bytes:
    """{t: None}, t = (t, t) many times over: its hash takes 2**depth steps."""
    return b"\x80\x02}" + b")" + b"2\x86" * depth + b"Ns."


def many_copies(of: bytes) -> bytes:
    """A list or a text of a million, and then a call that might copy it, again and again."""
    return b"\x80\x02" + of + b"\x85q\x00" + b"0cbuiltins\nlist\nh\x00R" * 50_000 + b"."


BOMBS = {
    "memo": b"\x80\x02Nr\xff\xff\xff\xff.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "bytes": b"\x80\x04\x8e\0\0\0\0\2\0\0\0N.",
    "text": b"\x80\x04\x8d\0\0\0\0\2\0\0\0N.",
    "line": b"S'" + b"a" * 5_000_000,
    "number": b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.",
    "key": nested_key(60),
    "steps": b"\x80\x02" + b"N0" * 1_500_000 + b".",
    "lists": b"\x80\x02(" + b"]" * 500_000 + b"t.",
    "copies": many_copies(b"(" + b"N" * 1_000_000 + b"l"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path) -> None:
    """Whatever comes out, it takes no more memory and time than the length of the file warrants."""
    content = BOMBS[name]
    start = time.process_time()
    try:
        unpickle.unpickle(io.BytesIO(content), unpickle.PLAIN)
    except ValueError:
        pass
    else:
        assert name in ("memo", "frame", "key", "lists")
    assert time.process_time() - start < 15
    tracemalloc.start()
    with open(tmp_path / "a", "wb") as file:
        file.write(content[:1_500_000])
    with open(tmp_path / "a", "rb") as file:
        try:
            unpickle.unpickle(file, unpickle.PLAIN)
        except ValueError:
            pass
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_mutated_pickles() -> None:
    """Thousands of broken pickles: a value or a ValueError."""
    value = {"a": [1, 2.5, None, b"bytes", ("x", True)], "b": Foreign(), "c": {1, 2}}
    contents = [pickle.dumps(value, protocol) for protocol in range(6)]
    contents.append(dumped({"d": Call("collections", "OrderedDict", [["x", 1]], y=2, state={})}))
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(12_000):
        broken = bytearray(contents[rng.integers(len(contents))])
        for _ in range(rng.integers(1, 5)):
            at = rng.integers(len(broken))
            match rng.integers(3):
                case 0:
                    broken[at] = rng.integers(256)
                case 1:
                    broken[at:at] = bytes(
                        rng.integers(256, size=rng.integers(1, 4), dtype=np.uint8)
                    )
                case 2:
                    del broken[at : at + rng.integers(1, 4)]
        try:
            unpickle.unpickle(io.BytesIO(broken), unpickle.PLAIN)
        except ValueError:
            refused += 1
    assert 3000 < refused < 12_000
