"""Streams: a sequence taken step by step has the bits of the whole, whatever happens in between."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cylstm
from cylstm import reference
from helpers import (
    ISAS,
    TOLERANCES,
    Problem,
    assert_close,
    assert_same,
    bits_promised,
    make_problem,
    rel,
    same_bits,
    stream_of,
    whole,
)

# Every remainder of a vector, a stack, a projection, and as wide in as out.
NETS: dict[str, dict[str, Any]] = {
    "one unit": dict(input_size=1, hidden_size=1),
    "no bias": dict(input_size=5, hidden_size=17, bias=False),
    "two layers": dict(input_size=33, hidden_size=7, num_layers=2),
    "three layers": dict(input_size=3, hidden_size=50, num_layers=3),
    "projected": dict(input_size=9, hidden_size=33, num_layers=3, proj_size=9),
}


# ---------------------------------------------------------------------------------------------
# What a stream computes
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("B", [None, 1, 3, 17])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_steps_are_the_sequence(
    net: dict[str, Any], B: int | None, isa: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cylstm.LSTM, "_isa", isa)
    p = make_problem(1, 5, B, dtype=dtype, **net)
    want, tape = whole(p), p.reference()[0]
    stepping, running, with_out = stream_of(p), stream_of(p), stream_of(p)
    y = np.stack([stepping.step(x_t) for x_t in p.x])
    assert_same([y, *stepping.state], want)
    assert_same([running.run(p.x), *running.state], want)
    out = np.full_like(want[0], np.nan)
    assert all(with_out.step(x_t, out=y_t) is y_t for x_t, y_t in zip(p.x, out, strict=True))
    assert_same([out, *with_out.state], want)
    h, c = stepping.state
    errors = {"y": rel(y, tape.y), "h_n": rel(h, tape.h_n), "c_n": rel(c, tape.c_n)}
    assert_close(errors, TOLERANCES[dtype][0])


@pytest.mark.parametrize("N", [None, 2, 40])
def test_a_block_longer_than_any_that_is_taken_together(N: int | None, dtype: str) -> None:
    p = make_problem(2, 131, N, dtype=dtype, input_size=3, hidden_size=17, num_layers=3)
    stream = stream_of(p)
    y = stream.run(p.x)
    assert_same([y, *stream.state], whole(p))
    assert rel(y, p.reference()[0].y) < TOLERANCES[dtype][0]


def test_states_start_at_zero(dtype: str) -> None:
    p = make_problem(3, 4, 3, dtype=dtype, input_size=2, hidden_size=5, num_layers=2)
    p = p._replace(h_0=np.zeros_like(p.h_0), c_0=np.zeros_like(p.c_0))
    stream = p.lstm().stream(3)
    assert same_bits(stream.state, p.states)
    assert_same([stream.run(p.x), *stream.state], whole(p))


@pytest.mark.parametrize("T, N", [(5, 3), (4, 4), (1, 3), (5, 1), (0, 3)])
def test_a_block_is_laid_out_as_the_x_of_its_lstm(T: int, N: int, dtype: str) -> None:
    """Which shows where T equals N, too. A step has no time axis."""
    config: dict[str, Any] = dict(input_size=2, hidden_size=5, num_layers=2)
    p = make_problem(4, T, N, dtype=dtype, **config)
    want = stream_of(p).run(p.x)
    x, turned = np.ascontiguousarray(p.x.swapaxes(0, 1)), want.swapaxes(0, 1)
    for block in (x, p.x.swapaxes(0, 1)):
        stream = stream_of(p, p.lstm(batch_first=True))
        assert_same([stream.run(block)], [turned])
        assert_same([*stream.state], [*(whole(p)[1:] if T else p.states)])
    stream, out = stream_of(p, p.lstm(batch_first=True)), np.empty((N, T, 5), dtype)
    assert stream.run(x, out=out) is out and same_bits(out, np.ascontiguousarray(turned))
    assert_same(
        [stream.step(p.x[0])] if T else [],
        [stream_of(p).run(np.concatenate([p.x, p.x[:1]]))[-1]] if T else [],
    )
    some = [N - 1, 0][: min(N, 2)]
    part = stream_of(p, p.lstm(batch_first=True)).run(x[some], active=some)
    assert_same([part], [turned[some]])
    with pytest.raises(ValueError, match=r"block has shape .* expected \(N, T, I\) with I = 2"):
        stream.run(x[0])
    if N > 1 and T != N:
        with pytest.raises(ValueError, match="block has shape"):
            stream.run(p.x)


sizes = st.sampled_from([1, 2, 3, 7, 8, 16, 17, 31, 33])


@st.composite
def problems(draw: Any, B: st.SearchStrategy[Any]) -> Problem:
    H = draw(sizes)
    return make_problem(
        draw(st.integers(0, 1000)),
        draw(st.integers(1, 40)),
        draw(B),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        input_size=draw(sizes),
        hidden_size=H,
        num_layers=draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        proj_size=draw(st.integers(0, min(H - 1, 20))),
    )


@settings(max_examples=60, deadline=None)
@given(problems(st.none() | st.integers(1, 20)), st.sampled_from(ISAS), st.data())
def test_cuts_do_not_show(p: Problem, isa: str, data: Any) -> None:
    """Blocks of any lengths, one after another, are the whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cylstm.LSTM, "_isa", isa)
        want, stream = whole(p), stream_of(p)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(p.x)))) | {0, len(p.x)})
    pieces = []
    for start, stop in pairwise(cuts):
        block = p.x[start:stop]
        pieces.append(stream.step(block[0])[None] if len(block) == 1 else stream.run(block))
    assert_same([np.concatenate(pieces), *stream.state], want)


