"""Keras' recurrent layers: what their configurations and arrays mean, whatever file they came from.

What is meant by a name depends on the version that wrote it:

- hard_sigmoid is clip(0.2 x + 0.5, 0, 1) before Keras 3 and relu6(x + 3) / 6 from there on;
- recurrent_activation is hard_sigmoid by default before Keras 2.3, and sigmoid from there on. A
  file without a configuration does not say which one a layer was built with: the caller must.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._core import with_article
from ..tensors import shown
from ..weights import Array
from . import gates
from .found import Recurrent
from .hdf5 import Dataset

CELLS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
RECURRENT = {*CELLS, *CUDNN, "RNN", "Bidirectional"}
MEANING = (  # the arguments of a recurrent layer that say what it computes
    "units activation recurrent_activation use_bias reset_after return_sequences return_state "
    "time_major zero_output_for_mask".split()
)
BACKWARDS = (  # Keras' y is in the order in which it was computed, ours in that of time
    "go_backwards with return_sequences: loads in a whole model, before a step that reverses time"
)
MERGED = "merge_mode other than concat: loads in a whole model, before a step that merges"
NOT_THERE = frozenset(  # at inference
    "Dropout SpatialDropout1D GaussianNoise GaussianDropout AlphaDropout ActivityRegularization "
    "Identity InputLayer".split()
)


@dataclass
class Layer:
    """One layer: `weights` are its arrays in Keras' order, `names` those that a legacy file has."""

    name: str
    kind: str
    config: dict[str, Any]
    sources: list[str] = field(default_factory=list)
    weights: Sequence[Any] = ()  # arrays, or datasets that have not been read
    names: Sequence[str] = ()
    nodes: int = 1  # how often it is called
    inside: Graph | None = None  # of a model in a model

    def arrays(self) -> list[Array]:
        return [w.read() if isinstance(w, Dataset) else np.asarray(w) for w in self.weights]


@dataclass
class Graph:
    """The layers of a configuration; `problem` is why they are no chain that could be run."""

    layers: list[Layer]
    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    problem: str | None = None


@dataclass
class Model:
    """What a file holds; `exact` is False where there is no configuration."""

    form: str
    version: str
    layers: list[Layer]
    exact: bool = True
    outputs: list[str] = field(default_factory=list)
    problem: str | None = None  # why it is no chain that could be run


def kind_of(name: str, weights: Sequence[Any], keys: Sequence[str]) -> str:
    """The class of a layer without a configuration, by its arrays; "" for one not recurrent."""
    shapes = [tuple(weight.shape) for weight in weights]
    if len(shapes) in (4, 6):
        half = len(shapes) // 2
        one = _cell_of(shapes[:half])
        if one and one == _cell_of(shapes[half:]):
            return "Bidirectional"
    for marks, kind in ((("_W_i", "_U_c"), "LSTM"), (("_W_z", "_U_h"), "GRU")):  # Keras 1
        if all(any(key.partition(":")[0].endswith(mark) for key in keys) for mark in marks):
            return kind
    return _cell_of(shapes) or _told_by_name(name)


def snake(name: str) -> str:
    """Keras' own spelling of a class in a path: max_pooling1d, time_distributed, lstm."""
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _told_by_name(name: str) -> str:
    plain = re.sub(r"_\d+$", "", name)
    known = {snake(kind): kind for kind in NOT_THERE} | {"input": "InputLayer"}
    return known.get(plain, "")


