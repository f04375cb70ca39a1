"""Gradients: against PyTorch's numbers, cylstm.reference, finite differences and each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import (
    GOLDEN_NAMES,
    LONG,
    TOLERANCES,
    Problem,
    all_grads,
    assert_close,
    bits_promised,
    check_by_differences,
    load_golden,
    make_problem,
    new_weights,
    rel,
    rel_grads,
    same_bits,
)


def run(p: Problem, **arguments: Any) -> Any:
    """Gradients of everything."""
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths, **arguments)
    return tape.backward(p.dy, p.dh_n, p.dc_n, **arguments)


def check(p: Problem) -> None:
    got, (_, want) = run(p), p.reference()
    assert {a.dtype for a in all_grads(got)} == {p.x.dtype}
    assert_close(rel_grads(got, want), TOLERANCES[p.x.dtype.name][1])


@pytest.mark.parametrize("name", [name for name in GOLDEN_NAMES if not load_golden(name).dropout])
def test_golden(name: str, dtype: str) -> None:
    golden = load_golden(name)
    assert_close(rel_grads(run(golden.problem.cast(dtype)), golden.grads), TOLERANCES[dtype][1])


@pytest.mark.parametrize("B", [1, 2, 3, 5, 6, 7, 13, 17])
@pytest.mark.parametrize("H", [1, 7, 8, 16, 17, 50])
def test_odd_sizes(B: int, H: int, dtype: str) -> None:
    check(make_problem(100 * B + H, 4, B, dtype=dtype, input_size=(B * H) % 19 + 1, hidden_size=H))


@pytest.mark.parametrize(
    "config",
    [
        dict(input_size=50, hidden_size=17, num_layers=2, bidirectional=True),
        dict(input_size=7, hidden_size=50, proj_size=17, num_layers=2),
        dict(input_size=1, hidden_size=7, proj_size=1, bidirectional=True, bias=False),
        dict(input_size=17, hidden_size=7, num_layers=3, batch_first=True, bias=False),
        dict(input_size=1150, hidden_size=5),
        dict(input_size=5, hidden_size=130, proj_size=129),
    ],
    ids=str,
)
@pytest.mark.parametrize("B", [None, 7])
def test_arguments(config: dict[str, Any], B: int | None, dtype: str) -> None:
    check(make_problem(5, 6, B, dtype=dtype, **config))


@pytest.mark.slow
def test_large(dtype: str) -> None:
    check(make_problem(6, 2, 3, dtype=dtype, input_size=50, hidden_size=1150))


@pytest.mark.slow
def test_chunks_whose_columns_are_copied(dtype: str) -> None:
    """More than 2 MB of gates' gradients at a time, two chunks of them, shared out unevenly."""
    p = make_problem(
        8, 30, 20, lengths=[30] * 17 + [29, 1, 0], dtype=dtype, input_size=17, hidden_size=301
    )
    check(p)
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths)
    want = tape.backward(p.dy, p.dh_n, p.dc_n, threads=1)
    for threads in (2, 3):
        got = tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
        if bits_promised():
            assert same_bits(all_grads(got), all_grads(want))


@pytest.mark.slow
@pytest.mark.parametrize("config", LONG.values(), ids=LONG)
def test_long(config: dict[str, Any], dtype: str) -> None:
    check(make_problem(7, dtype=dtype, **config))


def test_saturated_gates(dtype: str) -> None:
    """Where sigmoid and tanh are flat the gradient is zero, not NaN."""
    p = make_problem(8, 5, 3, dtype=dtype, input_size=4, hidden_size=7)
    p = p._replace(x=np.sign(p.x) * p.x.dtype.type(1e30))
    assert all(np.isfinite(a).all() for a in all_grads(run(p)))


FINITE_DIFFERENCES: dict[str, dict[str, Any]] = {
    "plain": dict(T=5, B=3, input_size=4, hidden_size=7),
    "lengths": dict(T=6, B=4, lengths=[2, 0, 6, 1], input_size=2, hidden_size=7),
    "everything": dict(
        T=5,
        B=3,
        lengths=[5, 0, 2],
        input_size=3,
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        proj_size=4,
        batch_first=True,
    ),
    "unbatched": dict(T=4, B=None, lengths=3, input_size=2, hidden_size=3, bias=False),
}


@pytest.mark.parametrize("config", FINITE_DIFFERENCES.values(), ids=FINITE_DIFFERENCES)
def test_finite_differences(config: dict[str, Any]) -> None:
    p = make_problem(9, **config)

    def loss(q: Problem) -> float:
        y, states = q.lstm()(q.x, q.states, lengths=q.lengths)
        return q.loss(y, *states)

    check_by_differences(p, loss, run(p))


SMALL: dict[str, Any] = dict(
    input_size=3, hidden_size=7, num_layers=2, bidirectional=True, proj_size=5
)


