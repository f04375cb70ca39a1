"""Embedding and Parameter: what they give, their gradients, and steps that touch some rows only."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import LSTM, Embedding, Linear, Parameter, optim
from cylstm.embedding import RowGrads
from helpers import Array, numerical_gradient, rel, same_bits

INDICES = np.array([[3, 0, 3], [5, 3, 1]])


def draw(seed: int, *shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def set_weights(module: Any, flat: Array) -> None:
    name, array = next(iter(module.state_dict().items()))
    module.load_state_dict({name: flat.reshape(array.shape)})


# --- Embedding


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (0,), (2, 0, 3)])
def test_rows_are_looked_up(shape: tuple[int, ...], dtype: str) -> None:
    embedding = Embedding(7, 5, dtype=dtype, seed=0)
    table = embedding.state_dict()["weight"]
    indices = np.random.default_rng(1).integers(0, 7, shape)
    tape = embedding.forward(indices)
    for y in (embedding(indices), tape.y):
        assert y.shape == (*shape, 5) and y.dtype == dtype
        assert all(same_bits(y[at], table[indices[at]]) for at in np.ndindex(shape))
    grads = tape.backward(draw(2, *shape, 5, dtype=dtype)).weights
    assert list(grads) == ["weight"] and grads.of_rows.dtype == dtype
    assert grads.rows.tolist() == sorted(set(indices.reshape(-1).tolist()))


def test_gradient_of_rows() -> None:
    embedding = Embedding(7, 2, dtype="float64", seed=0)
    dy = draw(1, 2, 3, 2)
    grads = embedding.forward(INDICES).backward(dy).weights
    at = embedding._weights.flat.copy()

    def loss(flat: Array) -> float:
        set_weights(embedding, flat)
        return float((embedding(INDICES) * dy).sum())

    numerical = numerical_gradient(loss, at, range(at.size))
    assert rel(grads["weight"].reshape(-1), numerical) < 1e-9
    assert grads.rows.tolist() == [0, 1, 3, 5] and grads.of_rows.shape == (4, 2)
    assert not grads["weight"].flags.writeable
    with pytest.raises(KeyError):
        grads["bias"]


def test_padding() -> None:
    for padding in (3, -4):
        embedding = Embedding(7, 2, padding, dtype="float64", seed=0)
        assert embedding.padding_idx == 3
        assert not embedding.state_dict()["weight"][3].any()
        assert embedding.state_dict()["weight"][[0, 1, 2, 4, 5, 6]].all()
        grads = embedding.forward(INDICES).backward(np.ones((2, 3, 2))).weights
        assert grads.rows.tolist() == [0, 1, 5]
    everything = Embedding(2, 1, 0).forward([0, 0]).backward(np.ones((2, 1), "f")).weights
    assert everything.rows.size == 0 and not everything["weight"].any()


def test_a_tape_keeps_its_indices() -> None:
    embedding = Embedding(7, 2, seed=0)
    indices = INDICES.copy()
    tape = embedding.forward(indices)
    indices[:] = 0
    assert tape.backward(np.ones((2, 3, 2), "f")).weights.rows.tolist() == [0, 1, 3, 5]
    assert not tape.y.flags.writeable


def test_first_weights() -> None:
    flat = Embedding(300, 40, seed=3)._weights.flat
    assert abs(flat.mean()) < 0.03 and abs(flat.std() - 1) < 0.03
    assert same_bits(flat, Embedding(300, 40, seed=3, dtype="float64")._weights.flat.astype("f"))


def test_gradients_are_added() -> None:
    embedding = Embedding(9, 2, dtype="float64", seed=0)
    a = embedding.forward([1, 4, 4]).backward(draw(1, 3, 2)).weights
    b = embedding.forward([8, 4, 0]).backward(draw(2, 3, 2)).weights
    total = a + b
    assert total.rows.tolist() == [0, 1, 4, 8]
    assert rel(total["weight"], a["weight"] + b["weight"]) < 1e-15
    with pytest.raises(ValueError, match="different tables"):
        a + Embedding(8, 2, dtype="float64").forward([1]).backward(np.ones((1, 2))).weights


@pytest.mark.parametrize(
    "indices, error, text",
    [
        ([7], ValueError, r"indices holds 7 at index \(0,\), expected 0 to 6"),
        ([[0, -1]], ValueError, r"indices holds -1 at index \(0, 1\)"),
        ([1.0], TypeError, "indices is an array of float64, expected integers"),
        ([True], TypeError, "indices is an array of bool, expected integers"),
        (np.ma.zeros(2, int), TypeError, "indices is a MaskedArray, whose mask"),
        (np.array([2**64 - 1], np.uint64), ValueError, "indices holds 18446744073709551615"),
    ],
)
def test_bad_indices(indices: Any, error: type[Exception], text: str) -> None:
    embedding = Embedding(7, 5)
    for call in (embedding, embedding.forward):
        with pytest.raises(error, match=text):
            call(indices)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(num_embeddings=0, embedding_dim=1), ValueError, "num_embeddings is 0"),
        (dict(num_embeddings=1, embedding_dim=1.0), TypeError, "embedding_dim is 1.0"),
        (dict(num_embeddings=3, embedding_dim=1, padding_idx=3), ValueError, "padding_idx is 3"),
        (dict(num_embeddings=3, embedding_dim=1, dtype="f2"), ValueError, "dtype is 'f2'"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Embedding(**arguments)


def test_bad_dy() -> None:
    tape = Embedding(7, 5).forward([1, 2])
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4\), expected \(2, 5\)"):
        tape.backward(np.zeros((2, 4), "f"))
    with pytest.raises(TypeError, match="dy is an array of float64, expected float32"):
        tape.backward(np.zeros((2, 5)))


def test_rows_that_are_not_of_the_table() -> None:
    spec = Embedding(4, 2)._spec
    for rows in ([2, 1], [1, 1], [-1], [4]):
        with pytest.raises(ValueError, match="rows holds"):
            RowGrads(spec, np.array(rows), np.zeros((len(rows), 2), "f"))
    with pytest.raises(ValueError, match="of_rows has shape"):
        RowGrads(spec, np.array([1]), np.zeros((1, 3), "f"))


# --- steps


OPTIMISERS = {
    "sgd": lambda m: optim.SGD(m, lr=0.1),
    "momentum": lambda m: optim.SGD(m, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda m: optim.Adam(m, lr=0.1, weight_decay=0.1),
    "adamw": lambda m: optim.AdamW(m, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_moves_the_rows_it_touches(name: str, dtype: str) -> None:
    """Each as if the table were a module of its own, whose counter went on; the others stay."""
    rng = np.random.default_rng(0)
    embedding, head = Embedding(6, 3, dtype=dtype, seed=0), Linear(2, 2, dtype=dtype, seed=1)
    optimizer = OPTIMISERS[name]([embedding, head])
    alone = [Embedding(1, 3, dtype=dtype) for _ in range(6)]
    its = [OPTIMISERS[name](one) for one in alone]
    for one, row in zip(alone, embedding.state_dict()["weight"], strict=True):
        set_weights(one, row)
    for step in range(5):
        indices = rng.choice(6, 3, replace=False)
        dy = rng.standard_normal((3, 3)).astype(dtype)
        grads = embedding.forward(indices).backward(dy)
        optimizer.step(
            [grads, head.forward(np.ones((1, 2), dtype)).backward(np.ones((1, 2), dtype))]
        )
        for row in range(6):
            state = its[row].state_dict()
            kinds = optimizer.state_dict()["state"]
            if row not in indices:
                # its state stays, and the counter goes on
                zeros = {
                    f"0.weight.{kind.split('.')[-1]}": np.zeros((1, 3), dtype)
                    for kind in kinds
                    if kind.startswith("0.")
                }
                its[row].load_state_dict(
                    state | {"step": step + 1, "state": state["state"] or zeros}
                )
                continue
            its[row].step({"weight": dy[indices.tolist().index(row)][None]})
        for row, one in enumerate(alone):
            assert same_bits(embedding.state_dict()["weight"][row], one._weights.flat), (step, row)
    assert optimizer.state_dict()["step"] == 5


def test_frozen_tables_and_clipping() -> None:
    embedding = Embedding(6, 3, dtype="float64", seed=0)
    first = embedding._weights.flat.copy()
    grads = embedding.forward(INDICES).backward(draw(1, 2, 3, 3))
    before = grads.weights["weight"]
    norm = optim.clip_grad_norm(grads, 0.5)
    assert rel(norm, np.linalg.norm(before)) < 1e-14
    assert rel(grads.weights["weight"], before * (0.5 / (norm + 1e-6))) < 1e-14
    optim.Adam(embedding, frozen=["weight"], weight_decay=1.0).step(grads)
    assert same_bits(embedding._weights.flat, first)
    optim.Adam(embedding).step({"weight": before})  # a dense gradient is one too
    assert not same_bits(embedding._weights.flat, first)


def test_gradients_of_another_table_are_refused() -> None:
    optimizer = optim.SGD(Embedding(6, 3), lr=0.1)
    for other in (Embedding(5, 3), Embedding(6, 3, dtype="float64")):
        grads = other.forward([1]).backward(np.ones((1, 3), other.dtype))
        with pytest.raises((ValueError, TypeError), match="gradients of module 0"):
            optimizer.step(grads)


# --- Parameter


@pytest.mark.parametrize(
    "own, shape",
    [
        ((), (2, 3)),
        ((3,), (2, 3)),
        ((1, 1, 4), (2, 5, 4)),
        ((2, 1, 4), (2, 5, 4)),
        ((2, 3), (2, 3)),
    ],
)
def test_parameters_are_broadcast_and_summed(own: Any, shape: Any, dtype: str) -> None:
    parameter = Parameter(draw(1, *own, dtype=dtype))
    assert parameter.shape == own and parameter.dtype == dtype
    tape, dy = parameter.forward(shape), draw(2, *shape, dtype=dtype)
    assert same_bits(tape.y, np.broadcast_to(draw(1, *own, dtype=dtype), shape))
    assert same_bits(parameter(shape), tape.y) and same_bits(parameter(), parameter.value)
    for array in (tape.y, parameter(shape), parameter.value):
        assert not array.flags.writeable
    grads = tape.backward(dy).weights
    at = parameter._weights.flat.astype(np.float64)

    def loss(flat: Array) -> float:
        return float((np.broadcast_to(flat.reshape(own), shape) * dy.astype(np.float64)).sum())

    assert rel(grads.flat, numerical_gradient(loss, at, range(at.size))) < 1e-6
    assert grads["value"].shape == own and grads["value"].dtype == dtype


def test_bad_parameters() -> None:
    for value, error, text in (
        ([1], TypeError, "value is a list that reads as int64"),
        (np.zeros((2, 0)), ValueError, r"value has shape \(2, 0\), expected at least one"),
        (np.ma.zeros(3), TypeError, "value is a MaskedArray"),
    ):
        with pytest.raises(error, match=text):
            Parameter(value)
    with pytest.raises(ValueError, match=r"shape is \(2,\), expected one to which \(3,\) broad"):
        Parameter(np.zeros(3))((2,))
    with pytest.raises(ValueError, match=r"dy has shape \(4,\), expected \(3,\)"):
        Parameter(np.zeros(3)).forward().backward(np.zeros(4))


def test_learned_first_states() -> None:
    """h_0 and c_0 learn what no x can tell: a constant from the first step on."""
    rng = np.random.default_rng(0)
    lstm, head = LSTM(2, 8, dtype="float64", seed=0), Linear(8, 1, dtype="float64", seed=1)
    h_0, c_0 = (Parameter(np.zeros((1, 1, 8))) for _ in range(2))
    optimizer = optim.Adam([h_0, c_0], lr=0.1)  # nothing else is trained
    x, losses = rng.standard_normal((1, 16, 2)), []
    for _ in range(100):
        h, c = h_0.forward((1, 16, 8)), c_0.forward((1, 16, 8))
        tape = lstm.forward(x, (h.y, c.y))
        y = head.forward(tape.y)
        loss, dy = cylstm.losses.mse(y.y, np.ones_like(y.y))
        losses.append(loss)
        grads = tape.backward(y.backward(dy).x)
        optimizer.step([h.backward(grads.h_0), c.backward(grads.c_0)])
    assert losses[-1] < losses[0] / 20
    assert np.abs(h_0.value).max() > 0.1 and np.abs(c_0.value).max() > 0.1


# --- like any module


@pytest.mark.parametrize(
    "module",
    [
        Embedding(5, 3, dtype="float64", seed=0),
        Embedding(5, 3, 1, seed=0),
        Parameter(draw(1, 2, 1, 3)),
        Parameter(np.array(2.0, np.float32)),
    ],
    ids=repr,
)
def test_copies_pickles_and_files(module: Any, tmp_path: Path) -> None:
    file = tmp_path / "module.safetensors"
    cylstm.save(module, file)
    clones = [
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        cylstm.load(file),
    ]
    for clone in clones:
        assert type(clone) is type(module) and repr(clone) == repr(module)
        assert same_bits(clone._weights.flat, module._weights.flat)
        set_weights(clone, np.zeros_like(module._weights.flat))
        assert module._weights.flat.any()


def test_gradients_are_pickled() -> None:
    grads = Embedding(5, 3, seed=0).forward([1, 1, 3]).backward(np.ones((3, 3), "f")).weights
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is RowGrads and again.spec == grads.spec
    assert same_bits([again.rows, again.of_rows], [grads.rows, grads.of_rows])
