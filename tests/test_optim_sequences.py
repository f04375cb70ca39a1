"""Random sequences of what one does with an optimiser, beside the equations in plain NumPy."""

from __future__ import annotations

import copy
import pickle
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cylstm import Embedding, Linear, Parameter, optim
from helpers import Array, rel

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCE = 1e-11


class Model:
    """Weights and moments of every module as separate arrays, moved by the documented equations."""

    def __init__(self, name: str, hyper: dict[str, Any], modules: list[Any], frozen: Any) -> None:
        self.name, self.hyper, self.frozen = name, dict(hyper), frozen
        self.weights = [{name: np.array(a) for name, a in m.state_dict().items()} for m in modules]
        self.kept = [
            {name: [np.zeros(a.shape) for _ in range(2)] for name, a in own.items()}
            for own in self.weights
        ]
        self.steps = 0

    def step(self, grads: list[dict[str, Array]], rows: Array) -> None:
        """`rows` are those of the table, module 0, that the step touches."""
        self.steps += 1
        for k, own in enumerate(grads):
            for name, grad in own.items():
                if name in self.frozen[k]:
                    continue
                at: Any = rows if k == 0 else ...
                w, kept = self.weights[k][name][at], [a[at] for a in self.kept[k][name]]
                self.weights[k][name][at] = self.moved(w, grad[at], kept)
                for array, new in zip(self.kept[k][name], kept, strict=True):
                    array[at] = new

    def moved(self, w: Array, g: Array, kept: list[Array]) -> Array:
        h, t = self.hyper, self.steps
        decay = h["weight_decay"]
        if self.name == "SGD":
            g = g + decay * w
            if h["momentum"]:
                kept[0] = g if t == 1 else h["momentum"] * kept[0] + g
                g = g + h["momentum"] * kept[0] if h["nesterov"] else kept[0]
            return w - h["lr"] * g
        if self.name == "AdamW":
            w = (1 - h["lr"] * decay) * w
        else:
            g = g + decay * w
        b1, b2 = h["betas"]
        kept[0] = b1 * kept[0] + (1 - b1) * g
        kept[1] = b2 * kept[1] + (1 - b2) * g * g
        return w - h["lr"] * (kept[0] / (1 - b1**t)) / (np.sqrt(kept[1] / (1 - b2**t)) + h["eps"])


