"""Memory: calls free what they take, and take no more for a longer sequence."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import Array, make_problem, run_python, same_bits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/statm").exists() or "asan" in os.environ.get("LD_PRELOAD", ""),
        reason="needs Linux's /proc, and an allocator that keeps nothing for itself",
    ),
]

MB = 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(work: Callable[[], None], times: int) -> int:
    """Bytes that so many calls have added. An allocator may round up now and then; but a leak
    grows in every stretch of calls, and so in the one that adds the least."""
    before = resident()
    for _ in range(times):
        work()
    return resident() - before


# ---------------------------------------------------------------------------------------------
# Many calls
# ---------------------------------------------------------------------------------------------


class Largest:
    """What a random generator would give if it gave the largest only."""

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> Any:
        largest = (low if high is None else high) - 1
        return largest if size is None else np.full(size, largest)

    def standard_normal(self, shape: tuple[int, ...]) -> Array:
        return np.ones(shape)


Random = np.random.Generator | Largest


def draw(rng: Random, dtype: str, directions: int = 2) -> tuple[Any, Array, Array | None]:
    """An LSTM and a call of any shape."""
    T, B, I, H = (int(rng.integers(1, n)) for n in (30, 20, 40, 40))
    lstm = cylstm.LSTM(
        I,
        H,
        int(rng.integers(1, 4)),
        bidirectional=bool(rng.integers(directions)),
        proj_size=int(rng.integers(0, H)),
        dropout=0.5 * float(rng.integers(2)),
        dtype=dtype,
        seed=1,
    )
    x = rng.standard_normal((T, B, I)).astype(dtype)
    return lstm, x, rng.integers(0, T + 1, B) if rng.integers(2) else None


def infer(rng: Random) -> None:
    lstm, x, lengths = draw(rng, "float32")
    lstm(x, lengths=lengths)


def train(rng: Random) -> None:
    lstm, x, lengths = draw(rng, "float64")
    tape = lstm.forward(x, lengths=lengths)
    grads = tape.backward(tape.y)
    cylstm.optim.SGD(lstm, 0.1).step(grads)
    lstm(x)


def run_streams(rng: Random) -> None:
    lstm, x, _ = draw(rng, "float32", directions=1)
    stream = lstm.stream(x.shape[1])
    stream.run(x)
    stream.step(x[0], active=np.arange(x.shape[1]))
    stream.state = stream.state
    stream.reset([0])


def refuse(rng: Random) -> None:
    lstm, x, _ = draw(rng, "float32")
    for call in (
        lambda: lstm(x, lengths=[-1] * x.shape[1]),
        lambda: lstm(x[..., 1:]),
        lambda: lstm.forward(x, (x, x)),
        lambda: lstm.forward(x).backward(x[:0]),
        lambda: lstm.load_state_dict({}),
    ):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize("work", [infer, train, run_streams, refuse])
def test_memory_after_many_calls(work: Callable[[Random], None]) -> None:
    """Of random shapes: it stays where the first, among them the largest, have brought it."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        work(Largest())
    for _ in range(95):
        work(rng)
    grown = [growth(lambda: work(rng), 150) for _ in range(4)]
    assert sum(grown) < 8 * MB and min(grown) < MB / 4, grown


@pytest.mark.parametrize("threads", [1, 3])
def test_memory_after_many_calls_of_one_shape(threads: int) -> None:
    """Every call takes a megabyte or more, of scratch, results and tape."""
    p = make_problem(1, 24, 48, dtype="float32", input_size=32, hidden_size=96)
    lstm = p.lstm()
    stream = lstm.stream(48, threads=threads)

    def work() -> None:
        lstm(p.x, p.states, threads=threads)
        tape = lstm.forward(p.x, p.states, threads=threads)
        lstm.load_state_dict(p.weights)
        tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
        stream.run(p.x)
        lstm.stream(48).step(p.x[0])

    for _ in range(10):
        work()
    grown = [growth(work, 10) for _ in range(4)]
    assert sum(grown) < 8 * MB and min(grown) < MB / 4, grown


# ---------------------------------------------------------------------------------------------
# Objects
# ---------------------------------------------------------------------------------------------

