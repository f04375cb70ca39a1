"""Linear against PyTorch's numbers and finite differences, and its manners at the edges."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cylstm.linear import Linear
from helpers import Array, bits_promised, new_weights, numerical_gradient, rel, same_bits

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


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 50, 300])
@pytest.mark.parametrize("n_in, n_out", [(1, 1), (3, 1), (17, 5), (64, 64), (260, 70), (600, 129)])
def test_products_of_every_form(rows: int, n_in: int, n_out: int, dtype: str) -> None:
    """Few rows and few outputs, panels that are not whole, sums in several pieces; the bits are
    those of each row alone, on any number of threads."""
    linear = Linear(n_in, n_out, dtype=dtype, seed=1)
    x, dy = draw(1, rows, n_in, dtype=dtype), draw(2, rows, n_out, dtype=dtype)
    weight, bias = (a.astype(np.float64) for a in linear.state_dict().values())
    tape = linear.forward(x, threads=1)
    grads = tape.backward(dy, threads=1)
    tolerance = 2e-6 if dtype == "float32" else 5e-15
    wide_x, wide_dy = x.astype(np.float64), dy.astype(np.float64)
    assert rel(tape.y, wide_x @ weight.T + bias) < tolerance
    assert rel(grads.x, wide_dy @ weight) < tolerance
    assert rel(grads.weights["weight"], wide_dy.T @ wide_x) < tolerance
    assert rel(grads.weights["bias"], wide_dy.sum(0)) < tolerance
    for threads in (2, 3):
        other = linear.forward(x, threads=threads)
        assert same_bits(other.y, tape.y)
        again = other.backward(dy, threads=threads)
        assert same_bits(again.x, grads.x) and same_bits(again.weights.flat, grads.weights.flat)
    if bits_promised():
        for row in {0, rows // 2, rows - 1}:
            assert same_bits(linear(x[row]), tape.y[row])


def test_the_gradient_of_x_is_left_out() -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    for rows in (4, 0):
        tape, dy = linear.forward(draw(1, rows, 3)), draw(2, rows, 2)
        lean = tape.backward(dy, need_x=False)
        assert lean.x is None and same_bits(lean.weights.flat, tape.backward(dy).weights.flat)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")
def test_one_thread_is_one_thread() -> None:
    """Nothing else in the process computes, a BLAS's threads neither."""
    code = """if True:
    import os
    import numpy as np, cylstm
    def seconds_of_others():
        ticks = 0
        for task in os.listdir("/proc/self/task"):
            if int(task) != os.getpid():
                with open(f"/proc/self/task/{task}/stat") as stat:
                    ticks += sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")
    linear, x = cylstm.Linear(1024, 1024, seed=0), np.ones((512, 1024), np.float32)
    before = seconds_of_others()
    for _ in range(4):
        tape = linear.forward(x)
        tape.backward(tape.y)
    print(seconds_of_others() - before)
    """
    environment = {**os.environ, "CYLSTM_NUM_THREADS": "1", "CYLSTM_GEMM": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 0.02


def test_unaligned_arrays() -> None:
    linear = Linear(3, 2, dtype="float64", seed=1)
    x = draw(1, 4, 3)
    crooked = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float64).reshape(4, 3)
    assert not crooked.flags.aligned and same_bits(linear(crooked), linear(x))
    assert same_bits(linear.forward(crooked).y, linear(x))


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
