"""Dropout between layers: which elements it drops, and gradients through it.

A mask depends on the seed, the call and the place, and on no weight. So it is read off a network
with weights that make it visible, and then holds for any other of the same seed and sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from helpers import (
    LONG,
    THREADED,
    TOLERANCES,
    Array,
    Problem,
    all_grads,
    assert_close,
    bits_promised,
    check_by_differences,
    make_problem,
    rel,
    rel_grads,
    same_bits,
)


def masks_of(lstm: Any, T: int, B: int, **arguments: Any) -> list[Array]:
    """What the next training call of ``lstm`` multiplies the outputs between its layers by.

    It gets weights with which in an upper layer the input gate is sigmoid(0.5 * input), so that
    the gate tells the input; this is divided by the output of the layer below, which that layer's
    gates and cells tell. The result, (T, B, D*R) for each layer but the last, is 0 or 1 / (1 - p)
    up to rounding, and this is checked.
    """
    H, R = lstm.hidden_size, lstm.proj_size or lstm.hidden_size
    L, D, p = lstm.num_layers, 1 + lstm.bidirectional, lstm.dropout
    weights = {name: np.zeros_like(a) for name, a in lstm.state_dict().items()}
    for layer in range(L):
        for d in range(D):
            ih, _, b_ih, _, hr_name, *_ = reference.names(layer, d)
            weights[b_ih][2 * H : 3 * H] = 1  # g: something to let in
            if layer > 0:
                weights[ih][:R, d * R : (d + 1) * R] = 0.5 * np.eye(R)
            if hr_name in weights:
                weights[hr_name][...] = np.random.default_rng(layer).uniform(1, 2, (R, H)) / H
    lstm.load_state_dict(weights)
    shape = (B, T) if lstm.batch_first else (T, B)
    tape = lstm.forward(np.zeros((*shape, lstm.input_size), lstm.dtype), **arguments)

    gates, cells = np.float64(tape.gates), np.float64(tape.cells)  # (L*D, T, B, ...)
    outputs = gates[:, :, :, 3] * np.tanh(cells)
    if lstm.proj_size:
        hr = np.stack([weights[name] for name in weights if "weight_hr" in name])  # (L*D, R, H)
        outputs = np.einsum("ktbh,krh->ktbr", outputs, hr)
    i = gates[D:, :, :, 0, :R]
    ratio = np.log(i / (1 - i)) / 0.5 / outputs[:-D]  # (L*D-D, T, B, R)
    kept = ratio > 0.5
    exact = kept / (1 - p) if p < 1 else kept * 0.0
    assert np.abs(ratio - exact).max() < (1e-9 if lstm.dtype == np.float64 else 1e-3) / (1.001 - p)
    return [np.concatenate(list(exact[k * D : (k + 1) * D]), axis=-1) for k in range(L - 1)]


SMALL: dict[str, Any] = dict(input_size=3, hidden_size=7, num_layers=3, bidirectional=True)


def test_nothing_is_dropped_in_inference(dtype: str) -> None:
    p = make_problem(1, 4, 3, [4, 0, 2], dtype=dtype, **SMALL)
    y, states = p.lstm()(p.x, p.states, lengths=p.lengths)
    lstm = p.lstm(dropout=0.5, seed=1)
    for _ in range(2):
        y_p, states_p = lstm(p.x, p.states, lengths=p.lengths)
        tape = lstm.forward(p.x, p.states, lengths=p.lengths, train=False)
        assert same_bits([y_p, *states_p], [y, *states])
        assert same_bits([tape.y, tape.h_n, tape.c_n], [y, *states])
        lstm.forward(p.x, p.states, lengths=p.lengths)


def test_without_dropout_training_computes_what_inference_does(dtype: str) -> None:
    p = make_problem(2, 4, 3, dtype=dtype, **SMALL)
    tape = p.lstm(dropout=0.0).forward(p.x, p.states)
    assert same_bits(tape.y, p.lstm()(p.x, p.states)[0])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_statistics(p: float, dtype: str) -> None:
    """The right share, at no place preferred, and no element the same as its neighbours."""
    T, B, H = 40, 20, 17
    lstm = cylstm.LSTM(1, H, 3, dropout=p, bidirectional=True, dtype=dtype, seed=3)
    masks = masks_of(lstm, T, B) + masks_of(lstm, T, B)  # two layers of two calls
    drops = np.stack([mask == 0 for mask in masks])  # (4, T, B, 2H)
    spread = np.sqrt(p * (1 - p))

    def check_share(a: Array, expected: float, spread: float, per_mean: int) -> None:
        # 5 standard deviations: with a fixed seed this passes for ever, or never did.
        assert np.abs(a - expected).max() < 5 * spread / np.sqrt(per_mean)

    check_share(drops.mean(), p, spread, drops.size)
    for axis in range(4):
        others = tuple(k for k in range(4) if k != axis)
        check_share(drops.mean(others), p, spread, drops.size // drops.shape[axis])
        for step in (1, 2, 3):
            if step < drops.shape[axis]:
                a, b = np.moveaxis(drops, axis, 0)[step:], np.moveaxis(drops, axis, 0)[:-step]
                correlation = ((a - p) * (b - p)).mean() / spread**2
                check_share(correlation, 0, 1, a.size)


def test_a_mask_depends_on_seed_and_call_alone(dtype: str) -> None:
    def masks(seed: int, calls: int, **arguments: Any) -> list[list[Array]]:
        lstm = cylstm.LSTM(**SMALL, dropout=0.3, dtype=dtype, seed=seed)
        return [masks_of(lstm, 9, 4, **arguments) for _ in range(calls)]

    first, second, third = masks(4, 3)
    assert same_bits(masks(4, 3)[2], third)
    different = [*first, *second, *third, *masks(5, 1)[0]]
    for k, a in enumerate(different):
        assert not any(same_bits(a, b) for b in different[:k])


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("name", ["rows", "directions", "units, projected", "many steps"])
def test_a_mask_does_not_depend_on_threads(name: str, threads: int, dtype: str) -> None:
    p = make_problem(6, dtype=dtype, dropout=0.3, **THREADED[name])

    def run(threads: int) -> list[Array]:
        tape = p.lstm(seed=6).forward(p.x, p.states, lengths=p.lengths, threads=threads)
        return [tape.y, tape.h_n, tape.c_n, *all_grads(tape.backward(p.dy, threads=threads))]

    one, many = run(1), run(threads)
    if bits_promised():
        assert same_bits(many, one)
    assert_close({str(k): rel(a, b) for k, (a, b) in enumerate(zip(many, one, strict=True))}, 1e-5)


PROBLEMS = {
    "layers": dict(T=5, B=3, dropout=0.4, **SMALL),
    "everything": dict(
        T=5,
        B=4,
        lengths=[5, 0, 2, 4],
        input_size=3,
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        proj_size=4,
        batch_first=True,
        dropout=0.5,
    ),
    "long": LONG["layers"] | {"dropout": 0.2},
    "long, lengths": LONG["lengths"] | {"dropout": 0.2},
    "nothing left": dict(T=4, B=3, input_size=2, hidden_size=7, num_layers=2, dropout=1.0),
    "almost nothing": dict(T=4, B=3, input_size=2, hidden_size=7, num_layers=2, dropout=1e-9),
}


@pytest.mark.parametrize("config", PROBLEMS.values(), ids=PROBLEMS)
def test_against_the_reference(config: dict[str, Any], dtype: str) -> None:
    """With the mask that a call draws, cylstm.reference gives the call's results and gradients."""
    p = make_problem(7, dtype=dtype, **config)
    T, B = p.valid().shape
    masks = masks_of(cylstm.LSTM(**p.config, dtype=dtype, seed=8), T, B)
    tape = p.lstm(seed=8).forward(p.x, p.states, lengths=p.lengths)
    want, want_grads = p.reference(masks)
    tolerance, grad_tolerance = TOLERANCES[dtype]
    errors = {name: rel(getattr(tape, name), getattr(want, name)) for name in ("y", "h_n", "c_n")}
    assert_close(errors, tolerance)
    grads = tape.backward(p.dy, p.dh_n, p.dc_n)
    assert_close(rel_grads(grads, want_grads), grad_tolerance)
    assert same_bits(all_grads(grads), all_grads(tape.backward(p.dy, p.dh_n, p.dc_n)))


