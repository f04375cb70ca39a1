"""The command `cylstm`, also `python -m cylstm`: look into model files, convert, run, time them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import __version__, convert, files
from .cli_data import (
    Refused,
    as_laid_out,
    bar,
    batch_first,
    count,
    difference,
    duration,
    input,
    is_sized,
    load,
    named_shape,
    needed,
    output,
    positive,
    predict,
    random_input,
    tell,
    timed,
    version_of,
    write,
)
from .cli_graph import (
    bench_graph,
    compare_graph,
    onnx_peer,
    run_graph,
)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default the process's; return its exit code."""
    given = _parser().parse_args(arguments)
    try:
        code: int = given.function(given)
        return code
    except BrokenPipeError:  # `cylstm inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Refused, ValueError, TypeError, OSError, ImportError) as error:
        print(f"cylstm {given.command}: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # of zipfile, torch, ONNX Runtime, ...; 1 means a failed check
        text = " ".join(str(error).split())
        print(f"cylstm {given.command}: {type(error).__name__}: {text}", file=sys.stderr)
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
        sub.add_argument("--steps", type=count, default=100, help="T of a random input")
        sub.add_argument("--batch", type=count, default=1, help="B of a random input")
        sub.add_argument("--seed", type=int, default=0, help="of a random input")
        sub.add_argument(
            "--shape",
            type=named_shape,
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
    sub.add_argument("--batch-size", type=count, help="sequences at a time")
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
    sub.add_argument("--seconds", type=positive, default=1.0, help="for each measurement")
    shape(sub)
    return parser


# ------------------------------------------------------------------------------- commands


def _info(given: argparse.Namespace) -> int:
    config = dict(show_config())
    packages = {name: version_of(name) for name in PACKAGES}
    width = max(map(len, [*config, *packages]))
    lines = [f"{name:<{width}}  {value}" for name, value in config.items()]
    lines += ["", *(f"{n:<{width}}  {v or 'not installed'}" for n, v in packages.items())]
    tell(given, {**config, "packages": packages}, "\n".join(lines))
    return 0


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
    told: dict[str, Any] = {"format": contents.format, "layers": layers, "around": contents.around}
    told["whole"] = contents.whole is not None and contents.problem is None
    tell(given, {**told, "problem": contents.problem}, repr(contents))
    return 0


def _convert(given: argparse.Namespace) -> int:
    model = load(given)
    name = given.output
    if name.endswith(".safetensors"):
        files.write(model, name)
    elif isinstance(model, Sequential):
        raise Refused("a whole model goes into .safetensors alone; --inside takes one layer of it")
    elif name.endswith(".onnx"):
        write("to_onnx")(model, name)
    elif name.endswith(".keras.npz"):
        arrays = write("to_keras")(model)
        np.savez(name, **{f"{n}.{k}": a for n, one in enumerate(arrays) for k, a in enumerate(one)})
    elif name.endswith(".npz"):
        np.savez(name, **model.state_dict())
    elif name.endswith((".pt", ".pth")):
        torch = needed("torch")
        torch.save({n: torch.tensor(a) for n, a in model.state_dict().items()}, name)
    else:
        raise Refused(f"{name}: expected .safetensors, .onnx, .npz, .keras.npz, .pt or .pth")
    tell(given, {"output": name, "model": repr(model)}, f"{name}: {model!r}")
    return 0


def _run(given: argparse.Namespace) -> int:
    model = load(given)
    if isinstance(model, OnnxModel):
        return run_graph(given, model)
    x, lengths, single = input(given.input, model)
    began = time.perf_counter()
    y = predict(model, x, lengths, given.batch_size, bar(len(x), given.quiet or given.json))
    seconds = time.perf_counter() - began
    y = y[0] if single else y
    output(given.output, y)
    told = {"output": given.output, "shape": list(y.shape), "seconds": seconds}
    tell(given, told, f"{given.output}: {y.shape} {y.dtype} in {seconds:.3g} s")
    return 0


def _check(given: argparse.Namespace) -> int:
    model = load(given)
    peer = PEERS[given.against](given, model)
    if isinstance(model, OnnxModel):
        worst = compare_graph(given, model, peer)
    else:
        worst = {}
        inputs = {}
        if not given.input or is_sized(model):
            inputs["random"] = random_input(given, model)
        if given.input:
            x, lengths, _ = input(given.input, model)
            if lengths is not None:
                raise Refused(f"{given.input} has lengths, but check runs whole sequences")
            inputs[given.input] = x
        for name, x in inputs.items():
            worst[name] = difference(name, predict(model, x), peer(x))
    passed = all(difference <= given.tolerance for difference in worst.values())  # nan: no
    told = {"against": given.against, "differences": worst, "tolerance": given.tolerance}
    text = "\n".join(f"{name}: largest difference {value:.3g}" for name, value in worst.items())
    verdict = "within" if passed else "NOT within"
    tell(given, {**told, "passed": passed}, f"{text}\n{verdict} {given.tolerance:g}")
    return 0 if passed else 1


def _bench(given: argparse.Namespace) -> int:
    model = load(given)
    if isinstance(model, OnnxModel):
        return bench_graph(given, model)
    x = random_input(given, model)
    rows: dict[str, float | str] = {
        "call": timed(lambda: predict(model, x, threads=given.threads), given.seconds)
    }
    try:
        stream = model.stream(len(x), threads=given.threads)
        rows["step of a stream"] = timed(lambda: stream.step(x[:, 0]), given.seconds)
    except ValueError as error:
        rows["step of a stream"] = str(error)
    for name, peer in PEERS.items():
        if version_of(name) is not None:
            try:
                run = peer(given, model)
                rows[f"call, {name}"] = timed(lambda: run(x), given.seconds)  # noqa: B023
            except Exception as error:  # theirs may fail in any way, and the rest still counts
                rows[f"call, {name}"] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    width = max(map(len, rows))
    lines = [f"x {x.shape}"] + [
        f"{n:<{width}}  {duration(v) if isinstance(v, float) else v}" for n, v in rows.items()
    ]
    seconds = {name: value for name, value in rows.items() if isinstance(value, float)}
    refused = {name: value for name, value in rows.items() if name not in seconds}
    told = {"shape": list(x.shape), "seconds": seconds, "refused": refused}
    tell(given, told, "\n".join(lines))
    return 0


# ------------------------------------------------------------------------------- who else runs it


def _torch_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    torch = needed("torch")
    if isinstance(model, Sequential):
        raise Refused("torch runs single layers: choose one with --inside")
    theirs = write("to_torch")(model).eval()

    def run(x: Array) -> Any:
        with torch.no_grad():
            y = theirs(torch.from_numpy(as_laid_out(model, x)))
        return batch_first(model, (y[0] if isinstance(y, tuple) else y).numpy())

    return run


def _keras_peer(given: argparse.Namespace, model: Any) -> Callable[[Array], Any]:
    keras = needed("keras")
    if given.inside:
        raise Refused("keras runs the whole file, without --inside")
    theirs = keras.saving.load_model(given.model, compile=False)
    return lambda x: keras.ops.convert_to_numpy(theirs(x))


PEERS = {"torch": _torch_peer, "keras": _keras_peer, "onnxruntime": onnx_peer}
