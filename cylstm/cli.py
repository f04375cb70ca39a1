"""The command `cylstm`, also `python -m cylstm`: look into model files, convert, run, time them."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from . import __version__, convert, files
from .config import show_config
from .convert.onnx_graph import OnnxModel
from .sequential import Sequential
from .weights import Array

PACKAGES = ("numpy", "scipy", "h5py", "onnx", "onnxruntime", "keras", "torch", "tqdm")

EPILOG = """\
A model is any file that cylstm.load reads: its own, PyTorch's, Keras', ONNX, safetensors.

  cylstm inspect model.h5                  what is inside, and whether it loads
  cylstm convert model.h5 model.safetensors
  cylstm run model.safetensors frames.npy -o out.npy
  cylstm check model.h5 --against keras    the largest difference from the original
  cylstm bench model.safetensors           how long a call and a step of a stream take

Exit codes: 0 done, 1 a check failed, 2 wrong arguments, or a file that can't be read or loaded.
"""


class Refused(Exception):
    """What the user has to be told, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's; return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.function(given)
        return code
    except (Refused, ValueError, TypeError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):  # `cylstm inspect ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"cylstm {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cylstm {given.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cylstm",
        description="Recurrent models on a CPU: look into a file, convert it, run it, time it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cylstm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(function=function)
        sub.add_argument("--json", action="store_true", help="print JSON, for scripts")
        return sub

    def model(sub: argparse.ArgumentParser, name: str = "model") -> None:
        sub.add_argument(name, help="the model's file")
        sub.add_argument(
            "--inside", metavar="PATH", help="one recurrent layer, as inspect names it"
        )
        sub.add_argument(
            "--option",
            metavar="NAME=VALUE",
            action="append",
            default=[],
            help="an argument of cylstm.load, such as recurrent_activation=sigmoid; repeatable",
        )

    def shape(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--steps", type=int, default=100, help="T of a random input")
        sub.add_argument("--batch", type=int, default=1, help="B of a random input")
        sub.add_argument("--seed", type=int, default=0, help="of a random input")
        sub.add_argument(
            "--shape",
            metavar="NAME=N,N,...",
            action="append",
            default=[],
            help="of a random input of an ONNX graph, whose open axes are all --batch; repeatable",
        )

    command("info", _info, "say which kernels and which packages are here")
    sub = command("inspect", _inspect, "say what a model's file holds, without loading it")
    sub.add_argument("model", help="the model's file")
    sub = command(
        "convert",
        _convert,
        "write a model in another format",
        "The new file's name says which: .safetensors is cylstm's own, .onnx an ONNX graph, .npz "
        "and .pt a state dict, .keras.npz what set_weights of Keras' layers takes.",
    )
    model(sub)
    sub.add_argument("output", help="the file to write")
    sub = command(
        "run",
        _run,
        "run a model over a file of inputs",
        "x is (B, T, F), or (T, F) for one sequence, or ids; .npz may hold lengths and x, .csv is "
        "one sequence, a row for each time step. Float inputs are converted to the model's dtype. "
        "An ONNX graph takes an .npz of its inputs and gives one of its outputs, by their names.",
    )
    model(sub)
    sub.add_argument("input", help=".npy, .npz or .csv")
    sub.add_argument("-o", "--output", required=True, help=".npy, .npz or .csv, for y")
    sub.add_argument("--batch-size", type=int, help="sequences at a time")
    sub.add_argument("--quiet", action="store_true", help="no progress")
    sub = command(
        "check",
        _check,
        "compare a model with what it comes from",
        "Both run on random input and, with --input, on a file's. torch runs the loaded weights in "
        "its own layer; onnxruntime and keras run the model's file.",
    )
    model(sub)
    sub.add_argument("--against", required=True, choices=sorted(PEERS), help="who else runs it")
    sub.add_argument("--input", help=".npy, .npz or .csv")
    sub.add_argument("--tolerance", type=float, default=1e-5, help="largest difference allowed")
    shape(sub)
    sub = command("bench", _bench, "time a model here, beside what is installed")
    model(sub)
    sub.add_argument("--threads", type=int, help="of a call; default: as many as info says")
    sub.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    shape(sub)
    return parser


# ------------------------------------------------------------------------------- commands


def _info(given: argparse.Namespace) -> int:
    config = dict(show_config())
    packages = {name: _version(name) for name in PACKAGES}
    width = max(map(len, [*config, *packages]))
    lines = [f"{name:<{width}}  {value}" for name, value in config.items()]
    lines += ["", *(f"{n:<{width}}  {v or 'not installed'}" for n, v in packages.items())]
    _tell(given, {**config, "packages": packages}, "\n".join(lines))
    return 0


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _inspect(given: argparse.Namespace) -> int:
    contents = convert.inspect(given.model)
    layers = [
        {
            "path": layer.path,
            "cell": layer.cell,
            "input_size": layer.input_size,
            "hidden_size": layer.hidden_size,
            "num_layers": layer.num_layers,
            "directions": layer.directions,
            "proj_size": layer.proj_size,
            "bias": layer.bias,
            "options": dict(layer.options),
            "obstacle": layer.obstacle(),
        }
        for layer in contents.layers
    ]
    told = {"format": contents.format, "layers": layers, "around": contents.around}
    _tell(given, {**told, "whole": contents.whole is not None}, repr(contents))
    return 0


def _convert(given: argparse.Namespace) -> int:
    model = _load(given)
    name = given.output
    if name.endswith(".safetensors"):
        files.save(model, name)
    elif isinstance(model, Sequential):
        raise Refused("a whole model goes into .safetensors alone; --inside takes one layer of it")
    elif name.endswith(".onnx"):
        _write("to_onnx")(model, name)
    elif name.endswith(".keras.npz"):
        arrays = _write("to_keras")(model)
        np.savez(name, **{f"{n}.{k}": a for n, one in enumerate(arrays) for k, a in enumerate(one)})
    elif name.endswith(".npz"):
        np.savez(name, **model.state_dict())
    elif name.endswith((".pt", ".pth")):
        torch = _needed("torch")
        torch.save({n: torch.tensor(a) for n, a in model.state_dict().items()}, name)
    else:
        raise Refused(f"{name}: expected .safetensors, .onnx, .npz, .keras.npz, .pt or .pth")
    _tell(given, {"output": name, "model": repr(model)}, f"{name}: {model!r}")
    return 0


def _run(given: argparse.Namespace) -> int:
    model = _load(given)
    if isinstance(model, OnnxModel):
        return _run_graph(given, model)
    x, lengths, single = _input(given.input, model)
    began = time.perf_counter()
    y = _predict(model, x, lengths, given.batch_size, _bar(len(x), given.quiet or given.json))
    seconds = time.perf_counter() - began
    y = y[0] if single else y
    _output(given.output, y)
    told = {"output": given.output, "shape": list(y.shape), "seconds": seconds}
    _tell(given, told, f"{given.output}: {y.shape} {y.dtype} in {seconds:.3g} s")
    return 0


def _check(given: argparse.Namespace) -> int:
    model = _load(given)
    peer = PEERS[given.against](given, model)
    if isinstance(model, OnnxModel):
        worst = _compare_graph(given, model, peer)
    else:
        worst = {}
        inputs = {"random": _random_input(given, model)}
        if given.input:
            inputs[given.input] = _input(given.input, model)[0]
        for name, x in inputs.items():
            worst[name] = _difference(name, _predict(model, x), peer(x))
    passed = all(difference <= given.tolerance for difference in worst.values())  # nan: no
    told = {"against": given.against, "differences": worst, "tolerance": given.tolerance}
    text = "\n".join(f"{name}: largest difference {value:.3g}" for name, value in worst.items())
    verdict = "within" if passed else "NOT within"
    _tell(given, {**told, "passed": passed}, f"{text}\n{verdict} {given.tolerance:g}")
    return 0 if passed else 1


def _bench(given: argparse.Namespace) -> int:
    model = _load(given)
    if isinstance(model, OnnxModel):
        return _bench_graph(given, model)
    x = _random_input(given, model)
    rows: dict[str, float | str] = {
        "call": _timed(lambda: _predict(model, x, threads=given.threads), given.seconds)
    }
    try:
        stream = model.stream(len(x), threads=given.threads)
        rows["step of a stream"] = _timed(lambda: stream.step(x[:, 0]), given.seconds)
    except ValueError as error:
        rows["step of a stream"] = str(error)
    for name, peer in PEERS.items():
        if _version(name) is not None:
            try:
                run = peer(given, model)
                rows[f"call, {name}"] = _timed(lambda: run(x), given.seconds)  # noqa: B023
            except Exception as error:  # theirs may fail in any way, and the rest still counts
                rows[f"call, {name}"] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    width = max(map(len, rows))
    lines = [f"x {x.shape}"] + [
        f"{n:<{width}}  {_duration(v) if isinstance(v, float) else v}" for n, v in rows.items()
    ]
    _tell(given, {"shape": list(x.shape), "seconds": rows}, "\n".join(lines))
    return 0


# ------------------------------------------------------------------------------- who else runs it


def _torch_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    torch = _needed("torch")
    if isinstance(model, Sequential):
        raise Refused("torch runs single layers: choose one with --inside")
    theirs = _write("to_torch")(model).eval()

    def run(x: Array) -> Any:
        with torch.no_grad():
            y = theirs(torch.from_numpy(_as_laid_out(model, x)))
        return _batch_first(model, (y[0] if isinstance(y, tuple) else y).numpy())

    return run


def _keras_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    keras = _needed("keras")
    if given.inside:
        raise Refused("keras runs the whole file, without --inside")
    theirs = keras.saving.load_model(given.model, compile=False)
    return lambda x: keras.ops.convert_to_numpy(theirs(x))


def _onnx_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    runtime = _needed("onnxruntime")
    if given.inside:
        raise Refused("onnxruntime runs the whole file, without --inside")
    session = runtime.InferenceSession(given.model, providers=["CPUExecutionProvider"])
    if isinstance(model, OnnxModel):
        return lambda x: session.run([port.name for port in model.outputs], x)
    first, *others = session.get_inputs()

    def run(x: Array) -> Any:
        fed = {first.name: _as_laid_out(model, x)}
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
        return _batch_first(model, y)

    return run


PEERS = {"torch": _torch_peer, "keras": _keras_peer, "onnxruntime": _onnx_peer}


# ------------------------------------------------------------------------------- ONNX graphs


def _run_graph(given: argparse.Namespace, model: OnnxModel) -> int:
    inputs = _graph_file(given.input, model)
    began = time.perf_counter()
    outputs = model.run(inputs)
    seconds = time.perf_counter() - began
    if given.output.endswith(".npz"):
        np.savez(given.output, **cast("dict[str, Any]", outputs))
    elif len(outputs) == 1:
        _output(given.output, *outputs.values())
    else:
        raise Refused(f"{given.output}: expected .npz, for {', '.join(outputs)}")
    shapes = {name: list(y.shape) for name, y in outputs.items()}
    told = {"output": given.output, "shapes": shapes, "seconds": seconds}
    listed = ", ".join(f"{name} {y.shape} {y.dtype}" for name, y in outputs.items())
    _tell(given, told, f"{given.output}: {listed} in {seconds:.3g} s")
    return 0


def _compare_graph(
    given: argparse.Namespace, model: OnnxModel, peer: Callable[[Any], Any]
) -> dict[str, float]:
    """The largest difference of every output, on random input or on a file's."""
    inputs = _graph_file(given.input, model) if given.input else _random_graph(given, model)
    ours = model.run(inputs)  # ours checks them first
    return {
        name: _difference(name, y, theirs)
        for (name, y), theirs in zip(ours.items(), peer(cast(Any, inputs)))
    }


def _bench_graph(given: argparse.Namespace, model: OnnxModel) -> int:
    inputs = _random_graph(given, model)
    rows: dict[str, float | str] = {"call": _timed(lambda: model.run(inputs), given.seconds)}
    if _version("onnxruntime") is not None:
        run = _onnx_peer(given, model)
        rows["call, onnxruntime"] = _timed(lambda: run(cast(Any, inputs)), given.seconds)
    shapes = {name: list(x.shape) for name, x in inputs.items()}
    width = max(map(len, rows))
    lines = [", ".join(f"{name} {x.shape}" for name, x in inputs.items())] + [
        f"{n:<{width}}  {_duration(v) if isinstance(v, float) else v}" for n, v in rows.items()
    ]
    _tell(given, {"shapes": shapes, "seconds": rows}, "\n".join(lines))
    return 0


def _graph_file(name: str, model: OnnxModel) -> dict[str, Array]:
    """A file's arrays by the names of the graph's inputs."""
    if name.endswith(".npz"):
        with np.load(name) as held:
            arrays = dict(held)
    elif name.endswith(".npy") and len(model.inputs) == 1:
        arrays = {model.inputs[0].name: np.load(name)}
    else:
        names = ", ".join(port.name for port in model.inputs)
        raise Refused(f"{name}: expected .npz, with {names}")
    for port in model.inputs:
        array = arrays.get(port.name)
        if array is not None and array.dtype.kind == "f" and port.dtype is not None:
            arrays[port.name] = array.astype(port.dtype, copy=False)
    return arrays


def _random_graph(given: argparse.Namespace, model: OnnxModel) -> dict[str, Array]:
    rng = np.random.default_rng(given.seed)
    shapes = dict(text.partition("=")[::2] for text in given.shape)
    inputs = {}
    for port in model.inputs:
        if port.dtype is None or (port.shape is None and port.name not in shapes):
            raise Refused(f"the shape of input {port.name!r} is not known; say --shape or --input")
        if port.dtype.kind != "f":
            raise Refused(f"input {port.name!r} is of {port.dtype}: give arrays by --input")
        if port.name in shapes:
            shape = [int(n) for n in shapes[port.name].split(",")]
        else:
            shape = [given.batch if n is None else n for n in port.shape or ()]
        inputs[port.name] = rng.standard_normal(shape).astype(port.dtype)
    return inputs


# ------------------------------------------------------------------------------- details


def _difference(name: str, ours: Array, theirs: Any) -> float:
    theirs = np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise Refused(f"{name}: shape {ours.shape} here and {theirs.shape} there")
    return float(np.max(np.abs(ours - theirs), initial=0.0))


def _load(given: argparse.Namespace) -> Any:
    options: dict[str, Any] = {}
    for text in given.option:
        name, found, value = text.partition("=")
        if not found:
            raise Refused(f"--option {text}: expected NAME=VALUE")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = {"True": True, "False": False, "None": None}.get(value, value)
    return convert.load(given.model, given.inside, **options)


def _predict(
    model: Any,
    x: Array,
    lengths: Array | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] = lambda done, total: None,
    threads: int | None = None,
) -> Array:
    """y, batch-first, of any model."""
    if isinstance(model, Sequential):
        return model.predict(x, lengths, batch_size, progress, threads)
    if not hasattr(model, "stream"):  # a Linear or an Embedding
        y: Array = model(x)
        progress(len(x), len(x))
        return y
    parts = []
    size = batch_size or max(len(x), 1)
    for start in range(0, max(len(x), 1), size):
        some = None if lengths is None else lengths[start : start + size]
        rows = _as_laid_out(model, x[start : start + size])
        parts.append(_batch_first(model, model(rows, lengths=some, threads=threads)[0]))
        progress(min(start + size, len(x)), len(x))
    return np.concatenate(parts)