P = make_problem(2, 5, 3, [5, 0, 2], dtype="float32", input_size=4, hidden_size=4, num_layers=2)
LSTM = P.lstm()
STREAM, TAPE = LSTM.stream(3), LSTM.forward(P.x, P.states, lengths=P.lengths)
ROWS, OUT, TWO_OUT = np.array([2, 0]), np.zeros((3, 4), "f4"), np.zeros((2, 4), "f4")

# Small calls of all kinds, good and bad.
CALLS: dict[str, Callable[[], Any]] = {
    "call": lambda: LSTM(P.x, P.states, lengths=P.lengths),
    "call unbatched": lambda: LSTM(P.x[:, 0]),
    "forward": lambda: LSTM.forward(P.x, P.states, lengths=P.lengths),
    "backward": lambda: TAPE.backward(P.dy, P.dh_n, P.dc_n),
    "backward of a new tape": lambda: LSTM.forward(P.x).backward(P.dy, need_x=False),
    "step": lambda: STREAM.step(P.x[0]),
    "step, out": lambda: STREAM.step(P.x[0], out=OUT),
    "step, out is in": lambda: STREAM.step(OUT, out=OUT),
    "step, active": lambda: STREAM.step(P.x[0][ROWS], out=TWO_OUT, active=ROWS),
    "step, strided": lambda: STREAM.step(P.x[0][::-1]),
    "run": lambda: STREAM.run(P.x),
    "run, out is in": lambda: STREAM.run(P.x, out=np.empty_like(P.x)),
    "state": lambda: STREAM.state,
    "set state": lambda: setattr(STREAM, "state", P.states),
    "reset": lambda: STREAM.reset(ROWS),
    "stream": lambda: LSTM.stream(3).step(P.x[0]),
    "state_dict": lambda: LSTM.state_dict(),
    "load_state_dict": lambda: LSTM.load_state_dict(P.weights),
    "bad x": lambda: LSTM(P.x[0, 0]),
    "bad states": lambda: LSTM(P.x, (P.h_0, P.x), lengths=P.lengths),
    "bad lengths": lambda: LSTM(P.x, P.states, lengths=[9, 9, 9]),
    "bad dy": lambda: TAPE.backward(P.x[:2], P.dh_n, P.dc_n),
    "bad step": lambda: STREAM.step(P.x, out=OUT),
    "bad out": lambda: STREAM.step(P.x[0], out=TWO_OUT),
    "bad active": lambda: STREAM.step(P.x[0], out=OUT, active=np.array([0, 0, 7])),
    "bad state": lambda: setattr(STREAM, "state", (P.h_0, P.x)),
    "bad reset": lambda: STREAM.reset(np.array([7])),
    "bad load": lambda: LSTM.load_state_dict({"weight_ih_l0": P.x}),
}


def blocks_left(call: Callable[[], None]) -> int:
    """How many more blocks Python's allocator has given out after 300 calls."""
    before = sys.getallocatedblocks()
    for _ in range(300):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.mark.parametrize("name", CALLS)
def test_references(name: str) -> None:
    """Neither inputs nor anything else is held on to: no reference, no object is left behind."""

    def call() -> None:
        if name.startswith("bad"):
            with pytest.raises(ValueError):
                CALLS[name]()
        else:
            CALLS[name]()

    arrays = [P.x, P.h_0, P.c_0, P.lengths, P.dy, P.dh_n, P.dc_n, ROWS, OUT, TWO_OUT]
    things = [*arrays, LSTM, STREAM, TAPE, LSTM._dims, None, np.dtype("f4"), *P.weights.values()]
    for _ in range(5):
        call()
    gc.collect()
    counts = [sys.getrefcount(a) for a in things]
    # NumPy's own calls leave some blocks at first, and without a GIL up to a hundred wait for all
    # threads to have looked away; one for each call would be left in every round.
    assert min(blocks_left(call) for _ in range(3)) < 150
    for thing, now, before in zip(things, map(sys.getrefcount, things), counts, strict=True):
        assert abs(now - before) < 150, type(thing)


