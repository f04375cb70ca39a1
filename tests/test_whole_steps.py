"""A step, a load and clipping are whole or have not happened, wherever they are interrupted."""

from __future__ import annotations

import copy
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import LSTM, Linear
from cylstm.optim import SGD, Adam, Optimizer, clip_grad_norm
from cylstm.weights import WeightGrads
from helpers import Array, no_tracer, same_bits

pytestmark = pytest.mark.slow

PACKAGE = str(Path(cylstm.__file__).parent)


class Interrupted(BaseException):
    pass


def stop() -> None:
    raise Interrupted


def interrupted_at(n: int, call: Callable[[], Any], by: Callable[[], Any] = stop) -> bool:
    """Run `call`, and `by` at the n-th bytecode of the package's Python; whether there was one."""
    left = n

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event in ("opcode", "call", "return"):
            left -= 1
            if left == 0:
                by()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupted:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def draw_grads(modules: list[Any], seed: int) -> list[WeightGrads]:
    rng = np.random.default_rng(seed)
    return [
        WeightGrads(m._spec, rng.standard_normal(m._weights.flat.size).astype(m.dtype))
        for m in modules
    ]


def everything(modules: list[Any], optimizer: Optimizer) -> list[Array]:
    """All that a step changes."""
    state = optimizer.state_dict()
    counted = np.array([state["step"], state["hyper"]["lr"]])
    return [counted, *state["state"].values(), *(m._weights.flat for m in modules)]


def make(cls: Any = Adam, hidden: int = 5, **options: Any) -> tuple[list[Any], Optimizer]:
    modules = [LSTM(3, hidden, seed=0), Linear(hidden, 2, dtype="float64", seed=1)]
    return modules, cls(modules, lr=0.01, **options)


@no_tracer
@pytest.mark.parametrize("cls, options", [(Adam, {}), (SGD, {"momentum": 0.9})])
@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_step_interrupted_at_every_bytecode(cls: Any, options: Any, steps_before: int) -> None:
    modules, optimizer = make(cls, **options)
    modules[0](np.zeros((2, 1, 3), np.float32))  # from now on a step packs weights too
    for _ in range(steps_before):
        optimizer.step(draw_grads(modules, 0))
    grads = draw_grads(modules, 1)
    old = [a.copy() for a in everything(modules, optimizer)]
    twins, its = copy.deepcopy((modules, optimizer))
    its.step(grads)
    new = [a.copy() for a in everything(twins, its)]
    outcomes = {"old": 0, "new": 0}
    n = 1
    while interrupted_at(n, partial(optimizer.step, grads)):
        found = everything(modules, optimizer)
        if same_bits(found, new):
            outcomes["new"] += 1
            modules, optimizer = make(cls, **options)
            modules[0](np.zeros((2, 1, 3), np.float32))
            for _ in range(steps_before):
                optimizer.step(draw_grads(modules, 0))
        else:
            assert same_bits(found, old), f"half a step after bytecode {n}"
            outcomes["old"] += 1
        n += 1
    assert same_bits(everything(modules, optimizer), new)
    assert outcomes["old"] > 300 and outcomes["new"] > 0  # it is interrupted before and after


@no_tracer
def test_a_load_of_state_interrupted_at_every_bytecode() -> None:
    modules, optimizer = make()
    optimizer.step(draw_grads(modules, 0))
    old, kept = optimizer.state_dict(), everything(modules, optimizer)
    optimizer.step(draw_grads(modules, 1))
    optimizer.lr = 0.5
    new, loaded = optimizer.state_dict(), everything(modules, optimizer)
    optimizer.load_state_dict(old)
    n = 1
    while interrupted_at(n, partial(optimizer.load_state_dict, new)):
        found = everything(modules, optimizer)[:-2]
        if same_bits(found, loaded[:-2]):
            optimizer.load_state_dict(old)
        else:
            assert same_bits(found, kept[:-2]), f"half a load after bytecode {n}"
        n += 1
    assert n > 300 and same_bits(everything(modules, optimizer)[:-2], loaded[:-2])


@no_tracer
def test_a_state_dict_within_which_a_step_or_a_load_is_made() -> None:
    """By a signal handler, at every bytecode: what it shows is of one moment."""
    linear = Linear(3, 2, bias=False, dtype="float64", seed=0)
    optimizer = SGD(linear, lr=1.0, momentum=1.0)
    ones = WeightGrads(linear._spec, np.ones(6))  # the buffer counts the steps, and so does lr

    def step() -> None:
        optimizer.step(ones)
        optimizer.load_state_dict(
            {**optimizer.state_dict(), "hyper": {**optimizer._hyper, "lr": optimizer.lr + 1}}
        )

    step()
    shown: list[Any] = []
    n = 1
    while interrupted_at(n, lambda: shown.append(optimizer.state_dict()), step):
        state = shown.pop()
        assert (state["state"]["0.weight.momentum_buffer"] == state["step"]).all(), n
        n += 1
    assert n > 30


