"""The forecasters: two baselines and ours. All of them forecast the surprise of the next step.

A seasonal naive forecast with drift says: as a season ago, plus what a season has added on
average. What the series then does beyond that is its surprise,

    surprise = value - value a season before - drift

Level, trend and the shape of the season are gone from it, so that no network need learn them. To
forecast, a forecaster is given the surprises up to an origin and expects those after it: none
(the naive forecast), a linear function of the last ones (the ridge autoregression), or what an
LSTM says (ours). Past the origin it sees no truth and goes on from what it expected itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import cos, pi
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import cylstm
from cylstm import losses, optim

Array = NDArray[Any]

DRIFT_SEASONS = 10  # over which the drift is averaged
WARM_UP = 3  # seasons that are no target: there is no surprise in two, and a poor drift in one more

# Chosen by roll-outs in three earlier decades, 1977-2007, after training on what came before each.
HIDDEN = 16
EPOCHS = 300
LEARNING_RATE = 2e-3
NOISE = 0.6  # added to the inputs in training, in standard deviations of the surprise
MAX_NORM = 1.0

RIDGE_SEASONS = (1, 2, 3, 5)
RIDGE_PENALTIES = (0.001, 0.01, 0.1, 1.0)
RIDGE_ORIGINS = 50  # at most, of the roll-outs that choose among them


def drift(history: Array, season: int) -> float:
    """What a season has added on average, over up to DRIFT_SEASONS seasons."""
    seasons = min(DRIFT_SEASONS, len(history) // season - 1)
    then = len(history) - seasons * season
    return float(history[-season:].mean() - history[then - season : then].mean()) / seasons


def surprises(values: Array, season: int) -> Array:
    """The surprise of every step (n,), from the steps before it; 0 in the first two seasons."""
    z = np.zeros(len(values))
    for t in range(2 * season, len(values)):
        z[t] = values[t] - values[t - season] - drift(values[:t], season)
    return z


class Forecaster(Protocol):
    def expect(self, z: Array, horizon: int) -> Array:
        """The surprises (horizon,) expected after those in z."""
        ...


def forecast(history: Array, season: int, expected: Array) -> Array:
    """The values (horizon,) that follow history, if the surprises come as expected."""
    path = list(history[-season:])
    growth = drift(history, season)
    for surprise in expected:
        path.append(path[-season] + growth + surprise)
    return np.array(path[season:])


def roll_outs(
    forecaster: Forecaster, values: Array, season: int, origins: range, horizon: int
) -> Array:
    """Forecasts (origins, horizon).

    Origin t knows values[:t] and, since no surprise looks ahead, the surprises z[:t].
    """
    z = surprises(values, season)
    made = [forecast(values[:t], season, forecaster.expect(z[:t], horizon)) for t in origins]
    return np.array(made)


def errors_of(forecasts: Array, values: Array, origins: range) -> Array:
    """Forecasts less what came, both (origins, horizon)."""
    return forecasts - np.array([values[t : t + forecasts.shape[1]] for t in origins])


def rmse(errors: Array) -> float:
    return float(np.sqrt(np.square(errors).mean()))


class Naive:
    """Expects no surprise, ever: the seasonal naive forecast with drift."""

    def expect(self, z: Array, horizon: int) -> Array:
        return np.zeros(horizon)


@dataclass(frozen=True)
class Ridge:
    """A linear autoregression on the last len(weight) surprises."""

    weight: Array

    @classmethod
    def fit(cls, z: Array, season: int, window: int, penalty: float) -> Ridge:
        targets = np.arange(max(WARM_UP * season, 2 * season + window), len(z))
        x = np.array([z[t - window : t] for t in targets])
        gram = x.T @ x + penalty * (len(x) * z.var() or 1.0) * np.eye(window)
        return cls(np.linalg.solve(gram, x.T @ z[targets]))

    @classmethod
    def choose(cls, values: Array, season: int, horizon: int) -> Ridge:
        """Fit to values, with the window and penalty that did best on the last third of them."""
        z = surprises(values, season)
        cut, last = 2 * len(z) // 3, len(z) - horizon
        origins = range(cut, last + 1, 1 + (last - cut) // RIDGE_ORIGINS)
        errors = {}
        for seasons, penalty in product(RIDGE_SEASONS, RIDGE_PENALTIES):
            if (WARM_UP + seasons) * season < cut:
                ridge = cls.fit(z[:cut], season, seasons * season, penalty)
                made = roll_outs(ridge, values, season, origins, horizon)
                errors[seasons * season, penalty] = rmse(errors_of(made, values, origins))
        return cls.fit(z, season, *min(errors, key=lambda chosen: errors[chosen]))

    def expect(self, z: Array, horizon: int) -> Array:
        path = list(z)
        for _ in range(horizon):
            path.append(self.weight @ path[-len(self.weight) :])
        return np.array(path[len(z) :])


@dataclass(frozen=True)
class Lstm:
    """An LSTM that reads the surprises in order, and a Linear that says the next one."""

    lstm: cylstm.LSTM
    head: cylstm.Linear
    season: int
    scale: float  # of the surprises: their standard deviation in training

    @classmethod
    def create(cls, values: Array, season: int, hidden: int, seed: int) -> Lstm:
        z = surprises(values, season)
        lstm = cylstm.LSTM(4, hidden, seed=seed)
        head = cylstm.Linear(hidden, 1, seed=seed + 1)
        return cls(lstm, head, season, float(z[WARM_UP * season :].std()) or 1.0)

    def scaled(self, z: Array) -> Array:
        return (z / self.scale).astype(np.float32)

    def inputs(self, z: Array, start: int | None = None) -> Array:
        """What the LSTM reads at the steps from `start` on (T, 4), for scaled surprises z.

        At step t: the surprise of t, that of a season before t+1, and where in the season t+1 is.
        """
        t = np.arange(WARM_UP * self.season - 1 if start is None else start, len(z))
        phase = 2 * pi * ((t + 1) % self.season) / self.season
        columns = z[t], z[t + 1 - self.season], np.sin(phase), np.cos(phase)
        return np.stack(columns, axis=1).astype(np.float32)

    def train(self, values: Array, epochs: int, seed: int) -> Iterator[float]:
        """Learn to say the next surprise at every step of values; yields the loss of each epoch.

        The network is told the truth at every step (teacher forcing), but with noise on it: in a
        roll-out, what it reads are its own expectations, and they are not exact either.
        """
        rng = np.random.default_rng(seed)
        optimizer = optim.AdamW([self.lstm, self.head], lr=LEARNING_RATE)
        truth = self.scaled(surprises(values, self.season))
        target = truth[WARM_UP * self.season :, None]
        for epoch in range(epochs):
            noisy = truth + NOISE * rng.standard_normal(truth.shape, dtype=np.float32)
            lstm_tape = self.lstm.forward(self.inputs(noisy[:-1]))
            head_tape = self.head.forward(lstm_tape.y)
            loss, dy = losses.mse(head_tape.y, target)
            head_grads = head_tape.backward(dy)
            lstm_grads = lstm_tape.backward(head_grads.x)
            grads = [lstm_grads.weights, head_grads.weights]
            optim.clip_grad_norm(grads, MAX_NORM)
            optimizer.lr = LEARNING_RATE * (1 + cos(pi * epoch / epochs)) / 2
            optimizer.step(grads)
            yield float(loss)

    def expect(self, z: Array, horizon: int) -> Array:
        """As a stream: one step at a time, with a state, and nothing computed twice."""
        stream = self.lstm.stream()
        path = self.scaled(z)
        for x in self.inputs(path):
            y = stream.step(x)
        for _ in range(horizon):
            path = np.append(path, self.head(y))
            y = stream.step(self.inputs(path, start=len(path) - 1)[0])
        return self.scale * path[len(z) :].astype(np.float64)

    def expect_whole(self, z: Array, horizon: int) -> Array:
        """The same without a state: for each step again, the LSTM reads the whole sequence."""
        path = self.scaled(z)
        for _ in range(horizon):
            y, _ = self.lstm(self.inputs(path))
            path = np.append(path, self.head(y[-1]))
        return self.scale * path[len(z) :].astype(np.float64)

    def gates_by_season(self, z: Array) -> Array:
        """The mean of the gates i, f, g, o at each place in the season (season, 4, hidden)."""
        x = self.inputs(self.scaled(z))
        gates = self.lstm.forward(x[:, None], train=False).gates[0, :, 0]
        place = np.arange(len(z) - len(x), len(z)) % self.season
        return np.array([gates[place == p].mean(axis=0) for p in range(self.season)])

    def quantized(self, weights: str) -> Lstm:
        """The same forecaster with weights of fewer bits, "bfloat16" or "int8"."""
        return replace(
            self,
            lstm=cylstm.quantize(self.lstm, weights),
            head=cylstm.quantize(self.head, weights),
        )

    def save(self, folder: Path) -> None:
        cylstm.save(self.lstm, folder / "lstm.safetensors")
        cylstm.save(self.head, folder / "head.safetensors")
        about = {"season": self.season, "scale": self.scale}
        (folder / "forecaster.json").write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path) -> Lstm:
        lstm = cylstm.load(folder / "lstm.safetensors")
        head = cylstm.load(folder / "head.safetensors")
        assert isinstance(lstm, cylstm.LSTM) and isinstance(head, cylstm.Linear)
        return cls(lstm, head, **json.loads((folder / "forecaster.json").read_text()))
