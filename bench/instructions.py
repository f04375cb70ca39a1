"""Instructions that single calls take, counted by valgrind: `python -m bench.instructions --help`.

A count does not depend on what else a machine does, so it shows a change of one in a hundred where
times cannot. It says nothing of caches or of instructions that take long. One thread, the AVX2
kernels (valgrind knows no AVX-512), through the public Python interface: a call's way through
Cython is counted too.

A process makes every call twice, and then one of them many times more; what that adds, divided by
the number, is the figure. It depends on the compiler and on Python, so it is compared with figures
of the same ones: in bench/results/instructions.json or, with --against, of a commit built here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
STORED = ROOT / "bench" / "results" / "instructions.json"
STEPS, CALLS = 2000, 20  # of a call, so that a process's start differs by far less
TOLERANCE = 0.01

Counts = dict[str, int]


class Repeated(NamedTuple):
    """A call, and how often it is made."""

    run: Callable[[], object]
    times: int = CALLS


def make_calls() -> dict[str, Repeated]:
    """The six calls, by name; sizes of shapes.json where it has them."""
    import numpy as np

    import cylstm

    rng = np.random.default_rng(0)

    def lstm(inputs: int, units: int, **options: Any) -> Any:
        return cylstm.LSTM(inputs, units, seed=0, **options)

    def noise(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    def step(size: int) -> Repeated:
        stream, x, y = lstm(size, size).stream(), noise(size), np.empty(size, np.float32)
        return Repeated(lambda: stream.step(x, out=y), STEPS)

    def forward(T: int, B: int, model: Any) -> Repeated:
        x = noise(T, B, model.input_size)
        return Repeated(lambda: model(x, threads=1))

    def training(T: int, B: int, model: Any) -> Repeated:
        x, dy = noise(T, B, model.input_size), noise(T, B, model.hidden_size)
        adam = cylstm.optim.Adam(model)

        def run() -> None:
            tape = model.forward(x, threads=1)
            adam.step(tape.backward(dy, threads=1), threads=1)

        return Repeated(run)

    return {
        "step, H 16": step(16),
        "step, H 128": step(128),
        "forward, one sequence": forward(100, 1, lstm(64, 64)),
        "forward, 16 sequences": forward(20, 16, lstm(64, 64)),
        "forward, bidirectional, 2 layers": forward(
            10, 4, lstm(17, 33, num_layers=2, bidirectional=True)
        ),
        "training, 8 sequences": training(12, 8, lstm(32, 48)),
    }


def run_calls(extra: str) -> None:
    """What is counted: all calls twice, and `extra` as often as it is to be."""
    calls = make_calls()
    for call in calls.values():
        call.run()
        call.run()
    if extra:
        for _ in range(calls[extra].times):
            calls[extra].run()


def count(extra: str, root: Path) -> int:
    """Instructions of a process that runs the calls, with the package in `root`."""
    done = subprocess.run(
        [
            *("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"),
            *(sys.executable, __file__, "--count", extra),
        ],
        env=os.environ
        | {
            "CYLSTM_ISA": "avx2",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
    )
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"valgrind failed:\n{done.stdout}{done.stderr}")
    return int(found[1].replace(",", ""))


def count_all(root: Path) -> Counts:
    """Instructions of each call."""
    without = count("", root)
    times = {name: call.times for name, call in make_calls().items()}
    return {name: (count(name, root) - without) // n for name, n in times.items()}


def made_with() -> str:
    compiler = os.environ.get("CC", "cc")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return f"{version.splitlines()[0]}, Python {platform.python_version()}"


def built(revision: str, folder: Path) -> Path:
    """Another commit, built in `folder`."""
    archive = subprocess.run(
        ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder


def compare(counts: Counts, before: Counts) -> bool:
    """Print both; whether none is more than TOLERANCE above what it was."""
    good = True
    for name, now in counts.items():
        was = before.get(name)
        change = f"{now / was - 1:+.2%} of {was:,}" if was else "new"
        worse = was is not None and now > was * (1 + TOLERANCE)
        good &= not worse
        print(f"{name:34} {now:12,}   {change}{'   MORE' if worse else ''}")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit, built here")
    parser.add_argument("--update", action="store_true", help="store the counts")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count is not None:
        run_calls(options.count)
        return
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed")
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    counts = count_all(ROOT)
    if options.update:
        STORED.write_text(json.dumps({"made_with": made_with(), "counts": counts}, indent=1) + "\n")
    if options.against:
        with tempfile.TemporaryDirectory() as folder:
            before = count_all(built(options.against, Path(folder)))
    elif stored.get("made_with") == made_with() or options.update:
        before = stored.get("counts", {})
    else:
        print(f"not compared: {STORED.name} is of {stored.get('made_with')}, this is {made_with()}")
        before = {}
    if not compare(counts, before) and not options.update:
        sys.exit(f"more instructions by over {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