def _as_laid_out(model: Any, x: Array) -> Array:
    """x (B, T, F) as the model takes it."""
    time_first = x.ndim == 3 and getattr(model, "batch_first", True) is False
    return np.ascontiguousarray(x.swapaxes(0, 1)) if time_first else x


def _batch_first(model: Any, y: Array) -> Array:
    return y.swapaxes(0, 1) if y.ndim == 3 and getattr(model, "batch_first", True) is False else y


def _width(model: Any) -> tuple[str, int | None]:
    """Whether a model takes ids, floats with a time axis or rows, and of what size."""
    first = next(iter(model.layers.values())) if isinstance(model, Sequential) else model
    first = getattr(first, "module", first)
    if hasattr(first, "num_embeddings"):
        return "ids", first.num_embeddings
    if isinstance(model, Sequential) and model.input_shape is not None:
        return ("rows" if len(model.input_shape) == 1 else "frames"), model.input_shape[-1]
    size = getattr(first, "input_size", getattr(first, "in_features", None))
    return ("rows" if hasattr(first, "in_features") else "frames"), size


def _random_input(given: argparse.Namespace, model: Any) -> Array:
    rng = np.random.default_rng(given.seed)
    kind, size = _width(model)
    if size is None:
        raise Refused("the size of its input is not known; give one with --input")
    if kind == "ids":
        return rng.integers(0, size, (given.batch, given.steps))
    shape = (given.batch, size) if kind == "rows" else (given.batch, given.steps, size)
    return rng.standard_normal(shape).astype(model.dtype)