@settings(max_examples=60, deadline=None)
@given(problems(st.integers(1, 9)), st.data())
def test_streams_of_one_batch_do_not_meet(p: Problem, data: Any) -> None:
    """Any subset steps, runs or is reset, in any order; weights change, the stream is pickled: each
    row is a sequence of its own, which calls on that row alone give too."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    lstm, N, I = p.lstm(), p.x.shape[1], p.config["input_size"]
    stream = stream_of(p, lstm)
    h, c = p.h_0.copy(), p.c_0.copy()
    subsets = st.lists(st.integers(0, N - 1), unique=True, max_size=N)
    actions = st.sampled_from(["step", "step all", "run", "reset", "state", "weights", "pickle"])
    for action in data.draw(st.lists(actions, max_size=12)):
        rows = list(range(N)) if action == "step all" else data.draw(subsets)
        if action in ("step", "step all", "run"):
            T = data.draw(st.integers(0, 20)) if action == "run" else 1
            x = rng.standard_normal((T, len(rows), I)).astype(p.x.dtype)
            if action == "run":
                y = stream.run(x, active=rows)
            elif action == "step":
                y = stream.step(x[0], active=np.array(rows, np.int16))[None]
            else:
                y = stream.step(x[0])[None]
            assert y.shape == (T, len(rows), h.shape[2])
            for k, row in enumerate(rows):
                if T:
                    y_row, (h[:, row], c[:, row]) = lstm(x[:, k], (h[:, row], c[:, row]))
                    assert_same([y[:, k]], [y_row])
        elif action == "reset":
            stream.reset(rows)
            h[:, rows] = c[:, rows] = 0
        elif action == "state":
            h[:, rows] *= 2
            stream.state = h, c
        elif action == "weights":
            lstm.load_state_dict({name: a * a.dtype.type(0.9) for name, a in p.weights.items()})
        else:
            lstm, stream = pickle.loads(pickle.dumps((lstm, stream)))
            stream = lstm.stream(N) if data.draw(st.booleans()) else stream
            stream.state = h, c
            if data.draw(st.booleans()):
                stream = copy.copy(stream)
        assert_same(list(stream.state), [h, c])


@pytest.mark.parametrize("subsets", [[[0, 2], [1], [2, 1, 0]], [[3]] * 7, [[4, 1], [], [1, 4]]])
def test_active_streams_against_the_reference(subsets: list[list[int]]) -> None:
    p = make_problem(5, len(subsets), 5, dtype="float64", input_size=3, hidden_size=7, proj_size=2)
    stream, states = stream_of(p), [(p.h_0[:, row], p.c_0[:, row]) for row in range(5)]
    for x_t, rows in zip(p.x, subsets, strict=True):
        y = stream.step(x_t[rows], active=rows)
        for k, row in enumerate(rows):
            tape = reference.forward(p.weights, x_t[row][None], states[row])
            assert rel(y[k], tape.y[0]) < 1e-12
            states[row] = tape.h_n, tape.c_n
    h, c = stream.state
    assert rel(h, np.stack([s[0] for s in states], axis=1)) < 1e-12
    assert rel(c, np.stack([s[1] for s in states], axis=1)) < 1e-12


def test_reset(dtype: str) -> None:
    p = make_problem(6, 3, 4, dtype=dtype, input_size=2, hidden_size=5, num_layers=2)
    stream = stream_of(p)
    stream.step(p.x[0])
    h, c = stream.state
    assert h.all() and c.all()
    stream.reset([3, 1])
    h[:, [1, 3]] = c[:, [1, 3]] = 0
    assert same_bits(stream.state, [h, c])
    stream.reset([])
    assert same_bits(stream.state, [h, c])
    stream.reset()
    assert not np.any(stream.state[0]) and not np.any(stream.state[1])
    assert same_bits(stream.run(p.x), p.lstm().stream(4).run(p.x))


def test_reset_to_a_state(dtype: str) -> None:
    p = make_problem(6, 3, 4, dtype=dtype, input_size=2, hidden_size=5, num_layers=2, proj_size=3)
    stream = stream_of(p)
    stream.step(p.x[0])
    h, c = stream.state
    new_h, new_c = -h[:, [3, 1]], -c[:, [3, 1]]
    stream.reset([3, 1], state=(new_h, new_c))
    h[:, [3, 1]], c[:, [3, 1]] = new_h, new_c
    assert same_bits(stream.state, [h, c])
    again = stream_of(p)
    again.state = (h, c)
    assert same_bits(stream.step(p.x[1]), again.step(p.x[1]))
    stream.reset(state=(h, c))
    assert same_bits(stream.state, [h, c])
    stream.reset([], state=(h[:, :0], c[:, :0]))
    assert same_bits(stream.state, [h, c])
    for wrong in ((h, c), (new_h,), (new_h, new_c[:1]), new_h, [new_h, None]):
        with pytest.raises((ValueError, TypeError), match="^(state|h|c) "):
            stream.reset([3, 1], state=wrong)
        assert same_bits(stream.state, [h, c])
    one = p.lstm().stream()
    one.reset(state=(h[:, 0], c[:, 0]))
    assert same_bits(one.state, [h[:, 0], c[:, 0]])


def test_new_weights_are_taken_at_the_next_step(dtype: str) -> None:
    """And the state stays."""
    p = make_problem(7, 3, 4, dtype=dtype, input_size=3, hidden_size=7, num_layers=2)
    other = make_problem(8, 3, 4, dtype=dtype, input_size=3, hidden_size=7, num_layers=2)
    lstm = p.lstm()
    stream = stream_of(p, lstm)
    y = [stream.run(p.x)]
    lstm.load_state_dict(other.weights)
    y.append(stream.run(other.x))

    first, _ = p.reference()
    second, _ = other._replace(h_0=first.h_n, c_0=first.c_n).reference()
    errors = {"before": rel(y[0], first.y), "after": rel(y[1], second.y)}
    errors |= {"h": rel(stream.state[0], second.h_n), "c": rel(stream.state[1], second.c_n)}
    assert_close(errors, TOLERANCES[dtype][0])


def test_a_refused_load_is_not_taken(dtype: str) -> None:
    p = make_problem(9, 4, 2, dtype=dtype, input_size=3, hidden_size=7)
    lstm = p.lstm()
    stream = stream_of(p, lstm)
    first = stream.run(p.x[:2])
    with pytest.raises(ValueError):
        lstm.load_state_dict({"weight_ih_l0": p.weights["weight_ih_l0"] * 2})
    assert_same([np.concatenate([first, stream.run(p.x[2:])]), *stream.state], whole(p))


CLONES: dict[str, Callable[[Any], Any]] = {
    f"pickle {k}": lambda s, k=k: pickle.loads(pickle.dumps(s, k))
    for k in range(pickle.HIGHEST_PROTOCOL + 1)
} | {"copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("N", [None, 3])
@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_clones_go_on_alike(clone: Callable[[Any], Any], N: int | None, dtype: str) -> None:
    """From the same state, each on its own."""
    p = make_problem(10, 7, N, dtype=dtype, input_size=3, hidden_size=7, num_layers=2, proj_size=2)
    stream = stream_of(p, threads=2)
    y = [stream.run(p.x[:3])]  # an odd number of steps
    twin = clone(stream)
    assert type(twin) is type(stream) and twin.batch_size == N
    assert twin.__reduce__()[1][2] == 2  # threads
    frozen = twin.state
    y.append(stream.run(p.x[3:]))
    assert same_bits(twin.state, frozen)
    assert same_bits(twin.run(p.x[3:]), y[1])
    assert_same([np.concatenate(y), *stream.state], whole(p))


def test_a_deep_copy_has_weights_of_its_own() -> None:
    p = make_problem(11, 3, None, input_size=3, hidden_size=7)
    lstm = p.lstm()
    stream = stream_of(p, lstm)
    deep, shallow = copy.deepcopy(stream), copy.copy(stream)
    want = copy.deepcopy(stream).run(p.x)
    lstm.load_state_dict({name: a * 2 for name, a in p.weights.items()})
    assert same_bits(deep.run(p.x), want)
    assert same_bits(shallow.run(p.x), stream.run(p.x))
    assert not same_bits(want, shallow.run(p.x))


def test_a_stream_outlives_the_name_of_its_lstm() -> None:
    p = make_problem(12, 4, None, input_size=3, hidden_size=7)
    stream = stream_of(p)  # of an LSTM that nobody else knows
    assert_same([stream.run(p.x), *stream.state], whole(p))


# ---------------------------------------------------------------------------------------------
# Memory: what goes in stays as it is, what comes out belongs to the caller
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [None, 3])
def test_results_are_fresh(N: int | None, dtype: str) -> None:
    """Each is an array of the caller's own: later steps leave it, and writing to it harms none."""
    p = make_problem(13, 3, N, dtype=dtype, input_size=3, hidden_size=7)
    stream = stream_of(p)
    got = [*(stream.step(x_t) for x_t in p.x), stream.run(p.x), *stream.state, *stream.state]
    kept = [a.copy() for a in got]
    stream.run(p.x)
    assert same_bits(got, kept)
    state = [a.copy() for a in stream.state]
    for k, a in enumerate(got):
        assert a.flags.writeable and a.dtype == np.dtype(dtype)
        assert not any(np.shares_memory(a, other) for other in got[:k])
        a[...] = np.nan
    assert same_bits(list(stream.state), state)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("N", [None, 5])
