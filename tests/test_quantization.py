"""Weights of fewer bits: bfloat16 against float32 of the rounded weights, to the bit; int8 against
integers in NumPy; and what both refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from cylstm import _core, reference
from cylstm.weights import widened
from helpers import ISAS, Array, all_grads, run_python, same_bits

FORMATS: dict[str, dict[str, Any]] = {
    "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"},
    "int8, x of int16": {"weights": "int8", "inputs": "int16"},
}
every_format = pytest.mark.parametrize("how", FORMATS.values(), ids=FORMATS)
SIZES: dict[str, dict[str, Any]] = {
    "smallest": dict(input_size=1, hidden_size=1),
    "odd": dict(input_size=7, hidden_size=17),
    "no bias": dict(input_size=3, hidden_size=9, bias=False),
    "stack": dict(input_size=5, hidden_size=33, num_layers=3),
    "bidirectional": dict(input_size=50, hidden_size=18, num_layers=2, bidirectional=True),
    "projection": dict(input_size=6, hidden_size=50, proj_size=9, num_layers=2),
    "wide": dict(input_size=214, hidden_size=65),
    "narrow input": dict(input_size=2, hidden_size=128, batch_first=True),
}
SHAPES = {"one row": (7, 1), "few rows": (23, 3), "many rows": (3, 67)}


def forced(isa: str) -> type[cylstm.LSTM]:
    return type("LSTM", (cylstm.LSTM,), {"_isa": isa, "__slots__": ()})


def inputs(lstm: cylstm.LSTM, T: int, B: int, seed: int = 0) -> tuple[Array, tuple[Array, Array]]:
    draw = np.random.default_rng(seed)
    passes, R = lstm.num_layers * (1 + lstm.bidirectional), lstm.proj_size or lstm.hidden_size
    shape = (B, T) if lstm.batch_first else (T, B)
    x = draw.standard_normal((*shape, lstm.input_size), np.float32)
    h_0 = draw.uniform(-1, 1, (passes, B, R)).astype(np.float32)
    return x, (h_0, draw.uniform(-1, 1, (passes, B, lstm.hidden_size)).astype(np.float32))


def flat(result: Any) -> list[Array]:
    y, (h_n, c_n) = result
    return [y, h_n, c_n]


# --- what is computed


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SIZES)
def test_bfloat16_is_float32_of_the_rounded_weights(name: str, shape: str, isa: str) -> None:
    lstm = forced(isa)(**SIZES[name], seed=1)
    narrow = cylstm.quantize(lstm, "bfloat16")
    rounded = forced(isa)(**SIZES[name])
    rounded.load_state_dict(
        {key: widened(a) if a.dtype == np.uint16 else a for key, a in narrow.state_dict().items()}
    )
    T, B = SHAPES[shape]
    x, states = inputs(lstm, T, B)
    lengths = np.random.default_rng(1).integers(0, T + 1, B)
    assert same_bits(
        flat(narrow(x, states, lengths=lengths)), flat(rounded(x, states, lengths=lengths))
    )
    assert not same_bits(flat(narrow(x, states)), flat(lstm(x, states)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", ["GRU", "GRU, reset before", "RNN"])
def test_other_cells(cell: str, isa: str) -> None:
    """bfloat16 to the bit; int8 as near as its rounding, and the same in any batch."""
    kind = cylstm.RNN if cell == "RNN" else cylstm.GRU
    more = {"reset_after": False} if "before" in cell else {}
    make = type(kind.__name__, (kind,), {"_isa": isa, "__slots__": ()})
    module = make(13, 37, 2, bidirectional=True, seed=4, **more)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((9, 5, 13), np.float32)
    h_0 = draw.uniform(-1, 1, (4, 5, 37)).astype(np.float32)
    narrow = cylstm.quantize(module, "bfloat16")
    rounded = make(13, 37, 2, bidirectional=True, **more)
    rounded.load_state_dict(
        {key: widened(a) if a.dtype == np.uint16 else a for key, a in narrow.state_dict().items()}
    )
    assert same_bits(list(narrow(x, h_0)), list(rounded(x, h_0)))
    spoilt = x.copy(), h_0.copy()
    spoilt[0][3, 1, 2], spoilt[1][:, 2, 5] = np.inf, -np.inf
    y, h_n = narrow(*spoilt)
    assert same_bits([y, h_n], list(rounded(*spoilt)))
    assert np.isfinite(y[3, 1]).any()
    int8 = cylstm.quantize(module)
    y = int8(x, h_0)[0]
    assert 0 < np.abs(y - module(x, h_0)[0]).max() < 0.03
    assert same_bits(int8(x[:, 2:3], h_0[:, 2:3].copy())[0], y[:, 2:3])


def test_bfloat16_rounds_to_nearest_even() -> None:
    linear = cylstm.Linear(6, 1, bias=False)
    step = 2.0**-7  # of bfloat16 from 1 on
    row = [1, 1 + step / 2, 1 + 3 * step / 2, 1 + step / 2 + 2**-20, -1 - step / 2, 0]
    exact = np.array([row], np.float32)
    linear.load_state_dict({"weight": exact})
    stored = widened(cylstm.quantize(linear, "bfloat16").state_dict()["weight"])
    assert stored.tolist() == [[1, 1, 1 + 2 * step, 1 + step, -1, 0]]


WIDE = partial(reference.int8_weights, wide_inputs=True)


def assert_exact(
    narrow: Any,
    x: Array,
    states: tuple[Array, ...],
    cell: Any,
    read: Callable[[Any], Any] = reference.int8_weights,
) -> None:
    """Against the reference, whose codes and sums are the same integers: what is left is float32's
    rounding of gate math. A code off by one would show as some 1e-3.

    Each step by itself from the state before: after many, a code may be rounded the other way. Of
    many rows one may at once; and where x is the h of a layer below, so may one of its 16 bits,
    which shows as some 1e-5.
    """
    weights = read(narrow.state_dict())
    most = 5e-5 if read is WIDE and narrow.num_layers > 1 else 5e-6
    end = narrow(x, states if len(states) > 1 else states[0])[1]
    for t in range(len(x)):
        given: Any = states if len(states) > 1 else states[0]
        y, after = narrow(x[t : t + 1], given)
        want = reference.forward(weights, x[t : t + 1].astype(np.float64), given, cell=cell)
        states = after if isinstance(after, tuple) else (after,)
        results = [(y, want.y), *zip(states, (want.h_n, want.c_n), strict=False)]
        off = [np.abs(got - exact).max((0, 2)) / np.abs(exact).max() for got, exact in results]
        assert (np.max(off, 0) >= most).sum() <= x.shape[1] // 50
    if not narrow.bidirectional:
        assert same_bits(list(end) if isinstance(end, tuple) else [end], list(states))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SIZES)
def test_int8_is_exact_integers(name: str, shape: str, isa: str) -> None:
    lstm = forced(isa)(**{**SIZES[name], "batch_first": False}, seed=1)
    x, states = inputs(lstm, *SHAPES[shape])
    assert_exact(cylstm.quantize(lstm), x, states, None)
    assert_exact(cylstm.quantize(lstm, inputs="int16"), x, states, None, WIDE)


VARIANTS: dict[str, tuple[type[Any], dict[str, Any], Any]] = {
    "peephole": (cylstm.LSTM, dict(peephole=True), reference.LSTM()),
    "coupled f": (cylstm.LSTM, dict(coupled="f=1-i"), reference.LSTM("f=1-i")),
    "coupled i": (cylstm.LSTM, dict(coupled="i=1-f"), reference.LSTM("i=1-f")),
    "clips": (
        cylstm.LSTM,
        dict(clip=0.3, cell_clip=0.5),
        reference.LSTM(clip=0.3, cell_clip=0.5),
    ),
    "activations": (
        cylstm.LSTM,
        dict(activations=("sigmoid", "softsign", "relu")),
        reference.LSTM(activations=("sigmoid", "softsign", "relu")),
    ),
    "projection": (cylstm.LSTM, dict(proj_size=11), reference.LSTM()),
    "LiteRT's norm": (cylstm.LSTM, dict(layer_norm="litert"), reference.LSTM()),
    "Haste's norm": (cylstm.LSTM, dict(layer_norm="haste"), reference.LSTM()),
    "GRU": (cylstm.GRU, {}, reference.GRU()),
    "GRU, reset before": (cylstm.GRU, dict(reset_after=False), reference.GRU(False)),
    "RNN": (cylstm.RNN, {}, reference.RNN()),
}


def variant(name: str, isa: str | None, B: int, **more: Any) -> tuple[Any, Array, tuple[Any, ...]]:
    """A module of two layers with its x (6, B, 13) and states."""
    kind, options, _ = VARIANTS[name]
    forcing = type(kind.__name__, (kind,), {"_isa": isa, "__slots__": ()})
    module = (forcing if isa else kind)(13, 37, 2, seed=4, **options, **more)
    draw = np.random.default_rng(0)
    if "weight_peep_l0" in module.state_dict():  # zeros as they are drawn
        state = {
            key: draw.uniform(-0.5, 0.5, a.shape).astype(np.float32) if "peep" in key else a
            for key, a in module.state_dict().items()
        }
        module.load_state_dict(state)
    widths = (options.get("proj_size", 37), 37) if kind is cylstm.LSTM else (37,)
    x = draw.standard_normal((6, B, 13), np.float32)
    return module, x, tuple(draw.uniform(-1, 1, (2, B, w)).astype(np.float32) for w in widths)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("name", VARIANTS)
def test_int8_of_variants_is_exact_integers(name: str, B: int, isa: str) -> None:
    module, x, states = variant(name, isa, B)
    assert_exact(cylstm.quantize(module), x, states, VARIANTS[name][2])
    assert_exact(cylstm.quantize(module, inputs="int16"), x, states, VARIANTS[name][2], WIDE)


def test_inputs_of_16_bits_err_less() -> None:
    """What is left is the weights' part of the error, and that of h."""
    lstm = cylstm.LSTM(64, 128, seed=0)
    x, _ = inputs(lstm, 30, 8)
    wide, narrow = (cylstm.quantize(lstm, inputs=each) for each in ("int16", None))
    found = cylstm.compare(lstm, wide, x)
    assert found.rms < 0.7 * cylstm.compare(lstm, narrow, x).rms
    assert repr(found).startswith("Comparison(int8, inputs of int16: ")
    assert "weights='int8', inputs='int16'" in repr(wide)
    codes, same = narrow.state_dict(), wide.state_dict()
    assert same_bits([same[key] for key in codes], list(codes.values()))


