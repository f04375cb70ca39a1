"""Losses, optimisers, clipping and Linear against PyTorch, option by option, in both dtypes.

In float32 PyTorch too computes in float32, and either rounds as it likes; float64 is exact enough
to tell a wrong equation from rounding.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import cylstm
from cylstm import losses, optim
from cylstm.weights import WeightGrads
from helpers import Array, rel, same_bits

STEPS = 50
TOLERANCES = {"float32": 2e-6, "float64": 1e-12}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def parameters(module: Any) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(a)) for a in module.state_dict().values()]


def flat(tensors: Any) -> Array:
    return np.concatenate([t.detach().numpy().reshape(-1) for t in tensors])


# --- optimisers

SGD = [
    dict(lr=0.05, momentum=m, dampening=d, weight_decay=w, nesterov=n)
    for m, d, w, n in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True))
    if not n or (m and not d)
]
ADAM = [
    dict(lr=0.01, betas=b, eps=e, weight_decay=w)
    for b, e, w in itertools.product(
        ((0.9, 0.999), (0.5, 0.9), (0.0, 0.0), (0.99, 0.5)), (1e-8, 1e-2), (0.0, 0.1)
    )
]
CASES = [("SGD", a) for a in SGD] + [(name, a) for name in ("Adam", "AdamW") for a in ADAM]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name, arguments", CASES, ids=str)
def test_optimisers(name: str, arguments: dict[str, Any], dtype: str) -> None:
    """50 steps with clipped gradients, a schedule of lr, and a stop on the way."""
    rng = np.random.default_rng(1)
    modules = [cylstm.LSTM(3, 4, dtype=dtype, seed=1), cylstm.Linear(4, 2, dtype=dtype, seed=1)]
    tensors = [t for module in modules for t in parameters(module)]
    ours = getattr(optim, name)(modules, **arguments)
    theirs = getattr(torch.optim, name)(tensors, **arguments)
    for step in range(STEPS):
        grads = [
            WeightGrads(m._spec, rng.standard_normal(m._weights.flat.size).astype(dtype))
            for m in modules
        ]
        arrays = [a for g in grads for a in g.values()]
        for tensor, array in zip(tensors, arrays, strict=True):
            tensor.grad = torch.tensor(array)
        max_norm = float(rng.uniform(2, 20))
        norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        assert rel(optim.clip_grad_norm(grads, max_norm), norm) < TOLERANCES[dtype]
        ours.lr = theirs.param_groups[0]["lr"] = arguments["lr"] / (1 + step / 10)
        ours.step(grads)
        theirs.step()
        if step == STEPS // 2:
            state = ours.state_dict()
            ours = getattr(optim, name)(modules, lr=1.0)
            ours.load_state_dict(state)
    got = np.concatenate([m._weights.flat for m in modules])
    assert rel(got, flat(tensors)) < TOLERANCES[dtype]

    state = ours.state_dict()
    assert state["step"] == STEPS
    names = [f"{k}.{n}" for k, m in enumerate(modules) for n in m.state_dict()]
    kinds = {"SGD": ["momentum_buffer"] if arguments.get("momentum") else []}
    for kind in kinds.get(name, ["exp_avg", "exp_avg_sq"]):
        got = np.concatenate([state["state"][f"{n}.{kind}"].reshape(-1) for n in names])
        assert rel(got, flat(theirs.state[t][kind] for t in tensors)) < TOLERANCES[dtype]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_gradients_that_are_not_finite(name: str, value: float) -> None:
    module = cylstm.Linear(4, 2, dtype="float64", seed=1)
    tensors = parameters(module)
    ours = getattr(optim, name)(module, lr=0.1)
    theirs = getattr(torch.optim, name)(tensors, lr=0.1)
    for _ in range(3):
        grads = {name: np.ones_like(a) for name, a in module.state_dict().items()}
        grads["weight"][0, 0] = value
        for tensor, array in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(array)
        ours.step(grads)
        theirs.step()
        want = flat(tensors)
        got = module._weights.flat
        assert np.array_equal(np.isfinite(got), np.isfinite(want))
        assert rel(got[1:], want[1:]) < 1e-14


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
def test_clip(value: float, max_norm: float) -> None:
    tensors = [torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2)]
    grads = {"a": np.array([value, 2.0, 3.0]), "b": np.array([0.0, 4.0, -1.0])}
    for tensor, array in zip(tensors, grads.values(), strict=True):
        tensor.grad = torch.tensor(array)
    want = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    got = optim.clip_grad_norm(grads, max_norm)
    np.testing.assert_allclose(got, float(want), rtol=1e-14)
    for tensor, array in zip(tensors, grads.values(), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(array, tensor.grad.numpy(), rtol=1e-14)


# --- losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3), (5, 2, 3), (300, 40)])
def test_mse(shape: tuple[int, ...], dtype: str, reduction: str) -> None:
    rng = np.random.default_rng(1)
    prediction, target = rng.standard_normal((2, *shape)).astype(dtype)
    leaf = torch.tensor(prediction, requires_grad=True)
    want = functional.mse_loss(leaf, torch.tensor(target), reduction=reduction)
    want.sum().backward()
    loss, gradient = losses.mse(prediction, target, reduction=reduction)
    assert leaf.grad is not None
    assert rel(loss, want.detach()) < TOLERANCES[dtype]
    assert rel(gradient, leaf.grad) < TOLERANCES[dtype]


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(3,), (1, 1), (7, 2), (5, 4, 10), (50, 1000)])
def test_cross_entropy(shape: tuple[int, ...], dtype: str, reduction: str, scale: float) -> None:
    rng = np.random.default_rng(1)
    logits = (scale * rng.standard_normal(shape)).astype(dtype)
    targets = np.asarray(rng.integers(0, shape[-1], shape[:-1]))
    if targets.size > 1:
        targets[rng.random(targets.shape) < 0.3] = -7
    leaf = torch.tensor(logits, requires_grad=True)
    want = functional.cross_entropy(
        leaf.reshape(-1, shape[-1]),
        torch.tensor(targets).reshape(-1),
        reduction=reduction,
        ignore_index=-7,
    )
    want.sum().backward()
    loss, gradient = losses.cross_entropy(logits, targets, reduction=reduction, ignore_index=-7)
    assert leaf.grad is not None
    assert rel(np.reshape(loss, want.shape), want.detach()) < TOLERANCES[dtype]
    assert rel(gradient, leaf.grad) < TOLERANCES[dtype]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "row", [[np.nan, 0], [np.inf, 0], [-np.inf, 0], [0, -np.inf], [-np.inf, -np.inf], [1e38, -1e38]]
)
@pytest.mark.parametrize("targets", [[0, 1], [1, -100], [-100, -100]])
def test_cross_entropy_at_the_extremes(
    row: list[float], targets: list[int], reduction: str
) -> None:
    """The same nan and infinities as PyTorch; the second row is an ordinary one."""
    logits = np.array([row, [1, 2]], np.float32)
    leaf = torch.tensor(logits, requires_grad=True)
    want = functional.cross_entropy(leaf, torch.tensor(targets), reduction=reduction)
    want.sum().backward()
    loss, gradient = losses.cross_entropy(logits, targets, reduction=reduction)
    assert leaf.grad is not None
    np.testing.assert_allclose(loss, want.detach().numpy(), rtol=1e-6)
    theirs = leaf.grad.numpy().copy()
    theirs[np.array(targets) == -100] = 0  # where PyTorch lets nan logits of ignored rows through
    np.testing.assert_allclose(gradient, theirs, rtol=1e-6)


# --- Linear, and torch tensors as weights


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(5,), (1, 5), (20, 5), (7, 3, 5), (0, 5), (2, 0, 5)])
def test_linear(shape: tuple[int, ...], dtype: str, bias: bool) -> None:
    rng = np.random.default_rng(1)
    net = torch.nn.Linear(5, 6, bias, dtype=getattr(torch, dtype))
    linear = cylstm.Linear(5, 6, bias, dtype=dtype)
    linear.load_state_dict(net.state_dict())
    x, dy = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 6))
    x, dy = x.astype(dtype), dy.astype(dtype)
    leaf = torch.tensor(x, requires_grad=True)
    y = net(leaf)
    y.backward(torch.tensor(dy))
    tape = linear.forward(x)
    grads = tape.backward(dy)
    assert leaf.grad is not None
    assert rel(tape.y, y.detach()) < TOLERANCES[dtype]
    assert rel(grads.x, leaf.grad) < TOLERANCES[dtype]
    theirs = dict(net.named_parameters())
    assert list(grads.weights) == list(theirs)
    for name, gradient in grads.weights.items():
        assert rel(gradient, theirs[name].grad) < TOLERANCES[dtype]


@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_torch_tensors_are_loaded_exactly(given: str, dtype: str) -> None:
    net = torch.nn.LSTM(3, 4, 2, bidirectional=True).to(getattr(torch, given))
    lstm = cylstm.LSTM(3, 4, 2, bidirectional=True, dtype=dtype)
    want = flat(p.double() for p in net.parameters())
    state = dict(net.named_parameters())  # leaves that require a gradient
    if (given, dtype) == ("float64", "float32"):
        with pytest.raises(TypeError, match="only cast=True narrows to float32"):
            lstm.load_state_dict(state)
    lstm.load_state_dict(state, cast=given == "float64")
    assert list(lstm.state_dict()) == list(state)
    assert same_bits(lstm._weights.flat, want.astype(dtype))
    if given == dtype:  # and in the other direction
        net.load_state_dict({k: torch.tensor(a) for k, a in lstm.state_dict().items()})


def test_torch_reads_our_files(tmp_path: Any) -> None:
    from safetensors.torch import load_file

    lstm = cylstm.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    cylstm.save(lstm, tmp_path / "a")
    net = torch.nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2)
    net.load_state_dict(load_file(tmp_path / "a"))
    assert same_bits(flat(net.parameters()), lstm._weights.flat)


def test_training_as_torch_does() -> None:
    """A whole loop: LSTM, head, loss, clipping and AdamW; 30 steps, and the losses on the way."""
    rng = np.random.default_rng(1)
    lstm = cylstm.LSTM(3, 8, dtype="float64", seed=1)
    head = cylstm.Linear(8, 5, dtype="float64", seed=2)
    net, top = torch.nn.LSTM(3, 8).double(), torch.nn.Linear(8, 5).double()
    for module, ours in ((net, lstm), (top, head)):
        module.load_state_dict({k: torch.tensor(a) for k, a in ours.state_dict().items()})
    tensors = [*net.parameters(), *top.parameters()]
    optimiser = optim.AdamW([lstm, head], lr=0.01)
    other = torch.optim.AdamW(tensors, lr=0.01)
    x, targets = rng.standard_normal((6, 4, 3)), rng.integers(0, 5, (6, 4))
    for _ in range(30):
        tape = lstm.forward(x)
        logits = head.forward(tape.y)
        loss, dlogits = losses.cross_entropy(logits.y, targets)
        above = logits.backward(dlogits)
        grads = [tape.backward(above.x), above]
        optim.clip_grad_norm(grads, 0.1)
        optimiser.step(grads)

        want = functional.cross_entropy(
            top(net(torch.tensor(x))[0]).reshape(-1, 5), torch.tensor(targets).reshape(-1)
        )
        other.zero_grad()
        want.backward()
        torch.nn.utils.clip_grad_norm_(tensors, 0.1)
        other.step()
        assert rel(loss, want.detach()) < 1e-11
    assert rel(np.concatenate([lstm._weights.flat, head._weights.flat]), flat(tensors)) < 1e-9


# --- Embedding


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("name", ["SGD", "SparseAdam"])
def test_embedding_with_sparse_gradients(name: str, padding: int | None, dtype: str) -> None:
    """torch.nn.Embedding(sparse=True): the rows that a batch uses move, and no others."""
    rng = np.random.default_rng(1)
    mine = cylstm.Embedding(11, 3, padding, dtype=dtype, seed=1)
    theirs = torch.nn.Embedding(11, 3, padding_idx=padding, sparse=True)
    theirs.weight = torch.nn.Parameter(torch.tensor(mine.state_dict()["weight"]))
    # SparseAdam's eps is not divided by the bias correction, hence one that has no weight
    options: dict[str, Any] = {"lr": 0.05} if name == "SGD" else {"lr": 0.05, "eps": 1e-20}
    optimizer = (optim.SGD if name == "SGD" else optim.Adam)(mine, **options)
    torch_optimizer = getattr(torch.optim, name)([theirs.weight], **options)
    for _ in range(STEPS):
        indices = rng.integers(0, 11, (2, 3))
        weights = rng.standard_normal((2, 3, 3)).astype(dtype)
        tape, y = mine.forward(indices), theirs(torch.tensor(indices))
        assert rel(tape.y, y.detach().numpy()) < TOLERANCES[dtype]
        torch_optimizer.zero_grad()
        (y * y * torch.tensor(weights)).sum().backward()
        grads = tape.backward(2 * tape.y * weights)
        dense = theirs.weight.grad.to_dense().numpy()
        assert rel(grads.weights["weight"], dense) < 10 * TOLERANCES[dtype]
        torch_optimizer.step()
        optimizer.step(grads)
    got, want = mine.state_dict()["weight"], theirs.weight.detach().numpy()
    assert rel(got, want) < 20 * TOLERANCES[dtype]
