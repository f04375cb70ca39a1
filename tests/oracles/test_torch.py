"""200 random configurations against torch.nn.LSTM in float64, with its autograd's gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import cylstm
from cylstm import reference
from helpers import TOLERANCES, Problem, assert_close, make_problem, rel, rel_grads

SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 50, 64, 65]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def random_problem(seed: int) -> Problem:
    """Any combination of the arguments; of sequences in a batch, some have length 0."""
    rng = np.random.default_rng(seed)
    T, H = int(rng.choice([1, 2, 3, 7, 17, 50])), int(rng.choice(SIZES))
    B = None if rng.random() < 0.15 else int(rng.choice([1, 2, 3, 5, 7, 12, 17, 33]))
    lengths: Any = None
    if rng.random() < 0.5:
        lengths = rng.integers(0, T + 1, B)
        if B is None:
            lengths = int(lengths)
    return make_problem(
        seed,
        T,
        B,
        lengths,
        input_size=int(rng.choice(SIZES)),
        hidden_size=H,
        num_layers=int(rng.choice([1, 1, 2, 3])),
        bias=bool(rng.random() < 0.8),
        batch_first=bool(rng.random() < 0.4),
        bidirectional=bool(rng.random() < 0.4),
        proj_size=int(rng.integers(1, H)) if H > 1 and rng.random() < 0.35 else 0,
    )


def torch_results(p: Problem) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """[y, h_n, c_n], and the leaves {name: tensor} whose gradients are taken.

    PyTorch refuses lengths of 0: those sequences are left out, and their states handed on.
    """
    arrays = {"x": p.x, "h_0": p.h_0, "c_0": p.c_0, **p.weights}
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
    net = torch.nn.LSTM(**p.config).double()
    x, h_0, c_0 = (leaves.pop(name) for name in ("x", "h_0", "c_0"))

    def call(x: Any, h: torch.Tensor, c: torch.Tensor) -> Any:
        return torch.func.functional_call(net, leaves, (x, (h, c)))

    nothing = torch.zeros(p.dy.shape, dtype=torch.float64) + 0 * x.sum()  # it has a gradient: 0
    if p.lengths is None:
        y, (h_n, c_n) = call(x, h_0, c_0)
    elif x.ndim == 2:
        n = int(np.asarray(p.lengths))
        y = nothing
        h_n, c_n = h_0, c_0
        if n > 0:
            part, (h_n, c_n) = call(x[:n], h_0, c_0)
            y = torch.cat([part, y[n:]])
    else:
        axis, first = (0, True) if p.config["batch_first"] else (1, False)
        some = torch.tensor(np.flatnonzero(p.lengths))
        y = nothing
        h_n, c_n = h_0.clone(), c_0.clone()
        if len(some) > 0:
            lengths = torch.tensor(np.asarray(p.lengths))[some]
            packed = pack_padded_sequence(
                x.index_select(axis, some), lengths, first, enforce_sorted=False
            )
            part, (h, c) = call(packed, h_0[:, some], c_0[:, some])
            part, _ = pad_packed_sequence(part, first, total_length=x.shape[1 - axis])
            y = y.index_copy(axis, some, part)
            h_n, c_n = h_n.index_copy(1, some, h), c_n.index_copy(1, some, c)
    return [y, h_n, c_n], {"x": x, "h_0": h_0, "c_0": c_0, **leaves}


@pytest.mark.parametrize("seed", range(200))
def test_random_configuration(seed: int) -> None:
    p = random_problem(seed)
    results, leaves = torch_results(p)
    upstream = [torch.tensor(d) for d in (p.dy, p.dh_n, p.dc_n)]
    gradients = torch.autograd.grad(results, list(leaves.values()), upstream, allow_unused=True)
    named = {
        name: np.zeros(leaf.shape) if gradient is None else gradient.numpy()
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    dx, dh_0, dc_0 = (named.pop(name) for name in ("x", "h_0", "c_0"))
    want = reference.Grads(dx, dh_0, dc_0, named)

    for dtype, (tolerance, grad_tolerance) in TOLERANCES.items():
        q = p.cast(dtype)
        y, (h_n, c_n) = q.lstm()(q.x, q.states, lengths=q.lengths)
        tape = q.lstm().forward(q.x, q.states, lengths=q.lengths)
        got = {"y": y, "h_n": h_n, "c_n": c_n}
        kept = {"y": tape.y, "h_n": tape.h_n, "c_n": tape.c_n}
        expected = dict(zip(got, (r.detach().numpy() for r in results), strict=True))
        assert_close({name: rel(got[name], a) for name, a in expected.items()}, tolerance)
        assert_close({name: rel(kept[name], a) for name, a in expected.items()}, tolerance)
        assert_close(rel_grads(tape.backward(q.dy, q.dh_n, q.dc_n), want), grad_tolerance)


def test_the_configurations_cover_the_arguments() -> None:
    """The draw above reaches every argument, and pairs that meet in code."""
    problems = [random_problem(seed) for seed in range(200)]

    def count(**wanted: bool) -> int:
        has = [
            {
                "unbatched": p.x.ndim == 2,
                "lengths": p.lengths is not None,
                "zero": p.lengths is not None and not np.all(p.lengths),
                **{name: bool(value) for name, value in p.config.items()},
                "layers": p.config["num_layers"] > 1,
            }
            for p in problems
        ]
        return sum(all(h[name] == value for name, value in wanted.items()) for h in has)

    for wanted in (
        dict(unbatched=True, lengths=True),
        dict(zero=True, bidirectional=True, proj_size=True),
        dict(zero=True, batch_first=True, layers=True),
        dict(bias=False, proj_size=True),
        dict(layers=True, bidirectional=True, proj_size=True),
        dict(unbatched=True, bidirectional=True, proj_size=True),
    ):
        assert count(**wanted) >= 3, wanted


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_state_dicts_are_exchanged(dtype: str) -> None:
    """PyTorch's state_dict() loads here, and the one from here loads there."""
    config: dict[str, Any] = dict(
        input_size=7, hidden_size=9, num_layers=2, bidirectional=True, proj_size=4
    )
    net = torch.nn.LSTM(**config, dtype=getattr(torch, dtype))
    lstm = cylstm.LSTM(**config, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((5, 3, 7)).astype(dtype)
    with torch.no_grad():
        lstm.load_state_dict(net.state_dict())
        assert rel(lstm(x)[0], net(torch.tensor(x))[0].numpy()) < 1e-6
        fresh = cylstm.LSTM(**config, dtype=dtype, seed=1)
        net.load_state_dict({k: torch.tensor(a) for k, a in fresh.state_dict().items()})
        assert rel(fresh(x)[0], net(torch.tensor(x))[0].numpy()) < 1e-6


@pytest.mark.parametrize("reverse_time", [False, True])
def test_a_loss_through_other_layers(reverse_time: bool) -> None:
    """A last-step classifier: dy is zero but for one step, as in most training."""
    p = make_problem(3, 7, 5, input_size=3, hidden_size=17, num_layers=2, bidirectional=True)
    dy = np.zeros_like(p.dy)
    step = 0 if reverse_time else -1
    dy[step] = p.dy[step]
    results, leaves = torch_results(p)
    gradients = torch.autograd.grad(results[0][step], list(leaves.values()), torch.tensor(dy[step]))
    tape = p.lstm().forward(p.x, p.states)
    grads = tape.backward(dy)
    got = [grads.x, grads.h_0, grads.c_0, *grads.weights.values()]
    errors = {name: rel(a, b.numpy()) for name, a, b in zip(leaves, got, gradients, strict=True)}
    assert_close(errors, 1e-10)
