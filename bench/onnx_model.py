"""The network of a problem as an ONNX graph: one node per layer, float32, fixed sizes."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from bench.problem import Array, Problem, suffixes

# As places in PyTorch's i, f, g, o and r, z, n: ONNX keeps i, o, f, c and z, r, h.
GATE_ORDERS = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN": [0]}


def to_onnx(problem: Problem) -> ModelProto:
    """Build the graph.

    Inputs x and, per layer, h_0_<layer>, c_0_<layer>; outputs y (T,B,D*H) and h_n_<layer>,
    c_n_<layer>; c of LSTMs alone. States go in and out per layer, so that no engine splits or joins
    them.
    """
    s = problem.shape
    nodes, constants = [], []
    states_in, states_out = [], []

    def constant(name: str, value: Array) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def stack(name: str, directions: list[str]) -> Array:
        """(D, GH, ...) in ONNX's gate order."""
        w = np.stack([problem.weights[name + suffix] for suffix in directions])
        w = w.reshape(s.D, s.gates, s.H, -1)[:, GATE_ORDERS[s.kind]]
        return w.reshape(s.D, s.gates * s.H, -1)

    x = "x"
    for layer, (_, directions) in enumerate(suffixes(s)):
        first = [f"{name}_{layer}" for name in problem.states]
        last = [name.replace("_0_", "_n_") for name in first]
        biases = [stack("bias_ih", directions), stack("bias_hh", directions)]
        weights = [
            constant(f"W_{layer}", stack("weight_ih", directions)),
            constant(f"R_{layer}", stack("weight_hh", directions)),
            constant(f"b_{layer}", np.concatenate(biases, axis=1)[..., 0]),
        ]
        nodes.append(
            helper.make_node(
                s.kind,
                [x, *weights, "", *first],
                [f"Y_{layer}", *last],
                hidden_size=s.H,
                direction="bidirectional" if s.D == 2 else "forward",
                **({"linear_before_reset": int(s.reset_after)} if s.kind == "GRU" else {}),
            )
        )
        # Y is (T,D,B,H); what nn.LSTM gives, and the next layer takes, is (T,B,D*H).
        y = f"Y_{layer}"
        if s.D == 2:
            nodes.append(helper.make_node("Transpose", [y], [f"YT_{layer}"], perm=[0, 2, 1, 3]))
            y = f"YT_{layer}"
        x = "y" if layer == s.num_layers - 1 else f"y_{layer}"
        width = constant(f"width_{layer}", np.array([s.T, s.B, s.D * s.H]))
        nodes.append(helper.make_node("Reshape", [y, width], [x]))
        states_in += first
        states_out += last

    def value(name: str, *size: int) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, size)

    graph = helper.make_graph(
        nodes,
        "network",
        [value("x", s.T, s.B, s.I)] + [value(name, s.D, s.B, s.H) for name in states_in],
        [value("y", s.T, s.B, s.D * s.H)] + [value(name, s.D, s.B, s.H) for name in states_out],
        constants,
    )
    # Opset 14 is the newest definition of these nodes that every engine here takes.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model
