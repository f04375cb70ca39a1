"""The cells in plain NumPy: the equations, and their derivatives by hand.

This file is for reading, and for testing against. It is slow, imports nothing of the library, and
computes in the dtype of ``x``. Read it from top to bottom: one step of each cell, one layer over
time, then the stack of layers; each backward stands directly below its forward and walks the same
lines upwards.

One step of an LSTM takes the input ``x_t`` and the state ``(h, c)`` that the previous step left::

    a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]      for k in i, f, g, o

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
    g       = tanh(a_g)

    c_t = f * c_{t-1} + i * g          the cell: keep f of the old, write i of the new
    h_t = o * tanh(c_t)                the output: show o of the cell
    h_t = W_hr h_t                     only with a projection: a narrower h is fed back and shown

The other cells have their equations beside their steps. Their state is ``(h,)``.

``weights`` is a dict with the names, shapes and gate order of ``torch.nn.LSTM``, and says all else
there is to know about the network: for each layer ``k``, and with ``_reverse`` behind the name for
the second direction, with G gates (4 of an LSTM, 3 of a GRU: r, z, n; 1 of an RNN)

======================  ==================================  ================================
``weight_ih_lk``        (GH, I), in upper layers (GH, D*P)  gates i, f, g, o below each other
``weight_hh_lk``        (GH, P)
``bias_ih_lk``          (GH,)                               absent without biases
``bias_hh_lk``          (GH,)                               absent without biases
``weight_hr_lk``        (P, H)                              absent without a projection
======================  ==================================  ================================

Dims: T steps, B sequences, I inputs, H cells, P outputs (P = H without a projection), L layers,
D directions. A ``d`` before a name is the gradient of the loss with respect to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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

    ih: Array  # (GH, I)
    hh: Array  # (GH, P)
    b_ih: Array  # (GH,)
    b_hh: Array  # (GH,)
    hr: Array | None  # (P, H)


State = tuple[Array, ...]  # (h, c) of shapes (B, P) and (B, H), or (h,)


class LSTM:
    """The equations in the head of this file."""

    gates = 4
    states = 2

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 4, H)."""
        h, c = state
        a = x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh  # (B, 4H), the pre-activations
        a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)

        c = f * c + i * g
        h = o * np.tanh(c)
        if w.hr is not None:
            h = h @ w.hr.T
        return (h, c), np.stack([i, f, g, o], axis=1)

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """The gradients with respect to x, the state and the weights, from that of the new state.

        x and the state are what the step was given and ``gates`` what it computed; its new c
        follows from them. ``dgates`` (B, G, H) is what a loss says of the gates themselves.
        """
        (h, c), (dh_new, dc_new) = state, dnew
        i, f, g, o = (gates[:, k] for k in range(4))
        tanh_c = np.tanh(f * c + i * g)

        if w.hr is None:
            dhr, do_tanh_c = None, dh_new
        else:  # h_new = W_hr (o * tanh(c_new))
            dhr, do_tanh_c = dh_new.T @ (o * tanh_c), dh_new @ w.hr

        do = do_tanh_c * tanh_c + dgates[:, 3]
        dc_new = dc_new + do_tanh_c * o * (1 - tanh_c**2)  # tanh' = 1 - tanh^2

        di = dc_new * g + dgates[:, 0]  # c_new = f * c + i * g
        df = dc_new * c + dgates[:, 1]
        dg = dc_new * i + dgates[:, 2]
        dc = dc_new * f

        da = np.concatenate(  # sigmoid' = sigmoid * (1 - sigmoid)
            [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)], axis=1
        )
        db = da.sum(axis=0)  # both biases are added to the same sum and have the same gradient
        return da @ w.ih, (da @ w.hh, dc), Weights(da.T @ x, da.T @ h, db, db, dhr)