def test_repeated_backward(dtype: str) -> None:
    """A tape is not used up, and a gradient that was returned stays as it is."""
    p = make_problem(10, 5, 4, [3, 5, 0, 1], dtype=dtype, **SMALL)
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths)
    first = tape.backward(p.dy, p.dh_n, p.dc_n)
    kept = [a.copy() for a in all_grads(first)]
    tape.backward(2 * p.dy)
    assert same_bits(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)), kept)
    assert same_bits(all_grads(first), kept)


def test_nothing_given_is_an_error() -> None:
    p = make_problem(11, 3, 2, **SMALL)
    tape = p.lstm().forward(p.x, p.states)
    with pytest.raises(ValueError, match="dy.*dh_n.*dc_n"):
        tape.backward()


@pytest.mark.parametrize("given", [("dy",), ("dh_n",), ("dc_n",), ("dy", "dc_n"), ("dh_n", "dc_n")])
def test_gradients_left_out_are_zero(given: tuple[str, ...], dtype: str) -> None:
    p = make_problem(12, 4, 3, [4, 0, 2], dtype=dtype, **SMALL)
    upstream = {name: getattr(p, name) for name in ("dy", "dh_n", "dc_n")}
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths)
    got = tape.backward(**{name: upstream[name] for name in given})
    zeros = {name: np.zeros_like(a) for name, a in upstream.items() if name not in given}
    _, want = p._replace(**zeros).reference()
    assert_close(rel_grads(got, want), TOLERANCES[dtype][1])
    assert same_bits(all_grads(got), all_grads(tape.backward(**upstream | zeros)))


def test_the_gradient_of_x_may_be_left_out(dtype: str) -> None:
    p = make_problem(24, 5, 4, [3, 5, 0, 1], dtype=dtype, **SMALL)
    tape = p.lstm().forward(p.x, p.states, lengths=p.lengths)
    grads = tape.backward(p.dy, p.dh_n, p.dc_n, need_x=False)
    assert grads.x is None
    assert same_bits(all_grads(grads)[1:], all_grads(tape.backward(p.dy, p.dh_n, p.dc_n))[1:])


def test_upstream_gradients_of_any_strides(dtype: str) -> None:
    p = make_problem(13, 4, 3, dtype=dtype, **SMALL)
    tape = p.lstm().forward(p.x, p.states)
    want = all_grads(tape.backward(p.dy, p.dh_n, p.dc_n))
    wide = np.full([2 * n for n in p.dy.shape], np.nan, dtype)
    dy = wide[::2, ::2, ::2]
    dy[...] = p.dy
    for a in (dy, np.asfortranarray(p.dy), p.dy[::-1].copy()[::-1]):
        a.flags.writeable = False
        grads = tape.backward(a, np.asfortranarray(p.dh_n), np.asfortranarray(p.dc_n))
        assert same_bits(all_grads(grads), want)
    ones = np.broadcast_to(np.ones((), dtype), p.dy.shape)
    assert same_bits(all_grads(tape.backward(ones)), all_grads(tape.backward(ones.copy())))


def test_inputs_stay_as_they_are(dtype: str) -> None:
    p = make_problem(14, 4, 3, dtype=dtype, **SMALL)
    arrays = [p.x, p.h_0, p.c_0, p.dy, p.dh_n, p.dc_n]
    before = [a.copy() for a in arrays]
    run(p)
    assert same_bits(arrays, before)


def test_the_tape_owns_its_input(dtype: str) -> None:
    p = make_problem(15, 4, 3, [4, 1, 3], dtype=dtype, **SMALL)
    want = all_grads(run(p))
    x, h_0, c_0, lengths = p.x.copy(), p.h_0.copy(), p.c_0.copy(), np.array(p.lengths)
    tape = p.lstm().forward(x, (h_0, c_0), lengths=lengths)
    for a in (x, h_0, c_0, lengths):
        a[...] = 1
    assert same_bits(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)), want)


def test_backward_is_exact_for_its_own_forward(dtype: str) -> None:
    """Weights are immutable: new ones, however they come, leave a tape and its gradients alone."""
    p = make_problem(16, 4, 3, dtype=dtype, **SMALL)
    want = all_grads(run(p))
    lstm = p.lstm()
    tape = lstm.forward(p.x, p.states)
    lstm.load_state_dict({name: a + 1 for name, a in p.weights.items()})
    assert same_bits(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)), want)
    for _ in range(3):  # memory of a block that nobody holds is used again: this one is held
        with new_weights(lstm) as flat:
            flat *= 0.5
    assert same_bits(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)), want)
    del lstm
    assert same_bits(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)), want)


def test_new_weights_take_effect(dtype: str) -> None:
    """After every update: a block's memory that is used again must be packed again."""
    p = make_problem(17, 4, 3, dtype=dtype, **SMALL)
    lstm = p.lstm()
    for _ in range(5):
        with new_weights(lstm) as flat:
            flat *= -0.75
        weights = {name: a.copy() for name, a in lstm.state_dict().items()}
        tape = lstm.forward(p.x, p.states)
        want_tape, want = p._replace(weights=weights).reference()
        tolerance, grad_tolerance = TOLERANCES[dtype]
        assert rel(tape.y, want_tape.y) < tolerance
        assert_close(rel_grads(tape.backward(p.dy, p.dh_n, p.dc_n), want), grad_tolerance)
        del tape


