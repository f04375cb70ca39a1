"""Processes: forked children get a pool of their own, and one with helpers ends as any other."""

from __future__ import annotations

import os

import pytest

from helpers import bits_promised, output, own_products, several_cpus

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork")


FORK = """
import os, signal, sys, threading, traceback
import numpy as np
import cylstm
from helpers import THREADED, all_grads, make_problem, rel

def run(lstm, p, threads):
    tape = lstm.forward(p.x, p.states, threads=threads)
    return [tape.y, *all_grads(tape.backward(p.dy, p.dh_n, threads=threads))]

def check(lstm, p, want):
    for threads in (3, 2, 1):
        errors = [rel(a, b) for a, b in zip(run(lstm, p, threads), want)]
        assert max(errors) < 1e-5, (threads, errors)

def in_child(work):
    says, listens = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)  # whatever hangs, ends
        try:
            work()
            os._exit(0)
        except BaseException:
            os.write(listens, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(listens)
    with open(says) as pipe:
        said = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"a child ended with {code} (-14: it hung) and said: {said}"

helpers = cylstm._core._pool_helpers
p = make_problem(1, dtype="float32", **THREADED["rows"])
lstm = p.lstm()
want = run(lstm, p, 1)
"""

FORK_AND_COMPUTE = """
def work():
    assert helpers() == 0
    check(lstm, p, want)
    assert helpers() == wanted
    in_child(lambda: check(lstm, p, want))  # and once more, further down

wanted = int(sys.argv[1])
check(lstm, p, want)
assert helpers() == wanted
for _ in range(3):
    in_child(work)
    check(lstm, p, want)
"""

FORK_IN_THE_MIDDLE = """
stop = threading.Event()
def compute():
    while not stop.is_set():
        run(lstm, p, 3)

def work():
    check(lstm, p, want)
    # the child has the pool, even if somebody else had it when it was born
    assert helpers() == 2, helpers()

threads = [threading.Thread(target=compute) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for _ in range(15):
        in_child(work)
finally:
    stop.set()
for thread in threads:
    thread.join()
check(lstm, p, want)
"""


@several_cpus
@posix
def test_fork() -> None:
    """A child starts with a pool of its own."""
    helpers = "2" if bits_promised() else "0"
    output(FORK + FORK_AND_COMPUTE, helpers, PYTHONWARNINGS="ignore")


@several_cpus
@posix
@own_products
def test_fork_while_others_compute() -> None:
    output(FORK + FORK_IN_THE_MIDDLE, PYTHONWARNINGS="ignore")


EXITS = {
    "idle": "",
    "daemon": """
import threading, time
for _ in range(2):
    threading.Thread(target=lambda: [lstm(p.x) for _ in range(10**6)], daemon=True).start()
time.sleep(0.2)
""",
    "as it ends": "import atexit; atexit.register(lambda: lstm(p.x, threads=3))",
    "in a thread": """
import threading
threading.Thread(target=lambda: [lstm(p.x, threads=3) for _ in range(50)]).start()
""",
}


@several_cpus
@pytest.mark.parametrize("ending", EXITS.values(), ids=EXITS)
def test_exit(ending: str) -> None:
    """A process with helpers asleep or at work ends as any other."""
    start = """
import cylstm
from helpers import THREADED, make_problem
p = make_problem(1, dtype="float32", **THREADED["many steps"])
lstm = p.lstm()
lstm(p.x, threads=3)
print(cylstm._core._pool_helpers())
"""
    assert output(start + ending) == ("2" if bits_promised() else "0")
