"""One step of each cell: its equations, and directly below them their derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .activations import Choice, behind_clip, unclipped

Array = NDArray[Any]


class Weights(NamedTuple):
    """The weights of one layer and direction; biases may be zero, and all from hr on None."""

    ih: Array  # (GH, I)
    hh: Array  # (GH, P)
    b_ih: Array  # (GH,)
    b_hh: Array  # (GH,)
    hr: Array | None  # (P, H)
    peep: Array | None  # (3H,), of i, f, o; (2H,) without the one that is coupled
    b_hr: Array | None = None  # (P,)
    ln: Array | None = None  # (GH,)
    ln_ih: Array | None = None  # (4H,)
    ln_hh: Array | None = None  # (4H,)
    ln_cell: Array | None = None  # (H,)
    b_ln_cell: Array | None = None  # (H,)


State = tuple[Array, ...]  # (h, c) of shapes (B, P) and (B, H), or (h,)


class LSTM:
    """The equations in the head of this package, and their variants.

    With peepholes (Gers et al. 2002) i and f see c_{t-1}, and o sees c_t, each unit its own::

        a_i += p_i * c_{t-1};   a_f += p_f * c_{t-1};   a_o += p_o * c_t

    ``coupled`` leaves one gate to another, and its weights out: "f=1-i" or "i=1-f".
    ``activations`` stand for the sigmoid of i, f and o, the tanh of g, and that of c in h_t. What
    goes into the first two is clipped to [-clip, clip], and c_t to [-cell_clip, cell_clip].

    A projection may have a bias, and be clipped: h_t = W_hr h_t + b_hr in [-proj_clip, proj_clip].

    With a layer norm, LiteRT's, each gate's sum of products and peephole is normalised over all
    units before its bias is added::

        a_k = w_ln[k] * (s_k - mean(s_k)) / sqrt(variance(s_k) + 1e-8) + b_ih[k] + b_hh[k]

    and with Haste's both products are, each over the units of all gates, and c as it is shown::

        a   = w_ln_ih * N(W_ih x_t) + w_ln_hh * N(W_hh h_{t-1}) + b_ih + b_hh
        h_t = o * tanh(w_ln_cell * N(c_t) + b_ln_cell)
        N(s) = (s - mean(s)) / sqrt(variance(s) + 1e-5)
    """

    gates = 4
    states = 2

    def __init__(
        self,
        coupled: str | None = None,
        activations: tuple[Choice, Choice, Choice] = ("sigmoid", "tanh", "tanh"),
        clip: float = np.inf,
        cell_clip: float = np.inf,
        proj_clip: float = np.inf,
    ) -> None:
        self.coupled, self.cell_clip, self.proj_clip = coupled, cell_clip, proj_clip
        self.left_out = {None: None, "f=1-i": 1, "i=1-f": 0}[coupled]
        self.raw_gates = 3 if coupled else 4
        *of_gates, of_cell = activations
        self.gate, self.candidate = behind_clip(clip, *of_gates)
        (self.output,) = behind_clip(np.inf, of_cell)

    def forward(self, w: Weights, x: Array, state: State) -> tuple[State, Array]:
        """x (B, I) and the state -> the new state, and the gates (B, 4, H)."""
        _, c = state
        p_i, p_f, p_o = self.peepholes(w, c)
        s_i, s_f, s_g, s_o = self.sums(w, x, state)
        norms = self.norms(w, c)
        a_i, a_f, a_g = norms[0](s_i + p_i * c), norms[1](s_f + p_f * c), norms[2](s_g)
        i, f, g = self.gate(a_i), self.gate(a_f), self.candidate(a_g)
        if self.coupled == "f=1-i":
            f = 1 - i
        if self.coupled == "i=1-f":
            i = 1 - f

        c = np.clip(f * c + i * g, -self.cell_clip, self.cell_clip)
        o = self.gate(norms[3](s_o + p_o * c))
        h = o * self.output(self.cell_norm(w)(c))
        if w.hr is not None:
            h = np.clip(self.projected(w, h), -self.proj_clip, self.proj_clip)
        return (h, c), np.stack([i, f, g, o], axis=1)

    def sums(self, w: Weights, x: Array, state: State) -> list[Array]:
        """The sums of i, f, g and o, without what they see of c; 0 of one left out."""
        h, _ = state
        of_x, of_h = self.product_norms(w)
        bias = w.b_ih + w.b_hh if w.ln is None else 0
        total = of_x(x @ w.ih.T) + of_h(h @ w.hh.T) + bias
        return self.four(np.split(total, self.raw_gates, axis=1))

    def four(self, parts: list[Array]) -> list[Array]:
        """Those of all gates, 0 of one that is coupled."""
        if self.left_out is not None:
            parts.insert(self.left_out, np.zeros_like(parts[0]))
        return parts

    def norms(self, w: Weights, c: Array) -> list[Norm]:
        """What makes pre-activations of the sums of i, f, g and o."""
        if w.ln is None:
            return [Norm()] * 4
        gains, biases = (self.four(np.split(a, self.raw_gates)) for a in (w.ln, w.b_ih + w.b_hh))
        return [Norm(gain, bias) for gain, bias in zip(gains, biases, strict=True)]

    def product_norms(self, w: Weights) -> list[Norm]:
        """What is made of W_ih x and W_hh h."""
        return [Norm(gain, 0, 1e-5) for gain in (w.ln_ih, w.ln_hh)]

    def cell_norm(self, w: Weights) -> Norm:
        """What is made of c before it is shown."""
        return Norm(w.ln_cell, w.b_ln_cell, 1e-5)

    def peepholes(self, w: Weights, c: Array) -> list[Array]:
        """p_i, p_f and p_o, zeros where there are none."""
        if w.peep is None:
            return [np.zeros(c.shape[1], c.dtype)] * 3
        return self.four(np.split(w.peep, self.raw_gates - 1))

    def projected(self, w: Weights, m: Array) -> Array:
        """W_hr m + b_hr."""
        assert w.hr is not None
        return m @ w.hr.T + (0 if w.b_hr is None else w.b_hr)

    def backward(
        self, w: Weights, x: Array, state: State, gates: Array, dnew: State, dgates: Array
    ) -> tuple[Array, State, Weights]:
        """The gradients with respect to x, the state and the weights, from that of the new state.

        x and the state are what the step was given and ``gates`` what it computed; its sums and its
        new c follow from them. ``dgates`` (B, G, H) is what a loss says of the gates themselves.
        """
        (h, c), (dh_new, dc_new) = state, dnew
        i, f, g, o = (gates[:, k] for k in range(4))
        p_i, p_f, p_o = self.peepholes(w, c)
        s_i, s_f, s_g, s_o = self.sums(w, x, state)
        sum_c = f * c + i * g
        c_new = np.clip(sum_c, -self.cell_clip, self.cell_clip)
        cell_norm = self.cell_norm(w)
        shown = self.output(cell_norm(c_new))
        norms = self.norms(w, c)
        sums = [s_i + p_i * c, s_f + p_f * c, s_g, s_o + p_o * c_new]
        a_i, a_f, a_g, a_o = (norm(s) for norm, s in zip(norms, sums, strict=True))

        if w.hr is None:
            dhr, do_shown = None, dh_new
        else:  # h_new = clip(W_hr (o * shown) + b_hr)
            dh_new = dh_new * unclipped(self.projected(w, o * shown), self.proj_clip)
            dhr, do_shown = dh_new.T @ (o * shown), dh_new @ w.hr

        do = do_shown * shown + dgates[:, 3]
        da_o = do * self.gate.slope(a_o)
        ds_o = norms[3].backward(sums[3], da_o)
        dshown = do_shown * o * self.output.slope(cell_norm(c_new))
        dc_new = dc_new + cell_norm.backward(c_new, dshown) + ds_o * p_o
        dc_new = dc_new * unclipped(sum_c, self.cell_clip)

        di = dc_new * g + dgates[:, 0]  # sum_c = f * c + i * g
        df = dc_new * c + dgates[:, 1]
        dg = dc_new * i + dgates[:, 2]
        if self.coupled == "f=1-i":
            di, df = di - df, np.zeros_like(df)
        if self.coupled == "i=1-f":
            di, df = np.zeros_like(di), df - di

        da_i, da_f = di * self.gate.slope(a_i), df * self.gate.slope(a_f)
        da = [da_i, da_f, dg * self.candidate.slope(a_g), da_o]
        ds_i, ds_f, ds_g = (norms[k].backward(sums[k], da[k]) for k in range(3))
        dc = dc_new * f + ds_i * p_i + ds_f * p_f

        ds = self.computed([ds_i, ds_f, ds_g, ds_o], axis=1)
        db = self.computed([d.sum(0) for d in da])  # both biases are added to the same sum
        dp = self.computed([(ds_i * c).sum(0), (ds_f * c).sum(0), (ds_o * c_new).sum(0)])
        dln = self.computed([norm.dgain(s, d) for norm, s, d in zip(norms, sums, da, strict=True)])
        of_x, of_h = self.product_norms(w)
        ds_x, ds_h = of_x.backward(x @ w.ih.T, ds), of_h.backward(h @ w.hh.T, ds)
        dw = Weights(
            ds_x.T @ x,
            ds_h.T @ h,
            db,
            db,
            dhr,
            None if w.peep is None else dp,
            None if w.b_hr is None else dh_new.sum(0),
            None if w.ln is None else dln,
            None if w.ln_ih is None else of_x.dgain(x @ w.ih.T, ds),
            None if w.ln_hh is None else of_h.dgain(h @ w.hh.T, ds),
            None if w.ln_cell is None else cell_norm.dgain(c_new, dshown),
            None if w.b_ln_cell is None else dshown.sum(0),
        )
        return ds_x @ w.ih, (ds_h @ w.hh, dc), dw

    def computed(self, parts: list[Array], axis: int = 0) -> Array:
        """Those of the gates that have weights, one after another."""
        return np.concatenate([p for k, p in enumerate(parts) if k != self.left_out], axis)


class Norm(NamedTuple):
    """A layer norm of sums, or what leaves them as they are."""

    gain: Array | None = None
    bias: Array | Any = None
    epsilon: float = 1e-8

    def __call__(self, s: Array) -> Array:
        return s if self.gain is None else self.gain * self.normal(s)[0] + self.bias

    def backward(self, s: Array, da: Array) -> Array:
        """The gradient with respect to s: its mean and its part along z can change nothing."""
        if self.gain is None:
            return da
        z, deviation = self.normal(s)
        dz = da * self.gain
        along = (dz * z).mean(axis=1, keepdims=True) * z
        return (dz - dz.mean(axis=1, keepdims=True) - along) / deviation

    def dgain(self, s: Array, da: Array) -> Array:
        """The gradient with respect to the gain."""
        return (da * self.normal(s)[0]).sum(0)

    def normal(self, s: Array) -> tuple[Array, Array]:
        """(B, H) -> z, of mean 0 and variance 1 over H, and the deviation (B, 1)."""
        centred = s - s.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        return centred / deviation, deviation


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
