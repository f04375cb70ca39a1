"""Streams and threads: one at a time in each, any number of threads within it."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import (
    Array,
    assert_same,
    make_problem,
    same_bits,
    stream_of,
    whole,
)


def long_block(stream: Any, seconds: float) -> Array:
    """A block that takes the stream about so long, whatever this machine."""
    row = np.full((1, 16, 64), 0.5, np.float32)
    stream.run(row)
    start = time.perf_counter()
    stream.run(np.broadcast_to(row, (20, 16, 64)))
    steps = seconds / (time.perf_counter() - start) * 20
    return np.broadcast_to(row, (max(int(steps), 20), 16, 64)).copy()


@pytest.mark.timing
def test_two_threads_in_one_stream() -> None:
    """The second is refused, and the first does not notice."""
    stream = cylstm.LSTM(64, 128, seed=1).stream(16)

    def is_inside() -> bool:
        try:
            return not stream.state
        except RuntimeError:
            return True

    def all_refused(block: Array) -> bool:
        """Whether the block took long enough for every intrusion to meet it."""
        stream.reset()
        want = [stream.run(block), *stream.state]
        intrusions: list[Callable[[], Any]] = [
            lambda: stream.state,
            lambda: stream.step(block[0]),
            lambda: stream.step(block[0][:1], active=[2]),
            lambda: stream.run(block[:2]),
            lambda: stream.reset(),
            lambda: stream.reset([1]),
            lambda: setattr(stream, "state", want[1:]),
            lambda: pickle.dumps(stream),
        ]
        stream.reset()
        got: list[Array] = []
        thread = threading.Thread(target=lambda: got.extend([stream.run(block), *stream.state]))
        thread.start()
        while thread.is_alive() and not is_inside():
            time.sleep(1e-4)
        refusals = 0
        for intrude in intrusions:
            try:
                intrude()
            except RuntimeError as error:
                assert "another thread" in str(error)
                refusals += 1
        thread.join()
        if refusals < len(intrusions):
            return False
        assert same_bits(got, want)
        return True

    # A busy machine may keep this thread waiting until the block is done.
    assert any(all_refused(long_block(stream, seconds)) for seconds in (0.3, 1, 3))


@pytest.mark.parametrize("H", [3, 300])
def test_one_stream_many_threads(H: int) -> None:
    """Every step is either taken whole or refused."""
    lstm = cylstm.LSTM(3, H, seed=1)
    stream, alone = lstm.stream(), lstm.stream()
    x, start = np.ones(3, np.float32), threading.Barrier(4)
    taken = [0] * 4

    def work(k: int) -> None:
        out = np.empty(H, np.float32)
        start.wait()
        for _ in range(500):
            try:
                stream.step(x, out=out)
                taken[k] += 1
            except RuntimeError:
                pass

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) > 0
    for _ in range(sum(taken)):
        alone.step(x)
    assert_same(list(stream.state), list(alone.state))


def test_each_thread_its_own_stream() -> None:
    """Streams of one LSTM know nothing of one another."""
    p = make_problem(22, 200, 12, input_size=16, hidden_size=96)
    lstm = p.lstm()
    alone = [p.take(np.arange(12) % (k + 2)) for k in range(6)]
    want = [whole(q) for q in alone]
    got: list[list[Array]] = [[] for _ in alone]

    def work(k: int) -> None:
        stream = stream_of(alone[k], lstm, threads=1 + k % 3)
        y = [stream.run(block) for block in np.split(alone[k].x, 5)]
        got[k] = [np.concatenate(y), *stream.state]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, its in zip(got, want, strict=True):
        assert_same(mine, its)