class Sequences(RuleBasedStateMachine):
    @initialize(
        name=st.sampled_from(["SGD", "Adam", "AdamW"]),
        decay=st.sampled_from([0.0, 0.1]),
        momentum=st.sampled_from([0.0, 0.8]),
        nesterov=st.booleans(),
        frozen=st.sampled_from([[[], [], []], [[], ["bias"], []], [["weight"], ["weight"], []]]),
        seed=SEEDS,
    )
    def begin(
        self, name: str, decay: float, momentum: float, nesterov: bool, frozen: Any, seed: int
    ) -> None:
        self.modules: list[Any] = [
            Embedding(5, 2, dtype="float64", seed=seed),
            Linear(3, 2, dtype="float64", seed=seed),
            Parameter(np.random.default_rng(seed).standard_normal((1, 4))),
        ]
        hyper: dict[str, Any] = {"lr": 0.05, "weight_decay": decay}
        if name == "SGD":
            hyper |= {"momentum": momentum, "nesterov": nesterov and momentum > 0}
        else:
            hyper |= {"betas": (0.8, 0.95), "eps": 1e-4}
        self.cls = getattr(optim, name)
        self.optimizer = self.cls(self.modules, **hyper, frozen=frozen)
        self.model = Model(name, hyper, self.modules, frozen)
        self.frozen = frozen
        self.saved: Any = None

    def draw(self, seed: int) -> list[dict[str, Array]]:
        rng = np.random.default_rng(seed)
        return [
            {name: rng.standard_normal(a.shape) for name, a in m.state_dict().items()}
            for m in self.modules
        ]

    @rule(seed=SEEDS, clip=st.sampled_from([None, 0.1, 100.0]))
    def step(self, seed: int, clip: float | None) -> None:
        """With all rows of the table."""
        grads = self.draw(seed)
        want = [{name: a.copy() for name, a in own.items()} for own in grads]
        if clip is not None:
            norm = sqrt(sum(float((a * a).sum()) for own in want for a in own.values()))
            factor = min(1.0, clip / (norm + 1e-6))
            want = [{name: a * factor for name, a in own.items()} for own in want]
            assert rel(optim.clip_grad_norm(grads, clip), norm) < 1e-14
        self.optimizer.step(grads)
        self.model.step(want, np.arange(5))

    @rule(seed=SEEDS, indices=st.lists(st.integers(0, 4), max_size=6))
    def step_of_rows(self, seed: int, indices: list[int]) -> None:
        rng, (_, linear, parameter) = np.random.default_rng(seed), self.draw(seed)
        dy = rng.standard_normal((len(indices), 2))
        sparse = self.modules[0].forward(np.array(indices, int)).backward(dy)
        dense = np.zeros((5, 2))
        np.add.at(dense, indices, dy)
        self.optimizer.step([sparse, linear, parameter])
        self.model.step([{"weight": dense}, linear, parameter], np.unique(indices).astype(int))

    @rule(lr=st.floats(1e-4, 0.2))
    def set_lr(self, lr: float) -> None:
        self.optimizer.lr = self.model.hyper["lr"] = lr

    @rule(bad=st.sampled_from(["shape", "dtype", "name", "None", "count"]), seed=SEEDS)
    def refused(self, bad: str, seed: int) -> None:
        """What is wrong with the last module has moved none."""
        grads: Any = self.draw(seed)
        grads[2] = {
            "shape": {"value": np.zeros((4, 1))},
            "dtype": {"value": np.zeros((1, 4), "f")},
            "name": {"valeu": np.zeros((1, 4))},
            "None": None,
            "count": grads[2],
        }[bad]
        with pytest.raises((ValueError, TypeError)):
            self.optimizer.step(grads[:2] if bad == "count" else grads)

    @rule()
    def save(self) -> None:
        weights = [m.state_dict() for m in self.modules]
        self.saved = copy.deepcopy((weights, self.optimizer.state_dict(), self.model))

    @rule(fresh=st.booleans())
    def resume(self, fresh: bool) -> None:
        """From what was saved, here or with another optimiser."""
        if self.saved is None:
            return
        weights, state, self.model = copy.deepcopy(self.saved)
        for module, own in zip(self.modules, weights, strict=True):
            module.load_state_dict(own)
        if fresh:
            self.optimizer = self.cls(self.modules, lr=9.0, frozen=self.frozen)
        self.optimizer.load_state_dict(state)

    @rule(how=st.sampled_from(["copy", "deepcopy", "pickle"]))
    def go_on_with_a_copy(self, how: str) -> None:
        """The original, moved afterwards, is no longer looked at."""
        left = self.modules, self.optimizer
        if how == "copy":
            self.optimizer = copy.copy(self.optimizer)
            return
        both = copy.deepcopy(left) if how == "deepcopy" else pickle.loads(pickle.dumps(left))
        self.modules, self.optimizer = both
        left[1].step(self.draw(0))

    @rule(seed=SEEDS)
    def load_weights(self, seed: int) -> None:
        for module, own, new in zip(self.modules, self.model.weights, self.draw(seed), strict=True):
            module.load_state_dict(new)
            own.update({name: a.copy() for name, a in new.items()})

    @invariant()
    def as_the_equations_say(self) -> None:
        if not hasattr(self, "model"):
            return
        state = self.optimizer.state_dict()
        assert state["step"] == self.model.steps and self.optimizer.lr == self.model.hyper["lr"]
        for k, (module, own) in enumerate(zip(self.modules, self.model.weights, strict=True)):
            for name, array in module.state_dict().items():
                assert np.abs(array - own[name]).max() < TOLERANCE * max(1, np.abs(own[name]).max())
                kept = [a for n, a in state["state"].items() if n.startswith(f"{k}.{name}.")]
                for got, want in zip(kept, self.model.kept[k][name], strict=False):
                    assert np.abs(got - want).max() < TOLERANCE * max(1, np.abs(want).max())


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
