"""Linear against PyTorch's numbers and finite differences, and its manners at the edges."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cylstm.linear import Linear
from helpers import Array, new_weights, numerical_gradient, rel, same_bits

GOLDEN = Path(__file__).parent / "golden_training" / "linear.npz"


def draw(seed: int, *shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
def test_golden(dtype: str, tolerance: float) -> None:
    golden = dict(np.load(GOLDEN))
    linear = Linear(5, 7, dtype=dtype)
    linear.load_state_dict({k: golden[k].astype(dtype) for k in ("weight", "bias")})
    x = golden["x"].astype(dtype)
    tape = linear.forward(x)
    grads = tape.backward(golden["dy"].astype(dtype))
    assert rel(tape.y, golden["y"]) < tolerance
    assert rel(linear(x), golden["y"]) < tolerance
    assert rel(grads.x, golden["dx"]) < tolerance
    assert list(grads.weights) == ["weight", "bias"]
    assert rel(grads.weights["weight"], golden["dweight"]) < tolerance
    assert rel(grads.weights["bias"], golden["dbias"]) < tolerance
    assert {a.dtype.name for a in (tape.y, grads.x, *grads.weights.values())} == {dtype}


@pytest.mark.parametrize("bias", [True, False])
def test_finite_differences(bias: bool) -> None:
    linear = Linear(3, 2, bias, dtype="float64", seed=1)
    x, dy = draw(1, 4, 3), draw(2, 4, 2)
    grads = linear.forward(x).backward(dy)
    numerical = numerical_gradient(lambda x: (linear(x) * dy).sum(), x, range(x.size))
    assert rel(grads.x.reshape(-1), numerical) < 1e-9

    def loss(flat: Array) -> float:
        other = copy.copy(linear)
        with new_weights(other) as weights:
            weights[:] = flat
        return float((other(x) * dy).sum())

    at = linear._weights.flat
    assert rel(grads.weights.flat, numerical_gradient(loss, at, range(at.size))) < 1e-9


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3), (2, 0, 3)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    weight, bias = linear.state_dict().values()
    x, dy = draw(1, *shape), draw(2, *shape[:-1], 2)
    tape = linear.forward(x)
    grads = tape.backward(dy)
    assert tape.y.shape == (*shape[:-1], 2) and grads.x.shape == shape
    assert rel(tape.y, np.einsum("...i,oi->...o", x, weight) + bias) < 1e-14
    assert rel(grads.x, np.einsum("...o,oi->...i", dy, weight)) < 1e-14
    rows_x, rows_dy = x.reshape(-1, 3), dy.reshape(-1, 2)
    assert rel(grads.weights["weight"], np.einsum("no,ni->oi", rows_dy, rows_x)) < 1e-14
    assert rel(grads.weights["bias"], rows_dy.sum(0)) < 1e-14


def test_strides_do_not_matter() -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    x, dy = draw(1, 6, 3, 8)[::2, :, ::-2].swapaxes(1, 2), draw(2, 3, 2, 4).swapaxes(1, 2)
    x.flags.writeable = dy.flags.writeable = False
    tape, tidy = linear.forward(x), linear.forward(np.ascontiguousarray(x))
    assert rel(linear(x), tidy.y) < 1e-14 and rel(tape.y, tidy.y) < 1e-14
    grads, tidy_grads = tape.backward(dy), tidy.backward(np.ascontiguousarray(dy))
    assert rel(grads.x, tidy_grads.x) < 1e-14
    assert rel(grads.weights.flat, tidy_grads.weights.flat) < 1e-14


def test_a_tape_keeps_its_input_and_its_weights() -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    x, dy = draw(1, 4, 3), draw(2, 4, 2)
    want = linear.forward(x.copy()).backward(dy)
    tape = linear.forward(x)
    x[:] = np.nan
    for _ in range(3):
        with new_weights(linear) as flat:
            flat[:] = np.nan
    got = tape.backward(dy)
    again = tape.backward(dy)
    assert same_bits(got.x, want.x) and same_bits(got.weights.flat, want.weights.flat)
    assert same_bits(again.x, want.x) and same_bits(again.weights.flat, want.weights.flat)
    assert not tape.y.flags.writeable


def test_first_weights() -> None:
    linear = Linear(100, 50, seed=3)
    flat = linear._weights.flat
    assert np.abs(flat).max() <= 0.1 and np.abs(flat).max() > 0.099
    assert abs(flat.mean()) < 0.005 and abs(flat.std() - 0.1 / np.sqrt(3)) < 0.002
    assert same_bits(flat, Linear(100, 50, seed=3)._weights.flat)
    assert same_bits(flat, Linear(100, 50, seed=3, dtype="float64")._weights.flat.astype("f"))
    assert not np.array_equal(flat, Linear(100, 50, seed=4)._weights.flat)
    assert not np.array_equal(Linear(3, 2)._weights.flat, Linear(3, 2)._weights.flat)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("bias", [True, False])
def test_copies(clone: Any, bias: bool) -> None:
    linear = Linear(3, 2, bias, dtype="float64")
    other = clone(linear)
    assert (
        repr(other)
        == repr(linear)
        == f"Linear(in_features=3, out_features=2, bias={bias}, dtype='float64')"
    )
    assert same_bits(other._weights.flat, linear._weights.flat)
    before = linear._weights.flat.copy()
    for _ in range(3):  # each has memory of its own
        with new_weights(other) as flat:
            flat += 1
    assert same_bits(linear._weights.flat, before)
    assert same_bits(other._weights.flat, before + 1 + 1 + 1)


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(in_features=0, out_features=2), ValueError, "in_features is 0, expected 1 to"),
        (dict(in_features=2, out_features=-1), ValueError, "out_features is -1, expected 1 to"),
        (
            dict(in_features=2.0, out_features=1),
            TypeError,
            "in_features is 2.0, expected an integer",
        ),
        (dict(in_features=True, out_features=1), TypeError, "in_features is True, expected an int"),
        (dict(in_features=2, out_features=1, bias=1), TypeError, "bias is 1, expected a bool"),
        (
            dict(in_features=2, out_features=1, bias="no"),
            TypeError,
            "bias is 'no', expected a bool",
        ),
        (dict(in_features=2, out_features=1, dtype="float16"), ValueError, "float32 or float64"),
        (dict(in_features=2, out_features=1, dtype=None), ValueError, "dtype is None, expected"),
        (dict(in_features=2, out_features=1, dtype=">f4"), ValueError, "dtype is '>f4', expected"),
        (
            dict(in_features=2, out_features=1, dtype="quux"),
            ValueError,
            "dtype is 'quux', expected",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Linear(**arguments)


def test_bad_arrays() -> None:
    linear = Linear(3, 2)
    x = np.zeros((4, 3), "f")
    tape = linear.forward(x)
    for call in (linear, linear.forward):
        with pytest.raises(TypeError, match="x is an array of float64, expected float32"):
            call(x.astype("d"))
        with pytest.raises(TypeError, match="x is >f4, .* other byte order"):
            call(x.astype(">f4"))
        with pytest.raises(TypeError, match="x is a list that reads as float64, expected float32"):
            call([[1.0, 2.0, 3.0]])
        with pytest.raises(ValueError, match=r"x has shape \(4, 2\), expected \(..., 3\)"):
            call(x[:, :2])
        with pytest.raises(ValueError, match=r"x has shape \(\)"):
            call(np.zeros((), "f"))
    with pytest.raises(TypeError, match="dy is an array of float64, expected float32"):
        tape.backward(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"dy has shape \(2, 4\), expected \(4, 2\)"):
        tape.backward(np.zeros((2, 4), "f"))
    for call in (linear, linear.forward):
        with pytest.raises(TypeError, match="x is a MaskedArray, whose mask would be ignored"):
            call(np.ma.zeros((4, 3), "f"))
    with pytest.raises(TypeError, match="dy is a MaskedArray, whose mask would be ignored"):
        tape.backward(np.ma.zeros((4, 2), "f"))


def test_array_likes_are_read_as_numpy_reads_them() -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    x = draw(1, 4, 3)
    assert same_bits(linear(x.tolist()), linear(x))
    assert same_bits(
        linear.forward(x.tolist()).backward(draw(2, 4, 2).tolist()).x,
        linear.forward(x).backward(draw(2, 4, 2)).x,
    )
    assert type(linear(x.view(np.matrix))) is np.ndarray
