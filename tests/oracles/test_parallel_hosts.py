"""Inside what runs Python in parallel: joblib and Dask, in threads and in processes.

Every job gets the bits that this process gets alone, whatever works beside it, and on the same
kernels.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import THREADED, Array, assert_same, make_problem, results, run_python, same_bits

Calls = list[tuple[Any, ...]]
Host = Callable[[Callable[..., Any], Calls], list[Any]]  # what the function returns for each call

SECONDS = 120


@pytest.fixture(autouse=True)
def no_deadlock() -> Iterator[None]:
    """A test that hangs, in a thread or for a process, ends everything and says where."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def in_joblib(backend: str, **options: Any) -> Host:
    joblib = pytest.importorskip("joblib")

    def host(run: Callable[..., Any], calls: Calls) -> list[Any]:
        parallel = joblib.Parallel(n_jobs=2, backend=backend, timeout=SECONDS / 2, **options)
        return list(parallel(joblib.delayed(run)(*call) for call in calls))

    return host


def in_dask(scheduler: str) -> Host:
    dask = pytest.importorskip("dask")

    def host(run: Callable[..., Any], calls: Calls) -> list[Any]:
        jobs = [dask.delayed(run)(*call) for call in calls]
        return list(dask.compute(*jobs, scheduler=scheduler, num_workers=2))

    return host


HOSTS: dict[str, Callable[[], Host]] = {
    "joblib threads": lambda: in_joblib("threading"),
    "joblib processes": lambda: in_joblib("loky"),
    "joblib multiprocessing": lambda: in_joblib("multiprocessing"),
    "dask threads": lambda: in_dask("threads"),
    "dask processes": lambda: in_dask("processes"),
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("make", HOSTS.values(), ids=HOSTS)
def test_jobs_get_the_same_bits(make: Callable[[], Host], isa: str) -> None:
    """Jobs that share an LSTM and jobs that do not, on one thread and on more than there are."""
    host = make()
    problems = [make_problem(k, dtype="float32", **THREADED["rows"]) for k in range(3)]
    lstms = [p.lstm() for p in problems]
    calls: Calls = list(zip(problems, lstms))
    calls += [(problems[0], lstms[0], threads) for threads in (1, 2, 5)]
    want = [results(*call) for call in calls]  # this process has a pool before others start
    found = host(results, calls)
    for got, expected in zip(found, want, strict=True):
        assert_same(got, expected)
    assert not same_bits(found[0], found[1])
    assert [config["isa"] for config in host(cylstm.show_config, [()] * 2)] == [isa] * 2


def test_arrays_that_joblib_maps() -> None:
    """Large arguments of a process come as read-only maps of a file: arrays, and weights too."""

    def run(p: Any, lstm: Any) -> list[Array]:
        assert isinstance(p.x, np.memmap) and not p.x.flags.writeable
        lstm.load_state_dict(p.weights)
        return results(p, lstm)

    p = make_problem(1, dtype="float32", **THREADED["rows"])
    calls = [(p, p.lstm()), (p, cylstm.LSTM(**p.config))]
    for got in in_joblib("loky", max_nbytes=1000)(run, calls):
        assert_same(got, results(p, p.lstm()))


def test_on_plain_c() -> None:
    """All of the above once more, by the kernels that every machine has."""
    if cylstm.show_config()["isa"] == "scalar":
        pytest.skip("this is that run")
    options = ["-q", "-p", "no:cacheprovider", "-k", "not plain_c"]
    done = run_python(
        "-m", "pytest", *options, __file__, cwd=Path(__file__).parents[2], CYLSTM_ISA="scalar"
    )
    assert done.returncode == 0, done.stdout + done.stderr
