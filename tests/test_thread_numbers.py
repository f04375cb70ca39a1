"""How many threads: what is taken, what the default is, and whether it counts."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import infer, make_problem, output, own_products, same_bits, several_cpus


@pytest.mark.parametrize("threads", [257, 2**31, 2**70, 2.0, np.float64(2), "auto", (2,)], ids=str)
def test_numbers_that_are_refused(threads: Any, default_threads: None) -> None:
    p = make_problem(2, 3, 2, input_size=3, hidden_size=5)
    lstm, before = p.lstm(), cylstm.get_num_threads()
    tape = lstm.forward(p.x)
    for call in (
        lambda: lstm(p.x, threads=threads),
        lambda: lstm.forward(p.x, threads=threads),
        lambda: tape.backward(p.dy, threads=threads),
        lambda: lstm.stream(2, threads=threads),
        lambda: cylstm.set_num_threads(threads),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(threads) in str(caught.value)
    assert cylstm.get_num_threads() == before


def test_numbers_that_are_taken(default_threads: None) -> None:
    p = make_problem(3, 3, 2, input_size=3, hidden_size=5)
    lstm = p.lstm()
    for threads in (1, 256, np.int64(2), np.uint8(3)):
        cylstm.set_num_threads(threads)
        assert cylstm.get_num_threads() == threads and type(cylstm.get_num_threads()) is int
        assert cylstm.show_config()["threads"] == threads
        assert same_bits(infer(p, lstm, threads), infer(p, lstm, None))


DEFAULT_COUNTS = """
import cylstm
from helpers import THREADED, make_problem
p = make_problem(1, dtype="float32", **THREADED["rows"])
lstm = p.lstm()
counts = []
def note():
    counts.append(cylstm._core._pool_helpers())
note()
cylstm.set_num_threads(1); lstm(p.x); lstm.stream(23).run(p.x); note()
cylstm.set_num_threads(3); lstm(p.x); note()
lstm(p.x, threads=2); note()
cylstm.set_num_threads(2); lstm.forward(p.x, threads=4).backward(p.dy, threads=5); note()
print(*counts)
"""


@several_cpus
@own_products
def test_the_default_counts_where_a_call_says_nothing() -> None:
    """Helpers are started when they are wanted, and then stay."""
    assert output(DEFAULT_COUNTS) == "0 0 2 2 4"


SMALL_WORK = """
import time
import numpy as np
import cylstm
stream = cylstm.LSTM(128, 128).stream(8, threads=2)
x = np.zeros((8, 128), np.float32)
for burst in range(20):
    time.sleep(0.005)
    for _ in range(3):
        stream.step(x)
print(cylstm._core._pool_helpers())
for _ in range(5000):
    stream.step(x)
print(cylstm._core._pool_helpers())
"""


@own_products
@several_cpus
def test_small_work_wakes_nobody() -> None:
    """It is shared where many steps follow closely on one another, and only there."""
    assert output(SMALL_WORK).split() == ["0", "1"]


SAY_THREADS = "import cylstm; print(cylstm.get_num_threads())"


def test_the_environment_sets_the_default() -> None:
    """(test_config.py has what it may say.)"""
    assert output(SAY_THREADS, CYLSTM_NUM_THREADS="7") == "7"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_the_default_is_what_the_affinity_mask_leaves() -> None:
    code = "import os; os.sched_setaffinity(0, {int(cpu) for cpu in os.sys.argv[1:]})\n"
    code += SAY_THREADS
    cpus = sorted(os.sched_getaffinity(0))
    everything = int(output(SAY_THREADS, CYLSTM_NUM_THREADS="", OMP_NUM_THREADS=""))
    assert 1 <= everything <= len(cpus)
    for count in {1, len(cpus)}:
        given = map(str, cpus[-count:])
        assert output(code, *given, CYLSTM_NUM_THREADS="", OMP_NUM_THREADS="") == str(
            min(count, everything)
        )


PINNED = """
import os, time
import numpy as np
import cylstm
from cylstm import _core
lstm, x = cylstm.LSTM(64, 256, seed=1), np.ones((50, 1, 64), "f4")
everywhere = os.sched_getaffinity(0)
os.sched_setaffinity(0, {min(everywhere)})
lstm(x, threads=3)
print(_core._pool_helpers())
os.sched_setaffinity(0, everywhere)
time.sleep(0.02)
lstm(x, threads=3)
print(_core._pool_helpers())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
@several_cpus
@own_products
def test_nobody_helps_on_one_cpu() -> None:
    """Helpers would stand in their caller's way; they come as soon as there are CPUs again."""
    assert output(PINNED).split() == ["0", "2"]


ONE_CPU = """
import os, statistics, time
import numpy as np
import cylstm
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
lstm, x = cylstm.LSTM(64, 256, seed=1), np.ones((500, 1, 64), "f4")
def cpu_seconds(threads):
    start = time.process_time()
    lstm(x, threads=threads)
    return time.process_time() - start
pairs = [(cpu_seconds(2), cpu_seconds(1)) for _ in range(20)]
two, one = map(statistics.median, zip(*pairs))
print(two / one)
"""


@pytest.mark.timing
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
@own_products
def test_two_threads_on_one_cpu_cost_little_more_than_one() -> None:
    """In CPU time, which other processes do not change by much."""
    assert float(output(ONE_CPU)) < 1.2
