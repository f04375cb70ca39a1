"""A Linear with weights of fewer bits: bfloat16, int8, and products of bfloat16."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import cylstm
from cylstm import _core
from cylstm.weights import widened
from helpers import ISAS, run_python, same_bits

FORMATS = ("bfloat16", "int8")


@pytest.mark.parametrize("weights", FORMATS)
def test_linear(weights: str) -> None:
    linear = cylstm.Linear(33, 7, seed=2)
    narrow = cylstm.quantize(linear, weights)
    x = np.random.default_rng(0).standard_normal((5, 33), np.float32)
    stored = narrow.state_dict()
    if weights == "bfloat16":
        matrix = widened(stored["weight"])
    else:
        matrix = stored["weight"].astype(np.float64) * stored["weight_scale"][:, None]
        assert np.abs(stored["weight"]).max(axis=1).tolist() == [127] * 7
    assert np.abs(matrix - linear.state_dict()["weight"]).max() < 1e-3
    assert same_bits(pickle.loads(pickle.dumps(narrow))(x), narrow(x))
    other = cylstm.quantize(cylstm.Linear(33, 7, seed=3), weights)
    want = other(x)
    narrow.load_state_dict(other.state_dict())
    assert same_bits(narrow(x), want)
    narrow.release()
    assert same_bits(narrow(x), want)


# Run for every kernel set: inputs beyond a piece of the sum, outputs of one lane and many panels.
LINEAR = """
import cylstm, numpy as np
from cylstm import reference
from cylstm.weights import widened
draw = np.random.default_rng(0)
for inputs, outputs, bias in [(1, 1, True), (7, 17, False), (33, 5, True), (214, 70, True),
                              (256, 33, True), (257, 9, False), (1150, 130, True)]:
    linear = cylstm.Linear(inputs, outputs, bias, seed=1)
    x = draw.standard_normal((67, inputs), np.float32)
    x[3] = 0
    for weights, wide in (("bfloat16", None), ("int8", None), ("int8", "int16")):
        narrow = cylstm.quantize(linear, weights, inputs=wide)
        state, y = narrow.state_dict(), narrow(x)
        if weights == "bfloat16":
            linear.load_state_dict({**state, "weight": widened(state["weight"])})
            assert np.array_equal(y, linear(x)), (inputs, outputs)
        else:
            matrix = reference.Int8Matrix(state["weight"], state["weight_scale"], bool(wide))
            exact = x @ matrix.T
            exact += state.get("bias", 0)
            assert np.abs(y - exact).max() <= 3e-7 * np.abs(exact).max(), (inputs, outputs)
        for rows in (slice(0, 1), slice(5, 7), slice(60, 67)):
            assert np.array_equal(narrow(x[rows]), y[rows]) and y[rows].any()
        assert np.array_equal(narrow(x, threads=3), y)
        assert np.array_equal(narrow(x[None, 9]), y[None, 9])
        assert narrow(x[:0]).shape == (0, outputs)
        for bad in (np.nan, np.inf):
            spoilt = x.copy()
            spoilt[8, 0] = bad
            got = narrow(spoilt)
            assert not np.isfinite(got[8]).any()
            assert np.array_equal(np.delete(got, 8, 0), np.delete(y, 8, 0))
print(cylstm.show_config()["isa"])
"""


@pytest.mark.parametrize("isa", ISAS)
def test_linear_on_every_set(isa: str) -> None:
    """bfloat16 gives the bits of float32 with the rounded weights, int8 exact integers; a row's
    results depend on it alone."""
    done = run_python("-c", LINEAR, CYLSTM_ISA=isa)
    assert done.stdout.split() == [isa], done.stderr


PRODUCTS_OF_LINEAR = """
import cylstm, numpy as np, sys
from cylstm import reference
draw = np.random.default_rng(0)
for inputs, outputs in [(1, 1), (7, 17), (257, 9), (1150, 130)]:
    linear = cylstm.Linear(inputs, outputs, seed=1)
    narrow = cylstm.quantize(linear, "bfloat16", arithmetic="bfloat16")
    x = draw.standard_normal((9, inputs), np.float32)
    matrix = reference.Bfloat16Matrix(narrow.state_dict()["weight"])
    y, bias = narrow(x), narrow.state_dict()["bias"].astype(np.float64)
    error = np.abs(y - (x @ matrix.T + bias))
    assert (error <= matrix.bound(x) + inputs * 2**-24 * np.abs(bias)).all()
    assert np.array_equal(narrow(x[4]), y[4])
gru = cylstm.GRU(8, 17, batch_first=True, seed=1)
model = cylstm.Sequential([cylstm.steps.FinalState(gru), cylstm.Linear(17, 3, seed=2)])
narrow = cylstm.quantize(model, "bfloat16", arithmetic="bfloat16")
cylstm.save(narrow, sys.argv[1])
cylstm.save(cylstm.quantize(gru, "bfloat16", arithmetic="bfloat16"), sys.argv[1] + ".gru")
layer, whole = str(cylstm.inspect(sys.argv[1] + ".gru")).splitlines()[-2:]
assert layer.endswith("arithmetic='bfloat16'  loads") and whole == "as a whole: loads"
x = draw.standard_normal((2, 5, 8), np.float32)
assert np.array_equal(cylstm.load(sys.argv[1])(x), narrow(x))
print(cylstm.show_config()["bf16"])
"""


def test_products_of_bfloat16_of_a_linear(tmp_path: Path) -> None:
    path = str(tmp_path / "narrow")
    done = run_python("-c", PRODUCTS_OF_LINEAR, path, CYLSTM_ISA="scalar")
    assert done.stdout.split() == ["scalar"], done.stderr
    if not _core.BF16:
        with pytest.raises(ValueError, match="arithmetic is 'bfloat16', which this CPU can't do"):
            cylstm.load(path)
        assert "does not load: arithmetic is 'bfloat16', which" in str(
            cylstm.inspect(path + ".gru")
        )
