"""What an LSTM shares, and with whom: copies, blocks of weights in use, the floating-point mode."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import _core
from helpers import (
    THREADED,
    TOLERANCES,
    Array,
    all_grads,
    assert_close,
    assert_same,
    bits_promised,
    make_problem,
    rel,
    rel_grads,
    results,
    same_bits,
)

# ---------------------------------------------------------------------------------------------
# Copies
# ---------------------------------------------------------------------------------------------

NETS: dict[str, dict[str, Any]] = {
    "plain": dict(input_size=3, hidden_size=7),
    "all": dict(
        input_size=3, hidden_size=7, num_layers=2, bidirectional=True, proj_size=2, batch_first=True
    ),
    "no bias": dict(input_size=5, hidden_size=17, num_layers=2, bias=False, dropout=0.25),
}

CLONES: dict[str, Callable[[Any], Any]] = {
    f"pickle {k}": lambda lstm, k=k: pickle.loads(pickle.dumps(lstm, k))
    for k in range(pickle.HIGHEST_PROTOCOL + 1)
} | {"copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_clones(clone: Callable[[Any], Any], net: dict[str, Any], dtype: str) -> None:
    """The same LSTM once more, and from then on another one."""
    p = make_problem(1, 4, 3, dtype=dtype, **net)
    lstm = p.lstm()
    want, twin = results(p, lstm), clone(lstm)
    assert type(twin) is cylstm.LSTM and twin._config() == lstm._config()
    assert twin.dtype == np.dtype(dtype) and list(twin.state_dict()) == list(lstm.state_dict())
    assert same_bits(results(p, twin), want)
    doubled = {name: 2 * a for name, a in p.weights.items()}
    lstm.load_state_dict(doubled)
    assert same_bits(results(p, twin), want)
    lstm.load_state_dict(p.weights)
    twin.load_state_dict(doubled)
    assert same_bits(results(p, lstm), want)
    assert not same_bits(results(p, twin)[0], want[0])


def test_a_copy_does_not_pin_its_original() -> None:
    lstm = cylstm.LSTM(3, 5, seed=1)
    twin, state = copy.copy(lstm), {name: a.copy() for name, a in lstm.state_dict().items()}
    del lstm
    assert same_bits(list(twin.state_dict().values()), list(state.values()))


def test_attributes_of_a_clone() -> None:
    lstm = cylstm.LSTM(3, 5, 2, dropout=0.5, dtype="float64")
    lstm.dropout = 0.125
    twin = pickle.loads(pickle.dumps(lstm))
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    for name in (*names, "proj_size", "dropout", "dtype"):
        assert getattr(twin, name) == getattr(lstm, name), name


class Named(cylstm.LSTM):
    """What a user may make of an LSTM: another constructor, and attributes."""

    def __init__(self, name: str) -> None:
        super().__init__(3, 5)
        self.name, self.itself, self.notes = name, self, [name]


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_what_the_user_sets_on_a_module_goes_with_its_clones(clone: Callable[[Any], Any]) -> None:
    lstm = Named("first")
    twin = clone(lstm)
    assert type(twin) is Named and twin.name == "first"
    assert twin.itself is (lstm if clone is copy.copy else twin)
    assert (twin.notes is lstm.notes) == (clone is copy.copy)
    assert same_bits(list(twin.state_dict().values()), list(lstm.state_dict().values()))


# ---------------------------------------------------------------------------------------------
# What is fixed
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*cylstm.LSTM(1, 2)._config()])
def test_arguments_can_be_read_and_not_set(name: str) -> None:
    lstm = cylstm.LSTM(3, 64, 2, bidirectional=True)
    value = getattr(lstm, name)
    if name in ("dropout", "recurrent_dropout"):
        setattr(lstm, name, 0.5)
        assert getattr(lstm, name) == lstm._config()[name] == 0.5
        return
    with pytest.raises(AttributeError, match=f"{name} of LSTM is fixed: make another LSTM"):
        setattr(lstm, name, not value if isinstance(value, bool) else 1)
    assert getattr(lstm, name) == value


@pytest.mark.parametrize("module", [cylstm.LSTM(3, 1500), cylstm.Linear(3, 5)], ids=repr)
def test_a_module_is_made_once(module: Any) -> None:
    before = repr(module), list(module.state_dict().values())
    with pytest.raises(RuntimeError, match=r"__init__ of this \w+ has run before"):
        module.__init__(3, 2)
    assert repr(module) == before[0]
    assert same_bits(list(module.state_dict().values()), before[1])


def test_what_python_can_reach_is_not_what_the_core_reads() -> None:
    """Private names set to another's: an error or the stream's own weights, and no crash."""
    lstm: Any = cylstm.LSTM(3, 1500, seed=1)
    other: Any = cylstm.LSTM(3, 2)
    x = np.ones((2, 3), np.float32)
    stream, want = lstm.stream(2), lstm.stream(2).step(x)
    weights = lstm._weights
    weights.flat = weights.spec = None
    lstm._dims, lstm._spec, lstm._spares = other._dims, other._spec, other._spares
    assert same_bits(stream.step(x), want) and same_bits(lstm(x[None])[0][0], want)
    _core.replace([lstm._current], [other._weights])
    with pytest.raises(RuntimeError, match="those of another"):
        stream.step(x)
    lstm._current = object()
    with pytest.raises((TypeError, AttributeError)):
        lstm.stream(2)


# ---------------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_processes_get_the_same_bits(method: str) -> None:
    """However they are started, while this one has a pool, and in the middle of a stream."""
    problems = [make_problem(k, dtype="float32", **THREADED["rows"]) for k in range(3)]
    calls = [(p, p.lstm(), threads) for p in problems for threads in (1, 3)]
    want = [results(*call) for call in calls]
    stream = problems[0].lstm().stream(23)
    first = stream.run(problems[0].x[:4])
    with multiprocessing.get_context(method).Pool(2) as pool:  # its end kills what hangs
        started = [pool.apply_async(results, call) for call in calls]
        rest = pool.apply_async(stream.run, (problems[0].x[4:],))
        for got, expected in zip(started, want, strict=True):
            assert_same(got.get(60), expected)
        whole = problems[0].lstm().stream(23).run(problems[0].x)
        assert_same([first, rest.get(60)], [whole[:4], whole[4:]])
    assert_same([stream.run(problems[0].x[4:])], [whole[4:]])  # it went on from its own state
    assert not same_bits(want[0], want[2])


# ---------------------------------------------------------------------------------------------
# First weights
# ---------------------------------------------------------------------------------------------


def test_seeds() -> None:
    def weights(seed: Any, dtype: str = "float64") -> list[Array]:
        lstm = cylstm.LSTM(3, 50, 2, seed=seed, dtype=dtype, bidirectional=True)
        return list(lstm.state_dict().values())

    assert same_bits(weights(7), weights(7)) and same_bits(weights(7), weights(np.int64(7)))
    assert not same_bits(weights(7), weights(8))
    assert not same_bits(weights(None), weights(None))
    assert same_bits([a.astype("f4") for a in weights(7)], weights(7, "float32"))
    for wrong in (-1, 1.5, "7"):
        with pytest.raises((TypeError, ValueError)):
            weights(wrong)


@pytest.mark.parametrize("hidden_size", [4, 100])
def test_first_weights_are_uniform(hidden_size: int, dtype: str) -> None:
    """In +-1/sqrt(H), each array: PyTorch's choice."""
    bound = 1 / np.sqrt(hidden_size)
    lstm = cylstm.LSTM(50, hidden_size, 2, seed=1, dtype=dtype)
    arrays = lstm.state_dict().values()
    for a in arrays:
        assert np.abs(a).max() <= bound
        assert abs(a.mean()) < 6 * bound / np.sqrt(3 * a.size)
    every = np.concatenate([a.ravel() for a in arrays]) / bound
    counts, _ = np.histogram(every, 8, (-1, 1))
    expected = every.size / 8
    assert ((counts - expected) ** 2 / expected).sum() < 35  # chi squared, 7 degrees of freedom
    assert len(np.unique(every)) > 0.99 * every.size


