"""One cell of the table: a shape, a mode and a number of threads, with all engines taking turns.

It runs in a process of its own (`work`), so that no thread pool outlives its cell.
"""

from __future__ import annotations

import gc
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import ADAM_EPS, ENGINES, LEARNING_RATE, NARROW, Call, Outputs, Unsupported
from bench.problem import Problem, Shape, relative_error

Result = dict[str, Any]
Tell = Callable[[str], None]

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
ANY = ENGINES | NARROW
MOST_NARROW = 0.3  # further from float64 no rounding to fewer bits takes an engine
SAMPLE_SECONDS = 100e-6  # short calls are timed by the handful


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 9
    burst: float = 0.02  # seconds that one engine runs for, per round
    budget: float = 20.0  # seconds for all rounds of a job; three are run at least


@dataclass(frozen=True)
class Job:
    """One cell of the table; it gets a process of its own."""

    shape: Shape
    mode: str
    threads: int
    engines: tuple[str, ...]
    dtype: str
    effort: Effort
    narrow: bool = False  # engines with fewer bits among them: held against float64

    def __str__(self) -> str:
        return f"{self.shape.name} {self.mode} x{self.threads}"


def settle(patience: float = 0.3) -> None:
    """Wait until nothing of this process runs: pools spin on after a call, some for 40 ms.

    The slices are longer than the tick by which some kernels account CPU time.
    """
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.012)
        if time.process_time() - before < 0.002:
            return


def machine_busy() -> float:
    """Seconds that all CPUs together have worked, hypervisor's theft included; 0 if unknown."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")  # without idle, waiting


def burst(call: Call, seconds: float, expected: float) -> list[float]:
    """Run a call for a while, all in one go; the seconds of single calls."""
    run, clock = call.run, time.perf_counter
    inner = range(max(1, round(SAMPLE_SECONDS / expected)))
    samples: list[float] = []
    with call.around():
        warm = clock() + 0.1 * seconds  # caches, and threads that fell asleep
        while expected < 0.3:  # ... which a long call hardly notices
            run()
            if clock() >= warm:
                break
        end = clock() + seconds
        while not samples or clock() < end:
            start = clock()
            for _ in inner:
                run()
            samples.append((clock() - start) / len(inner))
    return samples


def try_all(calls: list[Call]) -> list[float]:
    """About how long each call takes: the best of three short turns."""
    times = [float("inf")] * len(calls)
    for _ in range(3):
        for k, call in enumerate(calls):
            if 1 < times[k] < float("inf"):
                continue  # seconds, known well enough
            settle()
            expected = min(times[k], 1.0)
            seconds = 10 * expected if expected < 1e-3 else 0.0
            times[k] = min(times[k], *burst(call, seconds, expected))
    return times


def first_outputs(call: Call, mode: str) -> Outputs:
    """Run a call for the first time; a stream's state shows after a few steps."""
    with call.around():
        for _ in range(3 if mode == "step" else 1):
            call.run()
        return {name: np.array(value) for name, value in call.read().items()}


def check_update(problem: Problem, outputs: Outputs) -> None:
    """Raise unless the weights are what Adam's first step makes of the gradients."""
    rate, eps = LEARNING_RATE, ADAM_EPS
    for name, before in problem.weights.items():
        gradient = outputs["d " + name].astype(np.float64)
        expected = -rate * gradient / (np.abs(gradient) + eps)
        error = np.abs(outputs[name] - before.astype(np.float64) - expected).max()
        if not error < 0.05 * rate:  # float32 weights of 0.3 have steps of 0.03 rates
            raise ArithmeticError(f"Adam's step of {name} is off by {error / rate:.2g} of its rate")


def disagreement(a: Outputs, b: Outputs) -> float:
    """The largest relative error between what two engines computed from the same numbers."""
    kinds = ("y", "h_n", "c_n")
    common = [k for k in a if k in b and (k in kinds or k.startswith("d "))]
    return max(relative_error(a[k], b[k]) for k in common)