# --- products of bfloat16: by CPUs that have them, and by the portable set everywhere

PRODUCTS = [isa for isa in ISAS if isa == "scalar" or (isa == _core.ISA and _core.BF16)]


@pytest.mark.parametrize("isa", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SIZES)
def test_products_of_bfloat16(name: str, shape: str, isa: str) -> None:
    """Rows rounded to bfloat16 and exact products. A value rounded the other way would show as
    some 1e-3, what is left is how sums are rounded."""
    lstm = forced(isa)(**{**SIZES[name], "batch_first": False}, seed=1)
    narrow = cylstm.quantize(lstm, "bfloat16", arithmetic="bfloat16")
    x, states = inputs(lstm, *SHAPES[shape])
    assert_exact(narrow, x, states, None, reference.bfloat16_weights)
    weights_alone = cylstm.quantize(lstm, "bfloat16")
    assert not same_bits(flat(narrow(x, states)), flat(weights_alone(x, states)))
    for key, array in weights_alone.state_dict().items():
        assert same_bits(narrow.state_dict()[key], array)


@pytest.mark.parametrize("isa", PRODUCTS)
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize("name", ["peephole", "projection", "GRU", "GRU, reset before", "RNN"])
def test_products_of_bfloat16_of_variants(name: str, B: int, isa: str) -> None:
    module, x, states = variant(name, isa, B)
    narrow = cylstm.quantize(module, "bfloat16", arithmetic="bfloat16")
    assert_exact(narrow, x, states, VARIANTS[name][2], reference.bfloat16_weights)
    given = states if len(states) > 1 else states[0]
    x[0, 0, 0] = np.inf  # reaches what it does in float32
    y, want = (np.isfinite(each(x, given)[0]) for each in (narrow, module))
    assert y[0, 0].any() and np.array_equal(y, want)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    "how",
    [*FORMATS.values(), {"weights": "bfloat16", "arithmetic": "bfloat16"}],
    ids=[*FORMATS, "products"],
)
def test_threads_that_share_a_chunk_of_steps(how: dict[str, Any], threads: int) -> None:
    """Each thread quantises rows in memory of its own: once they shared it, and results were often
    off by 0.3, whenever two met there. Hence several tries."""
    isa = _core.ISA if _core.BF16 or "arithmetic" not in how else "scalar"
    lstm = forced(isa)(64, 256, seed=1)
    narrow = cylstm.quantize(lstm, **how)
    x, states = inputs(lstm, 150, 1)
    alone = flat(narrow(x, states, threads=1))
    stream = narrow.stream(1, threads=threads)
    for _ in range(20):
        assert same_bits(flat(narrow(x, states, threads=threads)), alone)
        stream.state = states
        assert same_bits([stream.run(x)], alone[:1])


