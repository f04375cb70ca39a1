"""ONNX Runtime's LSTM operator, float32: non-zero states, lengths, directions.

Gates stand in the order i, o, f, c there, and both biases in one array (D, 8H).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from helpers import Array, Problem, assert_close, make_problem, rel

# Between ours and one that computes in float32 itself, with approximations of its own.
TOLERANCE = 5e-6


def to_iofc(a: Array) -> Array:
    """The blocks i, f, g, o of the first axis as i, o, f, c."""
    i, f, g, o = np.split(a, 4)
    return np.concatenate([i, o, f, g])


def run_onnxruntime(p: Problem, direction: str) -> list[Array]:
    """[Y (T, D, B, H), Y_h (D, B, H), Y_c (D, B, H)] of one layer."""
    T, B, _ = p.x.shape
    suffixes = ["", "_reverse"] if direction == "bidirectional" else [""]
    inputs: dict[str, Array] = {
        "X": p.x,
        "W": np.stack([to_iofc(p.weights[f"weight_ih_l0{s}"]) for s in suffixes]),
        "R": np.stack([to_iofc(p.weights[f"weight_hh_l0{s}"]) for s in suffixes]),
    }
    if p.config.get("bias", True):
        inputs["B"] = np.stack(
            [
                np.concatenate([to_iofc(p.weights[f"bias_{k}_l0{s}"]) for k in ("ih", "hh")])
                for s in suffixes
            ]
        )
    if p.lengths is not None:
        inputs["sequence_lens"] = np.asarray(p.lengths, np.int32)
    inputs |= {"initial_h": p.h_0, "initial_c": p.c_0}
    names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")
    node = helper.make_node(
        "LSTM",
        [name if name in inputs else "" for name in names],
        ["Y", "Y_h", "Y_c"],
        direction=direction,
        hidden_size=p.config["hidden_size"],
    )

    graph = helper.make_graph(
        [node],
        "lstm",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for name, a in inputs.items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in (("Y", 4), ("Y_h", 3), ("Y_c", 3))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


@pytest.mark.parametrize("lengths", [None, [7, 3, 1, 5, 7, 2, 4]], ids=["full", "lengths"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize(("I", "H"), [(1, 1), (3, 7), (17, 16), (7, 50)])
def test_against_onnxruntime(
    I: int, H: int, bidirectional: bool, bias: bool, lengths: list[int] | None
) -> None:
    p = make_problem(
        I,
        7,
        7,
        lengths,
        "float32",
        input_size=I,
        hidden_size=H,
        bias=bias,
        bidirectional=bidirectional,
    )
    Y, Y_h, Y_c = run_onnxruntime(p, "bidirectional" if bidirectional else "forward")
    y, (h_n, c_n) = p.lstm()(p.x, p.states, lengths=p.lengths)
    D = 1 + bidirectional
    errors = {
        "Y": rel(y, Y.transpose(0, 2, 1, 3).reshape(7, 7, D * H)),
        "Y_h": rel(h_n, Y_h),
        "Y_c": rel(c_n, Y_c),
    }
    assert_close(errors, TOLERANCE)


def test_length_zero() -> None:
    """The one length that PyTorch refuses.

    Y only: ONNX Runtime gives such a sequence zero states, where this library hands h_0 on.
    """
    lengths = [4, 0, 2]
    p = make_problem(1, 5, 3, lengths, "float32", input_size=3, hidden_size=7, bidirectional=True)
    Y, Y_h, Y_c = run_onnxruntime(p, "bidirectional")
    y, (h_n, c_n) = p.lstm()(p.x, p.states, lengths=p.lengths)
    some = [0, 2]
    assert_close(
        {
            "Y": rel(y, Y.transpose(0, 2, 1, 3).reshape(5, 3, 14)),
            "Y_h": rel(h_n[:, some], Y_h[:, some]),
            "Y_c": rel(c_n[:, some], Y_c[:, some]),
        },
        TOLERANCE,
    )


def test_the_operator_in_reverse() -> None:
    """Its "reverse" direction alone, with lengths, is the second half of a bidirectional LSTM."""
    both = make_problem(
        2, 6, 4, [6, 2, 5, 1], "float32", input_size=3, hidden_size=7, bidirectional=True
    )
    one = both._replace(
        weights={
            name.removesuffix("_reverse"): a
            for name, a in both.weights.items()
            if name.endswith("_reverse")
        },
        h_0=both.h_0[1:],
        c_0=both.c_0[1:],
    )
    Y, Y_h, Y_c = run_onnxruntime(one, "reverse")
    y, (h_n, c_n) = both.lstm()(both.x, both.states, lengths=both.lengths)
    errors = {
        "Y": rel(y[:, :, 7:], Y[:, 0]),
        "Y_h": rel(h_n[1:], Y_h),
        "Y_c": rel(c_n[1:], Y_c),
    }
    assert_close(errors, TOLERANCE)