def _cell_of(shapes: Sequence[tuple[int, ...]]) -> str:
    """The class whose kernel, recurrent kernel and bias have these shapes, or ""."""
    if len(shapes) not in (2, 3) or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        return ""
    (_, wide), (hidden, width) = shapes[0], shapes[1]
    if wide != width or not hidden or width % hidden:
        return ""
    kind = {4: "LSTM", 3: "GRU", 1: "SimpleRNN"}.get(width // hidden, "")
    if len(shapes) == 2 or shapes[2] == (width,):
        return kind
    if shapes[2] == (2 * width,):
        return {"LSTM": "CuDNNLSTM", "GRU": "CuDNNGRU"}.get(kind, "")
    return kind if kind == "GRU" and shapes[2] == (2, width) else ""


def recurrent(layer: Layer, model: Model, chosen: Mapping[str, str]) -> Recurrent:
    """The description of a recurrent layer, with what keeps it from being loaded."""
    kind: Any = layer.kind
    config, directions = layer.config, 1
    problem = None
    if kind == "Bidirectional" and model.exact:
        inner = config.get("layer") or {}
        kind, config, directions = inner.get("class_name"), inner.get("config") or {}, 2
        problem = _two_directions(layer.config, config)
    elif kind == "Bidirectional":
        shapes = [tuple(w.shape) for w in layer.weights]
        kind, directions = _cell_of(shapes[: len(shapes) // 2]), 2
    if kind == "RNN":
        cell = config.get("cell") or {}
        name = str(cell.get("class_name") if isinstance(cell, dict) else cell)
        kind = name.removesuffix("Cell")
        config = {**(cell.get("config") or {}), **_without(config, "cell")} if kind in CELLS else {}
        if kind not in CELLS:
            problem = f"its cell is {with_article(name)}"
            kind = "LSTM"
    if kind in CUDNN:
        cell, cudnn = CUDNN[kind], True
    else:
        cell, cudnn = CELLS.get(str(kind), "LSTM"), False
        if kind not in CELLS:
            problem = f"its layer is {with_article(str(kind))}"
    options: dict[str, Any] = {"batch_first": True}
    if config.get("go_backwards") and directions == 1:
        options["reverse"] = True
    bias = len(layer.weights) % 3 == 0 if not _keras1(layer) else True
    inputs, hidden = _sizes(layer, cell, directions)
    if not hidden:
        problem = problem or "its weights are not in the file, or not those of such a layer"
    config = _renamed(config)
    if model.exact and not problem:
        problem = _not_ours(config, directions)
    if cell == "GRU":
        after = _reset_after(layer, config, cudnn, model)
        if after is None:
            problem = problem or "the file does not say reset_after"
        elif not after:
            options["reset_after"] = False
    try:
        options |= _activations(cell, config, cudnn, model, chosen)
    except ValueError as error:
        problem = problem or str(error)
    return Recurrent(
        path=layer.name,
        cell=cell,
        input_size=inputs,
        hidden_size=hidden,
        directions=directions,
        bias=bias,
        options=options,
        read=lambda: _weights(layer, cell, directions, cudnn),
        problem=problem,
    )


def _keras1(layer: Layer) -> bool:
    return len(layer.weights) in (12, 9) and any("_W_" in name for name in layer.names)


def _sizes(layer: Layer, cell: str, directions: int) -> tuple[int, int]:
    """Input and hidden size, 0 where the arrays are not those of such a layer."""
    shapes = [tuple(weight.shape) for weight in layer.weights]
    if _keras1(layer):
        kernel = next((s for s, n in zip(shapes, layer.names) if "_W_" in n), ())
        return (kernel[0], kernel[1]) if len(kernel) == 2 else (0, 0)
    each = len(shapes) // directions
    first = shapes[:each]
    if each not in (2, 3) or first * directions != shapes or list(map(len, first[:2])) != [2, 2]:
        return 0, 0
    (inputs, wide), (hidden, width) = first[0], first[1]
    biases = [(wide,), (2 * wide,), (2, wide)]
    if wide != width or wide != GATES[cell] * hidden or not {*first[2:]} <= {*biases}:
        return 0, 0
    return inputs, hidden


def _without(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != name}


def _renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keras 1's names of arguments as Keras 2 has them."""
    new = {"inner_activation": "recurrent_activation", "output_dim": "units"}
    return {new.get(name, name): value for name, value in config.items()}


def _two_directions(outer: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    backward = outer.get("backward_layer")
    if isinstance(backward, dict) and isinstance(backward.get("config"), dict):
        theirs = backward["config"]
        if any(config.get(name) != theirs.get(name) for name in MEANING):
            return "its backward layer has other arguments than its forward layer"
    if config.get("go_backwards"):
        return "go_backwards inside a Bidirectional"
    return None if outer.get("merge_mode", "concat") == "concat" else MERGED


def _not_ours(config: Mapping[str, Any], directions: int) -> str | None:
    """An argument that changes results and that a module alone has no counterpart of."""
    if config.get("time_major"):
        return "time_major"
    every, backwards = config.get("return_sequences"), config.get("go_backwards")
    return BACKWARDS if every and backwards and directions == 1 else None


def _reset_after(layer: Layer, config: Mapping[str, Any], cudnn: bool, model: Model) -> bool | None:
    """Whether a GRU resets after its product: what the bias' shape says goes first."""
    if cudnn:
        return True
    biases = [tuple(w.shape) for w in layer.weights if len(w.shape) != 2 or w.shape[0] == 2]
    if len(layer.weights) in (3, 6):
        last = tuple(layer.weights[2].shape)
        return len(last) == 2
    if biases and _keras1(layer):
        return False
    if "reset_after" in config:
        return bool(config["reset_after"])
    return False if model.exact and _before(model.version, 3) else None


def _before(version: str, major: int, minor: int = 0) -> bool:
    """Whether a version, "2.2.4-tf", is before another; an unknown one is not."""
    found = re.match(r"(\d+)\.(\d+)", version) or re.match(r"(\d+)()", version)
    return found is not None and (int(found[1]), int(found[2] or 0)) < (major, minor)


def function_name(value: Any, version: str) -> str:
    """What an activation's name means in this version of Keras, as cylstm names it."""
    if isinstance(value, dict):  # a registered function
        value = value.get("config") if value.get("class_name") == "function" else value
    if value is None:
        return "linear"
    if not isinstance(value, str):
        raise ValueError(f"its activation is {shown(value)}, expected one of Keras'")
    if value == "hard_sigmoid":
        return "hard_sigmoid_keras2" if _before(version, 3) else "hard_sigmoid_keras3"
    return {"swish": "silu", "gelu": "gelu", "leaky_relu": "leaky_relu"}.get(value, value)


# What Keras means by a name, where a cell's activation of this name has another parameter.
_IN_CELLS: dict[str, Any] = {"leaky_relu": ("leaky_relu", 0.2), "linear": ("affine", 1.0, 0.0)}


def _activations(
    cell: str, config: Mapping[str, Any], cudnn: bool, model: Model, chosen: Mapping[str, str]
) -> dict[str, Any]:
    """The option that says the activations, or nothing where they are the usual ones."""
    version = model.version
    if cudnn:
        gate, new = "sigmoid", "tanh"
    elif model.exact:
        new = function_name(config.get("activation", "tanh"), version)
        usual = "hard_sigmoid" if _before(version, 2, 3) else "sigmoid"
        gate = function_name(config.get("recurrent_activation", usual), version)
    else:
        gate, new = chosen.get("recurrent_activation", ""), chosen.get("activation", "tanh")
        if cell != "RNN" and gate not in ("sigmoid", "hard_sigmoid"):
            given = f"recurrent_activation is {gate!r}, but" if gate else "weights alone:"
            raise ValueError(
                f"{given} the file does not say which recurrent activation these weights were "
                "trained with, the default before Keras 2.3, recurrent_activation='hard_sigmoid', "
                "or the later one, recurrent_activation='sigmoid'; say it to load()"
            )
        gate, new = function_name(gate, version), function_name(new, version)
    if cell == "RNN":
        if new in ("tanh", "relu"):
            return {} if new == "tanh" else {"nonlinearity": new}
        return {"activations": (_IN_CELLS.get(new, new),)}
    if (gate, new) == ("sigmoid", "tanh"):
        return {}
    gate, new = (_IN_CELLS.get(name, name) for name in (gate, new))
    return {"activations": (gate, new, new) if cell == "LSTM" else (gate, new)}


def _weights(layer: Layer, cell: str, directions: int, cudnn: bool) -> dict[str, Array]:
    """PyTorch's names and order of gates. Keras' one bias is the input's, the other is zero."""
    arrays = layer.arrays()
    if _keras1(layer):
        arrays = _joined(dict(zip(layer.names, arrays)), cell)
    each = len(arrays) // directions
    found: dict[str, Array] = {}
    for direction in range(directions):
        kernel, recurrent, *bias = arrays[direction * each : (direction + 1) * each]
        end = "_l0_reverse" if direction else "_l0"
        if cudnn:  # every gate is a matrix of cuDNN's own, (H, I) or (H, H), in row-major order
            blocks = [np.split(a, GATES[cell], axis=1) for a in (kernel, recurrent)]
            w_ih, w_hh = (
                np.concatenate([b.reshape(b.shape[::-1]) for b in block]) for block in blocks
            )
        else:
            w_ih, w_hh = kernel.T, recurrent.T
        found[f"weight_ih{end}"] = gates.to_own(w_ih, cell, "keras")
        found[f"weight_hh{end}"] = gates.to_own(w_hh, cell, "keras")
        if bias:
            pair = bias[0].reshape(-1, GATES[cell] * recurrent.shape[0])
            zeros = np.zeros_like(pair[0])
            found[f"bias_ih{end}"] = gates.to_own(pair[0], cell, "keras")
            found[f"bias_hh{end}"] = gates.to_own(
                pair[1] if len(pair) > 1 else zeros, cell, "keras"
            )
    return found


def _joined(arrays: dict[str, Array], cell: str) -> list[Array]:
    """Keras 1's arrays, one for each gate or for all, as Keras 2's kernels and bias."""
    plain = {name.partition(":")[0]: array for name, array in arrays.items()}  # lstm_1_W_i
    by_end = {name[-3:-2] + name[-1:]: array for name, array in plain.items()}
    order = "ifco" if cell == "LSTM" else "zrh"
    try:
        return [np.concatenate([by_end[part + gate] for gate in order], axis=-1) for part in "WUb"]
    except KeyError as error:
        raise ValueError(f"its arrays are {', '.join(arrays)}, without {error}") from None


# ------------------------------------------------------------------------------- stacks


def stacked(model: Model, found: Mapping[str, Recurrent]) -> list[Recurrent]:
    """Recurrent layers, those that follow on one another directly as one module of many layers."""
    by_name = {layer.name: layer for layer in model.layers}
    takers: dict[str, list[str]] = {}
    for layer in model.layers:
        for source in layer.sources:
            takers.setdefault(source, []).append(layer.name)
    stacks: list[list[str]] = []
    for name in found:
        before = _feeds(by_name[name], by_name, takers)
        if (
            before in found
            and stacks
            and stacks[-1][-1] == before
            and _one_module(by_name[before], found[before], found[stacks[-1][0]], found[name])
        ):
            stacks[-1].append(name)
        else:
            stacks.append([name])
    return [_stack([found[name] for name in names]) for names in stacks]


def _feeds(layer: Layer, by_name: Mapping[str, Layer], takers: Mapping[str, list[str]]) -> str:
    """The layer whose output alone is this one's input, through what is not there at inference."""
    while len(layer.sources) == 1 and len(takers[layer.sources[0]]) == 1:
        layer = by_name[layer.sources[0]]
        if layer.kind not in NOT_THERE or layer.kind == "InputLayer":
            return layer.name
    return ""


def _one_module(before: Layer, last: Recurrent, first: Recurrent, new: Recurrent) -> bool:
    config = (
        before.config.get("layer", {}).get("config", {})
        if "layer" in before.config
        else before.config
    )
    whole = not before.config or (
        config.get("return_sequences")
        and not config.get("go_backwards")
        and before.config.get("merge_mode", "concat") == "concat"
    )
    same = all(
        getattr(first, name) == getattr(new, name)
        for name in ("cell", "hidden_size", "directions", "bias", "options", "problem")
    )
    return bool(whole) and same and new.input_size == last.hidden_size * last.directions


def _stack(layers: list[Recurrent]) -> Recurrent:
    if len(layers) == 1:
        return layers[0]
    first = layers[0]

    def read() -> dict[str, Array]:
        return {
            name.replace("_l0", f"_l{number}"): array
            for number, layer in enumerate(layers)
            for name, array in layer.read().items()
        }

    return Recurrent(
        path=f"{first.path}+{layers[-1].path}",
        cell=first.cell,
        input_size=first.input_size,
        hidden_size=first.hidden_size,
        num_layers=len(layers),
        directions=first.directions,
        bias=first.bias,
        options=first.options,
        read=read,
        problem=first.problem,
        parts=tuple(layers),
    )