def test_out_may_be_the_input(N: int | None, layers: int, dtype: str) -> None:
    p = make_problem(14, 6, N, dtype=dtype, input_size=70, hidden_size=70, num_layers=layers)
    want = whole(p)
    stream, buffer = stream_of(p), p.x.copy()
    for row in buffer:
        assert stream.step(row, out=row) is row
    assert_same([buffer, *stream.state], want)
    stream, buffer = stream_of(p), p.x.copy()
    assert stream.run(buffer, out=buffer) is buffer
    assert_same([buffer, *stream.state], want)


def test_out_may_overlap_the_input(dtype: str) -> None:
    p = make_problem(15, 6, 5, dtype=dtype, input_size=70, hidden_size=70)
    step = p.x[0].size
    for shift in (-step, -3, 3, step):
        stream, memory = stream_of(p), np.full(p.x.size + 2 * step, np.nan, dtype)
        x = memory[step:-step].reshape(p.x.shape)
        x[...] = p.x
        out = memory[step + shift : step + shift + x.size].reshape(p.x.shape)
        assert stream.run(x, out=out) is out
        assert_same([out, *stream.state], whole(p))


def test_only_out_is_written(dtype: str) -> None:
    p = make_problem(16, 2, 3, dtype=dtype, input_size=3, hidden_size=5, proj_size=2)
    memory = np.full((3, 3, 2), 7, dtype)
    x, active = p.x[:, [2, 0]].copy(), np.array([2, 0])
    before = [x.copy(), active.copy()]
    for a in (x, active):
        a.flags.writeable = False
    stream = stream_of(p)
    stream.step(x[0], out=memory[1, :2], active=active)
    stream.run(x, active=active)
    assert same_bits([x, active], before)
    assert (memory[[0, 2]] == 7).all() and (memory[1, 2] == 7).all()
    assert (memory[1, :2] != 7).all()


