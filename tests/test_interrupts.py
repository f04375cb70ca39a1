"""Signals and exceptions at any moment: weights are the old or the new, and nothing hangs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import Array, no_tracer, run_python, same_bits

pytestmark = pytest.mark.slow

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals")

PACKAGE = str(Path(cylstm.__file__).parent)


class Interrupt(Exception):
    pass


@contextmanager
def interrupt(moment: int) -> Iterator[list[str]]:
    """Raise at the `moment`-th step that Python code of the package takes, as a signal might."""
    steps: list[str] = []

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            if len(steps) == moment:
                sys.settrace(None)
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        yield steps
    finally:
        sys.settrace(None)


STATES: list[dict[str, Array]] = [
    {name: scale * array for name, array in cylstm.LSTM(3, 4, seed=1).state_dict().items()}
    for scale in range(5)
]
GRADS = cylstm.LSTM(3, 4).forward(np.ones((2, 3), "f4")).backward(dh_n=np.ones((1, 4), "f4"))


def load(lstm: cylstm.LSTM) -> None:
    lstm.load_state_dict(STATES[2])


def step(lstm: cylstm.LSTM) -> None:
    cylstm.optim.SGD(lstm, 0.1).step(GRADS)


def release(lstm: cylstm.LSTM) -> None:
    lstm.release()


@no_tracer
@pytest.mark.parametrize("work", [load, step, release])
def test_an_exception_at_any_step_leaves_whole_weights(work: Callable[[Any], None]) -> None:
    """The old ones or the new, and what was taken before stays as it was, whatever comes next."""
    lstm = cylstm.LSTM(3, 4)
    lstm.load_state_dict(STATES[1])
    both = [list(lstm.state_dict().values())]
    work(lstm)
    both.append(list(lstm.state_dict().values()))
    moment, met = 0, set()
    while True:
        moment += 1
        lstm.load_state_dict(STATES[1])
        before = lstm.state_dict()
        try:
            with interrupt(moment) as steps:
                work(lstm)
        except Interrupt:
            pass
        kept = lstm.state_dict()
        now = [array.copy() for array in kept.values()]
        which = [same_bits(now, weights) for weights in both]
        assert any(which), f"neither old nor new weights after {steps[-1]}"
        met.add(which.index(True))
        for other in STATES[3:]:
            lstm.load_state_dict(other)
        assert same_bits(kept.values(), now), f"weights that were kept change after {steps[-1]}"
        assert same_bits(before.values(), both[0])
        if len(steps) < moment:
            break
    assert moment > 20 and (met == {0, 1} or work is release)


@posix
def test_a_signal_handler_may_load_weights() -> None:
    """While the main thread is in a load or a step of its own: no hang, and whole blocks. A step
    that started from other weights says so and has not happened."""
    done = run_python(
        "-c",
        """
import signal, time
import numpy as np
import cylstm

lstm = cylstm.LSTM(256, 512, 2, seed=1)
sgd = cylstm.optim.SGD(lstm, 0.0)  # a step leaves the weights as they are
states = [{name: np.full_like(a, k) for name, a in lstm.state_dict().items()} for k in (1, 2)]
grads = lstm.forward(np.ones((2, 1, 256), "f4")).backward(dh_n=np.ones((2, 1, 512), "f4"))
count = 0

def load(*args):
    global count
    count += 1
    lstm.load_state_dict(states[count % 2])
    signal.setitimer(signal.ITIMER_REAL, 0.0005)

signal.signal(signal.SIGALRM, load)
load()
end = time.monotonic() + 1.5
while time.monotonic() < end or (count < 20 and time.monotonic() < end + 20):
    try:
        sgd.step(grads)
    except RuntimeError as error:
        assert "replaced during the step" in str(error)
    if count % 3 == 0:
        lstm.load_state_dict(states[0])
    flat = np.concatenate([a.ravel() for a in lstm.state_dict().values()])
    assert flat.min() == flat.max(), "half-written weights"
signal.signal(signal.SIGALRM, signal.SIG_IGN)
print(count)
""",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20


@no_tracer  # in which the exceptions of handlers may be lost, while more signals come
@posix
def test_a_second_signal_raises_the_users_exception_too() -> None:
    """And never a SystemError, though the first one is still on its way out of a long product."""
    lstm = cylstm.LSTM(1024, 1024)
    tape = lstm.forward(np.ones((4, 128, 1024), "f4"), threads=1)
    dh_n = np.ones((1, 128, 1024), "f4")
    tape.backward(dh_n=dh_n, threads=1)
    raises = True

    def handle(*args: Any) -> None:
        if raises:
            raise Interrupt

    previous = signal.signal(signal.SIGALRM, handle)
    try:
        for delay in np.linspace(0.01, 0.25, 16):
            with pytest.raises(Interrupt):
                raises = True
                signal.setitimer(signal.ITIMER_REAL, delay, 0.005)
                try:
                    while True:
                        tape.backward(dh_n=dh_n, threads=1)
                finally:
                    raises = False
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        raises = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


AFTER_THE_HANDLER = """
import signal, statistics, time
import numpy as np
import cylstm

class Stop(Exception):
    pass

def handler(*_):
    global ended
    ended = time.process_time()
    raise Stop

signal.signal(signal.SIGALRM, handler)
lstm = cylstm.LSTM(1024, 1024)
tape = lstm.forward(np.ones((20, 64, 1024), np.float32))
tape.backward(dy=tape.y, threads=1)
took = []
for n in range(9):
    signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.01 * n)
    try:
        tape.backward(dy=tape.y, threads=1)
    except Stop:
        took.append(time.process_time() - ended)
print(statistics.median(took))
"""


@pytest.mark.timing
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_a_call_that_is_interrupted_begins_no_more_products() -> None:
    """In CPU time; each product that is left would take 6 ms or so."""
    done = run_python("-c", AFTER_THE_HANDLER)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 5e-3
