"""cylstm as a scikit-learn estimator: forecasts what follows a window of a series.

It works in pipelines, grid searches and cross-validation, in threads and in processes. Where
scikit-learn is not installed it has fit, predict, score, get_params and set_params all the same.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import cylstm
from cylstm import losses, optim

Array = NDArray[Any]

try:
    from sklearn.base import BaseEstimator, RegressorMixin
except ImportError:

    class BaseEstimator:  # type: ignore[no-redef]
        """What parameters are: the arguments of __init__, kept under their names."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

        def set_params(self, **params: Any) -> Any:
            if unknown := params.keys() - self.get_params():
                raise ValueError(f"unknown {sorted(unknown)}, expected {sorted(self.get_params())}")
            vars(self).update(params)
            return self

    class RegressorMixin:  # type: ignore[no-redef]
        """R squared, averaged over the outputs."""

        def score(self, X: ArrayLike, y: ArrayLike) -> float:
            y = np.asarray(y, np.float64)
            residual = np.square(y - self.predict(X)).sum(0)  # type: ignore[attr-defined]
            return float(np.mean(1 - residual / np.square(y - y.mean(0)).sum(0)))


class LSTMForecaster(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """An LSTM that reads a window, and a linear layer on its last state.

    Parameters
    ----------
    hidden_size, num_layers : int
    epochs, batch_size : int
    learning_rate : float, of Adam
    random_state : int or None
    threads : int or None
        Of each call. One, so that many forecasters can run side by side; None takes all cores.
    """

    def __init__(
        self,
        hidden_size: int = 16,
        num_layers: int = 1,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 0.01,
        random_state: int | None = None,
        threads: int | None = 1,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state
        self.threads = threads

    def fit(self, X: ArrayLike, y: ArrayLike) -> LSTMForecaster:
        """Learn y (n,) or (n, outputs) from windows X (n, T), or (n, T, I) of several series."""
        x, target = _windows(X), np.asarray(y, np.float32)
        if target.ndim not in (1, 2) or len(target) != len(x) or not len(x):
            raise ValueError(f"y has shape {target.shape}, expected ({len(x)},) or two axes, n > 0")
        rng = np.random.default_rng(self.random_state)
        self.x_scale_ = _scale(x, axis=(0, 1))
        self.y_scale_ = _scale(target, axis=0)
        x, goal = _standard(x, self.x_scale_), _standard(target, self.y_scale_)
        goal = goal.reshape(len(x), -1)
        lstm = cylstm.LSTM(
            x.shape[2], self.hidden_size, self.num_layers, batch_first=True, seed=_seed(rng)
        )
        head = cylstm.Linear(self.hidden_size, goal.shape[1], seed=_seed(rng))
        adam = optim.Adam([lstm, head], lr=self.learning_rate)
        for _ in range(self.epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), self.batch_size):
                batch = order[start : start + self.batch_size]
                tape = lstm.forward(x[batch], threads=self.threads)
                out = head.forward(tape.h_n[-1])
                _, dy = losses.mse(out.y, goal[batch])
                head_grads = out.backward(dy)
                dh_n = np.zeros_like(tape.h_n)
                dh_n[-1] = head_grads.x
                grads = [tape.backward(dh_n=dh_n, threads=self.threads, need_x=False), head_grads]
                optim.clip_grad_norm(grads, 1.0)
                adam.step(grads)
        self.lstm_, self.head_, self.y_axes_ = lstm, head, target.ndim
        return self

    def predict(self, X: ArrayLike) -> Array:
        """Forecasts (n,) or (n, outputs), float32, for windows of any length."""
        if not hasattr(self, "lstm_"):
            raise ValueError("this forecaster is not fitted yet: call fit before predict")
        _, (h_n, _) = self.lstm_(_standard(_windows(X), self.x_scale_), threads=self.threads)
        mean, deviation = self.y_scale_
        y = self.head_(h_n[-1])
        return (y[:, 0] if self.y_axes_ == 1 else y) * deviation + mean


def _windows(X: ArrayLike) -> Array:
    """(n, T, I), float32."""
    x = np.asarray(X, np.float32)
    if x.ndim not in (2, 3):
        raise ValueError(f"X has shape {x.shape}, expected (n, T) or (n, T, I)")
    return x[..., None] if x.ndim == 2 else x


def _scale(a: Array, axis: Any) -> tuple[Array, Array]:
    """Mean and standard deviation; 1 where nothing varies."""
    deviation = a.std(axis)
    return a.mean(axis), np.where(deviation > 0, deviation, np.float32(1))


def _standard(a: Array, scale: tuple[Array, Array]) -> Array:
    return (a - scale[0]) / scale[1]


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
