"""The pool of threads by itself, in C programs: what it does about helpers that are held up, and
how it stops. (test_threads.py has what calls see of it.)"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import several_cpus

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,  # the core has to be compiled
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for CPUs and threads"),
]


@pytest.fixture(scope="module")
def pool(build_c: Callable[..., Path]) -> Path:
    return build_c("pool", "-Wl,--wrap=pthread_create", HERE / "pool.c")


def output(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


@several_cpus
@pytest.mark.parametrize("case", ["rest", "forgotten"])
@pytest.mark.timing
def test_a_helper_that_was_held_up_is_back_soon(pool: Path, case: str) -> None:
    """After about as long as it was held up, 20 ms, also when it was before that held up for a
    second and has made up for it."""
    tries = [float(output(pool, case)) for _ in range(3)]  # a busy machine holds it up too
    assert 10 < min(tries) < 150, tries


@several_cpus
@pytest.mark.timing
def test_a_helper_that_is_always_held_up_is_asked_ever_less(pool: Path) -> None:
    """20 ms each time: 2 s would hold fifty, or two at forty times as long a rest."""
    assert 4 <= int(output(pool, "doubling")) <= 16


def test_nobody_helps_on_one_core(pool: Path) -> None:
    """There a helper would only take the core from its caller."""
    assert output(pool, "one core") == "0"


@several_cpus
def test_threads_that_the_system_refuses(pool: Path) -> None:
    """Calls run with those there are: none of two, none of which helped; then one of three."""
    assert output(pool, "refused") == "0 0 1"


@several_cpus
def test_stopping(pool: Path) -> None:
    """With no pool yet; 200 times after calls, each of which starts it again; and not in a call."""
    assert output(pool, "stop") == "1 0 1 0"


@several_cpus
def test_a_library_that_is_unloaded_takes_its_threads_along(build_c: Callable[..., Path]) -> None:
    core = build_c("libcore.so", "-shared")
    assert output(build_c("unload", HERE / "unload.c", "-ldl"), core) == "50 times"
