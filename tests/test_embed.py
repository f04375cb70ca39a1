"""What builds on cylstm: a C program, a Cython package, and Python in threads and processes."""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import bits_promised, rel, same_bits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

# A build with sanitizers tests a copy of tests/ alone.
needs_sources = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="examples/ and src_c/ are not here"
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports an example's module, from the folder given."""
    imported = []

    def load(name: str, folder: Path = EXAMPLES) -> Any:
        monkeypatch.syspath_prepend(folder)
        imported.append(name)
        return importlib.import_module(name)

    yield load
    for name in imported:
        sys.modules.pop(name, None)


# --- C

# Stands between the example and the C library: counts what is allocated from the first step of
# the plan to the last, and what was before.
COUNTER = """
#include <stdio.h>
#include <stdlib.h>
static int all, before, since, steps;
#define COUNTED(name, parameters, arguments)      \\
    void *__real_##name parameters;               \\
    void *__wrap_##name parameters                \\
    {                                             \\
        all++;                                    \\
        return __real_##name arguments;           \\
    }
COUNTED(malloc, (size_t n), (n))
COUNTED(calloc, (size_t n, size_t size), (n, size))
COUNTED(realloc, (void *p, size_t n), (p, n))
COUNTED(aligned_alloc, (size_t align, size_t n), (align, n))
static void report(void) { printf("allocated %d %d in %d steps\\n", before, since, steps); }
void __real_cylstm_plan_run(void *, void *, void *, size_t, void *, size_t, void *, void *);
void __wrap_cylstm_plan_run(void *plan, void *ctx, void *packed, size_t T, void *active,
                            size_t rows, void *x, void *y)
{
    if (!steps++) {
        before = all;
        atexit(report);
    }
    __real_cylstm_plan_run(plan, ctx, packed, T, active, rows, x, y);
    since = all - before;
}
"""
WRAPPED = "malloc", "calloc", "realloc", "aligned_alloc", "cylstm_plan_run"


@pytest.fixture(scope="module")
def realtime(build_c: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/embed_c, built with the counter."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs a linker with --wrap")
    counter = tmp_path_factory.mktemp("embed_c") / "counter.c"
    counter.write_text(COUNTER)
    wraps = [f"-Wl,--wrap={name}" for name in WRAPPED]
    return build_c("realtime", *wraps, counter, EXAMPLES / "embed_c" / "realtime.c")


def test_core_by_itself(build_c: Callable[..., Path], tmp_path: Path) -> None:
    """tests/threads.c: three callers and their helpers, packed weights and raw, without Python."""
    program = build_c("threads", ROOT / "tests" / "threads.c")
    assert " 0 differ" in run(program, cwd=tmp_path)


SIZES: list[dict[str, Any]] = [
    dict(input_size=40, hidden_size=33),
    dict(input_size=3, hidden_size=20, num_layers=3, bias=False, proj_size=7),
]


@needs_sources
@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("sizes", SIZES, ids=["plain", "projected"])
def test_c_program(
    realtime: Path, example: Any, tmp_path: Path, sizes: dict[str, Any], weights: str | None
) -> None:
    """It gives what a stream gives, to the bit, and allocates nothing once it has begun."""
    lstm = cylstm.LSTM(**sizes, seed=1)
    example("export", EXAMPLES / "embed_c").export(lstm, tmp_path / "weights", weights)
    if weights:
        lstm = cylstm.quantize(lstm, weights)
    x = np.random.default_rng(1).standard_normal((300, lstm.input_size)).astype("<f4")
    x.tofile(tmp_path / "input.f32")
    said = run(realtime, "weights", "input.f32", "output.f32", "10", cwd=tmp_path)
    y = np.fromfile(tmp_path / "output.f32", "<f4").reshape(300, -1)
    want = lstm.stream().run(x)
    assert same_bits(y, want) if bits_promised() else rel(y, want) < 1e-5
    first, second = sorted(said.splitlines())
    assert first.startswith("300 steps: mean ") and "worst" in first
    words = second.split()
    assert [words[0], *words[3:]] == ["allocated", "in", "301", "steps"]
    assert int(words[1]) >= 5 and words[2] == "0"


