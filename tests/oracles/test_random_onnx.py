"""Random ONNX models, of one node and of many, against ONNX Runtime.

Here are some of them; `make random-models` runs 300.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from conformance import CONSTANT, one_node
from helpers import Array, seeds
from onnx_models import TOLERANCE, compare, make_model, run_onnxruntime, typed, whole

GATES = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 1)}  # gates, activations
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Relu"]}
BOUNDED = ["Sigmoid", "Tanh", "HardSigmoid", "Softsign"]


def random_layer(
    rng: np.random.Generator, T: int, B: int, I: int, spread: float = 1.5
) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(operator, attributes, inputs but X) of a random recurrent node for x (T, B, I).

    A wide spread makes a node that forgets little; several in a row would amplify any rounding.
    """
    op = str(rng.choice(["LSTM", "GRU", "RNN"], p=[0.5, 0.3, 0.2]))
    G, n = GATES[op]
    H = int(rng.choice([1, 7, 16, 33]))
    attributes: dict[str, Any] = {"hidden_size": H}
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 2 if direction == "bidirectional" else 1
    if direction != "forward" or rng.random() < 0.5:
        attributes["direction"] = direction
    scale = spread / np.sqrt(H)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {"W": normal(D, G * H, I), "R": (scale * normal(D, G * H, H)).astype(np.float32)}
    if rng.random() < 0.7:
        inputs["B"] = normal(D, 2 * G * H)
    if rng.random() < 0.5:
        inputs["sequence_lens"] = rng.integers(0, T + 1, B).astype(np.int32)
        inputs["sequence_lens"][rng.integers(B)] = T  # ONNX Runtime wants a step at all
    if rng.random() < 0.7:
        inputs["initial_h"] = normal(D, B, H)
    if op == "LSTM" and rng.random() < 0.7:
        inputs["initial_c"] = normal(D, B, H)
    if op == "LSTM" and rng.random() < 0.3:
        inputs["P"] = normal(D, 3 * H)
    if rng.random() < 0.2:
        attributes["clip"] = float(rng.choice([0.5, 3.0, 50.0, 999.0]))
    if op == "LSTM" and rng.random() < 0.2:
        attributes["input_forget"] = int(rng.integers(2))
    if op == "GRU" and rng.random() < 0.6:
        attributes["linear_before_reset"] = int(rng.integers(2))
    if rng.random() < 0.3:
        attributes["activations"] = [str(a) for a in rng.choice(BOUNDED, D * n)]
    elif rng.random() < 0.3:
        attributes["activations"] = USUAL[op] * D
    return op, attributes, inputs


def test_random_nodes(tmp_path: Path) -> None:
    """One node, whatever its attributes."""
    for seed in seeds(200):
        rng = np.random.default_rng(seed)
        T, B, I = (int(rng.choice(sizes)) for sizes in ([1, 2, 7], [1, 3, 4], [1, 3, 17]))
        op, attributes, inputs = random_layer(rng, T, B, I)
        inputs = {"X": rng.standard_normal((T, B, I)).astype(np.float32), **inputs}
        everything = ["Y", "Y_h", "Y_c"] if op == "LSTM" else ["Y", "Y_h"]
        outputs = [name for name in everything if rng.random() < 0.8] or ["Y"]
        model = one_node(op, attributes, inputs, outputs)
        onnx.checker.check_model(model)
        fed = {name: a for name, a in inputs.items() if name not in CONSTANT}
        try:
            compare(whole(model, tmp_path).run(fed), run_onnxruntime(model, fed), TOLERANCE)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"seed {seed}: {op} {attributes} {list(inputs)}") from error


class Chain:
    """Nodes one after another: what is between recurrent ones, and the constants of all."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.T, self.B, self.width = (int(rng.integers(2, high)) for high in (9, 5, 12))
        self.last = "x"
        x = rng.standard_normal((self.T, self.B, self.width))
        self.inputs: dict[str, Array] = {"x": x.astype(np.float32)}
        self.nodes: list[Any] = []
        self.weights: dict[str, Array] = {}
        self.outputs: list[str] = []

    def constant(self, array: Any) -> str:
        name = f"k{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def normal(self, *shape: int) -> str:
        values = self.rng.standard_normal(shape) / np.sqrt(shape[0])
        return self.constant(values.astype(np.float32))

    def add(self, op: str, *more: str, **attributes: Any) -> None:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *more], [name], **attributes))
        self.last = name

    def recurrent(self) -> None:
        """A recurrent node, and its directions side by side; states and lengths come in."""
        number = len(self.nodes)
        op, attributes, given = random_layer(self.rng, self.T, self.B, self.width, 0.7)
        roles = ("W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
        names = []
        for role in roles:
            if role not in given:
                names.append("")
            elif role in CONSTANT:
                names.append(self.constant(given[role]))
            else:
                names.append(f"{role}_{number}")
                self.inputs[names[-1]] = given[role]
        while not names[-1]:
            names.pop()
        outputs = [f"Y_{number}", f"Y_h_{number}", *([f"Y_c_{number}"] if op == "LSTM" else [])]
        self.nodes.append(helper.make_node(op, [self.last, *names], outputs, **attributes))
        self.outputs += outputs[1:]
        self.last = outputs[0]
        D, H = given["R"].shape[0], attributes["hidden_size"]
        if D == 1 and self.rng.random() < 0.7:
            self.add("Squeeze", self.constant([1]))
        else:
            self.add("Transpose", perm=[0, 2, 1, 3])
            self.add("Reshape", self.constant([0, 0, -1]))
        self.width = D * H

    def between(self) -> None:
        """A layer of those that come between recurrent ones, or none."""
        what = self.rng.integers(7)
        if what == 1:
            self.add(str(self.rng.choice(["Relu", "Tanh", "Dropout", "Sigmoid"])))
        elif what == 2:
            self.add("LayerNormalization", self.normal(self.width), self.normal(self.width))
        elif what == 3:
            wide = int(self.rng.integers(1, 12))
            self.add("MatMul", self.normal(self.width, wide))
            self.add("Add", self.normal(wide))
            self.width = wide
        elif what == 4:
            wide = int(self.rng.integers(1, 12))
            self.add("Transpose", perm=[1, 2, 0])
            self.add("Conv", self.normal(wide, self.width, 3), self.normal(wide), pads=[1, 1])
            self.add("Transpose", perm=[2, 0, 1])
            self.width = wide
        elif what == 5:
            self.add("Transpose", perm=[1, 2, 0])
            self.add("MaxPool", kernel_shape=[2], pads=[0, 1])
            self.add("Transpose", perm=[2, 0, 1])


def test_random_graphs(tmp_path: Path) -> None:
    """One to three recurrent nodes and what is between them."""
    for seed in seeds(100):
        chain = Chain(np.random.default_rng(1000 + seed))
        chain.between()
        for _ in range(chain.rng.integers(1, 4)):
            chain.recurrent()
            chain.between()
        chain.outputs.append(chain.last)
        model = typed(make_model(chain.nodes, chain.inputs, chain.outputs, chain.weights))
        try:
            got = whole(model, tmp_path).run(chain.inputs)
            compare(got, run_onnxruntime(model, chain.inputs), TOLERANCE)
        except (AssertionError, ValueError) as error:
            operators = [node.op_type for node in chain.nodes]
            raise AssertionError(f"seed {seed}: {operators}") from error
