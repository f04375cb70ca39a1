"""Forward-mode derivatives: against finite differences, against backward, and what they promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import EACH_ISA, Array, assert_close, bits_promised, refused, rel, same_bits
from make_digests import network, numbers

HARD = ("hard_sigmoid_keras2", 0.3, 0.45)
CELLS: dict[str, dict[str, Any]] = {
    "LSTM": {},
    "no bias": dict(bias=False),
    "projection": dict(proj_size=3, proj_bias=True, proj_clip=0.25),
    "peephole": dict(peephole=True, cell_clip=0.4),
    "f=1-i": dict(coupled="f=1-i", peephole=True),
    "i=1-f": dict(coupled="i=1-f", peephole=True, proj_size=5),
    "clip": dict(clip=0.5, cell_clip=0.3),
    "activations": dict(
        activations=(HARD, "softsign", ("scaled_tanh", 1.2, 0.7)) * 2, bidirectional=True
    ),
    "more activations": dict(activations=(HARD, ("leaky_relu", 0.2), "softplus"), reverse=True),
    "layer norm": dict(layer_norm="litert"),
    "layer norm, all": dict(layer_norm="litert", peephole=True, proj_size=5, cell_clip=0.4),
    "layer norm, coupled": dict(layer_norm="litert", coupled="i=1-f", peephole=True, clip=0.9),
    "Haste's norm": dict(layer_norm="haste"),
    "Haste's norm, all": dict(
        layer_norm="haste", proj_size=5, cell_clip=0.4, clip=0.9, zoneout=0.3
    ),
    "layer norm, f=1-i": dict(layer_norm="litert", coupled="f=1-i", bias=False),
    "zoneout": dict(zoneout=0.3),
    "recurrent dropout": dict(recurrent_dropout=0.3),
    "zoneout, all": dict(zoneout=0.3, layer_norm="litert", proj_size=5, proj_bias=True),
    "GRU": dict(cell="GRU"),
    "GRU, zoneout": dict(cell="GRU", zoneout=0.3),
    "GRU, reset before, zoneout": dict(cell="GRU", reset_after=False, zoneout=0.3),
    "RNN, zoneout": dict(cell="RNN", zoneout=0.3),
    "GRU, options": dict(cell="GRU", activations=(HARD, "elu"), clip=0.6),
    "GRU, reset before": dict(cell="GRU", reset_after=False),
    "GRU, reset before, options": dict(
        cell="GRU", reset_after=False, activations=("sigmoid", "softsign"), clip=0.6, bias=False
    ),
    "RNN": dict(cell="RNN"),
    "RNN, options": dict(cell="RNN", activations=("softplus",), clip=0.6),
}
LENGTHS = [9, 0, 1, 9, 4, 8, 2]
rng = np.random.default_rng(5)
MASK, RESET = rng.random((9, 7)) < 0.7, rng.random((9, 7)) < 0.2
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the network, of the call
    "plain": (dict(T=5, B=3), {}),
    "one step": (dict(T=1, B=1, hidden_size=50), {}),
    "wide": (
        dict(T=3, B=17, hidden_size=50, num_layers=2),
        dict(lengths=[3, 2, 0, 1] * 4 + [3], reset=np.arange(51).reshape(3, 17) % 4 == 0),
    ),
    "lengths": (dict(T=9, B=7, num_layers=2), dict(lengths=LENGTHS)),
    "two directions": (dict(T=9, B=7, num_layers=3, bidirectional=True), dict(lengths=LENGTHS)),
    "dropout": (dict(T=9, B=7, num_layers=2, dropout=0.4), dict(lengths=LENGTHS)),
    "dropout, both": (
        dict(T=9, B=7, num_layers=2, dropout=0.4, bidirectional=True),
        dict(lengths=LENGTHS, mask=MASK),
    ),
    "masks": (
        dict(T=9, B=7, num_layers=2, bidirectional=True),
        dict(lengths=LENGTHS, mask=MASK, reset=RESET),
    ),
    "held": (dict(T=9, B=7), dict(mask=MASK, hold_output=True, reset=RESET)),
    "reverse": (dict(T=9, B=7, num_layers=2, reverse=True), dict(mask=MASK, reset=RESET)),
    "means": (dict(T=6, B=4), dict(train=False)),
    "checkpoint": (dict(T=9, B=7, num_layers=2), dict(lengths=LENGTHS, checkpoint=True)),
    "batch first": (dict(T=6, B=4, batch_first=True), {}),
    "unbatched": (dict(T=6, B=None), {}),
}


PAIRS = [
    (cell, call)
    for cell, options in CELLS.items()
    for call, (more, _) in CALLS.items()
    if not ("reverse" in {*options, *more} and "bidirectional" in {*options, *more})
]


class Call:
    """A network, one call of it, and a tangent for everything."""

    def __init__(self, cell: str, call: str, dtype: str, isa: str | None = None) -> None:
        own, self.options = CALLS[call]
        config = dict(input_size=5, hidden_size=7) | CELLS[cell] | own
        T, B, H = config["T"], config["B"], config["hidden_size"]
        self.net: Any = network({**config, "dtype": dtype}, isa)
        self.net._seed = 3
        n = config.get("num_layers", 1) * (1 + config.get("bidirectional", False))
        batch = () if B is None else (B,)
        outer = (*batch, T) if config.get("batch_first") else (T, *batch)
        shapes = {"x": (*outer, 5), "h_0": (n, *batch, config.get("proj_size", H))}
        if config.get("cell", "LSTM") == "LSTM":
            shapes["c_0"] = (n, *batch, H)
        shapes |= {name: a.shape for name, a in self.net.state_dict().items()}
        self.at = {name: numbers(name, *shape).astype(dtype) for name, shape in shapes.items()}
        self.at |= self.net.state_dict()
        self.tangents = {
            name: numbers("d" + name, *shape).astype(dtype) for name, shape in shapes.items()
        }
        self.tape = self.forward(self.at)

    def forward(self, at: Mapping[str, Array]) -> Any:
        """The tape of a call of these inputs, states and weights; dropout is always the same."""
        cell: Any = type(self.net)(**self.net._config())
        cell._seed = 3
        cell.load_state_dict({name: at[name] for name in self.net.state_dict()})
        state = (at["h_0"], at["c_0"]) if "c_0" in at else at["h_0"]
        return cell.forward(at["x"], state, **{"train": True, **self.options})

    def jvp(
        self, given: Mapping[str, Array] | None = None, tape: Any = None, threads: int | None = None
    ) -> list[Array]:
        """dy, dh_n and, where there is one, dc_n, of these tangents or of all."""
        given = given or self.tangents
        weights = {name: d for name, d in given.items() if name in self.net.state_dict()}
        return results(
            (tape or self.tape).jvp(
                given.get("x"),
                given.get("h_0"),
                given.get("c_0"),
                weights or None,
                threads=threads,
            )
        )


def results(three: Any) -> list[Array]:
    dy, dh_n, dc_n = three
    return [dy, dh_n] if dc_n is None else [dy, dh_n, dc_n]


def outputs(tape: Any) -> list[Array]:
    return results((tape.y, tape.h_n, tape.c_n))


@pytest.mark.parametrize("cell, call", PAIRS)
def test_finite_differences(cell: str, call: str) -> None:
    c = Call(cell, call, "float64")
    eps = 1e-6

    def moved(by: float) -> list[Array]:
        return outputs(c.forward({name: a + by * c.tangents[name] for name, a in c.at.items()}))

    for up, down, got in zip(moved(eps), moved(-eps), c.jvp(), strict=True):
        assert rel(got, (up - down) / (2 * eps)) < 2e-7


def assert_transposed(c: Call) -> None:
    """<v, J u> = <J^T v, u>, for each u by itself."""
    v = [numbers(f"v{n}", *a.shape).astype(a.dtype) for n, a in enumerate(outputs(c.tape))]
    grads = c.tape.backward(*v)
    back = {"x": grads.x, "h_0": grads.h_0, "c_0": grads.c_0, **grads.weights}
    for name, u in c.tangents.items():
        got = sum(float(np.vdot(a.astype("d"), b)) for a, b in zip(v, c.jvp({name: u})))
        products = back[name].astype("d") * u
        size = max(float(np.abs(products).sum()), 1)
        assert abs(got - products.sum()) < (2e-5 if u.dtype == "f" else 1e-12) * size, name


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("cell", CELLS)
def test_backward_is_its_transpose(cell: str, isa: str, dtype: str) -> None:
    assert_transposed(Call(cell, "wide", dtype, isa))


@pytest.mark.parametrize("call", ["two directions", "reverse"])
@pytest.mark.parametrize("cell", ["LSTM", "layer norm", "peephole", "GRU", "RNN"])
def test_float32(cell: str, call: str) -> None:
    """Against the same in float64, of the same numbers."""
    got, want = (Call(cell, call, dtype).jvp() for dtype in ("float32", "float64"))
    assert_close({str(n): rel(a, b) for n, (a, b) in enumerate(zip(got, want))}, 2e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_is_linear_and_none_is_zero(cell: str) -> None:
    c = Call(cell, "two directions" if "reverse" not in CELLS[cell] else "lengths", "float64")
    parts = [c.jvp({name: d}) for name, d in c.tangents.items()]
    errors = {str(n): rel(sum(p[n] for p in parts), a) for n, a in enumerate(c.jvp())}
    assert_close(errors, 1e-12)
    zeros = {name: np.zeros_like(d) for name, d in c.tangents.items()}
    for got in c.jvp(zeros), results(c.tape.jvp()), results(c.tape.jvp(dweights={})):
        assert not any(a.any() for a in got)


@pytest.mark.parametrize("call", ["plain", "masks", "dropout", "reverse"])
@pytest.mark.parametrize("cell", ["LSTM", "projection", "layer norm", "GRU", "GRU, reset before"])
def test_same_bits(cell: str, call: str, dtype: str) -> None:
    """For any number of threads, and for a sequence of the batch by itself."""
    c = Call(cell, call, dtype)
    whole = c.jvp(threads=1)
    assert same_bits(c.jvp(threads=2), whole)
    if not bits_promised() or "dropout" in CALLS[call][0]:
        return
    for b in range(c.tape.h_n.shape[1]):
        one = {
            name: a if name in c.net.state_dict() else a[:, b : b + 1] for name, a in c.at.items()
        }
        own = {
            name: d if name in c.net.state_dict() else d[:, b : b + 1]
            for name, d in c.tangents.items()
        }
        cut = {"lengths": lambda a, b=b: a[b : b + 1]}
        options = {
            name: cut.get(name, lambda a, b=b: a[:, b : b + 1])(a) for name, a in c.options.items()
        }
        alone, c.options = c.options, options
        got = c.jvp(own, c.forward(one))
        c.options = alone
        assert same_bits(got, [a[:, b : b + 1] for a in whole])


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoint(cell: str, dtype: str) -> None:
    """The same bits as of a tape that keeps everything, and the tape shows no more than before."""
    c = Call(cell, "checkpoint", dtype)
    c.options = {**c.options, "checkpoint": False}
    if bits_promised():
        assert same_bits(c.jvp(), c.jvp(tape=c.forward(c.at)))
    assert c.tape.gates is None


def test_many_threads_share_rows(dtype: str) -> None:
    """Work enough for several threads, in rows of several lengths."""
    lstm: Any = network(dict(input_size=33, hidden_size=64, num_layers=2, dtype=dtype), None)
    x, dx = (numbers(name, 30, 13, 33).astype(dtype) for name in ("x", "dx"))
    tape = lstm.forward(x, lengths=[30, 1, 2, 29, 0, 17, 30, 30, 5, 6, 7, 8, 9])
    dw = {
        name: numbers(name + "d", *a.shape).astype(dtype) for name, a in lstm.state_dict().items()
    }
    one = tape.jvp(dx, dweights=dw, threads=1)
    for threads in 2, 3, 16:
        assert same_bits(tape.jvp(dx, dweights=dw, threads=threads), one)


def test_strides_and_what_stands_past_a_length() -> None:
    lstm = cylstm.LSTM(3, 5, seed=1, dtype="float64")
    tape = lstm.forward(numbers("x", 6, 2, 3), lengths=[6, 3])
    dx = numbers("dx", 6, 2, 3)
    wild = dx.copy()
    wild[3:, 1] = np.nan
    strided = np.asfortranarray(dx)[::-1][::-1]
    for other in wild, strided:
        assert same_bits(tape.jvp(other), tape.jvp(dx))
    dy = tape.jvp(dx)[0]
    assert not dy[3:, 1].any() and dy[3:, 0].all()


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3)])
def test_empty(shape: tuple[int, ...]) -> None:
    for net in cylstm.LSTM(3, 5), cylstm.GRU(3, 5):
        tape = net.forward(np.zeros(shape, np.float32))
        dh_0 = np.ones((1, shape[1], 5), np.float32)
        dy, dh_n, dc_n = tape.jvp(dh_0=dh_0, dweights=dict(net.state_dict()))
        assert dy.shape == (*shape[:2], 5) and same_bits(dh_n, dh_0)
        assert (dc_n is None) == (tape.c_n is None)


def test_a_gradient_is_a_tangent() -> None:
    """What backward gives of the weights can be given as it is: the product with the Hessian's
    nearest relative, J J^T v."""
    lstm = cylstm.LSTM(3, 5, seed=1, dtype="float64")
    tape = lstm.forward(numbers("x", 6, 2, 3))
    grads = tape.backward(tape.y)
    dy, _, _ = tape.jvp(grads.x, dweights=grads.weights)
    norm = sum(float((a * a).sum()) for a in (grads.x, *grads.weights.values()))
    assert rel((dy * tape.y).sum(), norm) < 1e-12


def test_bad_input() -> None:
    lstm, gru = cylstm.LSTM(3, 5, seed=1), cylstm.GRU(3, 5, seed=1)
    x = np.zeros((6, 2, 3), np.float32)
    tape, other = lstm.forward(x), gru.forward(x)
    f = np.float32

    def anything(value: Any) -> Any:
        return value

    refused(lambda: tape.jvp(x[1:]), "dx", "(5, 2, 3)", "(6, 2, 3)")
    refused(lambda: tape.jvp(x.astype("d")), "dx", "float64", "float32", error=TypeError)
    refused(lambda: tape.jvp(dh_0=np.zeros((1, 2, 4), f)), "dh_0", "(1, 2, 4)", "(1, 2, 5)")
    refused(lambda: tape.jvp(dc_0=np.zeros((2, 5), f)), "dc_0", "(2, 5)", "(1, 2, 5)")
    refused(lambda: other.jvp(dc_0=np.zeros((1, 2, 5), f)), "dc_0", "GRU", "no c")
    refused(
        lambda: tape.jvp(dweights=anything(x)), "dweights", "ndarray", "mapping", error=TypeError
    )
    refused(lambda: tape.jvp(dweights={"w": x}), "dweights", "'w'", "weight_ih_l0")
    refused(lambda: tape.jvp(dweights=anything({1: x})), "dweights", "1", "weight_ih_l0")
    refused(
        lambda: tape.jvp(dweights={"bias_ih_l0": np.zeros(5, f)}), "bias_ih_l0", "(5,)", "(20,)"
    )
    refused(lambda: tape.jvp(x, threads=0), "threads", "0")
