"""Memory that runs out at any point: a MemoryError, everything usable and unchanged, nothing kept.

(test_pool.py has threads that the system refuses.)"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import environment

HERE = Path(__file__).parent
CC = shutil.which(os.environ.get("CC", "cc"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CC, reason="there is no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="takes the place of glibc's malloc"),
    pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="ASan has its own"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "libfaults.so"
    flags = ["-std=c11", "-O1", "-shared", "-fPIC"]
    subprocess.run([str(CC), *flags, "-o", path, HERE / "faults.c"], check=True)
    return path


def points(library: Path, *names: str, **more: str) -> int:
    """How many allocations failed; nothing else may be said."""
    done = subprocess.run(
        [sys.executable, HERE / "faults.py", *names],
        env=environment(LD_PRELOAD=str(library), **more),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stdout, done.stderr)
    assert done.stdout.strip().isdigit(), done.stdout
    return int(done.stdout)


def test_every_allocation_fails_once(library: Path) -> None:
    """Calls, packing, tapes, streams, copies, steps, load and save."""
    assert points(library) > 200


def test_objects_of_the_interpreter_too(library: Path) -> None:
    """All others are for `make fuzz`, since they take a minute."""
    names = "call", "training", "stream"
    assert points(library, *names, PYTHONMALLOC="malloc") > 2 * points(library, *names) > 0
