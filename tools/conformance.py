"""Cases with literal numbers that other projects test their recurrent layers by, run through ours.

    python tools/conformance.py FOLDER [--only TEXT] [--all]

FOLDER holds the cases and a `load_cases.py` whose functions yield them as dicts of arrays; it is
no part of this repository, and nothing of it is copied. Each case passes, fails, or is refused by
name: an argument that our layers do not have yet. The exit code is 1 if any fails, or none ran.

ONNX's and ONNX Runtime's cases go through files of one node and `cylstm.convert.onnx`; Keras',
LiteRT's and ELMo's have weights only, which are put in here.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cylstm
from cylstm.files import CLASSES

Array = NDArray[Any]
Record = dict[str, Any]


class Refused(Exception):
    """Our layers do not have this (yet)."""


class Case(NamedTuple):
    """One case: `run` gives {output: array}, or raises Refused."""

    suite: str
    name: str
    run: Callable[[], Mapping[str, Array]]
    want: Mapping[str, Array]
    rtol: float
    atol: float
    fails: bool = False  # expects an error instead of numbers


class Result(NamedTuple):
    case: Case
    outcome: str  # "passed", "failed", "refused"
    why: str = ""


def load_cases(folder: Path) -> Any:
    """The folder's own loaders."""
    spec = importlib.util.spec_from_file_location("load_cases", folder / "load_cases.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(case: Case) -> Result:
    """Run one case."""
    try:
        got = case.run()
    except Refused as error:
        return Result(case, "refused", str(error))
    except Exception as error:
        expected = case.fails and isinstance(error, ValueError)
        return Result(case, "passed" if expected else "failed", f"{type(error).__name__}: {error}")
    if case.fails:
        return Result(case, "failed", "no error")
    if not case.want:
        return Result(case, "failed", "nothing to compare with")
    for name, want in case.want.items():
        try:
            np.testing.assert_allclose(got[name], want, case.rtol, case.atol)
        except AssertionError as error:
            return Result(case, "failed", f"{name}: {' '.join(str(error).split())}")
    return Result(case, "passed")


def cases(folder: Path) -> Iterator[Case]:
    """Every case of the folder."""
    found = load_cases(folder)
    for record in found.onnx_node():
        yield Case(
            "ONNX node tests",
            record["npz"],
            partial(run_node, *(record[k] for k in ("op", "attributes", "inputs", "outputs"))),
            record["outputs"],
            record["rtol"],
            record["atol"],
        )
    for record in found.ort():
        yield Case(
            "ONNX Runtime",
            record["id"],
            partial(run_node, *(record[k] for k in ("op", "attributes", "inputs", "outputs"))),
            record["outputs"],
            0,
            record["atol"],
            record["expect"] == "failure",
        )
    for record in found.keras():
        yield Case(
            "Keras",
            record["id"],
            partial(run_keras, record),
            {"y": record["expected"]},
            record["rtol"],
            record["atol"],
        )
    for record in found.tflite():
        yield Case(
            "LiteRT",
            record["id"],
            partial(run_litert, record),
            record["outputs"] or independent_units(record),
            0,
            1e-5 if record["outputs"] else 1e-6,  # ArrayFloatNear's, which each of them states
        )
    index, arrays = found.elmo()
    expected = {name: a for name, a in arrays.items() if name.endswith("/expected")}
    outputs: dict[str, Array] = {}
    for name, want in expected.items():
        yield Case(
            "ELMo",
            name,
            partial(run_elmo, index, arrays, outputs),
            {name: want},
            0,
            index["upstream_atol"],
        )


# ---------------------------------------------------------------------------------------------
# ONNX: a file of one node
# ---------------------------------------------------------------------------------------------

ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
CONSTANT = ("W", "R", "B", "P")


def one_node(
    op: str,
    attributes: Mapping[str, Any],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Any] | list[str],
    opset: int = 14,
) -> Any:
    """An ONNX model of one node, whose weights are initializers and other inputs its inputs."""
    import onnx
    from onnx import helper

    everything = ("Y", "Y_h", "Y_c")[: 3 if op == "LSTM" else 2]
    roles = ROLES if op == "LSTM" else ROLES[:6]
    node = helper.make_node(
        op,
        [role if role in inputs else "" for role in roles],
        [name if name in outputs else "" for name in everything],
        name="rnn",
        **{k: int(v) if isinstance(v, (bool, np.bool_)) else v for k, v in attributes.items()},
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                role, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim
            )
            for role, a in inputs.items()
            if role not in CONSTANT
        ],
        [
            helper.make_tensor_value_info(
                name,
                helper.np_dtype_to_tensor_dtype(inputs["X"].dtype),
                [None] * (4 if name == "Y" else 3),
            )
            for name in everything
            if name in outputs
        ],
        [onnx.numpy_helper.from_array(inputs[role], role) for role in CONSTANT if role in inputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run_node(
    op: str, attributes: Mapping[str, Any], inputs: Mapping[str, Array], outputs: Any
) -> Mapping[str, Array]:
    """Write a file of one node, read it, and run it as the operator that it is."""
    inputs = {
        name: a.astype(np.int32 if name == "sequence_lens" else a.dtype)
        for name, a in inputs.items()
    }
    opset = 22 if "layout" in attributes else 14
    model = one_node(op, attributes, inputs, outputs, opset)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        try:
            graph = cylstm.load(path, graph=True)
        except ValueError:
            layers = [layer for layer in cylstm.inspect(path).layers if not layer.problem]
            if obstacles := [layer.obstacle() for layer in layers if layer.obstacle()]:
                raise Refused("; ".join(map(str, obstacles))) from None
            raise
    return graph.run({name: a for name, a in inputs.items() if name not in CONSTANT})


# ---------------------------------------------------------------------------------------------
# Keras: gates i, f, c, o and z, r, h; kernels (I, 4H); one bias, or two of a GRU
# ---------------------------------------------------------------------------------------------

KERAS_CELLS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}
KERAS_ORDER = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}


