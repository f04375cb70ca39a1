"""Zoneout, DropConnect and layer norm as Haste (github.com/lmnt-com/haste) has them on a CPU,
written out in PyTorch and float64: its autograd is the oracle of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cylstm
from draws import kept_weights, zoneout_masks
from helpers import Array, assert_close, rel
from make_digests import network, numbers

torch = pytest.importorskip("torch")
F = torch.nn.functional

Weights = dict[str, Any]
T, B, I, H = 7, 5, 4, 17


def zone_out(training: bool, zoneout: float, mask: Any, old: Any, new: Any) -> Any:
    """`mask` is 0 where a unit keeps what it had."""
    if training:
        return (new - old) * mask + old
    return zoneout * old + (1 - zoneout) * new


def lstm_step(w: Weights, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    a = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + h @ w["weight_hh_l0"].T + w["bias_hh_l0"]
    i, f, g, o = torch.chunk(a, 4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def layer_norm_lstm_step(w: Weights, x: Any, h: Any, c: Any) -> tuple[Any, Any]:
    of_x = F.layer_norm(x @ w["weight_ih_l0"].T, (4 * H,), weight=w["weight_ln_ih_l0"])
    of_h = F.layer_norm(h @ w["weight_hh_l0"].T, (4 * H,), weight=w["weight_ln_hh_l0"])
    i, f, g, o = torch.chunk(of_h + of_x + w["bias_ih_l0"] + w["bias_hh_l0"], 4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    shown = F.layer_norm(c, (H,), weight=w["weight_ln_cell_l0"], bias=w["bias_ln_cell_l0"])
    return torch.sigmoid(o) * torch.tanh(shown), c


def gru_step(w: Weights, x: Any, h: Any) -> tuple[Any]:
    r_x, z_x, n_x = torch.chunk(x @ w["weight_ih_l0"].T + w["bias_ih_l0"], 3, 1)
    r_h, z_h, n_h = torch.chunk(h @ w["weight_hh_l0"].T + w["bias_hh_l0"], 3, 1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return (z * h + (1 - z) * torch.tanh(n_x + r * n_h),)


STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LSTM": (lstm_step, dict(cell="LSTM")),
    "LayerNormLSTM": (layer_norm_lstm_step, dict(cell="LSTM", layer_norm="haste")),
    "GRU": (gru_step, dict(cell="GRU")),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", STEPS)
def test_haste(name: str, training: bool, dtype: str) -> None:
    step, options = STEPS[name]
    net = network(
        dict(input_size=I, hidden_size=H, zoneout=0.3, recurrent_dropout=0.4)
        | dict(dtype=dtype, **options),
        None,
    )
    count = 2 if isinstance(net, cylstm.LSTM) else 1
    states = [numbers(n, 1, B, H).astype(dtype) for n in "hc"[:count]]
    x, dy = numbers("x", T, B, I, scale=1.5).astype(dtype), numbers("dy", T, B, H).astype(dtype)
    dlast = [numbers(f"d{n}", 1, B, H).astype(dtype) for n in "hc"[:count]]
    tape = net.forward(x, tuple(states) if count > 1 else states[0], train=training)
    grads = tape.backward(dy, *dlast)

    def leaf(a: Array) -> Any:
        return torch.tensor(a.astype(np.float64), requires_grad=True)

    weights = {key: leaf(a) for key, a in net.state_dict().items()}
    dropped = dict(weights)
    for key, kept in kept_weights(net).items():  # F.dropout(recurrent_kernel, dropout, training)
        dropped[key] = weights[key] * (torch.tensor(kept) if training else 1)
    inputs, firsts = leaf(x), [leaf(s) for s in states]
    mask = torch.tensor(1.0 - zoneout_masks(net, T, B, None)[0])
    now, ys = [s[0] for s in firsts], []
    for t in range(T):
        h, *c = step(dropped, inputs[t], *now)
        now = [zone_out(training, 0.3, mask[t], now[0], h), *c]
        ys.append(now[0])
    y = torch.stack(ys)
    loss = (y * torch.tensor(np.float64(dy))).sum()
    for s, d in zip(now, dlast, strict=True):
        loss = loss + (s * torch.tensor(np.float64(d[0]))).sum()
    loss.backward()
    found = {"y": rel(tape.y, y.detach().numpy()), "x": rel(grads.x, inputs.grad.numpy())}
    for key, a in weights.items():
        found[key] = rel(grads.weights[key], a.grad.numpy())
    for key, s in zip(("h_0", "c_0"), firsts, strict=False):
        found[key] = rel(getattr(grads, key), s.grad.numpy())
    assert_close(found, 1e-12 if dtype == "float64" else 5e-6)
