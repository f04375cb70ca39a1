"""Activations by name: what a cell's arguments may say, and what `_core` is told."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from . import _checks

# Of each name: what `_core` calls it, and its alpha and beta where none are given (ONNX's).
ACTIVATIONS: dict[str, tuple[str, float, float]] = {
    "sigmoid": ("sigmoid", 0, 0),
    "tanh": ("tanh", 0, 0),
    "relu": ("relu", 0, 0),
    "hard_sigmoid_keras2": ("hard_sigmoid", 0.2, 0.5),
    "hard_sigmoid_keras3": ("hard_sigmoid", 1 / 6, 0.5),
    "softsign": ("softsign", 0, 0),
    "softplus": ("softplus", 0, 0),
    "affine": ("affine", 1, 0),
    "leaky_relu": ("leaky_relu", 0.01, 0),
    "thresholded_relu": ("thresholded_relu", 1, 0),
    "scaled_tanh": ("scaled_tanh", 1, 1),
    "elu": ("elu", 1, 0),
}
Activation = str | tuple[str, float] | tuple[str, float, float]
Resolved = tuple[tuple[str, float, float], ...]


def resolve(name: str, value: Any) -> tuple[str, float, float]:
    """One activation, a name, (name, alpha) or (name, alpha, beta), as `_core` takes it."""
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, (tuple, list)) or not 1 <= len(given) <= 3:
        raise TypeError(
            f"{name} is {value!r}, expected a name, (name, alpha) or (name, alpha, beta)"
        )
    if given[0] not in ACTIVATIONS:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(ACTIVATIONS)}")
    function, *defaults = ACTIVATIONS[given[0]]
    numbers = [_checks.number(f"{name}[{n}]", given[n], -inf) for n in range(1, len(given))]
    alpha, beta = numbers + defaults[len(numbers) :]
    if function in ("leaky_relu", "elu") and alpha < 0:  # two x may have one y
        raise ValueError(f"{name} is {value!r}, expected alpha at least 0")
    if function == "scaled_tanh" and alpha == 0:  # zero, and its derivative divides by alpha
        return "affine", 0.0, 0.0
    return function, float(alpha), float(beta)


def check(value: Any, each: int, bidirectional: bool) -> tuple[Any, ...] | None:
    """`activations` as it is kept: None, or `each`, or as many for each direction."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"activations is {value!r}, expected {each} of them")
    if len(value) != each and not (bidirectional and len(value) == 2 * each):
        more = f", or {2 * each} for two directions" if bidirectional else ""
        raise ValueError(f"activations is {value!r}, expected {each} of them{more}")
    for n, one in enumerate(value):
        resolve(f"activations[{n}]", one)
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def for_core(value: Sequence[Any] | None, each: int, bidirectional: bool) -> Resolved:
    """What `_core` is told: those of one direction, then of the other."""
    resolved = tuple(resolve("activations", one) for one in value or ())
    return resolved * 2 if bidirectional and len(resolved) == each else resolved
