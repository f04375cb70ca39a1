"""Variants of the cells, against the equations in cylstm.reference and finite differences.

What ONNX Runtime, PyTorch and published cases say of them is in tests/oracles.
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
from helpers import EACH_ISA, ISAS, TOLERANCES, assert_close, bits_promised, refused, rel, same_bits
from make_digests import network, numbers

# --- one direction that runs backwards

CELLS: dict[str, Any] = {
    "LSTM": (dict(cell="LSTM"), reference.LSTM()),
    "projection": (dict(cell="LSTM", proj_size=5), reference.LSTM()),
    "GRU": (dict(cell="GRU"), reference.GRU()),
    "GRU, reset before": (dict(cell="GRU", reset_after=False), reference.GRU(False)),
    "RNN": (dict(cell="RNN"), reference.RNN()),
}
SHAPES: dict[str, dict[str, Any]] = {
    "smallest": dict(T=1, B=1, input_size=1, hidden_size=7, lengths=None),
    "layers": dict(T=9, B=3, input_size=7, hidden_size=17, num_layers=3, lengths=None),
    "lengths": dict(T=9, B=5, input_size=5, hidden_size=33, num_layers=2, lengths=[9, 0, 4, 9, 1]),
    "batch first": dict(T=6, B=4, input_size=4, hidden_size=9, lengths=[6, 2, 0, 5], num_layers=2)
    | dict(batch_first=True),
}


def states_of(net: Any, B: int, prefix: str) -> tuple[Any, ...]:
    L, R = net.num_layers, getattr(net, "proj_size", 0) or net.hidden_size
    widths = (R, net.hidden_size) if isinstance(net, cylstm.LSTM) else (R,)
    return tuple(
        numbers(f"{prefix}{name}", L, B, width).astype(net.dtype)
        for name, width in zip("hc", widths, strict=False)
    )


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_reverse(cell: str, shape: str, isa: str, dtype: str) -> None:
    check_reverse(cell, SHAPES[shape], isa, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["LSTM", "GRU, reset before"])
def test_reverse_in_blocks(cell: str) -> None:
    """So long that layers take turns, block by block and chunk by chunk."""
    config = dict(T=700, B=1, input_size=3, hidden_size=50, num_layers=2, lengths=[690])
    check_reverse(cell, config, ISAS[0], "float64")


def check_reverse(cell: str, shape: dict[str, Any], isa: str, dtype: str) -> None:
    options, equations = CELLS[cell]
    config = shape | options
    lengths, T, B = config.pop("lengths"), config.pop("T"), config.pop("B")
    net = network({**config, "reverse": True, "dtype": dtype}, isa)
    outer = (B, T) if net.batch_first else (T, B)
    x = numbers("x", *outer, net.input_size, scale=1.5).astype(dtype)
    h_0 = states_of(net, B, "0")
    given = h_0 if len(h_0) > 1 else h_0[0]
    y, last = net(x, given, lengths=lengths)
    tape = net.forward(x, given, lengths=lengths)
    dy, dlast = numbers("dy", *y.shape).astype(dtype), states_of(net, B, "d")
    grads = tape.backward(dy, *dlast)
    lasts = last if isinstance(last, tuple) else (last,)
    assert same_bits([y, lasts[0]], [tape.y, tape.h_n]) or not bits_promised()

    wide = {name: a.astype(np.float64) for name, a in net.state_dict().items()}
    first = tuple(a.astype(np.float64) for a in h_0)
    want = reference.forward(
        wide,
        x.astype(np.float64),
        first if len(first) > 1 else first[0],
        lengths,
        cell=equations,
        reverse=True,
        batch_first=net.batch_first,
    )
    want_grads = reference.backward(want, dy.astype(np.float64), *dlast)
    results, gradients = TOLERANCES[dtype]
    found = {"y": rel(tape.y, want.y), "h_n": rel(tape.h_n, want.h_n)}
    found["gates"] = rel(tape.gates, want.gates)
    assert_close(found, 4 * results)
    found = {name: rel(grads.weights[name], a) for name, a in want_grads.weights.items()}
    found |= {"x": rel(grads.x, want_grads.x), "h_0": rel(grads.h_0, want_grads.h_0)}
    if len(h_0) > 1:
        found["c_0"] = rel(grads.c_0, want_grads.c_0)
    assert_close(found, 8 * gradients)


@pytest.mark.parametrize("isa", EACH_ISA)
def test_reverse_is_the_second_half_of_two_directions(isa: str) -> None:
    """To the bit, with lengths, and for one thread and two."""
    both = network(dict(input_size=5, hidden_size=33, bidirectional=True), isa)
    one = network(dict(input_size=5, hidden_size=33, reverse=True), isa)
    own = {n.replace("_reverse", ""): a for n, a in both.state_dict().items() if "_reverse" in n}
    one.load_state_dict(own)
    x = numbers("x", 9, 7, 5).astype(np.float32)
    states = tuple(numbers(n, 2, 7, 33).astype(np.float32) for n in "hc")
    lengths = [9, 0, 1, 9, 4, 8, 2]
    for threads in (1, 2):
        y, (h_n, c_n) = both(x, states, lengths=lengths, threads=threads)
        half, (h, c) = one(x, tuple(s[1:] for s in states), lengths=lengths, threads=threads)
        assert same_bits([half, h, c], [y[..., 33:], h_n[1:], c_n[1:]]) or not bits_promised()


def test_reverse_with_dropout_is_what_it_was_without_the_option() -> None:
    """A stack of reversed layers is one whose input and output are turned round."""
    plain, turned = (
        network(dict(input_size=5, hidden_size=9, num_layers=3, dropout=0.4, reverse=reverse), None)
        for reverse in (False, True)
    )
    x, dy = (numbers(name, 6, 4, n).astype(np.float32) for name, n in (("x", 5), ("dy", 9)))
    tapes = plain.forward(x), turned.forward(x[::-1])
    assert np.array_equal(tapes[1].y[::-1], tapes[0].y)
    grads = tapes[0].backward(dy), tapes[1].backward(dy[::-1])
    assert np.array_equal(grads[1].x[::-1], grads[0].x)
    assert np.array_equal(grads[1].weights.flat, grads[0].weights.flat)


def test_reverse_is_an_argument_like_others(tmp_path: Path) -> None:
    for cls in (cylstm.LSTM, cylstm.GRU, cylstm.RNN):
        net = cls(3, 5, reverse=True, seed=1)
        assert net.reverse and "reverse=True" in repr(net) and "_reverse" not in str(net.state_dict)
        x = numbers("x", 4, 2, 3).astype(np.float32)
        cylstm.save(net, tmp_path / "net")
        for other in (
            copy.copy(net),
            pickle.loads(pickle.dumps(net)),
            cylstm.load(tmp_path / "net"),
            cylstm.quantize(net, "bfloat16"),
        ):
            assert other.reverse
            assert rel(other(x)[0], net(x)[0]) < 1e-2
        with pytest.raises(ValueError, match=f"a reversed {cls.__name__} can't stream"):
            net.stream()
        with pytest.raises(ValueError, match="bidirectional and reverse"):
            cls(3, 5, reverse=True, bidirectional=True)
        with pytest.raises(TypeError, match="reverse is 1"):
            cls(3, 5, reverse=1)  # type: ignore[arg-type]


# --- clipped and biased projections, peepholes of coupled cells


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("coupled", ["f=1-i", "i=1-f"])
def test_a_coupled_gate_sees_nothing_of_the_cell(coupled: str, isa: str, dtype: str) -> None:
    """It is 1 minus the other: with its own weights, negated, a plain cell computes the same."""
    one = network(
        dict(input_size=5, hidden_size=17, coupled=coupled, peephole=True, dtype=dtype), isa
    )
    both = network(dict(input_size=5, hidden_size=17, peephole=True, dtype=dtype), isa)
    state = {}
    for name, array in one.state_dict().items():
        first, *rest = np.split(array, 2 if "peep" in name else 3)
        pair = (first, -first) if coupled == "f=1-i" else (-first, first)  # 1 - s(a) = s(-a)
        state[name] = np.concatenate([*pair, *rest])
    both.load_state_dict(state)
    x = numbers("x", 9, 4, 5).astype(dtype)
    states = tuple(numbers(name, 1, 4, 17).astype(dtype) for name in "hc")
    (y, (h, c)), (want, (want_h, want_c)) = one(x, states), both(x, states)
    tolerance, _ = TOLERANCES[dtype]
    assert_close({"y": rel(y, want), "h": rel(h, want_h), "c": rel(c, want_c)}, 4 * tolerance)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", EACH_ISA)
def test_a_clipped_and_biased_projection(isa: str, threads: int, dtype: str) -> None:
    """Step by step in float64, in calls, tapes and streams; the bits are those of one sequence."""
    config = dict(input_size=5, hidden_size=33, proj_size=7, dtype=dtype)
    net = network(dict(**config, proj_bias=True, proj_clip=0.11), isa)
    plain = network(config, isa)
    plain.load_state_dict({k: a for k, a in net.state_dict().items() if k != "bias_hr_l0"})
    assert net.state_dict()["bias_hr_l0"].shape == (7,)
    x = numbers("x", 6, 5, 5).astype(dtype)
    h = numbers("h", 1, 5, 7).astype(dtype)
    c = numbers("c", 1, 5, 33).astype(dtype)
    y, last = net(x, (h, c), threads=threads)
    steps = []
    state = (h, c)
    for x_t in x:
        step, (h_t, c_t) = plain(x_t[None], state)
        h_t = np.clip(h_t + net.state_dict()["bias_hr_l0"], -0.11, 0.11)
        steps.append(h_t[0])
        state = (h_t, c_t)
    tolerance, _ = TOLERANCES[dtype]
    assert np.abs(y).max() == dtype_of(dtype)(0.11) and 0.1 < np.mean(np.abs(y) < 0.11) < 0.9
    assert_close({"y": rel(y, np.array(steps)), "c": rel(last[1], state[1])}, 4 * tolerance)
    stream = net.stream(5)
    stream.state = h, c
    assert same_bits([stream.run(x)], [y]) or not bits_promised()
    alone, _ = net(x[:, 2:3], (h[:, 2:3], c[:, 2:3]))
    assert same_bits([alone], [y[:, 2:3]]) or not bits_promised()


def dtype_of(name: str) -> Any:
    return np.dtype(name).type


def test_quantized_projections_keep_their_bias() -> None:
    net = network(dict(input_size=5, hidden_size=33, proj_size=7, proj_bias=True), None)
    x = numbers("x", 6, 5, 5).astype(np.float32)
    for weights in ("bfloat16", "int8"):
        small = cylstm.quantize(net, weights)
        assert small.proj_bias and rel(small(x)[0], net(x)[0]) < 0.03


def test_forget_bias() -> None:
    """It moves the first biases of f, and nothing else."""
    for coupled, gates, at, sign in (
        (None, 4, 1, 1),
        ("f=1-i", 3, 0, -1),
        ("i=1-f", 3, 0, 1),
    ):
        config = dict(num_layers=2, bidirectional=True, coupled=coupled, seed=3)
        plain, moved = (cylstm.LSTM(3, 5, forget_bias=f, **config) for f in (0, 1.5))  # type: ignore[arg-type]
        for name, array in plain.state_dict().items():
            want = array.copy().reshape(-1, 5) if "bias_ih" in name else array
            if "bias_ih" in name:
                assert len(want) == gates
                want[at] += np.float32(sign * 1.5)
            np.testing.assert_array_equal(moved.state_dict()[name].reshape(want.shape), want)
        again = cylstm.LSTM(3, 5, forget_bias=1.5, **config)  # type: ignore[arg-type]
        again.load_state_dict(plain.state_dict())
        x = numbers("x", 4, 2, 3).astype(np.float32)
        assert same_bits([again(x)[0]], [plain(x)[0]])


# --- every variant of the LSTM against its equations

VARIANTS: dict[str, dict[str, Any]] = {
    "peephole": dict(peephole=True, cell_clip=0.7),
    "f=1-i": dict(peephole=True, coupled="f=1-i", clip=0.8),
    "i=1-f": dict(peephole=True, coupled="i=1-f"),
    "projection": dict(proj_size=5, proj_bias=True, proj_clip=0.15),
    "layer norm": dict(layer_norm="litert"),
    "layer norm, all": dict(layer_norm="litert", peephole=True, coupled="i=1-f", cell_clip=0.9)
    | dict(clip=1.5, proj_size=5, proj_clip=0.2),
    "Haste's": dict(layer_norm="haste"),
    "Haste's, all": dict(layer_norm="haste", cell_clip=0.9, clip=1.5, proj_size=5, proj_bias=True)
    | dict(proj_clip=0.2),
    "Haste's, no bias": dict(layer_norm="haste", bias=False),
    "layer norm, no bias": dict(layer_norm="litert", bias=False, peephole=True, coupled="f=1-i"),
}
CALLS: dict[str, dict[str, Any]] = {
    "step": dict(T=1, B=3, input_size=5, hidden_size=17, lengths=None),
    "row": dict(T=20, B=1, input_size=7, hidden_size=50, num_layers=2, lengths=None),
    "directions": dict(T=9, B=7, input_size=5, hidden_size=33, num_layers=2, bidirectional=True)
    | dict(lengths=[9, 0, 1, 9, 4, 8, 2]),
    "panels": dict(T=5, B=13, input_size=8, hidden_size=64, lengths=None),
    "units": dict(T=6, B=1, input_size=33, hidden_size=150, lengths=None),
}


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant: str, call: str, isa: str, dtype: str) -> None:
    """Calls, tapes, gradients, threads and streams."""
    options = VARIANTS[variant]
    config = CALLS[call] | options
    T, B, lengths = (config.pop(name) for name in ("T", "B", "lengths"))
    net = network({**config, "dtype": dtype}, isa)
    LD, R = net.num_layers * (1 + net.bidirectional), net.proj_size or net.hidden_size
    x = numbers("x", T, B, net.input_size, scale=1.5).astype(dtype)
    states, dstates = (
        tuple(numbers(p + n, LD, B, w).astype(dtype) for n, w in (("h", R), ("c", net.hidden_size)))
        for p in ("", "d")
    )
    y, (h_n, c_n) = net(x, states, lengths=lengths)
    dy = numbers("dy", *y.shape).astype(dtype)
    clips = {k: v for k, v in options.items() if "clip" in k}
    want = reference.forward(
        {name: a.astype(np.float64) for name, a in net.state_dict().items()},
        x.astype(np.float64),
        (states[0].astype(np.float64), states[1].astype(np.float64)),
        lengths,
        cell=reference.LSTM(options.get("coupled"), **clips),
    )
    want_grads = reference.backward(want, dy.astype(np.float64), *dstates)
    results, gradients = TOLERANCES[dtype]
    found = {"y": rel(y, want.y), "h_n": rel(h_n, want.h_n), "c_n": rel(c_n, want.c_n)}
    tape = net.forward(x, states, lengths=lengths, threads=2)
    found |= {"gates": rel(tape.gates, want.gates), "cells": rel(tape.cells, want.cells)}
    assert_close(found, 10 * results)
    assert same_bits([tape.y, tape.h_n, tape.c_n], [y, h_n, c_n]) or not bits_promised()
    one, two = (tape.backward(dy, *dstates, threads=n) for n in (1, 2))
    assert same_bits([one.x, one.weights.flat], [two.x, two.weights.flat]) or not bits_promised()
    less = net.forward(x, states, lengths=lengths, checkpoint=True).backward(dy, *dstates)
    assert same_bits([less.x, less.weights.flat], [one.x, one.weights.flat]) or not bits_promised()
    assert list(one.weights) == list(want_grads.weights)
    found = {name: rel(one.weights[name], a) for name, a in want_grads.weights.items()}
    for name in ("x", "h_0", "c_0"):
        found[name] = rel(getattr(one, name), getattr(want_grads, name))
    assert_close(found, 40 * gradients)
    if not net.bidirectional and lengths is None:
        stream = net.stream(B)
        stream.state = states
        assert same_bits([stream.run(x)], [y]) or not bits_promised()


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_in_files_copies_and_fewer_bits(variant: str, tmp_path: Path) -> None:
    net = network(dict(input_size=5, hidden_size=17, num_layers=2, **VARIANTS[variant]), None)
    x = numbers("x", 6, 4, 5).astype(np.float32)
    cylstm.save(net, tmp_path / "net")
    for other in (copy.copy(net), pickle.loads(pickle.dumps(net)), cylstm.load(tmp_path / "net")):
        assert repr(other) == repr(net) and same_bits([other(x)[0]], [net(x)[0]])
    for weights, error in (("bfloat16", 0.05), ("int8", 0.2)):
        assert rel(cylstm.quantize(net, weights)(x)[0], net(x)[0]) < error


def test_a_fresh_norm_is_one() -> None:
    net = cylstm.LSTM(3, 5, layer_norm="litert", coupled="f=1-i", num_layers=2, seed=1)
    for layer in range(2):
        np.testing.assert_array_equal(net.state_dict()[f"weight_ln_l{layer}"], np.ones(15))
    net = cylstm.LSTM(3, 5, layer_norm="haste", bidirectional=True)
    for name, array in net.state_dict().items():
        if "_ln_" in name:
            assert (array == (0 if "bias" in name else 1)).all()
    refused(lambda: cylstm.LSTM(3, 5, layer_norm="torch"), "layer_norm is 'torch'", "'haste'")
    refused(lambda: cylstm.LSTM(3, 5, layer_norm="haste", peephole=True), "peephole", "'haste'")
    refused(lambda: cylstm.LSTM(3, 5, layer_norm="haste", coupled="f=1-i"), "coupled", "'haste'")


def test_arguments() -> None:
    for bad in (
        dict(proj_bias=True),
        dict(proj_clip=0.5),
        dict(proj_size=2, proj_clip=0.0),
        dict(forget_bias=1.0, bias=False),
        dict(forget_bias=float("nan")),
    ):
        with pytest.raises(ValueError, match=list(bad)[-1] if "bias" not in bad else "forget_bias"):
            cylstm.LSTM(3, 5, **bad)
    two = np.array([1.0, 2.0])
    for wrong in (
        dict(proj_bias=1),
        dict(proj_clip="1"),
        dict(proj_clip=two),
        dict(forget_bias="1"),
        dict(forget_bias=two),
        dict(coupled=two),
        dict(coupled=1),
        dict(layer_norm=two),
    ):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            cylstm.LSTM(3, 5, 1, True, False, 0.0, False, 2, **wrong)


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize(
    "falling",
    [
        ("affine", -0.7, 0.1),
        ("scaled_tanh", -1.2, 0.8),
        ("scaled_tanh", 1.2, -0.8),
        ("hard_sigmoid_keras2", -0.3, 0.45),
        ("thresholded_relu", -0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_clip_behind_what_falls(cell: str, falling: Any, isa: str) -> None:
    """There is a gradient within a clip though the activation takes its ends in the other order."""
    names = {"LSTM": ("sigmoid", falling, "tanh"), "GRU": ("sigmoid", falling), "RNN": (falling,)}
    config = dict(cell=cell, input_size=5, hidden_size=17, activations=names[cell], clip=0.4)
    net: Any = network({**config, "dtype": "float64"}, isa)
    x, v, dx = (numbers(name, 4, 3, width) for name, width in (("x", 5), ("v", 17), ("dx", 5)))
    tape = net.forward(x)
    grads, (dy, *_) = tape.backward(v), tape.jvp(dx)
    up, down = (net(x + by * dx)[0] for by in (1e-6, -1e-6))
    want = (up - down) / 2e-6
    assert np.count_nonzero(want) > want.size / 4
    assert rel(dy, want) < 1e-7
    assert rel((grads.x * dx).sum(), (v * want).sum()) < 1e-7
