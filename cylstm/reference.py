"""The LSTM in plain NumPy: the equations, and their derivatives by hand.

This file is for reading, and for testing against. It is slow, imports nothing of the library, and
computes in the dtype of ``x``. Read it from top to bottom: one step, one layer over time, then the
stack of layers; each backward stands directly below its forward and walks the same lines upwards.

One step takes the input ``x_t`` and the state ``(h, c)`` that the previous step left::

    a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]      for k in i, f, g, o

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
    g       = tanh(a_g)

    c_t = f * c_{t-1} + i * g          the cell: keep f of the old, write i of the new
    h_t = o * tanh(c_t)                the output: show o of the cell
    h_t = W_hr h_t                     only with a projection: a narrower h is fed back and shown

``weights`` is a dict with the names, shapes and gate order of ``torch.nn.LSTM``, and says all there
is to know about the network: for each layer ``k``, and with ``_reverse`` behind the name for the
second direction,

======================  ==================================  ================================
``weight_ih_lk``        (4H, I), in upper layers (4H, D*P)  gates i, f, g, o below each other
``weight_hh_lk``        (4H, P)
``bias_ih_lk``          (4H,)                               absent without biases
``bias_hh_lk``          (4H,)                               absent without biases
``weight_hr_lk``        (P, H)                              absent without a projection
======================  ==================================  ================================

Dims: T steps, B sequences, I inputs, H cells, P outputs (P = H without a projection), L layers,
D directions. A ``d`` before a name is the gradient of the loss by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), in a form that overflows nowhere."""
    return np.exp(-np.logaddexp(0, -a))


# ---------------------------------------------------------------------------------------------
# One step
# ---------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """The weights of one layer and direction; biases may be zero, and ``hr`` may be None."""

    ih: Array  # (4H, I)
    hh: Array  # (4H, P)
    b_ih: Array  # (4H,)
    b_hh: Array  # (4H,)
    hr: Array | None  # (P, H)


def step_forward(w: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array, Array]:
    """x (B, I), h (B, P), c (B, H) -> the new h, the new c, and the gates (B, 4, H)."""
    a = x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh  # (B, 4H), the pre-activations
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)

    c = f * c + i * g
    h = o * np.tanh(c)
    if w.hr is not None:
        h = h @ w.hr.T
    return h, c, np.stack([i, f, g, o], axis=1)


