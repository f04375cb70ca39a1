"""One step of each cell: its equations, and directly below them their derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activations import Choice, behind_clip, unclipped

Array = NDArray[Any]


class Weights(NamedTuple):
    """The weights of one layer and direction; biases may be zero, and the last two None."""

    ih: Array  # (GH, I)
    hh: Array  # (GH, P)
    b_ih: Array  # (GH,)
    b_hh: Array  # (GH,)
    hr: Array | None  # (P, H)
    peep: Array | None  # (3H,), of i, f, o


State = tuple[Array, ...]  # (h, c) of shapes (B, P) and (B, H), or (h,)


class LSTM:
    """The equations in the head of this package, and their variants.

    With peepholes (Gers et al. 2002) i and f see c_{t-1}, and o sees c_t, each unit its own::

        a_i += p_i * c_{t-1};   a_f += p_f * c_{t-1};   a_o += p_o * c_t

    ``coupled`` leaves one gate to another, and its weights out: "f=1-i" or "i=1-f".
    ``activations`` stand for the sigmoid of i, f and o, the tanh of g, and that of c in h_t. What
    goes into the first two is clipped to [-clip, clip], and c_t to [-cell_clip, cell_clip].
    """

    gates = 4
    states = 2

    def __init__(
        self,
        coupled: str | None = None,
        activations: tuple[Choice, Choice, Choice] = ("sigmoid", "tanh", "tanh"),
        clip: float = np.inf,
        cell_clip: float = np.inf,
    ) -> None:
        self.coupled, self.cell_clip = coupled, cell_clip
        self.raw_gates = 3 if coupled else 4
        *of_gates, of_cell = activations
        self.gate, self.candidate = behind_clip(clip, *of_gates)
        (self.output,) = behind_clip(np.inf, of_cell)

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 4, H)."""
        _, c = state
        p_i, p_f, p_o = peepholes(w, c)
        a_i, a_f, a_g, a_o = self.sums(w, x, state)
        i, f, g = self.gate(a_i + p_i * c), self.gate(a_f + p_f * c), self.candidate(a_g)
        if self.coupled == "f=1-i":
            f = 1 - i
        if self.coupled == "i=1-f":
            i = 1 - f

        c = np.clip(f * c + i * g, -self.cell_clip, self.cell_clip)
        o = self.gate(a_o + p_o * c)
        h = o * self.output(c)
        if w.hr is not None:
            h = h @ w.hr.T
        return (h, c), np.stack([i, f, g, o], axis=1)

    def sums(self, w: Weights, x: Array, state: State) -> list[Array]:
        """The pre-activations of i, f, g and o, without what they see of c; 0 of one left out."""
        h, _ = state
        a = np.split(x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh, self.raw_gates, axis=1)
        if self.coupled:
            a.insert(1 if self.coupled == "f=1-i" else 0, np.zeros_like(a[0]))
        return a

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """The gradients with respect to x, the state and the weights, from that of the new state.

        x and the state are what the step was given and ``gates`` what it computed; its sums and its
        new c follow from them. ``dgates`` (B, G, H) is what a loss says of the gates themselves.
        """
        (h, c), (dh_new, dc_new) = state, dnew
        i, f, g, o = (gates[:, k] for k in range(4))
        p_i, p_f, p_o = peepholes(w, c)
        a_i, a_f, a_g, a_o = self.sums(w, x, state)
        sum_c = f * c + i * g
        c_new = np.clip(sum_c, -self.cell_clip, self.cell_clip)
        shown = self.output(c_new)

        if w.hr is None:
            dhr, do_shown = None, dh_new
        else:  # h_new = W_hr (o * shown)
            dhr, do_shown = dh_new.T @ (o * shown), dh_new @ w.hr

        do = do_shown * shown + dgates[:, 3]
        da_o = do * self.gate.slope(a_o + p_o * c_new)
        dc_new = dc_new + do_shown * o * self.output.slope(c_new) + da_o * p_o
        dc_new = dc_new * unclipped(sum_c, self.cell_clip)

        di = dc_new * g + dgates[:, 0]  # sum_c = f * c + i * g
        df = dc_new * c + dgates[:, 1]
        dg = dc_new * i + dgates[:, 2]
        if self.coupled == "f=1-i":
            di, df = di - df, np.zeros_like(df)
        if self.coupled == "i=1-f":
            di, df = np.zeros_like(di), df - di

        da_i = di * self.gate.slope(a_i + p_i * c)
        da_f = df * self.gate.slope(a_f + p_f * c)
        da_g = dg * self.candidate.slope(a_g)
        dc = dc_new * f + da_i * p_i + da_f * p_f

        parts = [da_i, da_f, da_g, da_o]
        if self.coupled:
            del parts[1 if self.coupled == "f=1-i" else 0]
        da = np.concatenate(parts, axis=1)
        db = da.sum(axis=0)  # both biases are added to the same sum and have the same gradient
        dp = np.concatenate([(da_i * c).sum(0), (da_f * c).sum(0), (da_o * c_new).sum(0)])
        dw = Weights(da.T @ x, da.T @ h, db, db, dhr, None if w.peep is None else dp)
        return da @ w.ih, (da @ w.hh, dc), dw


