"""The recurrent operators of ONNX: what a node's attributes and inputs say, as a layer of ours.

LSTM, GRU and RNN of every version of the operator set, and com.microsoft's DynamicQuantizeLSTM. Its
weights stay bytes where they mean what ours do, a symmetric code for each row (`cylstm.quantize`),
and are the floats that they stand for elsewhere. An attribute is honoured or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..module import Module
from ..quantization import is_symmetric, scale_of
from ..weights import Array
from .found import Recurrent, build
from .gates import peepholes_to_own, to_own
from .onnx_file import Graph, attributes, is_standard

if TYPE_CHECKING:
    import onnx

BLOCKS = {"LSTM": 4, "GRU": 3, "RNN": 1}  # of a weight: its gates
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
QUANTIZED_INPUTS = (*INPUTS, "W_scale", "W_zero_point", "R_scale", "R_zero_point")
ATTRIBUTES = frozenset(
    """activation_alpha activation_beta activations clip direction hidden_size input_forget layout
    linear_before_reset output_sequence""".split()
)
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
DEFAULT_ACTIVATIONS = {
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "GRU": ("sigmoid", "tanh"),
    "RNN": ("tanh",),
}

# Name there: (name here, default alpha, default beta), None where it takes no such number or
# the operator set names no default.
ACTIVATIONS: dict[str, tuple[str, tuple[float | None, ...]]] = {
    "Sigmoid": ("sigmoid", ()),
    "Tanh": ("tanh", ()),
    "Relu": ("relu", ()),
    "Softsign": ("softsign", ()),
    "Softplus": ("softplus", ()),
    "LeakyRelu": ("leaky_relu", (0.01,)),
    "ThresholdedRelu": ("thresholded_relu", (None,)),  # 1 in ONNX's text, 0 in ONNX Runtime
    "Elu": ("elu", (1.0,)),
    "HardSigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "Affine": ("affine", (None, None)),
    "ScaledTanh": ("scaled_tanh", (None, None)),
}
# Two hard sigmoids that have names here.
NAMED = {
    "hard_sigmoid_keras2": ("hard_sigmoid", 0.2, 0.5),
    "hard_sigmoid_keras3": ("hard_sigmoid", 1 / 6, 0.5),
}
ANY_CASE = {name.lower(): value for name, value in ACTIVATIONS.items()}  # as ONNX Runtime reads it

# Past this, sigmoid and tanh are 0, 1 or -1 to the last bit, and clipping before them does nothing.
SATURATED = {np.dtype(np.float32): 128.0, np.dtype(np.float64): 1024.0}


def is_recurrent(node: onnx.NodeProto) -> bool:
    return (is_standard(node) and node.op_type in BLOCKS) or (
        node.domain == "com.microsoft" and node.op_type == "DynamicQuantizeLSTM"
    )


class Operator:
    """One recurrent node, read.

    Attributes
    ----------
    path, cell : str; cell is "LSTM", "GRU" or "RNN"
    sources : {input: name in the graph}, of inputs that are there
    directions, hidden_size, input_size : int
    layout : 0 or 1
    dtype : of our module
    layer : Recurrent, what `load` and `inspect` see

    Raises ValueError for what is wrong; what is right and not supported is in `layer`.
    """

    def __init__(self, graph: Graph, node: onnx.NodeProto) -> None:
        self.graph = graph
        self.node = node
        self.path = graph.path_of(node)
        self.quantized = node.op_type == "DynamicQuantizeLSTM"
        self.cell = "LSTM" if self.quantized else str(node.op_type)
        names = QUANTIZED_INPUTS if self.quantized else INPUTS
        if len(node.input) > len(names):
            raise self.error(f"{len(node.input)} inputs, expected at most {len(names)}")
        if not node.input or not node.input[0]:
            raise self.error("X is missing")
        self.sources = {role: name for role, name in zip(names, node.input) if name}
        self._given = attributes(node)
        if unknown := sorted(set(self._given) - ATTRIBUTES):
            raise self.error(f"attribute {', '.join(unknown)} is unknown")
        self.direction = self._given.get("direction", "forward")
        if self.direction not in DIRECTIONS:
            raise self.error(f"direction is {self.direction!r}, expected {', '.join(DIRECTIONS)}")
        self.directions = DIRECTIONS[self.direction]
        self.layout = self._given.get("layout", 0)
        if self.layout not in (0, 1):
            raise self.error(f"layout is {self.layout!r}, expected 0 or 1")
        if self._given.get("output_sequence", 1) == 0 and node.output and node.output[0]:
            raise self.error("output_sequence is 0, and yet its output Y has a name")
        self._read_weights()
        self.layer = Recurrent(
            path=self.path,
            cell=self.cell,
            input_size=self.input_size,
            hidden_size=self.hidden_size,
            directions=self.directions,
            bias=self._B is not None,
            options=self._options(),
            read=self._weights,
        )

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {what}")

    # --- weights

    def _constant(self, role: str) -> Array | None:
        if role not in self.sources:
            return None
        value = self.graph.constant(self.sources[role])
        if value is None:
            raise self.error(f"{role} is computed while the model runs, expected a constant")
        return value

    def _matrix(self, role: str) -> Array:
        """W or R as (D, G*H, columns): floats, or codes of int16 whose scales go to `_scales`."""
        value = self._constant(role)
        if value is None:
            raise self.error(f"{role} is missing")
        if value.ndim != 3:
            raise self.error(f"{role} has shape {value.shape}, expected 3 axes")
        if not self.quantized:
            return value
        if value.dtype not in (np.int8, np.uint8):
            raise self.error(f"{role} is {value.dtype}, expected int8 or uint8")
        value = value.transpose(0, 2, 1)
        scale, zero = self._constant(f"{role}_scale"), self._constant(f"{role}_zero_point")
        if scale is None:
            raise self.error(f"{role}_scale is missing")
        D, rows = value.shape[:2]
        wholes = []
        for part in (scale, np.zeros(1, value.dtype) if zero is None else zero):
            if part.size not in (1, D, D * rows):
                raise self.error(
                    f"{role}_scale or {role}_zero_point has shape {part.shape}, "
                    f"expected ({D},) or ({D}, {rows})"
                )
            shape = (D, -1) if part.size >= D else (1, 1)
            wholes.append(np.broadcast_to(part.reshape(shape), (D, rows)))
        scale, zero = wholes
        self._scales[role] = scale.astype(np.float32)
        return value.astype(np.int16) - zero[..., None].astype(np.int16)

    def _narrowed(self, codes: Array, scale: Array) -> Array:
        """Codes as bytes where they are ours, else as the floats that they stand for."""
        if self._narrow:
            return codes.astype(np.int8)
        return codes.astype(np.float32) * scale[..., None]

    def _read_weights(self) -> None:
        D, rows = self.directions, BLOCKS[self.cell]
        self._scales: dict[str, Array] = {}
        W, R, B = self._matrix("W"), self._matrix("R"), self._constant("B")
        self._narrow = self.quantized and not self.graph.file.dequantize
        if self.quantized:
            pairs = (W, self._scales["W"]), (R, self._scales["R"])
            self._narrow &= all(is_symmetric(codes, scale) for codes, scale in pairs)
            W, R = (self._narrowed(codes, scale) for codes, scale in pairs)
        elif W.dtype.kind != "f" or W.dtype != R.dtype:
            raise self.error(f"W is {W.dtype} and R is {R.dtype}, expected floats of one size")
        self.input_size, H = W.shape[2], R.shape[2]
        self.hidden_size, rows = H, rows * H
        P = self._constant("P")
        wanted = {
            "W": (W, (D, rows, self.input_size)),
            "R": (R, (D, rows, H)),
            "B": (B, (D, 2 * rows)),
            "P": (P, (D, 3 * H)),
        }
        for role, (value, shape) in wanted.items():
            if value is not None and value.shape != shape:
                raise self.error(f"{role} has shape {value.shape}, expected {shape}")
        if self._given.get("hidden_size", H) != H:
            raise self.error(f"hidden_size is {self._given['hidden_size']}, but R has {H} columns")
        if H < 1 or self.input_size < 1:
            raise self.error(f"input_size {self.input_size}, hidden_size {H}, expected 1 or more")
        self.dtype = np.dtype(np.float64 if W.dtype == np.float64 else np.float32)
        self._W, self._R, self._B = W, R, B
        self._P = P if P is not None and np.any(P) else None
        self._coupled = bool(self._given.get("input_forget", 0))

    def _weights(self) -> dict[str, Array]:
        """PyTorch's names and order of gates."""
        weights: dict[str, Array] = {}
        for d, end in enumerate(("_l0", "_l0_reverse")[: self.directions]):
            arrays = {"weight_ih": self._W[d], "weight_hh": self._R[d]}
            if self._narrow:
                arrays |= {
                    scale_of(name): self._scales[role][d] for name, role in zip(arrays, "WR")
                }
            if self._B is not None:
                arrays["bias_ih"], arrays["bias_hh"] = np.split(self._B[d], 2)
            for name, array in arrays.items():
                array = to_own(array, self.cell, "onnx")
                if self._coupled:  # has no f of its own
                    i, _, g, o = np.split(array, 4)
                    array = np.concatenate([i, g, o])
                weights[name + end] = array if array.dtype == np.int8 else array.astype(self.dtype)
            if self._P is not None:
                peepholes = peepholes_to_own(self._P[d], "onnx")
                if self._coupled:  # f, which is 1 - i, sees nothing
                    peepholes = np.delete(peepholes.reshape(3, -1), 1, axis=0).ravel()
                weights[f"weight_peep{end}"] = peepholes.astype(self.dtype)
        return weights

    # --- what it computes

    def _activations(self) -> tuple[tuple[Any, ...], ...]:
        """For each direction, each function's name here, or (name, alpha[, beta])."""
        default = DEFAULT_ACTIVATIONS[self.cell]
        D, n = self.directions, len(default)
        names = self._given.get("activations") or list(default) * D
        if len(names) != D * n:
            raise self.error(f"{len(names)} activations, expected {D * n}")
        numbers = {
            which: list(self._given.get(f"activation_{which}", ())) for which in ("alpha", "beta")
        }
        functions: list[Any] = []
        for name in names:
            if name.lower() not in ANY_CASE:
                raise self.error(f"activation {name!r} is unknown")
            ours, defaults = ANY_CASE[name.lower()]
            used = []
            for which, number in zip(("alpha", "beta"), defaults):
                if numbers[which]:  # only functions that have such a number take one
                    number = numbers[which].pop(0)
                if number is None:
                    raise self.error(f"activation {name!r} ({ours}) needs activation_{which}")
                used.append(float(number))
            functions.append(_named(ours, *used) if used else ours)
        for which, rest in numbers.items():
            # Some writers give one for every activation, 0 where it means nothing.
            if any(rest):
                raise self.error(f"activation_{which} has {len(rest)} values more than are used")
        return tuple(tuple(functions[d * n : (d + 1) * n]) for d in range(D))

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"weights": "int8"} if self._narrow else {}
        if self.layout == 1:
            options["batch_first"] = True
        if self.direction == "reverse":
            options["reverse"] = True
        if self._P is not None:
            options["peephole"] = True
        if self._coupled:
            options["coupled"] = "f=1-i"
        if self.cell == "GRU" and not self._given.get("linear_before_reset", 0):
            options["reset_after"] = False
        functions = self._activations()
        if self.cell == "RNN" and set(functions) == {("relu",)}:
            options["nonlinearity"] = "relu"
        elif set(functions) != {DEFAULT_ACTIVATIONS[self.cell]}:
            same = len(set(functions)) == 1
            options["activations"] = functions[0] if same else sum(functions, ())
        clip = self._given.get("clip")
        if clip is not None:
            if not clip > 0:
                raise self.error(f"clip is {clip}, expected a number above 0")
            used = {name for functions_of in functions for name in functions_of}
            if clip < SATURATED[self.dtype] or not used <= {"sigmoid", "tanh"}:
                options["clip"] = float(clip)
        return options

    def kind(self) -> tuple[Any, ...]:
        """What layers of one stack have in common."""
        options = {k: v for k, v in self.layer.options.items() if k != "batch_first"}
        return self.cell, self.hidden_size, self.directions, self.dtype, options

    def module(self) -> Module:
        """The module, of this layer alone."""
        return build(self.layer)