def test_dropping_all_cuts_the_layers_apart(dtype: str) -> None:
    p = make_problem(9, 4, 3, dtype=dtype, input_size=2, hidden_size=7, num_layers=2)
    tape = p.lstm(dropout=1.0).forward(p.x, p.states)
    deaf = p._replace(
        weights=p.weights | {"weight_ih_l1": np.zeros_like(p.weights["weight_ih_l1"])}
    )
    y, (h_n, _) = deaf.lstm()(p.x, p.states)
    assert same_bits([tape.y, tape.h_n], [y, h_n])
    grads = tape.backward(p.dy)
    assert not grads.x.any() and not grads.weights["weight_ih_l0"].any()
    assert not grads.weights["weight_ih_l1"].any() and grads.weights["weight_hh_l1"].any()


@pytest.mark.parametrize("name", ["layers", "everything"])
def test_finite_differences(name: str) -> None:
    p = make_problem(10, **PROBLEMS[name])

    def forward(q: Problem) -> Any:
        return q.lstm(seed=11).forward(
            q.x, q.states, lengths=q.lengths
        )  # its first call: the same mask

    def loss(q: Problem) -> float:
        tape = forward(q)
        return q.loss(tape.y, tape.h_n, tape.c_n)

    check_by_differences(p, loss, forward(p).backward(p.dy, p.dh_n, p.dc_n))
