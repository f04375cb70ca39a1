"""Whether two threads are a risk on a machine that is busy: `python -m bench.busy --help`.

A process spins on every core. Then calls of one thread and of several take turns, and the median
of the latter must not exceed the former's by much: threads that wait on each other would.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time

from bench import peers
from bench.compare import cpu_count
from bench.problem import Problem, load_shapes

SHAPES = "easyocr_gen2,stanza_tokenizer,pytorch_word_lm,t100_b8_i256_h256,t100_b1_i512_h512"
WORST = 1.3


def spin(cpu: int | None) -> None:
    """Keep one core busy until the parent ends us."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    while True:
        pass


def timed(call: peers.Call) -> float:
    with call.around():
        start = time.perf_counter()
        call.run()
        return time.perf_counter() - start


def medians(engine: str, problem: Problem, mode: str, threads: int, calls: int) -> list[float]:
    """Median seconds of calls by one thread and by several, taking turns."""
    pair = [peers.ENGINES[engine](n).calls(mode, problem)[0] for n in (1, threads)]
    for call in pair:
        timed(call)
    times = [[timed(call) for call in pair] for _ in range(calls)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.busy", description=__doc__)
    parser.add_argument("--engine", choices=peers.ENGINES, default="cylstm")
    parser.add_argument("--shapes", default=SHAPES, help="names from shapes.json, with T > 1")
    parser.add_argument("--mode", choices=("forward", "training"), default="forward")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--idle", action="store_true", help="for comparison: no busy processes")
    options = parser.parse_args()
    shapes = {shape.name: shape for rows in load_shapes().values() for shape in rows}
    cpus: list[int | None] = list(range(cpu_count()))
    if hasattr(os, "sched_getaffinity"):
        cpus = list(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    spinning = [context.Process(target=spin, args=(cpu,), daemon=True) for cpu in cpus]
    worst = 0.0
    try:
        for process in spinning if not options.idle else []:
            process.start()
        time.sleep(1)
        for name in options.shapes.split(","):
            problem = Problem.draw(shapes[name])
            measured = medians(
                options.engine, problem, options.mode, options.threads, options.calls
            )
            one, several = measured
            worst = max(worst, several / one)
            print(
                f"{name:32} 1 thread {1e3 * one:9.2f} ms   {options.threads} threads "
                f"{1e3 * several:9.2f} ms   ratio {several / one:6.2f}",
                flush=True,
            )
    finally:
        for process in spinning:
            if process.pid is not None:
                process.terminate()
    passed = worst <= WORST
    print(f"{'PASS' if passed else 'FAIL'}  worst ratio {worst:.2f}, at most {WORST}")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