def test_any_strides_go_in(dtype: str) -> None:
    p = make_problem(17, 4, 3, dtype=dtype, input_size=5, hidden_size=7)
    want = whole(p)
    raw = bytearray(p.x.nbytes + 1)
    views = {
        "gaps": np.full((4, 6, 10), np.nan, dtype)[:, ::2, ::2],
        "fortran": np.empty(p.x.shape, dtype, order="F"),
        "backwards": np.empty(p.x.shape, dtype)[::-1, ::-1, ::-1],
        "unaligned": np.frombuffer(raw, dtype, p.x.size, 1).reshape(p.x.shape),
    }
    for name, view in views.items():
        view[...] = p.x
        stepping, running = stream_of(p), stream_of(p)
        assert_same([np.stack([stepping.step(x_t) for x_t in view]), *stepping.state], want)
        assert same_bits(running.run(view), want[0]) or not bits_promised(), name
    stream = p.lstm().stream(3)
    stream.state = np.asfortranarray(p.h_0), np.repeat(p.c_0, 2, axis=2)[:, :, ::2]
    assert_same([stream.run(p.x), *stream.state], want)


def test_subclasses_without_meaning_of_their_own_are_arrays() -> None:
    class Plain(np.ndarray[Any, Any]):
        pass

    p = make_problem(18, 2, 3, input_size=3, hidden_size=5)
    stream = stream_of(p)
    y = stream.step(p.x[0].view(Plain))
    assert type(y) is np.ndarray
    assert_same([y, stream.step(p.x[1])], list(whole(p)[0]))


