"""What cylstm and other engines take: to download, on disk, to import, and in memory.

    make footprint                     # or python -m tools.footprint [--runs 15] [--out FILE]

Each engine is installed from wheels into an environment of its own under build/footprint, and then
started many times in fresh processes. The engines take turns and the smallest number of each
counts, so that what else the machine does stays out. NumPy, which all of them need, has a row of
its own: sizes and times come on top of its, memory is that of the whole process.

Writes <out>.json, and <out>.md: the table that README.md quotes.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "footprint"
OUT = ROOT / "bench" / "results" / "footprint"
INPUT, HIDDEN = 16, 64  # the LSTM whose step is taken: one layer, one sequence

Row = dict[str, Any]


class Skipped(Exception):
    """An engine that could not be had; the message says why."""


class Engine(NamedTuple):
    """How to get an engine and what to do with it; the code sees `INPUT`, `HIDDEN` and `MODEL`."""

    name: str
    requirement: str | None  # None: NumPy alone
    load: str
    step: str | None  # one step of an LSTM; None where there is no model to step


CYLSTM_STEP = """
stream = cylstm.LSTM(INPUT, HIDDEN, seed=0).stream()
stream.step(numpy.zeros(INPUT, "float32"))
"""
TORCH_STEP = """
with torch.inference_mode():
    torch.nn.LSTM(INPUT, HIDDEN)(torch.zeros(1, 1, INPUT))
"""
ONNX_STEP = """
session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
session.run(None, {i.name: numpy.zeros(i.shape, "float32") for i in session.get_inputs()})
"""

ENGINES = [
    Engine("NumPy", None, "", None),
    Engine("cylstm", "cylstm", "import cylstm", CYLSTM_STEP),
    Engine("cylstm[blas]", "cylstm[blas]", "import cylstm", CYLSTM_STEP),
    Engine("LiteRT", "ai-edge-litert", "import ai_edge_litert.interpreter", None),
    Engine("ONNX Runtime", "onnxruntime", "import onnxruntime", ONNX_STEP),
    Engine("PyTorch", "torch==2.13.0", "import torch", TORCH_STEP),
]

# All that is measured in one process. Nothing is imported that the interpreter has not loaded.
MEASURE = """
INPUT, HIDDEN, MODEL = {input}, {hidden}, {model!r}
from time import perf_counter
def memory():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))
start = perf_counter()
import numpy
middle = perf_counter()
{load}
end, loaded = perf_counter(), memory()
{step}
print(middle - start, end - middle, loaded, memory())
"""


def run(*command: str | Path) -> str:
    """The output of a command; Skipped, with the end of its complaint, if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=WORK, capture_output=True, text=True)
    if done.returncode:
        raise Skipped((done.stderr.strip() or "no message").splitlines()[-1])
    return done.stdout


def pip(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "pip", *arguments)


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_numpy(wheel: Path) -> bool:
    return wheel.name.startswith("numpy-")


def install(engine: Engine, home: Path) -> Row:
    """Download the engine's wheels and install them in a fresh environment; its sizes."""
    shutil.rmtree(home / "venv", ignore_errors=True)
    wheels, python = home / "wheels", home / "venv" / "bin" / "python"
    shutil.rmtree(wheels, ignore_errors=True)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv")
    packages = next((home / "venv" / "lib").glob("python3*/site-packages"))

    download: list[str | Path] = ["download", "-q", "--only-binary", ":all:", "-d", wheels]
    download += ["--find-links", WORK / "cylstm"]
    pip(*download, "numpy")
    if engine.requirement:
        pip(*download, engine.requirement)
    files = sorted(wheels.glob("*.whl"))
    if for_gpus := [file.name for file in files if file.name.startswith("nvidia_")]:
        raise Skipped(
            f"this is the build for GPUs, with {for_gpus[0]}; "
            "have pip look where there is the one for CPUs"
        )
    into: list[str | Path] = ["--python", python, "install", "-q", "--no-index", "--no-deps"]
    pip(*into, *filter(is_numpy, files))
    numpy_size = size(packages)
    others = [file for file in files if not is_numpy(file)]
    if others:
        pip(*into, *others)
    own = re.split(r"\[|==", engine.requirement or "numpy")[0].replace("-", "_")
    version = next(file.name.split("-")[1] for file in files if file.name.startswith(f"{own}-"))
    return {
        "version": version,
        "wheels": [file.name for file in files],
        "download": sum(file.stat().st_size for file in others or files),
        "installed": size(packages) - (numpy_size if others else 0),
    }


