"""Fixtures for all tests, and the kernels they run on at the head of pytest's report."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cylstm

SRC_C = Path(__file__).parents[1] / "src_c"


@pytest.fixture(scope="session")
def isa() -> str:
    """The instruction set that this process computes with; CYLSTM_ISA chooses it."""
    return str(cylstm.show_config()["isa"])


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def default_threads() -> Iterator[None]:
    """For tests that change the default: it comes back."""
    before = cylstm.get_num_threads()
    yield
    cylstm.set_num_threads(before)


@pytest.fixture(scope="session")
def build_c(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a program or library from C sources, flags of the linker, and the core, compiled once
    for all, with its assertions, in no time (-O1 takes four times as long)."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler:
        pytest.skip("there is no C compiler")
    if not SRC_C.is_dir():
        pytest.skip("src_c/ is not here")
    folder = tmp_path_factory.mktemp("c")
    together = "PYTEST_XDIST_WORKER" in os.environ  # its processes have folders side by side
    objects = folder.parents[1 if together else 0] / "core"
    objects.mkdir(exist_ok=True)
    flags = ["-std=c11", "-O0", "-ffp-contract=off", "-fPIC", "-pthread", "-DCYLSTM_DEBUG"]
    flags += ["-fvisibility=hidden", "-DCYLSTM_SHARED", "-I", str(SRC_C)]

    def run(*arguments: str | Path) -> None:
        command = [compiler, *flags, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stderr}", pytrace=False)

    def compile_one(source: Path) -> Path:
        out = objects / source.with_suffix(".o").name
        run("-c", source, "-o", out)
        return out

    fcntl = pytest.importorskip("fcntl")
    done = objects / "done"
    with open(objects / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(compile_one, sorted(SRC_C.rglob("*.c"))))
            done.touch()
    core = sorted(objects.glob("*.o"))

    def build(name: str, *sources: str | Path) -> Path:
        run("-o", folder / name, *sources, *core, "-lm")
        return folder / name

    return build


def pytest_report_header() -> str:
    config = cylstm.show_config()
    return f"cylstm: isa {config['isa']} of {', '.join(config['isa_available'])}"