@no_tracer
def test_clipping_interrupted_at_every_bytecode() -> None:
    rng = np.random.default_rng(0)

    def fresh() -> list[Array]:
        return [
            np.ones(1000, np.float32),
            np.arange(6.0),
            np.ones((4, 6))[::2, ::3],
            np.asfortranarray(np.ones((3, 2), np.float16)),
            rng.standard_normal((2, 2)) * 0 + 3,
        ]

    def as_grads(arrays: list[Array]) -> list[dict[str, Array]]:
        return [{"a": arrays[0], "b": arrays[1]}, {str(k): a for k, a in enumerate(arrays[2:])}]

    old, new = fresh(), fresh()
    clip_grad_norm(as_grads(new), 1.0)
    assert not any(np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    n, arrays = 1, fresh()
    while interrupted_at(n, partial(clip_grad_norm, as_grads(arrays), 1.0)):
        if same_bits(arrays, new):
            arrays = fresh()
        else:
            assert same_bits(arrays, old), f"half clipped after bytecode {n}"
        n += 1
    assert n > 100 and same_bits(arrays, new)


@contextmanager
def signals(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # hypothesis leaves a callback of the collector's, out of which no exception goes
    try:
        yield
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def raising(signum: int, frame: Any) -> None:
    raise Interrupted


needs_gil = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="Optimizer says that one thread at a time may use it",
)

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread(),
    reason="no interval timers here",
)


@no_tracer  # the exceptions of handlers are lost in what the tracer calls
@needs_signals
def test_steps_interrupted_at_random() -> None:
    """By a timer that goes off at any moment of steps that share out work and release the GIL."""
    modules, optimizer = make(hidden=128)
    twins, its = copy.deepcopy((modules, optimizer))
    modules[0](np.zeros((2, 1, 3), np.float32))
    grads = draw_grads(modules, 1)
    rng = np.random.default_rng(0)
    old = [a.copy() for a in everything(twins, its)]
    its.step(grads)
    new = [a.copy() for a in everything(twins, its)]
    interrupted = done = 0
    with signals(raising):
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1.2e-3))
                optimizer.step(grads, threads=2)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interrupted += 1
            found = everything(modules, optimizer)
            if same_bits(found, old):
                continue
            assert same_bits(found, new), "half a step"
            done += 1
            old = new
            its.step(grads)
            new = [a.copy() for a in everything(twins, its)]
    assert interrupted > 100 and done > 100


@no_tracer  # which runs Python, and so a handler, where a lock is held: it waits for itself
@needs_signals
def test_a_handler_that_loads_weights_during_a_step() -> None:
    """Its weights stay, and the step says that it has not happened; or the load came before it."""
    lstm = LSTM(64, 128, seed=0)
    optimizer = Adam(lstm, lr=0.01)
    grads = draw_grads([lstm], 1)
    loads = refused = 0
    state = {name: np.full_like(a, 0.25) for name, a in lstm.state_dict().items()}

    def load(signum: int, frame: Any) -> None:
        nonlocal loads
        loads += 1
        lstm.load_state_dict(state)

    rng = np.random.default_rng(0)
    with signals(load):
        end = time.monotonic() + 60  # the luck of a busy machine
        while (loads < 50 or refused < 5) and time.monotonic() < end:
            seen, steps = loads, optimizer.state_dict()["step"]
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 1e-3))
            try:
                optimizer.step(grads)
            except RuntimeError as error:
                assert "replaced during the step" in str(error)
                assert optimizer.state_dict()["step"] == steps and loads > seen
                assert (lstm._weights.flat == 0.25).all()
                refused += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert loads >= 50 and refused >= 5


def test_a_second_module_that_fails_leaves_the_first() -> None:
    """No memory for its weights as the kernels read them, after the first module's step is made."""
    modules = [Linear(3, 2, seed=0), LSTM(3, 5, seed=1)]
    optimizer = Adam(modules)
    optimizer.step(draw_grads(modules, 0))
    before = [a.copy() for a in everything(modules, optimizer)]

    def no_memory(*args: Any) -> Any:
        raise MemoryError

    class Full(LSTM):
        _pack = no_memory  # type: ignore[assignment]

    modules[1].__class__ = Full
    with pytest.raises(MemoryError):
        optimizer.step(draw_grads(modules, 1))
    modules[1].__class__ = LSTM
    assert same_bits(everything(modules, optimizer), before)
    optimizer.step(draw_grads(modules, 1))
    assert not same_bits(everything(modules, optimizer), before)


