"""Everything at once, from many threads: what a free-threaded CPython must stand.

With a GIL this finds little. Without one it was run on a CPython and an extension that were both
built with ThreadSanitizer, which sees each access that no lock or atomic orders.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import all_grads, make_problem, rel


@pytest.mark.timing
def test_all_at_once(default_threads: None) -> None:
    p = make_problem(1, 6, 3, dtype="float32", input_size=5, hidden_size=17, num_layers=2)
    lstm, dropping = p.lstm(), cylstm.LSTM(5, 17, 2, dropout=0.5, seed=1)
    stream, shared, wide = lstm.stream(3), lstm.forward(p.x, p.states), cylstm.LSTM(40, 100)
    x_wide = np.ones((20, 16, 40), np.float32)
    want_y, want_grads = lstm(p.x, p.states)[0], all_grads(shared.backward(p.dy))

    def call() -> None:
        out = np.empty_like(want_y)
        assert rel(lstm(p.x, p.states, out=out)[0], want_y) < 1e-6

    def backward_of_a_shared_tape() -> None:
        got = all_grads(shared.backward(p.dy))
        assert all(rel(a, b) < 1e-6 for a, b in zip(got, want_grads, strict=True))

    def train() -> None:
        tape = dropping.forward(p.x, threads=2)
        assert np.isfinite(tape.backward(tape.y).x).all()

    def train_with_the_pool() -> None:
        tape = wide.forward(x_wide, threads=2)
        assert np.isfinite(tape.backward(tape.y, threads=2).x).all()

    def change_the_default() -> None:
        cylstm.set_num_threads(1)
        cylstm.set_num_threads(2)

    def use_one_stream() -> None:
        uses: list[Callable[[], Any]] = [
            lambda: stream.step(p.x[0]),
            lambda: stream.run(p.x),
            lambda: setattr(stream, "state", stream.state),
            lambda: stream.reset([1]),
        ]
        for use in uses:
            try:
                use()
            except RuntimeError as error:
                assert "another thread" in str(error)

    works = [
        call,
        backward_of_a_shared_tape,
        train,
        train_with_the_pool,
        change_the_default,
        use_one_stream,
        lambda: lstm.load_state_dict(p.weights),
        cylstm.show_config,
    ]
    end, errors = time.monotonic() + 1, list[BaseException]()

    def repeat(work: Callable[[], Any]) -> None:
        try:
            work()
            while time.monotonic() < end:
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
