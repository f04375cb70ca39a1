"""One step of a `Sequential`: its layer and what it takes, the shapes of both, and how it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from . import steps
from ._core import kind_of
from .embedding import Embedding
from .layers import GRU, LSTM, RNN
from .linear import Linear
from .module import Module
from .steps import FinalState, GlobalPool, LastStep, Mask, Merge, Reverse, Step, ZeroMasked
from .steps.step import Shape, features
from .weights import Array

INPUT = "input"  # the name of what comes in

MODULES: dict[str, type[Module]] = {
    cls.__name__: cls for cls in (GRU, LSTM, RNN, Linear, Embedding)
}

STEPS: dict[str, type[Step]] = {name: getattr(steps, name) for name in steps.__all__}


class Valid:
    """Which steps of a padded batch count.

    Attributes
    ----------
    mask : bools (B, T)
    repeats : whether a recurrent module's output at other steps is the last one, not 0
    """

    __slots__ = ("mask", "repeats")

    def __init__(self, mask: Array, repeats: bool) -> None:
        self.mask, self.repeats = mask, repeats


class Node:
    """A layer under its name, and the names of the steps that it takes."""

    __slots__ = ("layer", "name", "sources")

    def __init__(self, name: str, layer: Module | Step, sources: tuple[str, ...]) -> None:
        self.name, self.layer, self.sources = name, layer, sources


def nodes(layers: Iterable[Any]) -> Iterable[Node]:
    """What the constructor was given, checked; raises as `Sequential` says."""
    names = {INPUT}
    before = INPUT
    for number, entry in enumerate(layers):
        name, layer, *rest = entry if isinstance(entry, (tuple, list)) else (str(number), entry)
        if not isinstance(layer, (Module, Step)):
            raise TypeError(
                f"step {name!r} is {kind_of(layer)}, expected a module of cylstm or one "
                "of cylstm.steps"
            )
        if not isinstance(name, str) or not name or name in names:
            raise ValueError(f"step name {name!r} is taken or no name, expected one of its own")
        sources = (before,) if not rest or rest[0] is None else rest[0]
        sources = (sources,) if isinstance(sources, str) else tuple(sources)
        if unknown := [source for source in sources if source not in names]:
            raise ValueError(f"step {name!r} takes {', '.join(map(repr, unknown))}, not known yet")
        if len(sources) != 1 and not (sources and isinstance(layer, Merge)):
            raise ValueError(
                f"step {name!r}: {len(sources)} inputs, of which only steps.Merge takes several"
            )
        module = inner(layer)
        if is_recurrent(module) and not module.batch_first:
            raise ValueError(f"step {name!r} is not batch-first, expected batch_first=True")
        names.add(name)
        before = name
        yield Node(name, layer, sources)


def inner(layer: Any) -> Any:
    """The module that a FinalState holds, else the layer itself."""
    return layer.module if isinstance(layer, FinalState) else layer


def is_recurrent(layer: Any) -> bool:
    return isinstance(layer, Module) and hasattr(layer, "stream")


def mixes_time(layer: Module | Step) -> bool:
    """Whether a step's result is another one where padding follows a sequence."""
    if isinstance(layer, Step):
        return not (layer.by_time or isinstance(layer, (GlobalPool, Mask, ZeroMasked)))
    return False


def streams(layer: Module | Step) -> bool:
    """Whether a layer takes each time step when it comes."""
    module = inner(layer)
    if is_recurrent(module):
        return not (module.bidirectional or module.reverse)
    return not isinstance(layer, Step) or layer.by_time


def sizes(layer: Any, shapes: list[Shape]) -> Shape:
    """The shape of what a layer gives for those of its inputs."""
    if isinstance(layer, Merge) and not isinstance(layer, steps.MergeDirections):
        return layer.merged(shapes)
    shape = shapes[0]
    module = inner(layer)
    if is_recurrent(module):
        if len(shape) != 2:
            raise ValueError(f"its input is {shape_text(shape)}, expected (B, T, F)")
        width = (1 + module.bidirectional) * (getattr(module, "proj_size", 0) or module.hidden_size)
        found = features(shape, module.input_size, width)
        return found[1:] if isinstance(layer, FinalState) else found
    if isinstance(layer, Linear):
        return features(shape, layer.in_features, layer.out_features)
    if isinstance(layer, Module):  # an Embedding
        return (*shape, layer.embedding_dim)  # type: ignore[attr-defined]
    return layer.sizes(shape)


def run(
    layer: Module | Step, given: list[tuple[Array, Valid | None]], threads: int | None
) -> tuple[Array, Valid | None]:
    """What a layer makes of its inputs, and which steps of it are valid."""
    x, valid = given[0]
    if isinstance(layer, Merge):
        masks = [v for _, v in given if v is not None]
        return layer(*[x for x, _ in given]), masks[0] if masks else None
    if isinstance(layer, Mask):
        mask = layer.valid(x) if valid is None else layer.valid(x) & valid.mask
        return layer(x), Valid(mask, True)
    if is_recurrent(inner(layer)):
        y = _recurrent(inner(layer), x, valid, isinstance(layer, FinalState), threads)
        return y, None if isinstance(layer, FinalState) else valid
    if isinstance(layer, (LastStep, GlobalPool)):
        return layer(x, None if valid is None else valid.mask), None
    if isinstance(layer, ZeroMasked):
        return layer(x, None if valid is None else valid.mask), valid
    if isinstance(layer, Reverse):
        if valid is not None and not layer.keep_mask:
            valid = Valid(valid.mask[:, ::-1], valid.repeats)
        return layer(x), valid
    if valid is not None and mixes_time(layer):
        raise ValueError("masked steps come in, which it can't leave out")
    if isinstance(layer, Linear):
        return layer(x, threads=threads), valid
    return layer(x), valid  # type: ignore[operator]


def _recurrent(
    module: Any, x: Array, valid: Valid | None, final: bool, threads: int | None
) -> Array:
    """y (B, T, D*R), or the final state (B, D*R)."""
    steps_taken = {} if valid is None else {"mask": valid.mask, "hold_output": valid.repeats}
    y, states = module(x, threads=threads, **steps_taken)
    return _final(states, 1 + module.bidirectional) if final else y


def _final(states: Any, directions: int) -> Array:
    h_n: Array = states[0] if isinstance(states, tuple) else states
    return np.concatenate(h_n[-directions:], axis=-1)


def named(error: Exception, step: str) -> Exception:
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"step {step!r}: {error}")


def shape_text(shape: Shape | None) -> str:
    if shape is None:
        return "?"
    unknown = iter("TUVW")
    return f"(B, {', '.join(next(unknown) if size is None else str(size) for size in shape)})"


def layer_text(layer: Module | Step) -> str:
    module = inner(layer)
    if isinstance(module, Module):
        usual = {"batch_first": True, "dtype": module.dtype.name, "num_layers": 1, "bias": True}
        shown = [
            str(value) if type(value) is int else f"{key}={value}"
            for key, value in module._config().items()
            if value != usual.get(key, 0) and value is not None
        ]
        text = f"{type(module).__name__}({', '.join(shown)})"
    else:
        text = repr(module)
    return f"FinalState({text})" if isinstance(layer, FinalState) else text
