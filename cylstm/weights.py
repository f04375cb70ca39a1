"""Weights: one immutable block per module, its gradients, and what may be loaded into one.

A module's weights lie one after another in one 1-D array, in the order of its `state_dict()`. A
block never changes once it is made: its holder (a call, a tape, a stream, a reader of
`state_dict()`) keeps the values it started with, on any thread and without a lock. What replaces
it is another block (`module.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._core import kind_of

Array = NDArray[Any]
Spec = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) of each array, in order
State = Mapping[str, Any] | Callable[[Spec], Mapping[str, Any]]
# The dtypes of the arrays that are not of their module's: int8, or uint16 for bfloat16, of which it
# is the bits.
Stored = Mapping[str, np.dtype[Any]]
NOTHING: Stored = MappingProxyType({})
BFLOAT16, INT8 = np.dtype(np.uint16), np.dtype(np.int8)


def split(spec: Spec, flat: Array, stored: Stored = NOTHING) -> dict[str, Array]:
    """Return the arrays of `spec` as views of `flat`, which holds them one after another."""
    views, start = {}, 0
    for name, shape in spec:
        count, kind = prod(shape), stored.get(name)
        stop = start + (count if kind is None else _elements(count, kind, flat.dtype))
        part = flat[start:stop]
        views[name] = (part if kind is None else part.view(kind)[:count]).reshape(shape)
        start = stop
    if flat.shape != (start,):
        raise ValueError(f"flat has shape {flat.shape}, expected ({start},)")
    return views


def size_of(spec: Spec, dtype: np.dtype[Any], stored: Stored = NOTHING) -> int:
    """Return the number of elements of `dtype` that the arrays of `spec` fill together."""
    return sum(_elements(prod(shape), stored.get(name, dtype), dtype) for name, shape in spec)


def _elements(count: int, kind: np.dtype[Any], dtype: np.dtype[Any]) -> int:
    """How many elements of `dtype` hold `count` of `kind`."""
    return -(-count * kind.itemsize // dtype.itemsize)


def fill(spec: Spec, arrays: Mapping[str, Array], flat: Array, *, stored: Stored = NOTHING) -> None:
    """Write the arrays of `spec` into `flat`, rounding where the dtypes differ."""
    for name, view in split(spec, flat, stored).items():
        np.copyto(view, arrays[name], casting="same_kind")


class Weights:
    """One immutable block of weights.

    Attributes
    ----------
    spec : tuple of (name, shape)
    flat : read-only 1-D array, 64-byte aligned, all weights in the order of `spec`
    packed : the same as kernels read them, or None where they read `flat`
    stored : the dtypes of arrays that are not of the dtype of `flat`
    """

    __slots__ = ("flat", "packed", "spec", "stored")

    def __init__(
        self, spec: Spec, flat: Array, packed: Any = None, stored: Stored = NOTHING
    ) -> None:
        self.spec, self.flat, self.packed, self.stored = spec, flat, packed, stored

    def views(self) -> dict[str, Array]:
        """Return {name: read-only view of `flat`}."""
        return split(self.spec, self.flat, self.stored)


class Shown:
    """What shows its arrays by their shapes, since their values would hide all else."""

    __slots__ = ()

    _shows: ClassVar[tuple[str, ...]]  # the names of those attributes

    def __repr__(self) -> str:
        parts = [
            f"{name}={value.shape}"
            for name in self._shows
            if (value := getattr(self, name)) is not None
        ]
        if hasattr(self, "weights"):
            parts.append(f"weights={list(self.weights)}")
        return f"{type(self).__name__}({', '.join(parts)})"


class WeightGrads(dict[str, Array]):
    """The gradients of a module's weights, {name: array}, all views of one array `flat`.

    Assigning to a name or to `flat` writes into that memory, so that they never disagree; names
    can be neither added nor removed.

    Examples
    --------
    >>> linear = cylstm.Linear(3, 2, seed=0)
    >>> tape = linear.forward(np.ones((4, 3), np.float32))
    >>> grads = tape.backward(np.ones((4, 2), np.float32)).weights
    >>> grads["bias"] *= 0.5
    >>> grads.flat.tolist()
    [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0]
    """

    def __init__(self, spec: Spec, flat: Array) -> None:
        super().__init__(split(spec, flat))
        self.spec = spec
        self._flat = flat

    @property
    def flat(self) -> Array:
        """The 1-D array of which all values are views."""
        return self._flat

    @flat.setter
    def flat(self, value: Any) -> None:
        if value is not self._flat:
            self._flat[...] = value

    def __setitem__(self, name: str, value: Any) -> None:
        view = self[name]
        if value is not view:
            view[...] = value

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __ior__(self, other: Any) -> WeightGrads:  # type: ignore[override, misc]
        self.update(other)
        return self

    def _fixed(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("the names of weight gradients are fixed; dict(grads) gives a free copy")

    __delitem__ = pop = popitem = clear = setdefault = _fixed

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={shape}" for name, shape in self.spec)
        return f"WeightGrads({shapes}, dtype={self._flat.dtype})"

    def __reduce__(self) -> Any:
        return WeightGrads, (self.spec, self._flat)

    def copy(self) -> WeightGrads:
        """Return gradients with the same values in memory of their own.

        Examples
        --------
        >>> tape = cylstm.Linear(3, 2).forward(np.ones((4, 3), np.float32))
        >>> grads = tape.backward(np.ones((4, 2), np.float32))
        >>> total = grads.weights.copy()
        >>> total.flat += grads.weights.flat
        >>> total["bias"].tolist(), grads.weights["bias"].tolist()
        ([8.0, 8.0], [4.0, 4.0])
        """
        return WeightGrads(self.spec, self._flat.copy())


class LeafGrads(Shown):
    """The gradients of a module that has no input to go back to: `weights`, as for any module."""

    __slots__ = ("weights",)

    _shows = ()

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self.weights: Any = weights


def as_array(value: Any) -> Array:
    """Return an array or a torch tensor as an array; bfloat16 becomes float32, which is exact."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor, without its import
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array: Array = np.asanyarray(value)  # what is masked stays so, to be refused
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def as_bits(array: Array) -> tuple[Array, bool]:
    """Return the upper halves of float32 numbers, and whether the lower ones hold anything."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return (bits >> 16).astype(BFLOAT16), bool((bits & 0xFFFF).any())


def widened(bfloat16: Array) -> Array:
    """Return as float32 what an array of uint16 holds as bfloat16: the upper half of a float32."""
    return (bfloat16.astype(np.uint32) << 16).view(np.float32)


def mismatches(spec: Spec, mapping: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the names and shapes of `mapping`, empty if nothing is."""
    wrong = []
    names = dict.fromkeys(name for name, _ in spec)
    if missing := [name for name in names if name not in mapping]:
        wrong.append(f"missing: {', '.join(missing)}")
    if surplus := [str(name) for name in mapping if name not in names]:
        wrong.append(f"unexpected: {', '.join(surplus)}")
    for name, shape in spec:
        if name in mapping:
            value = mapping[name]
            if not isinstance(value, np.ndarray):
                wrong.append(f"{name} is {kind_of(value)}, expected an array {shape}")
            elif _core.is_masked(value):
                wrong.append(f"{name} is {kind_of(value)}, whose mask would be ignored")
            elif value.shape != shape:
                wrong.append(f"{name} has shape {value.shape}, expected {shape}")
    return wrong


