"""What a process finds out of its machine and its environment, and what it says of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import _core, config
from helpers import run_python

# ---------------------------------------------------------------------------------------------
# show_config
# ---------------------------------------------------------------------------------------------


def test_show_config() -> None:
    shown = cylstm.show_config()
    assert list(shown) == [
        *(
            "version",
            "isa",
            "isa_reason",
            "isa_available",
            "int8",
            "int8_available",
            "bf16",
            "gemm",
            "gemm_route",
            "threads",
        ),
    ]
    assert isinstance(shown, dict)
    assert shown["version"] == cylstm.__version__
    assert shown["isa"] in shown["isa_available"]
    assert ("CYLSTM_ISA" in shown["isa_reason"]) == bool(os.environ.get("CYLSTM_ISA"))
    assert shown["gemm"] == (os.environ.get("CYLSTM_GEMM") or "auto")
    assert ("BLAS" in shown["gemm_route"]) == (shown["gemm"] == "blas")
    assert shown["threads"] == cylstm.get_num_threads()


def test_it_prints_a_line_for_each_entry() -> None:
    shown = cylstm.show_config()
    for text in (str(shown), repr(shown), f"{shown}"):
        lines = text.splitlines()
        assert [line.split()[0] for line in lines] == list(shown)
        for line, (name, value) in zip(lines, shown.items(), strict=True):
            assert line.removeprefix(name).strip() == str(value)
        column = max(map(len, shown)) + 2
        assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_what_it_returns_is_the_callers() -> None:
    shown = cylstm.show_config()
    shown["isa_available"].clear()
    shown["isa"] = "nonsense"
    assert cylstm.show_config()["isa_available"] and cylstm.show_config()["isa"] != "nonsense"


# ---------------------------------------------------------------------------------------------
# CPUs and threads
# ---------------------------------------------------------------------------------------------

V1, V1_PERIOD = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        # version 2: one file, quota and period in microseconds
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "10000 100000"}, 0.1),
        ({"cpu.max": "max 100000\n", V1: "100000\n", V1_PERIOD: "100000\n"}, None),
        # version 1: two files, and -1 for no limit
        ({V1: "-1\n", V1_PERIOD: "100000\n"}, None),
        ({V1: "300000\n", V1_PERIOD: "100000\n"}, 3.0),
        ({V1: "50000\n", V1_PERIOD: "100000\n"}, 0.5),
        # what no kernel writes
        ({"cpu.max": ""}, None),
        ({"cpu.max": "max"}, None),
        ({"cpu.max": "many 100000"}, None),
        ({"cpu.max": "200000 100000 1"}, None),
        ({"cpu.max": "200000 0"}, None),
        ({"cpu.max": "garbage", V1: "300000", V1_PERIOD: "100000"}, 3.0),
        ({V1: "300000"}, None),
        ({V1: "300000", V1_PERIOD: "0"}, None),
        ({V1: "garbage", V1_PERIOD: "100000"}, None),
        ({V1: "300000", V1_PERIOD: ""}, None),
        ({V1: "0", V1_PERIOD: "100000"}, None),
        ({V1_PERIOD: "100000"}, None),
    ],
    ids=str,
)
def test_limit_of_a_group(files: dict[str, str], cpus: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert config._cgroup_cpus(str(tmp_path)) == cpus


def test_control_groups_that_cannot_be_read(tmp_path: Path) -> None:
    assert config._cgroup_cpus(str(tmp_path / "nowhere")) is None
    (tmp_path / "cpu.max").mkdir()
    assert config._cgroup_cpus(str(tmp_path)) is None
    (tmp_path / "cpu.max").rmdir()
    (tmp_path / "cpu.max").write_bytes(b"\xff\xfe\x00 100000")
    assert config._cgroup_cpus(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("mask", "limit", "cpus"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 1.4, 1), (8, 0.1, 1), (2, 16.0, 2), (1, 1.0, 1)],
)
def test_available_cpus(
    mask: int, limit: float | None, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The affinity mask and the control group's limit, whichever is less; at least one."""
    monkeypatch.setattr(config, "_cgroup_cpus", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)), raising=False)
    assert config._available_cpus() == cpus


