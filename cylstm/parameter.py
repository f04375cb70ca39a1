"""Parameter: an array that is trained, such as the states that an LSTM starts from."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks, _core
from .module import Fixed, Module
from .weights import Array, LeafGrads, Shown, Spec, WeightGrads

Shape = tuple[int, ...]


class ParameterTape(Shown):
    """One use of a parameter, kept for its backward.

    Attributes
    ----------
    y : read-only array, the values of then, broadcast to the shape that was asked for
    """

    __slots__ = ("_spec", "y")

    _shows = ("y",)

    def __init__(self, spec: Spec, y: Array) -> None:
        self._spec, self.y = spec, y

    def backward(self, dy: ArrayLike) -> LeafGrads:
        """Return the gradients of a loss whose gradient with respect to `y` is `dy`.

        What was repeated gets the sum over its repetitions, summed in float64.

        Raises
        ------
        ValueError, TypeError
            `dy` does not have the shape or the dtype of `y`.
        """
        dy = _checks.array("dy", dy, self.y.dtype, self.y.shape)
        ((_, shape),) = self._spec
        own = (1,) * (dy.ndim - len(shape)) + shape
        repeated = tuple(k for k, n in enumerate(own) if n == 1)
        flat = _core.aligned_empty(prod(shape), dy.dtype)
        flat[:] = dy.sum(axis=repeated, dtype=np.float64).reshape(-1)
        return LeafGrads(WeightGrads(self._spec, flat))


class Parameter(Module):
    """An array that is trained like the weights of any module.

    Its only weight is "value". As initial states of an LSTM, `Parameter(np.zeros((L * D, 1, H)))`
    is broadcast over the batch.

    Parameters
    ----------
    value : array of float32 or float64, not empty
        The first values.

    Attributes
    ----------
    shape : tuple of int

    Examples
    --------
    >>> import numpy as np
    >>> import cylstm
    >>> h_0 = cylstm.Parameter(np.zeros((1, 1, 8), np.float32))
    >>> tape = h_0.forward((1, 4, 8))  # one for each of 4 sequences
    >>> tape.y.shape
    (1, 4, 8)
    >>> tape.backward(np.ones((1, 4, 8), np.float32)).weights["value"][0, 0, 0].item()
    4.0
    """

    __slots__ = ()

    shape = Fixed[Shape]()

    def __init__(self, value: ArrayLike) -> None:
        array = _checks.array("value", value, None)
        if not array.size:
            raise ValueError(f"value has shape {array.shape}, expected at least one element")
        self._make({"shape": array.shape, "dtype": array.dtype}, state={"value": array})

    def _configure(self, *, shape: Shape, dtype: DTypeLike) -> tuple[dict[str, Any], Spec]:
        # from a file, where it is a list
        shape = tuple(_checks.integer(f"shape[{k}]", n) for k, n in enumerate(shape))
        return {"shape": shape, "dtype": _checks.float_dtype(dtype)}, (("value", shape),)

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        wrong = [f"missing: {name}" for name in ("shape", "dtype") if name not in config]
        return wrong + [f"unexpected: {name}" for name in config if name not in ("shape", "dtype")]

    @property
    def value(self) -> Array:
        """The values as they are now, read-only."""
        return self._weights.views()["value"]

    def __call__(self, shape: Shape | None = None) -> Array:
        """Return the values as they are now, read-only, broadcast to `shape` where it is given.

        Raises ValueError if they do not broadcast to it.

        Examples
        --------
        >>> cylstm.Parameter(np.zeros((1, 1, 8)))((1, 4, 8)).shape
        (1, 4, 8)
        """
        if shape is None:
            return self.value
        try:
            return np.broadcast_to(self.value, shape)
        except ValueError:
            raise ValueError(
                f"shape is {shape}, expected one to which {self.shape} broadcasts"
            ) from None

    def forward(self, shape: Shape | None = None) -> ParameterTape:
        """Return a tape with `y` as from a call, whose `backward` gives the gradients.

        Examples
        --------
        >>> cylstm.Parameter(np.zeros((1, 1, 8))).forward((1, 4, 8))
        ParameterTape(y=(1, 4, 8))
        """
        return ParameterTape(self._spec, self(shape))
