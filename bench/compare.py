"""Measure cylstm beside the engines people use, in one run: `python -m bench.compare --help`."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import cylstm
from bench import limits, narrow, report
from bench.engines import ENGINES, NARROW
from bench.measure import TOLERANCE, Effort, Job, Result, Tell, failure, machine_busy, work
from bench.problem import load_shapes
from bench.rows import RIVALS

RESULTS = Path(__file__).with_name("results")
PRELOADED = ("numpy", "torch", "onnx", "onnxruntime", "openvino", "ncnn", "jax")
QUICK_FLOPS = 5e9  # --quick leaves out shapes of more in a forward pass


def run_job(context: Any, job: Job, tell: Tell) -> Result:
    """Run a job in a fresh process, and outlive whatever happens to it."""
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(job, theirs))
    process.start()
    theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "done":
                return dict(value)
            tell(value)
    except EOFError:
        process.join()
        return failure(job, f"the process died with exit code {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def cpu_model() -> str:
    """The processor's name and, since a virtual machine may hide it, family and model."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if "model name" in fields:
            name = fields["model name"]
            return f"{name} (family {fields['cpu family']}, model {fields['model']})"
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> Result:
    """The machine and the software, for the head of the results."""
    compiler = os.environ.get("CC", "cc").split()
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True).stdout
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cpus": cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "compiler": version.splitlines()[0] if version else "",
        "int8": cylstm.show_config()["int8"],
        "bf16": cylstm.show_config()["bf16"],
        "versions": {name: engine.version() for name, engine in ENGINES.items()},
        "load": os.getloadavg()[0],
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> tuple[str, ...]:
        return tuple(text.split(","))

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(word) for word in text.split(","))

    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__)
    add = parser.add_argument
    add(
        "--sets",
        type=words,
        default=("models", "steps", "square", "cells"),
        help="sets of shapes.json (models,steps,square,cells: all), or narrow: "
        "engines with fewer bits on the LSTMs of the first three, time and error",
    )
    add("--shapes", type=words, help="only the shapes of these names, of any set")
    add("--threads", type=numbers, default=(1, 2), help="numbers of threads (1,2)")
    add(
        "--modes",
        type=words,
        default=("forward", "step", "training"),
        help="forward,step,training: the forward pass of T = 1 is measured as step",
    )
    add("--peers", type=words, help=f"engines beside cylstm ({','.join(ENGINES)})")
    add("--dtype", choices=TOLERANCE, default="float32")
    add("--rounds", type=int, help="most turns that an engine gets (9)")
    add(
        "--patience",
        type=float,
        default=0.0,
        help="seconds to wait, before each line, for other processes to leave the CPUs (0)",
    )
    add("--quick", action="store_true", help="3 short turns, and no shapes that take long")
    add("--strict", action="store_true", help="exit with 1 where a target is missed")
    add(
        "--out",
        type=Path,
        default=RESULTS / "latest",
        help="write <out>.json, .md and .png (bench/results/latest)",
    )
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> tuple[list[Job], dict[str, Result]]:
    """The jobs of a run, and their shapes as the results keep them."""
    sets = load_shapes()
    fewer_bits = options.sets == ("narrow",)
    if fewer_bits:
        options.sets, options.modes = narrow.SETS, ("step", "forward")
    engines = {"cylstm": ENGINES["cylstm"]} | NARROW if fewer_bits else ENGINES
    shapes = {shape.name: shape for rows in sets.values() for shape in rows}
    for kind, given, known in (
        ("shapes", options.shapes, shapes),
        ("sets", options.sets, sets),
        ("peers", options.peers, engines),
        ("modes", options.modes, RIVALS),
    ):
        unknown = [name for name in given or () if name not in known]
        if unknown:
            sys.exit(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(known)}")
    effort = Effort(rounds=3, burst=0.005, budget=5) if options.quick else Effort()
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    wanted = ("cylstm", *(options.peers or engines))
    present = tuple(n for n in dict.fromkeys(wanted) if engines[n].version() is not None)
    chosen = [
        shapes[name]
        for name in options.shapes
        or [one.name for one in narrow.shapes()] * fewer_bits
        or [one.name for name in options.sets for one in sets[name]]
        if not (options.quick and shapes[name].forward_flops > QUICK_FLOPS)
    ]
    jobs = [
        Job(shape, mode, threads, present, options.dtype, effort, fewer_bits)
        for mode in options.modes
        for threads in options.threads
        for shape in chosen
        if mode in shape.modes
    ]
    set_of = {shape.name: name for name, rows in sets.items() for shape in rows}
    return jobs, {one.name: asdict(one) | {"set": set_of[one.name]} for one in chosen}


def await_quiet(patience: float) -> None:
    """Wait until others leave the CPUs alone, for so many seconds at most."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        before = machine_busy()
        time.sleep(1)
        if machine_busy() - before < report.DISTURBED:
            return


def run(
    jobs: list[Job], results: Result, out: Path, console: Console, patience: float = 0.0
) -> None:
    """Run the jobs; whatever ends this early, `results` and <out>.json hold what was measured."""
    # Some engine starts a program when it is imported; that the server reaps it is no news.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:forkserver")
    context = multiprocessing.get_context("forkserver")
    # Every job is forked from a process that has imported the engines and run none: no pool of one
    # job is there in the next, and none waits for imports.
    context.set_forkserver_preload(["bench.measure", *PRELOADED])
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # Drawn only when a job says so, between bursts: drawing takes a core for a while.
        auto_refresh=False,
    )
    with bar:
        task = bar.add_task("", total=len(jobs))
        previous = None
        for job in jobs:

            def tell(text: str, job: Job = job) -> None:
                bar.update(task, description=f"{job}: {text}", refresh=True)

            if (job.mode, job.threads) != previous:  # now and then: no moment is always quiet
                tell("limits of the machine")
                machine = limits.measure_machine([job.threads])
                results["limits"] = limits.best_of(results["limits"], machine)
                previous = job.mode, job.threads
            tell("waiting")
            await_quiet(patience)
            results["jobs"].append(run_job(context, job, tell))
            for one, done in zip(jobs, results["jobs"], strict=False):
                machine = results["limits"][str(one.threads)]
                done["limit"] = limits.limit(one.shape, one.mode, machine, one.dtype)
            report.save(results, out)
            bar.update(task, advance=1, refresh=True)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), Console()
    if not console.is_terminal:
        console = Console(width=140)
    jobs, shapes = plan(options)
    if not jobs:
        sys.exit("nothing to measure")
    results: Result = {
        "about": describe(),
        "dtype": options.dtype,
        "effort": asdict(jobs[0].effort),
        "shapes": shapes,
        "limits": {},
        "jobs": [],
    }
    interrupted = False
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    try:
        run(jobs, results, options.out, console, options.patience)
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured until here is kept")
    if not results["jobs"]:
        return 130
    write = narrow.write if jobs[0].narrow else report.write
    passed = write(results, options.out, console)
    return 130 if interrupted else int(options.strict and not passed)


if __name__ == "__main__":
    sys.exit(main())
