"""What all steps share, and what they say of shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .. import _checks
from ..weights import Array

if TYPE_CHECKING:
    from typing_extensions import Self

Shape = tuple["int | None", ...]


class Step:
    """What all steps share: a configuration for files, arrays, and no way to change either.

    `by_time` says that a step takes each time step by itself, and so may stream.
    """

    by_time: ClassVar[bool] = False
    _names: ClassVar[tuple[str, ...]] = ()  # of the constructor's arguments that are no arrays
    _arrays: dict[str, Array]

    def __call__(self, x: Array) -> Array:
        """Return y for x, whose time steps are all valid.

        Examples
        --------
        >>> cylstm.steps.Activation("relu")(np.array([[-1.0, 1.0]])).tolist()
        [[0.0, 1.0]]
        """
        raise NotImplementedError

    def sizes(self, shape: Shape) -> Shape:
        """Return the shape of y without its batch axis for that of x; None is an unknown size.

        Raises ValueError where x can't have such a shape.

        Examples
        --------
        >>> cylstm.steps.Flatten().sizes((5, 8))
        (40,)
        """
        return shape

    def state_dict(self) -> dict[str, Array]:
        """Return {name: read-only array}.

        Examples
        --------
        >>> list(cylstm.steps.LayerNorm(weight=[1.0, 2.0]).state_dict())
        ['weight']
        """
        return dict(self._arrays)

    def _config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        """What is wrong with the names in a `_config()` read from a file; values come later."""
        return [f"unexpected: {name}" for name in config if name not in cls._names]

    @classmethod
    def _from(cls, config: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(**config, **state)

    def _hold(self, **arrays: ArrayLike | None) -> None:
        """Keep copies of these arrays, all of one dtype, which nobody can write to."""
        found: dict[str, Array] = {}
        for name, value in arrays.items():
            if value is not None:
                dtype = next(iter(found.values())).dtype if found else None
                array = np.array(_checks.array(name, value, dtype), order="C")
                found[name] = np.asarray(array.data.toreadonly())
        self._arrays = found

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        shapes = ", ".join(f"{name} {array.shape}" for name, array in self._arrays.items())
        return f"{type(self).__name__}({', '.join(filter(None, (arguments, shapes)))})"


def features(shape: Shape, expected: int, out: int | None = None) -> Shape:
    """The shape with `out` features (None: as many) in place of `expected`."""
    if shape[-1] not in (None, expected):
        raise ValueError(f"{shape[-1]} features come in, expected {expected}")
    return (*shape[:-1], expected if out is None else out)


def timed(shape: Shape) -> tuple[int | None, int | None]:
    if len(shape) != 2:
        raise ValueError(
            f"its input has shape (B, {', '.join(map(str, shape))}), expected (B, T, F)"
        )
    return shape[0], shape[1]
