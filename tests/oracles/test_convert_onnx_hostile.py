"""Broken and hostile ONNX files: a clear error, in bounded memory and time."""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conformance import one_node
from cylstm import inspect, load
from helpers import Array

X = np.ones((3, 2, 5), np.float32)


def weights(**changes: Any) -> dict[str, Array]:
    shapes = {"W": (1, 28, 5), "R": (1, 28, 7), "B": (1, 56)} | changes
    return {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}


def model(**attributes: Any) -> Any:
    return one_node("LSTM", {"hidden_size": 7} | attributes, {"X": X, **weights()}, ["Y"])


def rewired(name: str, *names: str) -> Any:
    """The model with other names where an input has its own."""
    made = model()
    inputs = [new for old in made.graph.node[0].input for new in (names if old == name else [old])]
    made.graph.node[0].input[:] = inputs
    return made


def refuse(data: bytes | Any, folder: Path, message: str, inside: str | None = None) -> None:
    """Loading ends in a ValueError, within a second and 200 MB."""
    path = folder / "bad.onnx"
    path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=message):
            load(path, inside)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 5


def test_truncated(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        refuse(whole[:length], tmp_path, "bad.onnx")


def test_broken_nodes_and_ports(tmp_path: Path) -> None:
    """In a graph that is no layer: an attribute or an input is missing, a type is none."""
    for node, message in (
        (helper.make_node("Cast", ["Y"], ["Z"], name="n"), "n: a broken Cast: 'to'"),
        (helper.make_node("Pow", ["Y"], ["Z"], name="n"), "n: a broken Pow"),
    ):
        broken = model()
        broken.graph.node.append(node)
        broken.graph.output[0].name = "Z"
        refuse(broken, tmp_path, message)
    broken = model()
    broken.graph.node.append(helper.make_node("Relu", ["Y"], ["Z"]))
    broken.graph.output[0].name = "Z"
    broken.graph.output[0].type.tensor_type.elem_type = 99
    refuse(broken, tmp_path, "Z is of type 99")


def test_broken_branches_and_loops(tmp_path: Path) -> None:
    """A graph within a node has what the node must have, and layers only where one may be."""

    def graph(*nodes: Any, inputs: str = "", outputs: str = "") -> Any:
        ports = [
            [onnx.ValueInfoProto(name=n) for n in names.split()] for names in (inputs, outputs)
        ]
        return helper.make_graph(list(nodes), "inner", *ports)

    same = helper.make_node("Identity", ["going"], ["go_on"])
    twice = helper.make_node("Identity", ["a"], ["b"])
    loop = {"inputs": "k going a", "outputs": "go_on b"}
    inner = helper.make_node("LSTM", ["row", "W", "R"], ["s"], hidden_size=7)
    scan = graph(inner, inputs="row", outputs="s")
    for node, message in (
        (helper.make_node("If", ["on"], ["z"], then_branch=graph(twice)), "an If without branches"),
        (
            helper.make_node("Loop", ["", "on", "X", "X"], ["z"], body=graph(same, twice, **loop)),
            "a Loop of 2 values whose body takes 1 and makes 1",
        ),
        (
            helper.make_node("Scan", ["X"], ["z"], body=scan, num_scan_inputs=1),
            "a recurrent layer inside a Scan is not supported",
        ),
    ):
        broken = model()
        broken.graph.node.append(node)
        broken.graph.output[0].name = "z"
        broken.graph.input.append(helper.make_tensor_value_info("on", TensorProto.BOOL, []))
        refuse(broken, tmp_path, message)


def test_flipped_bytes(tmp_path: Path) -> None:
    """Whatever a damaged file says: a ValueError, or a model; nothing else."""
    whole = model().SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "bad.onnx"
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            load(path)
        except ValueError as error:
            assert "bad.onnx" in str(error)


def test_something_else(tmp_path: Path) -> None:
    refuse(b"\x08\x08\x12\xff and more", tmp_path, "no ONNX file, or a broken one")
    empty = onnx.ModelProto(ir_version=8, producer_name="nobody")
    refuse(empty, tmp_path, "no ONNX file: it holds no graph")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "shape of R": (
        lambda: one_node("LSTM", {}, {"X": X, **weights(R=(1, 27, 7))}, ["Y"]),
        r"rnn: R has shape \(1, 27, 7\), expected \(1, 28, 7\)",
    ),
    "shape of B": (
        lambda: one_node("LSTM", {}, {"X": X, **weights(B=(1, 28))}, ["Y"]),
        r"rnn: B has shape \(1, 28\), expected \(1, 56\)",
    ),
    "axes of W": (
        lambda: one_node("LSTM", {}, {"X": X, **weights(W=(28, 5))}, ["Y"]),
        r"rnn: W has shape \(28, 5\), expected 3 axes",
    ),
    "no units": (
        lambda: one_node(
            "LSTM", {}, {"X": X, **weights(W=(1, 0, 5), R=(1, 0, 0), B=(1, 0))}, ["Y"]
        ),
        "hidden_size 0, expected 1 or more",
    ),
    "types of W and R": (
        lambda: one_node("LSTM", {}, {"X": X, **weights(), "R": np.ones((1, 28, 7))}, ["Y"]),
        "W is float32 and R is float64, expected floats of one size",
    ),
    "no X": (lambda: rewired("X", ""), "rnn: X is missing"),
    "no W": (lambda: rewired("W", ""), "rnn: W is missing"),
    "surplus inputs": (lambda: rewired("B", *"BBBBBB"), "13 inputs, expected at most 8"),
    "a Y that is not made": (
        lambda: model(output_sequence=0),
        "output_sequence is 0, and yet its output Y has a name",
    ),
    "hidden_size": (lambda: model(hidden_size=8), "hidden_size is 8, but R has 7 columns"),
    "direction": (lambda: model(direction="backward"), "direction is 'backward'"),
    "layout": (lambda: model(layout=2), "layout is 2, expected 0 or 1"),
    "attribute": (lambda: model(cell_clip=2.0), "attribute cell_clip is unknown"),
    "clip": (lambda: model(clip=-1.0), "clip is -1.0"),
    "activation": (
        lambda: model(activations=["Sigmoid", "Tanh", "Swish"]),
        "activation 'Swish' is unknown",
    ),
    "number of activations": (
        lambda: model(activations=["Sigmoid", "Tanh"]),
        "2 activations, expected 3",
    ),
    "surplus alpha": (
        lambda: model(activation_alpha=[0.0, 0.3]),
        "activation_alpha has 2 values more than are used",
    ),
    "missing alpha": (
        lambda: model(activations=["Sigmoid", "Affine", "Tanh"]),
        r"activation 'Affine' \(affine\) needs activation_alpha",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_nodes(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    refuse(make(), tmp_path, message)


def test_weights_computed_at_run_time(tmp_path: Path) -> None:
    found = model()
    info = helper.make_tensor_value_info("W", TensorProto.FLOAT, [1, 28, 5])
    found.graph.input.append(info)
    del found.graph.initializer[0]
    refuse(found, tmp_path, "W is computed while the model runs, expected a constant")


def test_unknown_operator(tmp_path: Path) -> None:
    found = model()
    found.graph.node.append(helper.make_node("Frobnicate", ["Y"], ["Z"], domain="acme"))
    found.opset_import.append(helper.make_opsetid("acme", 1))
    found.graph.output[0].name = "Z"
    refuse(found, tmp_path, "the onnx package can't run acme.Frobnicate")
    contents = inspect(tmp_path / "bad.onnx")
    assert contents.layers and "can't run acme.Frobnicate" in (contents.problem or "")
    assert "\nas a whole: does not load: Frobnicate" in repr(contents)


def test_path_that_is_not_there(tmp_path: Path) -> None:
    refuse(model(), tmp_path, "no recurrent layer 'decoder', expected one of 'rnn'", "decoder")


# --- the graph


def replaced_w(*nodes: Any, initializers: tuple[Any, ...] = ()) -> Any:
    """The model with its W made by nodes instead."""
    found = model()
    kept = [t for t in found.graph.initializer if t.name != "W"]
    del found.graph.initializer[:]
    found.graph.initializer.extend([*kept, *initializers])
    lstm = found.graph.node[0]
    del found.graph.node[:]
    found.graph.node.extend([*nodes, lstm])
    return found


def integers(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def test_name_that_nothing_makes(tmp_path: Path) -> None:
    refuse(replaced_w(), tmp_path, "nothing in the file makes 'W'")


def test_cycle(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("V", "W"), ("W", "V"))]
    refuse(replaced_w(*nodes), tmp_path, "is computed from itself")


def test_long_chain(tmp_path: Path) -> None:
    """Long, but right: it loads, without recursion."""
    names = ["start", *[f"v{k}" for k in range(3000)], "W"]
    chain = [helper.make_node("Identity", [a], [b]) for a, b in zip(names, names[1:])]
    start = numpy_helper.from_array(weights()["W"], "start")
    path = tmp_path / "long.onnx"
    path.write_bytes(replaced_w(*chain, initializers=(start,)).SerializeToString())
    assert load(path) is not None


def bombs() -> Iterator[Any]:
    huge = integers("n", 1 << 20, 1 << 20)
    yield pytest.param(
        [helper.make_node("ConstantOfShape", ["n"], ["W"])], (huge,), id="ConstantOfShape"
    )
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    yield pytest.param([helper.make_node("Expand", ["one", "n"], ["W"])], (huge, one), id="Expand")
    yield pytest.param([helper.make_node("Tile", ["one", "n"], ["W"])], (huge, one), id="Tile")
    limits = [
        numpy_helper.from_array(np.array(v), k) for k, v in (("a", 0), ("b", 1 << 50), ("d", 1))
    ]
    yield pytest.param(
        [helper.make_node("Range", ["a", "b", "d"], ["W"])], tuple(limits), id="Range"
    )
    doubling = [
        helper.make_node("Concat", [f"v{k}", f"v{k}"], [f"v{k + 1}"], axis=0) for k in range(50)
    ]
    start = numpy_helper.from_array(np.ones((1, 1), np.float32), "v0")
    last = helper.make_node("Identity", ["v50"], ["W"])
    yield pytest.param([*doubling, last], (start,), id="Concat")
    row, column = (
        numpy_helper.from_array(np.ones(s, np.float32), k)
        for k, s in (("row", (1, 1 << 16)), ("column", (1 << 16, 1)))
    )
    yield pytest.param(
        [helper.make_node("Add", ["row", "column"], ["W"])], (row, column), id="broadcast"
    )
    index = numpy_helper.from_array(np.zeros(1 << 18, np.int64), "index")
    wide = numpy_helper.from_array(np.ones((2, 1 << 16), np.float32), "wide")
    yield pytest.param(
        [helper.make_node("Gather", ["wide", "index"], ["W"])], (index, wide), id="Gather"
    )


@pytest.mark.parametrize(("nodes", "initializers"), list(bombs()))
def test_constants_that_unfold(nodes: Any, initializers: Any, tmp_path: Path) -> None:
    refuse(
        replaced_w(*nodes, initializers=initializers),
        tmp_path,
        "makes its constants many times larger than the file",
    )


def test_dimensions_beyond_the_data(tmp_path: Path) -> None:
    tensor = TensorProto(name="W", dims=[1 << 40, 1 << 40], data_type=1, raw_data=b"1234")
    refuse(replaced_w(initializers=(tensor,)), tmp_path, "tensor 'W' of shape .* is broken")
    tensor = TensorProto(name="W", dims=[1, -28, 5], data_type=1, raw_data=bytes(560))
    refuse(replaced_w(initializers=(tensor,)), tmp_path, "bad.onnx")


def test_deep_nesting(tmp_path: Path) -> None:
    """Ifs inside Ifs; the parser of protobuf bounds their number."""
    inner = model().graph
    condition = numpy_helper.from_array(np.array(True), "yes")
    for _ in range(60):
        node = helper.make_node("If", ["yes"], ["Y"], then_branch=inner, else_branch=inner)
        outer = helper.make_graph([node], "g", [], [inner.output[0]], [condition])
        inner = outer
        if outer.ByteSize() > 1 << 22:
            break
        node.attribute[1].g.CopyFrom(helper.make_graph([], "empty", [], []))
    found = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 14)])
    path = tmp_path / "deep.onnx"
    path.write_bytes(found.SerializeToString())
    start = time.perf_counter()
    try:
        load(path)
    except ValueError as error:
        assert "deep.onnx" in str(error)
    assert time.perf_counter() - start < 20


