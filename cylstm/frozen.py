"""Frozen weights: those that no step of an optimiser moves, by name."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import Any

from .module import Module
from .weights import Spec


def frozen_names(modules: list[Module], frozen: Any) -> list[frozenset[str]]:
    """Return the names of frozen weights per module: given as such, or of a lone module."""
    per_module: Any = [frozen] if len(modules) == 1 and _are_names(frozen) else frozen
    if isinstance(frozen, Collection) and not frozen:
        per_module = [()] * len(modules)
    if (
        not isinstance(per_module, Collection)
        or len(per_module) != len(modules)
        or not all(map(_are_names, per_module))
    ):
        raise ValueError(
            f"frozen is {frozen!r}, expected names of weights"
            + (f", a list of them for each of {len(modules)} modules" if len(modules) > 1 else "")
        )
    for k, (module, names) in enumerate(zip(modules, per_module, strict=True)):
        known = [name for name, _ in module._spec]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(
                f"frozen has {', '.join(unknown)}, expected names of module {k} "
                f"({type(module).__name__}): {', '.join(known)}"
            )
    return [frozenset(names) for names in per_module]


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, Collection)
        and not isinstance(value, (str, bytes))
        and all(isinstance(name, str) for name in value)
    )


def runs(spec: Spec, frozen: frozenset[str]) -> tuple[list[slice], list[slice]]:
    """Return the runs of weights that move, each as long as can be, and of frozen ones."""
    moving: list[slice] = []
    kept: list[slice] = []
    start, last = 0, None
    for name, shape in spec:
        stop, own = start + prod(shape), kept if name in frozen else moving
        if own is last:
            own[-1] = slice(own[-1].start, stop)
        else:
            own.append(slice(start, stop))
        start, last = stop, own
    return moving, kept