def test_systems_without_affinity_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_cgroup_cpus", lambda: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, cpus in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert config._available_cpus() == cpus


def test_first_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_available_cpus", lambda: 1000)
    monkeypatch.delenv("CYLSTM_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert config._first_threads() == 256
    for text, n in {"": 256, "1": 1, "7": 7, "256": 256, "003": 3}.items():
        monkeypatch.setenv("CYLSTM_NUM_THREADS", text)
        assert config._first_threads() == n


@pytest.mark.parametrize("text", ["0", "-1", "257", "1.5", "two", " ", "1 2", "0x2", "9" * 30])
def test_first_threads_that_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYLSTM_NUM_THREADS", text)
    with pytest.raises(ValueError) as caught:
        config._first_threads()
    assert f"CYLSTM_NUM_THREADS={text!r}" in str(caught.value)
    assert "1 to 256" in str(caught.value)


# ---------------------------------------------------------------------------------------------
# Kernels and BLAS
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["BLAS", "openblas", " packed", "auto,blas", "0", "none"])
def test_choices_of_products_that_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYLSTM_GEMM", text)
    with pytest.raises(ValueError) as caught:
        _core._choose_gemm()
    for word in (f"CYLSTM_GEMM={text!r}", "auto", "packed", "blas"):
        assert word in str(caught.value)


def test_choices_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, chosen in {"": "auto", "auto": "auto", "packed": "packed", "blas": "blas"}.items():
        monkeypatch.setenv("CYLSTM_GEMM", text)
        assert _core._choose_gemm() == chosen
    monkeypatch.delenv("CYLSTM_GEMM")
    assert _core._choose_gemm() == "auto"


def test_choices_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    available = cylstm.show_config()["isa_available"]
    for isa in available:
        monkeypatch.setenv("CYLSTM_ISA", isa)
        assert _core._choose_isa() == (isa, "forced by CYLSTM_ISA")
    monkeypatch.setenv("CYLSTM_ISA", "")
    isa, reason = _core._choose_isa()
    assert isa == available[0] and "CYLSTM_ISA" not in reason
    monkeypatch.setenv("CYLSTM_ISA", "AVX2")
    with pytest.raises(ValueError, match="CYLSTM_ISA='AVX2'.*expected one of.*scalar"):
        _core._choose_isa()


CALL = """
import sys
import numpy as np
import cylstm
def loaded():
    return "scipy" in sys.modules
report = [loaded()]
lstm = cylstm.LSTM(3, 5)
lstm.load_state_dict(lstm.state_dict())
report.append(loaded())
cylstm.show_config()
report.append(loaded())
tape = lstm.forward(np.ones((2, 1, 3), "f4"))
tape.backward(tape.y)
lstm.stream().step(np.ones(3, "f4"))
report.append(loaded())
print(*report, "torch" in sys.modules)
"""


@pytest.mark.parametrize("gemm", ["auto", "packed", "blas"])
def test_scipy_comes_with_the_package_where_it_is_asked_for(gemm: str) -> None:
    """And not with a call, which imports nothing."""
    done = run_python("-c", CALL, CYLSTM_GEMM=gemm)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*[str(gemm == "blas")] * 4, "False"]


@pytest.mark.parametrize("gemm", ["auto", "packed", "blas"])
def test_without_scipy(gemm: str) -> None:
    """Only who asks for its BLAS is told that it is missing."""
    done = run_python("-c", "import sys; sys.modules['scipy'] = None\n" + CALL, CYLSTM_GEMM=gemm)
    if gemm != "blas":
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message == "ImportError: CYLSTM_GEMM=blas needs SciPy: pip install cylstm[blas]"


def test_an_import_that_is_refused() -> None:
    """A wrong environment is said at once, by the import."""
    variables: dict[str, Any] = {"CYLSTM_NUM_THREADS": "0", "CYLSTM_GEMM": "no", "CYLSTM_ISA": "no"}
    for name, text in variables.items():
        done = run_python("-c", "import cylstm", **{name: text})
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"ValueError: {name}={text!r}: ")


