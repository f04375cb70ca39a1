"""For `cylstm.torch`: whether the weights are those of the call before, and a copy of them.

Needs torch; nothing but `cylstm.torch` imports this module.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .module import Module


class Weight(torch.nn.Parameter):  # type: ignore[misc]
    """A parameter that knows whether somebody may write to it unseen.

    Every change that autograd knows of increments `_version`: by optimisers, `copy_`, `no_grad`,
    `load_state_dict`. One through `.data` does not: when that has been taken once, only a
    comparison of the values tells.
    """

    taken = False

    @property
    def data(self) -> Tensor:
        self.taken = True
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        self.taken = True
        torch.Tensor.data.__set__(self, value)

    def detach(self) -> Any:
        """A tensor, as from any parameter; but torch.nn.Parameter(self) demands its own class."""
        result = torch.Tensor.detach(self)
        if sys._getframe(1).f_code is torch.nn.Parameter.__new__.__code__:
            result.__class__ = Weight
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._lend(super().__deepcopy__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._lend(super().__reduce_ex__, protocol)

    def _lend(self, method: Callable[[Any], Any], argument: Any) -> Any:
        """Call what takes `.data` and does not write to it."""
        taken = self.taken
        try:
            return method(argument)
        finally:
            self.taken = taken


def _tell(optimizer: Any, args: Any, kwargs: Any) -> None:
    """After a step of any optimiser: torch's fused ones change parameters and not `_version`."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            for weight in group["params"]:
                if type(weight) is Weight:
                    torch.autograd.graph.increment_version(weight)


register_optimizer_step_post_hook(_tell)


class Engine:
    """The cylstm module behind one of torch's, with a copy of its weights.

    They are compared only where `Weight` can't say that they are the same: a comparison sweeps
    the caches, and takes as long as some fifty steps of one sequence.
    """

    def __init__(self, module: Module, weights: Sequence[Tensor]) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._seen = _versions(weights)

    def known(self, weights: Sequence[Any]) -> Module | None:
        """Return the module if these weights are surely those of the call before, kind and all."""
        for weight, (before, version) in zip(weights, self._seen):
            if weight is not before or weight._version != version or weight.taken:
                return None
        return self._module

    def follow(self, weights: Sequence[Any]) -> Module:
        """Return the module with these weights, taken over if one differs in a bit."""
        with self._lock:
            seen = _versions(weights)  # before the values, which others may be changing
            arrays = [array_of(weight) for weight in weights]
            present = self._module.state_dict()
            if not all(_same(a, b) for a, b in zip(arrays, present.values())):
                self._module.load_state_dict(dict(zip(present, arrays)))
            self._seen = seen
        return self._module


def _versions(weights: Sequence[Any]) -> list[tuple[Any, int]]:
    """Weights with their versions; None where that would say nothing."""
    return [(w, w._version) if type(w) is Weight else (None, 0) for w in weights]


def array_of(tensor: Tensor) -> Any:
    """Its values, in its own memory."""
    return tensor.detach().numpy()


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape and dtype hold the same bits, NaN or not."""
    bits = f"u{a.itemsize}"
    return bool((a.view(bits) == b.view(bits)).all())
