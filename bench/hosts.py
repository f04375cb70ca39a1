"""What several threads cost where others want the cores as well: `python -m bench.hosts --help`.

Beside `torch` and `openblas`, every call follows an operation of another library in the same
process, whose own threads spin on for a while. Beside `processes`, one spins on every core. On
`one-cpu`, that is all that the process may use. Calls by one thread and by several, alone and
beside the rival, take turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bench.compare import cpu_count
from bench.engines import Call, Cylstm
from bench.measure import machine_busy, settle
from bench.problem import Problem, Shape, load_shapes

SHAPES = "160,8,40,256 50,16,256,256 49,1,64,256 24,32,19,32 100,32,64,64 500,1,64,256"
LONG_CALL = 4e-3  # seconds that a call takes alone
WORST = 1.3
NOISE = 1.05  # what "no slower" may measure
WIDTH = 300  # of the matrices that a library multiplies

Operation = Callable[[], object]


class Result(NamedTuple):
    """Median seconds of a call."""

    one_alone: float
    several_alone: float
    one_beside: float
    several_beside: float

    def ratio(self, rival: str) -> tuple[float, float]:
        """How many times as long several threads take as they may, and the most allowed."""
        if rival in LIBRARIES and self.several_alone >= LONG_CALL:
            return self.several_beside / self.several_alone, WORST
        return self.several_beside / self.one_beside, NOISE if rival in LIBRARIES else WORST


def torch_operation(threads: int) -> Operation:
    import torch

    torch.set_num_threads(threads)
    a = torch.ones(WIDTH, WIDTH)
    return lambda: torch.mm(a, a)


def openblas_operation(threads: int) -> Operation:
    """By NumPy, whose OpenBLAS has read its number of threads from the environment."""
    a = np.ones((WIDTH, WIDTH), np.float32)
    return lambda: a @ a


LIBRARIES = {"torch": torch_operation, "openblas": openblas_operation}
RIVALS = [*LIBRARIES, "processes", "one-cpu"]


def spin(cpu: int | None) -> None:
    """Keep one core busy until the parent ends us."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    while True:
        pass


def usable_cpus() -> list[int | None]:
    if hasattr(os, "sched_getaffinity"):
        return list(os.sched_getaffinity(0))
    return [None] * cpu_count()


@contextlib.contextmanager
def spinning_processes() -> Iterator[Callable[[int], None]]:
    """One process for each CPU, which a signal stops and continues."""
    context = multiprocessing.get_context("spawn")
    spinning = [context.Process(target=spin, args=(cpu,), daemon=True) for cpu in usable_cpus()]
    for process in spinning:
        process.start()
    time.sleep(1)

    def send(number: int) -> None:
        for process in spinning:
            if process.pid is not None:
                os.kill(process.pid, number)

    try:
        yield send
    finally:
        send(signal.SIGKILL)


def burst(call: Call, operation: Operation | None, seconds: float) -> list[float]:
    """Seconds of single calls, each after the operation if there is one."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 8 or time.perf_counter() < end:
        if operation:
            operation()
        start = time.perf_counter()
        call.run()
        times.append(time.perf_counter() - start)
    return times[2:]


def quiet_burst(call: Call, operation: Operation | None, patience: float) -> list[float]:
    """A burst beside which no other process ran for long, or the last one when patience ends."""
    give_up = time.perf_counter() + patience
    while True:
        start, busy, own = time.perf_counter(), machine_busy(), time.process_time()
        times = burst(call, operation, 0.1)
        others = machine_busy() - busy - (time.process_time() - own)
        now = time.perf_counter()
        if others < 0.15 * (now - start) or now > give_up:
            return times


def measure(rival: str, mode: str, shape: Shape, options: argparse.Namespace) -> Result:
    """Calls of one shape, alone and beside the rival."""
    if rival == "one-cpu":  # before there is a helper
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    problem = Problem.draw(shape)
    calls = [Cylstm(n).calls(mode, problem)[0] for n in (1, options.threads)]
    operation = LIBRARIES[rival](options.threads) if rival in LIBRARIES else None
    times: list[list[float]] = [[] for _ in Result._fields]
    with contextlib.ExitStack() as stack:
        send: Callable[[int], None] = lambda number: None  # noqa: E731
        if rival == "processes":
            send = stack.enter_context(spinning_processes())
        for _ in range(options.rounds):
            for n, call in enumerate(calls):
                send(signal.SIGSTOP)
                settle()
                times[n] += quiet_burst(call, None, options.patience)
                send(signal.SIGCONT)
                patience = 0 if rival == "processes" else options.patience
                times[n + 2] += quiet_burst(call, operation, patience)
    return Result(*map(statistics.median, times))


def serve(pipe: Any, *arguments: Any) -> None:
    pipe.send(measure(*arguments))


def in_process(*arguments: Any) -> Result:
    """Measure in a process of its own: no pool and no affinity outlives it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        result: Result = ours.recv()
    finally:
        process.join()
    return result


def find_shape(name: str) -> Shape:
    """A shape of shapes.json by its name, or T,B,I,H."""
    named = {shape.name: shape for rows in load_shapes().values() for shape in rows}
    if name in named:
        return named[name]
    T, B, I, H = map(int, name.split(","))
    return Shape(name, T, B, I, H)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.hosts", description=__doc__)
    parser.add_argument("--beside", nargs="*", choices=RIVALS, default=RIVALS)
    parser.add_argument("--shapes", nargs="*", default=SHAPES.split(), help="names, or T,B,I,H")
    parser.add_argument("--mode", choices=("forward", "training"), default="forward")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="to wait for quiet before each burst of calls",
    )
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    passed = True
    print(f"{'milliseconds':28} {'alone: 1':>9} {options.threads:>9} {'beside: 1':>10} "
          f"{options.threads:>9} {'ratio':>7} {'at most':>8}")  # fmt: skip
    for rival in options.beside:
        for name in options.shapes:
            result = in_process(rival, options.mode, find_shape(name), options)
            ratio, most = result.ratio(rival)
            passed &= ratio <= most
            figures = " ".join(f"{1e3 * seconds:9.3f}" for seconds in result)
            print(f"{rival:10} {name:17} {figures} {ratio:8.2f} {most:8.2f}"
                  f"{'' if ratio <= most else '  FAIL'}", flush=True)  # fmt: skip
    print("PASS" if passed else "FAIL")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