@needs_sources
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "does not start with"),
        (b"cylstm-f32 1 2 x 0 1\n", "does not start with"),
        (b"cylstm-f64 1 2 3 0 1\n", "does not start with"),
        (b"cylstm-int4 1 2 3 0 1\n", "does not start with"),
        (b"cylstm-f32 1 0 3 0 1\n", "sizes that make no LSTM"),
        (b"cylstm-f32 99999999999999999999 2 3 0 1\n", "sizes that make no LSTM"),
        (b"cylstm-f32 1 2 3 3 1\n", "sizes that make no LSTM"),
        (b"cylstm-f32 1 2 3 0 1\n" + bytes(4 * 83), "does not hold the 84 words"),
        (b"cylstm-f32 1 2 3 0 1\n" + bytes(4 * 84 + 1), "does not hold the 84 words"),
        (b"cylstm-int8 1 2 3 0 1\n" + bytes(4 * 62), "does not hold the 63 words"),
    ],
)
def test_c_program_refuses(realtime: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "weights").write_bytes(content)
    done = subprocess.run(
        [realtime, "weights", "none", "none"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and message in done.stderr


# --- Cython, and the C API by itself


class Api:
    """The functions of cylstm.embed by ctypes: a caller that needs no compiler."""

    VERSION = 1

    def __init__(self) -> None:
        size, pointer = ctypes.c_ssize_t, ctypes.c_void_p
        enter = ctypes.PYFUNCTYPE(
            pointer, ctypes.py_object, ctypes.c_int, ctypes.c_int, size, size, size
        )
        self.enter = enter(self.address("cylstm_stream_enter"))
        run = ctypes.CFUNCTYPE(None, pointer, size, pointer, pointer)  # without the GIL
        self._run = run(self.address("cylstm_stream_run"))
        self.leave = ctypes.PYFUNCTYPE(None, pointer)(self.address("cylstm_stream_leave"))

    @staticmethod
    def address(name: str) -> int:
        from cylstm.embed import __pyx_capi__

        get_name = ctypes.pythonapi.PyCapsule_GetName
        get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        return int(get(__pyx_capi__[name], get_name(__pyx_capi__[name])))

    def run(self, handle: int, x: Any, y: Any, T: int | None = None) -> None:
        self._run(handle, len(x) if T is None else T, x.ctypes.data, y.ctypes.data)


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "int8", "int8, x of int16"])
def test_api(api: Api, kind: str, batch: int | None) -> None:
    """Between enter and leave the stream is the caller's, with the weights of its LSTM then."""
    dtype = "float64" if kind == "float64" else "float32"
    lstm, other = (cylstm.LSTM(4, 6, 2, proj_size=5, dtype=dtype, seed=s) for s in (1, 2))
    if not kind.startswith("float"):
        weights, *wide = kind.split(", x of ")
        lstm, other = (
            cylstm.quantize(each, weights, inputs=wide[0] if wide else None)
            for each in (lstm, other)
        )
    ours, theirs = lstm.stream(batch), lstm.stream(batch)
    x = np.random.default_rng(1).standard_normal((9, batch or 1, 4)).astype(dtype)
    frames = x if batch else x[:, 0]
    y = np.empty((9, batch or 1, 5), dtype)
    want = np.concatenate([theirs.run(frames[:4]).ravel(), theirs.run(frames[4:]).ravel()])
    handle = api.enter(ours, api.VERSION, 8 * y.itemsize, batch or 1, 4, 5)
    api.run(handle, x[:4], y[:4])
    for use in (lambda: ours.state, lambda: ours.step(frames[0]), ours.reset):
        with pytest.raises(RuntimeError, match="in use"):
            use()
    with pytest.raises(RuntimeError, match="in use"):
        api.enter(ours, api.VERSION, 8 * y.itemsize, batch or 1, 4, 5)
    lstm.load_state_dict(other.state_dict())
    for spoil in (lstm, other):  # whatever may take up the memory of weights that nobody holds
        spoil.load_state_dict(other.state_dict())
    api.run(handle, x[4:], y[4:])
    api.leave(handle)
    assert same_bits(y.ravel(), want)
    assert all(same_bits(a, b) for a, b in zip(ours.state, theirs.state, strict=True))
    assert same_bits(ours.step(frames[0]), theirs.step(frames[0]))  # both with the new weights


def test_api_keeps_the_stream(api: Api) -> None:
    lstm = cylstm.LSTM(2, 3, seed=1)
    want = lstm.stream().step(np.ones(2, np.float32))
    gone = weakref.ref(lstm)
    handle = api.enter(lstm.stream(), api.VERSION, 32, 1, 2, 3)
    del lstm
    gc.collect()
    y = np.empty((1, 3), np.float32)
    for T in (-1, 0, -(2**62)):  # no step
        api.run(handle, np.ones((1, 2), np.float32), y, T)
    api.run(handle, np.ones((1, 2), np.float32), y)
    assert same_bits(y[0], want) and gone()
    api.leave(handle)
    gc.collect()
    assert not gone()


