"""Every allocation of a piece of work fails once: run with libfaults.so (faults.c) before the C
library, by test_faults.py and `make fuzz`. Prints what was wrong after any, then how many failed.

With PYTHONMALLOC=malloc the interpreter's own objects are among them. Python and NumPy answer some
of those with another exception than MemoryError, which is then allowed.

    python tests/faults.py [the names of what to do]
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cylstm
from cylstm import optim
from helpers import make_problem, same_bits

faults = ctypes.CDLL(None)
faults.faults_arm.argtypes = [ctypes.c_long]
faults.faults_alive.restype = ctypes.c_long

# Large enough that NumPy and the core allocate, and that two threads share the work.
P = make_problem(1, T=9, B=4, dtype="float32", input_size=33, hidden_size=65, num_layers=2)
LSTM = P.lstm()
FOLDER = Path(tempfile.mkdtemp())
SAVED = FOLDER / "lstm.safetensors"
cylstm.save(LSTM, SAVED)


def call(lstm: Any) -> list[Any]:
    y, (h_n, c_n) = lstm(P.x, P.states, threads=2)
    return [y, h_n, c_n]


def first_call() -> list[Any]:
    """With weights that nobody has packed yet."""
    return call(P.lstm())


def train() -> list[Any]:
    tape = LSTM.forward(P.x, P.states, threads=2)
    grads = tape.backward(P.dy, threads=2)
    return [tape.y, grads.x, grads.h_0, *grads.weights.values()]


def stream() -> list[Any]:
    running = LSTM.stream(4, threads=2)
    return [running.run(P.x), running.step(P.x[0]), *running.state]


def load(path: Path) -> list[Any]:
    return call(cylstm.load(path))


def save() -> list[Any]:
    new = FOLDER / "new.safetensors"
    cylstm.save(LSTM, new)
    return load(new)


def duplicate() -> list[Any]:
    return call(pickle.loads(pickle.dumps(copy.copy(LSTM))))


WORK: dict[str, Callable[[], list[Any]]] = {
    "call": lambda: call(LSTM),
    "first call": first_call,
    "training": train,
    "stream": stream,
    "load": lambda: load(SAVED),
    "save": save,
    "copies": duplicate,
}


def expected(error: Exception) -> bool:
    """Python has no MemoryError where it can't make a lock."""
    message = str(error)
    return (
        isinstance(error, MemoryError)
        or (message.startswith("can't allocate") and message.endswith("lock"))
        or os.environ.get("PYTHONMALLOC") == "malloc"
    )


def attempt(n: int, work: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether the n-th allocation failed, and what came of it: the result, or the exception."""
    faults.faults_arm(n)
    try:
        result = work()
    except Exception as error:
        result = error
    return bool(faults.faults_disarm()), result


def sweep(name: str, work: Callable[[], list[Any]], want: list[Any]) -> int:
    """All allocations of the work, one after another; each time it must then work again."""
    n = 0
    while True:
        failed, result = attempt(n, work)
        if not failed:
            assert same_bits(result, want), f"{name}: a result changed, with no failure"
            return n
        if isinstance(result, Exception):
            if not expected(result):
                print(f"{name}, allocation {n}: {type(result).__name__}: {result}")
        elif not same_bits(result, want):
            print(f"{name}, allocation {n}: another result")
        del result
        if not same_bits(work(), want):
            print(f"{name}, after allocation {n}: another result")
        n += 1


def sweep_optimiser(make: Callable[[Any], Any]) -> int:
    """A step is whole, over weights and moments, or has not happened."""
    grads = {name: np.full_like(w, 0.5) for name, w in LSTM.state_dict().items()}

    def begin() -> tuple[Any, Any]:
        lstm = P.lstm()
        optimiser = make(lstm)
        optimiser.step(grads)
        return lstm, optimiser

    def weights(lstm: Any) -> list[Any]:
        return [w.copy() for w in lstm.state_dict().values()]

    lstm, optimiser = begin()
    states = [weights(lstm)]
    for _ in range(2):
        optimiser.step(grads)
        states.append(weights(lstm))
    n = 0
    while True:
        lstm, optimiser = begin()
        failed, result = attempt(n, partial(optimiser.step, grads))
        if isinstance(result, Exception) and not expected(result):
            print(f"{make.__name__}, allocation {n}: {type(result).__name__}: {result}")
        done = not isinstance(result, Exception)
        if not same_bits(weights(lstm), states[done]):
            print(f"{make.__name__}, allocation {n}: the weights are not those of step {done}")
        optimiser.step(grads)  # whose moments and counter are those of the weights
        if not same_bits(weights(lstm), states[1 + done]):
            print(f"{make.__name__}, after allocation {n}: the next step is another")
        if not failed:
            return n
        n += 1


def alive() -> int:
    gc.collect()
    return int(faults.faults_alive())


def adam(lstm: Any) -> Any:
    return optim.Adam(lstm)


def momentum(lstm: Any) -> Any:
    return optim.SGD(lstm, lr=0.1, momentum=0.9)


def main() -> None:
    names, total = sys.argv[1:], 0
    for name, work in WORK.items():
        if names and name not in names:
            continue
        want = work()
        points = sweep(name, work, want)
        before = alive()
        points += sweep(name, work, want)
        left = alive() - before
        # What Python keeps for itself differs by a few; a leak would be one for each failure.
        if left > 20 and os.environ.get("PYTHONMALLOC") != "malloc":
            print(f"{name}: {left} allocations were never freed")
        total += points
    if not names:
        total += sweep_optimiser(adam) + sweep_optimiser(momentum)
    print(total)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)
