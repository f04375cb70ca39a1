"""Zoneout: which units keep what they had, in calls, tapes, streams, and gradients through it.

The masks are drawn here once more, by the hash that docs/numerics.md names; with them
cylstm.reference gives results and gradients.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import reference
from draws import zoneout_masks
from helpers import (
    EACH_ISA,
    ISAS,
    TOLERANCES,
    Array,
    assert_close,
    bits_promised,
    refused,
    rel,
    same_bits,
)
from make_digests import network, numbers

CELLS: dict[str, tuple[dict[str, Any], Any]] = {
    "LSTM": (dict(cell="LSTM"), reference.LSTM()),
    "peephole": (dict(cell="LSTM", peephole=True, cell_clip=0.7), reference.LSTM(cell_clip=0.7)),
    "projection": (dict(cell="LSTM", proj_size=7, proj_bias=True), reference.LSTM()),
    "layer norm": (dict(cell="LSTM", layer_norm="litert"), reference.LSTM()),
    "layer norm, projection": (
        dict(cell="LSTM", layer_norm="litert", proj_size=3, coupled="f=1-i"),
        reference.LSTM("f=1-i"),
    ),
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
}
CALLS: dict[str, dict[str, Any]] = {
    "step": dict(T=1, B=3, input_size=5, hidden_size=17, lengths=None),
    "row": dict(T=20, B=1, input_size=7, hidden_size=50, num_layers=2, lengths=None),
    "directions": dict(T=9, B=7, input_size=5, hidden_size=33, num_layers=2, bidirectional=True)
    | dict(lengths=[9, 0, 1, 9, 4, 8, 2], dropout=0.0),
    "reverse": dict(T=6, B=5, input_size=3, hidden_size=9, reverse=True, lengths=[6, 2, 5, 0, 6]),
    "chunks": dict(T=60, B=9, input_size=3, hidden_size=10, num_layers=2, lengths=None),
    "units": dict(T=6, B=1, input_size=33, hidden_size=150, lengths=None),
}


class Run:
    """A network with its arrays; `net()` is one whose first call is to come."""

    def __init__(self, cell: str, call: str, isa: str | None, dtype: str, **more: Any) -> None:
        options, self.cell = CELLS[cell]
        config = CALLS[call] | options | more
        self.T, self.B, self.lengths = (config.pop(name) for name in ("T", "B", "lengths"))
        self.config, self.isa = {"zoneout": 0.3, **config, "dtype": dtype}, isa
        net = self.net()
        LD, H = net.num_layers * (1 + net.bidirectional), net.hidden_size
        R = getattr(net, "proj_size", 0) or H
        widths = (R, H) if isinstance(net, cylstm.LSTM) else (R,)
        self.x = numbers("x", self.T, self.B, net.input_size, scale=1.5).astype(dtype)
        self.dy = numbers("dy", self.T, self.B, R * (1 + net.bidirectional)).astype(dtype)
        self.states, self.dstates = (
            tuple(
                numbers(p + n, LD, self.B, w).astype(dtype)
                for n, w in zip("hc", widths, strict=False)
            )
            for p in ("", "d")
        )
        self.given = self.states if len(widths) > 1 else self.states[0]

    def net(self) -> Any:
        return network(self.config, self.isa)

    def forward(self, **options: Any) -> Any:
        return self.net().forward(self.x, self.given, lengths=self.lengths, **options)

    def backward(self, tape: Any, **options: Any) -> Any:
        return tape.backward(self.dy, *self.dstates, **options)

    def check(self, tape: Any, grads: Any, zoneout: Any, dtype: str) -> None:
        wide = {name: a.astype(np.float64) for name, a in self.net().state_dict().items()}
        first: Any = tuple(a.astype(np.float64) for a in self.states)
        want = reference.forward(
            wide,
            self.x.astype(np.float64),
            first if len(first) > 1 else first[0],
            self.lengths,
            cell=self.cell,
            reverse=self.config.get("reverse", False),
            zoneout=zoneout,
        )
        wanted = reference.backward(want, self.dy.astype(np.float64), *self.dstates)
        results, gradients = TOLERANCES[dtype]
        found = {name: rel(getattr(tape, name), getattr(want, name)) for name in ("y", "h_n")}
        assert_close(found | {"gates": rel(tape.gates, want.gates)}, 10 * results)
        found = {name: rel(grads.weights[name], a) for name, a in wanted.weights.items()}
        found |= {"x": rel(grads.x, wanted.x), "h_0": rel(grads.h_0, wanted.h_0)}
        if grads.c_0 is not None:
            found["c_0"] = rel(grads.c_0, wanted.c_0)
        assert_close(found, 40 * gradients)


def arrays(tape: Any, grads: Any) -> list[Array]:
    found = [tape.y, tape.h_n, tape.c_n, grads.x, grads.h_0, grads.c_0, grads.weights.flat]
    return [a for a in found if a is not None]


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("call", [name for name in CALLS if name != "chunks"])
@pytest.mark.parametrize("cell", CELLS)
def test_training(cell: str, call: str, isa: str, dtype: str) -> None:
    check_training(cell, call, isa, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_training_in_chunks(cell: str) -> None:
    check_training(cell, "chunks", ISAS[0], "float64")


def check_training(cell: str, call: str, isa: str, dtype: str) -> None:
    """By masks drawn elsewhere; the same with threads and a checkpoint, to the bit."""
    run = Run(cell, call, isa, dtype)
    tape = run.forward()
    grads = run.backward(tape)
    run.check(tape, grads, zoneout_masks(run.net(), run.T, run.B, run.lengths), dtype)
    one = arrays(tape, grads)
    for options in (dict(threads=2), dict(checkpoint=True)):
        other = run.forward(**options)
        many = arrays(other, run.backward(other, threads=2))
        assert same_bits(many, one) or not bits_promised(), options


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("call", ["directions", "reverse", "row"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_mean(cell: str, call: str, isa: str, dtype: str) -> None:
    """In calls, tapes without training and their gradients, and streams."""
    run = Run(cell, call, isa, dtype)
    net = run.net()
    tape = run.forward(train=False)
    run.check(tape, run.backward(tape), 0.3, dtype)
    y, last = net(run.x, run.given, lengths=run.lengths)
    h_n = last[0] if isinstance(last, tuple) else last
    assert same_bits([y, h_n], [tape.y, tape.h_n]) or not bits_promised()
    if not (net.bidirectional or net.reverse):
        stream = net.stream(run.B)
        stream.state = run.given
        assert same_bits([stream.run(run.x)], [y]) or not bits_promised()
        steps = net.stream(run.B)
        steps.state = run.given
        others = [steps.step(x, active=[0]) for x in run.x[:, :1]]
        assert same_bits([np.array(others)], [y[:, :1]]) or not bits_promised()


@pytest.mark.parametrize("cell", CELLS)
def test_with_masks_resets_and_dropout(cell: str) -> None:
    """A mask's steps are counted without gaps; behind a reset zero may be kept."""
    run = Run(cell, "chunks", None, "float64", dropout=0.4, T=12)
    rng = np.random.default_rng(5)
    mask, reset = rng.random((12, 9)) < 0.8, rng.random((12, 9)) < 0.2
    tapes = [run.forward(mask=mask, reset=reset, checkpoint=n > 0, threads=1 + n) for n in (0, 1)]
    one, two = (arrays(tape, run.backward(tape)) for tape in tapes)
    assert same_bits(one, two) or not bits_promised()
    grads = run.backward(tapes[0], per_sample=True)
    sums = {name: a.sum(0) for name, a in grads.weights.items()}
    for name, a in run.backward(tapes[0]).weights.items():
        assert rel(sums[name], a) < 1e-12
    # by differences, along a random direction of x
    way, eps = rng.standard_normal(run.x.shape), 1e-6

    def loss(x: Array) -> float:
        tape = run.net().forward(x, run.given, mask=mask, reset=reset)
        states = [tape.h_n, tape.c_n][: len(run.dstates)]
        pairs = zip([tape.y, *states], [run.dy, *run.dstates], strict=True)
        return sum(float((a * d).sum()) for a, d in pairs)

    want = (loss(run.x + eps * way) - loss(run.x - eps * way)) / (2 * eps)
    assert abs(float((grads.x * way).sum()) - want) < 1e-6 * (1 + abs(want))