def test_a_failed_update_changes_nothing(dtype: str) -> None:
    p = make_problem(18, 4, 3, dtype=dtype, **SMALL)
    lstm = p.lstm()
    want = lstm(p.x, p.states)[0]
    with pytest.raises(ZeroDivisionError), new_weights(lstm) as flat:
        flat[:] = 0
        raise ZeroDivisionError
    assert same_bits(lstm(p.x, p.states)[0], want)


@pytest.mark.parametrize("batch_first", [False, True])
def test_empty_batch(batch_first: bool, dtype: str) -> None:
    lstm = cylstm.LSTM(**SMALL, batch_first=batch_first, dtype=dtype)
    shape = (0, 5) if batch_first else (5, 0)
    tape = lstm.forward(np.zeros((*shape, 3), dtype))
    grads = tape.backward(np.zeros((*shape, 10), dtype))
    assert grads.x.shape == (*shape, 3)
    assert grads.h_0.shape == (4, 0, 5) and grads.c_0.shape == (4, 0, 7)
    assert list(grads.weights) == list(lstm.state_dict())
    for name, a in lstm.state_dict().items():
        assert same_bits(grads.weights[name], np.zeros_like(a))


def test_weight_gradients_are_views_of_one_array(dtype: str) -> None:
    p = make_problem(19, 4, 3, dtype=dtype, **SMALL)
    weights = run(p).weights
    assert same_bits(weights.flat, np.concatenate([a.ravel() for a in weights.values()]))
    weights.flat[:] = 7
    assert all((a == 7).all() for a in weights.values())


def test_both_biases_have_the_same_gradient(dtype: str) -> None:
    grads = run(make_problem(20, 4, 3, dtype=dtype, **SMALL))
    for name, a in grads.weights.items():
        if name.startswith("bias_ih"):
            assert same_bits(a, grads.weights[name.replace("ih", "hh")])


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(batch_first: bool, dtype: str) -> None:
    p = make_problem(21, 5, None, 4, dtype=dtype, **SMALL)
    lstm = p.lstm(batch_first=batch_first)
    got = lstm.forward(p.x, p.states, lengths=4).backward(p.dy, p.dh_n, p.dc_n)
    assert (got.x.shape, got.h_0.shape, got.c_0.shape) == ((5, 3), (4, 5), (4, 7))
    axis = 0 if batch_first else 1
    x, dy = np.expand_dims(p.x, axis), np.expand_dims(p.dy, axis)
    tape = lstm.forward(x, (p.h_0[:, None], p.c_0[:, None]), lengths=[4])
    want = tape.backward(dy, p.dh_n[:, None], p.dc_n[:, None])
    squeezed = [want.x.squeeze(axis), want.h_0[:, 0], want.c_0[:, 0], *want.weights.values()]
    assert same_bits(all_grads(got), squeezed)


def test_batch_first_only_transposes(dtype: str) -> None:
    p = make_problem(22, 5, 4, [5, 2, 0, 3], dtype=dtype, **SMALL)
    first = p._replace(
        config=p.config | {"batch_first": True},
        x=p.x.swapaxes(0, 1).copy(),
        dy=p.dy.swapaxes(0, 1).copy(),
    )
    want, got = run(p), run(first)
    assert same_bits(got.x.swapaxes(0, 1), want.x)
    assert same_bits(all_grads(got)[1:], all_grads(want)[1:])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("inputs, hidden", [(512, 512), (333, 701)])
def test_gradients_that_outgrow_the_caches(inputs: int, hidden: int, threads: int) -> None:
    """They are written past the caches. Of one step of one sequence they are outer products."""
    lstm = cylstm.LSTM(inputs, hidden, seed=0)
    rng = np.random.default_rng(1)
    x, h_0, c_0, dy = (
        rng.standard_normal((1, 1, n), "f") for n in (inputs, hidden, hidden, hidden)
    )
    tape = lstm.forward(x, (h_0, c_0), threads=threads)
    grads = tape.backward(dy, threads=threads).weights
    da = grads["bias_ih_l0"]
    want = cylstm.reference.backward(
        cylstm.reference.forward(
            {name: a.astype("f8") for name, a in lstm.state_dict().items()},
            x.astype("f8"),
            (h_0.astype("f8"), c_0.astype("f8")),
        ),
        dy.astype("f8"),
    )
    assert rel(da, want.weights["bias_ih_l0"]) < 1e-5
    assert same_bits(grads["weight_ih_l0"], np.outer(da, x))
    assert same_bits(grads["weight_hh_l0"], np.outer(da, h_0))
