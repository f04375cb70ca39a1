"""Whole ONNX graphs: every recurrent node by our kernels, all else in NumPy.

A graph is planned once, when it is loaded: constants are folded, attributes bound, branches of
known conditions taken. What is left is a list of steps. A call fills one list of values, each at
the place that the plan gave it, and takes the steps one after another; it looks nothing up by
name and touches no protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._core import with_article
from ..module import Module
from ..weights import Array
from . import onnx_ops
from .onnx_file import File, Graph, attributes, evaluator, is_standard, subgraphs
from .onnx_makers import ABSENT
from .onnx_port import port_of
from .onnx_recurrent import Operator, as_operator, is_recurrent
from .onnx_steps import Step, Values, single, walk

if TYPE_CHECKING:
    import onnx
    from typing_extensions import Self

Operation = Callable[..., tuple[Array, ...]]


class OnnxModel:
    """A whole ONNX graph, run in NumPy with every recurrent layer on cylstm's kernels.

    `cylstm.load` returns one for a file that is more than a stack of recurrent layers::

        model = cylstm.load("vad.onnx")
        outputs = model(input=chunk, state=state, sr=16000)
        probability, state = outputs["output"], outputs["stateN"]

    Inputs and outputs have the names of the file. A state that streams from call to call is an
    input and an output, as the graph has it. One model may be called from many threads at once;
    it is not copied or pickled. `cylstm.quantize` makes one whose recurrent layers have weights of
    fewer bits.

    Attributes
    ----------
    inputs, outputs : tuple of Port
    layers : {path: module}, the recurrent layers in it
    """

    def __init__(self, file: File) -> None:
        plan = _Plan(file)
        self._name = file.name
        self.layers: dict[str, Module] = plan.layers
        self._operators = plan.operators
        self.inputs = tuple(
            port_of(i) for i in file.model.graph.input if i.name in file.graph.inputs
        )
        self.outputs = tuple(port_of(o) for o in file.model.graph.output)
        self._input_slots = [plan.define(file.graph, port.name) for port in self.inputs]
        plan.make(file.graph, [port.name for port in self.outputs])
        self._output_slots = [plan.slot(file.graph, port.name) for port in self.outputs]
        self._steps = plan.finished(self._output_slots)
        self._values = plan.values

    def __repr__(self) -> str:
        inputs, outputs = (
            ", ".join(p.name for p in ports) for ports in (self.inputs, self.outputs)
        )
        formats = "".join(f", weights: {name}" for name in [self._format] if name)
        return f"OnnxModel({self._name!r}, inputs: {inputs}, outputs: {outputs}{formats})"

    @property
    def _format(self) -> str | None:
        """How its recurrent layers store their weights, or None where all are floats."""
        return next((layer._format for layer in self.layers.values() if layer._format), None)

    def _with_modules(self, change: Callable[[Module], Module]) -> Self:
        """The same graph with other layers in it; an error says of which one it is."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, layers={}, _values=self._values.copy())
        for path, module in self.layers.items():
            try:
                other.layers[path] = changed = change(module)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{path}: {error}") from error
            place, bind = self._operators[path]
            other._values[place] = bind(changed)
        return other

    def __reduce__(self) -> Any:
        raise TypeError(f"an OnnxModel is neither copied nor pickled: load {self._name} again")

    def __call__(self, **inputs: Any) -> dict[str, Array]:
        """Run the graph: `run` with the inputs by keyword."""
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Run the graph.

        Parameters
        ----------
        inputs : mapping of every input's name to an array of the file's dtype and shape
            Numbers and lists are converted, arrays are not.

        Returns
        -------
        {name: array} of all outputs, in the file's order

        Raises
        ------
        ValueError
            An input is missing, unknown or of a wrong shape, or a node can't work on what it got.
        TypeError
            An array of another dtype.
        """
        values = self._values.copy()
        given = []
        for port, slot in zip(self.inputs, self._input_slots):
            try:
                value = inputs[port.name]
            except KeyError:
                raise ValueError(f"input {port.name!r} is missing") from None
            values[slot] = value = port.fit(value)
            given.append(value)
        if len(inputs) > len(given):
            known = [port.name for port in self.inputs]
            surplus = ", ".join(repr(name) for name in inputs if name not in known)
            raise ValueError(f"unknown input {surplus}, expected {', '.join(known)}")
        with np.errstate(all="ignore"):  # infinities and NaN go their way, as in any engine
            walk(self._steps, values)
        outputs = {}
        for port, slot in zip(self.outputs, self._output_slots):
            result = np.asarray(values[slot])
            # An output is the caller's own, no view of what came in.
            if (result.base is not None or slot in self._input_slots) and any(
                np.may_share_memory(result, array) for array in given
            ):
                result = result.copy()
            outputs[port.name] = result
        return outputs


class _Plan:
    """The steps of a graph, and a place in one list for each of its values.

    Places are of the whole model: a graph within an If or a Loop has its own names, but its
    values stand in the same list, so that it reads those around it like its own.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.values: Values = [None]  # place 0 is of inputs that are absent
        self.steps: list[Step] = []
        self.layers: dict[str, Module] = {}
        # A layer's operator is a value like any other, so that one plan serves other modules too:
        # {path: its place, what makes it of a module}.
        self.operators: dict[str, tuple[int, Callable[[Module], Operation]]] = {}
        self._slots: dict[tuple[int, str], int] = {}
        self._reads: set[int] = set()  # by the step of the outermost graph that is being made
        self._depth = 0

    # --- places

    def define(self, graph: Graph, name: str) -> int:
        """Give a name of a graph a new place."""
        self.values.append(None)
        self._slots[id(graph), name] = len(self.values) - 1
        return len(self.values) - 1

    def slot(self, graph: Graph, name: str) -> int:
        """Return the place of a name, here or around; of a constant, which is then put there."""
        if not name:
            return 0
        origin = graph.origin(name)
        key = id(origin.graph), name
        if key not in self._slots:
            constant = graph.constant(name)
            if constant is None:
                raise ValueError(f"{name!r} is read before it is made")
            constant = constant.view()
            constant.flags.writeable = False
            self.values[self.define(origin.graph, name)] = constant
        self._reads.add(self._slots[key])
        return self._slots[key]

    # --- steps

    def make(self, graph: Graph, wanted: list[str]) -> None:
        """Append the steps of a graph that its wanted names need."""
        for node in self._needed(graph, wanted):
            if is_recurrent(node):
                self._make_recurrent(graph, node)
            elif is_standard(node) and node.op_type == "If":
                self._make_if(graph, node)
            elif is_standard(node) and node.op_type == "Loop":
                self._make_loop(graph, node)
            elif self._passes(graph, node):
                self._slots[id(graph), node.output[0]] = self.slot(graph, node.input[0])
            else:
                self._make_other(graph, node)

    def _needed(self, graph: Graph, wanted: list[str]) -> list[onnx.NodeProto]:
        """The nodes on which names of this graph depend while it runs, in order."""
        names = {name for name in wanted if name and graph.origin(name).graph is graph}
        nodes = []
        for node in reversed(graph.body):
            if any(o in names and graph.constant(o) is None for o in node.output if o):
                nodes.append(node)
                size = _size_taken(graph, node)
                names.update([size[0]] if size else node.input)
                for attribute, proto in subgraphs(node):
                    for _, inner in graph.inner(node, attribute, proto).nodes():
                        names.update(inner.input)
                    names.update(o.name for o in proto.output)
        return nodes[::-1]

    def _append(self, graph: Graph, node: onnx.NodeProto, run: Callable[[Values], None]) -> None:
        reads: frozenset[int] = frozenset()
        if not self._depth:
            reads, self._reads = frozenset(self._reads), set()
        self.steps.append(Step(run, f"{self.file.name}: {graph.path_of(node)}", reads))

    def finished(self, outputs: list[int]) -> list[Step]:
        """Return the steps, each of which releases what it is the last to read."""
        kept = {k for k, value in enumerate(self.values) if value is not None} | set(outputs)
        steps = []
        for step in reversed(self.steps):
            steps.append(step._replace(last=tuple(step.reads - kept)))
            kept |= step.reads
        return steps[::-1]

    def _inner_steps(self, graph: Graph, wanted: list[str]) -> tuple[list[Step], list[int]]:
        """Steps of a graph within this one, and the places of what it makes."""
        outer, self.steps = self.steps, []
        self._depth += 1
        self.make(graph, wanted)
        self._depth -= 1
        steps, self.steps = self.steps, outer
        return steps, [self.slot(graph, name) for name in wanted]

    def _passes(self, graph: Graph, node: onnx.NodeProto) -> bool:
        """Whether a node hands its first input on as it is."""
        if not is_standard(node) or node.op_type not in ("Identity", "Dropout"):
            return False
        if len(node.input) > 2 and node.input[2]:  # turns a Dropout on
            training = graph.constant(node.input[2])
            if training is None or training.any():
                return False
        return sum(bool(name) for name in node.output) == 1

    def _make_other(self, graph: Graph, node: onnx.NodeProto) -> None:
        if size := _size_taken(graph, node):
            source, target = self.slot(graph, size[0]), self.define(graph, node.output[0])
            self._append(graph, node, single(size[1], [source], target))
            return
        sources = [self.slot(graph, name) for name in node.input]
        constants = [graph.constant(name) if name else ABSENT for name in node.input]
        made = None
        if is_standard(node) and sum(bool(name) for name in node.output) == 1:
            said = attributes(node)
            try:
                made = onnx_ops.make(node.op_type, self.file.opsets[""], said, constants)
            except (KeyError, IndexError, TypeError) as error:  # what the operator must have
                path = graph.path_of(node)
                raise ValueError(f"{path}: a broken {node.op_type}: {error}") from None
        if made is not None:
            function, taken = made
            target = self.define(graph, node.output[0])
            self._append(graph, node, single(function, [sources[k] for k in taken], target))
            return
        path = graph.path_of(node)
        inner = [
            g for attribute, proto in subgraphs(node) for g in [graph.inner(node, attribute, proto)]
        ]
        if any(is_recurrent(n) for g in inner for _, n in g.nodes()):
            around = with_article(node.op_type)
            raise ValueError(f"{path}: a recurrent layer inside {around} is not supported")
        captured = {
            name
            for g in inner
            for _, n in g.nodes()
            for name in n.input
            if name and name not in g.origins
        }
        try:
            function = evaluator(node, self.file.opsets)
        except Exception as error:
            raise ValueError(
                f"{path}: the onnx package can't run "
                f"{node.domain + '.' if node.domain else ''}{node.op_type}: {error}"
            ) from None
        context = {name: self.slot(graph, name) for name in captured}
        targets = [(k, self.define(graph, name)) for k, name in enumerate(node.output) if name]

        def run(values: Values) -> None:
            more = {"context": {n: values[s] for n, s in context.items()}} if inner else {}
            results = function(*[values[s] for s in sources], **more)
            for k, target in targets:
                values[target] = results[k]

        self._append(graph, node, run)

    def _make_if(self, graph: Graph, node: onnx.NodeProto) -> None:
        branches = {a: graph.inner(node, a, proto) for a, proto in subgraphs(node)}
        if set(branches) != {"then_branch", "else_branch"}:
            raise ValueError(f"{graph.path_of(node)}: an If without branches")
        condition = graph.constant(node.input[0])
        if condition is not None:
            inner = branches["then_branch" if condition.any() else "else_branch"]
            made = [o.name for o in inner.proto.output]
            self.make(inner, made)
            for name, source in zip(node.output, made):
                self._slots[id(graph), name] = self.slot(inner, source)
            return
        chosen = self.slot(graph, node.input[0])
        plans = {
            a: self._inner_steps(inner, [o.name for o in inner.proto.output])
            for a, inner in branches.items()
        }
        targets = [self.define(graph, name) for name in node.output]
        then_steps, then_slots = plans["then_branch"]
        else_steps, else_slots = plans["else_branch"]

        def run(values: Values) -> None:
            taken = bool(values[chosen])
            if steps := then_steps if taken else else_steps:
                walk(steps, values)
            for target, source in zip(targets, then_slots if taken else else_slots):
                values[target] = values[source]

        self._append(graph, node, run)

    def _make_loop(self, graph: Graph, node: onnx.NodeProto) -> None:
        ((attribute, proto),) = subgraphs(node)
        body = graph.inner(node, attribute, proto)
        limit, condition, *initial = [
            self.slot(graph, name) for name in (*node.input, "", "")[: max(2, len(node.input))]
        ]
        count_in, condition_in, *carried_in = [self.define(body, name) for name in body.inputs]
        steps, (condition_out, *results) = self._inner_steps(body, [o.name for o in proto.output])
        n = len(carried_in)
        if len(initial) != n or len(results) < n:
            raise ValueError(
                f"{graph.path_of(node)}: a Loop of {len(initial)} values "
                f"whose body takes {n} and makes {len(results)}"
            )
        empty = [port_of(o) for o in proto.output][1 + n :]
        targets = [self.define(graph, name) if name else 0 for name in node.output]

        def run(values: Values) -> None:
            most = values[limit]
            going = values[condition] is None or bool(values[condition])
            carried = [values[s] for s in initial]
            rows: list[list[Array]] = [[] for _ in empty]
            k = 0
            while going and (most is None or k < most):
                values[count_in], values[condition_in] = np.array(k), np.array(going)
                for target, value in zip(carried_in, carried):
                    values[target] = value
                walk(steps, values)
                going = condition_out == 0 or bool(values[condition_out])
                carried = [values[s] for s in results[:n]]
                for row, s in zip(rows, results[n:]):
                    row.append(values[s])
                k += 1
            stacked = [
                np.stack(row) if row else np.empty((0, *[m or 0 for m in p.shape or ()]), p.dtype)
                for row, p in zip(rows, empty)
            ]
            for target, value in zip(targets, carried + stacked):
                if target:
                    values[target] = value

        self._append(graph, node, run)

    def _make_recurrent(self, graph: Graph, node: onnx.NodeProto) -> None:
        layer = Operator(graph, node)
        module = layer.module()
        self.layers[layer.path] = module
        x, lengths, h, c = (
            self.slot(graph, layer.sources.get(role, ""))
            for role in ("X", "sequence_lens", "initial_h", "initial_c")
        )
        bind, place = as_operator(layer), len(self.values)
        self.operators[layer.path] = place, bind
        self.values.append(bind(module))
        targets = [(k, self.define(graph, name)) for k, name in enumerate(node.output) if name]

        def run(values: Values) -> None:
            results = values[place](values[x], values[lengths], values[h], values[c])
            for k, target in targets:
                values[target] = results[k]

        self._append(graph, node, run)


def _size_taken(graph: Graph, node: onnx.NodeProto) -> tuple[str, Callable[[Array], Array]] | None:
    """(value, function) where a node gathers one size out of a value's Shape: one step for two."""
    if node.op_type != "Gather" or not is_standard(node):
        return None
    shape, index = graph.origin(node.input[0]), graph.constant(node.input[1])
    if shape.node is None or shape.node.op_type != "Shape" or shape.node.attribute:
        return None
    if shape.graph is not graph or index is None or index.size != 1:
        return None
    k = int(index.flat[0])
    one = index.ndim == 0
    return shape.node.input[0], lambda x: np.array(x.shape[k] if one else [x.shape[k]], np.int64)
