"""Optimisers: SGD, Adam and AdamW, with PyTorch's equations; clipping by the global norm.

A step is one pass over the one flat vector of each module, in the C core. To add an optimiser, give
a subclass of `Optimizer` its three methods, and the core its arithmetic where NumPy is too slow.

Equations: the documentation of torch.optim.SGD, Adam (Kingma and Ba, 2015, algorithm 1) and AdamW
(Loshchilov and Hutter, 2019, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from . import _checks, _core
from .weights import (
    Array,
    Module,
    Spec,
    WeightGrads,
    checked,
    fill,
    mismatches,
    split,
)


class Optimizer:
    """The part that all optimisers share.

    A subclass gives `_checked_hyper`, `_kinds` (what it remembers of each weight) and `_advance`
    (the arithmetic). One thread at a time may use an optimiser; others may go on calling its
    modules.
    """

    def __init__(self, modules: Module | Sequence[Module], hyper: dict[str, Any]) -> None:
        self._modules = [modules] if isinstance(modules, Module) else list(modules)
        for module in self._modules:
            if not isinstance(module, Module):
                raise TypeError(f"expected modules with weights, got a {type(module).__name__}")
        if not self._modules:
            raise ValueError("expected at least one module, got an empty list")
        if len({id(module) for module in self._modules}) < len(self._modules):
            raise ValueError("a module appears more than once")
        self._hyper = self._checked_hyper(hyper)
        self._step = 0
        self._state: list[list[Array]] = []  # per module, per kind; empty before the first step

    # What a subclass gives.

    @staticmethod
    def _checked_hyper(hyper: dict[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters in canonical types, or raise ValueError or TypeError."""
        raise NotImplementedError

    def _kinds(self) -> tuple[str, ...]:
        """Return PyTorch's names of the arrays kept for each weight."""
        raise NotImplementedError

    def _advance(
        self, old: Array, grad: Array, new: Array, state: list[Array], step: int, threads: int
    ) -> None:
        """Write a module's weights and state of step `step`; `old` and `grad` stay as they are."""
        raise NotImplementedError

    # What the user sees.

    @property
    def lr(self) -> float:
        """The learning rate, from the next step on."""
        return float(self._hyper["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._hyper = self._checked_hyper({**self._hyper, "lr": value})

    def step(self, grads: Any, threads: int | None = None) -> None:
        """Update the weights of all modules.

        Parameters
        ----------
        grads : {name: array}, or an object that has it as `weights`, or a list of one per module
            With exactly the names, shapes and dtype of the module's `state_dict()`. Gradients
            that are not finite are used as they are, as in PyTorch.
        threads : int or None for `get_num_threads()`; few weights take one

        Raises
        ------
        ValueError, TypeError
            Another number of gradients, names or shapes that differ, another dtype, None. The
            message lists all that is wrong, and nothing has changed.
        """
        flats = self._checked_grads(_as_list(grads))
        threads = _core._threads(threads)
        if not self._state:
            self._state = self._zeros()
        step = self._step + 1
        for module, grad, state in zip(self._modules, flats, self._state, strict=True):
            old = module._weights.flat
            advance = partial(self._advance, old, grad, state=state, step=step, threads=threads)
            module._commit(module._prepare(advance, threads))
        self._step = step

    def _checked_grads(self, grads: list[Any]) -> list[Array]:
        """Return the gradients of each module as one flat array, or raise."""
        if len(grads) != len(self._modules):
            raise ValueError(
                f"got gradients for {len(grads)} modules, expected {len(self._modules)}"
            )
        flats, wrong, wrong_type = [], [], []
        for k, (module, mapping) in enumerate(zip(self._modules, grads, strict=True)):
            if (
                type(mapping) is WeightGrads
                and mapping.flat.dtype == module.dtype
                and (mapping.spec is module._spec or mapping.spec == module._spec)
            ):
                flats.append(mapping.flat)
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

    def _zeros(self) -> list[list[Array]]:
        state = []
        for module in self._modules:
            arrays = [
                _core.aligned_empty(module._weights.flat.size, module.dtype) for _ in self._kinds()
            ]
            for array in arrays:
                array[:] = 0
            state.append(arrays)
        return state

    def _state_specs(self) -> list[list[Spec]]:
        """Return, per module and kind, the names in a state dict and their shapes."""
        return [
            [
                tuple((f"{k}.{name}.{kind}", shape) for name, shape in module._spec)
                for kind in self._kinds()
            ]
            for k, module in enumerate(self._modules)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a later `load_state_dict` needs to go on exactly, in copies.

        {"type": "Adam", "step": steps done, "hyper": {"lr": ..., ...}, "state": {name: array}},
        where a name is "<index of the module>.<weight>.<kind>", such as
        "0.weight_ih_l0.exp_avg", and the kinds are PyTorch's: momentum_buffer (SGD with
        momentum), exp_avg and exp_avg_sq (Adam, AdamW). Before the first step "state" is empty.
        """
        state: dict[str, Array] = {}
        if self._state:
            for specs, arrays in zip(self._state_specs(), self._state, strict=True):
                for spec, array in zip(specs, arrays, strict=True):
                    state.update(split(spec, array.copy()))
        return {
            "type": type(self).__name__,
            "step": self._step,
            "hyper": dict(self._hyper),
            "state": state,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict()` gave: step count, hyperparameters (`lr` too) and state.

        Raises ValueError or TypeError, and changes nothing, if `saved` is of another optimiser,
        incomplete, or does not fit the modules.
        """
        keys = {"type", "step", "hyper", "state"}
        if not isinstance(saved, Mapping) or set(saved) != keys:
            found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
            raise ValueError(f"expected an optimiser's state with {sorted(keys)}, got {found}")
        if saved["type"] != type(self).__name__:
            raise ValueError(f"expected the state of {type(self).__name__}, got {saved['type']!r}")
        step, hyper = saved["step"], saved["hyper"]
        step = _checks.integer("step", step, 0, 2**63 - 1)
        if not isinstance(hyper, Mapping) or set(hyper) != set(self._hyper):
            raise ValueError(f"expected the hyperparameters {sorted(self._hyper)}, got {hyper!r}")

        before = self._hyper
        self._hyper = self._checked_hyper(dict(hyper))  # which say what kinds there are
        try:
            state = self._loaded(saved["state"]) if step else self._nothing(saved["state"])
        except BaseException:
            self._hyper = before
            raise
        self._step, self._state = step, state

    def _loaded(self, saved: Any) -> list[list[Array]]:
        if not isinstance(saved, Mapping):
            raise TypeError(f"expected state arrays by name, got {type(saved).__name__}")
        specs = self._state_specs()
        everything = tuple(entry for own in specs for spec in own for entry in spec)
        if wrong := mismatches(everything, saved):
            raise ValueError(f"state of {type(self).__name__}: {'; '.join(wrong)}")
        state = self._zeros()
        for module, own, flats in zip(self._modules, specs, state, strict=True):
            for spec, flat in zip(own, flats, strict=True):
                part = {name: saved[name] for name, _ in spec}
                fill(spec, checked(spec, module.dtype, part, False, type(self).__name__), flat)
        return state

    def _nothing(self, saved: Any) -> list[list[Array]]:
        if not isinstance(saved, Mapping) or saved:
            raise ValueError("expected an empty state before the first step")
        return []


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD.

        g <- g + weight_decay p
        b <- momentum b + (1 - dampening) g           (b = g at the first step)
        p <- p - lr b                                 (nesterov: p - lr (g + momentum b))

    Parameters
    ----------
    modules : a module or a list of them
    lr : float
    momentum, dampening, weight_decay : float
    nesterov : bool
        Needs a momentum and no dampening.
    """

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        hyper = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(modules, hyper)

    @staticmethod
    def _checked_hyper(hyper: dict[str, Any]) -> dict[str, Any]:
        checked_hyper: dict[str, Any] = {
            "lr": _checks.number("lr", hyper["lr"]),
            "momentum": _checks.number("momentum", hyper["momentum"]),
            "dampening": _checks.number("dampening", hyper["dampening"], -inf),
            "weight_decay": _checks.number("weight_decay", hyper["weight_decay"]),
            "nesterov": _checks.flag("nesterov", hyper["nesterov"]),
        }
        if hyper["nesterov"] and (not checked_hyper["momentum"] or checked_hyper["dampening"]):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        return checked_hyper

    def _kinds(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self._hyper["momentum"] else ()

    def _advance(
        self, old: Array, grad: Array, new: Array, state: list[Array], step: int, threads: int
    ) -> None:
        buffer = state[0] if state else None
        _core.sgd_step(old, grad, new, buffer, threads, **self._hyper, step=step)


class Adam(Optimizer):
    """Adam, as torch.optim.Adam; `weight_decay` is an L2 penalty, added to the gradient.

        g <- g + weight_decay p
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr m' / (sqrt(v') + eps)      with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t)

    Parameters
    ----------
    modules : a module or a list of them
    lr, eps, weight_decay : float
    betas : (float, float)
    """

    _decoupled = False  # weight decay on the weights themselves, not through the gradient

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            modules, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        )

    @staticmethod
    def _checked_hyper(hyper: dict[str, Any]) -> dict[str, Any]:
        try:
            beta1, beta2 = hyper["betas"]
        except (TypeError, ValueError):
            raise ValueError(f"betas is {hyper['betas']!r}, expected two numbers") from None
        return {
            "lr": _checks.number("lr", hyper["lr"]),
            "betas": (
                _checks.number("betas[0]", beta1, below=1),
                _checks.number("betas[1]", beta2, below=1),
            ),
            "eps": _checks.number("eps", hyper["eps"]),
            "weight_decay": _checks.number("weight_decay", hyper["weight_decay"]),
        }

    def _kinds(self) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _advance(
        self, old: Array, grad: Array, new: Array, state: list[Array], step: int, threads: int
    ) -> None:
        mean, square = state
        _core.adam_step(
            old,
            grad,
            new,
            mean,
            square,
            threads,
            **self._hyper,
            decoupled=self._decoupled,
            step=step,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW.

    p <- (1 - lr weight_decay) p before Adam's step, in which the gradient has no penalty.
    """

    _decoupled = True

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(modules, lr, betas, eps, weight_decay)


