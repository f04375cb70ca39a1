"""Threads: the pool, and all that happens beside it. They change no bit, and nobody waits long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import (
    THREADED,
    TOLERANCES,
    Array,
    Problem,
    all_grads,
    assert_close,
    bits_promised,
    environment,
    infer,
    make_problem,
    no_tracer,
    output,
    own_products,
    rel,
    rel_grads,
    same_bits,
)

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and fork")
linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")


def train(p: Problem, lstm: Any, threads: int | None) -> tuple[list[Array], Any]:
    tape = lstm.forward(p.x, p.states, lengths=p.lengths, threads=threads)
    grads = tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
    return [tape.y, tape.h_n, tape.c_n, tape.gates, tape.cells], grads


def stream(p: Problem, lstm: Any, threads: int | None) -> list[Array]:
    running = lstm.stream(p.x.shape[1], threads=threads)
    running.state = p.states
    return [running.run(p.x), *running.state]


# ---------------------------------------------------------------------------------------------
# The same bits for any number of threads
# ---------------------------------------------------------------------------------------------

# More ways to cut the work: by units, where one row's merged inputs end within a block or with a
# step alone; by rows, of which there are fewer than threads; and a stack of several blocks.
SPLITS = THREADED | {
    "units of one long row": dict(T=70, B=1, input_size=17, hidden_size=300),
    "units of a stack": dict(T=49, B=1, input_size=5, hidden_size=150, num_layers=3),
    "few rows": dict(T=150, B=3, input_size=40, hidden_size=80, num_layers=2),
    "projected rows": dict(T=20, B=20, input_size=9, hidden_size=90, num_layers=2, proj_size=33),
}


def test_bits_of_directions_that_outgrow_the_cache() -> None:
    """They run one after the other, each shared out by units."""
    p = make_problem(2, T=3, B=1, input_size=5, hidden_size=740, bidirectional=True)
    lstm = p.lstm()
    one = infer(p, lstm, 1)
    assert rel(one[0], p.reference()[0].y) < TOLERANCES["float32"][0]
    for threads in (2, 4):
        many = infer(p, lstm, threads)
        assert same_bits(many, one) or not bits_promised()
        assert rel(many[0], one[0]) < 1e-5


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_bits(split: dict[str, Any], dtype: str) -> None:
    p = make_problem(1, dtype=dtype, **split)
    lstm = p.lstm()
    one, (taped, grads) = infer(p, lstm, 1), train(p, lstm, 1)
    tape, want = p.reference()
    assert_close(
        {"y": rel(one[0], tape.y), "h_n": rel(one[1], tape.h_n), "c_n": rel(one[2], tape.c_n)},
        TOLERANCES[dtype][0],
    )
    assert_close(rel_grads(grads, want), TOLERANCES[dtype][1])
    streams = p.lengths is None and not p.config.get("bidirectional")
    for threads in (2, 3, 7):
        results = [*infer(p, lstm, threads), *(stream(p, lstm, threads) if streams else one)]
        many_taped, many_grads = train(p, lstm, threads)
        if bits_promised():
            assert same_bits(results, one * 2)
            assert same_bits(many_taped, taped)
            assert same_bits(all_grads(many_grads), all_grads(grads))
        errors = {str(k): rel(a, b) for k, (a, b) in enumerate(zip(results, one * 2, strict=True))}
        assert_close(errors | rel_grads(many_grads, grads), 1e-5)


HELPERS_AT_WORK = """
import os, time
import numpy as np
import cylstm
from helpers import THREADED, make_problem

def tasks():
    return set(os.listdir("/proc/self/task"))

def field(task, name):
    with open(f"/proc/self/task/{task}/status") as status:
        return next(line.split()[1] for line in status if line.startswith(name))

def times_asleep():
    time.sleep(0.02)
    return sum(int(field(task, "voluntary")) for task in helpers)

before = tasks()
p = make_problem(1, dtype="float32", **THREADED["rows"])
p.lstm()(p.x, threads=3)
helpers = tasks() - before
assert len(helpers) == cylstm._core._pool_helpers() == 2
print("blocked", *(field(task, "SigBlk") for task in helpers))

def measure(name, call, tries=100):
    for _ in range(tries):  # kept from working, helpers are left alone for a while
        asleep = times_asleep()
        call()
        if times_asleep() > asleep:
            print(name)
            break

for name, shape in THREADED.items():
    p = make_problem(1, dtype="float32", **shape)
    lstm = p.lstm()
    measure(f"{name}: call", lambda: lstm(p.x, p.states, lengths=p.lengths, threads=3))
    tape = lstm.forward(p.x, p.states, lengths=p.lengths, threads=3)
    measure(f"{name}: backward", lambda: tape.backward(p.dy, threads=3))

