"""torch.func, in float64, of cells that are written out here: forward-mode derivatives, masks and
resets, and the gradients of each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import Array, assert_close, rel
from make_digests import network, numbers

torch = pytest.importorskip("torch")
func, F = torch.func, torch.nn.functional
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

CELLS: dict[str, dict[str, Any]] = {
    "LSTM": {},
    "projection": dict(proj_size=3, proj_bias=True, proj_clip=0.3),
    "peephole": dict(peephole=True, clip=0.9, cell_clip=0.5),
    "f=1-i": dict(coupled="f=1-i", peephole=True),
    "i=1-f": dict(coupled="i=1-f", bias=False),
    "layer norm": dict(layer_norm="litert", peephole=True, proj_size=5),
    "haste": dict(layer_norm="haste", proj_size=5),
    "activations": dict(activations=("hard_sigmoid_keras3", "softsign", "elu")),
    "GRU": dict(cell="GRU"),
    "GRU, reset before": dict(cell="GRU", reset_after=False),
    "RNN": dict(cell="RNN", activations=("softplus",), clip=1.5),
}
T, B, I, H, LAYERS = 5, 4, 4, 7, 2
LENGTHS = [5, 0, 1, 4]
FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hard_sigmoid_keras3": lambda a: (a / 6 + 0.5).clamp(0, 1),
    "softsign": F.softsign,
    "softplus": F.softplus,
    "elu": F.elu,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


class Cell:
    """A step of a network's cell, with the weights of a layer and direction."""

    def __init__(self, net: Any, w: dict[str, Any], end: str) -> None:
        self.net, self.w, self.end = net, w, end
        default = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ()}
        self.f = [FUNCTIONS[name] for name in net.activations or default[type(net).__name__]]
        self.step = getattr(self, type(net).__name__.lower())

    def __getitem__(self, name: str) -> Any:
        return self.w.get(name + self.end, torch.zeros(()))

    def at(self, function: int, a: Any) -> Any:
        return self.f[function](clip(a, self.net.clip))

    def sums(self, which: str, v: Any, gates: int) -> Any:
        a = self["weight_" + which] @ v
        if self.haste:
            a = self["weight_ln_" + which] * normal(a, 1e-5)
        return (a if self.norm else a + self["bias_" + which]).reshape(gates, H)

    @property
    def haste(self) -> bool:
        return getattr(self.net, "layer_norm", None) == "haste"

    @property
    def norm(self) -> bool:
        return getattr(self.net, "layer_norm", None) is not None

    def normal(self, k: int, s: Any) -> Any:
        its = slice(k * H, (k + 1) * H)
        if not self.norm:
            return s
        z = s if self.haste else self["weight_ln"][its] * normal(s, 1e-8)
        return z + self["bias_ih"][its] + self["bias_hh"][its]

    def lstm(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        net = self.net
        names = {None: "ifgo", "f=1-i": "igo", "i=1-f": "fgo"}[net.coupled]
        s = self.sums("ih", x, len(names)) + self.sums("hh", h, len(names))
        p = list(self["weight_peep"].reshape(-1, H)) if net.peephole else []
        peepholes = dict(zip(names.replace("g", ""), p))

        def gate(k: str, function: int, sees: Any) -> Any:
            a = s[names.index(k)] + (peepholes[k] * sees if k in peepholes else 0)
            return self.at(function, self.normal(names.index(k), a))

        f = gate("f", 0, c) if "f" in names else 1 - gate("i", 0, c)
        i = gate("i", 0, c) if "i" in names else 1 - f
        c = clip(f * c + i * gate("g", 1, 0), net.cell_clip)
        shown = c
        if self.haste:
            shown = self["weight_ln_cell"] * normal(c, 1e-5) + self["bias_ln_cell"]
        h = gate("o", 0, c) * self.f[2](shown)
        if net.proj_size:
            h = clip(self["weight_hr"] @ h + self["bias_hr"], net.proj_clip)
        return h, c

    def gru(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        a = self.sums("ih", x, 3)
        b = self.sums("hh", h, 3)
        r, z = self.at(0, a[0] + b[0]), self.at(0, a[1] + b[1])
        m = r * b[2] if self.net.reset_after else self.sums("hh", r * h, 3)[2]
        n = self.at(1, a[2] + m)
        return (1 - z) * n + z * h, c

    def rnn(self, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
        h = self.at(0, self.sums("ih", x, 1)[0] + self.sums("hh", h, 1)[0])
        return h, c


def normal(s: Any, least: float) -> Any:
    return (s - s.mean()) / torch.sqrt(((s - s.mean()) ** 2).mean() + least)


def clip(a: Any, limit: float | None) -> Any:
    return a if limit is None else a.clamp(-limit, limit)


def sequence(net: Any, hold: bool, w: Any, x: Any, h_0: Any, c_0: Any, steps: Any) -> Any:
    """y, h_n, c_n of one sequence. `steps` are bools of its steps: is it valid, is it within the
    length, does a reset stand before it."""
    valid, inside, reset = steps
    reset = reset & inside
    last: list[list[Any]] = [[], []]
    for layer in range(net.num_layers):
        ys = []
        for d in range(1 + net.bidirectional):
            backwards = d == 1 or net.reverse
            cell = Cell(net, w, f"_l{layer}{'_reverse' if d else ''}")
            n = layer * (1 + net.bidirectional) + d
            h, c, shown = h_0[n], c_0[n], torch.zeros_like(h_0[n])
            y = [shown] * T
            for t in range(T)[:: -1 if backwards else 1]:
                boundary = t + 1 if backwards else t
                if boundary < T:
                    h = torch.where(reset[boundary], 0.0, h)
                    c = torch.where(reset[boundary], 0.0, c)
                new_h, new_c = cell.step(x[t], h, c)
                h, c = torch.where(valid[t], new_h, h), torch.where(valid[t], new_c, c)
                shown = torch.where(valid[t], new_h, shown)
                held = hold and layer + 1 == net.num_layers
                y[t] = torch.where(inside[t] if held else valid[t], shown, 0.0)
            last[0].append(h)
            last[1].append(c)
            ys.append(torch.stack(y))
        x = torch.cat(ys, -1)
    return x, torch.stack(last[0]), torch.stack(last[1])


class Call:
    """A network and a call of it, here and in torch."""

    def __init__(self, cell: str, bidirectional: bool, kind: str) -> None:
        config = dict(input_size=I, hidden_size=H, num_layers=LAYERS) | CELLS[cell]
        self.net: Any = network(
            {**config, "bidirectional": bidirectional, "dtype": "float64"}, None
        )
        n = LAYERS * (1 + bidirectional)
        self.c = isinstance(self.net, cylstm.LSTM)
        R = getattr(self.net, "proj_size", 0) or H
        rng = np.random.default_rng(7)
        mask = rng.random((T, B)) < (0.7 if "mask" in kind or "held" in kind else 2)
        reset = rng.random((T, B)) < (0.25 if "reset" in kind else 0)
        inside = np.arange(T)[:, None] < np.array(LENGTHS)
        self.hold = "held" in kind
        self.options = dict(lengths=LENGTHS, mask=mask, reset=reset, hold_output=self.hold)
        self.steps = tuple(torch.tensor(a) for a in (mask & inside, inside, reset))
        self.at = {
            "w": dict(self.net.state_dict()),
            "x": numbers("x", T, B, I),
            "h_0": numbers("h_0", n, B, R),
            "c_0": numbers("c_0", n, B, H),
        }

    def tape(self) -> Any:
        state = (self.at["h_0"], self.at["c_0"]) if self.c else self.at["h_0"]
        return self.net.forward(self.at["x"], state, **self.options)

    def one(self, w: Any, x: Any, h_0: Any, c_0: Any, steps: Any) -> Any:
        return sequence(self.net, self.hold, w, x, h_0, c_0, steps)

    def batch(self, w: Any, x: Any, h_0: Any, c_0: Any) -> Any:
        each = func.vmap(self.one, in_dims=(None, 1, 1, 1, 1), out_dims=1)
        return each(w, x, h_0, c_0, self.steps)


def tensors(values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        {k: torch.tensor(a) for k, a in v.items()} if isinstance(v, dict) else torch.tensor(v)
        for v in values.values()
    )


def drawn(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name: drawn(a, prefix) if isinstance(a, dict) else numbers(prefix + name, *a.shape)
        for name, a in values.items()
    }


calls = pytest.mark.parametrize(
    "both, kind", [(True, "mask, reset"), (False, "held, reset")], ids=["two directions", "held"]
)


@calls
@pytest.mark.parametrize("cell", CELLS)
def test_jvp(cell: str, both: bool, kind: str) -> None:
    call = Call(cell, both, kind)
    d = drawn(call.at, "d")
    y, dy = func.jvp(call.batch, tensors(call.at), tensors(d))
    tape = call.tape()
    got = tape.jvp(d["x"], d["h_0"], d["c_0"] if call.c else None, d["w"])
    errors = {
        f"{what} {n}": rel(a, b.numpy())
        for what, ours, its in (("output", (tape.y, tape.h_n, tape.c_n), y), ("tangent", got, dy))
        for n, (a, b) in enumerate(zip(ours, its))
        if a is not None
    }
    assert_close(errors, 1e-11)


@calls
@pytest.mark.parametrize("cell", CELLS)
def test_gradients(cell: str, both: bool, kind: str) -> None:
    """Of masks and resets; and of each sequence, by vmap over grad."""
    call = Call(cell, both, kind)
    (w, *args), tape = tensors(call.at), call.tape()
    v = [
        numbers(f"v{n}", *a.shape) for n, a in enumerate((tape.y, tape.h_n, tape.c_n)[: 2 + call.c])
    ]

    def loss(w: Any, x: Any, h_0: Any, c_0: Any, steps: Any, *vs: Any) -> Any:
        return sum((a * b).sum() for a, b in zip(call.one(w, x, h_0, c_0, steps), vs))

    each = func.vmap(
        func.grad(loss, argnums=(0, 1, 2, 3)),
        in_dims=(None, 1, 1, 1, 1, *[1] * len(v)),
        out_dims=(0, 1, 1, 1),
    )
    dw, dx, dh_0, dc_0 = each(w, *args, call.steps, *map(torch.tensor, v))
    own, whole = tape.backward(*v, per_sample=True), tape.backward(*v)
    pairs: list[tuple[str, Array, Any]] = [("x", whole.x, dx), ("h_0", whole.h_0, dh_0)]
    pairs += [("c_0", whole.c_0, dc_0)] if call.c else []
    pairs += [(f"{name}, each", a, dw[name]) for name, a in own.weights.items()]
    pairs += [(name, a, dw[name].sum(0)) for name, a in whole.weights.items()]
    assert_close({name: rel(a, b.numpy()) for name, a, b in pairs}, 1e-10)
