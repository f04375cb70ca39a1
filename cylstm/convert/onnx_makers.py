"""What makes the NumPy functions of ONNX operators: a table that the files with makers fill.

A maker gets a node's attributes and those of its inputs that are constants, and returns
(function, which inputs it takes), or None: the evaluator's form is then used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..weights import Array

Constants = Sequence["Array | None"]

Made = tuple[Callable[..., Any], tuple[int, ...]]

Maker = Callable[[dict[str, Any], Constants], "Made | None"]

MAKERS: dict[str, Maker] = {}

ABSENT: Any = np.empty(0)  # stands among the constants for an input that is not there


def maker(*names: str) -> Callable[[Maker], Maker]:
    def register(function: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, function))
        return function

    return register


def integers(attributes: dict[str, Any], constants: Constants, name: str, index: int) -> Any:
    """Integers that newer versions take as an input and older ones as an attribute.

    None where they are absent; raises LookupError where they are no constant.
    """
    if name in attributes:
        value = attributes[name]
        return [value] if isinstance(value, int) else list(value)
    if index >= len(constants) or constants[index] is ABSENT:
        return None
    value = constants[index]
    if value is None:
        raise LookupError(name)
    return [int(n) for n in np.ravel(value)]