class GRU:
    """The gated recurrent unit, with its reset gate behind the product, as in torch.nn.GRU::

        r, z = sigmoid(W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k])      for k in r, z
        n    = tanh(W_ih[n] x_t + b_ih[n] + r * (W_hh[n] h_{t-1} + b_hh[n]))
        h_t  = (1 - z) * n + z * h_{t-1}

    or, with ``reset_after=False``, before it::

        n    = tanh(W_ih[n] x_t + b_ih[n] + W_hh[n] (r * h_{t-1}) + b_hh[n])
    """

    gates = 3
    states = 1

    def __init__(self, reset_after: bool = True) -> None:
        self.reset_after = reset_after

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 3, H)."""
        (h,) = state
        H = h.shape[1]
        x_rz, x_n = np.split(x @ w.ih.T + w.b_ih, [2 * H], axis=1)
        r, z = np.split(sigmoid(x_rz + h @ w.hh[: 2 * H].T + w.b_hh[: 2 * H]), 2, axis=1)
        if self.reset_after:
            n = np.tanh(x_n + r * (h @ w.hh[2 * H :].T + w.b_hh[2 * H :]))
        else:
            n = np.tanh(x_n + (r * h) @ w.hh[2 * H :].T + w.b_hh[2 * H :])
        return ((1 - z) * n + z * h,), np.stack([r, z, n], axis=1)

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """As of the LSTM."""
        (h,), (dh_new,) = state, dnew
        H = h.shape[1]
        r, z, n = (gates[:, k] for k in range(3))
        hh_n = w.hh[2 * H :]

        dz = dh_new * (h - n) + dgates[:, 1]  # h_new = (1 - z) * n + z * h
        da_n = (dh_new * (1 - z) + dgates[:, 2]) * (1 - n**2)
        dh = dh_new * z
        if self.reset_after:  # a_n = x_n + r * q
            dq = da_n * r
            dr = da_n * (h @ hh_n.T + w.b_hh[2 * H :]) + dgates[:, 0]
            dh = dh + dq @ hh_n
            dhh_n, db_n = dq.T @ h, dq.sum(axis=0)
        else:  # a_n = x_n + W_hn (r * h) + b_hn
            dm = da_n @ hh_n
            dr = dm * h + dgates[:, 0]
            dh = dh + dm * r
            dhh_n, db_n = da_n.T @ (r * h), da_n.sum(axis=0)

        da_rz = np.concatenate([dr * r * (1 - r), dz * z * (1 - z)], axis=1)
        da = np.concatenate([da_rz, da_n], axis=1)
        dw = Weights(
            da.T @ x,
            np.concatenate([da_rz.T @ h, dhh_n]),
            da.sum(axis=0),
            np.concatenate([da_rz.sum(axis=0), db_n]),
            None,
        )
        return da @ w.ih, (dh + da_rz @ w.hh[: 2 * H],), dw


class RNN:
    """The plain cell: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), where f is tanh or ReLU."""

    gates = 1
    states = 1

    def __init__(self, nonlinearity: str = "tanh") -> None:
        self.relu = nonlinearity == "relu"

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 1, H): h once more."""
        (h,) = state
        a = x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh
        h = np.maximum(a, 0) if self.relu else np.tanh(a)
        return (h,), h[:, None]

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """As of the LSTM."""
        (h,), (dh_new,), h_new = state, dnew, gates[:, 0]
        da = (dh_new + dgates[:, 0]) * (h_new > 0 if self.relu else 1 - h_new**2)
        db = da.sum(axis=0)
        return da @ w.ih, (da @ w.hh,), Weights(da.T @ x, da.T @ h, db, db, None)


Cell = LSTM | GRU | RNN


# ---------------------------------------------------------------------------------------------
# One step with int8 weights
# ---------------------------------------------------------------------------------------------


def quantize_rows(rows: Array) -> tuple[Array, Array]:
    """float32 (N, K) -> integers (N, K) from -127 to 127 and scales (N,): row ~ scale * integers.

    Each row by itself, in float32, to nearest even; a row whose largest value is below 2^-119 is
    zero.
    """
    largest = np.abs(rows).max(axis=1)
    largest[largest < 2.0**-119] = 0
    by = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(rows * by[:, None]).astype(np.int64), largest / np.float32(127)


def int8_product(rows: Array, codes: Array, scales: Array) -> Array:
    """float32 (N, K) times int8 (M, K) with a scale for each of its M rows: sums of integers."""
    integers, by = quantize_rows(rows)
    return (integers @ codes.T.astype(np.int64)) * (by[:, None] * scales).astype(np.float64)