def prepare(job: Job, found: Result, tell: Tell) -> dict[str, Call]:
    """Build every engine, have them agree, and choose the fastest call of each."""
    problem = Problem.draw(job.shape, job.dtype)
    outputs: dict[str, Outputs] = {}
    calls: dict[str, Call] = {}
    for name in job.engines:
        tell(f"preparing {name}")
        try:
            choices = ANY[name](job.threads).calls(job.mode, problem)
            computed = [first_outputs(call, job.mode) for call in choices]
            for one in computed:
                if job.mode == "training":
                    check_update(problem, one)
                if disagreement(one, computed[0]) > (
                    MOST_NARROW if name in NARROW else TOLERANCE[job.dtype]
                ):
                    raise ArithmeticError("its own calls disagree")
        except Unsupported as reason:
            found[name] = {"left_out": str(reason)}
            continue
        except Exception as error:  # a peer that breaks must not take the others along
            found[name] = {"left_out": f"failed: {type(error).__name__}: {error}", "failed": True}
            continue
        trials = try_all(choices)
        best = int(np.argmin(trials))
        calls[name], outputs[name] = choices[best], computed[0]
        labels = [call.label for call in choices]
        found[name] = {
            "call": labels[best],
            "trials": dict(zip(labels, trials, strict=True)),
        }

    if job.narrow:
        for name, off in errors_of(job, problem, outputs).items():
            found[name]["error"] = off
            if not off < (MOST_NARROW if name in NARROW else TOLERANCE[job.dtype]):
                del calls[name]
                found[name].update(left_out=f"wrong: off by {off:.2g}", failed=True)
        return calls

    # An engine stands if it agrees with more than half of them, itself counted.
    agreeing = {
        a: {b for b in outputs if disagreement(outputs[a], outputs[b]) < TOLERANCE[job.dtype]}
        for a in outputs
    }
    standing = [a for a in outputs if 2 * len(agreeing[a]) > len(outputs)]
    for a in outputs:
        errors = [disagreement(outputs[a], outputs[b]) for b in standing if b != a]
        found[a]["error"] = max(errors, default=0.0)
        if a not in standing:
            del calls[a]
            found[a].update(left_out=f"wrong: off by {found[a]['error']:.2g}", failed=True)
    return calls


def errors_of(job: Job, problem: Problem, outputs: dict[str, Outputs]) -> dict[str, float]:
    """How far each engine's y is from PyTorch's in float64, as a part of the largest y."""
    (truth, *_) = ENGINES["torch"](job.threads).calls(job.mode, problem.widened())
    want = first_outputs(truth, job.mode)["y"]
    return {name: relative_error(one["y"], want) for name, one in outputs.items()}


def measure(job: Job, tell: Tell) -> Result:
    """Time all engines of a job, taking turns."""
    found: Result = {}
    calls = prepare(job, found, tell)
    names = list(calls)
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    expected = {name: min(found[name]["trials"].values()) for name in names}
    gc.collect()
    gc.disable()
    start, busy, own = time.perf_counter(), machine_busy(), time.process_time()
    for turn in range(job.effort.rounds):
        spent = time.perf_counter() - start
        if turn >= 3 and spent * (turn + 1) / turn > job.effort.budget:
            break
        shift = turn % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            tell(f"round {turn + 1}, {name}")
            settle()
            samples[name].append(burst(calls[name], job.effort.burst, expected[name]))
    others = (machine_busy() - busy) - (time.process_time() - own)
    for name, rounds in samples.items():
        every = [sample for one in rounds for sample in one]
        found[name] |= {
            "min": min(every),
            "median": statistics.median(every),
            "round_min": [min(one) for one in rounds],
            "samples": len(every),
        }
    return {
        "shape": job.shape.name,
        "mode": job.mode,
        "threads": job.threads,
        "engines": found,
        "others": max(0.0, others / (time.perf_counter() - start)),  # CPUs that others took
    }


def failure(job: Job, reason: str) -> Result:
    """The result of a job that gave none."""
    engines = {name: {"left_out": f"failed: {reason}", "failed": True} for name in job.engines}
    return {
        "shape": job.shape.name,
        "mode": job.mode,
        "threads": job.threads,
        "engines": engines,
        "others": 0.0,
    }


def work(job: Job, pipe: Connection) -> None:
    """The job's process: ("progress", text) as it goes, ("done", result) at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    try:
        result = measure(job, lambda text: pipe.send(("progress", text)))
    except Exception as error:
        result = failure(job, f"{type(error).__name__}: {error}")
    pipe.send(("done", result))
