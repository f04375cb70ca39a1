"""Optimisers: SGD, Adam and AdamW, with PyTorch's equations; clipping by the global norm.

To add an optimiser, give a subclass of `Optimizer` its three methods, and the core its arithmetic,
as a `Rule`.

Equations: the documentation of torch.optim.SGD, Adam (Kingma and Ba, 2015, algorithm 1) and AdamW
(Loshchilov and Hutter, 2019, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from . import _checks, _core
from .embedding import RowGrads
from .module import Module
from .optimizer import Hyper, Optimizer, as_list
from .weights import Array, WeightGrads

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm"]


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
    frozen : names of weights, or a list of names for each module
        Weights that no step moves, neither by decay nor by momentum; they keep their state too.

    Examples
    --------
    >>> linear = cylstm.Linear(3, 2)
    >>> sgd = cylstm.optim.SGD(linear, lr=0.1, momentum=0.9)
    >>> tape = linear.forward(np.ones((4, 3), np.float32))
    >>> sgd.step(tape.backward(tape.y))
    """

    __slots__ = ()

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        frozen: Collection[str] | Sequence[Collection[str]] = (),
    ) -> None:
        hyper = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(modules, hyper, frozen)

    @staticmethod
    def _checked_hyper(hyper: Hyper) -> Hyper:
        checked_hyper: Hyper = {
            "lr": _checks.number("lr", hyper["lr"]),
            "momentum": _checks.number("momentum", hyper["momentum"]),
            "dampening": _checks.number("dampening", hyper["dampening"], -inf),
            "weight_decay": _checks.number("weight_decay", hyper["weight_decay"]),
            "nesterov": _checks.flag("nesterov", hyper["nesterov"]),
        }
        if hyper["nesterov"] and (not checked_hyper["momentum"] or checked_hyper["dampening"]):
            raise ValueError("nesterov needs a momentum above 0 and a dampening of 0")
        return checked_hyper

    @staticmethod
    def _kinds(hyper: Hyper) -> tuple[str, ...]:
        return ("momentum_buffer",) if hyper["momentum"] else ()

    def _rule(self, hyper: Hyper, step: int) -> _core.Rule:
        return _core.SGDRule(**hyper, step=step)


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
    frozen : names of weights, or a list of names for each module
        Weights that no step moves, neither by decay nor by momentum; they keep their state too.

    Examples
    --------
    >>> lstm, head = cylstm.LSTM(8, 16), cylstm.Linear(16, 1)
    >>> adam = cylstm.optim.Adam([lstm, head], lr=1e-3)
    >>> tape = lstm.forward(np.ones((5, 3, 8), np.float32))
    >>> out = head.forward(tape.y)
    >>> loss, dy = cylstm.losses.mse(out.y, np.zeros((5, 3, 1), np.float32))
    >>> of_head = out.backward(dy)
    >>> adam.step([tape.backward(of_head.x), of_head])
    """

    __slots__ = ()

    _decoupled = False  # weight decay on the weights themselves, not through the gradient

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        frozen: Collection[str] | Sequence[Collection[str]] = (),
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(modules, hyper, frozen)

    @staticmethod
    def _checked_hyper(hyper: Hyper) -> Hyper:
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

    @staticmethod
    def _kinds(hyper: Hyper) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq"

    def _rule(self, hyper: Hyper, step: int) -> _core.Rule:
        return _core.AdamRule(**hyper, decoupled=self._decoupled, step=step)


class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW.

    p <- (1 - lr weight_decay) p before Adam's step, in which the gradient has no penalty.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 16)
    >>> cylstm.optim.AdamW(lstm, lr=1e-3, frozen=["bias_hh_l0"]).lr
    0.001
    """

    __slots__ = ()

    _decoupled = True

    def __init__(
        self,
        modules: Module | Sequence[Module],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        frozen: Collection[str] | Sequence[Collection[str]] = (),
    ) -> None:
        super().__init__(
            modules, lr, betas=betas, eps=eps, weight_decay=weight_decay, frozen=frozen
        )


def clip_grad_norm(grads: Any, max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    """Scale gradients in place so that their common Euclidean norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`: the factor is max_norm / (norm + 1e-6), used if below 1.
    All gradients are scaled or, if an exception comes in between, none.

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

    Examples
    --------
    >>> grads = {"weight": np.array([3.0, 4.0])}
    >>> cylstm.optim.clip_grad_norm(grads, 1.0)
    5.0
    >>> grads["weight"].round(3).tolist()
    [0.6, 0.8]
    """
    max_norm = _checks.number("max_norm", max_norm, finite=False)
    arrays = []
    for mapping in as_list(grads):
        if not isinstance(mapping, Mapping):
            raise TypeError(f"expected a mapping of gradients, got {type(mapping).__name__}")
        arrays += (
            [mapping.flat]
            if isinstance(mapping, (WeightGrads, RowGrads))
            else list(mapping.values())
        )
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
            _core.scale(arrays, factor)
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