def step_backward(
    w: Weights, x: Array, h: Array, c: Array, gates: Array, dh_new: Array, dc_new: Array
) -> tuple[Array, Array, Array, Weights]:
    """The gradients by x, h, c and the weights, from those by the step's new h and new c.

    x, h, c are what the step was given and ``gates`` what it computed; its new c follows from them.
    """
    i, f, g, o = (gates[:, k] for k in range(4))
    tanh_c = np.tanh(f * c + i * g)

    if w.hr is None:
        dhr, do_tanh_c = None, dh_new
    else:  # h_new = W_hr (o * tanh(c_new))
        dhr, do_tanh_c = dh_new.T @ (o * tanh_c), dh_new @ w.hr

    do = do_tanh_c * tanh_c
    dc_new = dc_new + do_tanh_c * o * (1 - tanh_c**2)  # tanh' = 1 - tanh^2

    di = dc_new * g  # c_new = f * c + i * g
    df = dc_new * c
    dg = dc_new * i
    dc = dc_new * f

    da = np.concatenate(  # sigmoid' = sigmoid * (1 - sigmoid)
        [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=1
    )
    db = da.sum(axis=0)  # both biases are added to the same sum, so they have the same gradient
    return da @ w.ih, da @ w.hh, dc, Weights(da.T @ x, da.T @ h, db, db, dhr)


# ---------------------------------------------------------------------------------------------
# One layer in one direction: the step over time
# ---------------------------------------------------------------------------------------------


def layer_forward(
    w: Weights, x: Array, h: Array, c: Array, valid: Array
) -> tuple[Array, Array, Array, Array, Array]:
    """x (T, B, I), h (B, P), c (B, H), valid (T, B) -> y (T, B, P), h_n, c_n, gates, cells.

    A step that is not valid leaves the state as it was; its y, gates and cells are zero.
    """
    (T, B, _), H, P = x.shape, c.shape[1], h.shape[1]
    y = np.zeros((T, B, P), x.dtype)
    gates = np.zeros((T, B, 4, H), x.dtype)
    cells = np.zeros((T, B, H), x.dtype)
    for t in range(T):
        on = valid[t]  # the sequences that still run
        y[t, on], cells[t, on], gates[t, on] = step_forward(w, x[t, on], h[on], c[on])
        h = np.where(on[:, None], y[t], h)
        c = np.where(on[:, None], cells[t], c)
    return y, h, c, gates, cells


def layer_backward(
    w: Weights,
    x: Array,
    h_0: Array,
    c_0: Array,
    valid: Array,
    y: Array,
    gates: Array,
    cells: Array,
    dy: Array,
    dh: Array,
    dc: Array,
) -> tuple[Array, Array, Array, Weights]:
    """The gradients by x, h_0, c_0 and the weights, from dy, dh_n and dc_n.

    Time runs backwards, and (dh, dc) is the gradient by the state between two steps.
    """
    dx = np.zeros_like(x)
    dw = Weights._make(None if a is None else np.zeros_like(a) for a in w)
    dh, dc = dh.copy(), dc.copy()
    for t in reversed(range(len(x))):
        on = valid[t]
        h_prev, c_prev = (y[t - 1], cells[t - 1]) if t > 0 else (h_0, c_0)
        # h_t went two ways: out as y_t, and into step t + 1 (or h_n). So both gradients add.
        dx[t, on], dh[on], dc[on], dw_t = step_backward(
            w, x[t, on], h_prev[on], c_prev[on], gates[t, on], dy[t, on] + dh[on], dc[on]
        )
        for total, part in zip(dw, dw_t, strict=True):
            if total is not None:
                total += part
    return dx, dh, dc, dw


def along(direction: int, x: Array, lengths: Array) -> Array:
    """x (T, B, ...) in the order in which a direction reads it: as is, or each sequence reversed.

    Only a sequence's valid steps change places, so that the second direction starts at its own last
    step. This is its own inverse, and as a permutation also its own gradient.
    """
    if direction == 1:
        x = x.copy()
        for b, n in enumerate(lengths):
            x[:n, b] = x[:n, b][::-1].copy()
    return x


# ---------------------------------------------------------------------------------------------
# The whole network: directions side by side, layers above each other
# ---------------------------------------------------------------------------------------------


class Tape(NamedTuple):
    """What `forward` returns: its results, then what `backward` needs besides."""

    y: Array  # (T, B, D*P), or as x: (B, T, D*P), (T, D*P)
    h_n: Array  # (L*D, B, P), or (L*D, P)
    c_n: Array  # (L*D, B, H), or (L*D, H)
    gates: Array  # (L*D, T, B, 4, H), each i, f, g, o after its activation
    cells: Array  # (L*D, T, B, H), each c_t
    weights: Mapping[str, Array]
    inputs: list[Array]  # of each layer, (T, B, I) or (T, B, D*P)
    outputs: list[Array]  # of each layer and direction, (T, B, P), before dropout
    h_0: Array
    c_0: Array
    lengths: Array  # (B,)
    dropout: Sequence[Array] | None
    batch_first: bool
    batched: bool


class Grads(NamedTuple):
    """What `backward` returns: shapes and names are those of the forward's arguments."""

    x: Array
    h_0: Array
    c_0: Array
    weights: dict[str, Array]


def forward(
    weights: Mapping[str, Array],
    x: Array,
    states: tuple[Array, Array] | None = None,
    lengths: ArrayLike | None = None,
    *,
    batch_first: bool = False,
    dropout: Sequence[Array] | None = None,
) -> Tape:
    """Run the network that ``weights`` describes.

    Parameters
    ----------
    weights : dict of arrays, as in the head of this file
    x : array (T, B, I), (B, T, I) with ``batch_first``, or (T, I)
    states : (h_0, c_0) of shapes (L*D, B, P) and (L*D, B, H), without B where x has none, or None
        for zeros. The index counts both directions of layer 0, then those of layer 1, ...
    lengths : integers (B,), one integer for x (T, I), or None for T each
        Steps from there on are not looked at: y is 0, and h_n, c_n are those of the last step
        before (h_0, c_0 where the length is 0).
    dropout : arrays (T, B, D*P), one for each layer but the last, or None
        What that layer's output is multiplied by: 0 or 1 / (1 - p).
    """
    batched = x.ndim == 3
    x = time_major(x, batch_first, batched)
    T, B, _ = x.shape
    L, D, P, H = describe(weights)
    if states is None:
        h_0, c_0 = np.zeros((L * D, B, P), x.dtype), np.zeros((L * D, B, H), x.dtype)
    else:
        h_0, c_0 = (s if batched else s[:, None] for s in states)
    n = np.full(B, T) if lengths is None else np.asarray(lengths).reshape(B)
    valid = np.arange(T)[:, None] < n  # (T, B)

    inputs, outputs, per_direction = [], [], []
    for layer in range(L):
        inputs.append(x)
        for d in range(D):
            k = layer * D + d
            y, h, c, gates, cells = layer_forward(
                pick(weights, layer, d), along(d, x, n), h_0[k], c_0[k], valid
            )
            outputs.append(along(d, y, n))
            per_direction.append((h, c, along(d, gates, n), along(d, cells, n)))
        x = np.concatenate(outputs[layer * D :], axis=2)  # (T, B, D*P)
        if dropout is not None and layer < L - 1:
            x = x * dropout[layer]

    h_n, c_n, gates, cells = (np.stack(a) for a in zip(*per_direction, strict=True))
    return Tape(
        from_time_major(x, batch_first, batched),
        h_n if batched else h_n[:, 0],
        c_n if batched else c_n[:, 0],
        gates,
        cells,
        weights,
        inputs,
        outputs,
        h_0,
        c_0,
        n,
        dropout,
        batch_first,
        batched,
    )


def backward(
    tape: Tape, dy: Array | None = None, dh_n: Array | None = None, dc_n: Array | None = None
) -> Grads:
    """The gradients of a loss by everything `forward` was given, from those by its results.

    A gradient left out is zero; one that is given has the shape of the result it belongs to.
    """
    dy, dh_n, dc_n = (
        np.zeros_like(result) if d is None else d
        for d, result in ((dy, tape.y), (dh_n, tape.h_n), (dc_n, tape.c_n))
    )
    dx = time_major(dy, tape.batch_first, tape.batched)  # by the output of the layer at hand
    if not tape.batched:
        dh_n, dc_n = dh_n[:, None], dc_n[:, None]
    L, D, _, _ = describe(tape.weights)
    n = tape.lengths
    valid = np.arange(len(dx))[:, None] < n

    dh_0, dc_0 = np.zeros_like(tape.h_0), np.zeros_like(tape.c_0)
    dweights: dict[str, Array] = {}
    for layer in reversed(range(L)):
        if tape.dropout is not None and layer < L - 1:
            dx = dx * tape.dropout[layer]
        x = tape.inputs[layer]
        dys, dx = np.split(dx, D, axis=2), np.zeros_like(x)
        for d in range(D):
            k = layer * D + d
            dx_d, dh_0[k], dc_0[k], dw = layer_backward(
                pick(tape.weights, layer, d),
                along(d, x, n),
                tape.h_0[k],
                tape.c_0[k],
                valid,
                along(d, tape.outputs[k], n),
                along(d, tape.gates[k], n),
                along(d, tape.cells[k], n),
                along(d, dys[d], n),
                dh_n[k],
                dc_n[k],
            )
            dx += along(d, dx_d, n)  # both directions read the same x
            dweights.update(
                (k, a) for k, a in zip(names(layer, d), dw, strict=True) if a is not None
            )

    return Grads(
        from_time_major(dx, tape.batch_first, tape.batched),
        dh_0 if tape.batched else dh_0[:, 0],
        dc_0 if tape.batched else dc_0[:, 0],
        {name: dweights[name] for name in tape.weights},  # only those there are, in their order
    )


# ---------------------------------------------------------------------------------------------
# Names and shapes
# ---------------------------------------------------------------------------------------------


def names(layer: int, direction: int) -> list[str]:
    """The names of the `Weights` of one layer and direction."""
    suffix = f"_l{layer}" + "_reverse" * direction
    return [s + suffix for s in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]


def pick(weights: Mapping[str, Array], layer: int, direction: int) -> Weights:
    """One layer and direction of ``weights``; absent biases are zero."""
    ih, hh, b_ih, b_hh, hr = (weights.get(name) for name in names(layer, direction))
    assert ih is not None and hh is not None
    zero = np.zeros(len(ih), ih.dtype)
    return Weights(ih, hh, zero if b_ih is None else b_ih, zero if b_hh is None else b_hh, hr)


def describe(weights: Mapping[str, Array]) -> tuple[int, int, int, int]:
    """L, D, P, H."""
    D = 2 if "weight_ih_l0_reverse" in weights else 1
    L = sum(name.startswith("weight_ih_l") for name in weights) // D
    H4, P = weights["weight_hh_l0"].shape
    return L, D, P, H4 // 4


def time_major(x: Array, batch_first: bool, batched: bool) -> Array:
    """(T, B, I) or (B, T, I) or (T, I) -> (T, B, I)."""
    if not batched:
        return x[:, None]
    return x.swapaxes(0, 1) if batch_first else x


def from_time_major(x: Array, batch_first: bool, batched: bool) -> Array:
    """The inverse of `time_major`."""
    if not batched:
        return x[:, 0]
    return x.swapaxes(0, 1) if batch_first else x