p = make_problem(1, 3, 16, dtype="float32", input_size=16, hidden_size=600)
stream = p.lstm().stream(16, threads=3)
measure("step", lambda: stream.step(p.x[0]))
measure("run", lambda: stream.run(p.x))

p = make_problem(1, 3, 4, dtype="float32", input_size=4, hidden_size=16)
lstm = p.lstm()
tape, stream = lstm.forward(p.x), lstm.stream(4, threads=3)
measure("tiny call", lambda: lstm(p.x, threads=3), 2)
measure("tiny backward", lambda: tape.backward(p.dy, threads=3), 2)
measure("tiny run", lambda: stream.run(p.x), 2)
measure("one thread", lambda: tape.backward(p.dy, threads=1), 2)
"""


@pytest.mark.timing
@linux
@own_products
def test_who_helps() -> None:
    """Every call that is worth it is helped, and no tiny one; helpers hear no signal."""
    first, *helped = output(HELPERS_AT_WORK).splitlines()
    worth_it = [f"{name}: {kind}" for name in THREADED for kind in ("call", "backward")]
    assert helped == [*worth_it, "step", "run"]
    blocked = [int(mask, 16) for mask in first.split()[1:]]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD, signal.SIGUSR1):
        assert all(mask >> (number - 1) & 1 for mask in blocked)


# ---------------------------------------------------------------------------------------------
# Many callers
# ---------------------------------------------------------------------------------------------


@pytest.mark.timing
def test_many_callers_of_one_lstm() -> None:
    """Each gets the result of its own input, no matter which caller has the pool."""
    shapes = [
        dict(T=40, B=12, input_size=33, hidden_size=100, num_layers=2),
        dict(T=3, B=1, input_size=33, hidden_size=100, num_layers=2),
        dict(T=60, B=1, input_size=33, hidden_size=100, num_layers=2),
        dict(T=20, B=30, input_size=33, hidden_size=100, num_layers=2),
    ]
    problems = [make_problem(k, dtype="float32", **shapes[k % 4]) for k in range(8)]
    problems = [p._replace(weights=problems[0].weights) for p in problems]
    lstm = problems[0].lstm()
    want = [(infer(p, lstm, 1), train(p, lstm, 1)) for p in problems]
    start = threading.Barrier(len(problems))
    wrong: list[str] = []
    rounds = [0] * len(problems)

    def same(got: list[Array], right: list[Array]) -> bool:
        if bits_promised():
            return same_bits(got, right)
        return all(rel(a, b) < 1e-4 for a, b in zip(got, right, strict=True))

    def work(k: int) -> None:
        p, (called, (taped, grads)) = problems[k], want[k]
        start.wait()
        end = time.monotonic() + 1.5
        # A busy machine may give one of them nearly all the time: the others get a minute.
        while time.monotonic() < end or (min(rounds) < 3 and time.monotonic() < end + 60):
            threads = 1 + rounds[k] % 3
            if not same(infer(p, lstm, threads), called):
                wrong.append(f"call {k}")
            got, got_grads = train(p, lstm, threads)
            if not same(got, taped) or not same(all_grads(got_grads), all_grads(grads)):
                wrong.append(f"training {k}")
            if not same(stream(p, lstm, threads), called):
                wrong.append(f"stream {k}")
            rounds[k] += 1

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(problems))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert min(rounds) >= 3  # every one with one, two and three threads


def test_one_tape_many_callers() -> None:
    """The first backward packs the weights; here several are the first."""
    p = make_problem(4, dtype="float64", **THREADED["rows"])
    want = all_grads(train(p, p.lstm(), 1)[1])
    for _ in range(5):
        tape = p.lstm().forward(p.x, p.states)
        barrier, got = threading.Barrier(4), list[list[Array]]()

        def work(tape: Any = tape, barrier: Any = barrier, got: Any = got) -> None:
            barrier.wait()
            got.append(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n, threads=2)))

        workers = [threading.Thread(target=work) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(got) == 4
        for grads in got:
            pairs = zip(grads, want, strict=True)
            assert_close({str(k): rel(a, b) for k, (a, b) in enumerate(pairs)}, 1e-12)
            assert same_bits(grads, want) or not bits_promised()


def seconds_of(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def long_call(seconds: float, **options: Any) -> Any:
    """A function that computes for about so long on this machine, with one thread."""
    lstm = cylstm.LSTM(64, 256, seed=1)
    x = np.ones((1, 16, 64), np.float32)
    lstm(x)
    few = np.repeat(x, 20, axis=0)
    steps = int(20 * seconds / min(seconds_of(lambda: lstm(few, threads=1)) for _ in range(5))) + 1
    long = np.repeat(x, steps, axis=0)
    return lambda: lstm(long, threads=1)


@pytest.mark.timing
def test_others_run_beside_a_long_call() -> None:
    """The GIL is free meanwhile: a Python thread never waits for half of the call."""
    call, stop, looks = long_call(0.4), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            looks.append(time.perf_counter())
            time.sleep(1e-3)

    def longest_wait() -> float:
        """As a part of the call."""
        start = time.perf_counter()
        call()
        end = time.perf_counter()
        during = [start, *(t for t in looks if start < t < end), end]
        return max(b - a for a, b in pairwise(during)) / (end - start)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        # A busy machine may let the watcher wait, but not every time.
        assert any(longest_wait() < 0.5 for _ in range(5))
    finally:
        stop.set()
        watcher.join()


@pytest.mark.timing
@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL")
def test_small_calls_keep_the_gil(isa: str) -> None:
    """A thread that takes it whenever it is let go, and is never given it otherwise, gets none."""
    H = 35 if isa == "scalar" else 120  # a little less than what is worth it
    p = make_problem(5, 1, 10, dtype="float32", input_size=H, hidden_size=H)
    lstm, x, x_few, dy_few = p.lstm(), p.x[0], p.x[:, :4], p.dy[:, :4]
    running, tape = lstm.stream(10), lstm.forward(x_few)
    for _ in range(2):  # the second one packs the weights
        tape.backward(dy_few)
    turns, stop = [0], threading.Event()

    def take() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)

    taker, interval = threading.Thread(target=take), sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        taker.start()
        time.sleep(0.05)
        before = turns[0]
        for _ in range(1500):
            running.step(x)
            lstm(p.x)
            tape.backward(dy_few)
        assert turns[0] == before > 0
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        taker.join()


# ---------------------------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys, time
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import numpy as np
import cylstm

def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

backward, threads = sys.argv[1] == "backward", int(sys.argv[2])
lstm = cylstm.LSTM(1024, 1024, seed=1) if backward else cylstm.LSTM(256, 512, proj_size=64, seed=1)
row = np.full((1, 16, lstm.input_size), 0.5, "f4")
few = np.repeat(row, 6, axis=0)
want, _ = lstm(few)
rate = 6 / min(seconds_of(lambda: lstm(few, threads=threads)) for _ in range(3))
x = np.broadcast_to(row, (int(rate * (0.5 if backward else 4)) + 2, *row.shape[1:]))
if backward:
    tape = lstm.forward(x, threads=threads)
print("started", flush=True)
try:
    if backward:
        tape.backward(tape.y, threads=threads)
    else:
        lstm(x, threads=threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print("finished")
except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(time.monotonic())
assert np.allclose(lstm(few)[0], want, atol=1e-5)
lstm.forward(few).backward(want)
"""