# ---------------------------------------------------------------------------------------------
# Blocks of weights
# ---------------------------------------------------------------------------------------------


def test_state_dict_is_read_only_and_stays() -> None:
    p = make_problem(2, 2, 2, dtype="float32", input_size=3, hidden_size=5, num_layers=2)
    lstm = p.lstm()
    held = lstm.state_dict()
    for a in held.values():
        with pytest.raises(ValueError, match="read-only"):
            a[...] = 0
        with pytest.raises(ValueError):
            a.flags.writeable = True
    for factor in range(2, 7):
        lstm.load_state_dict({name: factor * a for name, a in p.weights.items()})
    assert same_bits(list(held.values()), list(p.weights.values()))
    assert same_bits(lstm.state_dict()["bias_hh_l1"], 6 * p.weights["bias_hh_l1"])
    del lstm
    assert same_bits(list(held.values()), list(p.weights.values()))


def test_what_was_loaded_from_stays_the_callers() -> None:
    p = make_problem(3, 2, 2, dtype="float32", input_size=3, hidden_size=5)
    lstm, before = p.lstm(), results(p, p.lstm())
    for a in p.weights.values():
        a[...] = np.nan
    assert same_bits(results(p, lstm), before)


def test_all_that_is_wrong_with_a_state_is_said_at_once() -> None:
    lstm = cylstm.LSTM(3, 5, 2, seed=1)
    held = {name: a.copy() for name, a in lstm.state_dict().items()}
    state = dict(lstm.state_dict())
    del state["weight_hh_l0"], state["bias_ih_l1"]
    state |= {"weight_hr_l0": np.zeros((2, 5), "f4"), "weight_ih_l0_reverse": np.zeros(1, "f4")}
    state["weight_ih_l0"] = state["weight_ih_l0"].T
    state["weight_hh_l1"] = state["weight_hh_l1"][:, :4]
    state["bias_hh_l1"] = state["bias_hh_l1"].astype(np.float64)
    with pytest.raises(ValueError) as caught:
        lstm.load_state_dict(state)
    for words in (
        "missing: weight_hh_l0, bias_ih_l1",
        "unexpected: weight_hr_l0, weight_ih_l0_reverse",
        "weight_ih_l0 has shape (3, 20), expected (20, 3)",
        "weight_hh_l1 has shape (20, 4), expected (20, 5)",
        "bias_hh_l1 is float64",
    ):
        assert words in str(caught.value)
    assert same_bits(list(lstm.state_dict().values()), list(held.values()))


