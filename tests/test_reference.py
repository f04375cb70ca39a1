"""cylstm.reference against PyTorch's numbers and against finite differences: it is the ruler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cylstm import reference
from helpers import (
    GOLDEN_NAMES,
    Array,
    Problem,
    all_grads,
    assert_close,
    load_golden,
    make_problem,
    numerical_gradient,
    rel,
    rel_grads,
    same_bits,
)


def test_goldens_exist() -> None:
    assert len(GOLDEN_NAMES) == 18


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_golden(name: str) -> None:
    golden = load_golden(name)
    tape, grads = golden.problem.reference(golden.dropout)
    assert rel(tape.y, golden.y) < 1e-14
    assert rel(tape.h_n, golden.h_n) < 1e-14
    assert rel(tape.c_n, golden.c_n) < 1e-14
    assert_close(rel_grads(grads, golden.grads), 1e-13)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": dict(T=4, B=2, input_size=3, hidden_size=2),
    "lengths": dict(T=5, B=4, lengths=[2, 0, 5, 1], input_size=2, hidden_size=3),
    "everything": dict(
        T=4,
        B=3,
        lengths=[4, 0, 2],
        input_size=2,
        hidden_size=3,
        num_layers=2,
        bidirectional=True,
        proj_size=2,
        batch_first=True,
    ),
    "unbatched": dict(T=3, B=None, lengths=2, input_size=2, hidden_size=3, bias=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_finite_differences(config: dict[str, Any]) -> None:
    """Every element of every gradient, by central differences."""
    p = make_problem(1, **config)
    _, grads = p.reference()

    def loss(q: Problem) -> float:
        first = config.get("batch_first", False)
        tape = reference.forward(q.weights, q.x, q.states, q.lengths, batch_first=first)
        return q.loss(tape.y, tape.h_n, tape.c_n)

    def check(name: str, at: Array, grad: Array) -> None:
        want = numerical_gradient(lambda a: loss(p.put(name, a)), at, range(at.size))
        assert rel(grad, want.reshape(at.shape)) < 1e-8, name

    for name in ("x", "h_0", "c_0"):
        check(name, getattr(p, name), getattr(grads, name))
    for name, at in p.weights.items():
        check(name, at, grads.weights[name])


def test_equations_of_one_step() -> None:
    """One cell, one step, one input, by hand: the order of the gates and what each one does."""
    weights = {
        "weight_ih_l0": np.array([[1.0], [2.0], [3.0], [4.0]]),
        "weight_hh_l0": np.array([[-1.0], [-2.0], [-3.0], [0.5]]),
        "bias_ih_l0": np.array([0.1, 0.2, 0.3, 0.4]),
        "bias_hh_l0": np.array([-0.4, 0.3, -0.2, 0.1]),
    }
    x, h, c = 0.5, 0.3, -0.7
    i = 1 / (1 + np.exp(-(1 * x - 1 * h + 0.1 - 0.4)))
    f = 1 / (1 + np.exp(-(2 * x - 2 * h + 0.2 + 0.3)))
    g = np.tanh(3 * x - 3 * h + 0.3 - 0.2)
    o = 1 / (1 + np.exp(-(4 * x + 0.5 * h + 0.4 + 0.1)))
    c_1 = f * c + i * g
    tape = reference.forward(
        weights, np.array([[[x]]]), (np.array([[[h]]]), np.array([[[c]]])), lengths=[1]
    )
    assert tape.gates.shape == (1, 1, 1, 4, 1)
    assert rel(tape.gates.ravel(), [i, f, g, o]) < 1e-15
    assert rel(tape.cells.ravel(), [c_1]) < 1e-15
    assert rel(tape.y.ravel(), [o * np.tanh(c_1)]) < 1e-15


def test_sigmoid_of_anything() -> None:
    with np.errstate(all="raise", under="ignore"):
        a = reference.sigmoid(np.array([-1e300, -745.0, -50.0, 0.0, 50.0, 1e300]))
    assert a[0] == 0 and 0 < a[1] < 1e-300 and a[3] == 0.5 and a[5] == 1
    assert rel(a[2], np.exp(-50)) < 1e-13


def test_padding_is_not_looked_at() -> None:
    p = make_problem(
        2, 5, 3, [3, 0, 4], input_size=2, hidden_size=3, num_layers=2, bidirectional=True
    )
    tape, grads = p.reference()
    padding = ~p.valid()
    x, dy = p.x.copy(), p.dy.copy()
    x[padding] = np.nan
    dy[padding] = np.nan
    again, grads_again = p._replace(x=x, dy=dy).reference()
    assert same_bits([tape.y, tape.h_n, tape.c_n], [again.y, again.h_n, again.c_n])
    assert same_bits(all_grads(grads), all_grads(grads_again))
    assert not tape.y[padding].any() and not grads.x[padding].any()
    assert not tape.gates[:, padding].any() and not tape.cells[:, padding].any()


def test_left_out_gradients_are_zero() -> None:
    p = make_problem(3, 4, 2, input_size=2, hidden_size=3)
    tape, grads = p.reference()
    parts = [
        reference.backward(tape, p.dy),
        reference.backward(tape, dh_n=p.dh_n),
        reference.backward(tape, dc_n=p.dc_n),
    ]
    sums = [np.sum(arrays, axis=0) for arrays in zip(*map(all_grads, parts), strict=True)]
    weights = dict(zip(grads.weights, sums[3:], strict=True))
    summed = reference.Grads(sums[0], sums[1], sums[2], weights)
    assert_close(rel_grads(summed, grads), 1e-14)


def test_float32_stays_float32() -> None:
    p = make_problem(4, 3, 2, [2, 3], dtype="float32", input_size=2, hidden_size=3, proj_size=2)
    tape = reference.forward(p.weights, p.x, p.states, p.lengths)
    grads = reference.backward(tape, p.dy, p.dh_n, p.dc_n)
    results = [tape.y, tape.h_n, tape.c_n, tape.gates, tape.cells, *all_grads(grads)]
    assert {a.dtype for a in results} == {np.dtype("float32")}