@pytest.mark.parametrize("isa", PRODUCTS)
def test_products_of_bfloat16_of_a_sequence(isa: str) -> None:
    """As ever: not of the batch, the threads or blocks."""
    lstm = forced(isa)(37, 50, 2, seed=3)
    narrow = cylstm.quantize(lstm, "bfloat16", arithmetic="bfloat16")
    x, (h_0, c_0) = inputs(lstm, 41, 70)
    whole = flat(narrow(x, (h_0, c_0), threads=1))
    assert same_bits(whole, flat(narrow(x, (h_0, c_0), threads=3)))
    few = slice(30, 31)
    part = narrow(x[:, few], (h_0[:, few].copy(), c_0[:, few].copy()))
    assert same_bits(flat(part), [a[:, few] for a in whole])
    stream = narrow.stream(70)
    stream.state = (h_0, c_0)
    blocks = [stream.run(x[:17]), stream.step(x[17])[None], stream.run(x[18:])]
    assert same_bits([np.concatenate(blocks), *stream.state], whole)
    spoilt = x.copy()
    spoilt[2, 1, 3] = np.nan
    y = narrow(spoilt, (h_0, c_0))[0]
    assert np.isnan(y[2:, 1]).all()
    assert same_bits(np.delete(y, 1, 1), np.delete(whole[0], 1, 1))
    assert same_bits(flat(copy.deepcopy(narrow)(x, (h_0, c_0))), whole)
    assert "weights='bfloat16', arithmetic='bfloat16'" in repr(narrow)


