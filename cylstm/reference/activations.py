"""Activations, and their derivatives with respect to what goes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), in a form that overflows nowhere."""
    return np.exp(-np.logaddexp(0, -a))


def positive(a: Array) -> Array:
    """1 where a > 0, else 0."""
    return (a > 0).astype(a.dtype)


def negative_part(a: Array) -> Array:
    return np.minimum(a, 0)


Equation = Callable[[Array, float, float], Array]

# f(a, alpha, beta) and df/da, as ONNX defines them.
FUNCTIONS: dict[str, tuple[Equation, Equation]] = {
    "sigmoid": (
        lambda a, alpha, beta: sigmoid(a),
        lambda a, alpha, beta: sigmoid(a) * sigmoid(-a),
    ),
    "tanh": (
        lambda a, alpha, beta: np.tanh(a),
        lambda a, alpha, beta: 1 - np.tanh(a) ** 2,
    ),
    "relu": (
        lambda a, alpha, beta: np.maximum(a, 0),
        lambda a, alpha, beta: positive(a),
    ),
    "hard_sigmoid": (
        lambda a, alpha, beta: np.clip(alpha * a + beta, 0, 1),
        lambda a, alpha, beta: alpha * positive(alpha * a + beta) * positive(1 - alpha * a - beta),
    ),
    "softsign": (
        lambda a, alpha, beta: a / (1 + np.abs(a)),
        lambda a, alpha, beta: 1 / (1 + np.abs(a)) ** 2,
    ),
    "softplus": (
        lambda a, alpha, beta: np.logaddexp(0, a),
        lambda a, alpha, beta: sigmoid(a),
    ),
    "affine": (
        lambda a, alpha, beta: alpha * a + beta,
        lambda a, alpha, beta: np.full_like(a, alpha),
    ),
    "leaky_relu": (
        lambda a, alpha, beta: np.where(a > 0, a, alpha * a),
        lambda a, alpha, beta: np.where(a > 0, 1, alpha).astype(a.dtype),
    ),
    "thresholded_relu": (
        lambda a, alpha, beta: np.where(a > alpha, a, 0),
        lambda a, alpha, beta: positive(a - alpha),
    ),
    "scaled_tanh": (
        lambda a, alpha, beta: alpha * np.tanh(beta * a),
        lambda a, alpha, beta: alpha * beta * (1 - np.tanh(beta * a) ** 2),
    ),
    "elu": (
        lambda a, alpha, beta: np.where(a > 0, a, alpha * np.expm1(negative_part(a))),
        lambda a, alpha, beta: np.where(a > 0, 1, alpha * np.exp(negative_part(a))),
    ),
}


class Activation(NamedTuple):
    """A function of `FUNCTIONS` behind a clip of what goes in to [-clip, clip]."""

    name: str
    alpha: float = 0
    beta: float = 0
    clip: float = np.inf

    def __call__(self, a: Array) -> Array:
        function, _ = FUNCTIONS[self.name]
        return function(np.clip(a, -self.clip, self.clip), self.alpha, self.beta)

    def slope(self, a: Array) -> Array:
        """The derivative at a; none where a is clipped."""
        _, derivative = FUNCTIONS[self.name]
        return derivative(a, self.alpha, self.beta) * unclipped(a, self.clip)


def unclipped(a: Array, clip: float) -> Array:
    """The derivative of clipping to [-clip, clip]: 1 within, else 0."""
    return (np.abs(a) < clip).astype(a.dtype)


Choice = str | tuple[str, float, float]  # a name, or (name, alpha, beta)


def behind_clip(clip: float, *choices: Choice) -> list[Activation]:
    """Activations, each behind the same clip."""
    whole = [(choice, 0.0, 0.0) if isinstance(choice, str) else choice for choice in choices]
    return [Activation(name, alpha, beta, clip) for name, alpha, beta in whole]
