"""Sequential and its steps, against loops written out and against each part by itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import cylstm
from cylstm import LSTM, Linear, Sequential, steps
from cylstm.steps import (
    Activation,
    BatchNorm,
    Conv1d,
    FinalState,
    Flatten,
    GlobalPool,
    LastStep,
    LayerNorm,
    Mask,
    Merge,
    MergeDirections,
    Pool,
    Repeat,
    Reverse,
    Transpose,
)
from helpers import bits_promised

rng = np.random.default_rng(0)


def data(*shape: int) -> Any:
    return rng.standard_normal(shape)


def lstm(inputs: int, units: int, seed: int = 0, **kwargs: Any) -> LSTM:
    return LSTM(inputs, units, batch_first=True, dtype="float64", seed=seed, **kwargs)


def linear(inputs: int, outputs: int) -> Linear:
    return Linear(inputs, outputs, dtype="float64", seed=3)


def tagger() -> Sequential:
    """Every step that may have lengths; two paths that meet again."""
    return Sequential(
        [
            ("normal", BatchNorm(data(3), 1 + data(3) ** 2, data(3), data(3))),
            ("first", lstm(3, 4, bidirectional=True)),
            ("tanh", Activation("tanh")),
            ("second", lstm(8, 5, num_layers=2), "first"),
            ("both", Merge("concatenate"), ["tanh", "second", "input"]),
            ("scaled", LayerNorm(data(16), data(16))),
            ("head", linear(16, 2)),
        ]
    )


# ------------------------------------------------------------------- steps


@pytest.mark.parametrize("T", [7, 12])
@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 1, 2), (3, 2, 1), (1, 3, 2)])
@pytest.mark.parametrize("padding", ["valid", "same", "causal", (2, 1)])
def test_convolution(T: int, stride: int, dilation: int, groups: int, padding: Any) -> None:
    size, per_group, out = 3, 2, 4
    weight, bias, x = data(out, per_group, size), data(out), data(2, T, per_group * groups)
    step = Conv1d(weight, bias, stride, padding, dilation, groups)
    reach = dilation * (size - 1)
    if padding == "same":  # TensorFlow's rule
        total = max((int(np.ceil(T / stride)) - 1) * stride + reach + 1 - T, 0)
        left = total // 2
        n = int(np.ceil(T / stride))
    else:
        left, right = {"valid": (0, 0), "causal": (reach, 0)}.get(padding, padding)
        n = (T + left + right - reach - 1) // stride + 1
    want = np.zeros((2, n, out))
    for b, t, o in np.ndindex(want.shape):
        want[b, t, o] = bias[o]
        group = o // (out // groups)
        for k in range(size):
            at = t * stride + k * dilation - left
            if 0 <= at < T:
                inputs = x[b, at, group * per_group : (group + 1) * per_group]
                want[b, t, o] += inputs @ weight[o, :, k]
    np.testing.assert_allclose(step(x), want, atol=1e-13)
    assert step.sizes((T, per_group * groups)) == want.shape[1:]
    assert step.sizes((None, None)) == (None, out)


@pytest.mark.parametrize("kind, empty, mean", [("max", -np.inf, False), ("average", 0, True)])
@pytest.mark.parametrize("padding", ["valid", "same", (1, 1)])
@pytest.mark.parametrize("size, stride", [(2, None), (3, 2), (3, 1)])
@pytest.mark.parametrize("counts", [False, True])
def test_pool(
    kind: str, empty: float, mean: bool, padding: Any, size: int, stride: Any, counts: bool
) -> None:
    x = data(2, 7, 3)
    step = Pool(kind, size, stride, padding, counts)
    stride = stride or size
    total = max((-(-7 // stride) - 1) * stride + size - 7, 0)
    same = total // 2, total - total // 2
    left, right = {"valid": (0, 0), "same": same}.get(padding, padding)
    rows: list[int | None] = [None] * left + list(range(7)) + [None] * right
    want = []
    for start in range(0, len(rows) - size + 1, stride):
        inside = [t for t in rows[start : start + size] if t is not None]
        if mean:
            want.append(x[:, inside].sum(1) / (size if counts else len(inside)))
        else:
            want.append(x[:, inside].max(1))
    got = step(x)
    np.testing.assert_allclose(got, np.stack(want, 1), atol=1e-13)
    assert step.sizes((7, 3)) == got.shape[1:]


def test_global_pools_and_last_steps_leave_out_what_is_not_valid() -> None:
    x = data(3, 5, 2)
    valid = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
    for row, mask in zip(range(3), valid):
        inside = x[row][mask]
        np.testing.assert_allclose(GlobalPool("max")(x, valid)[row], inside.max(0))
        np.testing.assert_allclose(GlobalPool("average")(x, valid)[row], inside.mean(0))
        np.testing.assert_array_equal(LastStep()(x, valid)[row], inside[-1])
    np.testing.assert_allclose(GlobalPool("average")(x), x.mean(1))


def test_shapes_of_the_small_ones() -> None:
    x = data(2, 5, 4)
    assert np.array_equal(Reverse()(x), x[:, ::-1])
    assert np.array_equal(Flatten()(x), x.reshape(2, 20))
    assert np.array_equal(Repeat(3)(x[:, 0])[:, 2], x[:, 0])
    assert np.array_equal(Transpose()(x), x.transpose(0, 2, 1))
    with pytest.raises(ValueError, match=r"expected \(B, T, F\)"):
        Transpose()(x[0])
    assert np.array_equal(MergeDirections("add")(x), x[..., :2] + x[..., 2:])
    assert np.array_equal(MergeDirections("maximum")(x), np.maximum(x[..., :2], x[..., 2:]))
    np.testing.assert_allclose(Merge("average")(x, 2 * x, 3 * x), 2 * x)
    with pytest.raises(ValueError, match="expected an even number"):
        Sequential([Activation("relu"), MergeDirections("add")], input_shape=(None, 3))


@pytest.mark.parametrize("name", steps.ACTIVATIONS)
def test_activations_keep_the_dtype_and_are_finite(name: str) -> None:
    x = np.array([[-80, -3, -1, -0.1, 0, 0.1, 1, 3, 80]], np.float32)
    with np.errstate(over="raise", invalid="raise"):
        y = Activation(name)(x)
    assert y.dtype == np.float32 and np.isfinite(y).all()


# ------------------------------------------------------------------- the chain


def test_a_chain_is_its_parts() -> None:
    model = tagger()
    x = data(4, 6, 3)
    first, _ = model["first"](model["normal"](x))
    second, _ = model["second"](first)
    both = np.concatenate([np.tanh(first), second, x], -1)
    np.testing.assert_array_equal(model(x), model["head"](model["scaled"](both)))


def test_final_state_is_h_n() -> None:
    module = lstm(3, 4, num_layers=2, bidirectional=True)
    x = data(4, 6, 3)
    y = Sequential([FinalState(module)])(x)
    np.testing.assert_array_equal(y, np.concatenate(module(x)[1][0][-2:], -1))
    np.testing.assert_array_equal(y[:, :4], module(x)[0][:, -1, :4])
    np.testing.assert_array_equal(y[:, 4:], module(x)[0][:, 0, 4:])


WINDOWS = [
    ("conv", Conv1d(data(4, 3, 2), padding="same", stride=2)),
    ("pool", Pool("max", 2, 1)),
    ("rnn", lstm(4, 5, bidirectional=True)),
]


@pytest.mark.parametrize("ends", ["all", "final", "mean", "last"])
@pytest.mark.parametrize("windows", [False, True])
def test_lengths_give_what_a_sequence_gives_by_itself(ends: str, windows: bool) -> None:
    start = WINDOWS if windows else [("norm", LayerNorm(data(3)))]
    end: dict[str, list[Any]] = {
        "all": [],
        "final": [("final", FinalState(lstm(10 if windows else 3, 2, bidirectional=True)))],
        "mean": [("mean", GlobalPool("average"))],
        "last": [("last", LastStep())],
    }
    model = Sequential([*start, *end[ends]])
    lengths = np.array([6, 9, 4, 9, 6])
    x = data(5, 9, 3)
    x[np.arange(9) >= lengths[:, None]] = np.nan
    got = model(x, lengths)
    for row, n in enumerate(lengths):
        alone = model(x[row : row + 1, :n])[0]
        if got.ndim == 3:
            np.testing.assert_allclose(got[row, : len(alone)], alone, rtol=1e-12, atol=1e-14)
            assert not got[row, len(alone) :].any()
        else:
            np.testing.assert_allclose(got[row], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_masked_steps_change_no_state(bidirectional: bool) -> None:
    module = lstm(3, 4, bidirectional=bidirectional)
    x = data(3, 7, 3)
    mask = np.array([[0, 0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], bool)
    x[~mask] = -1
    y = Sequential([Mask(-1), module])(x)
    final = Sequential([Mask(-1), FinalState(module)])(x)
    for row, valid in enumerate(mask):
        if not valid.any():
            assert not y[row].any() and not final[row].any()
            continue
        alone, (h_n, _) = module(x[row, valid])
        np.testing.assert_allclose(y[row, valid], alone, atol=1e-14)
        np.testing.assert_allclose(final[row], h_n.reshape(-1), atol=1e-14)
        for half, steps_ in ((slice(0, 4), range(7)), (slice(4, 8), range(6, -1, -1))):
            before = np.zeros(4)
            for t in steps_ if bidirectional or half.start == 0 else ():
                if not valid[t]:
                    np.testing.assert_array_equal(y[row, t, half], before)
                before = y[row, t, half]


def test_a_mask_does_not_reach_a_window() -> None:
    model = Sequential([Mask(), Flatten()])
    with pytest.raises(ValueError, match="step '1': masked steps come in"):
        model(data(2, 3, 4))


def test_predict_in_batches() -> None:
    model = tagger()
    x, lengths = data(7, 6, 3), np.array([6, 1, 2, 3, 4, 5, 6])
    seen: list[Any] = []
    y = model.predict(x, lengths, batch_size=3, progress=lambda *a: seen.append(a))
    if bits_promised():
        np.testing.assert_array_equal(y, model(x, lengths))
    np.testing.assert_allclose(y, model(x, lengths), rtol=1e-14, atol=1e-14)
    assert seen == [(3, 7), (6, 7), (7, 7)]
    assert model.predict(x[:0]).shape == (0, 6, 2)
    windows = Sequential([Conv1d(data(4, 3, 2)), lstm(4, 5)])
    x[np.arange(6) >= lengths[:, None]] = 0
    lengths[1] = 2
    np.testing.assert_allclose(
        windows.predict(x, lengths, batch_size=2), windows(x, lengths), rtol=1e-14, atol=1e-14
    )


@pytest.mark.slow
def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    tagger().predict(data(4, 6, 3), batch_size=2, progress=True)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [None, 3])
def test_stream(batch_size: int | None) -> None:
    model = Sequential(
        [
            ("in", linear(3, 4)),
            ("act", Activation("relu")),
            ("one", lstm(4, 5)),
            ("two", lstm(5, 2, num_layers=2)),
            ("both", Merge(), ["one", "two"]),
            ("final", FinalState(lstm(7, 3))),
            ("out", linear(3, 2)),
        ]
    )
    x = data(3, 6, 3)
    stream = model.stream(batch_size)
    block = x[0] if batch_size is None else x.swapaxes(0, 1)
    ys = [stream.step(x_t) for x_t in block[:2]] + list(stream.run(block[2:]))
    for t in range(6):
        want = model(x[:, : t + 1])
        np.testing.assert_allclose(ys[t], want[0] if batch_size is None else want, atol=1e-14)
    state = stream.state
    again = stream.step(block[0])
    stream.state = state
    np.testing.assert_array_equal(stream.step(block[0]), again)
    stream.reset()
    np.testing.assert_array_equal(stream.step(block[0]), ys[0])
    with pytest.raises(ValueError, match="expected 2 rows"):
        model.stream(2).step(data(3, 3))


def test_a_stream_of_the_last_step() -> None:
    model = Sequential([("rnn", lstm(3, 4)), ("last", LastStep()), ("head", linear(4, 2))])
    x, stream = data(2, 6, 3), model.stream(2)
    for t in range(6):
        np.testing.assert_allclose(stream.step(x[:, t]), model(x[:, : t + 1]), atol=1e-14)


def test_a_stream_that_refuses_stays_as_it_was() -> None:
    """An error names the step; a state is set in all modules or in none."""
    model = Sequential([("one", lstm(3, 4)), ("two", lstm(4, 5))])
    x, stream = data(2, 6, 3), model.stream(2)
    stream.step(x[:, 0])
    before = stream.state
    with pytest.raises(ValueError, match="step 'one': x_t has shape"):
        stream.step(data(2, 4))
    other = {name: tuple(a + 1 for a in state) for name, state in before.items()}
    with pytest.raises(ValueError, match="state is of one, expected one, two"):
        stream.state = {"one": other["one"]}
    with pytest.raises(ValueError):
        stream.state = {"one": other["one"], "two": other["one"]}  # of 4 units, not 5
    for name, state in stream.state.items():
        for a, b in zip(state, before[name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_reversed_steps_take_their_mask_along() -> None:
    """Masked steps are left out wherever they are; behind Reverse they are elsewhere."""
    x = data(3, 7, 3)
    x[0, 4:], x[1, :2], x[2, [0, 3, 6]] = -1, -1, -1
    rnn = lstm(3, 4)
    for keep, turned in ((False, True), (True, False)):
        y = Sequential([Mask(-1), Reverse(keep_mask=keep), FinalState(rnn)])(x)
        for row, found in zip(x, y):
            valid = (row != -1).any(-1)
            zeroed = np.where(valid[:, None], row, 0)
            taken = zeroed[::-1][valid[::-1] if turned else valid]
            np.testing.assert_allclose(found, rnn(taken)[1][0][0], atol=1e-14)


def test_what_can_not_stream_says_so() -> None:
    model = Sequential(
        [
            ("a", Conv1d(data(3, 3, 2))),
            ("b", lstm(3, 4, bidirectional=True)),
            ("c", Activation("tanh")),
        ]
    )
    with pytest.raises(ValueError, match="can't stream: a, b take more"):
        model.stream()


def test_files_and_copies(tmp_path: Path) -> None:
    model = Sequential(
        [
            ("conv", Conv1d(data(3, 3, 2), data(3), 2, (1, 0), 2)),
            ("pool", Pool("average", 2, 1, "same", True)),
            ("rnn", lstm(3, 4, bidirectional=True)),
            ("merge", MergeDirections("add")),
            ("norm.al", BatchNorm(data(4), data(4) ** 2, bias=data(4), eps=0.1)),
            ("turned", Reverse()),
            ("acts", Activation("elu", 0.5)),
            ("end", Merge("add"), ["acts", "norm.al"]),
            ("final", FinalState(lstm(4, 3))),
            ("rest", Repeat(2)),
            ("axes", Transpose()),
        ],
        input_shape=(None, 3),
    )
    x = data(2, 9, 3)
    want = model(x)
    cylstm.save(model, tmp_path / "model.safetensors")
    for again in (cylstm.load(tmp_path / "model.safetensors"), pickle.loads(pickle.dumps(model))):
        assert isinstance(again, Sequential)
        np.testing.assert_array_equal(again(x), want)
        assert repr(again) == repr(model) and list(again.layers) == list(model.layers)


def test_table() -> None:
    layers = [("rnn", FinalState(LSTM(8, 32, 2, batch_first=True))), ("head", Linear(32, 3))]
    assert repr(Sequential(layers)).splitlines() == [
        "step   layer                       output     weights",
        "-----------------------------------------------------",
        "input                              (B, T, 8)",
        "rnn    FinalState(LSTM(8, 32, 2))  (B, 32)     13,824",
        "head   Linear(32, 3)               (B, 3)          99",
    ]


def test_table_of_ids() -> None:
    layers: list[Any] = [("ids", cylstm.Embedding(11, 4)), ("rnn", LSTM(4, 5, batch_first=True))]
    layers += [("last", LastStep()), ("again", Repeat(3)), ("turned", Transpose())]
    rows = repr(Sequential(layers, input_shape=(None,))).splitlines()[2:]
    shapes = [row[row.index("(B") : row.rindex(")") + 1] for row in rows]
    assert shapes == ["(B, T)", "(B, T, 4)", "(B, T, 5)", "(B, 5)", "(B, 3, 5)", "(B, 5, 3)"]


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["layers"][0]["config"].pop("hidden_size"), "a: missing: hidden_size"),
        (lambda c: c["layers"][0]["config"].update(num_layers=10**9), "a has too few tensors"),
        (lambda c: c["layers"][0].update({"class": "Odd"}), "class is 'Odd', expected"),
        (lambda c: c["layers"][0].pop("final"), "not that of a Sequential: 'final'"),
        (lambda c: c["layers"].__setitem__(0, "a"), "not that of a Sequential|string indices"),
        (lambda c: c["layers"].pop(), "tensors of no layer: b"),
        (lambda c: c.pop("input_shape"), "missing: input_shape"),
    ],
)
def test_configurations_that_lie(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    cylstm.save(Sequential([("a", lstm(3, 4)), ("b", linear(4, 2))]), path)
    with safetensors.safe_open(path, framework="numpy") as opened:
        metadata = dict(opened.metadata())
    config = json.loads(metadata["cylstm.config"])
    change(config)
    metadata["cylstm.config"] = json.dumps(config)
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata)
    with pytest.raises(ValueError, match=f"model.safetensors.*({message})"):
        cylstm.load(path)


@pytest.mark.parametrize(
    "layers, message",
    [
        ([], "expected at least one layer"),
        ([("a", Flatten()), ("a", Flatten())], "'a' is taken"),
        ([("input", Flatten())], "'input' is taken"),
        ([("a", Flatten(), "b")], "'a' takes 'b', not known yet"),
        ([("a", Flatten(), ["input", "input"])], "step 'a': 2 inputs, of which only steps.Merge"),
        ([("a", Merge("add"), [])], "step 'a': 0 inputs"),
        ([LSTM(3, 4)], "step '0' is not batch-first"),
        ([lstm(3, 4), lstm(3, 4)], "step '1': 4 features come in, expected 3"),
        ([FinalState(lstm(3, 4)), lstm(4, 4)], "step '1': its input is .* expected .B, T, F."),
        ([lstm(3, 4), Linear(4, 4)], "dtypes differ"),
        ([lstm(3, 4), Repeat(2)], "step '1': 2 axes beside the batch come in, expected one"),
        (
            [lstm(3, 4), LastStep(), ("m", Merge(), ["1", "0"])],
            "step 'm': shapes .* expected them to differ in features only",
        ),
        ([lstm(3, 4), ("x", lstm(4, 4)), ("y", lstm(4, 4), "0")], "nothing takes what x gives"),
        (
            [lstm(3, 4), ("m", Merge("add"), ["0", "input"])],
            "step 'm': shapes .* come in, expected equal",
        ),
    ],
)
def test_bad_chains(layers: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sequential(layers)


def test_bad_layers_and_inputs() -> None:
    with pytest.raises(TypeError, match="step '1' is an int, expected a module"):
        Sequential([Flatten(), 3])
    model = Sequential([("rnn", lstm(3, 4))], input_shape=(None, 3))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 4\), expected \(B, T, 3\)"):
        model(data(2, 5, 4))
    with pytest.raises(TypeError, match="step 'rnn': x is an array of float32"):
        model(data(2, 5, 3).astype(np.float32))
    with pytest.raises(ValueError, match="lengths are .* expected 1 to 5"):
        model(data(2, 5, 3), [0, 5])
    with pytest.raises(ValueError, match="2 inputs, of which only"):
        Sequential([lstm(3, 4), ("a", Activation("relu"), ["0", "input"])])(data(2, 5, 3))
    with pytest.raises(ValueError, match="alpha is 1, but relu has no parameter"):
        Activation("relu", 1)
    for wrong in (data(3, 2), data(0, 2, 3)):
        with pytest.raises(ValueError, match="weight has shape"):
            Conv1d(wrong)
    for step in (Conv1d(data(3, 2, 2)), Pool("max", 2)):
        with pytest.raises(ValueError, match=r"step '0': its input has shape \(5, 2\), expected"):
            Sequential([step])(data(5, 2))
    with pytest.raises(ValueError, match="step '0': its input has 3 features, expected 2"):
        Sequential([Conv1d(data(3, 2, 2))])(data(1, 5, 3))
    assert Sequential([Conv1d(data(3, 2, 2))]).predict(data(0, 5, 2)).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="expected one size"):
        BatchNorm(data(3), data(4))


def test_arrays_can_not_be_written_to() -> None:
    weight = data(3, 3, 2)
    step = Conv1d(weight)
    weight[:] = 0
    assert step.state_dict()["weight"].any()
    with pytest.raises(ValueError):
        step.state_dict()["weight"][:] = 0
    with pytest.raises(ValueError):
        step.state_dict()["weight"].flags.writeable = True


@pytest.mark.parametrize("cell", [cylstm.GRU, cylstm.RNN])
def test_ids_and_other_cells(cell: Any, tmp_path: Path) -> None:
    rnn = cell(4, 5, num_layers=2, batch_first=True, dtype="float64", seed=1)
    table = cylstm.Embedding(11, 4, dtype="float64", seed=2)
    model = Sequential([("ids", table), ("rnn", FinalState(rnn)), ("head", linear(5, 2))])
    ids, lengths = rng.integers(0, 11, (3, 7)), np.array([7, 1, 4])
    want = [model["head"](rnn(table(row[:n]))[1][-1]) for row, n in zip(ids, lengths)]
    np.testing.assert_allclose(model(ids, lengths), want, atol=1e-14)
    cylstm.save(model, tmp_path / "model.safetensors")
    again = cylstm.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again(ids), model(ids))
    stream = model.stream(3)
    for t in range(7):
        y = stream.step(ids[:, t])
    np.testing.assert_allclose(y, model(ids), atol=1e-14)