# A Linear and a file have the kernels of the process: one with the portable set.
def test_formats_that_are_refused() -> None:
    lstm = cylstm.LSTM(3, 4)
    with pytest.raises(ValueError, match="arithmetic is 'bfloat16' with weights 'int8'"):
        cylstm.quantize(lstm, "int8", arithmetic="bfloat16")
    with pytest.raises(ValueError, match="arithmetic is 'float16', expected 'bfloat16'"):
        cylstm.quantize(lstm, "bfloat16", arithmetic="float16")
    for module in (lstm, cylstm.Linear(3, 4)):
        with pytest.raises(ValueError, match="inputs is 'int16' with weights 'bfloat16', expected"):
            cylstm.quantize(module, "bfloat16", inputs="int16")
        with pytest.raises(ValueError, match="inputs is 'int4', expected 'int16'"):
            cylstm.quantize(module, inputs="int4")
    for isa in set(ISAS) & {"avx2", "sse2"}:
        with pytest.raises(ValueError, match=f"can't do with the kernels '{isa}', expected AVX"):
            cylstm.quantize(forced(isa)(3, 4), "bfloat16", arithmetic="bfloat16")


@every_format
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_stream_and_save(name: str, how: dict[str, Any], tmp_path: Path) -> None:
    """With lengths; bfloat16 to the bit of the rounded weights."""
    module, x, states = variant(name, None, 3)
    given = states if len(states) > 1 else states[0]
    narrow = cylstm.quantize(module, **how)
    y, end = narrow(x, given, lengths=[6, 0, 4])
    cylstm.save(narrow, tmp_path / "narrow")
    again = cylstm.load(tmp_path / "narrow")(x, given, lengths=[6, 0, 4])[0]
    assert same_bits([y], [again]) and not y[4:, 2].any()
    if how["weights"] == "bfloat16":
        module.load_state_dict(
            {k: widened(a) if a.dtype == np.uint16 else a for k, a in narrow.state_dict().items()}
        )
        assert same_bits([y], [module(x, given, lengths=[6, 0, 4])[0]])
    stream = narrow.stream(3)
    stream.state = given
    blocks = [stream.run(x[:2]), stream.step(x[2])[None], stream.run(x[3:])]
    assert same_bits([np.concatenate(blocks)], [narrow(x, given)[0]])


