"""The time axis: taken together, reversed, moved, made; and which of its steps are valid."""

from __future__ import annotations

import math

import numpy as np

from .. import _checks
from ..module import Module
from ..weights import Array
from .step import Shape, Step, timed


class GlobalPool(Step):
    """The largest or the mean value over all time steps: (B, T, F) to (B, F).

    Examples
    --------
    >>> cylstm.steps.GlobalPool("average")(np.arange(4.0).reshape(1, 4, 1)).tolist()
    [[1.5]]
    """

    _names = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = _checks.choice("kind", kind, ("max", "average"))
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        """`valid` (B, T): the steps that count, or None for all.

        Examples
        --------
        >>> cylstm.steps.GlobalPool("max")(np.arange(4.0).reshape(1, 4, 1)).tolist()
        [[3.0]]
        """
        where = True if valid is None else valid[..., None]
        if self.kind == "max":
            return np.max(x, axis=1, where=where, initial=-np.inf)
        count = x.shape[1] if valid is None else valid.sum(1, keepdims=True)
        return np.sum(x, axis=1, where=where) / np.asarray(count, x.dtype)

    def sizes(self, shape: Shape) -> Shape:
        return timed(shape)[1:]


class LastStep(Step):
    """The last valid time step: (B, T, F) to (B, F); in a stream, the present one.

    Examples
    --------
    >>> cylstm.steps.LastStep()(np.arange(4.0).reshape(1, 4, 1)).tolist()
    [[3.0]]
    """

    by_time = True

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        if valid is None:
            return x[:, -1]
        last = x.shape[1] - 1 - valid[:, ::-1].argmax(1)
        return x[np.arange(len(x)), last]

    def sizes(self, shape: Shape) -> Shape:
        return timed(shape)[1:]


class FinalState(Step):
    """A recurrent module's final h of its last layer, both directions side by side: (B, D*R).

    For one direction that is its last output; in a stream, the present one.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 16, bidirectional=True, batch_first=True)
    >>> model = cylstm.Sequential([cylstm.steps.FinalState(lstm)])
    >>> model(np.ones((2, 5, 8), np.float32)).shape
    (2, 32)
    """

    by_time = True
    _names = ()

    def __init__(self, module: Module) -> None:
        self.module = module
        self._hold()


class Reverse(Step):
    """Reverse time.

    Parameters
    ----------
    keep_mask : bool
        Which steps are valid is not reversed with them, as behind Keras' go_backwards.

    Examples
    --------
    >>> cylstm.steps.Reverse()(np.arange(3.0).reshape(1, 3, 1)).tolist()
    [[[2.0], [1.0], [0.0]]]
    """

    _names = ("keep_mask",)

    def __init__(self, keep_mask: bool = False) -> None:
        self.keep_mask = _checks.flag("keep_mask", keep_mask)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x[:, ::-1]


class Transpose(Step):
    """(B, T, F) to (B, F, T): what is channels-first elsewhere, before and after.

    Examples
    --------
    >>> cylstm.steps.Transpose()(np.ones((2, 20, 8))).shape
    (2, 8, 20)
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array) -> Array:
        if x.ndim != 3:
            raise ValueError(f"its input has shape {x.shape}, expected (B, T, F)")
        return x.swapaxes(1, 2)

    def sizes(self, shape: Shape) -> Shape:
        timed(shape)
        return shape[::-1]


class Repeat(Step):
    """(B, F) to (B, times, F): the same at every step.

    Examples
    --------
    >>> cylstm.steps.Repeat(3)(np.ones((2, 8))).shape
    (2, 3, 8)
    """

    _names = ("times",)

    def __init__(self, times: int) -> None:
        self.times = _checks.integer("times", times)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return np.repeat(x[:, None], self.times, axis=1)

    def sizes(self, shape: Shape) -> Shape:
        if len(shape) != 1:
            raise ValueError(f"{len(shape)} axes beside the batch come in, expected one")
        return self.times, shape[0]


class Flatten(Step):
    """(B, T, F) to (B, T F).

    Examples
    --------
    >>> cylstm.steps.Flatten()(np.ones((2, 3, 8))).shape
    (2, 24)
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def sizes(self, shape: Shape) -> Shape:
        known = [size for size in shape if size is not None]
        return (math.prod(known) if len(known) == len(shape) else None,)


class Mask(Step):
    """Which time steps are valid: those in which not every feature equals `value`, as in Keras.

    The others become zeros, but for ids (B, T), which are handed on as they are. Recurrent
    modules keep their state over them and repeat their last output there, zeros before the first;
    `LastStep`, `FinalState` and `GlobalPool` leave them out.

    Examples
    --------
    >>> mask = cylstm.steps.Mask(-1.0)
    >>> mask.valid(np.array([[[3.0, 1.0], [-1.0, -1.0]]])).tolist()
    [[True, False]]
    """

    _names = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = _checks.number("value", value, -math.inf)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x if x.ndim == 2 else np.where(self.valid(x)[..., None], x, x.dtype.type(0))

    def valid(self, x: Array) -> Array:
        """(B, T) bools for x (B, T, F), or for ids (B, T).

        Examples
        --------
        >>> cylstm.steps.Mask().valid(np.array([[5, 3, 0, 0]])).tolist()  # ids
        [[True, True, False, False]]
        """
        found = x != self.value
        return found if x.ndim == 2 else found.any(-1)


class ZeroMasked(Step):
    """Zeros at steps that are not valid, as Keras' zero_output_for_mask says it.

    Examples
    --------
    >>> valid = np.array([[True, False]])
    >>> cylstm.steps.ZeroMasked()(np.ones((1, 2, 1)), valid).tolist()
    [[[1.0], [0.0]]]
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        return x if valid is None else np.where(valid[..., None], x, x.dtype.type(0))