def checked(
    spec: Spec,
    dtype: np.dtype[Any],
    mapping: Mapping[str, Any],
    cast: bool,
    whose: str,
    stored: Stored = NOTHING,
) -> dict[str, Array]:
    """Return the arrays of `mapping` in the order of `spec`, every one fit to be copied to `dtype`.

    Raises
    ------
    TypeError
        `mapping` is none, or an array's dtype is not a float that widens exactly to `dtype`
        (with `cast`, not a float at all), or is in the other byte order.
    ValueError
        Names or shapes differ. The message lists everything that is wrong.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"weights of {whose}: expected a mapping of names to arrays, "
            f"got {type(mapping).__name__}"
        )
    arrays = {name: as_array(value) for name, value in mapping.items()}
    wrong = mismatches(spec, arrays)
    wrong_dtype = []
    for name, _ in spec:
        wanted = stored.get(name, dtype)
        found = arrays[name].dtype if name in arrays else wanted
        if name in stored:
            if wanted == BFLOAT16 and found == np.float32 and not as_bits(arrays[name])[1]:
                arrays[name], found = as_bits(arrays[name])[0], wanted
            if found != wanted:
                wrong_dtype.append(f"{name} is {found}, expected {wanted}")
        elif found.kind != "f" or not found.isnative:
            wrong_dtype.append(f"{name} is {found}, expected {dtype}")
        elif not cast and not np.can_cast(found, dtype):
            wrong_dtype.append(f"{name} is {found}, which only cast=True narrows to {dtype}")
    if wrong or wrong_dtype:
        error = ValueError if wrong else TypeError
        raise error(f"weights of {whose}: {'; '.join(wrong + wrong_dtype)}")
    return {name: arrays[name] for name, _ in spec}
