"""What the machine can do at most, and so how fast a shape could be.

`python -m bench.limits [THREADS ...]` compiles and runs limits.c and prints what it measured.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from bench.problem import Shape

SOURCE = Path(__file__).with_name("limits.c")


class Machine(TypedDict):
    """What limits.c prints, for some number of threads together."""

    width: int  # bytes of a vector
    f32: float  # GFLOP/s
    f64: float
    read: list[list[float]]  # [bytes of the working set, GB/s], rising in bytes


def measure_machine(threads: Iterable[int]) -> dict[str, Machine]:
    """Compile limits.c and run it: {number of threads, as JSON has it: what was measured}."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "limits"
        common = ["-O3", "-ffp-contract=fast", "-pthread", str(SOURCE), "-o", str(probe)]
        compiler = os.environ.get("CC", "cc").split()
        for native in ("-march=native", "-mcpu=native"):
            done = subprocess.run([*compiler, native, *common], capture_output=True, text=True)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"limits.c does not compile:\n{done.stderr}")
        return {str(n): json.loads(subprocess.check_output([probe, str(n)])) for n in threads}


def best_of(a: dict[str, Machine], b: dict[str, Machine]) -> dict[str, Machine]:
    """The better of two measurements, figure by figure: a busy machine only ever takes away."""
    best = a | b
    for n in a.keys() & b.keys():
        both = zip(a[n]["read"], b[n]["read"], strict=True)
        best[n] = Machine(
            width=a[n]["width"],
            f32=max(a[n]["f32"], b[n]["f32"]),
            f64=max(a[n]["f64"], b[n]["f64"]),
            read=[[size, max(x, y)] for (size, x), (_, y) in both],
        )
    return best


def bandwidth(machine: Machine, working_set: float) -> float:
    """Bytes a second that are read again and again from a working set of so many bytes."""
    sizes = [size for size, _ in machine["read"]]
    rates = [rate for _, rate in machine["read"]]
    # Less data is never slower to read: what says otherwise was disturbed.
    rates = [max(rates[k:]) for k in range(len(rates))]
    at = min(max(working_set, sizes[0]), sizes[-1])
    k = max(1, next(k for k, size in enumerate(sizes) if size >= at))
    part = math.log(at / sizes[k - 1]) / math.log(sizes[k] / sizes[k - 1])
    return 1e9 * (rates[k - 1] + part * (rates[k] - rates[k - 1]))


def weight_bytes(shape: Shape, item: int) -> list[tuple[int, int]]:
    """(bytes of W_ih, bytes of W_hh and W_hr) of every layer and direction."""
    recurrent = (shape.gates * shape.H * shape.P + shape.H * shape.proj_size) * item
    return [
        (shape.gates * shape.H * width * item, recurrent) for _, width in shape.layers
    ] * shape.D


def forward_bytes(shape: Shape, item: int) -> int:
    """Bytes of weights that a forward pass reads: W_ih once, W_hh at every step."""
    return sum(ih + shape.T * hh for ih, hh in weight_bytes(shape, item))


def limit(shape: Shape, mode: str, machine: Machine, dtype: str = "float32") -> float:
    """Seconds below which no engine can be that multiplies in full.

    The phases follow each other: forward, then in training backward (twice the flops, and the
    recurrent weights once more at every step), then Adam (four arrays read, three written, as large
    as the weights). A phase takes the longer of its flops at the peak and its bytes at the
    bandwidth of the cache level they come from. Gate math, activations and calls are free here.
    """
    item = 8 if dtype == "float64" else 4
    peak = 1e9 * machine["f64" if item == 8 else "f32"]
    weights = weight_bytes(shape, item)
    total = sum(ih + hh for ih, hh in weights)
    if shape.T == 1:  # a stream: all weights in turn, at every step
        reading = total / bandwidth(machine, total)
    else:
        reading = sum(
            ih / bandwidth(machine, ih) + shape.T * hh / bandwidth(machine, hh)
            for ih, hh in weights
        )
    seconds = max(shape.forward_flops / peak, reading)
    if mode == "training":
        seconds += max(2 * shape.forward_flops / peak, reading)
        seconds += 7 * total / bandwidth(machine, 4 * total)
    return seconds


def main() -> None:
    threads = [int(n) for n in sys.argv[1:]] or [1]
    for n, machine in measure_machine(threads).items():
        print(f"{n} thread(s): {machine['f32']:.0f} GFLOP/s in f32, {machine['f64']:.0f} in f64")
        for size, rate in machine["read"]:
            print(f"  {size / 1024:10.0f} KiB {rate:8.1f} GB/s")


if __name__ == "__main__":
    main()
