"""When weights are packed, and that it makes no difference to anything but time."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import TOLERANCES, Problem, all_grads, assert_same, make_problem, rel

NETS: dict[str, dict[str, Any]] = {
    "no whole panels": dict(input_size=17, hidden_size=50, num_layers=4, bidirectional=True),
    "no bias": dict(input_size=330, hidden_size=331, bias=False),
    "whole panels": dict(input_size=64, hidden_size=192, num_layers=2),
    "projection": dict(input_size=1, hidden_size=350, num_layers=2, proj_size=170),
    "all": dict(input_size=133, hidden_size=166, num_layers=2, bidirectional=True, proj_size=165),
}


def packs(lstm: Any) -> tuple[bool, bool]:
    """Whether there is a pack for calls, and one for backward."""
    forward, backward = lstm._weights.packed.places
    return forward is not None, backward is not None


def training_step(p: Problem, lstm: Any, threads: int) -> list[Any]:
    tape = lstm.forward(p.x, p.states, lengths=p.lengths, threads=threads)
    grads = tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
    return [tape.y, tape.h_n, tape.c_n, tape.gates, *all_grads(grads)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("B", [None, 1, 7])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_one_step_reads_weights_raw_once(
    net: dict[str, Any], B: int | None, threads: int, dtype: str
) -> None:
    p = make_problem(3, 1, B, dtype=dtype, **net)
    lstm = p.lstm()
    first = training_step(p, lstm, threads)
    assert packs(lstm) == (False, False)
    tape, grads = p.reference()
    want = [tape.y, tape.h_n, tape.c_n, *all_grads(grads)]
    got = [*first[:3], *first[4:]]  # without the gates
    errors = [rel(a, b) for a, b in zip(got, want, strict=True)]
    assert max(errors[:3]) < TOLERANCES[dtype][0] and max(errors[3:]) < TOLERANCES[dtype][1]
    second = training_step(p, lstm, threads)
    assert packs(lstm) == (True, True)
    assert_same(first, second)


@pytest.mark.slow
def test_work_for_several_threads_reads_raw_too() -> None:
    """Enough of it that helpers take a share: units, rows and directions."""
    for net, B in (
        (dict(input_size=640, hidden_size=640), 1),
        (dict(input_size=300, hidden_size=310), 8),
        (dict(input_size=600, hidden_size=610, bidirectional=True, num_layers=2), 2),
        (dict(input_size=600, hidden_size=900, proj_size=410, bias=False), 1),
    ):
        p = make_problem(5, 1, B, dtype="float32", **net)
        lstms = [p.lstm() for _ in range(4)]
        each = [training_step(p, lstm, n) for n, lstm in enumerate(lstms, 1)]
        assert {packs(lstm) for lstm in lstms} == {(False, False)}
        packed = training_step(p, lstms[0], 1)
        assert packs(lstms[0]) == (True, True)
        for found in each:
            assert_same(found, packed)


def test_few_weights_or_many_rows_are_packed() -> None:
    """Where packing is cheap beside a step, or panels packed at once take as much memory as all."""
    for B, net in ((1, dict(input_size=3, hidden_size=2)), (9, NETS["whole panels"])):
        p = make_problem(3, 1, B, dtype="float32", **net)
        lstm = p.lstm()
        training_step(p, lstm, 1)
        assert packs(lstm) == (True, True)


def test_who_packs() -> None:
    p = make_problem(1, 4, 2, dtype="float32", input_size=130, hidden_size=140)
    lstm = p.lstm()
    assert packs(lstm) == (False, False)
    lstm(p.x)
    assert packs(lstm) == (True, False)
    tape = lstm.forward(p.x)
    assert packs(lstm) == (True, False)
    tape.backward(p.dy)
    assert packs(lstm) == (True, True)
    single = p.lstm()
    for expected in (False, True):
        single(p.x[:1])
        assert packs(single) == (expected, False)
    streaming = p.lstm()
    stream = streaming.stream(2)
    assert packs(streaming) == (True, False)  # no step has to
    stream.step(p.x[0])


@pytest.mark.parametrize("T", [1, 2])
def test_an_update_packs_if_calls_did(T: int) -> None:
    """No call of a model in use has to wait, and training by single steps has no pack to make."""
    p = make_problem(2, T, 1, dtype="float32", input_size=130, hidden_size=140)
    lstm = p.lstm()
    adam = cylstm.optim.Adam(lstm, lr=1e-3)
    for _ in range(4):
        adam.step(lstm.forward(p.x).backward(p.dy))
        assert packs(lstm)[0] is (T > 1)
    stream = lstm.stream()
    for _ in range(2):
        lstm.load_state_dict(p.weights, cast=True)
        assert packs(lstm)[0]
    stream.step(p.x[0, 0])


def test_training_by_single_steps() -> None:
    """Raw, step after step, in memory that is used again: the weights of training that packs."""
    p = make_problem(4, 1, 2, dtype="float32", input_size=121, hidden_size=137, num_layers=2)
    raw, packed = p.lstm(), p.lstm()
    packed.stream()
    for lstm in (raw, packed):
        adam = cylstm.optim.Adam(lstm, lr=1e-2)
        for _ in range(6):
            adam.step(lstm.forward(p.x, p.states).backward(p.dy))
    assert not packs(raw)[0] and packs(packed)[0]
    assert_same(list(raw.state_dict().values()), list(packed.state_dict().values()))


def test_first_calls_at_once() -> None:
    """Threads that meet weights which are not packed: one reads raw, one packs, others wait."""
    p = make_problem(6, 1, 1, dtype="float32", input_size=90, hidden_size=170)
    want = training_step(p, p.lstm(), 1)
    for _ in range(20):
        lstm = p.lstm()
        found: list[list[Any]] = []
        together = threading.Barrier(4)

        def call(lstm: Any = lstm, found: Any = found, together: Any = together) -> None:
            together.wait()
            found.append(training_step(p, lstm, 1))

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(found) == 4 and packs(lstm) == (True, True)
        for each in found:
            assert_same(each, want)


def test_rows_of_no_length(dtype: str) -> None:
    p = make_problem(7, 1, 3, [0, 1, 0], dtype=dtype, input_size=105, hidden_size=133)
    lstm = p.lstm()
    first = training_step(p, lstm, 1)
    assert packs(lstm) == (False, False)
    assert_same(first, training_step(p, lstm, 1))
    assert np.array_equal(first[1][:, 0], p.states[0][:, 0])