def test_a_tape_keeps_its_weights(dtype: str) -> None:
    """Its backward is exact for its own forward, whatever was loaded since, and when."""
    p = make_problem(4, 5, 3, dtype=dtype, input_size=3, hidden_size=17, num_layers=2)
    lstm = p.lstm()
    tapes = [lstm.forward(p.x, p.states) for _ in range(2)]
    first = all_grads(tapes[0].backward(p.dy, p.dh_n, p.dc_n))
    for factor in (2, 3, 4):
        lstm.load_state_dict({name: factor * a for name, a in p.weights.items()})
        lstm.forward(p.x).backward(p.dy)
    want = p.reference()[1]
    for tape in tapes:  # the second has never gone backward before
        grads = tape.backward(p.dy, p.dh_n, p.dc_n)
        assert same_bits(all_grads(grads), first)
        assert_close(rel_grads(grads, want), TOLERANCES[dtype][1])


@pytest.mark.timing
def test_a_call_meets_one_set_of_weights() -> None:
    """While another thread loads, a result is that of one set or of the other, never of both."""
    p = make_problem(5, 30, 8, dtype="float32", input_size=33, hidden_size=64, num_layers=2)
    other = make_problem(6, 1, 1, dtype="float32", input_size=33, hidden_size=64, num_layers=2)
    lstm = p.lstm()
    want = []
    for q in (p, p._replace(weights=other.weights)):
        right = results(q, q.lstm())
        want.append((right, q.lstm().stream(8).step(p.x[0])))
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            lstm.load_state_dict(other.weights)
            lstm.load_state_dict(p.weights)

    def which(got: list[Array], k: int) -> list[bool]:
        if bits_promised():
            return [same_bits(got, w[k] if k == 0 else [w[k]]) for w in want]
        pairs = [zip(got, w[k] if k == 0 else [w[k]], strict=True) for w in want]
        return [all(rel(a, b) < 1e-4 for a, b in pair) for pair in pairs]

    loader = threading.Thread(target=load)
    loader.start()
    try:
        seen = np.zeros(2, int)
        end = time.monotonic() + 1
        while time.monotonic() < end or (not seen.all() and time.monotonic() < end + 20):
            y, (h_n, c_n) = lstm(p.x, p.states, threads=2)
            tape = lstm.forward(p.x, p.states)
            step = lstm.stream(8).step(p.x[0])
            grads = tape.backward(p.dy, p.dh_n, p.dc_n)
            assert sum(same_bits(y, w[0][0]) or rel(y, w[0][0]) < 1e-4 for w in want) == 1
            whole = [[y, h_n, c_n], [tape.y, tape.h_n, tape.c_n]]
            of_tape = [tape.y, tape.h_n, tape.c_n, tape.gates, tape.cells, *all_grads(grads)]
            seen += which(of_tape, 0)
            assert sum(which(of_tape, 0)) == 1
            assert sum(which([step], 1)) == 1
            for a in whole:
                assert sum(same_bits(a, w[0][:3]) for w in want) == 1 or not bits_promised()
    finally:
        stop.set()
        loader.join()
    assert seen.all()


