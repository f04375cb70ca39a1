"""Forks at any time: whatever the other threads were doing, everything can be used in the child."""

from __future__ import annotations

import os

import pytest

from helpers import run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]

# How many children are forked at random moments; 1000 take some minutes.
CHILDREN = int(os.environ.get("CYLSTM_TEST_FORKS", "40"))

START = """
import faulthandler, os, random, signal, sys, threading, time, traceback
import numpy as np
import cylstm

faulthandler.register(signal.SIGALRM, chain=True)
def in_child(work):
    child = os.fork()
    if not child:
        signal.alarm(40)  # whatever hangs, says where, and ends
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"child {child} ended with status {status}"

def beside(work):
    "Run `work` in another thread, and in a loop until `stop` where it says whether to go on."
    thread = threading.Thread(target=work)
    thread.start()
    return thread

stop = threading.Event()
def loop(work):
    def run():
        while not stop.is_set():
            work()
    return beside(run)

def copied(module):
    return {name: array.copy() for name, array in module.state_dict().items()}
"""


def run(code: str, *arguments: str, timeout: float = 120) -> str:
    done = run_python("-c", START + code, *arguments, PYTHONWARNINGS="ignore", timeout=timeout)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_while_a_thread_loads_weights() -> None:
    run("""
lstm = cylstm.LSTM(256, 512, 2, seed=1)
state = copied(lstm)
loader = loop(lambda: lstm.load_state_dict(state))
try:
    for _ in range(5):
        time.sleep(0.05)
        in_child(lambda: lstm.load_state_dict(state))
finally:
    stop.set(); loader.join()
""")


def test_while_a_thread_takes_an_optimisers_step() -> None:
    run("""
lstm = cylstm.LSTM(256, 512, 2, seed=1)
adam = cylstm.optim.Adam(lstm)
grads = lstm.forward(np.ones((2, 1, 256), "f4")).backward(dh_n=np.ones((2, 1, 512), "f4"))
trainer = loop(lambda: adam.step(grads))
try:
    for _ in range(5):
        time.sleep(0.03)
        in_child(lambda: adam.step(grads))
finally:
    stop.set(); trainer.join()
""")


def test_by_c_code_while_a_thread_takes_an_optimisers_step() -> None:
    """Which does not wait, nor does os.fork() after an exception: the child's state is neither old
    nor new. It says so, takes another, and may fork again."""
    run("""
import ctypes, mmap
linear = cylstm.Linear(2000, 4000, bias=False, seed=1)
sgd = cylstm.optim.SGD(linear, lr=1e-9, momentum=0.9)
grads = cylstm.weights.WeightGrads(linear._spec, np.ones(8_000_000, "f4"))
sgd.step(grads)
state, torn = sgd.state_dict(), mmap.mmap(-1, 1)
def fork():
    child = ctypes.PyDLL(None).fork()
    if not child:
        sys.unraisablehook = lambda hook: None  # what os.fork() acquires was not
        ctypes.pythonapi.PyOS_AfterFork_Child()
    return child
def check():
    try:
        sgd.state_dict()
    except RuntimeError as error:
        assert "forked in the middle" in str(error)
        torn[0] = 1
    os.fork = forks
    sgd.load_state_dict(state)
    in_child(lambda: sgd.step(grads))
forks, os.fork = os.fork, fork
trainer = loop(lambda: sgd.step(grads, threads=1))
try:
    for _ in range(100):
        in_child(check)
        if torn[0]:
            break
    assert torn[0]
finally:
    stop.set(); trainer.join()
""")


@pytest.mark.parametrize("entry", ["call", "backward"])
def test_while_a_thread_packs_weights(entry: str) -> None:
    run(
        """
x, dh_n = np.ones((2, 1, 512), "f4"), np.ones((2, 1, 1024), "f4")
def work(lstm):
    if sys.argv[1] == "call":
        return lstm(x)[0]
    return lstm.forward(x).backward(dh_n=dh_n).x
want = work(cylstm.LSTM(512, 1024, 2, seed=1))
def check():
    assert np.array_equal(work(lstm), want) or cylstm._core.GEMM == "blas"
for pause in (0.001, 0.003, 0.006, 0.01, 0.02):
    lstm = cylstm.LSTM(512, 1024, 2, seed=1)
    first = beside(lambda: work(lstm))
    time.sleep(pause)
    in_child(check)
    first.join()
""",
        entry,
    )


def test_while_a_thread_makes_the_first_module() -> None:
    """Which imports NumPy's generators of random numbers: a child can import them as well."""
    for pause in (0.0005, 0.002, 0.004):
        run(
            """
first = beside(lambda: cylstm.LSTM(3, 5, seed=1))
time.sleep(float(sys.argv[1]))
in_child(lambda: cylstm.LSTM(3, 5, seed=1))
first.join()
""",
            str(pause),
        )


def test_a_stream_is_as_it_was_before_the_run_that_another_thread_was_in() -> None:
    run("""
lstm = cylstm.LSTM(64, 256, 2, seed=1)
block = np.ones((3000, 4, 64), "f4")
fresh = lstm.stream(4)
fresh.run(block[:7])
before, want = fresh.state, fresh.run(block[:3])
stream = lstm.stream(4)
stream.run(block[:7])
def check():
    assert all(np.array_equal(a, b) for a, b in zip(stream.state, before))
    got = stream.run(block[:3])
    assert np.array_equal(got, want) or cylstm._core.GEMM == "blas"
    in_child(lambda: stream.step(block[0]))
running = beside(lambda: stream.run(block))
time.sleep(0.05)
try:
    stream.step(block[0])
except RuntimeError:
    in_child(check)
else:
    raise AssertionError("the run was over before the fork")
running.join()
stream.step(block[0])
""")


def test_at_random_moments() -> None:
    """Of a program that trains, loads, calls and streams in four threads."""
    out = run(
        """
x, dh_n = np.ones((12, 4, 48), "f4"), np.ones((2, 4, 96), "f4")
shared, trained = cylstm.LSTM(48, 96, 2, seed=1), cylstm.LSTM(48, 96, 2, dropout=0.5, seed=2)
head = cylstm.Linear(96, 32, seed=3)
adam, stream, state = cylstm.optim.Adam([trained, head]), shared.stream(4), copied(shared)

def train():
    tape = trained.forward(x, threads=2)
    out = head.forward(tape.y)
    loss, dy = cylstm.losses.mse(out.y, np.zeros_like(out.y))
    back = out.backward(dy)
    grads = tape.backward(back.x, threads=2)
    cylstm.optim.clip_grad_norm([grads, back], 1.0)
    adam.step([grads, back])

def everything():
    train()
    shared.load_state_dict(state)
    trained.load_state_dict(state)
    y = shared(x, threads=2)[0]
    stream.run(x)
    stream.reset()
    assert np.allclose(stream.run(x), y, atol=1e-5)
    shared.forward(x).backward(dh_n=dh_n)
    cylstm.LSTM(3, 5)(np.ones((1, 1, 3), "f4"))
    shared.release()

everything()
works = [train, lambda: shared.load_state_dict(state), lambda: shared(x, threads=2),
         lambda: stream.run(x)]
threads = [loop(work) for work in works]
moment, children = random.Random(1), int(sys.argv[1])
try:
    for _ in range(children):
        time.sleep(moment.random() * 0.02)
        in_child(everything)
finally:
    stop.set()
for thread in threads:
    thread.join()
print(children)
""",
        str(CHILDREN),
        timeout=60 + 2 * CHILDREN,
    )
    assert int(out) == CHILDREN
