"""Keras's LSTM layer on PyTorch: another reading of the same equations, gradients included.

Gates stand in the order i, f, c, o as here, kernels are transposed, and there is one bias.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "torch"  # read by the import of keras

import keras
import numpy as np
import pytest
import torch

from helpers import Array, Problem, assert_close, make_problem, rel


def keras_weights(p: Problem, suffix: str = "") -> list[Array]:
    """[kernel (I, 4H), recurrent kernel (H, 4H), bias (4H)] of layer 0."""
    w = p.weights
    bias = w[f"bias_ih_l0{suffix}"] + w[f"bias_hh_l0{suffix}"]
    return [w[f"weight_ih_l0{suffix}"].T, w[f"weight_hh_l0{suffix}"].T, bias]


@pytest.mark.parametrize(("I", "H", "B"), [(1, 1, 1), (3, 7, 5), (17, 50, 2)])
def test_one_layer(I: int, H: int, B: int) -> None:
    p = make_problem(I, 7, B, input_size=I, hidden_size=H, batch_first=True)
    layer = keras.layers.LSTM(H, return_sequences=True, return_state=True, dtype="float64")
    layer.build((B, 7, I))
    layer.set_weights(keras_weights(p))
    x, h_0, c_0 = (torch.tensor(a, requires_grad=True) for a in (p.x, p.h_0[0], p.c_0[0]))
    results = layer(x, initial_state=[h_0, c_0])
    upstream = [torch.tensor(a) for a in (p.dy, p.dh_n[0], p.dc_n[0])]
    leaves = [x, h_0, c_0, *(v.value for v in layer.trainable_variables)]
    gradients = [g.numpy() for g in torch.autograd.grad(results, leaves, upstream)]

    tape = p.lstm().forward(p.x, p.states)
    got = [tape.y, tape.h_n[0], tape.c_n[0]]
    assert_close(
        {
            str(k): rel(a, r.detach().numpy())
            for k, (a, r) in enumerate(zip(got, results, strict=True))
        },
        1e-12,
    )
    grads = tape.backward(p.dy, p.dh_n, p.dc_n)
    w = grads.weights
    got = [grads.x, grads.h_0[0], grads.c_0[0]]
    got += [w["weight_ih_l0"].T, w["weight_hh_l0"].T, w["bias_ih_l0"]]
    assert_close(
        {str(k): rel(a, g) for k, (a, g) in enumerate(zip(got, gradients, strict=True))}, 1e-10
    )


def test_both_directions() -> None:
    p = make_problem(1, 6, 4, input_size=3, hidden_size=7, batch_first=True, bidirectional=True)
    layer = keras.layers.Bidirectional(
        keras.layers.LSTM(7, return_sequences=True, dtype="float64"), dtype="float64"
    )
    layer.build((4, 6, 3))
    layer.forward_layer.set_weights(keras_weights(p))
    layer.backward_layer.set_weights(keras_weights(p, "_reverse"))
    states = [torch.tensor(a) for k in range(2) for a in (p.h_0[k], p.c_0[k])]
    with torch.no_grad():
        want = layer(torch.tensor(p.x), initial_state=states).numpy()
    assert rel(p.lstm()(p.x, p.states)[0], want) < 1e-12


def test_lengths_as_a_mask() -> None:
    """Keras repeats the last output in masked steps unless told to give zeros, as here.

    In float32: with a mask, Keras loses what a float64 layer has beyond it.
    """
    lengths = np.array([6, 2, 5, 1])
    p = make_problem(2, 6, 4, lengths, "float32", input_size=3, hidden_size=7, batch_first=True)
    layer = keras.layers.LSTM(
        7, return_sequences=True, return_state=True, zero_output_for_mask=True
    )
    layer.build((4, 6, 3))
    layer.set_weights(keras_weights(p))
    mask = torch.tensor(np.arange(6) < lengths[:, None])
    with torch.no_grad():
        want = layer(
            torch.tensor(p.x),
            initial_state=[torch.tensor(p.h_0[0]), torch.tensor(p.c_0[0])],
            mask=mask,
        )
    y, (h_n, c_n) = p.lstm()(p.x, p.states, lengths=lengths)
    got = [y, h_n[0], c_n[0]]
    assert_close(
        {str(k): rel(a, r.numpy()) for k, (a, r) in enumerate(zip(got, want, strict=True))}, 5e-6
    )