def test_api_refuses(api: Api) -> None:
    lstm = cylstm.LSTM(2, 3)
    stream = lstm.stream()
    with pytest.raises(ValueError, match="version 2 .* expected 1"):
        api.enter(stream, 2, 32, 1, 2, 3)
    for wrong in [(64, 1, 2, 3), (32, 2, 2, 3), (32, 1, 3, 3), (32, 1, 2, 2), (32, 1, -1, 3)]:
        with pytest.raises(ValueError, match="expected float32, 1 x 2 -> 1 x 3"):
            api.enter(stream, api.VERSION, *wrong)
    for nothing in (lstm, None, object()):
        with pytest.raises(TypeError, match="expected a cylstm stream"):
            api.enter(nothing, api.VERSION, 32, 1, 2, 3)
    stream.step(np.ones(2, np.float32))  # none of them has taken it


@needs_sources
def test_cython_package(tmp_path: Path) -> None:
    """examples/embed_cython, built against the cylstm that is installed; then its own test."""
    for needed in ("Cython", "setuptools"):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{needed} is not installed")
    if not shutil.which(os.environ.get("CC", "cc")):
        pytest.skip("there is no C compiler")
    folder = tmp_path / "feedback"
    shutil.copytree(EXAMPLES / "embed_cython", folder)
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=folder, CFLAGS="-O1")
    options: list[str | Path] = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        folder,
    ]
    said = run(sys.executable, "-m", "pytest", *options, "test_feedback.py", cwd=folder)
    assert "5 passed" in said


# --- Python, in threads and processes


def waves(n: int) -> tuple[Any, Any]:
    """Windows of 8 of a sine, and what follows each."""
    series = np.sin(np.arange(n + 8) / 4)
    return np.array([series[t : t + 8] for t in range(n)]), series[8:]


@needs_sources
def test_forecaster(example: Any) -> None:
    """It learns, alike each time, and is what scikit-learn calls an estimator."""
    forecaster = example("sklearn_forecaster").LSTMForecaster
    X, y = waves(120)
    model = forecaster(epochs=30, random_state=1)
    with pytest.raises(ValueError, match="call fit"):
        model.predict(X)
    assert model.fit(X[:90], y[:90]) is model
    assert model.score(X[90:], y[90:]) > 0.9
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))
    twin = forecaster(**model.get_params()).fit(X[:90], y[:90])
    assert np.array_equal(twin.predict(X), model.predict(X))
    assert model.set_params(epochs=0, hidden_size=5) is model
    assert model.get_params()["hidden_size"] == 5
    with pytest.raises(ValueError, match="epoch_count"):
        model.set_params(epoch_count=1)
    two = np.stack([y, -y], 1)  # two outputs, two series
    both = model.fit(np.stack([X, -X], 2), two).predict(np.stack([X, -X], 2))
    assert both.shape == (120, 2)
    with pytest.raises(ValueError, match="y has shape"):
        model.fit(X, y[1:])


@needs_sources
def test_side_by_side_in_threads(example: Any) -> None:
    """One fitted model serves many threads, and many models fit at once: no bit changes."""
    forecaster = example("sklearn_forecaster").LSTMForecaster
    X, y = waves(60)
    models = [forecaster(epochs=3, random_state=seed, threads=None) for seed in range(4)]
    alone = [pickle.loads(pickle.dumps(m)).fit(X, y).predict(X) for m in models]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda m: m.fit(X, y), models))
        together = list(pool.map(lambda m: m.predict(X), models))
        shared = list(pool.map(lambda _: models[0].predict(X), range(8)))
    assert all(same_bits(a, b) for a, b in zip(together, alone, strict=True))
    assert not same_bits(alone[0], alone[1])
    assert all(same_bits(a, alone[0]) for a in shared)


@needs_sources
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_side_by_side_in_processes(example: Any, method: str) -> None:
    """Fitted here, after the pool has run, and used in processes of either kind."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    model = example("sklearn_forecaster").LSTMForecaster(epochs=2, random_state=1, threads=None)
    X, y = waves(60)
    model.fit(X, y)
    lstm = cylstm.LSTM(64, 64, seed=1)
    x = np.random.default_rng(1).standard_normal((64, 16, 64), np.float32)
    want, _ = lstm(x, threads=2)  # enough work to start the pool's threads
    with multiprocessing.get_context(method).Pool(2) as pool:
        futures = [pool.apply_async(lstm, (x,), {"threads": 2}) for _ in range(4)]
        predicted = pool.map(model.predict, [X[:30], X[30:]])
        got = [future.get(60)[0] for future in futures]
    assert all(same_bits(y, want) for y in got)
    assert rel(np.concatenate(predicted), model.predict(X)) < 1e-6  # NumPy's BLAS is in it