def make(cell: str, config: Mapping[str, Any], weights: Mapping[str, Array]) -> Any:
    """One of our layers, or Refused where it does not take an argument."""
    if cell not in CLASSES:
        raise Refused(f"this version has no {cell}")
    known = signature(CLASSES[cell]).parameters
    if missing := [f"{name}={value!r}" for name, value in config.items() if name not in known]:
        raise Refused(f"this version's {cell} has no {', '.join(missing)}")
    layer: Any = CLASSES[cell](**config)
    layer.load_state_dict({name: np.asarray(a, np.float32) for name, a in weights.items()})
    return layer


def keras_layer(kind: str, config: Record, weights: Mapping[str, Array]) -> Any:
    """One direction of a Keras layer."""
    H, I = config["units"], weights["kernel"].shape[0]
    order = KERAS_ORDER[kind]

    def blocks(a: Array) -> Array:
        parts = np.split(np.asarray(a), len(order))
        return np.concatenate([parts[k] for k in order])

    state = {
        "weight_ih_l0": blocks(weights["kernel"].T),
        "weight_hh_l0": blocks(weights["recurrent_kernel"].T),
    }
    if config["use_bias"]:
        bias = np.atleast_2d(weights["bias"])
        state["bias_ih_l0"] = blocks(bias[0])
        state["bias_hh_l0"] = blocks(bias[1]) if len(bias) > 1 else np.zeros(len(order) * H)
    arguments: Record = {"bias": config["use_bias"], "batch_first": True}
    arguments["reverse"] = config["go_backwards"]
    if kind == "GRU" and not config["reset_after"]:
        arguments["reset_after"] = False
    usual = {"LSTM": "sigmoid", "GRU": "sigmoid"}.get(kind)
    if config["activation"] != "tanh" or config.get("recurrent_activation") != usual:
        raise Refused(f"activations {config['recurrent_activation']}, {config['activation']}")
    return make(KERAS_CELLS[kind], {"input_size": I, "hidden_size": H, **arguments}, state)


def turned(y: Array, lengths: Array | None) -> Array:
    """y (B, T, R) with the valid steps of every sequence backwards."""
    if lengths is None:
        return y[:, ::-1]
    return np.stack([np.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(y, lengths)])


def run_direction(kind: str, config: Record, weights: Mapping[str, Array], calls: Any) -> Any:
    """(output, states) of a layer's last call."""
    layer = keras_layer(kind, config, weights)
    backwards = config["go_backwards"]
    states: Any = None
    for call in calls:
        x, mask = call["sequence"].astype(np.float32), call["mask"]
        if call["initial_state"] is not None:
            given = np.array(call["initial_state"], np.float32)  # of an LSTM two, else the only one
            states = tuple(given[:, None]) if kind == "LSTM" else given[None]
        elif not config["stateful"]:
            states = None
        lengths = None
        if mask is not None:
            # Steps may be left out anywhere: the others move together.
            mask = np.asarray(mask, bool)
            lengths = mask.sum(1)
            order = np.argsort(~mask, axis=1, kind="stable")
            x = np.take_along_axis(x, order[:, :, None], 1)
        y, states = layer(np.ascontiguousarray(x), states, lengths=lengths)
    finals = states if kind == "LSTM" else (states,)
    if not config["return_sequences"]:
        return finals[0][0], [s[0] for s in finals]
    if backwards:  # in the order in which it was computed
        y, mask = turned(y, lengths), None if mask is None else mask[:, ::-1]
    if mask is not None:
        # A step that was left out has the output before it, or zeros.
        rank = mask.cumsum(1) - 1
        y = np.take_along_axis(y, rank.clip(0)[:, :, None], 1)
        y[(rank < 0) | (~mask & config["zero_output_for_mask"])] = 0
    return y, [s[0] for s in finals]


