"""For PyTorch: `LSTM`, `GRU`, `RNN` for torch.nn's, and `accelerate` for existing models.

They are torch's own classes with another `forward`: constructor, parameters, state dicts, hooks,
packed sequences and autograd are as before, and `isinstance(m, torch.nn.LSTM)` holds. What cylstm
does not compute (other devices and dtypes, autocast, tracing, torch.compile, torch.func, forward
mode) is left to torch. Needs torch; `import cylstm` does not import this module.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import layers
from ._core import kind_of, with_article
from .module import Module
from .torch_weights import Engine, Weight, array_of

__all__ = ["GRU", "LSTM", "RNN", "Report", "accelerate", "report"]

_DTYPES = (torch.float32, torch.float64)
_MOST_THREADS = 256  # of a call of cylstm
# Whether the backward pass that runs may come again (torch says so under this name since 2.1).
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_log = logging.getLogger("cylstm")


# ------------------------------------------------------------------------------- one call


class _Run(torch.autograd.Function):  # type: ignore[misc]
    """One call whose tape is kept: it is what the backward pass needs."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Any], states: int, x: Tensor, *rest: Tensor | None
    ) -> tuple[Tensor, ...]:
        """After x come the states, then all weights, which `run` has already."""
        ctx.set_materialize_grads(False)
        ctx.tape = run(x, rest[:states])
        outputs = (ctx.tape.y, ctx.tape.h_n, ctx.tape.c_n)[: 1 + states]
        # copies, because torch may write into them and the tape may not change
        return tuple(torch.from_numpy(a.copy()) for a in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        back = _back_once if torch.is_grad_enabled() else _back
        return back(ctx, *gradients)


def _back(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[2:]
    if all(d is None for d in gradients):
        return (None,) * len(ctx.needs_input_grad)
    given = [None if d is None else d.numpy() for d in gradients]
    if (tape := ctx.tape) is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time, whose tape is gone: say "
            "retain_graph=True the first time"
        )
    if not _keeps_graph():
        ctx.tape = None  # as torch frees what it has saved; the graph itself may live on
    grads = tape.backward(*given, need_x=needed[0], threads=_threads())
    states = (grads.h_0, grads.c_0)[: len(given) - 1]
    arrays = (grads.x, *states, *grads.weights.values())
    found = [torch.from_numpy(a) if n else None for a, n in zip(arrays, needed)]
    return None, None, *found


_back_once = once_differentiable(_back)  # where a second derivative may be asked for


def _arrays(states: Any) -> Any:
    return (
        tuple(map(array_of, states))
        if isinstance(states, tuple)
        else (None if states is None else array_of(states))
    )


def _threads() -> int:
    return min(torch.get_num_threads(), _MOST_THREADS)


def _left_to_torch() -> bool:
    """Whether somebody wants to see torch's own operations, or has them changed."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


class _Recurrent(torch.nn.RNNBase):  # type: ignore[misc]
    """What all cells share; stands before torch's class among the bases."""

    _cell: ClassVar[Any]  # cylstm's
    _states: ClassVar[int] = 1  # of h, or of (h, c)
    _engine: Engine | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._adopt()

    def forward(self: Any, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
        """As torch's, with one argument more.

        lengths : integers (B,), in any order, each 0 to T, or None
            Steps past a sequence's length are not computed: its output there is 0, and its last
            state that of its last step. For what a packed sequence is for, without sorting.
        """
        packed = isinstance(input, PackedSequence)
        x = input.data if packed else input
        hx = tuple(hx) if isinstance(hx, list) else hx
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx or ())
        self._update_flat_weights()
        weights, left = self._flat_weights, _left_to_torch()
        module = None if left or self._engine is None else self._engine.known(weights)
        unknown = [x, *states, *(weights if module is None else weights[:1])]
        if left or not all(_computes(a, x.dtype) for a in unknown):
            if lengths is not None:
                raise ValueError(
                    "lengths were given in a call that is left to torch; expected plain tensors "
                    "on the CPU, all float32 or all float64, or a packed sequence"
                )
            return super().forward(input, hx)
        if not packed:
            return self._call(x, hx, lengths, module)
        if lengths is not None:
            raise ValueError("lengths were given with a packed sequence, which has its own")
        x, sizes = pad_packed_sequence(
            PackedSequence(x, input.batch_sizes), batch_first=self.batch_first
        )
        if hx is not None:
            hx = self.permute_hidden(hx, input.sorted_indices)
        y, hidden = self._call(x, hx, sizes, module)
        y = pack_padded_sequence(y, sizes, batch_first=self.batch_first).data
        return PackedSequence(y, *input[1:]), self.permute_hidden(hidden, input.unsorted_indices)

    def _update_flat_weights(self: Any) -> None:
        """As torch's, which looks up every weight as an attribute, twice."""
        named = self._parameters
        for name, weight in zip(self._flat_weights_names, self._flat_weights):
            if named.get(name) is not weight:
                super()._update_flat_weights()
                break

    def _call(self: Any, x: Tensor, hx: Any, lengths: Any, module: Any) -> Any:
        """Compute, with the padded or plain x, by the module of these weights if it is known."""
        weights = self._flat_weights
        if module is None:
            if self._engine is None:
                self._engine = Engine(self._start(), weights)
            module = self._engine.follow(weights)
        states = hx if isinstance(hx, tuple) else (hx,) * self._states
        threads = _threads()
        sizes = None if lengths is None else np.asarray(lengths)
        drops = self.training and self.dropout > 0 and self.num_layers > 1
        tensors = (x, *states, *weights)
        needed = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in tensors)
        if not needed and not drops:
            y, hidden = module(array_of(x), _arrays(hx), lengths=sizes, threads=threads)
            if isinstance(hidden, tuple):
                return torch.from_numpy(y), tuple(map(torch.from_numpy, hidden))
            return torch.from_numpy(y), torch.from_numpy(hidden)
        if module.dropout != self.dropout:
            module.dropout = self.dropout

        def run(x: Tensor, states: tuple[Tensor | None, ...]) -> Any:
            given = (
                None if states[0] is None else _arrays(states if self._states > 1 else states[0])
            )
            return module.forward(
                array_of(x), given, lengths=sizes, threads=threads, train=self.training
            )

        y, *hidden = _Run.apply(run, self._states, *tensors)
        return y, tuple(hidden) if self._states > 1 else hidden[0]

    def _start(self: Any) -> Module:
        """A cylstm module with the arguments and weights of this one."""
        config = {name: getattr(self, name) for name in signature(self._cell).parameters
                  if hasattr(self, name)}  # fmt: skip
        state = {n: array_of(w) for n, w in zip(self._flat_weights_names, self._flat_weights)}
        dtype = next(iter(state.values())).dtype.name
        return self._cell._from({**config, "dtype": dtype}, state)

    def _adopt(self: Any) -> None:
        """Have the parameters tell of their changes, where they can."""
        self._engine = None
        for weight in self._flat_weights:
            if type(weight) is torch.nn.Parameter and not weight.is_inference():
                weight.__class__ = Weight
            if type(weight) is Weight and weight.is_shared():
                weight.taken = True  # by processes whose changes are not counted here

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        """`to`, `double`, `share_memory`, ...: by way of `.data`, which torch does not keep."""
        taken = {id(w): getattr(w, "taken", False) for w in self._parameters.values()}
        result = super()._apply(fn, recurse)
        for weight in self._parameters.values():
            if type(weight) is Weight:
                weight.taken = taken.get(id(weight), False)
        self._adopt()
        return result

    def __getstate__(self) -> Any:
        state = super().__getstate__()
        state.pop("_engine", None)
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._adopt()