def peepholes(w: Weights, c: Array) -> list[Array]:
    """p_i, p_f and p_o, zeros where there are none."""
    none = np.zeros(3 * c.shape[1], c.dtype)
    return np.split(none if w.peep is None else w.peep, 3)


class GRU:
    """The gated recurrent unit, with its reset gate behind the product, as in torch.nn.GRU::

        r, z = sigmoid(W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k])      for k in r, z
        n    = tanh(W_ih[n] x_t + b_ih[n] + r * (W_hh[n] h_{t-1} + b_hh[n]))
        h_t  = (1 - z) * n + z * h_{t-1}

    or, with ``reset_after=False``, before it::

        n    = tanh(W_ih[n] x_t + b_ih[n] + W_hh[n] (r * h_{t-1}) + b_hh[n])

    ``activations`` stand for sigmoid and tanh; what goes into them is clipped to [-clip, clip].
    """

    gates = raw_gates = 3
    states = 1

    def __init__(
        self,
        reset_after: bool = True,
        activations: tuple[Choice, Choice] = ("sigmoid", "tanh"),
        clip: float = np.inf,
    ) -> None:
        self.reset_after = reset_after
        self.gate, self.candidate = behind_clip(clip, *activations)

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 3, H)."""
        (h,) = state
        x_n, a_rz = self.sums(w, x, h)
        r, z = np.split(self.gate(a_rz), 2, axis=1)
        n = self.candidate(self.candidate_sum(w, x_n, r, h))
        return ((1 - z) * n + z * h,), np.stack([r, z, n], axis=1)

    def sums(self, w: Weights, x: Array, h: Array) -> tuple[Array, Array]:
        """W_ih[n] x + b_ih[n], and the pre-activations of r and z."""
        H = h.shape[1]
        x_rz, x_n = np.split(x @ w.ih.T + w.b_ih, [2 * H], axis=1)
        return x_n, x_rz + h @ w.hh[: 2 * H].T + w.b_hh[: 2 * H]

    def candidate_sum(self, w: Weights, x_n: Array, r: Array, h: Array) -> Array:
        """The pre-activation of n."""
        H = h.shape[1]
        hh_n, b_n = w.hh[2 * H :], w.b_hh[2 * H :]
        if self.reset_after:
            return x_n + r * (h @ hh_n.T + b_n)
        return x_n + (r * h) @ hh_n.T + b_n

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """As of the LSTM."""
        (h,), (dh_new,) = state, dnew
        H = h.shape[1]
        r, z, n = (gates[:, k] for k in range(3))
        x_n, a_rz = self.sums(w, x, h)
        hh_n = w.hh[2 * H :]

        dn = dh_new * (1 - z) + dgates[:, 2]  # h_new = (1 - z) * n + z * h
        dz = dh_new * (h - n) + dgates[:, 1]
        da_n = dn * self.candidate.slope(self.candidate_sum(w, x_n, r, h))
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

        da_rz = np.concatenate([dr, dz], axis=1) * self.gate.slope(a_rz)
        da = np.concatenate([da_rz, da_n], axis=1)
        dw = Weights(
            da.T @ x,
            np.concatenate([da_rz.T @ h, dhh_n]),
            da.sum(axis=0),
            np.concatenate([da_rz.sum(axis=0), db_n]),
            None,
            None,
        )
        return da @ w.ih, (dh + da_rz @ w.hh[: 2 * H],), dw


class RNN:
    """The plain cell: h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), where f is tanh, or another.

    What goes into f is clipped to [-clip, clip].
    """

    gates = raw_gates = 1
    states = 1

    def __init__(self, activation: Choice = "tanh", clip: float = np.inf) -> None:
        (self.f,) = behind_clip(clip, activation)

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 1, H): h once more."""
        (h,) = state
        h = self.f(x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh)
        return (h,), h[:, None]

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """As of the LSTM."""
        (h,), (dh_new,) = state, dnew
        da = (dh_new + dgates[:, 0]) * self.f.slope(x @ w.ih.T + w.b_ih + h @ w.hh.T + w.b_hh)
        db = da.sum(axis=0)
        return da @ w.ih, (da @ w.hh,), Weights(da.T @ x, da.T @ h, db, db, None, None)


Cell = LSTM | GRU | RNN
