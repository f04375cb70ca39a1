"""How many threads, and which kernels: what a process has to know of its machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import _checks, _core


def _read(*path: str) -> str:
    # not pathlib: its import costs half as much as all of ours
    with open(os.path.join(*path)) as file:
        return file.read()


def _cgroup_cpus(root: str = "/sys/fs/cgroup") -> float | None:
    """Return how many CPUs the control group may use, or None where it sets no limit."""
    try:
        quota, period = _read(root, "cpu.max").split()  # cgroup v2
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass
    try:
        used = int(_read(root, "cpu", "cpu.cfs_quota_us"))  # cgroup v1
        return used / int(_read(root, "cpu", "cpu.cfs_period_us")) if used > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _available_cpus() -> int:
    """Return the CPUs that this process may use: its affinity mask and its control group."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has affinity masks
        cpus = os.cpu_count() or 1
    limit = _cgroup_cpus()
    return max(1, cpus if limit is None else min(cpus, int(limit + 0.5)))


def _first_threads() -> int:
    text = os.environ.get("CYLSTM_NUM_THREADS", "")
    if not text:
        # Of OpenMP's list the first number is for the outermost level; what else it may hold is
        # for OpenMP to judge.
        others = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        if others.isdecimal() and int(others):
            return min(256, int(others))
        return min(256, _available_cpus())
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise ValueError(f"CYLSTM_NUM_THREADS={text!r}: expected an integer from 1 to 256")
    return int(text)


def set_num_threads(n: int) -> None:
    """Set the default number of threads per call; small calls use one.

    Raises
    ------
    TypeError, ValueError
        `n` is not an integer, or is outside 1..256.

    Examples
    --------
    >>> before = cylstm.get_num_threads()
    >>> cylstm.set_num_threads(1)
    >>> cylstm.get_num_threads()
    1
    >>> cylstm.set_num_threads(before)
    """
    _core._set_default_threads(_checks.integer("n", n, 1, 256))


def get_num_threads() -> int:
    """Return the default number of threads per call.

    Initially CYLSTM_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs available to the process
    (affinity mask, cgroup limit).

    Examples
    --------
    >>> cylstm.get_num_threads() >= 1
    True
    """
    return _core._get_default_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Within the `with` statement, `n` is the default number of threads per call.

    It is the default of the process, so that it holds for calls in other threads as well; where
    that is not meant, give a call its `threads=`.

    Raises
    ------
    TypeError, ValueError
        As `set_num_threads`.

    Examples
    --------
    >>> import cylstm
    >>> with cylstm.threads(1):
    ...     print(cylstm.get_num_threads())
    1
    """
    before = get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)


class Config(dict[str, Any]):
    """A dict that prints one entry per line."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())

    __repr__ = __str__


def show_config() -> Config:
    """Return the configuration of this process, as a dict that prints one entry per line.

    Keys: version, isa (the active kernels), isa_reason, isa_available, int8 (how int8 is
    multiplied), int8_available, bf16 (who multiplies bfloat16, None where the CPU does not), gemm
    (the CYLSTM_GEMM rule), gemm_route (what it means here), threads.

    Examples
    --------
    >>> cylstm.show_config()["gemm"] in ("auto", "packed", "blas")
    True
    """
    from . import __version__

    route = "SciPy's BLAS for every product" if _core.GEMM == "blas" else "packed kernels"
    return Config(
        version=__version__,
        isa=_core.ISA,
        isa_reason=_core.ISA_REASON,
        isa_available=list(_core.ISA_AVAILABLE),
        int8=_core.INT8,
        int8_available=list(_core.INT8_AVAILABLE),
        bf16=_core.BF16,
        gemm=_core.GEMM,
        gemm_route=route,
        threads=get_num_threads(),
    )


set_num_threads(_first_threads())