def lstm_int8_step(
    weights: Mapping[str, Array], x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    """One step of an LSTM with int8 weights, those of layer 0; x and h are quantised by row."""

    def product(rows: Array, kind: str) -> Array:
        return int8_product(rows, weights[f"{kind}_l0"], weights[f"{kind}_scale_l0"])

    a = product(x, "weight_ih") + product(h, "weight_hh")
    if "bias_ih_l0" in weights:
        a += weights["bias_ih_l0"] + weights["bias_hh_l0"]
    a_i, a_f, a_g, a_o = np.split(a, 4, axis=1)
    i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
    c = f * c + i * g
    h = o * np.tanh(c)
    if "weight_hr_l0" in weights:
        h = product(h.astype(np.float32), "weight_hr")
    return h, c


# ---------------------------------------------------------------------------------------------
# One layer in one direction: the step over time
# ---------------------------------------------------------------------------------------------


def layer_forward(
    cell: Cell, w: Weights, x: Array, state: State, valid: Array
) -> tuple[list[Array], State, Array]:
    """x (T, B, I), the first state, valid (T, B) -> the states of all steps, (T, B, .) each, the
    last state, and the gates (T, B, G, H).

    A step that is not valid leaves the state as it was; in the states and gates of all steps its
    own are zero.
    """
    T, B, _ = x.shape
    H = len(w.ih) // cell.gates
    states = [np.zeros((T, *s.shape), x.dtype) for s in state]
    gates = np.zeros((T, B, cell.gates, H), x.dtype)
    for t in range(T):
        on = valid[t]  # the sequences that still run
        new, gates[t, on] = cell.forward(w, x[t, on], tuple(s[on] for s in state))
        for all_steps, s in zip(states, new, strict=True):
            all_steps[t, on] = s
        state = tuple(
            np.where(on[:, None], all_steps[t], s)
            for all_steps, s in zip(states, state, strict=True)
        )
    return states, state, gates


def layer_backward(
    cell: Cell,
    w: Weights,
    x: Array,
    state_0: State,
    valid: Array,
    states: Sequence[Array],
    gates: Array,
    dy: Array,
    dstate: State,
    dcells: Array,
    dgates: Array,
) -> tuple[Array, State, Weights]:
    """The gradients with respect to x, the first state and the weights, from dy, that of the last
    state, and those of all c (T, B, H) and all gates (T, B, G, H).

    Time runs backwards, and dstate is the gradient of the state between two steps.
    """
    dx = np.zeros_like(x)
    dw = Weights._make(None if a is None else np.zeros_like(a) for a in w)
    dstate = tuple(d.copy() for d in dstate)
    for t in reversed(range(len(x))):
        on = valid[t]
        before = [s[t - 1] for s in states] if t > 0 else state_0
        dnew = [d[on] for d in dstate]
        dnew[0] = dnew[0] + dy[t, on]  # h_t went out as y_t and into the next step: both add
        if cell.states > 1:
            dnew[1] = dnew[1] + dcells[t, on]
        dx[t, on], dbefore, dw_t = cell.backward(
            w, x[t, on], tuple(s[on] for s in before), gates[t, on], tuple(dnew), dgates[t, on]
        )
        for d, new in zip(dstate, dbefore, strict=True):
            d[on] = new
        for total, part in zip(dw, dw_t, strict=True):
            if total is not None:
                total += part
    return dx, dstate, dw


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
    c_n: Array | Any  # (L*D, B, H), or (L*D, H); None for a cell without c
    gates: Array  # (L*D, T, B, G, H), each after its activation
    cells: Array | Any  # (L*D, T, B, H), each c_t; None for a cell without c
    cell: Cell
    weights: Mapping[str, Array]
    inputs: list[Array]  # of each layer, (T, B, I) or (T, B, D*P)
    states: list[list[Array]]  # of each layer and direction, h and c of all steps, before dropout
    states_0: list[Array]
    lengths: Array  # (B,)
    dropout: Sequence[Array] | None
    reverse: bool
    batch_first: bool
    batched: bool


class Grads(NamedTuple):
    """What `backward` returns: shapes and names are those of the forward's arguments."""

    x: Array
    h_0: Array
    c_0: Array | Any  # None for a cell without c
    weights: dict[str, Array]


def forward(
    weights: Mapping[str, Array],
    x: Array,
    states: tuple[Array, Array] | Array | None = None,
    lengths: ArrayLike | None = None,
    *,
    cell: Cell | None = None,
    reverse: bool = False,
    batch_first: bool = False,
    dropout: Sequence[Array] | None = None,
) -> Tape:
    """Run the network that ``weights`` describes.

    Parameters
    ----------
    weights : dict of arrays, as in the head of this file
    x : array (T, B, I), (B, T, I) with ``batch_first``, or (T, I)
    states : (h_0, c_0) of shapes (L*D, B, P) and (L*D, B, H), without B where x has none, or None
        for zeros; h_0 alone for a cell without c. The index counts both directions of layer 0,
        then those of layer 1, ...
    lengths : integers (B,), one integer for x (T, I), or None for T each
        Steps from there on are not looked at: y is 0, and h_n, c_n are those of the last step
        before (h_0, c_0 where the length is 0).
    cell : of which kind the cells are; None for an `LSTM`
    reverse : whether the only direction reads each sequence from its last step on
    dropout : arrays (T, B, D*P), one for each layer but the last, or None
        What that layer's output is multiplied by: 0 or 1 / (1 - p).
    """
    cell = cell or LSTM()
    batched = x.ndim == 3
    x = time_major(x, batch_first, batched)
    T, B, _ = x.shape
    L, D, P, H = describe(weights, cell)
    if states is None:
        states_0 = [np.zeros((L * D, B, width), x.dtype) for width in (P, H)[: cell.states]]
    else:
        given = states if isinstance(states, tuple) else (states,)
        states_0 = [s if batched else s[:, None] for s in given]
    n = np.full(B, T) if lengths is None else np.asarray(lengths).reshape(B)
    valid = np.arange(T)[:, None] < n  # (T, B)

    inputs, all_states, last, all_gates = [], [], [], []
    for layer in range(L):
        inputs.append(x)
        for d in range(D):
            k, way = layer * D + d, 1 if reverse else d
            steps, state, gates = layer_forward(
                cell,
                pick(weights, layer, d),
                along(way, x, n),
                tuple(s[k] for s in states_0),
                valid,
            )
            all_states.append([along(way, s, n) for s in steps])
            last.append(state)
            all_gates.append(along(way, gates, n))
        x = np.concatenate([s[0] for s in all_states[layer * D :]], axis=2)  # (T, B, D*P)
        if dropout is not None and layer < L - 1:
            x = x * dropout[layer]

    h_n, c_n = both(np.stack(s) if batched else np.stack(s)[:, 0] for s in zip(*last, strict=True))
    _, cells = both(np.stack(s) for s in zip(*all_states, strict=True))
    return Tape(
        from_time_major(x, batch_first, batched),
        h_n,
        c_n,
        np.stack(all_gates),
        cells,
        cell,
        weights,
        inputs,
        all_states,
        states_0,
        n,
        dropout,
        reverse,
        batch_first,
        batched,
    )


def backward(
    tape: Tape,
    dy: Array | None = None,
    dh_n: Array | None = None,
    dc_n: Array | None = None,
    dcells: Array | None = None,
    dgates: Array | None = None,
) -> Grads:
    """The gradients of a loss with respect to everything `forward` was given, from those with
    respect to its results, and to the cells and gates of its tape.

    A gradient left out is zero; one that is given has the shape of the result it belongs to.
    """
    dy = np.zeros_like(tape.y) if dy is None else dy
    dstates_n = [
        np.zeros_like(s) if d is None else d if tape.batched else d[:, None]
        for d, s in zip((dh_n, dc_n), tape.states_0, strict=False)
    ]
    dcells = np.zeros_like(tape.gates[..., 0, :]) if dcells is None else dcells
    dgates = np.zeros_like(tape.gates) if dgates is None else dgates
    dx = time_major(dy, tape.batch_first, tape.batched)  # of the output of the layer at hand
    L, D, _, _ = describe(tape.weights, tape.cell)
    n = tape.lengths
    valid = np.arange(len(dx))[:, None] < n

    dstates_0 = [np.zeros_like(s) for s in tape.states_0]
    dweights: dict[str, Array] = {}
    for layer in reversed(range(L)):
        if tape.dropout is not None and layer < L - 1:
            dx = dx * tape.dropout[layer]
        x = tape.inputs[layer]
        dys, dx = np.split(dx, D, axis=2), np.zeros_like(x)
        for d in range(D):
            k, way = layer * D + d, 1 if tape.reverse else d
            dx_d, dstate, dw = layer_backward(
                tape.cell,
                pick(tape.weights, layer, d),
                along(way, x, n),
                tuple(s[k] for s in tape.states_0),
                valid,
                [along(way, s, n) for s in tape.states[k]],
                along(way, tape.gates[k], n),
                along(way, dys[d], n),
                tuple(s[k] for s in dstates_n),
                along(d, dcells[k], n),
                along(d, dgates[k], n),
            )
            for ds_0, ds in zip(dstates_0, dstate, strict=True):
                ds_0[k] = ds
            dx += along(way, dx_d, n)  # both directions read the same x
            dweights.update(
                (k, a) for k, a in zip(names(layer, d), dw, strict=True) if a is not None
            )

    dh_0, dc_0 = both(s if tape.batched else s[:, 0] for s in dstates_0)
    return Grads(
        from_time_major(dx, tape.batch_first, tape.batched),
        dh_0,
        dc_0,
        {name: dweights[name] for name in tape.weights},  # only those there are, in their order
    )


def both(states: Iterable[Array]) -> tuple[Array, Array | Any]:
    """h and c, or h and None."""
    h, *c = states
    return h, c[0] if c else None


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


def describe(weights: Mapping[str, Array], cell: Cell) -> tuple[int, int, int, int]:
    """L, D, P, H."""
    D = 2 if "weight_ih_l0_reverse" in weights else 1
    L = sum(name.startswith("weight_ih_l") for name in weights) // D
    gates_H, P = weights["weight_hh_l0"].shape
    return L, D, P, gates_H // cell.gates


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
