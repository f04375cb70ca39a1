"""Measure cylstm beside the engines people use, in one run: `python -m bench.compare --help`."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bench import limits, peers, report
from bench.measure import TOLERANCE, Effort, Job, Result, Tell, failure, work
from bench.problem import load_shapes

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
        "versions": {name: engine.version() for name, engine in peers.ENGINES.items()},
        "load": os.getloadavg()[0],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.compare", description=__doc__)
    listed = lambda kind: lambda text: tuple(kind(word) for word in text.split(","))  # noqa: E731
    add = parser.add_argument
    add(
        "--sets",
        type=listed(str),
        default=("models", "steps", "square"),
        help="sets of shapes.json (all of models,steps,square)",
    )
    add("--shapes", type=listed(str), help="only the shapes of these names, of any set")
    add("--threads", type=listed(int), default=(1, 2), help="numbers of threads (1,2)")
    add(
        "--modes",
        type=listed(str),
        default=("forward", "step", "training"),
        help="forward,step,training; T = 1 is measured as step, all else as the other two",
    )
    add("--peers", type=listed(str), help=f"engines beside cylstm ({','.join(peers.ENGINES)})")
    add("--dtype", choices=TOLERANCE, default="float32")
    add("--rounds", type=int, help="turns that every engine gets (9)")
    add("--quick", action="store_true", help="3 short rounds, and no shapes that take long")
    add("--strict", action="store_true", help="exit with 1 if a target is missed")
    add(
        "--out",
        type=Path,
        default=RESULTS / "latest",
        help="where to write <out>.json, .md and .png (bench/results/latest)",
    )
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> tuple[list[Job], dict[str, str]]:
    """The jobs of a run, and the set of every shape."""
    sets = load_shapes()
    shapes = {shape.name: shape for rows in sets.values() for shape in rows}
    unknown = [name for name in options.shapes or () if name not in shapes]
    unknown += [name for name in options.sets if name not in sets]
    unknown += [name for name in options.peers or () if name not in peers.ENGINES]
    if unknown:
        sys.exit(
            f"unknown: {', '.join(unknown)}; shapes: {', '.join(shapes)}; "
            f"sets: {', '.join(sets)}; peers: {', '.join(peers.ENGINES)}"
        )
    chosen = options.shapes or [shape.name for name in options.sets for shape in sets[name]]
    effort = Effort(rounds=3, burst=0.005, budget=5) if options.quick else Effort()
    if options.rounds:
        effort = Effort(options.rounds, effort.burst, effort.budget)
    wanted = ("cylstm", *(options.peers or peers.ENGINES))
    engines = tuple(n for n in dict.fromkeys(wanted) if peers.ENGINES[n].version() is not None)
    jobs = [
        Job(shapes[name], mode, threads, engines, options.dtype, effort)
        for mode in options.modes
        for threads in options.threads
        for name in chosen
        if mode in ((shapes[name].mode, "training") if shapes[name].T > 1 else ("step",))
        if not (options.quick and shapes[name].forward_flops > QUICK_FLOPS)
    ]
    return jobs, {shape.name: name for name, rows in sets.items() for shape in rows}


def main(arguments: list[str] | None = None) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    options, console = parse(arguments), Console()
    if not console.is_terminal:
        console.width = 140
    jobs, sets = plan(options)
    if not jobs:
        sys.exit("nothing to measure")
    # Forked from a process that has imported the engines and run none: no pool of one job is there
    # in the next, and none pays for imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.measure", *PRELOADED])
    results: Result = {
        "about": describe(),
        "dtype": options.dtype,
        "effort": asdict(jobs[0].effort),
        "shapes": {
            job.shape.name: asdict(job.shape) | {"set": sets[job.shape.name]} for job in jobs
        },
        "jobs": [],
    }
    # Drawn only when a job says so, between bursts: a refreshing bar would take the second core.
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
    )
    interrupted = False
    with progress:
        task = progress.add_task("limits", total=len(jobs))
        progress.refresh()
        try:
            machine = results["limits"] = limits.measure_machine(options.threads)
            for job in jobs:

                def tell(text: str, job: Job = job) -> None:
                    progress.update(task, description=f"{job}: {text}", refresh=True)

                one = run_job(context, job, tell)
                one["limit"] = limits.limit(job.shape, job.mode, machine[job.threads], job.dtype)
                results["jobs"].append(one)
                report.save(results, options.out)
                progress.update(task, advance=1, refresh=True)
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        console.print("interrupted: what was measured until here is kept")
    if not results["jobs"]:
        return 130
    passed = report.write(results, options.out, console)
    return 130 if interrupted else int(options.strict and not passed)


if __name__ == "__main__":
    sys.exit(main())
