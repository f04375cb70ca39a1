"""The core without Python: single kernels (tests/kernels*.c), whole calls (tests/calls*.c) and
calls that must not be (tests/breaches.c)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ISAS

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kernels(build_c: Callable[..., Path]) -> Path:
    return build_c("kernels", *sorted(HERE.glob("kernels*.c")))


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)


def test_every_function_of_every_set(kernels: Path) -> None:
    """A few trials each, for the core is not optimised here; `make kernels` makes many."""
    done = run(kernels, "--trials", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    trials, failed = (int(word) for word in done.stdout.split() if word.isdigit())
    assert failed == 0 and trials % (2 * len(ISAS)) == 0, done.stdout  # of each type, on each set


@pytest.mark.parametrize("arguments", [["--isa", "nonsense"], ["--only", "nonsense"], ["--what"]])
def test_nothing_to_check_is_a_failure(kernels: Path, arguments: list[str]) -> None:
    assert run(kernels, *arguments).returncode != 0


def test_measuring(kernels: Path) -> None:
    done = run(kernels, "--bench", "--only", "sum_biases")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2 * len(ISAS)


def test_calls_stay_within_their_arrays(build_c: Callable[..., Path]) -> None:
    """Raw weights among them: in Python, 64 bytes behind them are readable too."""
    done = run(build_c("calls", *sorted(HERE.glob("calls*.c"))), "0", "100")
    assert done.returncode == 0, done.stdout + done.stderr


def test_breaches_of_the_header_are_found(build_c: Callable[..., Path]) -> None:
    """By the assertions of a debug build: tests/breaches.c."""
    done = run(build_c("breaches", HERE / "breaches.c"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d\d breaches, 0 not found\n", done.stdout)