def test_packs_take_turns_as_their_blocks_do() -> None:
    """Both what was loaded and what was packed of it: an update allocates nothing."""
    lstm = cylstm.LSTM(3, 50, 2, seed=1)
    state = {name: a.copy() for name, a in lstm.state_dict().items()}
    x = np.ones((2, 1, 3), np.float32)
    blocks, packs, in_between = [], [], []
    for _ in range(6):
        lstm.load_state_dict(state)
        lstm.forward(x).backward(dh_n=np.ones((2, 1, 50), np.float32))
        blocks.append(lstm._weights.flat.ctypes.data)
        packs.append(lstm._weights.packed.places)
        free = _core.aligned_empty(lstm._weights.flat.size, lstm.dtype)
        in_between.append(free)  # takes what is free
    assert len(set(blocks)) == 2
    assert all(None not in places and len(set(places)) <= 2 for places in zip(*packs, strict=True))


# ---------------------------------------------------------------------------------------------
# The floating-point mode
# ---------------------------------------------------------------------------------------------

x86_libc = pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.platform != "linux", reason="reads MXCSR through libm"
)
ROUND_UP, ROUND_TO_ZERO, FLUSH, DEFAULT = 0x5F80, 0x7F80, 0x9FC0, 0x1F80
CONTROL = 0xFFC0  # the rest are flags of what has happened


class Environment:
    """MXCSR, the control and status register of this thread's vector arithmetic."""

    def __init__(self) -> None:
        self.libm = ctypes.CDLL("libm.so.6")
        self.fenv = (ctypes.c_uint32 * 8)()  # fenv_t of x86-64: MXCSR is its last word

    def read(self) -> int:
        self.libm.fegetenv(self.fenv)
        return self.fenv[7] & CONTROL

    @contextmanager
    def set(self, mode: int) -> Iterator[None]:
        self.libm.fegetenv(self.fenv)
        self.fenv[7] = mode
        self.libm.fesetenv(self.fenv)
        try:
            yield
        finally:
            self.libm.fegetenv(self.fenv)
            self.fenv[7] = DEFAULT
            self.libm.fesetenv(self.fenv)