def _named(function: str, *numbers: float) -> Any:
    """(name, alpha[, beta]), or the one name of it; numbers of a file are float32."""
    for name, (same, *wanted) in NAMED.items():
        if function == same and np.array_equal(
            np.array(numbers, np.float32), np.array(wanted, np.float32)
        ):
            return name
    return ("hard_sigmoid_keras2" if function == "hard_sigmoid" else function, *numbers)


def _one_step(module: Any) -> Callable[[Array, Any], tuple[Array, ...]]:
    """A step of one sequence (1, I) and its state to (Y, Y_h, Y_c), in the time of a stream's."""
    unused: list[Any] = []  # of which each thread takes one

    def step(x: Array, state: Any) -> tuple[Array, ...]:
        try:
            stream = unused.pop()
        except IndexError:
            stream = module.stream(1)
        stream.state = state
        y = stream.step(x)[None, None]
        state = stream.state
        unused.append(stream)
        return (y, *state) if type(state) is tuple else (y, state)

    return step


def as_operator(layer: Operator) -> Callable[[Any], Callable[..., tuple[Array, ...]]]:
    """Return what makes the operator, as ONNX has it, of a module of this layer's sizes.

    The operator takes (X, sequence_lens, initial_h, initial_c) to (Y, Y_h, Y_c). It keeps nothing
    of the file.
    """
    D, H = layer.directions, layer.hidden_size
    swapped = layer.layout == 1
    dtype = layer.dtype
    is_lstm = layer.cell == "LSTM"
    steps = not swapped and layer.direction == "forward"
    frame = (1, 1, layer.input_size)

    def bind(module: Any) -> Callable[..., tuple[Array, ...]]:
        one_step = _one_step(module) if steps else None

        def operator(X: Array, lengths: Any, h: Any, c: Any) -> tuple[Array, ...]:
            if one_step and X.shape == frame and lengths is None and X.dtype == dtype:
                if h is not None and (c is not None) == is_lstm:
                    return one_step(X[0], (h, c) if is_lstm else h)
            narrow = X.dtype == np.float16 and dtype == np.float32
            if narrow:
                X = X.astype(dtype)
                h, c = (None if a is None else a.astype(dtype) for a in (h, c))
            if swapped:
                h, c = (None if a is None else a.swapaxes(0, 1) for a in (h, c))
            states: Any = h
            if is_lstm and not (h is None and c is None):
                zeros = np.zeros((D, X.shape[0 if swapped else 1], H), dtype)
                states = zeros if h is None else h, zeros if c is None else c
            y, states = module(X, states, lengths=lengths)
            finals = states if is_lstm else (states,)
            if lengths is not None and not np.all(lengths):
                # The specification is silent; ONNX Runtime gives such a sequence states of zero.
                for state in finals:
                    state[:, np.equal(lengths, 0)] = 0
            if swapped:
                Y = y.reshape(*y.shape[:2], D, H)
                finals = tuple(state.swapaxes(0, 1) for state in finals)
            else:
                Y = y[:, None] if D == 1 else y.reshape(*y.shape[:2], D, H).swapaxes(1, 2)
            results = (Y, *finals)
            return tuple(a.astype(np.float16) for a in results) if narrow else results

        return operator

    return bind


def find(graph: Graph) -> list[Recurrent]:
    """Return every recurrent layer of a graph and of those in it; with what is wrong, if any is."""
    found = []
    for inner, node in graph.nodes():
        if is_recurrent(node):
            around = inner.around(node)
            try:
                operator = Operator(inner, node)
            except ValueError as error:
                path, size = inner.path_of(node), attributes(node).get("hidden_size", 0)
                problem = str(error).removeprefix(f"{path}: ")
                layer = Recurrent(path, _cell(node), 0, size, problem=problem)
            else:
                layer = replace(operator.layer, problem=_lost(operator))
            found.append(replace(layer, around=around))
    return found


def _cell(node: onnx.NodeProto) -> str:
    return "LSTM" if node.op_type == "DynamicQuantizeLSTM" else str(node.op_type)


def _lost(operator: Operator) -> str | None:
    """What the file says that a layer alone would lose, or None."""
    for role in ("initial_h", "initial_c", "sequence_lens"):
        if role in operator.sources:
            value = operator.graph.constant(operator.sources[role])
            if value is not None and (role == "sequence_lens" or np.any(value)):
                return f"its {role} is a constant of the file, which a layer alone would lose"
    return None
