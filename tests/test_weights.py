"""The block of weights and the module that owns it: one whole block, at any time, for anyone."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from cylstm import _core
from cylstm.linear import Linear
from cylstm.weights import WeightGrads
from helpers import Array, new_weights, same_bits

SPEC = (("weight", (2, 3)), ("bias", (2,)))


def linear(dtype: str = "float64") -> Linear:
    module = Linear(3, 2, dtype=dtype)
    module.load_state_dict(
        {"weight": np.arange(6, dtype=dtype).reshape(2, 3), "bias": np.array([7, 8], dtype)}
    )
    return module


def address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_aligned(size: int, dtype: str) -> None:
    arrays = [_core.aligned_empty(size, np.dtype(dtype)) for _ in range(5)]
    assert {(address(a) % 64, a.shape, a.dtype.name) for a in arrays} == {(0, (size,), dtype)}


def test_a_block_is_one_vector_in_order() -> None:
    weights = linear()._weights
    assert weights.flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    assert weights.spec == SPEC and address(weights.flat) % 64 == 0
    assert {name: a.shape for name, a in weights.views().items()} == dict(SPEC)


def test_nobody_can_write_to_a_block() -> None:
    module = linear()
    for array in (*module.state_dict().values(), module._weights.flat):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
        for base in (array, array.view(), array[:1]):
            with pytest.raises(ValueError, match="cannot set WRITEABLE"):
                base.flags.writeable = True


def test_update_replaces_all() -> None:
    module = linear()
    with new_weights(module) as flat:
        assert flat.flags.writeable and flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
        flat += 1
        assert module._weights.flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]  # not yet
    assert module._weights.flat.tolist() == [1, 2, 3, 4, 5, 6, 8, 9]


def test_a_failed_update_changes_nothing() -> None:
    module = linear()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), new_weights(module) as flat:
            flat[:] = np.nan
            raise ZeroDivisionError
        assert module._weights.flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    with new_weights(module) as flat:  # nor does it leave the lock held, or the nan behind
        flat += 1
    assert module._weights.flat.tolist() == [1, 2, 3, 4, 5, 6, 8, 9]


def test_a_failed_pack_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(self: Any, flat: Array, *args: Any) -> None:
        if np.isnan(flat).any():
            raise MemoryError

    monkeypatch.setattr(Linear, "_pack", pack)
    module = Linear(3, 2, seed=1)
    before = module._weights
    with pytest.raises(MemoryError), new_weights(module) as flat:
        flat[0] = np.nan
    assert module._weights is before


def test_two_blocks_take_turns() -> None:
    module, seen = linear(), set()
    for _ in range(10):
        with new_weights(module) as flat:
            flat += 1
        seen.add(address(module._weights.flat))
    assert len(seen) == 2
    assert module._weights.flat.tolist() == [10, 11, 12, 13, 14, 15, 17, 18]


@pytest.mark.parametrize(
    "hold",
    [
        lambda m: m._weights,
        lambda m: m._weights.flat,
        lambda m: m.state_dict(),
        lambda m: m.state_dict()["weight"][1:, ::2].T,
        lambda m: memoryview(m.state_dict()["bias"]),
        lambda m: np.frombuffer(m._weights.flat),
        lambda m: m.forward(np.zeros((1, 3))),
        copy.copy,
    ],
)
def test_a_block_in_use_is_left_alone(hold: Any) -> None:
    """Whatever was taken from a module keeps its values, and its memory, through updates."""
    module = linear()
    weights, memory = module._weights.flat.copy(), address(module._weights.flat)
    held = hold(module)
    for _ in range(5):
        with new_weights(module) as flat:
            if not isinstance(held, Linear):
                assert address(flat) != memory
            flat[:] = np.nan
    if hasattr(held, "backward"):
        dx = held.backward(np.array([[1.0, 10.0]])).x
        assert dx.tolist() == [[30, 41, 52]]
    elif isinstance(held, dict):
        assert same_bits(held["weight"].reshape(-1), weights[:6])
        assert same_bits(held["bias"], weights[6:])
    elif isinstance(held, Linear):
        assert same_bits(held._weights.flat, weights)
    else:
        values = np.asarray(
            getattr(held, "flat", held) if not isinstance(held, np.ndarray) else held
        )
        assert np.isin(values, weights).all()


def test_a_reader_sees_one_whole_block() -> None:
    """Two threads write, each a block of one value; a reader never meets two values in one."""
    module = Linear(50, 200, dtype="float64")
    stop, torn, reads = threading.Event(), [], [0]

    def write(first: int) -> None:
        value = first
        while not stop.is_set():
            with new_weights(module) as flat:
                for part in np.array_split(flat, 5):
                    part[:] = value
            value += 2

    def read() -> None:
        while not stop.is_set():
            weight, bias = module.state_dict().values()
            low, high = min(weight.min(), bias.min()), max(weight.max(), bias.max())
            if low != high:
                torn.append((low, high))
            reads[0] += 1

    with new_weights(module) as flat:
        flat[:] = 0
    threads = [threading.Thread(target=write, args=(k,)) for k in (1, 2)]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 0.3
    while time.monotonic() < end or (reads[0] <= 10 and time.monotonic() < end + 20):
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn and reads[0] > 10


@pytest.mark.timing
def test_no_update_is_lost() -> None:
    """Of those that say which block they started from: one that came too late is made again."""
    module = linear()

    def write() -> None:
        for _ in range(200):
            done = False
            while not done:
                old = module._weights
                new = module._prepare(partial(np.add, old.flat, 1))
                done = _core.replace([module._current], [new], [old])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert module._weights.flat.tolist() == [800, 801, 802, 803, 804, 805, 807, 808]


def test_several_blocks_are_replaced_together() -> None:
    modules = [linear(), linear()]
    currents = [module._current for module in modules]
    old = [module._weights for module in modules]
    new = [module._prepare(lambda flat: flat.fill(1)) for module in modules]
    with pytest.raises(ValueError, match="lists of one length"):
        _core.replace(currents, new[:1])
    with pytest.raises(TypeError):
        _core.replace([*currents, None], [*new, None])  # type: ignore[list-item]
    assert not _core.replace(currents, new, [old[0], new[1]])
    assert [module._weights for module in modules] == old
    assert _core.replace(currents, new, old)
    assert [module._weights for module in modules] == new


# --- load_state_dict


class Tensor:
    """What Module knows of a torch tensor: detach, cpu, float, numpy, dtype."""

    def __init__(self, values: Array, dtype: str, detached: bool = False) -> None:
        self.values, self.dtype, self.detached = values, dtype, detached

    def detach(self) -> Tensor:
        return Tensor(self.values, self.dtype, True)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self.values.astype(np.float32), "torch.float32", self.detached)

    def numpy(self) -> Array:
        if not self.detached or self.dtype == "torch.bfloat16":
            raise TypeError("what torch says")
        return self.values


@pytest.mark.parametrize("given", ["float16", "float32", "float64", "bfloat16 tensor", "tensor"])
def test_load_widens_exactly(given: str) -> None:
    values = np.array([1, 2**-8, -3, 0.5, 0, 1.75, -0.0, 2**-10])
    module = linear("float64")
    if given.endswith("tensor"):
        kind = "torch.bfloat16" if given.startswith("bf") else "torch.float32"
        state: dict[str, Any] = {
            "weight": Tensor(values[:6].astype("f").reshape(2, 3), kind),
            "bias": Tensor(values[6:].astype("f"), kind),
        }
    else:
        state = {"bias": values[6:].astype(given), "weight": values[:6].astype(given).reshape(2, 3)}
    module.load_state_dict(state)
    assert same_bits(module._weights.flat, values)
    assert module._weights.flat.dtype == np.float64


def test_load_takes_any_strides_and_copies() -> None:
    module, weight, bias = linear(), np.arange(24.0).reshape(6, 4)[::2, ::2].T, np.arange(2.0)
    module.load_state_dict({"weight": weight, "bias": bias[::-1]})
    want = [0, 8, 16, 2, 10, 18, 1, 0]
    weight[:] = bias[:] = np.nan
    assert module._weights.flat.tolist() == want


def test_load_its_own_state() -> None:
    module = linear()
    for _ in range(3):
        state = module.state_dict()
        module.load_state_dict(state)
        module.load_state_dict({"weight": state["weight"][::-1], "bias": state["bias"]})
    assert module._weights.flat.tolist() == [3, 4, 5, 0, 1, 2, 7, 8]


def test_load_narrows_only_when_told() -> None:
    module = linear("float32")
    state = {"weight": np.full((2, 3), 0.1), "bias": np.full(2, 0.2, "f")}
    with pytest.raises(TypeError, match="weight is float64, which only cast=True narrows"):
        module.load_state_dict(state)
    assert module._weights.flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8]
    module.load_state_dict(state, cast=True)
    assert same_bits(module._weights.flat, np.array([0.1] * 6 + [0.2] * 2, "f"))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize(
    "bias, text",
    [
        (np.zeros(2, np.int64), "bias is int64"),
        (np.zeros(2, bool), "bias is bool"),
        (np.zeros(2, complex), "bias is complex128"),
        (np.zeros(2, ">f8"), "bias is >f8"),
        (np.array([None, None]), "bias is object"),
        (["a", "b"], "bias is <U1"),
    ],
)
def test_load_refuses_what_is_no_float(bias: Any, text: str, cast: bool) -> None:
    module = linear()
    before = module._weights
    with pytest.raises(TypeError, match=f"{text}, expected float64"):
        module.load_state_dict({"weight": np.zeros((2, 3)), "bias": bias}, cast=cast)
    assert module._weights is before


def test_load_refuses_masked_arrays() -> None:
    """What they mask would become weights."""
    module = linear()
    state = {"weight": np.ma.zeros((2, 3)), "bias": np.zeros(2)}
    with pytest.raises(ValueError, match="weight is a MaskedArray, whose mask would be ignored"):
        module.load_state_dict(state)
    assert module.state_dict()["bias"].tolist() == [7, 8]


def test_load_names_all_that_is_wrong() -> None:
    module = Linear(3, 2, dtype="float32")
    before = module._weights
    state = {"weight": np.zeros((3, 2)), "bais": np.zeros(2), "lstm.weight": np.zeros(1)}
    with pytest.raises(ValueError) as error:
        module.load_state_dict(state)
    assert str(error.value) == (
        "weights of Linear: missing: bias; unexpected: bais, lstm.weight; "
        "weight has shape (3, 2), expected (2, 3); "
        "weight is float64, which only cast=True narrows to float32"
    )
    assert module._weights is before
    with pytest.raises(TypeError, match="expected a mapping of names to arrays, got list"):
        module.load_state_dict([np.zeros((2, 3))])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unexpected: 3"):
        module.load_state_dict({**module.state_dict(), 3: np.zeros(2)})  # type: ignore[dict-item]


# --- WeightGrads


def test_weight_grads_and_flat_are_one() -> None:
    flat = np.arange(8.0)
    grads = WeightGrads(SPEC, flat)
    grads["bias"] = np.array([1.0, 2.0])
    grads["weight"] *= 2
    assert flat.tolist() == [0, 2, 4, 6, 8, 10, 1, 2]
    grads.update(bias=3.0)
    grads |= {"weight": np.ones((2, 3))}
    grads.flat *= 2
    assert flat.tolist() == [2, 2, 2, 2, 2, 2, 6, 6]
    grads.flat = np.zeros(8)
    assert flat.tolist() == [0] * 8 and grads["weight"].tolist() == [[0] * 3] * 2
    assert grads.flat is flat and list(grads) == ["weight", "bias"]
    with pytest.raises(ValueError):
        grads["bias"] = np.zeros(3)
    with pytest.raises(KeyError):
        grads["bais"] = np.zeros(2)
    for change in (grads.clear, grads.popitem, lambda: grads.pop("bias")):
        with pytest.raises(TypeError, match="fixed"):
            change()
    with pytest.raises(TypeError, match="fixed"):
        del grads["bias"]
    with pytest.raises(ValueError, match=r"flat has shape \(9,\), expected \(8,\)"):
        WeightGrads(SPEC, np.zeros(9))


@pytest.mark.parametrize(
    "clone", [WeightGrads.copy, copy.copy, copy.deepcopy, lambda g: pickle.loads(pickle.dumps(g))]
)
def test_copies_of_weight_grads_stay_one(clone: Any) -> None:
    grads = clone(WeightGrads(SPEC, np.arange(8.0)))
    assert type(grads) is WeightGrads and grads.flat.tolist() == list(range(8))
    grads["bias"] = -1
    assert grads.flat[6:].tolist() == [-1, -1]
