"""Keras: .h5 of Keras 1 to 3 with or without a configuration, .keras, .weights.h5, live layers.

A file becomes a list of `Layer` whatever its format: class, configuration, what it takes its input
from, and its arrays in Keras' order. `keras_recurrent.py` says what the recurrent ones are,
`keras_layers.py` makes whole models. Keras is batch-first, and so is what comes of it.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..tensors import parse_json, shown
from . import keras_layers
from .found import Contents
from .hdf5 import MAX_FREE, Dataset, Group
from .keras_recurrent import (
    CELLS,
    MERGED,
    NOT_THERE,
    RECURRENT,
    TURNED,
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
    whole = None
    around = ", ".join(f"{layer.name} ({layer.kind})" for layer in others)
    if model.exact and (others or len(layers) != 1 or layers[0].problem):
        built, wrong = keras_layers.plan(model, found)
        whole = built
        if wrong:
            around += f"; not as a whole: {'; '.join(wrong)}"
            if len(layers) != 1 or layers[0].problem in (TURNED, MERGED):
                whole = keras_layers.refusal(wrong, [layer.path for layer in layers])
    return Contents(f"{model.form}, version {model.version}", tuple(layers), around, whole)


def from_keras(live: Any) -> Any:
    """Return a live Keras layer or model as a module of cylstm, or as a `Sequential`.

    Raises ValueError for what cylstm does not have, with the names of it.

    >>> ours = from_keras(keras.Sequential([keras.layers.LSTM(32)]))  # doctest: +SKIP
    """
    from .found import build

    version = getattr(__import__("keras"), "__version__", "3")
    if hasattr(live, "layers") and not hasattr(live, "cell"):
        described = json.loads(live.to_json())
        layers, outputs, problem = _parsed(described)
        for layer in layers:
            layer.weights = live.get_layer(layer.name).get_weights() if _held(live, layer) else ()
        model = Model("a live Keras model", version, layers, True, outputs, problem)
    else:
        layer = Layer(live.name, type(live).__name__, live.get_config(), [], live.get_weights())
        model = Model("a live Keras layer", version, [layer], True, [live.name])
    held = contents(model, {})
    return held.whole() if held.whole is not None else build(held.find(None))


def _held(live: Any, layer: Layer) -> bool:
    return any(one.name == layer.name for one in live.layers)


def _archive(source: Source) -> Model:
    """A .keras file."""
    described = parse_json(source.member("config.json", MAX_CONFIG).decode())
    metadata = parse_json(source.member("metadata.json", MAX_CONFIG).decode())
    version = str(metadata.get("keras_version", "3"))
    most = max(MAX_RATIO * source.size, MAX_FREE)
    root = Group.open(io.BytesIO(source.member("model.weights.h5", most)))
    layers, outputs, problem = _parsed(described)
    _attach(layers, root)
    return Model("Keras, .keras", version, layers, True, outputs, problem)


def _hdf5(root: Group, source: Source, config: Any) -> Model:
    version = root.text("keras_version") or "unknown"
    inside = root.text("model_config")
    described = None if inside is None else parse_json(inside)
    if described is None:
        described = _beside(source.path, config)
        form = "weights alone" if described is None else "weights, configuration beside it"
    elif config is not None:
        raise ValueError("config was given, but the file has one")
    else:
        form = "model"
    held = root.group("model_weights") or root
    names = held.texts("layer_names")
    if names is None:  # Keras 3's layout
        if described is None:
            return _unnamed(root)
        layers, outputs, problem = _parsed(described)
        _attach(layers, root)
        return Model(f"Keras 3 HDF5, {form}", version, layers, True, outputs, problem)
    stored = {name: _legacy(held, name) for name in names}
    if described is None:
        layers = [
            Layer(name, kind_of(name, weights, keys), {}, [], weights, keys)
            for name, (weights, keys) in stored.items()
        ]
        for before, layer in zip(layers, layers[1:]):
            layer.sources = [before.name]
        return Model(f"Keras HDF5, {form}", version, layers, False)
    layers, outputs, problem = _parsed(described)
    for layer in layers:
        layer.weights, layer.names = stored.get(layer.name, ((), ()))
    if described.get("keras_version") and version == "unknown":
        version = str(described["keras_version"])
    return Model(f"Keras HDF5, {form}", version, layers, True, outputs, problem)


def _legacy(held: Group, name: str) -> tuple[list[Dataset], list[str]]:
    group = held.group(name)
    keys = (group.texts("weight_names") or []) if group else []
    assert group is not None or not keys
    return [group.dataset(key) for key in keys] if group else [], keys


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


# ------------------------------------------------------------------------------- configurations


def _parsed(described: Mapping[str, Any]) -> tuple[list[Layer], list[str], str | None]:
    """The layers of a model's configuration, its outputs, and why it would be no chain."""
    kind, config = described.get("class_name"), described.get("config")
    entries = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"its configuration is that of {shown(kind)}, expected a model of layers")
    layers = []
    problem = None
    for number, entry in enumerate(entries):
        inner = entry.get("config")
        inner = inner if isinstance(inner, dict) else {}
        name = entry.get("name") or inner.get("name") or f"layer_{number}"
        layers.append(Layer(str(name), str(entry.get("class_name")), inner))
        if kind == "Sequential":
            layers[-1].sources = [layers[-2].name] if number else []
            continue
        try:
            layers[-1].sources, layers[-1].nodes = _sources(entry.get("inbound_nodes") or [])
        except (KeyError, TypeError, IndexError, AttributeError):
            problem = f"{name} is connected in a way that can't be read"
    if kind == "Sequential":
        return layers, [layers[-1].name] if layers else [], None
    try:
        ends = config["output_layers"]  # type: ignore[index]
        ends = [ends] if ends and isinstance(ends[0], str) else ends
        outputs = [str(end[0]) for end in ends]
    except (KeyError, TypeError, IndexError):
        outputs, problem = [], "its outputs can't be read"
    return layers, outputs, problem


def _sources(nodes: list[Any]) -> tuple[list[str], int]:
    """The layers that a functional layer takes, and how often it is called."""
    if not nodes:
        return [], 1
    node = nodes[0]
    if isinstance(node, dict):  # Keras 3: tensors somewhere in the arguments of a call
        found = list(_histories(node.get("args")))
        if any(True for _ in _histories(node.get("kwargs"))):
            raise KeyError("a tensor by keyword")
    else:
        found = [(str(entry[0]), int(entry[2])) for entry in node]
        if any(len(entry) > 3 and entry[3] for entry in node):
            raise KeyError("arguments of a call")
    if any(index for _, index in found):
        raise KeyError("another output than the first")
    return [name for name, _ in found], len(nodes)


def _histories(value: Any, depth: int = 0) -> Iterable[tuple[str, int]]:
    if depth > 8:
        raise KeyError("nested too deep")
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            name, _, index = value["config"]["keras_history"]
            yield str(name), int(index)
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _histories(item, depth + 1)


# ------------------------------------------------------------------------------- Keras 3's weights


def _attach(layers: list[Layer], root: Group) -> None:
    """Give each layer the arrays that Keras 3 keeps under the name of its class and a count."""
    top = root.group("layers") or root.group("_layer_checkpoint_dependencies") or root
    counts: dict[str, int] = {}
    for layer in layers:
        name = snake(layer.kind)
        count = counts[name] = counts.get(name, -1) + 1
        if group := top.group(f"{name}_{count}" if count else name):
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
