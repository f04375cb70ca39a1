"""ONNX files: a recurrent layer, a stack of them, or a whole graph.

onnx_file        opening a file, names, constants
onnx_recurrent   the recurrent operators, as layers of ours
onnx_stack       whether a graph is no more than a stack of layers
onnx_graph       whole graphs, planned once; onnx_steps, the steps of such a plan
onnx_ops         other operators in NumPy; with onnx_products, by the table of onnx_makers
onnx_write       out again
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .found import Contents, build
from .onnx_file import File
from .onnx_graph import OnnxModel
from .onnx_recurrent import find, is_recurrent
from .onnx_stack import find_stack
from .source import Source


def read(source: Source, *, graph: bool = False, dequantize: bool = False) -> Contents:
    """Return what an ONNX file holds.

    As a whole it is one LSTM, GRU or RNN if it is a stack of layers, else, or with `graph`, an
    `OnnxModel`, whose inputs and outputs are those of the file. A path is the names of nodes, and
    of the branches that they are in, joined by ".". Weights of int8 stay so, where a quantised
    module of ours means the same by them, unless `dequantize` asks for floats.
    """
    file = File(source, dequantize)
    layers = find(file.graph)
    others = Counter(n.op_type for _, n in file.graph.nodes() if not is_recurrent(n))
    del others["Constant"]
    around = ", ".join(f"{n} {name}" for name, n in sorted(others.items()))
    stack = find_stack(file.graph)

    def whole(**options: Any) -> Any:
        if stack is not None and not graph:
            return build(stack, **options)
        if options:
            raise TypeError(f"unexpected options {', '.join(options)}: the graph says everything")
        return OnnxModel(file)

    if stack is not None and stack.num_layers > 1:
        layers = [stack, *layers]
    return Contents(
        f"ONNX, version {file.opsets['']} of the operators",
        tuple(layers),
        f"{around}, in NumPy" if around else "",
        whole,
        unsure=stack is None or graph,
    )