def _computes(tensor: Any, dtype: torch.dtype) -> bool:
    plain = type(tensor) in (Tensor, torch.nn.Parameter, Weight) and tensor.is_cpu
    return plain and tensor.dtype is dtype and dtype in _DTYPES


class _Seeded:
    """Dropout drawn from torch's generator, which `torch.manual_seed` sets."""

    def _draw_key(self) -> int:
        return int(torch.randint(2**63 - 1, ()))


class _LSTM(_Seeded, layers.LSTM):
    pass


class _GRU(_Seeded, layers.GRU):
    pass


class _RNN(_Seeded, layers.RNN):
    pass


class LSTM(_Recurrent, torch.nn.LSTM):  # type: ignore[misc]
    """torch.nn.LSTM, computed by cylstm; see the module's docstring.

    Arguments, parameters, inputs and results are those of torch.nn.LSTM, with one more argument
    of a call, `lengths`. Threads are as many as `torch.get_num_threads()` says. Dropout between
    layers follows torch's seed, with other masks than torch's. Differentiable once.

    A call takes over weights that changed since the last one. What writes to a parameter's memory
    past autograd (`p.detach().numpy()[...] = 0`, DLPack, `torch.distributed.all_reduce(p)`) goes
    unseen by both; `torch.autograd.graph.increment_version(p)` tells them.

    Examples
    --------
    >>> import torch
    >>> import cylstm.torch
    >>> lstm = cylstm.torch.LSTM(64, 128, num_layers=2)
    >>> y, (h_n, c_n) = lstm(torch.randn(50, 1, 64))
    >>> y.sum().backward()
    """

    _cell = _LSTM
    _states = 2


