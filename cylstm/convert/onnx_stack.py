"""Whether an ONNX graph is no more than a stack of recurrent layers, and then which one.

The nodes between and around the layers may put axes in another order, join the two directions,
cut the initial states apart and join the final ones: all that a stack here does by itself. To
know, each value's axes are followed by name from where it was made:

    T, B    steps, sequences         D, H    directions, units, as the operator has them
    F       features: D and H joined, or H where there is one direction
    L       layers times directions, of states
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..weights import Array
from .found import Recurrent
from .onnx_file import Graph, Origin, attributes, is_standard
from .onnx_recurrent import Operator, is_recurrent

if TYPE_CHECKING:
    import onnx

Axes = tuple[Any, ...]


class Value(NamedTuple):
    """A value: what made it, and what its axes are now."""

    origin: Origin
    axes: Axes
    start: int = 0  # of a slice along the first axis, of initial states
    stop: int | None = None


class _Other(Exception):
    """The graph is something else."""


def find_stack(graph: Graph) -> Recurrent | None:
    """Return the stack that a graph is, as one layer of several; None if it is something else."""
    nodes = [node for node in graph.body if is_recurrent(node)]
    if not nodes or any(is_recurrent(n) for g, n in graph.nodes() if g is not graph):
        return None
    try:
        operators = [Operator(graph, node) for node in nodes]
    except ValueError:
        return None
    try:
        return _Stack(graph, operators).layer()
    except _Other:
        return None


class _Stack:
    def __init__(self, graph: Graph, operators: list[Operator]) -> None:
        self.graph = graph
        self.of_node = {id(operator.node): operator for operator in operators}
        self.layers: list[Operator] = []
        self.batch_first = False
        self._order(operators)

    def layer(self) -> Recurrent:
        first = self.layers[0]
        for k, operator in enumerate(self.layers):
            if operator.kind() != first.kind():
                raise _Other
            if k and operator.input_size != operator.directions * operator.hidden_size:
                raise _Other
        self._check_lengths()
        for role in ("initial_h", "initial_c"):
            self._check_states(role)
        for output in self.graph.proto.output:
            self._check_output(output.name)
        options = {k: v for k, v in first.layer.options.items() if k != "batch_first"}
        return replace(
            first.layer,
            path=" + ".join(operator.path for operator in self.layers),
            num_layers=len(self.layers),
            bias=any(operator.layer.bias for operator in self.layers),
            options=options | ({"batch_first": True} if self.batch_first else {}),
            read=self._weights,
        )

    def _weights(self) -> dict[str, Array]:
        """Of all layers; zeros for the biases of those that have none, if others have some."""
        weights: dict[str, Array] = {}
        for k, operator in enumerate(self.layers):
            for name, array in operator.layer.read().items():
                weights[name.replace("_l0", f"_l{k}")] = array
        first = self.layers[0]
        if any(operator.layer.bias for operator in self.layers):
            for name in [n for n in weights if n.startswith("weight_ih_l")]:
                for bias in ("bias_ih", "bias_hh"):
                    zeros = np.zeros(len(weights[name]), first.dtype)
                    weights.setdefault(name.replace("weight_ih", bias), zeros)
        return weights

    # --- what goes in

    def _order(self, layers: list[Operator]) -> None:
        """Put the layers in the order of the stack, by what each one reads."""
        above: dict[int | None, Operator] = {}
        for layer in layers:
            value = self.follow(layer.sources["X"])
            wanted = ("T", "B", "F") if layer.layout == 0 else ("B", "T", "F")
            node = value.origin.node
            if node is None:
                if value.axes[-1:] != (2,) or len(value.axes) != 3 or value.stop is not None:
                    raise _Other
                self.batch_first = value.axes[wanted.index("T")] == 1
            elif value.origin.output or value.axes != wanted:
                raise _Other
            if above.setdefault(None if node is None else id(node), layer) is not layer:
                raise _Other
        key: int | None = None
        while key in above:
            self.layers.append(above.pop(key))
            key = id(self.layers[-1].node)
        if above:
            raise _Other

    def _check_lengths(self) -> None:
        names = {layer.sources.get("sequence_lens") for layer in self.layers}
        (name, *others) = names
        if others or (name is not None and self.follow(name).origin.node is not None):
            raise _Other

    def _check_states(self, role: str) -> None:
        """Zeros for all layers, or the input's rows in order."""
        names = [layer.sources.get(role) for layer in self.layers]
        zeros = [name is None or self._is_zero(name) for name in names]
        if all(zeros):
            return
        if any(zeros):
            raise _Other
        D = self.layers[0].directions
        values = [self.follow(name) for name in names if name]
        if len({value.origin.name for value in values}) > 1 or values[0].origin.node is not None:
            raise _Other
        if len(values) == 1:
            if values[0].stop is None or (values[0].start, values[0].stop) == (0, D):
                return
            raise _Other
        for k, value in enumerate(values):
            if value.axes != (0, 1, 2) or (value.start, value.stop) != (k * D, (k + 1) * D):
                raise _Other

    def _is_zero(self, name: str) -> bool:
        """Whether a value is zeros, of whatever shape."""
        while True:
            constant = self.graph.constant(name)
            if constant is not None:
                return not np.any(constant)
            node = self.graph.origin(name).node
            if node is None or not is_standard(node):
                return False
            if node.op_type == "ConstantOfShape":
                value = attributes(node).get("value")
                return value is None or not np.any(self.graph.file.tensor(value))
            if node.op_type not in ("Expand", "Identity", "Cast", "Unsqueeze", "Reshape", "Slice"):
                return False
            name = node.input[0]

    # --- what comes out

    def _check_output(self, name: str) -> None:
        value = self.follow(name, joined=True)
        node, index = value.origin.node, value.origin.output
        if node is None:
            raise _Other
        if node.op_type == "Concat" and is_standard(node):  # of the final states
            parts = [self.follow(part) for part in node.input]
            wanted = [id(layer.node) for layer in self.layers]
            indices = {part.origin.output for part in parts}
            if (
                attributes(node).get("axis", 1) != 0
                or [id(part.origin.node) for part in parts] != wanted
                or len(indices) != 1
                or 0 in indices
                or any(part.axes != ("D", "B", "H") for part in parts)
            ):
                raise _Other
        elif index == 0:
            if node is not self.layers[-1].node:
                raise _Other
        elif len(self.layers) > 1:
            raise _Other

    # --- one value

    def follow(self, name: str, joined: bool = False) -> Value:
        """Return what a value is, through what only moves its axes.

        `joined`: a Concat is an origin too, whose axes are those of states.
        """
        nodes: list[onnx.NodeProto] = []
        origin = self.graph.origin(name)
        while origin.node is not None and _moves(origin.node, origin.output):
            nodes.append(origin.node)
            origin = self.graph.origin(origin.node.input[0])
        value = Value(origin, self._axes_of(origin, joined))
        for node in reversed(nodes):
            value = self._move(value, node)
        return value

    def _axes_of(self, origin: Origin, joined: bool) -> Axes:
        node = origin.node
        if node is None:
            if self.graph.constant(origin.name) is not None:
                raise _Other
            for info in self.graph.proto.input:
                if info.name == origin.name:
                    shape = info.type.tensor_type.shape
                    known = info.type.tensor_type.HasField("shape")
                    # else as a recurrent node takes it, if nothing but the order changes
                    return tuple(range(len(shape.dim) if known else 3))
            raise _Other
        layer = self.of_node.get(id(node))
        if layer is not None:
            if origin.output == 0:
                return ("T", "D", "B", "H") if layer.layout == 0 else ("B", "T", "D", "H")
            return ("D", "B", "H") if layer.layout == 0 else ("B", "D", "H")
        if joined and node.op_type == "Concat":
            return ("L", "B", "H")
        raise _Other

    def _move(self, value: Value, node: onnx.NodeProto) -> Value:
        axes, D = value.axes, 0
        if value.origin.node is not None and id(value.origin.node) in self.of_node:
            D = self.of_node[id(value.origin.node)].directions
        kind, given = node.op_type, attributes(node)
        if kind == "Transpose":
            order = given.get("perm", list(range(len(axes)))[::-1])
            if sorted(order) != list(range(len(axes))):
                raise _Other
            return value._replace(axes=tuple(axes[k] for k in order))
        if kind == "Squeeze":
            dropped = [k % len(axes) for k in self._integers(node, given, "axes", 1)]
            if [axes[k] for k in dropped] != ["D"] or D != 1:
                raise _Other
            return value._replace(axes=_join(axes, "T" in axes))
        if kind == "Reshape":
            # (., ., D, H) to (., ., D H)
            shape = self._integers(node, given, "shape", 1)
            H = self.layers_of(value).hidden_size
            if (
                len(axes) != 4
                or axes[2:] != ("D", "H")
                or shape[:2] != [0, 0]
                or shape[2:] not in ([-1], [D * H])
            ):
                raise _Other
            return value._replace(axes=(*axes[:2], "F"))
        if kind == "Slice":
            starts, ends, which, steps = (
                self._integers(node, given, name, k, default)
                for name, k, default in (
                    ("starts", 1, None),
                    ("ends", 2, None),
                    ("axes", 3, [0]),
                    ("steps", 4, [1]),
                )
            )
            if (
                value.origin.node is not None
                or axes != (0, 1, 2)
                or value.stop is not None
                or (which, steps) != ([0], [1])
                or len(starts) != 1
                or min(starts + ends) < 0
            ):
                raise _Other
            return value._replace(start=starts[0], stop=ends[0])
        return value  # Identity, Dropout

    def layers_of(self, value: Value) -> Operator:
        layer = self.of_node.get(id(value.origin.node))
        if layer is None:
            raise _Other
        return layer

    def _integers(
        self,
        node: onnx.NodeProto,
        given: dict[str, Any],
        name: str,
        index: int,
        default: list[int] | None = None,
    ) -> list[int]:
        """Integers that are an attribute in older versions and a constant input in newer ones."""
        if name in given:
            return list(given[name])
        if len(node.input) <= index or not node.input[index]:
            if default is None:
                raise _Other
            return default
        value = self.graph.constant(node.input[index])
        if value is None:
            raise _Other
        return [int(n) for n in np.ravel(value)]


def _moves(node: onnx.NodeProto, index: int) -> bool:
    kinds = ("Identity", "Dropout", "Transpose", "Squeeze", "Reshape", "Slice")
    # the third input of a Dropout turns it on
    trains = node.op_type == "Dropout" and len(node.input) > 2 and bool(node.input[2])
    return is_standard(node) and node.op_type in kinds and index == 0 and not trains


def _join(axes: Axes, sequence: bool) -> Axes:
    """Axes without the only direction."""
    left = tuple(axis for axis in axes if axis != "D")
    return tuple("F" if axis == "H" and sequence else axis for axis in left)
