"""The part that all optimisers share: modules, gradients, state, and steps that are whole.

A step prepares all that may fail. Then, with nothing of Python in between, it writes the new
weights of all modules to blocks of their own, what the optimiser keeps of them in its place, and
installs the blocks: it is whole or has not happened, whatever interrupts it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checks, _core
from ._core import kind_of
from .embedding import RowGrads
from .frozen import frozen_names, runs
from .module import Module
from .weights import Array, Spec, WeightGrads, checked, fill, mismatches, split

if TYPE_CHECKING:
    from typing_extensions import Self

Hyper = dict[str, Any]


class Progress:
    """How far an optimiser is. A step makes another, of the same `kept`.

    Attributes
    ----------
    step : steps done
    kept : per module an array (kinds, n), of every weight; none before the first step
    """

    __slots__ = ("kept", "step")

    def __init__(self, step: int, kept: _core.Kept) -> None:
        self.step, self.kept = step, kept


class Work:
    """What a step is to do, as `_core.step` takes it.

    Attributes
    ----------
    parts : tuples of weights, grads, where the new weights go, and what is kept: arrays (n,)
    tables : tuples of a table (count, width), some of its rows, and what is then written to them
    """

    __slots__ = ("parts", "tables")

    def __init__(self) -> None:
        self.parts: list[tuple[Array, ...]] = []
        self.tables: list[tuple[Array, Array, Array]] = []


class Optimizer:
    """The part that all optimisers share.

    A subclass gives `_checked_hyper`, `_kinds` (what it remembers of each weight) and `_rule` (the
    arithmetic). One thread at a time may use an optimiser; others may go on calling its
    modules.

    A copy or a pickle goes on by itself from the state of now. `copy.copy` moves the same modules;
    `copy.deepcopy` and pickle take the modules along, so copy an optimiser together with what else
    holds them: `copy.deepcopy((model, optimizer))`.

    Examples
    --------
    >>> issubclass(cylstm.optim.Adam, cylstm.optim.Optimizer)
    True
    """

    # What the user sets is in `__dict__`, what is ours is in slots.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_frozen",
        "_hyper_now",
        "_modules",
        "_progress",
        "_runs",
    )

    def __init__(
        self,
        modules: Module | Sequence[Module],
        hyper: Hyper,
        frozen: Collection[str] | Sequence[Collection[str]] = (),
    ) -> None:
        modules = [modules] if isinstance(modules, Module) else list(modules)
        for module in modules:
            if isinstance(module, Module):
                module._refuse_training()
            else:
                raise TypeError(f"expected modules with weights, got {kind_of(module)}")
        if not modules:
            raise ValueError("expected at least one module, got an empty list")
        if len({id(module) for module in modules}) < len(modules):
            raise ValueError("a module appears more than once")
        self._make(modules, frozen_names(modules, frozen), self._checked_hyper(hyper))

    def _make(self, modules: list[Module], frozen: list[frozenset[str]], hyper: Hyper) -> None:
        self._modules, self._frozen = modules, frozen
        self._runs = [runs(m._spec, names) for m, names in zip(modules, frozen, strict=True)]
        self._hyper_now = _core.Current(hyper)
        self._progress = _core.Current(Progress(0, _core.Kept(())))

    # What a subclass gives.

    @staticmethod
    def _checked_hyper(hyper: Hyper) -> Hyper:
        """Return the hyperparameters in canonical types, or raise ValueError or TypeError."""
        raise NotImplementedError

    @staticmethod
    def _kinds(hyper: Hyper) -> tuple[str, ...]:
        """Return PyTorch's names of the arrays kept for each weight."""
        raise NotImplementedError

    def _rule(self, hyper: Hyper, step: int) -> _core.Rule:
        """Return the equations, with what they take besides arrays."""
        raise NotImplementedError

    # What the user sees.

    def __repr__(self) -> str:
        names = ", ".join(type(module).__name__ for module in self._modules)
        hyper = ", ".join(f"{name}={value!r}" for name, value in self._hyper.items())
        return f"{type(self).__name__}([{names}], {hyper}, steps={self._progress.value.step})"

    @property
    def lr(self) -> float:
        """The learning rate, from the next step on."""
        return float(self._hyper["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        _core.replace([self._hyper_now], [self._checked_hyper({**self._hyper, "lr": value})])

    @property
    def frozen(self) -> list[frozenset[str]]:
        """The names of the weights that no step moves, per module."""
        return list(self._frozen)

    def step(self, grads: Any, *, threads: int | None = None) -> None:
        """Update the weights of all modules, or of none.

        An exception, from wherever it comes (a Ctrl-C, a signal handler), leaves weights and state
        either all as they were before the step or all as they are after it.

        Parameters
        ----------
        grads : {name: array}, or an object that has it as `weights`, or a list of one per module
            With exactly the names, shapes and dtype of the module's `state_dict()`. Gradients
            that are not finite are used as they are, as in PyTorch; those of frozen weights are
            not used.
        threads : int or None for `get_num_threads()`; few weights take one

        Raises
        ------
        ValueError, TypeError
            Another number of gradients, names or shapes that differ, another dtype, None. The
            message lists all that is wrong, and nothing has changed.
        RuntimeError
            A signal handler, or another thread, has replaced weights or state meanwhile. Theirs
            stay, and the step has not happened; but if a thread did so while weights were being
            moved, as the message then says, the state has taken the gradients in.

        Examples
        --------
        >>> linear = cylstm.Linear(3, 2)
        >>> adam = cylstm.optim.Adam(linear)
        >>> adam.step({"weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float32)})
        """
        flats = self._checked_grads(as_list(grads))
        threads = _core._threads(threads)
        progress, hyper = self._progress.value, self._hyper  # a load between is noticed
        weights = [module._weights for module in self._modules]
        kept = progress.kept
        if not kept.get():
            kinds = len(self._kinds(hyper))
            kept = _core.Kept(tuple(self._zeros(k, kinds) for k in range(len(weights))))
        work, blocks = Work(), []
        for k, (module, old, flat) in enumerate(zip(self._modules, weights, flats, strict=True)):
            new = module._empty()
            self._plan(work, k, old.flat, flat, kept.get()[k], new)
            blocks.append(module._block(new, threads))
        done = _core.step(
            self._rule(hyper, progress.step + 1),
            work.parts,
            work.tables,
            threads,
            kept,
            [self._progress, *(module._current for module in self._modules)],
            [Progress(progress.step + 1, kept), *blocks],
            [progress, *weights],
        )
        if not done:
            raise RuntimeError(
                "weights or state were replaced during the step, by another thread or a signal "
                "handler; the step has not happened"
            )
        try:
            for module, block, old in zip(self._modules, blocks, weights, strict=True):
                module._follow(block, old, threads)
        except MemoryError:  # the step is done, and the next call asks again
            pass

    def _plan(
        self, work: Work, k: int, weights: Array, grads: Array | RowGrads, kept: Array, new: Array
    ) -> None:
        """Add what moves the weights of module k, and what is kept of them; copy what stays."""
        moving, frozen = self._runs[k]
        if isinstance(grads, RowGrads):
            new[:] = weights
            if moving:
                self._plan_rows(work, grads, new, kept)
            return
        for run in moving:
            work.parts.append((weights[run], grads[run], new[run], *kept[:, run]))
        for run in frozen:
            new[run] = weights[run]

    @staticmethod
    def _plan_rows(work: Work, grads: RowGrads, new: Array, kept: Array) -> None:
        """Add the rows of a table: they move side by side, and then go to their places."""
        ((_, shape),) = grads.spec
        rows = np.array(grads.rows, np.intp)
        tables = [new.reshape(shape), *(array.reshape(shape) for array in kept)]
        old, *moved = (table[rows].reshape(-1) for table in tables)
        after = np.empty_like(old)
        work.parts.append((old, grads.flat, after, *moved))
        work.tables += zip(tables, [rows] * len(tables), [after, *moved], strict=True)

    @property
    def _hyper(self) -> Hyper:
        return self._hyper_now.value

    def _checked_grads(self, grads: list[Any]) -> list[Array | RowGrads]:
        """Return the gradients of each module as one contiguous array, or of its rows, or raise."""
        if len(grads) != len(self._modules):
            raise ValueError(
                f"got gradients for {len(grads)} modules, expected {len(self._modules)}"
            )
        flats: list[Array | RowGrads] = []
        wrong, wrong_type = [], []
        for k, (module, mapping) in enumerate(zip(self._modules, grads, strict=True)):
            if isinstance(mapping, (WeightGrads, RowGrads)) and (
                mapping.flat.dtype == module.dtype
                and (mapping.spec is module._spec or mapping.spec == module._spec)
            ):
                if isinstance(mapping, RowGrads):
                    flats.append(mapping)
                else:
                    flats.append(np.require(mapping.flat, None, ["C", "A"]))
                continue
            whose = f"gradients of module {k} ({type(module).__name__})"
            if not isinstance(mapping, Mapping):
                wrong_type.append(f"{whose}: expected a mapping, got {type(mapping).__name__}")
                continue
            wrong += [f"{whose}: {text}" for text in mismatches(module._spec, mapping)]
            arrays = [mapping[name] for name, _ in module._spec if name in mapping]
            wrong_type += [
                f"{whose}: {array.dtype}, expected {module.dtype}"
                for array in arrays
                if isinstance(array, np.ndarray) and array.dtype != module.dtype
            ][:1]
            if not wrong and not wrong_type:
                flats.append(np.concatenate([np.asarray(array).reshape(-1) for array in arrays]))
        if wrong or wrong_type:
            raise (ValueError if wrong else TypeError)("; ".join(wrong + wrong_type))
        return flats

    # State.

    def _empty(self, k: int, kinds: int) -> Array:
        """Return an array (kinds, n) for module k, not filled, whose rows start on cache lines."""
        dtype, n = self._modules[k].dtype, self._modules[k]._weights.flat.size
        stride = -(-n * dtype.itemsize // 64) * 64 // dtype.itemsize
        return _core.aligned_empty(kinds * stride, dtype).reshape(kinds, stride)[:, :n]

    def _zeros(self, k: int, kinds: int) -> Array:
        array = self._empty(k, kinds)
        array[:] = 0
        return array

    def _state_specs(self, hyper: Hyper) -> list[list[Spec]]:
        """Return, per module and kind, the names in a state dict and their shapes."""
        return [
            [
                tuple((f"{k}.{name}.{kind}", shape) for name, shape in module._spec)
                for kind in self._kinds(hyper)
            ]
            for k, module in enumerate(self._modules)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a later `load_state_dict` needs to go on exactly, in copies.

        {"type": "Adam", "step": steps done, "hyper": {"lr": ..., ...}, "state": {name: array}},
        where a name is "<index of the module>.<weight>.<kind>", such as
        "0.weight_ih_l0.exp_avg", and the kinds are PyTorch's: momentum_buffer (SGD with
        momentum), exp_avg and exp_avg_sq (Adam, AdamW). Before the first step "state" is empty.

        Examples
        --------
        >>> state = cylstm.optim.Adam(cylstm.Linear(3, 2)).state_dict()
        >>> state["type"], state["step"]
        ('Adam', 0)
        """
        while True:
            progress, hyper = self._progress.value, self._hyper
            kept = progress.kept.copy()
            if self._progress.value is progress:  # else a handler or a thread has changed them
                break
        state: dict[str, Array] = {}
        if kept:
            for specs, arrays in zip(self._state_specs(hyper), kept, strict=True):
                for spec, array in zip(specs, arrays, strict=True):
                    state.update(split(spec, array))
        return {
            "type": type(self).__name__,
            "step": progress.step,
            "hyper": dict(hyper),
            "state": state,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from a `state_dict()`: step count, hyperparameters (`lr` too) and state.

        Raises ValueError or TypeError, and changes nothing, if `saved` belongs to a different
        optimiser, is incomplete, or does not fit the modules.

        Examples
        --------
        >>> one, other = (cylstm.optim.Adam(cylstm.Linear(3, 2), lr=lr) for lr in (1e-3, 1e-4))
        >>> one.load_state_dict(other.state_dict())
        >>> one.lr
        0.0001
        """
        keys = {"type", "step", "hyper", "state"}
        if not isinstance(saved, Mapping) or set(saved) != keys:
            found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"expected an optimiser's state with {sorted(keys)}, got {found}")
        if saved["type"] != type(self).__name__:
            raise ValueError(f"expected the state of {type(self).__name__}, got {saved['type']!r}")
        step = _checks.integer("step", saved["step"], 0, 2**63 - 1)
        hyper = saved["hyper"]
        if not isinstance(hyper, Mapping) or set(hyper) != set(self._hyper):
            raise ValueError(f"expected the hyperparameters {sorted(self._hyper)}, got {hyper!r}")
        hyper = self._checked_hyper(dict(hyper))  # which say what kinds there are
        kept = self._loaded(hyper, saved["state"]) if step else self._nothing(saved["state"])
        _core.replace([self._hyper_now, self._progress], [hyper, Progress(step, _core.Kept(kept))])

    def _loaded(self, hyper: Hyper, saved: Any) -> tuple[Array, ...]:
        if not isinstance(saved, Mapping):
            raise TypeError(f"expected state arrays by name, got {type(saved).__name__}")
        specs = self._state_specs(hyper)
        everything = tuple(entry for own in specs for spec in own for entry in spec)
        if wrong := mismatches(everything, saved):
            raise ValueError(f"state of {type(self).__name__}: {'; '.join(wrong)}")
        kept = []
        for k, (module, own) in enumerate(zip(self._modules, specs, strict=True)):
            kept.append(self._empty(k, len(own)))
            for spec, flat in zip(own, kept[-1], strict=True):
                part = {name: saved[name] for name, _ in spec}
                fill(spec, checked(spec, module.dtype, part, False, type(self).__name__), flat)
        return tuple(kept)

    def _nothing(self, saved: Any) -> tuple[Array, ...]:
        if not isinstance(saved, Mapping) or saved:
            raise ValueError("expected an empty state before the first step")
        return ()

    # Copies.

    @classmethod
    def _from(
        cls, modules: list[Module], frozen: list[frozenset[str]], state: dict[str, Any]
    ) -> Self:
        """Return an optimiser of these modules that goes on from a `state_dict()`."""
        twin = cls.__new__(cls)
        twin._make(modules, frozen, cls._checked_hyper(state["hyper"]))
        twin.load_state_dict(state)
        return twin

    def __copy__(self) -> Self:
        twin = self._from(self._modules, self._frozen, self.state_dict())
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        from copy import deepcopy  # whose caller this is

        modules = deepcopy(self._modules, memo)
        twin = memo[id(self)] = self._from(modules, self._frozen, self.state_dict())
        vars(twin).update(deepcopy(vars(self), memo))
        return twin

    def __reduce__(self) -> Any:
        arguments = (self._modules, self._frozen, self.state_dict())
        return type(self)._from, arguments, vars(self) or None


def as_list(grads: Any) -> list[Any]:
    """Return a list of gradient mappings, taken out of the objects that have them as `weights`."""
    if hasattr(grads, "weights"):  # first: such an object may be a tuple
        return [grads.weights]
    several: Iterable[Any] = grads if isinstance(grads, (list, tuple)) else [grads]
    return [getattr(one, "weights", one) for one in several]
