"""Whole Keras models: a `Sequential` of their layers, or a list of what it has no step for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import steps
from .._core import with_article
from ..linear import Linear
from ..module import Module
from ..nodes import INPUT, MODULES
from ..sequential import Sequential
from ..steps import FinalState, Step
from ..weights import Array
from .found import Recurrent, build, no_options, unsupported
from .keras_recurrent import BACKWARDS, MERGED, NOT_THERE, RECURRENT, Layer, Model, function_name

Make = Callable[[np.dtype[Any]], Module | Step]  # reads the arrays, in this dtype


class Unsupported(Exception):
    """What a step would have to be, for people."""


class _Plan:
    """The steps so far. A layer is one step or a few; one that is not there has its source's."""

    def __init__(self, model: Model, found: Mapping[str, Recurrent]) -> None:
        self.model = model
        self.found = found
        self.steps: list[tuple[str, Make, list[str]]] = []
        self.given: dict[str, str] = {}  # the step that gives what a layer gives
        self.masked: dict[str, bool] = {INPUT: False}
        self.rank: dict[str, int | None] = {INPUT: None}  # axes with the batch

    def add(self, name: str, make: Make, sources: list[str], rank: int | None = None) -> str:
        self.steps.append((name, make, sources))
        self.masked[name] = self.masked[sources[0]]
        self.rank[name] = self.rank[sources[0]] if rank is None else rank
        return name

    def activation(self, layer: Layer, sources: list[str], value: Any) -> str:
        """A layer's activation as a step after it, or nothing for a linear one."""
        name = function_name(value, self.model.version)
        if name == "linear":
            return sources[0]
        if name not in steps.ACTIVATIONS:
            raise Unsupported(f"activation {name!r}")
        alpha = 0.2 if name == "leaky_relu" else None  # Keras' default for the name
        return self.add(
            f"{layer.name}.{name}", lambda dtype: steps.Activation(name, alpha), sources
        )


def plan(
    model: Model, found: Mapping[str, Recurrent]
) -> tuple[Callable[..., Sequential] | None, list[str]]:
    """What builds the whole model, or None; and what prevents it."""
    wrong = [model.problem] if model.problem else []
    if len(model.outputs) != 1:
        wrong.append(f"{len(model.outputs)} outputs")
    plan = _Plan(model, found)
    wanted = _ancestors(model)
    inputs = [x for x in model.layers if x.name in wanted and not x.sources]
    if len(inputs) > 1:
        wrong.append(f"{len(inputs)} inputs")
    if inputs:
        plan.rank[INPUT] = len(_input_shape(inputs[0]) or ()) or None
    for layer in model.layers:
        if layer.name not in wanted:
            continue
        sources = [plan.given[source] for source in layer.sources]
        try:
            plan.given[layer.name] = _planned(plan, layer, sources or [INPUT])
        except (Unsupported, ValueError, KeyError, TypeError, IndexError) as error:
            wrong.append(f"{layer.name} ({layer.kind}): {_words(error)}")
            plan.given[layer.name] = sources[0] if sources else INPUT
    if wrong or not plan.steps:
        return None, wrong

    def whole(**options: Any) -> Sequential:
        kinds = [weight.dtype for layer in model.layers for weight in layer.weights]
        usual = "float64" if np.dtype("float64") in kinds else "float32"
        dtype = np.dtype(options.pop("dtype", usual))
        no_options(options)
        layers = [(name, make(dtype), sources) for name, make, sources in plan.steps]
        return Sequential(layers, input_shape=_free(_input_shape(inputs[0]) if inputs else None))

    return whole, []


def refusal(wrong: list[str], paths: list[str]) -> Callable[..., Any]:
    """A `whole` for a model that is none here: it says why, and what can be had instead."""

    def whole(**options: Any) -> Any:
        raise ValueError(unsupported(wrong, paths))

    return whole