def _input(name: str, model: Any) -> tuple[Array, Array | None, bool]:
    """x with a batch axis, lengths, and whether it was one sequence."""
    lengths = None
    if name.endswith(".npz"):
        with np.load(name) as held:
            if "x" not in held and len(held.files) != 1:
                raise Refused(
                    f"{name} holds {', '.join(held.files)}, expected x, and lengths if any"
                )
            x = held["x" if "x" in held else held.files[0]]
            lengths = held["lengths"] if "lengths" in held else None
    elif name.endswith(".npy"):
        x = np.load(name, mmap_mode="r")
    elif name.endswith(".csv"):
        x = _read_csv(name)
    else:
        raise Refused(f"{name}: expected .npy, .npz or .csv")
    kind, _ = _width(model)
    single = x.ndim == (1 if kind == "ids" else 2) and kind != "rows"
    x = x[None] if single else x
    if kind == "ids":
        if x.dtype.kind == "f" and not (x == np.floor(x)).all():
            raise Refused(f"{name} holds fractions, expected ids")
        return x.astype(np.int64, copy=False), lengths, single
    return x.astype(model.dtype, copy=False), lengths, single


def _read_csv(name: str) -> Array:
    """Numbers, a row for each time step; a first row that is not numbers is a header."""
    with open(name, newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not all(map(_is_number, rows[0])):
        rows = rows[1:]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise Refused(f"{name} is no table of numbers")
    try:
        return np.array(rows, np.float64)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _output(name: str, y: Array) -> None:
    if name.endswith(".npz"):
        np.savez(name, y=y)
    elif name.endswith(".npy"):
        np.save(name, y)
    elif name.endswith(".csv"):
        if y.ndim > 2:
            raise Refused(f"{name}: y has shape {y.shape}, which is no table; write .npy or .npz")
        np.savetxt(name, np.atleast_2d(y), delimiter=",", fmt="%.9g")
    else:
        raise Refused(f"{name}: expected .npy, .npz or .csv")


def _bar(total: int, quiet: bool) -> Callable[[int, int], Any]:
    """Progress on the terminal, in one line."""
    if quiet or not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} sequences", end=end, file=sys.stderr, flush=True)

    return show


def _write(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module("cylstm.convert.write"), name)


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Refused(f"{package} is not installed") from error


def _timed(call: Callable[[], Any], seconds: float) -> float:
    """The least seconds of a call, within this time."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - began)
    return best


def _duration(seconds: float) -> str:
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def _tell(given: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    print(json.dumps(told, default=str) if given.json else text)