def run_keras(record: Record) -> Mapping[str, Array]:
    config, weights, calls = record["config"], record["weights"], record["calls"]
    path = list(record["output_path"])
    if not record["op"].startswith("Bidirectional"):
        y, states = run_direction(record["op"], config, weights, calls)
        outputs = [y, *states]
    else:
        kind, halves = config["cell"], []
        for number, name in enumerate(("forward", "backward")):
            own = {k.removeprefix(f"{name}_"): a for k, a in weights.items() if k.startswith(name)}
            parts = []
            for call in calls:
                given = call["initial_state"]
                half = (
                    slice(number * len(given) // 2, (number + 1) * len(given) // 2)
                    if given
                    else None
                )
                parts.append(call | {"initial_state": given[half] if given else None})
            halves.append(run_direction(kind, config[name], own, parts))
        (a, states_a), (b, states_b) = halves
        if config["forward"]["return_sequences"]:
            b = b[:, ::-1]
        merged = {
            "concat": lambda: np.concatenate([a, b], -1),
            "sum": lambda: a + b,
            "ave": lambda: (a + b) / 2,
            "mul": lambda: a * b,
            None: lambda: None,
        }[config["merge_mode"]]()
        outputs = [a, b] if merged is None else [merged]
        outputs += [*states_a, *states_b]
    if not path:
        return {"y": np.asarray(outputs[0])}
    if isinstance(path[0], str):  # "out1": one of several outputs
        return {"y": np.asarray(outputs[int(path[0].removeprefix("out"))])}
    got = outputs[0]
    for index in path:
        got = got[index]
    return {"y": np.asarray(got)}


# ---------------------------------------------------------------------------------------------
# LiteRT: a matrix for each gate
# ---------------------------------------------------------------------------------------------


def run_litert(record: Record) -> Mapping[str, Array]:
    a, inputs = record["attributes"], record["inputs"]
    if a.get("diagonal_recurrent"):
        full = {name: np.diag(value) for name, value in inputs.items() if name.startswith("R")}
        inputs = {**inputs, **full}
    config, weights, x = litert_layer(a, inputs)
    y, _ = make("LSTM", config, weights)(x)
    if not config["bidirectional"]:
        return {"Y": y}
    R = y.shape[-1] // 2
    return {
        "Y_fw": y[..., :R],
        "Y_bw": y[..., R:],
        "Y_merged": y,
        "Y_fw_plus_bw": y[..., :R] + y[..., R:],
    }


def independent_units(record: Record) -> Mapping[str, Array]:
    """What the equations give of a case with a recurrent weight for each unit, in float64.

    Those cases state no numbers, but that a layer of full matrices gives the same.
    """
    a = record["attributes"]
    v = {name: value.astype(np.float64) for name, value in record["inputs"].items()}
    peep = [v.get(f"P{gate}", 0.0) for gate in "ifo"]
    h = c = np.zeros((a["n_batch"], a["n_cell"]))
    y = []
    for x in v["X"]:  # (T, B, I)
        s = {g: x @ v[f"W{g}"].T + h * v[f"R{g}"] + v[f"b{g}"] for g in "ifco" if f"W{g}" in v}
        f = 1 / (1 + np.exp(-s["f"] - peep[1] * c))
        i = 1 - f if a["cifg"] else 1 / (1 + np.exp(-s["i"] - peep[0] * c))
        c = f * c + i * np.tanh(s["c"])
        h = np.tanh(c) / (1 + np.exp(-s["o"] - peep[2] * c))
        y.append(h)
    return {"Y": np.stack(y)}


def litert_layer(a: Record, inputs: Mapping[str, Array]) -> tuple[Record, dict[str, Array], Array]:
    """A layer's arguments, its weights, and x."""
    gates = "fco" if a["cifg"] else "ifco"
    order = [g for g in "ifco" if g in gates]
    both = a["kind"].startswith("BIDIRECTIONAL")

    def stacked(letter: str) -> Array:
        return np.concatenate([inputs[letter + g] for g in order])

    x, W = inputs["X"], stacked("W")
    if a.get("use_aux_input"):  # more columns of x, by another name
        x, W = np.concatenate([x, inputs["aux_X"]], -1), np.concatenate([W, stacked("A")], -1)
    config: Record = {
        "input_size": x.shape[-1],
        "hidden_size": a["n_cell"],
        "batch_first": not a["time_major"],
        "bidirectional": both,
    }
    one = {"weight_ih": W, "weight_hh": stacked("R"), "bias_ih": stacked("b")}
    one["bias_hh"] = np.zeros_like(one["bias_ih"])
    if a["cifg"]:
        config["coupled"] = "i=1-f"
    if a["peephole"]:
        config["peephole"] = True
        one["weight_peep"] = np.concatenate([inputs[f"P{g}"] for g in order if g != "c"])
    if a["projection"]:
        config["proj_size"] = a["n_output"]
        one["weight_hr"] = inputs["Wp"]
    if a.get("projection_bias"):
        config["proj_bias"] = True
        one["bias_hr"] = inputs["bp"]
    for name in ("cell_clip", "proj_clip"):
        if a[name] if name in a else 0:
            config[name] = a[name]
    if a.get("layer_norm"):
        config["layer_norm"] = "litert"
        one["weight_ln"] = stacked("L")
    ends = ("_l0", "_l0_reverse") if both else ("_l0",)
    return config, {name + end: value for name, value in one.items() for end in ends}, x


# ---------------------------------------------------------------------------------------------
# ELMo: two stacks, one of them backwards; projection, clipped cells; gates i, g, f, o
# ---------------------------------------------------------------------------------------------


def run_elmo(
    index: Record, arrays: Mapping[str, Array], outputs: dict[str, Array]
) -> dict[str, Array]:
    """Run all sentences, if that has not been done; states go on from sentence to sentence."""
    if outputs:
        return outputs
    options = index["options"]
    H, P, L = options["dim"], options["projection_dim"], options["n_layers"]
    config = {
        "input_size": P,
        "hidden_size": H,
        "num_layers": L,
        "proj_size": P,
        "cell_clip": float(options["cell_clip"]),
        "proj_clip": float(options["proj_clip"]),
    }
    done: dict[str, list[Array]] = {}
    for direction in ("fw", "bw"):
        weights: dict[str, Array] = {}
        for k in range(L):
            W = arrays[f"{direction}{k}/W"].T  # (4H, I + P), columns x then h
            bias = arrays[f"{direction}{k}/b"].copy()
            bias[2 * H : 3 * H] += 1  # forget_bias, added by the code and not stored
            order = np.r_[0:H, 2 * H : 3 * H, H : 2 * H, 3 * H : 4 * H]
            weights |= {
                f"weight_ih_l{k}": W[order, :P],
                f"weight_hh_l{k}": W[order, P:],
                f"bias_ih_l{k}": bias[order],
                f"bias_hh_l{k}": np.zeros(4 * H),
                f"weight_hr_l{k}": arrays[f"{direction}{k}/W_proj"].T,
            }
        layer = make("LSTM", config | {"reverse": direction == "bw"}, weights)
        streams = range(index["streams"])
        states: Any = None
        for sentence in range(index["sentences_per_stream"]):
            parts = [arrays[f"s{s}/{sentence}/x"] for s in streams]
            lengths = [len(part) for part in parts]
            x = np.zeros((max(lengths), len(parts), P), np.float32)
            for s, part in enumerate(parts):
                x[: lengths[s], s] = part
            y, states = layer(x, states, lengths=lengths)
            for s in streams:
                done.setdefault(f"s{s}/{sentence}/expected", []).append(y[1 : lengths[s] - 1, s])
    outputs.update({name: np.concatenate(both, 1) for name, both in done.items()})
    return outputs


# ---------------------------------------------------------------------------------------------


def report(results: list[Result], verbose: bool) -> int:
    """Print what came out; return the exit code."""
    suites = list(dict.fromkeys(result.case.suite for result in results))
    print(f"{'':18}{'cases':>8}{'passed':>8}{'failed':>8}{'refused':>9}")
    for suite in suites:
        count = Counter(r.outcome for r in results if r.case.suite == suite)
        print(
            f"{suite:18}{sum(count.values()):8}{count['passed']:8}{count['failed']:8}"
            f"{count['refused']:9}"
        )
    for outcome in ("passed", "refused", "failed"):
        if outcome == "passed" and not verbose:
            continue
        for result in results:
            if result.outcome == outcome:
                print(f"{outcome}: {result.case.suite}: {result.case.name}: {result.why}")
    outcomes = {result.outcome for result in results}
    return 1 if "failed" in outcomes or "passed" not in outcomes else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="cases whose suite or name holds this")
    parser.add_argument("--all", action="store_true", help="name those that passed too")
    arguments = parser.parse_args()
    chosen = [c for c in cases(arguments.folder) if arguments.only in f"{c.suite}: {c.name}"]
    return report([check(case) for case in chosen], arguments.all)


if __name__ == "__main__":
    sys.exit(main())
