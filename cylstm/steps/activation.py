"""Functions of each element, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import _checks
from ..weights import Array
from .step import Step


def _sigmoid(x: Array) -> Array:
    return np.tanh(x / 2) / 2 + 0.5


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _gelu(x: Array) -> Array:
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2))
    return x * (np.asarray(erf, x.dtype) + 1) / 2


def _gelu_tanh(x: Array) -> Array:
    return x * (np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)) + 1) / 2


# By name, with the parameter that some have, and its default: torch's where Keras differs.
ACTIVATIONS: dict[str, tuple[Callable[..., Array], float | None]] = {
    "relu": (lambda x: np.maximum(x, 0), None),
    "relu6": (lambda x: np.clip(x, 0, 6), None),
    "leaky_relu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), 0.01),
    "elu": (_elu, 1.0),
    "selu": (lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772), None),
    "gelu": (_gelu, None),
    "gelu_tanh": (_gelu_tanh, None),
    "sigmoid": (_sigmoid, None),
    "hard_sigmoid_keras2": (lambda x: np.clip(0.2 * x + 0.5, 0, 1), None),
    "hard_sigmoid_keras3": (lambda x: np.clip(x + 3, 0, 6) / 6, None),
    "tanh": (np.tanh, None),
    "softmax": (_softmax, None),
    "log_softmax": (_log_softmax, None),
    "softplus": (lambda x: np.logaddexp(x, 0), None),
    "softsign": (lambda x: x / (1 + np.abs(x)), None),
    "silu": (lambda x: x * _sigmoid(x), None),
    "exponential": (np.exp, None),
}


class Activation(Step):
    """A function of each element; softmax and log_softmax go over the last axis.

    Parameters
    ----------
    name : one of ACTIVATIONS
        gelu is exact, by the error function, and slow; gelu_tanh is the usual approximation.
        hard_sigmoid_keras2 is clip(0.2 x + 0.5, 0, 1), hard_sigmoid_keras3 relu6(x + 3) / 6.
    alpha : float or None
        The parameter of leaky_relu (0.01) and elu (1).

    Examples
    --------
    >>> cylstm.steps.Activation("softmax")(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    by_time = True
    _names = ("name", "alpha")

    def __init__(self, name: str, alpha: float | None = None) -> None:
        self.name = _checks.choice("name", name, ACTIVATIONS)
        self._function, default = ACTIVATIONS[name]
        if default is None and alpha is not None:
            raise ValueError(f"alpha is {alpha!r}, but {name} has no parameter")
        self.alpha = default if alpha is None else _checks.number("alpha", alpha, -math.inf)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return self._function(x) if self.alpha is None else self._function(x, self.alpha)