def test_gradients_over_a_strided_array() -> None:
    """They are used, not refused when half of the step is done."""
    modules, optimizer = make()
    twins, its = copy.deepcopy((modules, optimizer))
    grads = draw_grads(modules, 0)
    wide = np.repeat(grads[1].flat, 3)
    optimizer.step([grads[0], WeightGrads(modules[1]._spec, wide[::3])])
    its.step(grads)
    assert same_bits(everything(modules, optimizer), everything(twins, its))


def test_what_is_kept_is_changed_in_its_place() -> None:
    """And is nobody else's: neither a state dict's nor a copy's."""
    modules, optimizer = make()
    optimizer.step(draw_grads(modules, 0))
    before = optimizer.state_dict()["state"]
    held = {name: array.copy() for name, array in before.items()}
    twin = copy.copy(optimizer)
    places = [array.ctypes.data for array in optimizer._progress.value.kept.get()]
    optimizer.step(draw_grads(modules, 1))
    assert [a.ctypes.data for a in optimizer._progress.value.kept.get()] == places
    assert same_bits(before.values(), held.values())
    assert same_bits(twin.state_dict()["state"].values(), held.values())
    assert not same_bits(optimizer.state_dict()["state"].values(), held.values())


def beside(call: Callable[[], Any]) -> tuple[threading.Event, threading.Thread]:
    """Run `call` again and again in another thread, until the event is set."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            call()

    thread = threading.Thread(target=run)
    thread.start()
    return stop, thread


@needs_gil
def test_state_that_another_thread_is_changing() -> None:
    """Is not shown half-way: it is whole, or a RuntimeError."""
    linear = Linear(1000, 2000, bias=False, dtype="float64", seed=0)
    optimizer = SGD(linear, lr=1e-9, momentum=1.0)  # the buffer counts the steps, everywhere
    ones = WeightGrads(linear._spec, np.ones(2_000_000))
    rng = np.random.default_rng(0)

    def step() -> None:
        optimizer.step(ones, threads=1)
        time.sleep(rng.uniform(0, 0.02))

    stop, thread = beside(step)
    refused = shown = 0
    try:
        end = time.monotonic() + 60
        while (refused < 5 or shown < 5) and time.monotonic() < end:
            try:
                state = optimizer.state_dict()
            except RuntimeError as error:
                assert "another thread is in a step" in str(error)
                refused += 1
                continue
            finally:
                time.sleep(1e-3)
            for buffer in state["state"].values():
                assert buffer.min() == buffer.max()
                shown += 1
    finally:
        stop.set()
        thread.join()
    assert refused >= 5 and shown >= 5


@needs_gil
def test_weights_that_another_thread_loads_during_a_step() -> None:
    """They stay. The step says that it has not happened, or that the state has moved on alone."""
    linear = Linear(1000, 2000, bias=False, dtype="float64", seed=0)
    optimizer = SGD(linear, lr=1e-9, momentum=1.0)
    ones = WeightGrads(linear._spec, np.ones(2_000_000))
    quarter = {"weight": np.full((2000, 1000), 0.25)}
    stop, thread = beside(lambda: linear.load_state_dict(quarter))
    moved = steps = 0
    try:
        end = time.monotonic() + 60
        while moved < 3 and time.monotonic() < end:
            try:
                optimizer.step(ones, threads=1)
                steps += 1
            except RuntimeError as error:
                if "taken the gradients in" in str(error):
                    moved, steps = moved + 1, steps + 1
                else:
                    assert "has not happened" in str(error)
    finally:
        stop.set()
        thread.join()
    state = optimizer.state_dict()
    assert moved >= 3 and state["step"] == steps
    if steps:
        assert (state["state"]["0.weight.momentum_buffer"] == steps).all()


@needs_gil
def test_state_that_another_thread_loads_during_a_step() -> None:
    """It stays, and so do the weights: the step has not happened."""
    linear = Linear(1000, 2000, bias=False, dtype="float64", seed=0)
    optimizer = SGD(linear, lr=1e-9, momentum=1.0)
    ones = WeightGrads(linear._spec, np.ones(2_000_000))
    optimizer.step(ones)
    state = optimizer.state_dict()
    stop, thread = beside(lambda: optimizer.load_state_dict(state))
    refused = 0
    try:
        end = time.monotonic() + 60
        while refused < 20 and time.monotonic() < end:
            before = linear._weights
            try:
                optimizer.step(ones, threads=1)
            except RuntimeError as error:
                assert "has not happened" in str(error)
                assert linear._weights is before
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert refused >= 20
    optimizer.load_state_dict(state)
    assert same_bits(optimizer.state_dict()["state"].values(), state["state"].values())