def has_denormals() -> bool:
    smallest = {np.dtype(t): np.finfo(t).smallest_subnormal for t in ("f4", "f8")}
    return all(bool(np.full(3, a, t) @ np.ones(3, t) > 0) for t, a in smallest.items())


@x86_libc
@pytest.mark.parametrize("mode", [ROUND_UP, ROUND_TO_ZERO, FLUSH], ids=["up", "zero", "flush"])
def test_the_callers_mode_does_not_matter(mode: int, dtype: str) -> None:
    """Neither to results, on any thread, nor to the weights as they are packed; and it stays."""
    p = make_problem(7, dtype=dtype, **THREADED["rows"])
    environment, lstm, want = Environment(), p.lstm(), results(p, p.lstm(), 1)
    steps = lstm.stream(23).run(p.x)
    unused = cylstm.LSTM(**p.config, dtype=dtype)
    more_threads = _core._pool_helpers() + 3  # some of them start in this mode
    with environment.set(mode):
        assert environment.read() == mode
        got = results(p, lstm, 1)
        assert environment.read() == mode
        many = results(p, lstm, more_threads)
        got_steps = lstm.stream(23).run(p.x)
        assert environment.read() == mode
        unused.load_state_dict(p.weights)
        assert environment.read() == mode
    if bits_promised():
        assert same_bits(got, want) and same_bits(many, want) and same_bits(got_steps, steps)
        assert same_bits(results(p, unused), want)
    assert_close({str(k): rel(a, b) for k, (a, b) in enumerate(zip(many, want, strict=True))}, 1e-4)


@x86_libc
def test_mxcsr_is_really_changed() -> None:
    """What the test above rests on: NumPy notices these modes."""
    environment, third = Environment(), np.array([1.0, 3.0])
    nearest = third[0] / third[1]
    with environment.set(ROUND_UP):
        up = third[0] / third[1]
    with environment.set(FLUSH):
        flushed = has_denormals()
    assert up > nearest and not flushed and has_denormals()
    assert environment.read() == DEFAULT


def test_denormals_live_on(dtype: str) -> None:
    """The library flushes them while it computes, and nobody else does."""
    p = make_problem(8, dtype=dtype, **THREADED["rows"])
    lstm = p.lstm()
    stream = lstm.stream(23, threads=2)
    tape = lstm.forward(p.x)
    for call in (
        lambda: p.lstm(),
        lambda: lstm(p.x, threads=1),
        lambda: lstm(p.x, threads=3),
        lambda: tape.backward(p.dy, threads=3),
        lambda: stream.run(p.x),
        lambda: stream.step(p.x[0]),
        lambda: stream.step(p.x[0][:0], active=[]),
        lambda: lstm(p.x[:, :0]),
    ):
        call()
        assert has_denormals()
    with pytest.raises(ValueError):
        lstm(p.x[..., 1:])
    assert has_denormals()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_signal_handlers_have_their_own_mode() -> None:
    """They are Python, run in the middle of a call."""
    lstm, seen = cylstm.LSTM(64, 256, seed=1), list[bool]()
    steps = 100
    row = np.ones((1, 16, 64), np.float32)
    want = lstm(row)[0]

    def handle(*_: Any) -> None:
        seen.append(has_denormals())

    old = signal.signal(signal.SIGALRM, handle)
    try:
        while len(seen) < 5:  # of one call; the first and the last may be just outside it
            seen.clear()
            x = np.broadcast_to(row, (steps, 16, 64))
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            y, _ = lstm(x, threads=1)
            signal.setitimer(signal.ITIMER_REAL, 0)
            steps *= 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert all(seen) and has_denormals()
    assert same_bits(y[:1], want) or not bits_promised()