@every_format
def test_sequential(how: dict[str, Any], tmp_path: Path) -> None:
    """Its recurrent modules and Linears, each as by itself; an Embedding is left alone."""
    table, lstm = cylstm.Embedding(20, 8), cylstm.LSTM(8, 17, batch_first=True, seed=1)
    head = cylstm.Linear(17, 3, seed=2)
    model = cylstm.Sequential([table, ("lstm", cylstm.steps.FinalState(lstm)), ("head", head)])
    narrow = cylstm.quantize(model, **how)
    ids = np.arange(12).reshape(3, 4)
    small_lstm, small_head = (cylstm.quantize(each, **how) for each in (lstm, head))
    want = small_head(small_lstm(table(ids))[1][0][-1])
    assert np.allclose(narrow(ids), want, rtol=0, atol=1e-6)
    assert narrow["0"] is table and model["lstm"] is not narrow["lstm"]
    cylstm.save(narrow, tmp_path / "narrow")
    assert same_bits([cylstm.load(tmp_path / "narrow")(ids)], [narrow(ids)])
    with pytest.raises(ValueError, match=f"step 'lstm'.* weights of {how['weights']} already"):
        cylstm.quantize(narrow, **how)


@every_format
@pytest.mark.parametrize("isa", ISAS)
def test_a_sequence_depends_on_itself_alone(isa: str, how: dict[str, Any]) -> None:
    """Not on the batch, the threads or how it is cut in time: calls, blocks and steps."""
    lstm = cylstm.quantize(forced(isa)(37, 50, 2, seed=3), **how)
    x, (h_0, c_0) = inputs(lstm, 41, 70)
    whole = flat(lstm(x, (h_0, c_0), threads=1))
    assert same_bits(whole, flat(lstm(x, (h_0, c_0), threads=3)))
    few = slice(30, 33)
    part = lstm(x[:, few], (h_0[:, few].copy(), c_0[:, few].copy()))
    assert same_bits(flat(part), [a[:, few] for a in whole])
    stream = lstm.stream(70)
    stream.state = (h_0, c_0)
    blocks = [stream.run(x[:17]), stream.step(x[17])[None], stream.run(x[18:])]
    assert same_bits([np.concatenate(blocks), *stream.state], whole)


@pytest.mark.parametrize("name", cylstm.show_config()["int8_available"])
def test_every_way_of_multiplying_gives_the_same_bits(name: str) -> None:
    """In a process of its own, in which CYLSTM_INT8 forces it."""
    script = (
        "import cylstm, numpy as np\n"
        "lstm = cylstm.LSTM(37, 50, 2, seed=3)\n"
        "x = np.sin(np.arange(11 * 5 * 37, dtype=np.float32)).reshape(11, 5, 37)\n"
        "print(cylstm.show_config()['int8'])\n"
        "for inputs in (None, 'int16'):\n"
        "    print(cylstm.quantize(lstm, inputs=inputs)(x)[0].tobytes().hex())"
    )
    got = run_python("-c", script, CYLSTM_INT8=name).stdout.split()
    assert got[0] == name
    x = np.sin(np.arange(11 * 5 * 37, dtype=np.float32)).reshape(11, 5, 37)
    lstm = cylstm.LSTM(37, 50, 2, seed=3)
    for text, bits in zip(got[1:], (None, "int16"), strict=True):
        assert text == cylstm.quantize(lstm, inputs=bits)(x)[0].tobytes().hex()


@every_format
def test_a_bad_row_stays_alone(how: dict[str, Any]) -> None:
    lstm = cylstm.quantize(cylstm.LSTM(9, 17, seed=0), **how)
    x, states = inputs(lstm, 5, 4)
    good = lstm(x, states)[0]
    for bad in (np.nan, np.inf, 1e38):
        spoilt = x.copy()
        spoilt[2, 1, 3] = bad
        y = lstm(spoilt, states)[0]
        assert same_bits(y[:, [0, 2, 3]], good[:, [0, 2, 3]])
        assert same_bits(y[:2], good[:2])
        # int8 has no code for an infinity: such a row has no scale
        unknown = np.isnan(bad) or (how["weights"] == "int8" and np.isinf(bad))
        assert np.isnan(y[2:, 1]).any() == unknown


