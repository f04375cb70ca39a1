"""Keras: .h5 of Keras 1 to 3 with or without a configuration, .keras, .weights.h5, live layers.

A file becomes a list of `Layer` whatever its format: class, configuration, what it takes its input
from, and its arrays in Keras' order. `keras_config.py` reads configurations, `keras_recurrent.py`
says what the recurrent layers are, `keras_layers.py` makes whole models. Keras is batch-first, and
so is what comes of it.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ..tensors import parse_json
from . import keras_config, keras_layers
from .found import Contents
from .hdf5 import MAX_FREE, Dataset, Group
from .keras_recurrent import (
    CELLS,
    NOT_THERE,
    RECURRENT,
    Graph,
    Layer,
    Model,
    kind_of,
    recurrent,
    snake,
    stacked,
)
from .source import Source

MAX_CONFIG = 64 * 2**20  # bytes of a configuration
MAX_RATIO = 4  # of what the weights in a .keras archive unpack to, which Keras does not compress

# ------------------------------------------------------------------------------- reading


def read(
    source: Source,
    *,
    recurrent_activation: str | None = None,
    activation: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> Contents:
    """Return what a Keras file holds.

    recurrent_activation, activation : str
        Of all recurrent layers, for a file without a configuration: "sigmoid" or "hard_sigmoid"
        (Keras 1 and 2's), which must be said; and "tanh" by default.
    config : a configuration's file or what is in it, for a file that has none
        Also found beside the file: NAME.json, or NAME without "_weights" or ".weights".
    """
    model = _archive(source) if source.zip else _hdf5(Group.open(source.file), source, config)
    chosen = {"recurrent_activation": recurrent_activation, "activation": activation}
    return contents(model, {name: value for name, value in chosen.items() if value is not None})


def contents(model: Model, chosen: Mapping[str, str]) -> Contents:
    """The description of a model, whatever it was read from."""
    if model.exact and chosen:
        raise ValueError(
            f"its configuration says the activations, but {', '.join(chosen)} is given"
        )
    found = {
        layer.name: recurrent(layer, model, chosen)
        for layer in model.layers
        if layer.kind in RECURRENT
    }
    others = [x for x in model.layers if x.kind not in RECURRENT | NOT_THERE]
    layers = stacked(model, found)
    whole, problem = None, None
    around = ", ".join(f"{layer.name} ({layer.kind})" for layer in others)
    again = model.problem or any(layer.nodes > 1 for layer in model.layers)
    if model.exact and (others or again or len(layers) != 1 or layers[0].problem):
        built, wrong = keras_layers.plan(model, found)
        whole = built
        if wrong:
            problem = "; ".join(wrong)
            whole = keras_layers.refusal(wrong, [layer.path for layer in layers])
    form = f"{model.form}, version {model.version}"
    return Contents(form, tuple(layers), around, whole, problem)


def from_keras(live: Any) -> Any:
    """Return a live Keras layer or model as a module of cylstm, or as a `Sequential`.

    Raises ValueError for what cylstm does not have, with the names of it.

    >>> ours = from_keras(keras.Sequential([keras.layers.LSTM(32)]))  # doctest: +SKIP
    """
    from .found import build

    version = getattr(__import__("keras"), "__version__", "3")
    if hasattr(live, "layers") and not hasattr(live, "cell"):
        graph = keras_config.parsed(json.loads(live.to_json()))
        _attach_live(graph, live)
        model = _model("a live Keras model", version, graph)
    else:
        kind = type(live).__name__
        if type(live).__module__.partition(".")[0] not in keras_config.KERAS:
            kind = f"{type(live).__module__}.{kind}"
        layer = Layer(live.name, kind, live.get_config(), [], live.get_weights())
        model = Model("a live Keras layer", version, [layer], True, [live.name])
    held = contents(model, {})
    return held.whole() if held.whole is not None else build(held.find(None))


def _attach_live(graph: Graph, live: Any) -> None:
    held = {layer.name: layer for layer in live.layers}
    for layer in graph.layers:
        if layer.inside is not None:
            _attach_live(layer.inside, held[layer.name])
        elif layer.name in held:  # an InputLayer may not be
            layer.weights = held[layer.name].get_weights()


def _model(form: str, version: str, graph: Graph) -> Model:
    graph = keras_config.ordered(keras_config.flat(graph))
    return Model(form, version, graph.layers, True, graph.outputs, graph.problem)


def _archive(source: Source) -> Model:
    """A .keras file."""
    described = parse_json(source.member("config.json", MAX_CONFIG).decode())
    metadata = parse_json(source.member("metadata.json", MAX_CONFIG).decode())
    version = str(metadata.get("keras_version", "3"))
    most = max(MAX_RATIO * source.size, MAX_FREE)
    root = Group.open(io.BytesIO(source.member("model.weights.h5", most)))
    graph = keras_config.parsed(described)
    _attach(graph, root)
    return _model("Keras, .keras", version, graph)


def _hdf5(root: Group, source: Source, config: Any) -> Model:
    held = root.group("model_weights") or root
    version = root.text("keras_version") or held.text("keras_version")
    inside = root.text("model_config")
    described = None if inside is None else parse_json(inside)
    if described is None:
        described = _beside(source.path, config)
        form = "weights alone" if described is None else "weights, configuration beside it"
    elif config is not None:
        raise ValueError("config was given, but the file has one")
    else:
        form = "model"
    names = held.texts("layer_names")
    if names is None:  # Keras 3's layout
        if described is None:
            return _unnamed(root)
        graph = keras_config.parsed(described)
        _attach(graph, root)
        return _model(f"Keras 3 HDF5, {form}", version or "3", graph)
    if version is None and described is not None and described.get("keras_version"):
        version = str(described["keras_version"])
    version = version or "1"  # which did not write it at first; Keras reads such a file so
    stored = {name: _legacy(held, name) for name in names}
    if described is None:
        layers = [
            Layer(name, kind_of(name, weights, keys), {}, [], weights, keys)
            for name, (weights, keys) in stored.items()
        ]
        for before, layer in zip(layers, layers[1:]):
            layer.sources = [before.name]
        return Model(f"Keras HDF5, {form}", version, layers, False)
    graph = keras_config.parsed(described)
    _attach_legacy(graph, stored)
    return _model(f"Keras HDF5, {form}", version, graph)


def _legacy(held: Group, name: str) -> tuple[list[Dataset], list[str]]:
    group = held.group(name)
    keys = (group.texts("weight_names") or []) if group else []
    assert group is not None or not keys
    return [group.dataset(key) for key in keys] if group else [], keys


def _attach_legacy(graph: Graph, stored: Mapping[str, tuple[list[Dataset], list[str]]]) -> None:
    """Give each layer its arrays; those of a model in a model stand together, by name alone."""
    for layer in graph.layers:
        weights, keys = stored.get(layer.name, ((), ()))
        if layer.inside is None:
            layer.weights, layer.names = weights, keys
            continue
        names = {part.name for part in layer.inside.layers}
        below: dict[str, tuple[list[Dataset], list[str]]] = {}
        for weight, key in zip(weights, keys):
            inner = next((part for part in _parts(key, layer.name) if part in names), None)
            if inner is None:
                raise ValueError(f"{key} is of no layer of {layer.name}")
            held = below.setdefault(inner, ([], []))
            held[0].append(weight)
            held[1].append(key)
        _attach_legacy(layer.inside, below)


def _parts(key: str, outer: str) -> list[str]:
    """A weight's name in parts, after that of the model that it is in, where it begins so."""
    parts = key.split("/")
    return parts[1:] if parts[0] == outer else parts


def _beside(path: str, config: Any) -> dict[str, Any] | None:
    """A configuration given, or found beside a file of weights."""
    if isinstance(config, Mapping):
        return dict(config)
    if config is not None:
        return _json_file(os.fsdecode(config))
    stem = os.path.splitext(path)[0]
    for name in (stem, re.sub(r"[._-]?weights$", "", stem)):
        if os.path.isfile(f"{name}.json"):
            found = _json_file(f"{name}.json")
            if isinstance(found.get("config"), (dict, list)) and "class_name" in found:
                return found
    return None


def _json_file(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        text = file.read(MAX_CONFIG + 1)
    if len(text) > MAX_CONFIG:
        raise ValueError(f"{path} has more than {MAX_CONFIG} bytes")
    found = parse_json(text.decode())
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no configuration")
    return found


# ------------------------------------------------------------------------------- Keras 3's weights


def _attach(graph: Graph, root: Group) -> None:
    """Give each layer the arrays that Keras 3 keeps under the name of its class and a count."""
    top = root.group("layers") or root.group("_layer_checkpoint_dependencies") or root
    counts: dict[str, int] = {}
    for layer in graph.layers:
        name = snake(layer.kind)
        count = counts[name] = counts.get(name, -1) + 1
        if group := top.group(f"{name}_{count}" if count else name):
            if layer.inside is not None:
                _attach(layer.inside, group)
            else:
                layer.weights = _variables(group, layer.kind)


def _variables(group: Group, kind: str) -> list[Dataset]:
    inner = {
        "Bidirectional": ("forward_layer/cell", "backward_layer/cell"),
        "TimeDistributed": ("layer",),
    }
    below = inner.get(kind, ("cell",) if kind in {*CELLS, "RNN"} else ("",))
    found = []
    for path in below:
        held = group.group(f"{path}/vars" if path else "vars")
        found += [held.dataset(name) for name in held.names()] if held else []
    return found


def _unnamed(root: Group) -> Model:
    """Keras 3's weights alone: recurrent layers are told by the shapes of their arrays."""
    layers = []
    for path, group in root.walk():
        where, _, last = path.rpartition("/")
        if last != "cell" or (held := group.group("vars")) is None:
            continue
        weights: list[Any] = [held.dataset(name) for name in held.names()]
        where, _, direction = where.rpartition("/") if where.endswith("_layer") else (where, "", "")
        if direction == "backward_layer":
            continue
        if direction == "forward_layer":
            other = root.group(f"{where}/backward_layer/cell/vars")
            weights += [other.dataset(name) for name in other.names()] if other else []
        kind = kind_of(where, weights, [])
        if kind in RECURRENT:
            layers.append(Layer(where, kind, {}, [], weights))
    return Model("Keras 3 HDF5, weights alone", "3", layers, False)
