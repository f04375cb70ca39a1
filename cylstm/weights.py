"""Weights: one immutable block per module, replaced whole, and the base class that does it.

A module's weights lie one after another in one 1-D array, in the order of its `state_dict()`. A
block never changes once it is installed: whoever took it (a call, a tape, a stream, a reader of
`state_dict()`) keeps the values it started with, on any thread and without a lock. An update
fills another block and installs it with one attribute assignment.

Two blocks take turns while a model trains: the memory of the block before last is filled again
as soon as nobody holds it any more, so that a training step allocates nothing. Every view of a
block keeps its `flat` alive, hence a weak reference to `flat` tells whether somebody does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[Any]
Spec = tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape) of each array, in order


def aligned_empty(size: int, dtype: np.dtype[Any]) -> Array:
    """Return an uninitialised 1-D array that starts on a cache line (64 bytes)."""
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


def split(spec: Spec, flat: Array) -> dict[str, Array]:
    """Return the arrays of `spec` as views of `flat`, which holds them one after another."""
    views, start = {}, 0
    for name, shape in spec:
        stop = start + prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


def size_of(spec: Spec) -> int:
    """Return the number of elements that the arrays of `spec` have together."""
    return sum(prod(shape) for _, shape in spec)


def fill(spec: Spec, flat: Array, arrays: Mapping[str, Array]) -> None:
    """Write the arrays of `spec` into `flat`, rounding where the dtypes differ."""
    for name, view in split(spec, flat).items():
        np.copyto(view, arrays[name], casting="same_kind")


class Weights:
    """One immutable block of weights.

    Attributes
    ----------
    spec : tuple of (name, shape)
    flat : read-only 1-D array, 64-byte aligned, all weights in the order of `spec`
    packed : whatever a module's `_install` made of `flat` for its kernels, or None
        It may keep `flat` alive if it has an attribute `memory` that does not. When `_install`
        gets a reused block, it finds here that `memory` of an earlier one (or the earlier object
        itself, if it has none): something to write into, not values.
    """

    __slots__ = ("_memory", "flat", "packed", "spec")

    def __init__(self, spec: Spec, memory: Array, packed: Any = None) -> None:
        self.spec = spec
        self.packed = packed
        self._memory = memory
        # Through a read-only buffer, so that nobody can set `writeable` again, and so that
        # `flat` itself is the base of all its views.
        self.flat: Array = np.asarray(memory.data.toreadonly())

    def views(self) -> dict[str, Array]:
        """Return {name: read-only view of `flat`}."""
        return split(self.spec, self.flat)


class WeightGrads(dict[str, Array]):
    """The gradients of a module's weights, {name: array}, all views of one array `flat`.

    Assigning to a name or to `flat` writes into that memory, so that they never disagree; names
    can be neither added nor removed.
    """

    def __init__(self, spec: Spec, flat: Array) -> None:
        if flat.shape != (size_of(spec),):
            raise ValueError(f"flat has shape {flat.shape}, expected ({size_of(spec)},)")
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

    def __reduce__(self) -> Any:
        return WeightGrads, (self.spec, self._flat)

    def copy(self) -> WeightGrads:
        """Return gradients with the same values in memory of their own."""
        return WeightGrads(self.spec, self._flat.copy())


def as_array(value: Any) -> Array:
    """Return an array or a torch tensor as an array; bfloat16 becomes float32, which is exact."""
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # a torch tensor, without its import
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    array: Array = np.asanyarray(value)  # what is masked stays so, to be refused
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


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
                wrong.append(f"{name} is a {type(value).__name__}, expected an array {shape}")
            elif _core.is_masked(value):
                wrong.append(f"{name} is a {type(value).__name__}, whose mask would be ignored")
            elif value.shape != shape:
                wrong.append(f"{name} has shape {value.shape}, expected {shape}")
    return wrong


def checked(
    spec: Spec, dtype: np.dtype[Any], mapping: Mapping[str, Any], cast: bool, whose: str
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
        found = arrays[name].dtype if name in arrays else dtype
        if found.kind != "f" or not found.isnative:
            wrong_dtype.append(f"{name} is {found}, expected {dtype}")
        elif not cast and not np.can_cast(found, dtype):
            wrong_dtype.append(f"{name} is {found}, which only cast=True narrows to {dtype}")
    if wrong or wrong_dtype:
        error = ValueError if wrong else TypeError
        raise error(f"weights of {whose}: {'; '.join(wrong + wrong_dtype)}")
    return {name: arrays[name] for name, _ in spec}


class _Spare(NamedTuple):
    """The memory of the block before last, free to be filled once `holder` is dead."""

    memory: Array
    packed: Any
    holder: weakref.ref[Array]  # of the `flat` that this memory last was


class Module:
    """What every module with weights shares: state dicts, updates, copies, pickles.

    A subclass calls `super().__init__` last, when everything that its own `_install` needs is in
    place, and gives `_config()`. Whoever computes takes `weights = self._weights` once and keeps
    that object until it has finished: pointers into a block are good no longer than the block.
    """

    dtype: np.dtype[Any]
    _weights: Weights

    def __init__(self, spec: Spec, dtype: np.dtype[Any], bound: float, seed: Any) -> None:
        """Draw all weights from U(-bound, bound): equal for equal seeds, whatever the dtype."""
        self.dtype = dtype
        self._spec = spec
        self._lock = threading.Lock()  # between writers; a reader needs none
        self._spare: _Spare | None = None
        given = self.__dict__.pop("_given", None)
        if callable(given):
            given = given(spec)
        if given is not None:
            given = checked(spec, dtype, given, False, type(self).__name__)
        memory = aligned_empty(size_of(spec), dtype)
        if given is None:
            memory[:] = np.random.default_rng(seed).uniform(-bound, bound, memory.size)
        else:
            fill(spec, memory, given)
        self._install(Weights(spec, memory))

    @classmethod
    def _rebuild(
        cls, config: dict[str, Any], state: Mapping[str, Any] | Callable[[Spec], Mapping[str, Any]]
    ) -> Self:
        """Return a module of this configuration and these weights, for copies and files.

        Nothing is drawn, and `state` is checked before the memory for weights is taken. It may be
        a function, which gets the names and shapes that are wanted before it reads any.
        """
        module = cls.__new__(cls)
        module.__dict__["_given"] = state
        module.__init__(**config)  # type: ignore[misc]
        return module

    def _config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a dict that JSON can hold."""
        raise NotImplementedError

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        """Return what is wrong with the names of a `_config()` read from a file, empty if nothing.

        The values are the constructor's to check. Those with a default may be absent, as from a
        file of an older version; one that is unknown here may mean anything, and is refused.
        """
        arguments = {**signature(cls).parameters}
        arguments.pop("seed", None)
        needed = [name for name, value in arguments.items() if value.default is value.empty]
        wrong = [f"missing: {name}" for name in needed if name not in config]
        return wrong + [f"unexpected: {name}" for name in config if name not in arguments]

    def _install(self, weights: Weights, threads: int = 1) -> None:
        """Make `weights` the module's own; from here on no one writes to them.

        A subclass that prepares weights for its kernels does so in an override, into
        `weights.packed`, and then calls this: if it raises, the module keeps its old block.
        """
        self._weights = weights

    @contextmanager
    def _update(self, copy: bool = True, threads: int = 1) -> Iterator[Array]:
        """Replace all weights: the `with` block gets them as one writable 1-D array.

        They are installed together when the block ends, and not at all if it raises. With
        `copy=False` the array holds no values yet and must be filled.
        """
        with self._lock:
            old, spare = self._weights, self._spare
            if spare is not None and spare.holder() is None:
                new = Weights(old.spec, spare.memory, spare.packed)
            else:
                new = Weights(old.spec, aligned_empty(old.flat.size, self.dtype))
            if copy:
                new._memory[:] = old.flat
            yield new._memory
            self._install(new, threads)
            packed = getattr(old.packed, "memory", old.packed)
            self._spare = _Spare(old._memory, packed, weakref.ref(old.flat))

    def state_dict(self) -> dict[str, Array]:
        """Return {name: read-only array}, with PyTorch's names and shapes.

        The arrays are the weights as they are now; later updates do not change them.
        """
        return self._weights.views()

    def load_state_dict(self, state: Mapping[str, Any], cast: bool = False) -> None:
        """Replace all weights by those in `state`, or none.

        Parameters
        ----------
        state : mapping of every name in `state_dict()`, and no other, to its values
            NumPy arrays or torch tensors. Narrower floats (float16, bfloat16, float32 into
            float64) are widened, which is exact.
        cast : bool
            Round wider floats to the module's dtype instead of refusing them.

        Raises
        ------
        ValueError
            Names or shapes differ; the message lists all that do.
        TypeError
            Not a mapping, or a dtype that would be rounded or is no float of this byte order.
        """
        arrays = checked(self._spec, self.dtype, state, cast, type(self).__name__)
        with self._update(copy=False) as flat:
            fill(self._spec, flat, arrays)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"{type(self).__name__}({arguments})"

    def __copy__(self) -> Self:
        """Return a module with the same weights now; later updates of one leave the other."""
        return self._rebuild(self._config(), self.state_dict())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> Any:
        return type(self)._rebuild, (self._config(), self.state_dict())