class GRU(_Recurrent, torch.nn.GRU):  # type: ignore[misc]
    """torch.nn.GRU, computed by cylstm; what is said of `LSTM` holds.

    Examples
    --------
    >>> import torch
    >>> import cylstm.torch
    >>> y, h_n = cylstm.torch.GRU(64, 128)(torch.randn(50, 1, 64))
    """

    _cell = _GRU


class RNN(_Recurrent, torch.nn.RNN):  # type: ignore[misc]
    """torch.nn.RNN, computed by cylstm; what is said of `LSTM` holds.

    Examples
    --------
    >>> import torch
    >>> import cylstm.torch
    >>> rnn = cylstm.torch.RNN(64, 128, nonlinearity="relu")
    >>> y, h_n = rnn(torch.randn(50, 1, 64))
    """

    _cell = _RNN


# ------------------------------------------------------------------------------- whole models

_CELLS: dict[type, type] = {torch.nn.LSTM: LSTM, torch.nn.GRU: GRU, torch.nn.RNN: RNN}
_OWN = frozenset(_CELLS.values())


class Report:
    """Where the recurrent layers of a model run: `str()` of it is a table.

    Attributes
    ----------
    replaced : {path of a layer in the model: the layer, as it prints}, those that cylstm computes
    left : {path: why torch computes it}
    """

    def __init__(self, replaced: dict[str, str], left: dict[str, str]) -> None:
        self.replaced = replaced
        self.left = left

    def __repr__(self) -> str:
        rows = [(name, "cylstm", what) for name, what in self.replaced.items()]
        rows += [(name, "torch", why) for name, why in self.left.items()]
        if not rows:
            return "no recurrent layer"
        width = max(len(name) for name, _, _ in rows)
        return "\n".join(f"{name:{width}}  {who:6}  {what}" for name, who, what in rows)


def report(model: torch.nn.Module) -> Report:
    """Say which recurrent layers of `model` cylstm computes, and why not the others."""
    replaced, left = {}, {}
    for name, module in model.named_modules():
        name = name or "(the model)"
        reason = _reason(module)
        if type(module) in _OWN and not reason:
            replaced[name] = repr(module)
        elif reason:
            left[name] = reason
        elif type(module) in _CELLS:
            left[name] = "not replaced yet: see cylstm.torch.accelerate"
    return Report(replaced, left)


def accelerate(model: torch.nn.Module, inplace: bool = False) -> Any:
    """Have cylstm compute every torch.nn.LSTM, GRU and RNN in a model; all else stays torch's.

    The layers change their class, not their identity: parameters are the same objects, an
    optimiser that holds them goes on, so do hooks, tied weights and state dicts.

    Parameters
    ----------
    model : torch.nn.Module
    inplace : bool
        Change `model` itself instead of a deep copy of it.

    Returns
    -------
    the model, or its copy; `report(model)` says what was replaced and why the rest was not. The
    same goes to the logger "cylstm" at level INFO.

    Warns
    -----
    UserWarning
        Nothing was replaced.

    Examples
    --------
    >>> import torch
    >>> import cylstm.torch
    >>> model = cylstm.torch.accelerate(torch.nn.ModuleDict({"lstm": torch.nn.LSTM(8, 16)}))
    >>> print(cylstm.torch.report(model))
    lstm  cylstm  LSTM(8, 16)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is {kind_of(model)}, expected a torch.nn.Module")
    if not inplace:
        model = copy.deepcopy(model)
    for module in list(model.modules()):
        if type(module) in _CELLS and not _reason(module):
            module.__class__ = _CELLS[type(module)]
            module._adopt()
    told = report(model)
    if not told.replaced:
        warnings.warn(f"nothing was replaced: {told}", stacklevel=2)
    _log.info("recurrent layers of %s:\n%s", type(model).__name__, told)
    return model


def _reason(module: Any) -> str:
    """Why torch computes a recurrent layer, or "" for one that cylstm can, and for other layers."""
    kind = getattr(module, "original_name", type(module).__name__)
    if not isinstance(module, torch.nn.RNNBase):
        recurrent = any(kind == cell.__name__ for cell in _CELLS)
        name = f"{type(module).__module__}.{type(module).__name__}"
        return with_article(name) if recurrent else ""
    if type(module) not in _OWN and type(module) not in _CELLS:
        return f"{kind} is a class of its own, which may compute something else"
    weights = module._flat_weights
    if not all(isinstance(w, Tensor) for w in weights):
        return "some of its weights are missing"
    for weight in weights:
        if not weight.is_cpu:
            return f"its weights are on {weight.device}, not on the CPU"
        if weight.dtype not in _DTYPES or weight.dtype is not weights[0].dtype:
            return f"its weights are {weight.dtype}, not all float32 or all float64"
    return ""