@pytest.mark.parametrize("isa", ISAS)
def test_wide_layers(isa: str) -> None:
    """Many panels, and more rows of weights than a block of codes has."""
    lstm = forced(isa)(9, 1150, seed=1)
    x, states = inputs(lstm, 2, 3)
    assert_exact(cylstm.quantize(lstm), x, states, None)
    narrow = cylstm.quantize(lstm, "bfloat16")
    lstm.load_state_dict(
        {key: widened(a) if a.dtype == np.uint16 else a for key, a in narrow.state_dict().items()}
    )
    assert same_bits(flat(narrow(x, states)), flat(lstm(x, states)))


@every_format
def test_active_streams_and_masks(how: dict[str, Any]) -> None:
    """Streams that step now and then are as each by itself, and a mask t < length is a length."""
    lstm = cylstm.quantize(cylstm.LSTM(9, 17, 2, seed=0), **how)
    x, _ = inputs(lstm, 6, 3)
    together, alone = lstm.stream(3), [lstm.stream() for _ in range(3)]
    for t, active in enumerate([[1], [2, 0], [0, 1, 2], [2], [1, 0], [2]]):
        y = together.step(x[t, active], active=active)
        assert same_bits(list(y), [alone[n].step(x[t, n]) for n in active])
    lengths = [6, 0, 4]
    mask = np.arange(6)[:, None] < lengths
    assert same_bits(flat(lstm(x, mask=mask)), flat(lstm(x, lengths=lengths)))


def test_rows_of_zeros_and_tiny_numbers() -> None:
    lstm = cylstm.LSTM(5, 6, seed=0)
    state = {name: a.copy() for name, a in lstm.state_dict().items()}
    state["weight_ih_l0"][3] = 0
    state["weight_ih_l0"][4] = 1e-40
    state["weight_hh_l0"][:] = 0
    lstm.load_state_dict(state)
    narrow = cylstm.quantize(lstm)
    stored = narrow.state_dict()
    assert not stored["weight_ih_l0"][3:5].any() and not stored["weight_ih_scale_l0"][3:5].any()
    x, states = inputs(lstm, 3, 2)
    x[0] = 0
    x[1] = 1e-40
    assert np.abs(narrow(x, states)[0] - lstm(x, states)[0]).max() < 1e-2


# --- modules


@every_format
def test_copies_pickles_and_files(how: dict[str, Any], tmp_path: Path) -> None:
    lstm = cylstm.LSTM(17, 33, 2, bidirectional=True, seed=5)
    narrow = cylstm.quantize(lstm, **how)
    x, states = inputs(lstm, 6, 3)
    want = flat(narrow(x, states))
    cylstm.save(narrow, tmp_path / "narrow")
    twins = [copy.copy(narrow), copy.deepcopy(narrow), pickle.loads(pickle.dumps(narrow))]
    for twin in [*twins, cylstm.load(tmp_path / "narrow")]:
        assert repr(twin) == repr(narrow) and f"weights={how['weights']!r}" in repr(twin)
        assert same_bits(flat(twin(x, states)), want)
    cylstm.save(lstm, tmp_path / "whole")
    sizes = [(tmp_path / name).stat().st_size for name in ("narrow", "whole")]
    assert sizes[0] < sizes[1] * (0.6 if how["weights"] == "bfloat16" else 0.45)


def test_files_have_the_types_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    for weights, kind in (("bfloat16", "BF16"), ("int8", "I8")):
        cylstm.save(cylstm.quantize(cylstm.LSTM(3, 4), weights), tmp_path / weights)
        with safetensors.safe_open(tmp_path / weights, "np") as file:
            assert file.get_slice("weight_hh_l0").get_dtype() == kind
            assert file.get_slice("bias_hh_l0").get_dtype() == "F32"


def test_the_original_is_left_alone() -> None:
    lstm = cylstm.LSTM(3, 4, seed=0)
    before = {name: a.copy() for name, a in lstm.state_dict().items()}
    cylstm.quantize(lstm)
    assert same_bits(list(lstm.state_dict().values()), list(before.values()))
    tape = lstm.forward(np.ones((2, 1, 3), np.float32))
    assert all(
        np.isfinite(a).all() for a in all_grads(tape.backward(np.ones((2, 1, 4), np.float32)))
    )


# --- what is refused