def _words(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _ancestors(model: Model) -> set[str]:
    """The layers that the outputs need."""
    by_name = {layer.name: layer for layer in model.layers}
    wanted: set[str] = set()
    open_ = [name for name in model.outputs if name in by_name]
    while open_:
        name = open_.pop()
        if name not in wanted:
            wanted.add(name)
            open_ += [source for source in by_name[name].sources if source in by_name]
    return wanted


def _input_shape(layer: Layer) -> list[Any] | None:
    """With its batch axis, or None where it is not said."""
    for name in ("batch_input_shape", "batch_shape"):
        if isinstance(layer.config.get(name), (list, tuple)):
            return list(layer.config[name])
    return None


def _free(shape: list[Any] | None) -> tuple[int | None, ...] | None:
    """Without the batch, and with any number of time steps."""
    if shape is None or len(shape) not in (2, 3):
        return None
    return (
        (None,)
        if len(shape) == 2 and shape[1] is None
        else (None, *shape[2:])
        if len(shape) == 3
        else None
    )


# ------------------------------------------------------------------------------- layers


def _planned(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    """Add a layer's steps, and return the name of the last one."""
    if layer.nodes > 1:
        raise Unsupported("used more than once")
    if layer.kind in NOT_THERE:
        return sources[0]
    if layer.kind in RECURRENT:
        return _recurrent(plan, layer, sources)
    if layer.kind == "TimeDistributed":
        inner = layer.config.get("layer") or {}
        layer = replace(layer, kind=str(inner.get("class_name")), config=inner.get("config") or {})
        if layer.kind in NOT_THERE:
            return sources[0]
        if layer.kind not in _BY_TIME:
            raise Unsupported(f"TimeDistributed of {with_article(layer.kind)}")
    if layer.kind not in _KINDS:
        raise Unsupported("no such step")
    if plan.masked[sources[0]] and layer.kind not in _MASKED:
        raise Unsupported("takes masked steps, which Keras does not leave out there")
    return _KINDS[layer.kind](plan, layer, sources)


def _array(layer: Layer, number: int, dtype: np.dtype[Any]) -> Array:
    found = layer.weights[number]
    array: Array = found.read() if hasattr(found, "read") else np.asarray(found)
    if array.dtype.kind != "f":
        raise ValueError(f"{layer.name} has an array of {array.dtype}, expected floats")
    return array.astype(dtype, casting="same_kind")


def _shapes(layer: Layer, *ranks: int) -> list[tuple[int, ...]]:
    """The shapes of a layer's arrays, of which there must be so many of these ranks."""
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if [len(shape) for shape in shapes] not in ([*ranks], [*ranks[:-1]]):
        raise Unsupported(f"arrays of shapes {shapes}")
    return shapes


def _channels_last(layer: Layer) -> None:
    if layer.config.get("data_format", "channels_last") not in (None, "channels_last"):
        raise Unsupported(f"data_format {layer.config['data_format']!r}")


def _recurrent(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    found = plan.found[layer.name]
    config = layer.config
    mode = config.get("merge_mode", "concat") if found.directions == 2 else "concat"
    if found.directions == 2:
        config = config["layer"]["config"]
    backwards = found.problem == BACKWARDS
    if found.problem in (BACKWARDS, MERGED):
        found = replace(found, problem=None)
    if obstacle := found.obstacle():
        raise Unsupported(obstacle)
    merges = {"concat": None, "sum": "add", "mul": "multiply", "ave": "average"}
    if mode not in merges:
        raise Unsupported(f"merge_mode {mode!r}")
    every = bool(config.get("return_sequences"))

    def make(dtype: np.dtype[Any]) -> Module | Step:
        module = build(found, dtype=dtype.name)
        return module if every else FinalState(module)

    name = plan.add(layer.name, make, sources, 3 if every else 2)
    plan.masked[name] = every and plan.masked[name]
    if plan.masked[name] and config.get("zero_output_for_mask"):
        name = plan.add(f"{name}.zero", lambda dtype: steps.ZeroMasked(), [name])
    if backwards:  # Keras hands the mask on in the order of time nevertheless
        name = plan.add(
            f"{layer.name}.reverse", lambda dtype: steps.Reverse(keep_mask=True), [name]
        )
    if how := merges[mode]:
        name = plan.add(f"{name}.merge", lambda dtype: steps.MergeDirections(how), [name])
    return name


def _embedding(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    ((count, width),) = _shapes(layer, 2, 0)
    name = sources[0]
    if layer.config.get("mask_zero"):
        name = plan.add(f"{layer.name}.mask", lambda dtype: steps.Mask(0), [name])
        plan.masked[name] = True

    def make(dtype: np.dtype[Any]) -> Module:
        config = {"num_embeddings": count, "embedding_dim": width, "dtype": dtype.name}
        return MODULES["Embedding"]._from(config, {"weight": _array(layer, 0, dtype)})

    return plan.add(layer.name, make, [name], 3)


def _dense(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    (inputs, outputs), *bias = _shapes(layer, 2, 1)

    def make(dtype: np.dtype[Any]) -> Module:
        state = {"weight": _array(layer, 0, dtype).T}
        if bias:
            state["bias"] = _array(layer, 1, dtype)
        config = {"in_features": inputs, "out_features": outputs, "bias": bool(bias)}
        return Linear._from({**config, "dtype": dtype.name}, state)

    name = plan.add(layer.name, make, sources)
    return plan.activation(layer, [name], layer.config.get("activation"))


def _conv(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    config = layer.config
    (size, depth, _), *bias = _shapes(layer, 3, 1)
    _channels_last(layer)
    padding = config.get("padding", "valid")
    if padding not in ("valid", "same", "causal"):
        raise Unsupported(f"padding {padding!r}")
    numbers = [_one(config.get(n, 1), n) for n in ("strides", "dilation_rate", "groups")]

    def make(dtype: np.dtype[Any]) -> Step:
        weight = _array(layer, 0, dtype).transpose(2, 1, 0)
        stride, dilation, groups = numbers
        return steps.Conv1d(
            weight, _array(layer, 1, dtype) if bias else None, stride, padding, dilation, groups
        )

    name = plan.add(layer.name, make, sources, 3)
    return plan.activation(layer, [name], config.get("activation"))


def _pool(kind: str) -> Callable[..., str]:
    def add(plan: _Plan, layer: Layer, sources: list[str]) -> str:
        _channels_last(layer)
        names = {"pool_length": "pool_size", "stride": "strides", "border_mode": "padding"}
        config = {names.get(name, name): value for name, value in layer.config.items()}  # Keras 1's
        size = _one(config.get("pool_size", 2), "pool_size")
        strides = config.get("strides")
        stride = size if strides is None else _one(strides, "strides")
        padding = config.get("padding", "valid")
        if padding not in ("valid", "same"):
            raise Unsupported(f"padding {padding!r}")
        return plan.add(
            layer.name, lambda dtype: steps.Pool(kind, size, stride, padding), sources, 3
        )

    return add


def _global_pool(kind: str) -> Callable[..., str]:
    def add(plan: _Plan, layer: Layer, sources: list[str]) -> str:
        _channels_last(layer)
        if layer.config.get("keepdims"):
            raise Unsupported("keepdims")
        if kind == "max" and plan.masked[sources[0]]:
            raise Unsupported("takes masked steps, which Keras does not leave out there")
        name = plan.add(layer.name, lambda dtype: steps.GlobalPool(kind), sources, 2)
        plan.masked[name] = False
        return name

    return add


def _norm(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    config = layer.config
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis
    rank = plan.rank[sources[0]]
    if axis != -1 and (rank is None or axis != rank - 1):
        raise Unsupported(f"axis {axis!r}")
    batch = layer.kind == "BatchNormalization"
    named = [n for n, key in (("weight", "scale"), ("bias", "center")) if config.get(key, True)]
    named += ["running_mean", "running_var"] if batch else []
    if [len(weight.shape) for weight in layer.weights] != [1] * len(named):
        raise Unsupported(f"{len(layer.weights)} arrays, expected {', '.join(named)}")
    if config.get("rms_scaling"):
        raise Unsupported("rms_scaling")
    if config.get("mode"):  # Keras 1's: statistics of what comes in
        raise Unsupported(f"mode {config['mode']!r}")

    def make(dtype: np.dtype[Any]) -> Step:
        arrays: dict[str, Any] = {n: _array(layer, k, dtype) for k, n in enumerate(named)}
        eps = float(config.get("epsilon", 1e-3))
        return steps.BatchNorm(**arrays, eps=eps) if batch else steps.LayerNorm(**arrays, eps=eps)

    return plan.add(layer.name, make, sources)


def _activation(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    return plan.activation(layer, sources, layer.config.get("activation"))


def _rectifier(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    config = layer.config
    alpha: float | None = None
    name = layer.kind.lower()
    if layer.kind == "ReLU":
        slope, threshold = config.get("negative_slope") or 0, config.get("threshold") or 0
        most = config.get("max_value")
        if slope or threshold or most not in (None, 6):
            raise Unsupported("max_value, negative_slope or threshold")
        name = "relu" if most is None else "relu6"
    elif layer.kind == "LeakyReLU":
        name, alpha = "leaky_relu", _number(config.get("alpha", config.get("negative_slope", 0.3)))
    elif layer.kind == "ELU":
        alpha = _number(config.get("alpha", 1.0))
    elif config.get("axis", -1) != -1:
        raise Unsupported(f"axis {config['axis']!r}")
    return plan.add(layer.name, lambda dtype: steps.Activation(name, alpha), sources)


def _number(value: Any) -> float:
    """A number, which Keras 2 may have saved as an array in a dict."""
    number: Any = value.get("value") if isinstance(value, dict) else value
    return float(number)


def _masking(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    value = float(layer.config.get("mask_value", 0.0))
    if not math.isfinite(value):
        raise Unsupported(f"mask_value {value}")
    name = plan.add(layer.name, lambda dtype: steps.Mask(value), sources)
    plan.masked[name] = True
    return name


def _merge(how: str) -> Callable[..., str]:
    def add(plan: _Plan, layer: Layer, sources: list[str]) -> str:
        if len(sources) < 2:  # keras.ops.average is of the same name
            raise Unsupported("of one input")
        axis = layer.config.get("axis", -1)
        rank = plan.rank[sources[0]]
        if how == "concatenate" and axis != -1 and (rank is None or axis != rank - 1):
            raise Unsupported(f"axis {axis!r}")
        if any(plan.masked[source] for source in sources):
            raise Unsupported("takes masked steps")
        return plan.add(layer.name, lambda dtype: steps.Merge(how), sources)

    return add


def _flatten(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    _channels_last(layer)
    if plan.rank[sources[0]] == 2:
        return sources[0]
    return plan.add(layer.name, lambda dtype: steps.Flatten(), sources, 2)


def _repeat(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    times = int(layer.config["n"])
    return plan.add(layer.name, lambda dtype: steps.Repeat(times), sources, 3)


def _permute(plan: _Plan, layer: Layer, sources: list[str]) -> str:
    dims = [*layer.config["dims"]]
    if dims == [1, 2]:
        return sources[0]
    if dims != [2, 1]:
        raise Unsupported(f"dims {dims}")
    return plan.add(layer.name, lambda dtype: steps.Transpose(), sources, 3)


def _one(value: Any, name: str) -> int:
    """A number that Keras may have as a list of one."""
    value = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    if not isinstance(value, int):
        raise Unsupported(f"{name} {value!r}")
    return value


_KINDS: dict[str, Callable[..., str]] = {
    "Embedding": _embedding,
    "Dense": _dense,
    "Conv1D": _conv,
    "MaxPooling1D": _pool("max"),
    "AveragePooling1D": _pool("average"),
    "GlobalMaxPooling1D": _global_pool("max"),
    "GlobalAveragePooling1D": _global_pool("average"),
    "BatchNormalization": _norm,
    "LayerNormalization": _norm,
    "Activation": _activation,
    "ReLU": _rectifier,
    "LeakyReLU": _rectifier,
    "ELU": _rectifier,
    "Softmax": _rectifier,
    "Masking": _masking,
    "Flatten": _flatten,
    "Permute": _permute,
    "RepeatVector": _repeat,
    "Concatenate": _merge("concatenate"),
    "Add": _merge("add"),
    "Multiply": _merge("multiply"),
    "Average": _merge("average"),
    "Maximum": _merge("maximum"),
}
_BY_TIME = frozenset(
    "Dense BatchNormalization LayerNormalization Activation ReLU LeakyReLU ELU Softmax".split()
)
_MASKED = _BY_TIME - {"Softmax"} | {"GlobalAveragePooling1D"}  # whose masks mean what ours do
