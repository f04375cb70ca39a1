"""State of optimisers: saved, loaded, refused, and copied."""

from __future__ import annotations

import copy
import json
import pickle
from math import nan
from typing import Any

import numpy as np
import pytest

from cylstm import Embedding, _core
from cylstm.linear import Linear
from cylstm.optim import SGD, Adam
from helpers import same_bits
from optimisers import CASES, gradients, make, start


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(state)


# --- state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_state_round_trip(case: str, dtype: str) -> None:
    """Stopped after any step and gone on elsewhere, training gives the same bits."""
    module = start(dtype)
    optimiser = make(case, module)
    stops = []
    for step in range(1, 6):
        stops.append((step, copied(optimiser.state_dict()), copy.copy(module)))
        optimiser.step(gradients(step, dtype))
        optimiser.lr *= 0.5
    for first, state, other in stops:
        cls = type(optimiser)
        resumed = cls(other, lr=123.0)  # everything else comes from the state
        resumed.load_state_dict(state)
        for step in range(first, 6):
            resumed.step(gradients(step, dtype))
            resumed.lr *= 0.5
        assert same_bits(other._weights.flat, module._weights.flat)
        last, want = resumed.state_dict(), optimiser.state_dict()
        assert list(last) == ["type", "step", "hyper", "state"]
        assert {k: last[k] for k in ("type", "step", "hyper")} == {
            k: want[k] for k in ("type", "step", "hyper")
        }
        assert list(last["state"]) == list(want["state"])
        assert same_bits(last["state"].values(), want["state"].values())


