"""Linear: y = x W^T + b over the last axis, with its backward; the usual head of an LSTM."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks, _core
from .module import Fixed, Module, format_of, given, uniform
from .weights import BFLOAT16, INT8, Array, Shown, Spec, WeightGrads, Weights


def _rows(array: Array, width: int) -> Array:
    """Return an array (..., width) as (N, width), contiguous and aligned."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = array.copy()
    return array.reshape(-1, width)


class LinearGrads(Shown):
    """The gradients of one backward pass.

    Attributes
    ----------
    x : array (..., in_features), or None where it was not asked for
    weights : {name: array}, with the names, shapes and order of `Linear.state_dict()`

    Examples
    --------
    >>> linear = cylstm.Linear(3, 2)
    >>> grads = linear.forward(np.ones((4, 3), np.float32)).backward(np.ones((4, 2), np.float32))
    >>> grads
    LinearGrads(x=(4, 3), weights=['weight', 'bias'])
    """

    __slots__ = ("weights", "x")

    _shows = ("x",)

    def __init__(self, x: Array | Any, weights: WeightGrads) -> None:
        self.x = x
        self.weights = weights


class LinearTape(Shown):
    """One forward pass of a Linear, kept for its backward: its own copy of x, and its weights.

    Attributes
    ----------
    y : read-only array (..., out_features)

    Examples
    --------
    >>> cylstm.Linear(3, 2).forward(np.ones((5, 4, 3), np.float32))
    LinearTape(y=(5, 4, 2))
    """

    __slots__ = ("_weights", "_x", "y")

    _shows = ("y",)

    def __init__(self, x: Array, weights: Weights, y: Array) -> None:
        y.flags.writeable = False
        self._x = x
        self._weights = weights
        self.y = y

    def backward(
        self, dy: ArrayLike, *, threads: int | None = None, need_x: bool = True
    ) -> LinearGrads:
        """Return the gradients of a loss whose gradient with respect to `y` is `dy`.

        May be called again. dx = dy W, dW = dy^T x, db = sum of dy over all rows.

        Parameters
        ----------
        dy : array of the shape of y
        threads : int or None for `get_num_threads()`; small products take one
        need_x : bool
            False leaves out the gradient of x, half of the work.

        Raises
        ------
        ValueError, TypeError
            `dy` does not have the shape or the dtype of `y`, or `need_x` is no bool.

        Examples
        --------
        >>> tape = cylstm.Linear(3, 2).forward(np.ones((5, 4, 3), np.float32))
        >>> grads = tape.backward(np.ones((5, 4, 2), np.float32))
        >>> grads.weights["bias"].tolist()
        [20.0, 20.0]
        """
        dy = _checks.array("dy", dy, self.y.dtype, self.y.shape)
        need_x = _checks.flag("need_x", need_x)
        weight = self._weights.views()["weight"]
        n_out, n_in = weight.shape
        x, rows = self._x.reshape(-1, n_in), _rows(dy, n_out)
        flat = _core.aligned_empty(self._weights.flat.size, dy.dtype)
        grads = WeightGrads(self._weights.spec, flat)
        n = _core._threads(threads)
        if rows.size:
            dx = _core.linear_backward(x, rows, weight, grads["weight"], need_x, n)
        else:
            dx, flat[:] = np.empty_like(x) if need_x else None, 0
        if "bias" in grads:
            np.sum(rows, axis=0, out=grads["bias"])
        return LinearGrads(None if dx is None else dx.reshape(self._x.shape), grads)


class Linear(Module):
    """An affine map of the last axis, as torch.nn.Linear.

    y = x W^T + b, with weight (out_features, in_features) and bias (out_features,), both drawn
    from U(-1/sqrt(in_features), 1/sqrt(in_features)).

    Parameters
    ----------
    in_features, out_features : int, at least 1
    bias : bool
    dtype : "float32" or "float64"
    seed : int or None
        For the first weights; None draws a new one.

    Examples
    --------
    >>> linear = cylstm.Linear(3, 2, seed=0)
    >>> linear(np.ones((5, 4, 3), np.float32)).shape
    (5, 4, 2)
    """

    __slots__ = ()

    _quantizes = True

    in_features = Fixed[int]()
    out_features = Fixed[int]()
    bias = Fixed[bool]()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self._make(given(locals()), seed=seed)

    def _configure(
        self,
        *,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: DTypeLike = "float32",
        weights: str | None = None,
        arithmetic: str | None = None,
        inputs: str | None = None,
    ) -> tuple[dict[str, Any], Spec]:
        arguments: dict[str, Any] = {
            "in_features": _checks.integer("in_features", in_features),
            "out_features": _checks.integer("out_features", out_features),
            "bias": _checks.flag("bias", bias),
            "dtype": _checks.float_dtype(dtype),
        }
        outputs = arguments["out_features"]
        spec: Spec = (("weight", (outputs, arguments["in_features"])),)
        widest = arguments["in_features"]
        arguments |= _checks.compact(weights, arithmetic, inputs, arguments["dtype"], widest)
        if weights is not None:
            self._stored = {"weight": INT8 if weights == "int8" else BFLOAT16}
        if weights == "int8":
            spec += (("weight_scale", (outputs,)),)
        if arguments["bias"]:
            spec += (("bias", (outputs,)),)
        return arguments, spec

    def _draw(self, flat: Array, seed: Any) -> None:
        uniform(flat, 1 / sqrt(self.in_features), seed)

    def _pack(self, flat: Array, threads: int) -> Any:
        form = format_of(self._arguments)
        if form is None:
            return None
        return _core.PackedLinear(self.out_features, self.in_features, form, flat, threads)

    def __call__(self, x: ArrayLike, *, threads: int | None = None) -> Array:
        """Return y (..., out_features) for x (..., in_features) of the module's dtype.

        `threads` is how many cores the call may keep busy, None for `get_num_threads()`; small
        products take one. The bits of y do not depend on it.

        Raises ValueError or TypeError if x has another last axis or another dtype.

        Examples
        --------
        >>> import numpy as np
        >>> import cylstm
        >>> linear = cylstm.Linear(3, 2, seed=0)
        >>> linear(np.ones((5, 4, 3), np.float32)).shape
        (5, 4, 2)
        """
        return self._apply(self._checked_x(x), self._weights, threads)

    def forward(self, x: ArrayLike, *, threads: int | None = None) -> LinearTape:
        """Return a tape with `y` as from a call, whose `backward` gives the gradients.

        Examples
        --------
        >>> tape = cylstm.Linear(3, 2).forward(np.ones((5, 4, 3), np.float32))
        >>> tape.y.shape
        (5, 4, 2)
        """
        self._refuse_training()
        x = np.array(self._checked_x(x), order="C")  # the tape's own
        weights = self._weights
        return LinearTape(x, weights, self._apply(x, weights, threads))

    def _checked_x(self, value: ArrayLike) -> Array:
        x = _checks.array("x", value, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x has shape {x.shape}, expected (..., {self.in_features})")
        return x

    def _apply(self, x: Array, weights: Weights, threads: int | None) -> Array:
        views = weights.views()
        shape, n = (*x.shape[:-1], self.out_features), _core._threads(threads)
        if not x.size:
            return np.empty(shape, x.dtype)
        rows, bias = _rows(x, self.in_features), views.get("bias")
        if weights.packed is not None:
            y = weights.packed.forward(rows, bias, n)
        else:
            y = _core.linear_forward(rows, views["weight"], bias, n)
        return y.reshape(shape)
