"""Recurrent dropout: a training call is one of another network, of which weights are dropped.

Which they are is drawn here once more, by the hash that docs/numerics.md names.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import optim
from draws import kept_weights
from helpers import EACH_ISA, Array, assert_close, bits_promised, refused, rel, same_bits
from make_digests import network, numbers

CELLS: dict[str, dict[str, Any]] = {
    "LSTM": dict(cell="LSTM"),
    "everything": dict(cell="LSTM", proj_size=7, peephole=True, coupled="i=1-f", zoneout=0.0)
    | dict(layer_norm="litert"),
    "GRU": dict(cell="GRU"),
    "GRU, reset before": dict(cell="GRU", reset_after=False),
    "RNN": dict(cell="RNN"),
}
CALLS: dict[str, dict[str, Any]] = {
    "step": dict(T=1, B=3, input_size=64, hidden_size=150),
    "directions": dict(T=9, B=7, input_size=5, hidden_size=33, num_layers=2, bidirectional=True),
    "chunks": dict(T=60, B=9, input_size=3, hidden_size=10, num_layers=2),
}


def results(tape: Any, grads: Any) -> list[Array]:
    found = [tape.y, tape.h_n, tape.c_n, grads.x, grads.h_0, grads.c_0]
    return [a for a in found if a is not None]


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cell", CELLS)
def test_training(cell: str, call: str, isa: str, dtype: str) -> None:
    config = {**CALLS[call], **CELLS[cell], "dtype": dtype}
    T, B = config.pop("T"), config.pop("B")
    net = network(config | dict(recurrent_dropout=0.3), isa)
    x = numbers("x", T, B, net.input_size, scale=1.5).astype(dtype)
    for n in range(2):  # calls differ
        kept = kept_weights(net, n)
        other = network(config, isa)
        weights = {
            name: (a * kept.get(name, 1)).astype(dtype) for name, a in net.state_dict().items()
        }
        other.load_state_dict(weights)
        tape, want = net.forward(x, checkpoint=n > 0, threads=1 + n), other.forward(x)
        dy = numbers("dy", *want.y.shape).astype(dtype)
        grads, wanted = tape.backward(dy, threads=2), want.backward(dy)
        close = 2e-6 if dtype == "float32" else 1e-14  # of a weight that is divided
        found = zip(results(tape, grads), results(want, wanted), strict=True)
        assert_close({str(k): rel(a, b) for k, (a, b) in enumerate(found)}, 4 * close)
        for name, a in wanted.weights.items():
            if name in kept:
                assert not grads.weights[name][kept[name] == 0].any()
            assert rel(grads.weights[name], a * kept.get(name, 1)) < 40 * close, name
        samples = tape.backward(dy, per_sample=True)
        for name, a in samples.weights.items():
            assert rel(a.sum(0), grads.weights[name]) < 100 * close, name


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads(threads: int) -> None:
    """Weights so many that threads share the drawing of them."""
    x = numbers("x", 3, 2, 40).astype(np.float32)

    def run(threads: int) -> list[Array]:
        net = cylstm.LSTM(40, 200, 2, recurrent_dropout=0.5, dropout=0.5, zoneout=0.5, seed=3)
        tape = net.forward(x, threads=threads)
        grads = tape.backward(np.ones_like(tape.y), threads=threads)
        return [*results(tape, grads), grads.weights.flat]

    assert same_bits(run(threads), run(1)) or not bits_promised()


def test_inference_drops_nothing() -> None:
    config = dict(input_size=3, hidden_size=9, num_layers=2)
    plain, net = network(config, None), network(config | dict(recurrent_dropout=0.9), None)
    x = numbers("x", 5, 2, 3).astype(np.float32)
    net.forward(x)
    tape = net.forward(x, train=False)
    assert same_bits([net(x)[0], tape.y, net.stream(2).run(x)], [plain(x)[0]] * 3)
    assert same_bits(tape.backward(tape.y).x, plain.forward(x).backward(tape.y).x)


def test_all() -> None:
    """Nothing of h reaches the next step, and no weight of it has a gradient."""
    net = cylstm.RNN(3, 5, recurrent_dropout=1.0, seed=1)
    x, h_0 = numbers("x", 4, 2, 3).astype(np.float32), numbers("h", 1, 2, 5).astype(np.float32)
    tape = net.forward(x, h_0)
    assert same_bits(tape.y, net.forward(x, train=False).y) is False
    grads = tape.backward(np.ones_like(tape.y))
    assert not grads.h_0.any() and not grads.weights["weight_hh_l0"].any() and grads.x.all()


def test_no_steps_and_no_rows() -> None:
    net = cylstm.LSTM(3, 5, recurrent_dropout=0.5)
    for shape in ((0, 2, 3), (4, 0, 3)):
        tape = net.forward(np.zeros(shape, np.float32))
        assert not tape.backward(tape.y).weights.flat.any()
        assert tape.backward(tape.y, per_sample=True).weights["weight_hh_l0"].shape[0] == shape[1]


def test_a_tape_keeps_what_it_has_drawn() -> None:
    """While an optimiser goes on, and a rate is changed."""
    net = cylstm.GRU(3, 5, recurrent_dropout=0.5, seed=1)
    x = numbers("x", 4, 2, 3).astype(np.float32)
    tape = net.forward(x)
    before = tape.backward(tape.y)
    optim.SGD(net, lr=0.1).step(before.weights)
    net.recurrent_dropout = 0.1
    net.forward(x)
    after = tape.backward(tape.y)
    assert same_bits([before.x, before.weights.flat], [after.x, after.weights.flat])


def test_it_is_an_argument_like_others(tmp_path: Path) -> None:
    x = numbers("x", 4, 2, 3).astype(np.float32)
    for cls in (cylstm.LSTM, cylstm.GRU, cylstm.RNN):
        net = cls(3, 5, recurrent_dropout=0.5, seed=1)
        assert net.recurrent_dropout == 0.5 and "recurrent_dropout=0.5" in repr(net)
        cylstm.save(net, tmp_path / "net")
        pickled = pickle.loads(pickle.dumps(net))
        for other in (copy.copy(net), pickled, cylstm.load(tmp_path / "net")):
            assert repr(other) == repr(net) and same_bits([other(x)[0]], [net(x)[0]])
        net.recurrent_dropout = 0.25
        assert copy.copy(net).recurrent_dropout == 0.25
        for bad in (1.5, -0.1, float("nan")):
            refused(
                lambda cls=cls, bad=bad: cls(3, 5, recurrent_dropout=bad), "recurrent_dropout", "1"
            )
        with pytest.raises(TypeError, match="recurrent_dropout is '1'"):
            net.recurrent_dropout = "1"  # type: ignore[assignment]
