"""Random work for a long time, beside a curve of memory: `make soak MINUTES=60`.

    python tests/soak.py [minutes] [seed]

Calls, training, streams, loads, forks, copies, pickles, other thread counts and shapes take turns.
After a tenth of the time, or the first minute, memory must not grow; at the end a process that has
done all this computes what a fresh one does.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cylstm import optim
from helpers import Problem, make_problem

ALLOWED = 1.05  # of the memory after the first minute
SLACK = 8 << 20  # bytes, for what comes and goes
SHAPES: list[dict[str, Any]] = [
    dict(T=20, B=3, input_size=9, hidden_size=17),
    dict(T=7, B=16, input_size=33, hidden_size=64, num_layers=2),
    dict(T=50, B=1, input_size=5, hidden_size=150),
    dict(T=12, B=5, input_size=8, hidden_size=40, bidirectional=True, lengths=[12, 3, 0, 7, 12]),
    dict(T=9, B=4, input_size=12, hidden_size=50, proj_size=20, num_layers=2),
]


def memory() -> int:
    """Bytes that are resident now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def digest() -> str:
    """Of what some problems give: outputs and gradients, on one thread and on two."""
    found = hashlib.sha256()
    for number, shape in enumerate(SHAPES):
        p = make_problem(number, dtype="float32", **shape)
        for threads in (1, 2):
            tape = p.lstm().forward(p.x, p.states, lengths=p.lengths, threads=threads)
            grads = tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
            for array in (tape.y, tape.h_n, grads.x, *grads.weights.values()):
                found.update(array.tobytes())
    return found.hexdigest()


class Soak:
    """The objects that live through it, and what is done with them."""

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng(number)
        self.problems = [make_problem(k, dtype="float32", **s) for k, s in enumerate(SHAPES)]
        self.lstms = [p.lstm() for p in self.problems]
        self.adams = [optim.Adam(lstm) for lstm in self.lstms]
        self.done: Counter[str] = Counter()

    def turn(self) -> None:
        k = int(self.rng.integers(len(SHAPES)))
        work = WORK[int(self.rng.choice(len(WORK), p=WEIGHTS))]
        work(self, self.problems[k], k, int(self.rng.integers(1, 4)))
        self.done[work.__name__] += 1


def call(soak: Soak, p: Problem, k: int, threads: int) -> None:
    soak.lstms[k](p.x, p.states, lengths=p.lengths, threads=threads)


def train(soak: Soak, p: Problem, k: int, threads: int) -> None:
    tape = soak.lstms[k].forward(p.x, p.states, lengths=p.lengths, threads=threads)
    soak.adams[k].step(tape.backward(p.dy, threads=threads).weights)


def stream(soak: Soak, p: Problem, k: int, threads: int) -> None:
    if soak.lstms[k].bidirectional:
        return
    running = soak.lstms[k].stream(p.x.shape[1], threads=threads)
    running.run(p.x)
    running.reset([0])


def load(soak: Soak, p: Problem, k: int, threads: int) -> None:
    soak.lstms[k].load_state_dict(p.weights)


def fork(soak: Soak, p: Problem, k: int, threads: int) -> None:
    child = os.fork()
    if not child:
        train(soak, p, k, threads)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def duplicate(soak: Soak, p: Problem, k: int, threads: int) -> None:
    one = pickle.loads(pickle.dumps(copy.deepcopy(soak.lstms[k])))
    one(p.x, p.states, lengths=p.lengths, threads=threads)


WORK = [call, train, stream, load, fork, duplicate]
WEIGHTS = [0.3, 0.3, 0.15, 0.1, 0.05, 0.1]


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    number = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    print(f"python tests/soak.py {minutes:g} {number}", flush=True)  # to do it again
    soak, start = Soak(number), time.monotonic()
    warm = min(60.0, 6 * minutes)
    first = most = 0
    shown = 0.0
    while (now := time.monotonic() - start) < 60 * minutes:
        soak.turn()
        if now < warm or now - shown < warm / 10:
            continue
        used, shown = memory(), now
        first, most = first or used, max(most, used)
        print(f"{now:8.0f} s {used / 2**20:8.1f} MB", flush=True)
    print(dict(soak.done), f"{first / 2**20:.1f} MB, at most {most / 2**20:.1f} MB")
    assert first and most <= ALLOWED * first + SLACK, "memory has grown"
    fresh = "import soak; print(soak.digest())"
    want = subprocess.run(
        [sys.executable, "-c", fresh], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert want.returncode == 0, want.stderr
    assert digest() == want.stdout.strip(), "the results are not those of a fresh process"


if __name__ == "__main__":
    main()
