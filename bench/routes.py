"""The packed kernels beside BLAS, on every kernel set: `python -m bench.routes --help`.

Two processes, one with CYLSTM_GEMM=packed and one with blas, take turns at each shape, both on one
thread. Writes <out>.md: times of the packed route, and how many times that BLAS takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.compare import RESULTS
from bench.engines import Cylstm
from bench.measure import burst
from bench.problem import Problem, Shape, load_shapes
from bench.report import seconds

MODES = ("forward", "training")
# What OpenBLAS would be on the CPUs that a kernel set is for; it knows nothing of CYLSTM_ISA.
BLAS_CORES = {"avx512": "SkylakeX", "avx2": "Haswell", "sse2": "Nehalem", "scalar": "Prescott"}
ROUNDS, SECONDS = 5, 0.02


def serve(pipe: Any, isa: str, route: str) -> None:
    """Answer (mode, shape) with the least time of a call."""
    os.environ |= {
        "CYLSTM_ISA": isa,
        "CYLSTM_GEMM": route,
        "CYLSTM_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": BLAS_CORES.get(isa, ""),
    }
    engine = Cylstm(threads=1)
    while job := pipe.recv():
        mode, shape = job
        call = engine.calls(mode, Problem.draw(shape))[0]
        pipe.send(min(burst(call, SECONDS, SECONDS)))


@contextmanager
def server(isa: str, route: str) -> Iterator[Any]:
    """A pipe to a process that computes by one route."""
    context = multiprocessing.get_context("spawn")  # the route is chosen at import
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, isa, route))
    process.start()
    try:
        yield ours
        ours.send(None)
    finally:
        process.join(5)
        process.terminate()


def row(shape: Shape, pipes: list[Any]) -> str:
    """A shape's line of the table."""
    cells = [shape.name, str(shape)]
    for mode in MODES:
        least = [float("inf")] * len(pipes)
        for _ in range(ROUNDS):
            for k, pipe in enumerate(pipes):
                pipe.send((mode, shape))
                least[k] = min(least[k], pipe.recv())
        cells += [seconds(least[0]), f"×{least[1] / least[0]:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    import cylstm

    sets = cylstm.show_config()["isa_available"]
    parser = argparse.ArgumentParser(prog="bench.routes", description=__doc__)
    parser.add_argument("--isa", nargs="*", choices=sets, default=sets)
    parser.add_argument("--set", choices=load_shapes(), default="square")
    parser.add_argument("--out", type=Path, default=RESULTS / "routes")
    options = parser.parse_args()
    lines = ["# Packed kernels and BLAS", ""]
    lines += ["One thread, float32; × is the time by BLAS over that of the packed kernels."]
    lines += [
        "OpenBLAS takes the CPU for one of the set's time: "
        + str(BLAS_CORES)[1:-1].replace("'", "")
        + "."
    ]
    for isa in options.isa:
        lines += ["", f"## {isa}", ""]
        lines += [
            "| shape | T,B,I,H | forward | BLAS | training | BLAS |",
            "|---|---|--:|--:|--:|--:|",
        ]
        with ExitStack() as stack:
            pipes = [stack.enter_context(server(isa, route)) for route in ("packed", "blas")]
            for shape in load_shapes()[options.set]:
                lines.append(row(shape, pipes))
                print(isa, lines[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