@pytest.mark.parametrize(
    ("text", "want"), [("3", 3), (" 5,2", 5), ("999", 256), ("0", None), ("x", None), ("", None)]
)
def test_openmps_variable_comes_second(
    text: str, want: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_available_cpus", lambda: 11)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    monkeypatch.setenv("CYLSTM_NUM_THREADS", "7")
    assert config._first_threads() == 7
    monkeypatch.setenv("CYLSTM_NUM_THREADS", "")
    assert config._first_threads() == (want or 11)


def test_results_have_names_and_say_what_they_are() -> None:
    lstm = cylstm.LSTM(1, 2)
    tape = lstm.forward(np.ones((3, 4, 1), np.float32))
    grads, stream = tape.backward(tape.y), lstm.stream(4)
    head = cylstm.Linear(2, 1).forward(tape.y)
    for value, kind in (
        (tape, cylstm.Tape),
        (grads, cylstm.Gradients),
        (grads.weights, cylstm.WeightGrads),
        (stream, cylstm.Stream),
        (head, cylstm.LinearTape),
        (head.backward(head.y), cylstm.LinearGrads),
    ):
        assert type(value) is kind
    assert repr(tape) == "Tape(y=(3, 4, 2), h_n=(1, 4, 2), c_n=(1, 4, 2))"
    assert repr(stream) == f"Stream({lstm!r}, batch_size=4)"
    assert repr(grads).startswith("Gradients(x=(3, 4, 1), h_0=(1, 4, 2), c_0=(1, 4, 2), weights=[")
    assert repr(tape.backward(tape.y, need_x=False)).startswith("Gradients(h_0=")
    gru = cylstm.GRU(1, 2).forward(np.ones((3, 1), np.float32))
    assert repr(gru) == "Tape(y=(3, 2), h_n=(1, 2))"


# ---------------------------------------------------------------------------------------------
# for a while
# ---------------------------------------------------------------------------------------------


def test_threads_within_a_statement() -> None:
    before = cylstm.get_num_threads()
    with cylstm.threads(3):
        assert cylstm.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), cylstm.threads(1):
            assert cylstm.get_num_threads() == 1
            raise ZeroDivisionError
        assert cylstm.get_num_threads() == 3
        wrong: Any
        for wrong, error in [(0, ValueError), (257, ValueError), (1.5, TypeError)]:
            with pytest.raises(error, match="n is"), cylstm.threads(wrong):
                raise AssertionError
        assert cylstm.get_num_threads() == 3
    assert cylstm.get_num_threads() == before


THREADPOOLCTL = """
import os, threadpoolctl
import cylstm.threadpoolctl

def ours():
    return [entry for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "cylstm"]

with cylstm.threads(3):
    (entry,) = ours()
    assert entry["internal_api"] == "cylstm"
    assert entry["filepath"] == os.path.realpath(cylstm._core.__file__)
    assert entry["version"] == cylstm.__version__
    assert entry["num_threads"] == 3
    assert entry["architecture"] == cylstm.show_config()["isa"]
    for limits in (2, {"cylstm": 2}):
        with threadpoolctl.threadpool_limits(limits):
            assert cylstm.get_num_threads() == ours()[0]["num_threads"] == 2
        assert cylstm.get_num_threads() == 3
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert cylstm.get_num_threads() == 3
    with threadpoolctl.threadpool_limits(1000, user_api="cylstm"):
        assert cylstm.get_num_threads() == 256
"""


def test_threadpoolctl_knows_the_library() -> None:
    pytest.importorskip("threadpoolctl")
    done = run_python("-c", THREADPOOLCTL)
    assert done.returncode == 0, done.stderr


def test_threadpoolctl_is_not_told_unless_asked() -> None:
    pytest.importorskip("threadpoolctl")
    done = run_python("-c", "import cylstm, threadpoolctl; print(threadpoolctl.threadpool_info())")
    assert done.returncode == 0 and "cylstm" not in done.stdout, done