def test_truncated_over_all_is_exact() -> None:
    run = Run("GRU", "chunks", None, "float64")
    tape = run.forward()
    grads, whole = tape.backward_truncated(5, 60, run.dy), tape.backward(run.dy)
    assert_close({name: rel(grads.weights[name], a) for name, a in whole.weights.items()}, 1e-12)


def test_the_draws(dtype: str) -> None:
    """What is kept is kept to the bit, as often as it should, and otherwise in every call."""
    net = cylstm.RNN(3, 40, zoneout=0.25, dtype=dtype, seed=9)
    x = numbers("x", 60, 20, 3).astype(dtype)
    y, again = net.forward(x).y, net.forward(x).y
    kept = y[1:] == y[:-1]
    assert abs(kept.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / kept.size)
    for axis in range(3):
        along = kept.mean(tuple(k for k in range(3) if k != axis))
        assert np.abs(along - 0.25).max() < 5 * np.sqrt(0.1875 * along.size / kept.size)
    assert (kept != (again[1:] == again[:-1])).any()
    other = cylstm.RNN(3, 40, zoneout=0.25, dtype=dtype, seed=9)
    assert same_bits([other.forward(x).y, other.forward(x).y], [y, again])


def test_all_or_nothing() -> None:
    x = numbers("x", 4, 2, 3).astype(np.float32)
    for cls in (cylstm.LSTM, cylstm.GRU, cylstm.RNN):
        plain, still = cls(3, 5, seed=1), cls(3, 5, zoneout=1, seed=1)
        none = cls(3, 5, zoneout=0.0, seed=1)
        assert same_bits([none(x)[0], none.forward(x).y], [plain(x)[0]] * 2)
        h_0 = numbers("h", 1, 2, 5).astype(np.float32)
        states: Any = (h_0, h_0) if cls is cylstm.LSTM else h_0
        for tape in (still.forward(x, states), still.forward(x, states, train=False)):
            assert (tape.y == h_0).all()
            grads = tape.backward(np.ones_like(tape.y))
            assert (grads.h_0 == 4).all() and not grads.weights.flat.any()


