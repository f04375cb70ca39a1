"""A layer in one direction over time, then directions side by side and layers above each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cells import LSTM, Cell, State, Weights

Array = NDArray[Any]

# ---------------------------------------------------------------------------------------------
# One layer in one direction: the step over time
# ---------------------------------------------------------------------------------------------


def layer_forward(
    cell: Cell, w: Weights, x: Array, state: State, valid: Array, reset: Array, keep: Array
) -> tuple[list[Array], list[Array], State, Array]:
    """x (T, B, I), the first state, valid and reset (T, B), keep (T, B, P) -> the states after all
    steps, (T, B, .) each, those before them, the last state, and the gates (T, B, G, H).

    Zoneout (Krueger et al. 2017, arXiv:1606.01305) keeps a part of h, as Haste has it::

        h_t = keep_t * h_{t-1} + (1 - keep_t) * (what the cell has made)

    A reset makes the state zero before the step. A step that is not valid leaves the state as it
    was; in the states after all steps and in the gates its own are zero.
    """
    T, B, _ = x.shape
    H = len(w.ih) // cell.raw_gates
    states = [np.zeros((T, *s.shape), x.dtype) for s in state]
    befores = [np.zeros_like(s) for s in states]
    gates = np.zeros((T, B, cell.gates, H), x.dtype)
    for t in range(T):
        state = tuple(np.where(reset[t, :, None], 0, s) for s in state)
        for before, s in zip(befores, state, strict=True):
            before[t] = s
        on = valid[t]  # the sequences that take this step
        (h, *c), gates[t, on] = cell.forward(w, x[t, on], tuple(s[on] for s in state))
        if keep[t, on].any():  # else an infinite h_{t-1} would be NaN
            h = keep[t, on] * state[0][on] + (1 - keep[t, on]) * h
        new = (h, *c)
        for all_steps, s in zip(states, new, strict=True):
            all_steps[t, on] = s
        state = tuple(
            np.where(on[:, None], all_steps[t], s)
            for all_steps, s in zip(states, state, strict=True)
        )
    return states, befores, state, gates


def layer_backward(
    cell: Cell,
    w: Weights,
    x: Array,
    valid: Array,
    reset: Array,
    keep: Array,
    befores: Sequence[Array],
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
        dnew = [d[on] for d in dstate]
        dnew[0] = dnew[0] + dy[t, on]  # h_t went out as y_t and into the next step: both add
        if cell.states > 1:
            dnew[1] = dnew[1] + dcells[t, on]
        dkept, dnew[0] = keep[t, on] * dnew[0], (1 - keep[t, on]) * dnew[0]
        dx[t, on], dbefore, dw_t = cell.backward(
            w, x[t, on], tuple(s[t, on] for s in befores), gates[t, on], tuple(dnew), dgates[t, on]
        )
        dbefore = (dbefore[0] + dkept, *dbefore[1:])
        for d, new in zip(dstate, dbefore, strict=True):
            d[on] = new
            d[reset[t]] = 0
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


def boundaries(direction: int, reset: Array, lengths: Array) -> Array:
    """Resets (T, B) as a direction meets them: one at t lies between t - 1 and t, so that the
    second direction meets it before it goes on to t - 1."""
    within = reset & (np.arange(len(reset))[:, None] < lengths)
    if direction == 1:
        within = np.concatenate([within[1:], np.zeros_like(within[:1])])
    return along(direction, within, lengths)


def hold(y: Array, valid: Array, lengths: Array) -> Array:
    """y (T, B, P) in the order of a direction, which repeats what it was where a step is held."""
    y = y.copy()
    for t in range(1, len(y)):
        held = ~valid[t] & (t < lengths)
        y[t, held] = y[t - 1, held]
    return y


def hold_backward(dy: Array, valid: Array, lengths: Array) -> Array:
    """Its gradient: what was shown twice is asked twice."""
    dy = dy.copy()
    for t in reversed(range(1, len(dy))):
        held = ~valid[t] & (t < lengths)
        dy[t - 1, held] += dy[t, held]
    return dy


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
    cell: tuple[Cell, Cell]  # of each direction
    weights: Mapping[str, Array]
    inputs: list[Array]  # of each layer, (T, B, I) or (T, B, D*P)
    befores: list[list[Array]]  # of each layer and direction, h and c before all its steps
    states_0: list[Array]
    lengths: Array  # (B,)
    valid: Array  # (T, B)
    reset: Array  # (T, B)
    hold_output: bool
    dropout: Sequence[Array] | None
    zoneout: Array  # (L*D, T, B, P)
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
    mask: Array | None = None,
    reset: Array | None = None,
    hold_output: bool = False,
    cell: Cell | tuple[Cell, Cell] | None = None,
    reverse: bool = False,
    batch_first: bool = False,
    dropout: Sequence[Array] | None = None,
    zoneout: ArrayLike = 0,
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
    mask : bools (T, B), laid out as x; None: all True
        Where it is False the state is held, and y is 0: `lengths` is the mask t < length.
    reset : bools (T, B), laid out as x; None: all False
        Where it is True the state is zero before that step, in both directions between t - 1 and t.
        Past a length nothing is reset.
    hold_output : whether y repeats the output of the step before where the mask is False
    cell : of which kind the cells are, or those of each direction; None for an `LSTM`
    reverse : whether the only direction reads each sequence from its last step on
    dropout : arrays (T, B, D*P), one for each layer but the last, or None
        What that layer's output is multiplied by: 0 or 1 / (1 - p).
    zoneout : array (L*D, T, B, P), or what broadcasts to it
        The part of h_{t-1} that h_t keeps: 0 or 1, drawn, or the mean of all draws.
    """
    cell = cell if isinstance(cell, tuple) else (cell or LSTM(),) * 2
    batched = x.ndim == 3
    x = time_major(x, batch_first, batched)
    T, B, _ = x.shape
    L, D, P, H = describe(weights, cell[0])
    if states is None:
        states_0 = [np.zeros((L * D, B, width), x.dtype) for width in (P, H)[: cell[0].states]]
    else:
        given = states if isinstance(states, tuple) else (states,)
        states_0 = [s if batched else s[:, None] for s in given]
    n = np.full(B, T) if lengths is None else np.asarray(lengths).reshape(B)
    valid = np.arange(T)[:, None] < n  # (T, B)
    if mask is not None:
        valid = valid & time_major(mask[..., None], batch_first, batched)[..., 0]
    resets = np.zeros((T, B), bool)
    if reset is not None:
        resets = time_major(reset[..., None], batch_first, batched)[..., 0]
    keep = np.broadcast_to(np.asarray(zoneout, x.dtype), (L * D, T, B, P))

    inputs, all_states, all_befores, last, all_gates = [], [], [], [], []
    for layer in range(L):
        inputs.append(x)
        for d in range(D):
            k, way = layer * D + d, 1 if reverse else d
            steps, befores, state, gates = layer_forward(
                cell[d],
                pick(weights, layer, d),
                along(way, x, n),
                tuple(s[k] for s in states_0),
                along(way, valid, n),
                boundaries(way, resets, n),
                along(way, keep[k], n),
            )
            all_befores.append(befores)
            all_states.append([along(way, s, n) for s in steps])
            last.append(state)
            all_gates.append(along(way, gates, n))
        x = np.concatenate([s[0] for s in all_states[layer * D :]], axis=2)  # (T, B, D*P)
        if dropout is not None and layer < L - 1:
            x = x * dropout[layer]

    if hold_output:
        ways = [1 if reverse else d for d in range(D)]
        x = np.concatenate(
            [
                along(way, hold(along(way, y, n), along(way, valid, n), n), n)
                for way, y in zip(ways, np.split(x, D, axis=2), strict=True)
            ],
            axis=2,
        )
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
        all_befores,
        states_0,
        n,
        valid,
        resets,
        hold_output,
        dropout,
        keep,
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
    L, D, _, _ = describe(tape.weights, tape.cell[0])
    n = tape.lengths

    dstates_0 = [np.zeros_like(s) for s in tape.states_0]
    dweights: dict[str, Array] = {}
    for layer in reversed(range(L)):
        if tape.dropout is not None and layer < L - 1:
            dx = dx * tape.dropout[layer]
        x = tape.inputs[layer]
        dys, dx = np.split(dx, D, axis=2), np.zeros_like(x)
        for d in range(D):
            k, way = layer * D + d, 1 if tape.reverse else d
            valid, dy_d = along(way, tape.valid, n), along(way, dys[d], n)
            if tape.hold_output and layer == L - 1:
                dy_d = hold_backward(dy_d, valid, n)
            dx_d, dstate, dw = layer_backward(
                tape.cell[d],
                pick(tape.weights, layer, d),
                along(way, x, n),
                valid,
                boundaries(way, tape.reset, n),
                along(way, tape.zoneout[k], n),
                tape.befores[k],
                along(way, tape.gates[k], n),
                dy_d,
                tuple(s[k] for s in dstates_n),
                along(way, dcells[k], n),
                along(way, dgates[k], n),
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
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peep")
    norms = ("weight_ln", "weight_ln_ih", "weight_ln_hh", "weight_ln_cell", "bias_ln_cell")
    return [kind + suffix for kind in (*kinds, "bias_hr", *norms)]


def pick(weights: Mapping[str, Array], layer: int, direction: int) -> Weights:
    """One layer and direction of ``weights``; absent biases are zero."""
    ih, hh, b_ih, b_hh, *more = (weights.get(name) for name in names(layer, direction))
    assert ih is not None and hh is not None
    zero = np.zeros(len(ih), ih.dtype)
    return Weights(ih, hh, zero if b_ih is None else b_ih, zero if b_hh is None else b_hh, *more)


def describe(weights: Mapping[str, Array], cell: Cell) -> tuple[int, int, int, int]:
    """L, D, P, H."""
    D = 2 if "weight_ih_l0_reverse" in weights else 1
    L = sum(name.startswith("weight_ih_l") for name in weights) // D
    gates_H, P = weights["weight_hh_l0"].shape
    return L, D, P, gates_H // cell.raw_gates


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