def test_indices_of_any_integer_type() -> None:
    p = make_problem(19, 1, 5, input_size=3, hidden_size=5)
    rows = [4, 0, 3]
    want = stream_of(p).step(p.x[0][rows], active=rows)
    indices: list[Any] = [tuple(rows), np.array([4, 9, 0, 9, 3, 9])[::2], [np.int8(4), 0, 3]]
    indices += [np.array(rows, t) for t in ("int8", "uint8", "int32", "int64", "uint64", ">i4")]
    for active in indices:
        stream = stream_of(p)
        assert same_bits(stream.step(p.x[0][rows], active=active), want)
        stream.reset(active)
        assert not stream.state[0][:, rows].any() and stream.state[0][:, [1, 2]].all()


def test_nothing_to_do(dtype: str) -> None:
    """An empty block, or a step of no stream, is an empty result and leaves the state."""
    p = make_problem(20, 3, 4, dtype=dtype, input_size=3, hidden_size=7)
    stream = stream_of(p)
    empty: list[Any] = [[], (), np.zeros(0, np.int64)]
    for active in empty:
        assert stream.step(p.x[0][:0], active=active).shape == (0, 7)
        assert stream.run(p.x[:, :0], active=active).shape == (3, 0, 7)
    out = np.zeros((0, 4, 7), dtype)
    assert stream.run(p.x[:0]).shape == (0, 4, 7) and stream.run(p.x[:0], out=out) is out
    block = p.x[:0, :2]
    assert stream.run(block, active=[1, 2], out=out[:, :2]).shape == (0, 2, 7)
    assert same_bits(stream.state, p.states)
    assert p.lstm().stream().run(np.zeros((0, 3), dtype)).shape == (0, 7)
