"""Normalisation over features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .. import _checks
from ..weights import Array
from .step import Shape, Step, features


class BatchNorm(Step):
    """Batch normalisation of the last axis at inference (Ioffe and Szegedy 2015, arXiv:1502.03167).

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, each (F,).

    Examples
    --------
    >>> norm = cylstm.steps.BatchNorm(running_mean=[1.0, 2.0], running_var=[4.0, 1.0], eps=0)
    >>> norm(np.array([[3.0, 2.0]])).tolist()
    [[1.0, 0.0]]
    """

    by_time = True
    _names = ("eps",)

    def __init__(
        self,
        running_mean: ArrayLike,
        running_var: ArrayLike,
        weight: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.eps = _checks.number("eps", eps)
        self._hold(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
        _same_width(self._arrays)
        arrays = {name: array.astype(np.float64) for name, array in self._arrays.items()}
        scale = arrays.get("weight", 1.0) / np.sqrt(arrays["running_var"] + self.eps)
        shift = arrays.get("bias", 0.0) - arrays["running_mean"] * scale
        self._scale, self._shift = (
            np.asarray(a, self._arrays["running_mean"].dtype) for a in (scale, shift)
        )

    def __call__(self, x: Array) -> Array:
        return x * self._scale + self._shift

    def sizes(self, shape: Shape) -> Shape:
        return features(shape, self._scale.size)


class LayerNorm(Step):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; weight and bias (F,).

    Examples
    --------
    >>> cylstm.steps.LayerNorm(eps=0)(np.array([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """

    by_time = True
    _names = ("eps",)

    def __init__(
        self, weight: ArrayLike | None = None, bias: ArrayLike | None = None, eps: float = 1e-5
    ) -> None:
        self.eps = _checks.number("eps", eps)
        self._hold(weight=weight, bias=bias)
        _same_width(self._arrays)

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        y *= self._arrays.get("weight", 1)
        y += self._arrays.get("bias", 0)
        return y

    def sizes(self, shape: Shape) -> Shape:
        widths = [array.size for array in self._arrays.values()]
        return features(shape, widths[0]) if widths else shape


def _same_width(arrays: Mapping[str, Array]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"shapes are {shapes}, expected one size (F,) for all")
