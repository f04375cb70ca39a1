"""Configurations of Keras models: which layers there are, and which takes what from which.

A model may hold models, each with layers of its own. They are read as a tree, which is how files
keep their weights, and made one chain of layers by `flat`, named "encoder.lstm_1".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..tensors import shown
from .keras_recurrent import Graph, Layer

MODELS = frozenset({"Sequential", "Functional", "Model"})
KERAS = frozenset({"keras", "keras_core", "tf_keras", "tensorflow"})  # where its own classes are
OPERATIONS = frozenset(
    {"Add", "Multiply", "Maximum"}
)  # of tensors alone, as the layers of the name
MAX_DEPTH = 16  # models within models


def parsed(described: Mapping[str, Any], depth: int = 0) -> Graph:
    """The layers of a model's configuration, its outputs, and why it would be no chain."""
    kind, config = described.get("class_name"), described.get("config")
    entries = config.get("layers") if isinstance(config, dict) else config
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"its configuration is that of {shown(kind)}, expected a model of layers")
    if depth > MAX_DEPTH:
        raise ValueError(f"models within models, more than {MAX_DEPTH} deep")
    graph = Graph([])
    for number, entry in enumerate(entries):
        graph.layers.append(layer := _layer(entry, number, depth))
        if kind == "Sequential":
            layer.sources = [graph.layers[-2].name] if number else []
            continue
        try:
            layer.sources, layer.nodes = _sources(entry.get("inbound_nodes") or [])
        except (KeyError, TypeError, IndexError, AttributeError):
            graph.problem = f"{layer.name} is connected in a way that can't be read"
    if kind == "Sequential":
        graph.outputs = [graph.layers[-1].name] if graph.layers else []
        return graph
    try:
        (graph.inputs, _), (graph.outputs, indices) = (
            _ends(config, end) for end in ("input", "output")
        )
    except (KeyError, TypeError, IndexError, ValueError):
        graph.problem = "its inputs or outputs can't be read"
        return graph
    if len(indices) == 1 and indices != [0]:
        graph.problem = f"its output is a state of {graph.outputs[0]}"
    return graph


def _layer(entry: Mapping[str, Any], number: int, depth: int) -> Layer:
    inner = entry.get("config")
    config = inner if isinstance(inner, dict) else {}
    name = entry.get("name") or config.get("name") or f"layer_{number}"
    kind = _kind(entry)
    for within in ("layer", "backward_layer", "cell"):  # of Bidirectional, RNN and such
        if isinstance(part := config.get(within), dict) and _kind(part) != part.get("class_name"):
            kind = f"{kind} of {_kind(part)}"
    layer = Layer(str(name), kind, config)
    if kind in MODELS and (isinstance(inner, list) or "layers" in config):
        layer.inside = parsed(entry, depth + 1)
    return layer


def _kind(entry: Mapping[str, Any]) -> str:
    """A layer's class, told from one of the same name that is not of Keras' layers."""
    kind, registered = str(entry.get("class_name")), entry.get("registered_name")
    module = entry.get("module")
    if isinstance(registered, str) and ">" in registered and ">" not in kind:
        return registered
    if isinstance(module, str):
        parts = module.split(".")
        if parts[0] not in KERAS or ("ops" in parts and kind not in OPERATIONS):
            return f"{module}.{kind}"
    return kind


def _ends(config: Any, which: str) -> tuple[list[str], list[int]]:
    """The layers at an end of a model, and which output of each it is."""
    ends = config[f"{which}_layers"]
    ends = [ends] if ends and isinstance(ends[0], str) else ends
    return [str(end[0]) for end in ends], [int(end[2]) for end in ends]


def _sources(nodes: list[Any]) -> tuple[list[str], int]:
    """The layers that a functional layer takes, and how often it is called."""
    if not nodes:
        return [], 1
    node = nodes[0]
    if isinstance(node, dict):  # Keras 3: tensors somewhere in the arguments of a call
        found = list(_histories(node.get("args")))
        kwargs = node.get("kwargs") or {}
        said = [x for v in kwargs.values() for x in (v if isinstance(v, list) else [v])]
        if any(
            value is not None and value is not False for value in said
        ):  # training=True, a tensor, ...
            raise KeyError("arguments of a call")
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
    elif value is not None and value is not False:  # x * 2 has its 2 here
        raise KeyError("arguments of a call")


def flat(graph: Graph) -> Graph:
    """A model without models inside: their layers in their place, under their names."""
    layers: list[Layer] = []
    behind: dict[str, str] = {}  # what has no place of its own: what gives the same
    problem = graph.problem
    for layer in graph.layers:
        if layer.inside is None:
            layers.append(layer)
            continue
        inner = flat(layer.inside)
        problem = problem or inner.problem or _not_once(layer, inner)
        for part in _parts(layer, inner):
            if part.kind == "InputLayer" and part.sources:
                behind[part.name] = part.sources[0]
            else:
                layers.append(part)
        if inner.outputs:
            behind[layer.name] = f"{layer.name}.{inner.outputs[0]}"

    def found(name: str) -> str:
        for _ in behind:  # no more steps than there are names, whatever the file says
            name = behind.get(name, name)
        return name

    layers = [replace(x, sources=[found(source) for source in x.sources]) for x in layers]
    return Graph(layers, [found(name) for name in graph.outputs], graph.inputs, problem)


def ordered(graph: Graph) -> Graph:
    """The same with every layer behind those that it takes from, or ValueError if there is none."""
    by_name = {layer.name: layer for layer in graph.layers}
    if len(by_name) < len(graph.layers):
        raise ValueError("two of its layers have the same name")
    sources = {layer.name: layer.sources for layer in graph.layers}
    for name in (*(name for names in sources.values() for name in names), *graph.outputs):
        if name not in by_name:
            raise ValueError(
                f"its configuration speaks of a layer {shown(name)}, which is not there"
            )
    before: set[str] = set()
    for layer in graph.layers:
        if not before.issuperset(layer.sources):
            break
        before.add(layer.name)
    else:
        return graph  # as they stand in the file
    try:
        names = list(TopologicalSorter(sources).static_order())
    except CycleError:
        raise ValueError("its layers take from one another in a circle") from None
    return replace(graph, layers=[by_name[name] for name in names])


def _not_once(layer: Layer, inner: Graph) -> str | None:
    if layer.nodes > 1:
        return f"{layer.name} is used more than once"
    if len(inner.outputs) != 1:
        return f"{layer.name} has {len(inner.outputs)} outputs"
    return None


def _parts(layer: Layer, inner: Graph) -> Iterator[Layer]:
    """The layers of a model in a model, under its name; those that begin take what it takes."""
    for part in inner.layers:
        sources = [f"{layer.name}.{source}" for source in part.sources]
        if not sources:
            number = inner.inputs.index(part.name) if part.name in inner.inputs else 0
            sources = layer.sources[number : number + 1]
        yield replace(part, name=f"{layer.name}.{part.name}", sources=sources)
