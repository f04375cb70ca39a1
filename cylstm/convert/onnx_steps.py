"""The steps of an ONNX graph: functions that read and write places of one list of values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Values = list[Any]


class Step(NamedTuple):
    """What a node does to the list of values; the places that nothing reads after it."""

    run: Callable[[Values], None]
    path: str
    reads: frozenset[int]
    last: tuple[int, ...] = ()


class GraphError(ValueError):
    """A node of the graph could not work on what it got; says which."""


def walk(steps: list[Step], values: Values) -> None:
    """Take the steps in order; an error says at which one."""
    for run, path, _, last in steps:
        try:
            run(values)
            for place in last:
                values[place] = None
        except GraphError:
            raise
        except Exception as error:
            raise GraphError(f"{path}: {error}") from error


def single(
    function: Callable[..., Any], sources: list[int], target: int
) -> Callable[[Values], None]:
    """A step that makes one value."""
    if len(sources) == 1:
        (a,) = sources

        def run(values: Values) -> None:
            values[target] = function(values[a])

    elif len(sources) == 2:
        a, b = sources

        def run(values: Values) -> None:
            values[target] = function(values[a], values[b])

    else:

        def run(values: Values) -> None:
            values[target] = function(*[values[s] for s in sources])

    return run
