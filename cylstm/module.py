"""`Module`: the base class of all that has weights, which replaces their block whole.

An update prepares another block and commits it with one assignment, so that neither an exception
nor a signal nor a fork can meet half of it.

Memory comes back by reference count: when nobody holds a block any more, its memory waits among
the module's spares for the next one. Two blocks take turns while a model trains, and a training
step allocates nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from . import _core
from .weights import NOTHING, Array, Spec, State, Stored, Weights, checked, fill, size_of

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

# NumPy imports its generators at first need. A child forked meanwhile could never import them.
_import = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_import.acquire, after_in_parent=_import.release, after_in_child=_import.release
    )


def generator(seed: Any) -> np.random.Generator:
    """Return NumPy's generator of random numbers for this seed."""
    with _import:
        return np.random.default_rng(seed)


def uniform(flat: Array, bound: float, seed: Any) -> None:
    """Draw from U(-bound, bound): equal for equal seeds, whatever the dtype."""
    flat[:] = generator(seed).uniform(-bound, bound, flat.size)


class Fixed(Generic[T]):
    """An argument of a module's constructor, which can be read but not set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: Module, owner: type | None = None) -> T:
        return module._arguments[self._name]

    def __set__(self, module: Module, value: T) -> None:
        name = type(module).__name__
        raise AttributeError(f"{self._name} of {name} is fixed: make another {name}")


def given(names: dict[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments from its `locals()`: all but the module and the seed."""
    return {name: value for name, value in names.items() if name not in ("self", "seed")}


COMPACT = ("weights", "arithmetic", "inputs")  # of a constructor, which `quantize` alone gives


def format_of(arguments: Mapping[str, Any]) -> str | None:
    """Return the name that `_core` has for the format of a module's weights, None for floats."""
    if "arithmetic" in arguments:
        return "bfloat16 products"
    return "int8, inputs of int16" if "inputs" in arguments else arguments.get("weights")