@pytest.mark.parametrize("rows", [False, True])
def test_a_step_changes_what_is_kept_and_nothing_else(
    rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says who may look at its arrays: others would be shown half-way."""
    table = Embedding(5, 3, seed=0) if rows else Linear(3, 5, seed=0)
    optimiser = Adam([Linear(2, 2, seed=0), table], lr=0.1, frozen=[["weight"], []])
    grads: list[Any] = [
        {name: np.ones_like(a) for name, a in module.state_dict().items()}
        for module in optimiser._modules
    ]
    if rows:
        grads[1] = table.forward(np.array([4, 1, 4])).backward(np.ones((3, 3), np.float32))
    optimiser.step(grads)
    before, step = copied(optimiser.state_dict()), _core.step
    weights = [module._weights for module in optimiser._modules]

    def with_others(*arguments: Any) -> bool:
        kept = arguments[4].get()
        for wrong in ((), kept[:1], kept[1:], tuple(a.copy() for a in kept)):
            others = [*arguments[:4], _core.Kept(wrong), *arguments[5:]]
            with pytest.raises(ValueError, match="not in what is kept"):
                step(*others)
        raise KeyboardInterrupt

    monkeypatch.setattr(_core, "step", with_others)
    with pytest.raises(KeyboardInterrupt):
        optimiser.step(grads)
    assert optimiser.state_dict()["step"] == 1
    assert same_bits(optimiser.state_dict()["state"].values(), before["state"].values())
    assert all(m._weights is w for m, w in zip(optimiser._modules, weights, strict=True))
    monkeypatch.undo()
    optimiser.step(grads)
    assert optimiser.state_dict()["step"] == 2


def test_state_dict_is_what_it_says() -> None:
    optimiser = Adam([start(), start("float32")], lr=0.1)
    assert optimiser.state_dict() == {
        "type": "Adam",
        "step": 0,
        "hyper": {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        "state": {},
    }
    optimiser.step([gradients(1), gradients(1, "float32")])
    state = optimiser.state_dict()
    assert state["step"] == 1
    assert {name: (a.shape, a.dtype.name) for name, a in state["state"].items()} == {
        f"{k}.{name}.{kind}": (shape, dtype)
        for k, dtype in enumerate(("float64", "float32"))
        for kind in ("exp_avg", "exp_avg_sq")
        for name, shape in (("weight", (7, 5)), ("bias", (7,)))
    }


def test_state_is_copied_both_ways() -> None:
    module = start()
    optimiser = SGD(module, 0.1, momentum=0.5)
    optimiser.step(gradients(1))
    saved = optimiser.state_dict()
    kept = copied(saved)
    for array in saved["state"].values():
        array[:] = nan
    saved["hyper"]["lr"] = nan
    assert optimiser.lr == 0.1
    assert same_bits(optimiser.state_dict()["state"].values(), kept["state"].values())
    again = copied(kept)
    optimiser.load_state_dict(again)
    for array in again["state"].values():
        array[:] = nan
    optimiser.step(gradients(2))
    assert np.isfinite(module._weights.flat).all() and optimiser.lr == 0.1


def test_state_survives_json() -> None:
    """The part that is not arrays can go through JSON, where tuples become lists."""
    optimiser = Adam(start(), lr=0.1)
    optimiser.step(gradients(1))
    saved = optimiser.state_dict()
    rest = json.loads(json.dumps({k: v for k, v in saved.items() if k != "state"}))
    other = Adam(start(), lr=0.5)
    other.load_state_dict({**rest, "state": saved["state"]})
    assert other.state_dict()["hyper"] == saved["hyper"] and other.state_dict()["step"] == 1


def changed(**changes: Any) -> Any:
    return lambda saved: saved | changes


def in_state(change: Any) -> Any:
    def apply(saved: Any) -> Any:
        change(saved["state"])
        return saved

    return apply


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda saved: None, ValueError, r"expected an optimiser's state with .* got NoneType"),
        (lambda saved: saved["state"], ValueError, "expected an optimiser's state with"),
        (changed(type="SGD"), ValueError, "expected the state of Adam, got 'SGD'"),
        (changed(extra=1), ValueError, "got .*'extra'"),
        (changed(step=-1), ValueError, "step is -1, expected 0 to"),
        (changed(step=1.5), TypeError, "step is 1.5, expected an integer"),
        (changed(step=0), ValueError, "expected an empty state before the first step"),
        (changed(hyper={"lr": 0.1}), ValueError, "expected the hyperparameters"),
        (changed(hyper=None), ValueError, "expected the hyperparameters"),
        (
            changed(hyper=dict(lr=-1.0, betas=(0.5, 0.5), eps=0.0, weight_decay=0.0)),
            ValueError,
            "lr is -1.0, expected a number of at least 0",
        ),
        (changed(state=[]), TypeError, "expected state arrays by name, got list"),
        (changed(state={}), ValueError, "missing: 0.weight.exp_avg, 0.bias.exp_avg, 0.weight.exp"),
        (in_state(lambda s: s.update(a=np.zeros(1))), ValueError, "unexpected: a"),
        (in_state(lambda s: s.update({"0.bias.exp_avg": None})), ValueError, "is a NoneType"),
        (
            in_state(lambda s: s.update({"0.bias.exp_avg": np.zeros(8)})),
            ValueError,
            r"0.bias.exp_avg has shape \(8,\), expected \(7,\)",
        ),
        (
            in_state(lambda s: s.update({"0.bias.exp_avg": np.zeros(7, np.int64)})),
            TypeError,
            "0.bias.exp_avg is int64, expected float64",
        ),
        (
            in_state(lambda s: s.update({"0.bias.exp_avg_sq": np.zeros(7, np.longdouble)})),
            TypeError,
            "only cast=True narrows",
        ),
    ],
)
def test_a_refused_state_changes_nothing(change: Any, error: type[Exception], text: str) -> None:
    if "narrows" in text and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is double here")
    optimiser = Adam(start(), lr=0.1)
    optimiser.step(gradients(1))
    before = copied(optimiser.state_dict())
    saved = copied(before)
    saved["hyper"]["lr"] = 0.7
    saved["step"] = 9
    with pytest.raises(error, match=text):
        optimiser.load_state_dict(change(saved))
    after = optimiser.state_dict()
    assert same_bits(after.pop("state").values(), before.pop("state").values())
    assert after == before


# --- copies


def trained(case: str) -> tuple[Linear, Any]:
    module = start()
    optimiser = make(case, module)
    optimiser.step(gradients(1))
    return module, optimiser


@pytest.mark.parametrize("case", CASES)
def test_a_copy_counts_by_itself(case: str) -> None:
    """copy.copy moves the same modules, from a state of its own."""
    module, optimiser = trained(case)
    twin = copy.copy(optimiser)
    assert type(twin) is type(optimiser)
    before = copied(optimiser.state_dict())
    assert twin.state_dict()["hyper"] == before["hyper"]
    first = module.state_dict()
    twin.step(gradients(2))
    assert twin.state_dict()["step"] == 2 and optimiser.state_dict()["step"] == 1
    assert same_bits(
        optimiser.state_dict()["state"].values(),
        before["state"].values(),
    )
    after = module._weights.flat.copy()
    module.load_state_dict(first)
    optimiser.step(gradients(2))
    assert same_bits(module._weights.flat, after)
    twin.lr = 7.0
    assert optimiser.lr != 7


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("case", CASES)
def test_copies_with_their_modules(case: str, clone: Any) -> None:
    """A model and its optimiser, copied together, train on as the original does."""
    module, optimiser = trained(case)
    optimiser.note = {"mine": [1]}
    twin, its = clone((module, optimiser))
    assert twin is not module and its._modules[0] is twin
    assert its.note == optimiser.note and its.note is not optimiser.note
    for step in (2, 3):
        optimiser.step(gradients(step))
    assert not same_bits(twin._weights.flat, module._weights.flat)
    for step in (2, 3):
        its.step(gradients(step))
    assert same_bits(twin._weights.flat, module._weights.flat)
    assert same_bits(its.state_dict()["state"].values(), optimiser.state_dict()["state"].values())
