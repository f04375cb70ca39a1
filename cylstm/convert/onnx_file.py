"""ONNX files: opening one safely, the names of its graphs, and values computed from constants.

A file is not trusted: what it asks for in memory is bounded by its own size, external data stays
inside the model's folder, and nothing in it is run but arithmetic on constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..weights import Array
from . import onnx_ops
from .onnx_makers import ABSENT
from .source import Source

if TYPE_CHECKING:
    import onnx

# What constants may unfold to, in elements, beside a multiple of the file's own size: enough for
# weights that go through half a dozen operators, too little for a file that is a bomb.
FOLD_BASE = 1 << 24
FOLD_FACTOR = 4  # elements for each byte of the file

MAX_CALLS = 100  # of functions within functions, which the onnx package puts in place recursively

DOMAINS = ("", "ai.onnx")  # two names of the standard operators

# Constants go through these when a model is loaded. Of every one it is known before it runs how
# large its result is.
ELEMENTWISE = frozenset(
    """Abs Add And Cast Div Equal Greater Identity Less Mul Neg Not Or Pow Reciprocal Sqrt
    Sub""".split()
)
RESHAPING = frozenset(
    """Concat DequantizeLinear Flatten Gather Reshape Shape Size Slice Split Squeeze
    Transpose Unsqueeze Constant ConstantOfShape Expand Range Tile""".split()
)


def import_onnx() -> Any:
    """Return the `onnx` package, or raise ImportError that says how to install it."""
    try:
        import onnx
        import onnx.inliner
        import onnx.reference
    except ImportError as error:
        raise ImportError(
            "reading and writing ONNX needs the onnx package: pip install cylstm[onnx]"
        ) from error
    return onnx


def is_standard(node: onnx.NodeProto) -> bool:
    return node.domain in DOMAINS


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return {name: value} of a node's attributes, strings as str."""
    onnx = import_onnx()
    found = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [v.decode("utf-8", "replace") for v in value]
        found[attribute.name] = value
    return found