def test_it_is_an_argument_like_others(tmp_path: Path) -> None:
    x = numbers("x", 4, 2, 3).astype(np.float32)
    for cls in (cylstm.LSTM, cylstm.GRU, cylstm.RNN):
        net = cls(3, 5, zoneout=0.5, seed=1)
        assert net.zoneout == 0.5 and "zoneout=0.5" in repr(net)
        with pytest.raises(AttributeError, match="zoneout of .* is fixed"):
            net.zoneout = 0.2
        cylstm.save(net, tmp_path / "net")
        pickled = pickle.loads(pickle.dumps(net))
        for other in (copy.copy(net), pickled, cylstm.load(tmp_path / "net")):
            assert repr(other) == repr(net) and same_bits([other(x)[0]], [net(x)[0]])
        for weights, error in (("bfloat16", 0.05), ("int8", 0.2)):
            assert rel(cylstm.quantize(net, weights)(x)[0], net(x)[0]) < error
        refused(lambda cls=cls: cls(3, 5, zoneout=1.5), "zoneout is 1.5", "from 0 to 1")
        with pytest.raises(TypeError, match="zoneout is '1'"):
            cls(3, 5, zoneout="1")  # type: ignore[arg-type]
    refused(
        lambda: cylstm.LSTM(3, 5, proj_size=2, proj_clip=1, zoneout=0.1), "zoneout", "proj_clip"
    )
