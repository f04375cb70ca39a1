"""What the commands of `cli.py` share: models, arrays and files, in and out."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import convert
from .sequential import Sequential
from .weights import Array


class Refused(Exception):
    """What the user has to be told, in one line."""


def positive(text: str, kind: Callable[[str], Any] = float) -> Any:
    """A number above 0, for argparse."""
    number = kind(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, expected more than 0")
    return number


def count(text: str) -> Any:
    return positive(text, int)


def named_shape(text: str) -> tuple[str, list[int]]:
    name, _, sizes = text.partition("=")
    return name, [count(size) for size in sizes.split(",")]


def read_arrays(name: str, **how: Any) -> Any:
    """What NumPy reads of a file, or an error that names it."""
    try:
        return np.load(name, **how)
    except OSError:
        raise
    except Exception as error:
        raise Refused(f"{name}: {error}") from None


def difference(name: str, ours: Array, theirs: Any) -> float:
    theirs = np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise Refused(f"{name}: shape {ours.shape} here and {theirs.shape} there")
    return float(np.max(np.abs(ours - theirs), initial=0.0))


def load(given: argparse.Namespace) -> Any:
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


def predict(
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
        rows = as_laid_out(model, x[start : start + size])
        parts.append(batch_first(model, model(rows, lengths=some, threads=threads)[0]))
        progress(min(start + size, len(x)), len(x))
    return np.concatenate(parts)


def as_laid_out(model: Any, x: Array) -> Array:
    """x (B, T, F) as the model takes it."""
    time_first = x.ndim == 3 and getattr(model, "batch_first", True) is False
    return np.ascontiguousarray(x.swapaxes(0, 1)) if time_first else x


def batch_first(model: Any, y: Array) -> Array:
    return y.swapaxes(0, 1) if y.ndim == 3 and getattr(model, "batch_first", True) is False else y


def width(model: Any) -> tuple[str, int | None]:
    """Whether a model takes ids, floats with a time axis or rows, and of what size."""
    first = next(iter(model.layers.values())) if isinstance(model, Sequential) else model
    first = getattr(first, "module", first)
    if hasattr(first, "num_embeddings"):
        return "ids", first.num_embeddings
    if isinstance(model, Sequential) and model.input_shape is not None:
        return ("rows" if len(model.input_shape) == 1 else "frames"), model.input_shape[-1]
    size = getattr(first, "input_size", getattr(first, "in_features", None))
    return ("rows" if hasattr(first, "in_features") else "frames"), size


def is_sized(model: Any) -> bool:
    """Whether an input can be drawn: the model says how wide it is."""
    return width(model)[1] is not None


def random_input(given: argparse.Namespace, model: Any) -> Array:
    if given.shape:
        raise Refused("--shape is for ONNX graphs, expected --steps and --batch")
    rng = np.random.default_rng(given.seed)
    kind, size = width(model)
    if size is None:
        raise Refused("the size of its input is not known; give one with --input")
    if kind == "ids":
        return rng.integers(0, size, (given.batch, given.steps))
    shape = (given.batch, size) if kind == "rows" else (given.batch, given.steps, size)
    return rng.standard_normal(shape).astype(model.dtype)


def input(name: str, model: Any) -> tuple[Array, Array | None, bool]:
    """x with a batch axis, lengths, and whether it was one sequence."""
    lengths = None
    if name.endswith(".npz"):
        with read_arrays(name) as held:
            if "x" not in held and len(held.files) != 1:
                raise Refused(
                    f"{name} holds {', '.join(held.files)}, expected x, and lengths if any"
                )
            x = held["x" if "x" in held else held.files[0]]
            lengths = held["lengths"] if "lengths" in held else None
    elif name.endswith(".npy"):
        x = read_arrays(name, mmap_mode="c")  # writable, which torch asks for
    elif name.endswith(".csv"):
        x = read_csv(name)
    else:
        raise Refused(f"{name}: expected .npy, .npz or .csv")
    if x.dtype.kind not in "biuf":
        raise Refused(f"{name} holds {x.dtype}, expected numbers")
    kind, _ = width(model)
    single = x.ndim == (1 if kind == "ids" else 2) and kind != "rows"
    x = x[None] if single else x
    if kind == "ids":
        if x.dtype.kind == "f" and not (x == np.floor(x)).all():
            raise Refused(f"{name} holds fractions, expected ids")
        return x.astype(np.int64, copy=False), lengths, single
    return x.astype(model.dtype, copy=False), lengths, single


def read_csv(name: str) -> Array:
    """Numbers, a row for each time step; a first row that is not numbers is a header."""
    with open(name, newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not all(map(is_number, rows[0])):
        rows = rows[1:]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise Refused(f"{name} is no table of numbers")
    try:
        return np.array(rows, np.float64)
    except ValueError as error:
        raise Refused(f"{name}: {error}") from None


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def output(name: str, y: Array) -> None:
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


def bar(total: int, quiet: bool) -> Callable[[int, int], Any]:
    """Progress on the terminal, in one line."""
    if quiet or not sys.stderr.isatty():
        return lambda done, total: None

    def show(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} sequences", end=end, file=sys.stderr, flush=True)

    return show


def write(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module("cylstm.convert.write"), name)


def needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise Refused(f"{package} is not installed") from error


def timed(call: Callable[[], Any], seconds: float) -> float:
    """The least seconds of a call, within this time."""
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        call()
        best = min(best, time.perf_counter() - began)
    return best


def duration(seconds: float) -> str:
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def tell(given: argparse.Namespace, told: dict[str, Any], text: str) -> None:
    print(json.dumps(told, default=str) if given.json else text)


def version_of(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