# --- external data


def external(location: str, **more: str) -> Any:
    tensor = TensorProto(name="W", dims=[1, 28, 5], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return replaced_w(initializers=(tensor,))


def test_functions_that_unfold(tmp_path: Path) -> None:
    """Each calls the one before twice, or many once, or itself, or carries a large constant."""
    opsets = [helper.make_opsetid("", 14), helper.make_opsetid("own", 1)]

    def call(name: str, *ends: str) -> Any:
        return helper.make_node(name, [ends[0]], [ends[1]], domain="own")

    def refuse_calls(functions: dict[str, list[Any]], last: list[Any], message: str) -> None:
        broken = model()
        broken.opset_import.append(opsets[1])
        for name, nodes in functions.items():
            broken.functions.append(
                helper.make_function("own", name, ["a"], ["b"], nodes, opset_imports=opsets)
            )
        broken.graph.node.extend(last)
        broken.graph.output[0].name = "Z"
        refuse(broken, tmp_path, message)

    double = {"f0": [helper.make_node("Relu", ["a"], ["b"])]}
    chain = dict(double)
    for k in range(1, 101):
        double[f"f{k}"] = [call(f"f{k - 1}", "a", "m"), call(f"f{k - 1}", "m", "b")]
        chain[f"f{k}"] = [call(f"f{k - 1}", "a", "b")]
    refuse_calls(double, [call("f30", "Y", "Z")], "its functions take .* bytes")
    last = [call("f90", "Y", "V"), call("f100", "V", "Z")]
    refuse_calls(chain, last, "101 deep")
    refuse_calls(chain, last[1:], "101 deep")
    chain["f0"] = [call("f100", "a", "b")]
    refuse_calls(chain, last, "its function 'f100' contains itself|101 deep")
    refuse_calls({"f": [call("f", "a", "b")]}, [call("f", "Y", "Z")], "'f' contains itself")
    inner = helper.make_graph([call("g", "a", "t")], "g", [], [onnx.ValueInfoProto(name="t")])
    branches = helper.make_node("If", ["on"], ["b"], then_branch=inner, else_branch=inner)
    refuse_calls({"g": [branches]}, [call("g", "Y", "Z")], "'g' contains itself")
    large = numpy_helper.from_array(np.ones(1 << 16, np.float32))
    constant = helper.make_node("Constant", [], ["c"], value=large)
    adds = {"f": [constant, helper.make_node("Add", ["a", "c"], ["b"])]}
    many = [call("f", f"Z{k}" if k else "Y", f"Z{k + 1}") for k in range(200)]
    refuse_calls(adds, [*many, call("f", "Z200", "Z")], "its functions take .* bytes")


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    data = b"skipped!" + weights()["W"].tobytes()
    (tmp_path / "more" / "w.bin").write_bytes(data)
    path = tmp_path / "model.onnx"
    path.write_bytes(external("more/w.bin", offset="8", length="560").SerializeToString())
    lstm: Any = load(path)
    assert np.all(lstm.state_dict()["weight_ih_l0"] == np.float32(0.1))


def test_external_data_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(weights()["W"].tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "folder.bin").mkdir()
    for location in ("../secret.bin", str(secret), "link.bin", "missing.bin", "folder.bin", ""):
        refuse(external(location), folder, "expected a file inside the model's folder")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"offset": "8"}, "W"),
        ({"offset": "-8"}, "has 560"),
        ({"length": "561"}, "bytes 0 to 561 of 'w.bin', which has 560"),
        ({"length": "12"}, "tensor 'W' of shape .* is broken"),
        ({"offset": "1e3"}, "not a number"),
    ],
)
def test_external_data_of_a_wrong_size(more: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(weights()["W"].tobytes())
    refuse(external("w.bin", **more), tmp_path, message)


# --- without the package


def test_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install cylstm\[onnx\]"):
        load(path)