def test_results_are_held_by_their_owner_alone() -> None:
    y, (h_n, c_n) = LSTM(P.x, P.states)
    y_t, block = STREAM.step(P.x[0]), STREAM.run(P.x)
    fresh = np.empty(3)
    held = [y, h_n, c_n, y_t, block, fresh]
    assert len({sys.getrefcount(a) for a in held}) == 1
    assert all(a.base is None and a.flags.owndata for a in held)


def test_a_tape_outlives_its_inputs() -> None:
    """It owns a copy of x, of the states and of the lengths, whatever their dtype."""
    x, h_0, c_0, lengths = P.x.copy(), P.h_0.copy(), P.c_0.copy(), np.array(P.lengths, np.uintp)
    tape = P.lstm().forward(x, (h_0, c_0), lengths=lengths)
    want = tape.backward(P.dy)
    for a in (x, h_0, c_0):
        a[...] = np.nan
    lengths[...] = 10**6
    del x, h_0, c_0, lengths
    assert same_bits(tape.backward(P.dy).weights.flat, want.weights.flat)


def test_the_next_tape_takes_the_memory_of_the_last() -> None:
    """Which holds zeros past the lengths all the same, and no tape that is still looked at."""
    lstm = P.lstm()
    first = lstm.forward(P.x, P.states)
    place, seen = first.gates.ctypes.data, first.gates[0]
    held = seen.copy()
    del first
    second = lstm.forward(-P.x, P.states)
    assert second.gates.ctypes.data != place
    assert same_bits(seen, held)
    del seen
    third = lstm.forward(P.x, P.states, lengths=P.lengths)
    assert third.gates.ctypes.data == place
    fresh = P.lstm().forward(P.x, P.states, lengths=P.lengths)
    assert same_bits(third.gates, fresh.gates) and same_bits(third.cells, fresh.cells)
    assert same_bits(
        third.backward(P.dy).weights.flat,
        P.lstm().forward(P.x, P.states, lengths=P.lengths).backward(P.dy).weights.flat,
    )


def test_inference_lets_the_memory_of_tapes_go() -> None:
    lstm, x = cylstm.LSTM(1, 64), np.ones((1000, 100, 1), "f4")  # 128 MB of cells
    lstm.forward(x)
    kept = resident()
    lstm(x[:1])
    assert kept - resident() > 120 * MB


def test_a_much_shorter_tape_does_not_hold_the_memory_of_a_long_one() -> None:
    lstm, x = cylstm.LSTM(1, 64), np.ones((1000, 100, 1), "f4")
    lstm.forward(x)
    before = resident()
    tape = lstm.forward(x[:10])
    assert before - resident() > 120 * MB
    assert tape.gates.shape == (1, 10, 100, 4, 64)


# ---------------------------------------------------------------------------------------------
# Scratch
# ---------------------------------------------------------------------------------------------

PEAK = """
import sys
import numpy as np
import cylstm

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

what, layers, T = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
lstm = cylstm.LSTM(16, 64, layers, proj_size=16, seed=1)
x = np.broadcast_to(np.full(16, 0.5, "f4"), (T, 4, 16))
dh_n = np.ones((layers, 4, 16), "f4")
lstm.forward(x[:30], threads=2).backward(dh_n=dh_n, threads=2)
if what == "lengths":
    lengths = np.arange(T - 3, T + 1)
    call = lambda: lstm(x, lengths=lengths, threads=2)
elif what == "call":
    call = lambda: lstm(x, threads=2)
elif what == "backward":
    tape = lstm.forward(x, threads=2)
    call = lambda: tape.backward(dh_n=dh_n, threads=2, need_x=False)
before = status("VmRSS")
result = call()
print(status("VmHWM") - before)
"""


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("what", ["call", "lengths", "backward"])
def test_scratch_does_not_grow_with_the_sequence(what: str, layers: int) -> None:
    """What the highest that memory stood in a call, over where it stood before it, owes to more
    steps is y, and neither what is between the layers nor a product of all inputs."""
    peak, steps = [], (2000, 20000)
    for T in steps:
        done = run_python("-c", PEAK, what, str(layers), str(T))
        assert done.returncode == 0, done.stderr
        peak.append(int(done.stdout))
    y = 0 if what == "backward" else 4 * 4 * 16 * (steps[1] - steps[0])
    assert peak[1] - peak[0] < y + 2 * MB, peak