def measure(engine: Engine, home: Path, model: Path) -> Row:
    """Import the engine and take a step, in a fresh process."""
    code = MEASURE.format(
        input=INPUT, hidden=HIDDEN, model=str(model), load=engine.load, step=engine.step or ""
    )
    # -I: of this environment and nothing else
    out = run(home / "venv" / "bin" / "python", "-I", "-c", code).split()
    numpy_seconds, seconds = map(float, out[:2])
    loaded, stepped = map(int, out[2:])
    found: Row = {"import": seconds if engine.load else numpy_seconds, "loaded": loaded}
    return found | ({"stepped": stepped} if engine.step else {})


def write_model(path: Path) -> None:
    """The LSTM for an engine that reads ONNX."""
    from bench.onnx_model import to_onnx
    from bench.problem import Problem, Shape

    problem = Problem.draw(Shape("footprint", T=1, B=1, I=INPUT, H=HIDDEN))
    path.write_bytes(to_onnx(problem).SerializeToString())


def measure_all(runs: int) -> list[Row]:
    """A row for each engine that can be had."""
    model = WORK / "lstm.onnx"
    write_model(model)
    homes: dict[Engine, Path] = {}
    rows: dict[str, Row] = {}
    for engine in ENGINES:
        home = WORK / engine.name.replace(" ", "-").lower()
        try:
            rows[engine.name] = install(engine, home)
            measure(engine, home, model)  # not counted: from now on its files are in the cache
        except Skipped as reason:
            rows.pop(engine.name, None)
            print(f"*** SKIPPED: {engine.name}: {reason} ***", file=sys.stderr)
        else:
            homes[engine] = home
            print(engine.name, rows[engine.name]["version"], flush=True)
    for _ in range(runs):
        for engine, home in homes.items():
            row = rows[engine.name]
            for key, value in measure(engine, home, model).items():
                row[key] = min(value, row.get(key, value))
    return [{"engine": name, **row} for name, row in rows.items()]


def number(value: float | None, unit: float, name: str) -> str:
    """With two digits at least: 0.12 MB, 1.9 MB, 153 MB."""
    if value is None:
        return "-"
    scaled = value / unit
    return f"{scaled:.{0 if scaled >= 10 else 1 if scaled >= 1 else 2}f} {name}"


def table(rows: list[Row], runs: int) -> str:
    """Markdown."""
    lines = [
        "| | download | installed | import | memory after import | after a step |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        shown = [number(row[key], 1e6, "MB") for key in ("download", "installed")]
        shown.append(number(row["import"], 1e-3, "ms"))
        shown += [number(row.get(key), 1e6, "MB") for key in ("loaded", "stepped")]
        lines.append(f"| {' | '.join([row['engine'], *shown])} |")
    versions = [f"{row['engine']} {row['version']}" for row in rows if "[" not in row["engine"]]
    text = f"""
        Sizes are those of the wheels and of what they unpack to, including every dependency except
        NumPy; import time is measured with NumPy already imported; memory is the resident set of
        the process, NumPy included. The step is one of an LSTM of {HIDDEN} units and {INPUT}
        inputs; LiteRT is imported only. The least of {runs} fresh processes on
        {platform.system()} {platform.machine()} with Python {platform.python_version()}:
        {", ".join(versions)}."""
    return "\n".join([*lines, "", textwrap.fill(" ".join(text.split()), 100), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="measure what engines take")
    parser.add_argument("--runs", type=int, default=15, help="processes per engine")
    parser.add_argument("--out", type=Path, default=OUT, help="without a suffix")
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("footprint: reads Linux's /proc")

    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(WORK / "cylstm", ignore_errors=True)
    build: list[str | Path] = [sys.executable, "-m", "build", "--outdir", WORK / "cylstm", ROOT]
    subprocess.run(build, cwd=WORK, check=True, stdout=subprocess.DEVNULL)  # sdist, wheel from it
    rows = measure_all(options.runs)

    text = table(rows, options.runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"runs": options.runs, "input": INPUT, "hidden": HIDDEN, "rows": rows}
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print("\n" + text, end="")


if __name__ == "__main__":
    main()