class Module:
    """What every module with weights shares: state dicts, updates, copies, pickles.

    A subclass gives `_configure` and `_draw`, has a `Fixed` for each argument, and its `__init__`
    hands those to `_make`. A computation takes `weights = self._weights` once and keeps that
    object until it has finished: pointers into a block are good no longer than the block. What
    the user sets on a module is in its `__dict__`, what is ours is in slots.
    """

    __slots__ = ("__dict__", "__weakref__", "_arguments", "_current", "_spares", "_spec", "_stored")

    dtype = Fixed[np.dtype[Any]]()

    _arguments: dict[str, Any]
    _current: _core.Current
    _spares: _core.Spares
    _spec: Spec
    _stored: Stored

    # What a subclass gives.

    # Whether it can be quantised: then `_configure` takes COMPACT as well, and of these `weights`
    # says how they are stored.
    _quantizes: ClassVar[bool] = False

    def _configure(self, *args: Any, **arguments: Any) -> tuple[dict[str, Any], Spec]:
        """Return the constructor's arguments, checked, and the names and shapes of the weights."""
        raise NotImplementedError

    def _draw(self, flat: Array, seed: Any) -> None:
        """Fill the first weights."""
        raise NotImplementedError

    def _pack(self, flat: Array, threads: int) -> Any:
        """Return what kernels read of `flat`."""
        return None

    def _follow(self, weights: Weights, before: Weights, threads: int) -> None:
        """Make of `weights` at once what was made of those `before`."""

    # Making a module, and another of it.

    def _make(
        self, arguments: dict[str, Any], *, seed: Any = None, state: State | None = None
    ) -> None:
        """Give a module its configuration and its first weights: those of `state`, or drawn.

        `state` is checked before the memory for weights is taken. It may be a function, which gets
        the names and shapes that are wanted before it reads any.
        """
        name = type(self).__name__
        if hasattr(self, "_current"):
            raise RuntimeError(f"__init__ of this {name} has run before: make another {name}")
        self._stored = NOTHING
        self._arguments, self._spec = self._configure(**arguments)
        if state is None:
            first = partial(self._draw, seed=seed)
        else:
            arrays = state(self._spec) if callable(state) else state
            arrays = checked(self._spec, self.dtype, arrays, False, name, self._stored)
            first = partial(fill, self._spec, arrays, stored=self._stored)
        self._spares = _core.Spares()
        self._current = _core.Current(self._prepare(first))

    @classmethod
    def _from(cls, config: dict[str, Any], state: State) -> Self:
        """Return a module of this configuration and these weights, for copies and files."""
        module = cls.__new__(cls)
        module._make(config, state=state)
        return module

    def _config(self) -> dict[str, Any]:
        """Return the constructor's arguments as a dict that JSON can hold."""
        return {**self._arguments, "dtype": self.dtype.name}

    @property
    def _format(self) -> str | None:
        """How weights of fewer bits are stored, or None where they are of the module's dtype."""
        return self._arguments.get("weights")

    def _refuse_training(self) -> None:
        """Raise ValueError where weights are quantised."""
        if self._format is not None:
            raise ValueError(
                f"this {type(self).__name__} has weights of {self._format}, for inference only: "
                "rounded weights have no gradients; train the original and quantize it again"
            )

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        """Return what is wrong with the names of a `_config()` read from a file, empty if nothing.

        The values are the constructor's to check. Those with a default may be absent, as from a
        file of an older version; one that is unknown here may mean anything, and is refused.
        """
        arguments = {**signature(cls).parameters}
        arguments.pop("seed", None)
        needed = [name for name, value in arguments.items() if value.default is value.empty]
        known = {*arguments, *COMPACT} if cls._quantizes else {*arguments}
        wrong = [f"missing: {name}" for name in needed if name not in config]
        return wrong + [f"unexpected: {name}" for name in config if name not in known]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"{type(self).__name__}({arguments})"

    def __copy__(self) -> Self:
        """Return a module with the same weights now; later updates of one leave the other."""
        twin = self._from(self._config(), self.state_dict())
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy  # whose caller this is

        twin = memo[id(self)] = self._from(self._config(), self.state_dict())
        vars(twin).update(deepcopy(vars(self), memo))
        return twin

    def __reduce__(self) -> Any:
        return type(self)._from, (self._config(), self.state_dict()), vars(self) or None

    # Weights and their replacement.

    @property
    def _weights(self) -> Weights:
        """The block of now."""
        return self._current.value

    def _prepare(self, fill: Callable[[Array], None], threads: int = 1) -> Weights:
        """Return a new block, which `fill` has written and `_commit` may install.

        It may fail, at any point, and changes nothing.
        """
        flat = self._empty()
        fill(flat)
        weights = self._block(flat, threads)
        if hasattr(self, "_current"):
            self._follow(weights, self._weights, threads)
        return weights

    def _empty(self) -> Array:
        """Return memory for a block."""
        size = size_of(self._spec, self.dtype, self._stored)
        return _core.aligned_empty(size, self.dtype, self._spares)

    def _block(self, flat: Array, threads: int = 1) -> Weights:
        """Return the block in `flat`, which nobody writes any more once it is installed."""
        flat.flags.writeable = False
        return Weights(self._spec, flat, self._pack(flat, threads), self._stored)

    def _commit(self, weights: Weights) -> None:
        """Install a block that `_prepare` gave: one assignment, which cannot fail.

        `_core.replace` does it to several modules at once, whatever else they hold in a `Current`.
        """
        _core.replace([self._current], [weights])

    def state_dict(self) -> dict[str, Array]:
        """Return {name: read-only array}, with PyTorch's names and shapes.

        The arrays are the weights as they are now; later updates do not change them. Of a module
        with weights of fewer bits they are as stored: int8 codes, with the scales of their rows
        under names of their own; bfloat16 as uint16, the upper halves of float32 numbers.

        Examples
        --------
        >>> {name: array.shape for name, array in cylstm.Linear(3, 2).state_dict().items()}
        {'weight': (2, 3), 'bias': (2,)}
        """
        return self._weights.views()

    def load_state_dict(self, state: Mapping[str, Any], *, cast: bool = False) -> None:
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
            Not a mapping, or a dtype that would be rounded, or is not a float of this byte order.

        Examples
        --------
        >>> one, other = cylstm.LSTM(8, 16), cylstm.LSTM(8, 16)
        >>> one.load_state_dict(other.state_dict())
        >>> np.array_equal(one.state_dict()["bias_hh_l0"], other.state_dict()["bias_hh_l0"])
        True
        """
        name = type(self).__name__
        arrays = checked(self._spec, self.dtype, state, cast, name, self._stored)
        self._commit(self._prepare(partial(fill, self._spec, arrays, stored=self._stored)))

    def release(self) -> None:
        """Return to the system all memory that is kept to be used again.

        That is: of the block of weights before this one, if a training step or a load has
        replaced it; of the last tape and gradients; and the weights as `backward` reads them.
        Nothing else changes, and each is taken again at need.

        Examples
        --------
        >>> lstm = cylstm.LSTM(8, 16)
        >>> tape = lstm.forward(np.ones((5, 3, 8), np.float32))
        >>> grads = tape.backward(dy=tape.y)
        >>> del tape
        >>> lstm.release()
        """
        weights = self._weights
        if weights.packed is not None:
            packed = weights.packed.without_backward()
            lean = Weights(weights.spec, weights.flat, packed, weights.stored)
            _core.replace([self._current], [lean], [weights])
        self._spares.release()