def test_training_is_refused() -> None:
    for module in (cylstm.LSTM(3, 4), cylstm.Linear(3, 4)):
        narrow = cylstm.quantize(module)
        with pytest.raises(ValueError, match="for inference only"):
            narrow.forward(np.ones((2, 3), np.float32))
        with pytest.raises(ValueError, match="for inference only"):
            cylstm.optim.SGD(narrow, lr=0.1)


def test_what_can_not_be_quantized() -> None:
    with pytest.raises(TypeError, match="module is a list"):
        cylstm.quantize([])  # type: ignore[type-var]
    with pytest.raises(ValueError, match="'int4', expected 'bfloat16' or 'int8'"):
        cylstm.quantize(cylstm.LSTM(3, 4), "int4")
    with pytest.raises(ValueError, match="is of float64, expected float32"):
        cylstm.quantize(cylstm.LSTM(3, 4, dtype="float64"))
    with pytest.raises(ValueError, match="weights of int8 already"):
        cylstm.quantize(cylstm.quantize(cylstm.LSTM(3, 4)), "bfloat16")
    for bad in (np.nan, np.inf):
        lstm = cylstm.LSTM(3, 4)
        state = {name: a.copy() for name, a in lstm.state_dict().items()}
        state["weight_hh_l0"][1, 2] = bad
        lstm.load_state_dict(state)
        for how in FORMATS.values():
            match = rf"weight_hh_l0\[1, 2\] is {bad:g}, which has no place in {how['weights']}$"
            with pytest.raises(ValueError, match=match):
                cylstm.quantize(lstm, **how)
    state["bias_ih_l0"][[0, 3]] = np.nan
    state["weight_hh_l0"][:] = 0
    lstm.load_state_dict(state)
    with pytest.raises(ValueError, match=r"bias_ih_l0\[0\] is nan, .* in int8, and 1 more like it"):
        cylstm.quantize(lstm)
    state["bias_ih_l0"][:] = 0
    state["weight_hh_l0"][1, 2] = np.finfo(np.float32).max
    lstm.load_state_dict(state)
    with pytest.raises(ValueError, match=r"weight_hh_l0\[1, 2\] is 3.40282e\+38, which rounds to"):
        cylstm.quantize(lstm, "bfloat16")


def test_sums_that_may_not_fit_are_refused() -> None:
    """Of more than 2^17 products of 127 * 127."""
    most = 2**17
    for module in (cylstm.Linear(most + 1, 1), cylstm.RNN(most + 1, 1)):
        with pytest.raises(ValueError, match="sums of 131073 products, expected at most 131072"):
            cylstm.quantize(module)
        cylstm.quantize(module, "bfloat16")
    linear = cylstm.Linear(most, 1, bias=False)
    linear.load_state_dict({"weight": np.ones((1, most), np.float32)})
    x = np.full((2, most), -1, np.float32)
    assert cylstm.quantize(linear)(x).tolist() == [[-most], [-most]]


def test_wrong_weights_are_refused() -> None:
    narrow = cylstm.quantize(cylstm.LSTM(3, 4, seed=0), "bfloat16")
    state = dict(narrow.state_dict())
    fine = widened(state["weight_ih_l0"])
    narrow.load_state_dict({**state, "weight_ih_l0": fine})  # exact
    with pytest.raises(TypeError, match="weight_ih_l0 is float32, expected uint16"):
        narrow.load_state_dict({**state, "weight_ih_l0": fine * np.float32(1.001)})
    with pytest.raises(ValueError, match="missing: weight_ih_scale_l0"):
        cylstm.quantize(cylstm.LSTM(3, 4)).load_state_dict(cylstm.LSTM(3, 4).state_dict())


@every_format
def test_empty_batches_and_lengths(how: dict[str, Any]) -> None:
    lstm = cylstm.quantize(cylstm.LSTM(3, 4, 2), **how)
    assert lstm(np.empty((5, 0, 3), np.float32))[0].shape == (5, 0, 4)
    x, states = inputs(lstm, 5, 2)
    y, (h_n, c_n) = lstm(x, states, lengths=[0, 0])
    assert not y.any() and same_bits([h_n, c_n], list(states))


def test_forcing_what_can_not_run() -> None:
    result = run_python("-c", "import cylstm", CYLSTM_INT8="mmx")
    assert result.returncode == 1 and "CYLSTM_INT8='mmx': expected one of" in result.stderr
