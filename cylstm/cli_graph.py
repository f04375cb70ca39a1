"""ONNX for `cli.py`: commands on whole graphs, whose inputs have names, and ONNX Runtime."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from .cli_data import (
    Refused,
    as_laid_out,
    batch_first,
    difference,
    duration,
    needed,
    output,
    read_arrays,
    tell,
    timed,
    version_of,
)
from .convert.onnx_graph import OnnxModel
from .weights import Array


def run_graph(given: argparse.Namespace, model: OnnxModel) -> int:
    inputs = graph_file(given.input, model)
    began = time.perf_counter()
    outputs = model.run(inputs)
    seconds = time.perf_counter() - began
    if given.output.endswith(".npz"):
        np.savez(given.output, **cast("dict[str, Any]", outputs))
    elif len(outputs) == 1:
        output(given.output, *outputs.values())
    else:
        raise Refused(f"{given.output}: expected .npz, for {', '.join(outputs)}")
    shapes = {name: list(y.shape) for name, y in outputs.items()}
    told = {"output": given.output, "shapes": shapes, "seconds": seconds}
    listed = ", ".join(f"{name} {y.shape} {y.dtype}" for name, y in outputs.items())
    tell(given, told, f"{given.output}: {listed} in {seconds:.3g} s")
    return 0


def compare_graph(
    given: argparse.Namespace, model: OnnxModel, peer: Callable[[Any], Any]
) -> dict[str, float]:
    """The largest difference of every output, on a file's input and on random input."""
    inputs = {"": graph_file(given.input, model)} if given.input else {}
    try:
        inputs[" of random input" if given.input else ""] = random_graph(given, model)
    except Refused:  # a file may have what can't be drawn
        if given.shape or not given.input:
            raise
    worst = {}
    for which, x in inputs.items():
        ours = model.run(x)  # ours checks them first
        for (name, y), theirs in zip(ours.items(), peer(cast(Any, x)), strict=True):
            worst[name + which] = difference(name, y, theirs)
    return worst


def bench_graph(given: argparse.Namespace, model: OnnxModel) -> int:
    inputs = random_graph(given, model)
    rows: dict[str, float | str] = {"call": timed(lambda: model.run(inputs), given.seconds)}
    if version_of("onnxruntime") is not None:
        run = onnx_peer(given, model)
        rows["call, onnxruntime"] = timed(lambda: run(cast(Any, inputs)), given.seconds)
    shapes = {name: list(x.shape) for name, x in inputs.items()}
    width = max(map(len, rows))
    lines = [", ".join(f"{name} {x.shape}" for name, x in inputs.items())] + [
        f"{n:<{width}}  {duration(v) if isinstance(v, float) else v}" for n, v in rows.items()
    ]
    tell(given, {"shapes": shapes, "seconds": rows}, "\n".join(lines))
    return 0


def graph_file(name: str, model: OnnxModel) -> dict[str, Array]:
    """A file's arrays by the names of the graph's inputs."""
    if name.endswith(".npz"):
        with read_arrays(name) as held:
            arrays = dict(held)
    elif name.endswith(".npy") and len(model.inputs) == 1:
        arrays = {model.inputs[0].name: read_arrays(name)}
    else:
        names = ", ".join(port.name for port in model.inputs)
        raise Refused(f"{name}: expected .npz, with {names}")
    for port in model.inputs:
        array = arrays.get(port.name)
        if array is not None and array.dtype.kind == "f" and port.dtype is not None:
            arrays[port.name] = array.astype(port.dtype, copy=False)
    return arrays


def random_graph(given: argparse.Namespace, model: OnnxModel) -> dict[str, Array]:
    rng = np.random.default_rng(given.seed)
    shapes, names = dict(given.shape), [port.name for port in model.inputs]
    if unknown := [name for name in shapes if name not in names]:
        raise Refused(f"--shape of {unknown[0]!r}, expected one of {', '.join(names)}")
    inputs: dict[str, Array] = {}
    for port in model.inputs:
        if port.dtype is None or (port.shape is None and port.name not in shapes):
            raise Refused(f"the shape of input {port.name!r} is not known; say --shape or --input")
        if port.dtype.kind != "f":
            raise Refused(f"input {port.name!r} is of {port.dtype}: give arrays by --input")
        if port.name in shapes:
            shape = shapes[port.name]
        else:
            shape = [given.batch if n is None else n for n in port.shape or ()]
        inputs[port.name] = np.asarray(rng.standard_normal(shape), port.dtype)
    return inputs


def onnx_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    runtime = needed("onnxruntime")
    if given.inside:
        raise Refused("onnxruntime runs the whole file, without --inside")
    session = runtime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    if isinstance(model, OnnxModel):
        return lambda x: session.run([port.name for port in model.outputs], x)
    first, *others = session.get_inputs()

    def run(x: Array) -> Any:
        fed = {first.name: as_laid_out(model, x)}
        for one in others:  # states of zeros, and lengths, which are whole
            shape = [n if isinstance(n, int) else len(x) for n in one.shape]
            whole = one.type == "tensor(int32)"
            fed[one.name] = (
                np.full(shape, x.shape[1], np.int32) if whole else np.zeros(shape, x.dtype)
            )
        y = session.run(None, fed)[0]
        if y.ndim == 4:  # ONNX's Y (T, D, B, H), or (B, T, D, H)
            y = y.swapaxes(1, 2) if y.shape[1] <= 2 and y.shape[2] == len(x) else y
            y = y.reshape(*y.shape[:2], -1)
        return batch_first(model, y)

    return run