def subgraphs(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """Yield (attribute, graph) of what an If, Loop or Scan holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g


def _check_functions(model: onnx.ModelProto, most: int) -> None:
    """Raise ValueError for functions that contain themselves, or too deep, or too large."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    found: dict[Any, tuple[int, int]] = {}  # bytes with all in place, how deep
    inside: set[Any] = set()

    def everything(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in nodes:
            yield node
            for _, proto in subgraphs(node):
                yield from everything(proto.node)

    def measure(nodes: Iterable[onnx.NodeProto]) -> tuple[int, int]:
        size, depth = sum(node.ByteSize() for node in nodes), 0
        for node in everything(nodes):
            key = node.domain, node.op_type, node.overload
            if key not in functions:
                continue
            if key in inside:
                raise ValueError(f"its function {node.op_type!r} contains itself")
            if key not in found and len(inside) < MAX_CALLS:
                inside.add(key)
                found[key] = measure(functions[key].node)
                inside.remove(key)
            more, deep = found.get(key, (0, MAX_CALLS))
            size, depth = size + more, max(depth, deep + 1)
        if size > most or depth > MAX_CALLS:
            raise ValueError(f"its functions take {size} bytes where they are called, {depth} deep")
        return size, depth

    measure(model.graph.node)


class File:
    """One ONNX file, parsed.

    Attributes
    ----------
    name : str, without its folder
    model : onnx.ModelProto, local functions put in where they were called
    opsets : {domain: version}
    graph : Graph, the outermost
    dequantize : bool, whether weights of fewer bits are taken as floats
    """

    def __init__(self, source: Source, dequantize: bool = False) -> None:
        onnx = import_onnx()
        self.dequantize = dequantize
        path = Path(source.path).resolve()
        self.name, self.folder = path.name, path.parent
        source.file.seek(0)
        data = source.file.read()
        self.model = onnx.ModelProto()
        try:
            # Its parser refuses messages in more than 100 levels, which bounds nested graphs.
            self.model.ParseFromString(data)
        except Exception as error:
            raise ValueError(f"no ONNX file, or a broken one: {error}") from None
        if not self.model.HasField("graph"):
            raise ValueError("no ONNX file: it holds no graph")
        self._budget = FOLD_BASE + FOLD_FACTOR * len(data)
        if self.model.functions:
            _check_functions(self.model, self._budget)
            try:
                self.model = onnx.inliner.inline_local_functions(self.model)
            except Exception as error:
                raise ValueError(f"its local functions can't be put in place: {error}") from None
        self.opsets = {
            "" if entry.domain in DOMAINS else entry.domain: entry.version
            for entry in self.model.opset_import
        }
        self.opsets.setdefault("", 1)
        self.graph = Graph(self, self.model.graph, "", None)

    def spend(self, elements: int, what: str) -> None:
        """Count what a constant takes, or raise ValueError if the file asks for too much."""
        self._budget -= elements
        if self._budget < 0:
            raise ValueError(f"{what} makes its constants many times larger than the file")

    def tensor(self, tensor: onnx.TensorProto) -> Array:
        """Return the values of a tensor of the file.

        Raises ValueError where shape and data disagree, or where external data lies outside the
        model's folder or past the end of its file.
        """
        onnx = import_onnx()
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = self._external(tensor)
        try:
            if min(tensor.dims, default=0) < 0:
                raise ValueError("a negative size")
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except Exception as error:
            raise ValueError(
                f"tensor {tensor.name!r} of shape {tuple(tensor.dims)} is broken: {error}"
            ) from None

    def _external(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        onnx = import_onnx()
        where = f"external data of {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        file = (self.folder / location).resolve()  # follows links
        if not location or not file.is_relative_to(self.folder) or not file.is_file():
            raise ValueError(f"{where} is {location!r}, expected a file inside the model's folder")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ValueError(f"{where} has an offset or a length that is not a number") from None
        size = file.stat().st_size
        if length < 0:
            length = size - offset
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(
                f"{where} is bytes {offset} to {offset + length} of {location!r}, which has {size}"
            )
        self._budget += FOLD_FACTOR * length
        with file.open("rb") as stream:
            stream.seek(offset)
            raw = stream.read(length)
        return onnx.TensorProto(
            name=tensor.name, dims=tensor.dims, data_type=tensor.data_type, raw_data=raw
        )


class Origin(NamedTuple):
    """Where a name gets its value: one of a node's outputs, an initializer, or an input."""

    graph: Graph
    name: str
    node: onnx.NodeProto | None = None
    output: int = 0
    tensor: onnx.TensorProto | None = None


class Graph:
    """The names of one graph; a graph inside an If or Loop also sees those around it.

    Attributes
    ----------
    path : str
        Names of the nodes and branches around the graph, joined by ".", "" for the outermost.
    inputs : list of str, without initializers
    """

    def __init__(self, file: File, proto: onnx.GraphProto, path: str, outer: Graph | None) -> None:
        self.file = file
        self.proto = proto
        self.path = path
        self.outer = outer
        self._constants: dict[str, Array | None] = {}
        self._inner: dict[tuple[int, str], Graph] = {}
        # Kept, so that a node is the same object at every look and has an identity.
        self.body = list(proto.node)
        self._index = {id(node): k for k, node in enumerate(self.body)}
        self._names = Counter(node.name for node in self.body)
        if not all(isinstance(text, str) for text in _texts(proto)):
            raise ValueError("broken: it holds names that are not UTF-8")
        if proto.sparse_initializer:
            raise ValueError("sparse initializers are not supported")
        self.origins = {t.name: Origin(self, t.name, tensor=t) for t in proto.initializer}
        self.inputs = [i.name for i in proto.input if i.name not in self.origins]
        self.origins.update((name, Origin(self, name)) for name in self.inputs)
        for node in self.body:
            for index, name in enumerate(node.output):
                if name:
                    self.origins[name] = Origin(self, name, node, index)

    def inner(self, node: onnx.NodeProto, attribute: str, proto: onnx.GraphProto) -> Graph:
        """Return a graph that a node of this one holds."""
        key = id(node), attribute
        if key not in self._inner:
            path = f"{self.name_of(node)}.{attribute}"
            self._inner[key] = Graph(
                self.file, proto, f"{self.path}.{path}" if self.path else path, self
            )
        return self._inner[key]

    def name_of(self, node: onnx.NodeProto) -> str:
        """The name of a node, or its operator and position where it has none of its own."""
        if node.name and self._names[node.name] == 1:
            return str(node.name)
        return f"{node.op_type}_{self._index[id(node)]}"

    def path_of(self, node: onnx.NodeProto) -> str:
        """The path of a node in the file, by which `load` takes it."""
        name = self.name_of(node)
        return f"{self.path}.{name}" if self.path else name

    def around(self, node: onnx.NodeProto) -> str:
        """What a node reads from and what reads it, for people."""
        makers = [o.node.op_type for i in node.input[:1] if i and (o := self.origin(i)).node]
        users = [n.op_type for n in self.body if set(node.output) & set(n.input) - {""}]
        return " -> ".join([*makers, "*", *([", ".join(users)] if users else [])])

    def origin(self, name: str) -> Origin:
        """Return where a name gets its value, here or in a graph around."""
        graph: Graph | None = self
        while graph is not None:
            if name in graph.origins:
                return graph.origins[name]
            graph = graph.outer
        raise ValueError(f"nothing in the file makes {name!r}")

    def nodes(self) -> Iterator[tuple[Graph, onnx.NodeProto]]:
        """Yield every node of this graph and of all graphs in it, in the file's order."""
        for node in self.body:
            yield self, node
            for attribute, proto in subgraphs(node):
                yield from self.inner(node, attribute, proto).nodes()

    def constant(self, name: str) -> Array | None:
        """Return the value of a name that depends on constants alone, else None.

        What was found is kept. The walk is no recursion: a chain of nodes may be long.
        """
        stack = [self.origin(name)]
        opened: set[tuple[int, str]] = set()
        while stack:
            origin = stack[-1]
            known = origin.graph._constants
            key = origin.name
            if _is_input(origin) or key in known:
                stack.pop()
                continue
            if origin.tensor is not None:
                known[key] = self.file.tensor(origin.tensor)
                continue
            node = origin.node
            assert node is not None
            if not _foldable(node):
                for output in node.output:
                    known[output] = None
                continue
            sources = [origin.graph.origin(i) for i in node.input if i]
            waiting = [s for s in sources if not _is_input(s) and s.name not in s.graph._constants]
            if waiting:
                if (id(origin.graph), key) in opened:
                    raise ValueError(f"{key!r} is computed from itself")
                opened.add((id(origin.graph), key))
                stack.extend(waiting)
                continue
            values = [origin.graph._known(i) if i else None for i in node.input]
            if any(value is None for value, i in zip(values, node.input) if i):
                results: list[Array | None] = [None] * len(node.output)
            else:
                results = self._fold(node, values)
            known.update(zip(node.output, results))
        return self._known(name)

    def _known(self, name: str) -> Array | None:
        origin = self.origin(name)
        return None if _is_input(origin) else origin.graph._constants[name]

    def _fold(self, node: onnx.NodeProto, values: list[Array | None]) -> list[Array | None]:
        """Run a node on constants."""
        what = f"{node.op_type} {self._label(node)!r}"
        try:
            self.file.spend(folded_size(node, values), what)
            with np.errstate(all="ignore"):
                results = [np.asarray(r) for r in self._results(node, values)]
        except Exception as error:
            raise ValueError(f"{what} on constants: {error}") from None
        return results + [None] * (len(node.output) - len(results))

    def _results(self, node: onnx.NodeProto, values: list[Array | None]) -> Any:
        given = attributes(node)
        if node.op_type == "Identity":
            return values
        if node.op_type == "Constant" and "value" in given:
            return [self.file.tensor(given["value"])]
        opset, made = self.file.opsets[""], None
        if len(node.output) == 1:
            present = [ABSENT if value is None else value for value in values]
            made = onnx_ops.make(node.op_type, opset, given, present)
        if made is None:
            return evaluator(node, self.file.opsets)(*values)
        function, taken = made
        return [function(*[values[k] for k in taken])]

    @staticmethod
    def _label(node: onnx.NodeProto) -> str:
        return str(node.name or (node.output[0] if node.output else ""))


def _texts(proto: onnx.GraphProto) -> Iterator[Any]:
    """All names of one graph; protobuf hands on as bytes what is no text."""
    for thing in (*proto.initializer, *proto.input, *proto.output):
        yield thing.name
    for node in proto.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _is_input(origin: Origin) -> bool:
    return origin.tensor is None and origin.node is None


def _foldable(node: onnx.NodeProto) -> bool:
    return is_standard(node) and (node.op_type in ELEMENTWISE or node.op_type in RESHAPING)


def folded_size(node: onnx.NodeProto, values: list[Array | None]) -> int:
    """Return how many elements a foldable node makes at most."""
    arrays = [value for value in values if value is not None]
    kind = node.op_type
    if kind in ELEMENTWISE:
        return prod(np.broadcast_shapes(*(a.shape for a in arrays)))
    if kind == "ConstantOfShape":
        return prod(int(n) for n in arrays[0])
    if kind == "Expand":
        return prod(np.broadcast_shapes(arrays[0].shape, tuple(int(n) for n in arrays[1])))
    if kind == "Tile":
        return arrays[0].size * prod(max(int(n), 0) for n in np.ravel(arrays[1]))
    if kind == "Range":
        start, limit, delta = (float(np.ravel(a)[0]) for a in arrays)
        return max(0, int((limit - start) / delta) + 1)
    if kind == "Gather":
        axis = attributes(node).get("axis", 0)
        return arrays[0].size // max(arrays[0].shape[axis], 1) * arrays[1].size
    return sum(a.size for a in arrays)


def evaluator(node: onnx.NodeProto, opsets: dict[str, int]) -> Any:
    """Return the onnx package's NumPy form of a node, as a function of its inputs.

    Its attributes are bound here: the evaluator's own `run` looks them up at every call.
    """
    onnx = import_onnx()
    if is_standard(node) and node.domain:
        standard = onnx.NodeProto()
        standard.CopyFrom(node)
        standard.domain = ""
        node = standard
    model = onnx.reference.ReferenceEvaluator(
        onnx.helper.make_function(
            "local",
            "one",
            [name for name in dict.fromkeys(node.input) if name],
            [name for name in node.output if name],
            [node],
            [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        )
    )
    (op,) = model.rt_nodes_
    return op.run