@pytest.mark.timing
@posix
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_ctrl_c(direction: str, threads: int) -> None:
    """It is answered in the middle of a call, and the next call is as ever."""
    delays = []
    for _ in range(6):  # a busy machine may be late, but not every time
        with subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, direction, str(threads)],
            env=environment(OPENBLAS_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout and process.stdout.readline() == "started\n"
            time.sleep(0.3)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate()
        assert process.returncode == 0 and not errors, errors
        delays.append(float("inf") if out == "finished\n" else float(out) - sent)
        if delays[-1] < 0.3:
            return
    raise AssertionError(f"KeyboardInterrupt came after {delays} s")


@pytest.mark.timing
@posix
@own_products
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="sanitizers take time")
def test_a_call_looks_for_signals_about_every_20_ms(isa: str) -> None:
    """In CPU time, which others don't change by much. The products of a step are the longest."""
    H, limit = (256, 0.045) if isa == "scalar" else (1024, 0.022)
    lstm, x = cylstm.LSTM(H, H, seed=1), np.ones((3, 512, H), np.float32)
    looks: list[float] = []

    def longest() -> float:
        looks[:] = [time.thread_time()]
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        lstm(x, threads=1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        looks.append(time.thread_time())
        return max(b - a for a, b in pairwise(looks))

    old = signal.signal(signal.SIGALRM, lambda *_: looks.append(time.thread_time()))
    try:
        assert min(longest() for _ in range(3)) < limit
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@no_tracer  # the exceptions of handlers are lost in what the tracer calls
@posix
def test_signal_handlers_run_during_a_call() -> None:
    """They may even compute, and an exception of theirs ends the call."""
    call = long_call(0.2)
    p = make_problem(6, dtype="float32", **THREADED["rows"])
    lstm, want = p.lstm(), call()[0]
    small = infer(p, lstm, 2)
    nested: list[list[Array]] = []

    class Enough(Exception):
        pass

    def handle(*_: Any) -> None:
        nested.append(infer(p, lstm, 2))
        if raises:
            raise Enough

    old = signal.signal(signal.SIGALRM, handle)
    try:
        raises = False
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.05)
        got = call()[0]
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert len(nested) > 1 and all(same_bits(a, small) for a in nested) or not bits_promised()
        assert same_bits(got, want)
        raises = True
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Enough):
            call()
        assert same_bits(call()[0], want)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
