"""Modules as ONNX files: one operator for each layer, and what puts them together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .._core import kind_of
from ..activations import resolve
from ..module import Module
from ..weights import Array
from .gates import from_own, peepholes_from_own
from .onnx_file import import_onnx
from .onnx_recurrent import ACTIVATIONS, BLOCKS, DEFAULT_ACTIVATIONS

OPSET, IR_VERSION = 17, 8  # of one age: an older file format, so that older runtimes read it

# Arguments that are not the operator's: they are in the graph around it, or in training alone.
AROUND = frozenset(
    "input_size hidden_size num_layers bias batch_first bidirectional dtype dropout "
    "recurrent_dropout forget_bias".split()
)


def write(
    module: Module, path: str | os.PathLike[str], states: bool, lengths: bool, opset: int
) -> None:
    """Write a module as `to_onnx` says."""
    cell = type(module).__name__
    if cell not in BLOCKS:
        raise TypeError(f"module is {kind_of(module)}, expected one of {', '.join(BLOCKS)}")
    onnx = import_onnx()
    _checks.integer("opset", opset, 14, onnx.defs.onnx_opset_version())
    model = onnx.helper.make_model(
        _Writer(module, cell, states, lengths).graph(),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=IR_VERSION if opset <= OPSET else onnx.IR_VERSION,
        producer_name="cylstm",
    )
    onnx.checker.check_model(model, full_check=True)
    Path(path).write_bytes(model.SerializeToString())


class _Writer:
    def __init__(self, module: Any, cell: str, states: bool, lengths: bool) -> None:
        self.onnx = import_onnx()
        self.cell, self.lengths = cell, lengths
        self.config = module._config()
        self.weights = module.state_dict()
        self.dtype = module.dtype
        self.D = 1 + bool(self.config.get("bidirectional"))
        self.H = self.config["hidden_size"]
        self.given = (["h_0", "c_0"] if cell == "LSTM" else ["h_0"]) if states else []
        self.attributes = self._attributes()
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def _attributes(self) -> dict[str, Any]:
        """The operator's attributes, or ValueError for an argument that it has none for."""
        left = {k: v for k, v in self.config.items() if k not in AROUND}
        found: dict[str, Any] = {"hidden_size": self.H}
        reverse = left.pop("reverse", False)
        if self.D == 2:
            found["direction"] = "bidirectional"
        elif reverse:
            found["direction"] = "reverse"
        if left.pop("coupled", None) == "f=1-i":
            found["input_forget"] = 1
        elif self.config.get("coupled"):
            left["coupled"] = self.config["coupled"]
        if left.pop("reset_after", self.cell == "GRU"):
            found["linear_before_reset"] = 1
        if (clip := left.pop("clip", None)) is not None:
            found["clip"] = float(clip)
        self.peephole = left.pop("peephole", False)
        activations = left.pop("activations", None)
        nonlinearity = left.pop("nonlinearity", "tanh")
        if activations is None and nonlinearity != "tanh":
            activations = (nonlinearity,)
        if activations is not None:
            found |= self._activations(activations)
        if wrong := {k: v for k, v in left.items() if v}:
            raise ValueError(
                f"ONNX has no {self.cell} with "
                f"{', '.join(f'{name} {value!r}' for name, value in wrong.items())}"
            )
        return found

    def _activations(self, activations: Any) -> dict[str, Any]:
        each = len(DEFAULT_ACTIVATIONS[self.cell])
        all_of_them = list(activations) * (self.D if len(activations) == each else 1)
        theirs = {ours: (name, len(numbers)) for name, (ours, numbers) in ACTIVATIONS.items()}
        names: list[str] = []
        alpha: list[float] = []
        beta: list[float] = []
        for function in all_of_them:
            ours, first, second = resolve("activations", function)
            name, takes = theirs[ours]
            names.append(name)
            alpha += [first] * (takes > 0)
            beta += [second] * (takes > 1)
        found: dict[str, Any] = {"activations": names}
        if alpha:
            found["activation_alpha"] = alpha
        if beta:
            found["activation_beta"] = beta
        return found

    # --- pieces

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: Array) -> str:
        tensor = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.initializers.append(tensor)
        return name

    def integers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def info(self, name: str, shape: list[Any], dtype: Any = None) -> Any:
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        return self.onnx.helper.make_tensor_value_info(name, kind, shape)

    def weight(self, layer: int, name: str) -> Array:
        """A weight of all directions of a layer, its gates in the operator's order."""
        arrays = [self.weights[f"{name}_l{layer}{end}"] for end in ("", "_reverse")[: self.D]]
        if name == "weight_peep":
            if "input_forget" in self.attributes:  # i and o; the operator has a place for f
                parts = [np.split(array, 2) for array in arrays]
                arrays = [np.concatenate([i, np.zeros_like(i), o]) for i, o in parts]
            return np.stack([peepholes_from_own(array, "onnx") for array in arrays])
        if "input_forget" in self.attributes:
            # Three gates here, i, g, o; the operator has a place for f, which it does not read.
            parts = [np.split(array, 3) for array in arrays]
            arrays = [np.concatenate([i, np.zeros_like(i), g, o]) for i, g, o in parts]
        return np.stack([from_own(array, self.cell, "onnx") for array in arrays])

    def layer(self, k: int, x: str) -> tuple[str, list[str]]:
        """Append layer k on x (T, B, .): the names of y (T, B, .) and of its final states."""
        inputs = [x]
        inputs.append(self.constant(f"W_{k}", self.weight(k, "weight_ih")))
        inputs.append(self.constant(f"R_{k}", self.weight(k, "weight_hh")))
        if self.config["bias"]:
            both = [self.weight(k, name) for name in ("bias_ih", "bias_hh")]
            inputs.append(self.constant(f"B_{k}", np.concatenate(both, 1)))
        else:
            inputs.append("")
        inputs.append("lengths" if self.lengths else "")
        for name in self.given:
            ends = [
                self.integers(f"{name}_{k}_{n}", v * self.D) for n, v in (("a", k), ("b", k + 1))
            ]
            inputs.append(self.node("Slice", [name, *ends, "first"], [f"{name}_{k}"]))
        if self.peephole:
            inputs += [""] * (7 - len(inputs))
            inputs.append(self.constant(f"P_{k}", self.weight(k, "weight_peep")))
        while not inputs[-1]:
            inputs.pop()
        finals = [f"{name}_{k}" for name in self.finals()]
        self.node(self.cell, inputs, [f"Y_{k}", *finals], **self.attributes)
        # (T, D, B, H) to (T, B, D H)
        transposed = self.node("Transpose", [f"Y_{k}"], [f"transposed_{k}"], perm=[0, 2, 1, 3])
        return self.node("Reshape", [transposed, "joined"], [f"y_{k}"]), finals

    def finals(self) -> list[str]:
        return ["h_n", "c_n"] if self.cell == "LSTM" else ["h_n"]

    def graph(self) -> Any:
        L, D, H, I = self.config["num_layers"], self.D, self.H, self.config["input_size"]
        batch_first = self.config["batch_first"]
        self.integers("first", 0)
        self.integers("joined", 0, 0, -1)
        x = self.node("Transpose", ["x"], ["x_t"], perm=[1, 0, 2]) if batch_first else "x"
        states: list[list[str]] = []
        for k in range(L):
            x, finals = self.layer(k, x)
            states.append(finals)
        if batch_first:
            self.node("Transpose", [x], ["y"], perm=[1, 0, 2])
        else:
            self.node("Identity", [x], ["y"])
        for name, parts in zip(self.finals(), zip(*states)):
            self.node("Concat", list(parts), [name], axis=0)
        steps = ["B", "T"] if batch_first else ["T", "B"]
        inputs = [self.info("x", [*steps, I])]
        inputs += [self.info(name, [L * D, "B", H]) for name in self.given]
        if self.lengths:
            inputs.append(self.info("lengths", ["B"], np.int32))
        outputs = [self.info("y", [*steps, D * H])]
        outputs += [self.info(name, [L * D, "B", H]) for name in self.finals()]
        return self.onnx.helper.make_graph(
            self.nodes, f"cylstm.{self.cell}", inputs, outputs, self.initializers
        )
