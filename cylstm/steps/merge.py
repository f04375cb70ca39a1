"""One array of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from .. import _checks
from ..weights import Array
from .step import Shape, Step


class Merge(Step):
    """One array of those that several named steps gave.

    Parameters
    ----------
    how : "concatenate" (of features), "add", "multiply", "average", "maximum"

    Examples
    --------
    >>> cylstm.steps.Merge("add")(np.ones((2, 8)), np.ones((2, 8)))[0, 0].item()
    2.0
    >>> layers = [("a", cylstm.Linear(8, 4)), ("b", cylstm.Linear(8, 4), "input")]
    >>> model = cylstm.Sequential([*layers, ("both", cylstm.steps.Merge(), ["a", "b"])])
    >>> model(np.ones((2, 8), np.float32)).shape
    (2, 8)
    """

    by_time = True
    _names = ("how",)
    HOW: ClassVar[dict[str, Callable[[list[Array]], Array]]] = {
        "concatenate": lambda xs: np.concatenate(xs, axis=-1),
        "add": lambda xs: np.add.reduce(xs),
        "multiply": lambda xs: np.multiply.reduce(xs),
        "average": lambda xs: np.add.reduce(xs) / xs[0].dtype.type(len(xs)),
        "maximum": lambda xs: np.maximum.reduce(xs),
    }

    def __init__(self, how: str = "concatenate") -> None:
        self.how = _checks.choice("how", how, self.HOW)
        self._hold()

    def __call__(self, *xs: Array) -> Array:
        return self.HOW[self.how](list(xs))

    def merged(self, shapes: list[Shape]) -> Shape:
        """`sizes` for several inputs.

        Examples
        --------
        >>> cylstm.steps.Merge().merged([(None, 3), (None, 5)])
        (None, 8)
        """
        if self.how != "concatenate":
            if len(set(shapes)) > 1:
                raise ValueError(f"shapes {shapes} come in, expected equal ones")
            return shapes[0]
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"shapes {shapes} come in, expected them to differ in features only")
        widths = [shape[-1] for shape in shapes if shape[-1] is not None]
        return (*shapes[0][:-1], sum(widths) if len(widths) == len(shapes) else None)


class MergeDirections(Merge):
    """The two halves of a bidirectional layer's output as one: "add", "multiply" or "average".

    Examples
    --------
    >>> cylstm.steps.MergeDirections("add")(np.ones((2, 5, 8))).shape
    (2, 5, 4)
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        return super().__call__(*np.split(x, 2, axis=-1))

    def sizes(self, shape: Shape) -> Shape:
        if shape[-1] is None or shape[-1] % 2:
            raise ValueError(f"{shape[-1]} features come in, expected an even number")
        return (*shape[:-1], shape[-1] // 2)