def clip_grad_norm(grads: Any, max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale gradients in place so that their common Euclidean norm is at most `max_norm`.

    As torch.nn.utils.clip_grad_norm_: the factor is max_norm / (norm + 1e-6), used if below 1.

    Parameters
    ----------
    grads : as for `Optimizer.step`
        The gradients of weights only; those of x and of states stay as they are.
    max_norm : float, at least 0; inf only measures
    error_if_nonfinite : bool
        Raise ValueError, before anything changes, if the norm is nan or infinite. Otherwise such
        a norm is returned, and its factor (nan or 0) used, as in PyTorch.

    Returns
    -------
    norm : float
        Before scaling, over all arrays together, summed in float64; 0.0 where there are none.
    """
    max_norm = _checks.number("max_norm", max_norm, finite=False)
    arrays = []
    for mapping in _as_list(grads):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"expected a mapping of gradients, got {type(mapping).__name__}")
        arrays += [mapping.flat] if type(mapping) is WeightGrads else list(mapping.values())
    for array in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(f"expected gradients to be arrays of floats, got {found}")
        if not array.flags.writeable:
            raise ValueError("expected gradients that can be scaled in place, got a read-only one")
    norm = sqrt(sum(map(_sum_of_squares, arrays)))
    if error_if_nonfinite and not isfinite(norm):
        raise ValueError(f"the norm of the gradients is {norm}")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # nan too
        with np.errstate(all="ignore"):
            for array in arrays:
                np.multiply(array, factor, out=array)
    return norm


def _sum_of_squares(array: Array) -> float:
    # In float64, where no square of a float32 overflows. Blocks stay in the cache, and below the
    # length from which a BLAS would wake its threads for a dot product.
    flat, block = array.reshape(-1), 8192
    total = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, block):
            part = flat[start : start + block].astype(np.float64, copy=False)
            total += float(part.dot(part))
    return total


def _as_list(grads: Any) -> list[Any]:
    """Return a list of gradient mappings, taken out of the objects that have them as `weights`."""
    if hasattr(grads, "weights"):  # first: such an object may be a tuple
        return [grads.weights]
    several: Iterable[Any] = grads if isinstance(grads, (list, tuple)) else [grads]
    return [getattr(one, "weights", one) for one in several]
