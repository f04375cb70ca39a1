"""Files that Keras saved, and live models, against Keras itself: layers, stacks, whole models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import cylstm
from cylstm import from_keras
from cylstm.cli import main
from helpers import seeds

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

rng = np.random.default_rng(1)


def randomised(model: Any) -> Any:
    """Biases and moving statistics that are not zero."""
    for layer in model.layers:
        layer.set_weights(
            [w + rng.uniform(0.05, 0.5, w.shape).astype(w.dtype) for w in layer.get_weights()]
        )
    return model


def as_keras(model: Any, folder: Path) -> Any:
    model.save(folder / "m.keras")
    return cylstm.load(folder / "m.keras")


def as_legacy(model: Any, folder: Path) -> Any:
    model.save(folder / "m.h5")
    return cylstm.load(folder / "m.h5")


def as_weights(model: Any, folder: Path) -> Any:
    """Weights, with the configuration beside them."""
    model.save_weights(folder / "m.weights.h5")
    (folder / "m.json").write_text(model.to_json())
    return cylstm.load(folder / "m.weights.h5")


def as_legacy_weights(model: Any, folder: Path) -> Any:
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(folder / "w.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
        file.attrs["keras_version"] = keras.__version__
    return cylstm.load(folder / "w.h5", config=json.loads(model.to_json()))


def as_live(model: Any, folder: Path) -> Any:
    return from_keras(model)


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "keras": as_keras,
    "legacy": as_legacy,
    "weights": as_weights,
    "legacy weights": as_legacy_weights,
    "live": as_live,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def result(ours: Any, x: Any, sequences: bool) -> Any:
    """What Keras' model gives, of a module or a Sequential."""
    if isinstance(ours, cylstm.Sequential):
        return ours(x)
    y, states = ours(x)
    h_n = states[0] if isinstance(states, tuple) else states
    directions = 1 + ours.bidirectional
    return y if sequences else np.concatenate(h_n[-directions:], -1)


def agrees(model: Any, ours: Any, x: Any, sequences: bool = False, atol: float = 1e-5) -> None:
    want = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(result(ours, x, sequences), want, rtol=0, atol=atol)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------- random stacks

CELLS = ["LSTM", "GRU", "SimpleRNN"]


def random_stack(seed: int) -> tuple[Any, Any]:
    """A model of one to four recurrent layers, now and then with something between them."""
    draw = random.Random(seed)
    keras.utils.set_random_seed(seed)
    inputs = draw.choice([1, 3, 17])
    model = keras.Sequential([keras.Input((None, inputs))])
    cell = draw.choice(CELLS)
    depth = draw.choice([1, 1, 2, 3, 4])
    same = draw.random() < 0.5
    units, both = draw.choice([1, 4, 7, 17]), draw.random() < 0.4
    for number in range(depth):
        if not same:
            units, both, cell = draw.choice([1, 4, 7, 17]), draw.random() < 0.4, draw.choice(CELLS)
        more: dict[str, Any] = {"activation": draw.choice(["tanh", "tanh", "softsign", "sigmoid"])}
        if cell != "SimpleRNN":
            more["recurrent_activation"] = draw.choice(["sigmoid", "sigmoid", "hard_sigmoid"])
        if cell == "GRU":
            more["reset_after"] = draw.random() < 0.5
        layer = getattr(layers, cell)(
            units,
            return_sequences=number < depth - 1 or draw.random() < 0.5,
            use_bias=draw.random() < 0.8,
            go_backwards=not both and draw.random() < 0.15,
            unroll=draw.random() < 0.2,
            dropout=draw.choice([0, 0.3]),
            **more,
        )
        if both:
            layer = layers.Bidirectional(
                layer, merge_mode=draw.choice(["concat", "concat", "sum", "mul", "ave"])
            )
        model.add(layer)
        if number < depth - 1 and draw.random() < 0.3:
            model.add(draw.choice([layers.Dropout(0.3), layers.BatchNormalization()]))
    return randomised(model), floats(3, draw.choice([1, 6, 11]), inputs)


@pytest.mark.parametrize("seed", seeds(100))
def test_random_stacks(seed: int, tmp_path: Path) -> None:
    model, x = random_stack(seed)
    ours = list(WAYS.values())[seed % len(WAYS)](model, tmp_path)
    last = model.layers[-1]
    sequences = getattr(last, "return_sequences", False)
    agrees(model, ours, x, sequences)


# ------------------------------------------------------------------- one layer, one module


@ways
def test_a_stack_is_one_module(way: Any, tmp_path: Path) -> None:
    model = randomised(
        keras.Sequential(
            [
                keras.Input((None, 3)),
                layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
                layers.Dropout(0.5),
                layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            ]
        )
    )
    ours = way(model, tmp_path)
    assert isinstance(ours, cylstm.LSTM) and ours.num_layers == 2 and ours.batch_first
    agrees(model, ours, floats(2, 5, 3), True)


def test_parts_of_a_stack(tmp_path: Path) -> None:
    model = randomised(
        keras.Sequential(
            [
                keras.Input((None, 3)),
                layers.LSTM(4, return_sequences=True, name="a"),
                layers.LSTM(4, name="b"),
            ]
        )
    )
    model.save(tmp_path / "m.keras")
    found = cylstm.inspect(tmp_path / "m.keras")
    assert [layer.path for layer in found.layers] == ["a+b"]
    x = floats(2, 5, 3)
    y, _ = cylstm.load(tmp_path / "m.keras", "a")(x)
    np.testing.assert_allclose(y, keras.ops.convert_to_numpy(model.layers[0](x)), rtol=0, atol=1e-6)
    whole = cylstm.load(tmp_path / "m.keras")
    np.testing.assert_array_equal(cylstm.load(tmp_path / "m.keras", "b")(y)[0], whole(x)[0])


def test_a_wrapped_cell(tmp_path: Path) -> None:
    model = randomised(
        keras.Sequential([keras.Input((None, 3)), layers.RNN(layers.LSTMCell(4), name="r")])
    )
    for way in (as_keras, as_legacy, as_live):
        agrees(model, way(model, tmp_path), floats(2, 5, 3))


def test_a_live_layer() -> None:
    layer = layers.LSTM(4)
    x = floats(2, 5, 3)
    want = layer(x)
    _, (h_n, _) = from_keras(layer)(x)
    np.testing.assert_allclose(h_n[0], keras.ops.convert_to_numpy(want), rtol=0, atol=1e-6)


def test_float64_stays(tmp_path: Path) -> None:
    model = randomised(
        keras.Sequential([keras.Input((None, 3), dtype="float64"), layers.LSTM(4, dtype="float64")])
    )
    ours = as_keras(model, tmp_path)
    assert ours.dtype == np.float64
    agrees(model, ours, rng.standard_normal((2, 5, 3)), atol=1e-12)


# ------------------------------------------------------------------- weights alone


def test_weights_alone_ask(tmp_path: Path) -> None:
    model = randomised(keras.Sequential([keras.Input((None, 3)), layers.LSTM(4)]))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="'hard_sigmoid', or the later one, .*'sigmoid'"):
        cylstm.load(tmp_path / "m.weights.h5")
    ours = cylstm.load(tmp_path / "m.weights.h5", recurrent_activation="sigmoid")
    agrees(model, ours, floats(2, 5, 3))
    (tmp_path / "m.json").write_text(model.to_json())
    with pytest.raises(ValueError, match="its configuration says"):
        cylstm.load(tmp_path / "m.weights.h5", recurrent_activation="sigmoid")


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_weights_alone_are_told_by_their_shapes(
    kind: str, bias: bool, both: bool, tmp_path: Path
) -> None:
    layer = getattr(layers, kind)(4, use_bias=bias, return_sequences=True)
    layer = layers.Bidirectional(layer) if both else layer
    model = randomised(keras.Sequential([keras.Input((None, 3)), layer]))
    chosen = {} if kind == "SimpleRNN" else {"recurrent_activation": "sigmoid"}
    model.save_weights(tmp_path / "m.weights.h5")
    as_legacy_weights(model, tmp_path)
    for name in ("m.weights.h5", "w.h5"):
        if kind == "GRU" and not bias:
            with pytest.raises(ValueError, match="the file does not say reset_after"):
                cylstm.load(tmp_path / name, **chosen)
        else:
            agrees(model, cylstm.load(tmp_path / name, **chosen), floats(2, 5, 3), True)


# ------------------------------------------------------------------- whole models


def chain(*parts: Any, shape: Any = (12, 3)) -> Callable[[], Any]:
    return lambda: keras.Sequential([keras.Input(shape), *(part() for part in parts)])


def branches() -> Any:
    x = keras.Input((12, 3))
    a = layers.LSTM(4, return_sequences=True)(x)
    b = layers.Bidirectional(layers.LSTM(2, return_sequences=True), merge_mode="ave")(a)
    c = layers.Concatenate()([a, b, x])
    d = layers.Dense(4, activation="relu")(c)
    e = layers.Maximum()([layers.Average()([layers.Add()([d, a]), a]), layers.Multiply()([d, a])])
    return keras.Model(x, layers.GlobalAveragePooling1D()(e))


def convolutions() -> Any:
    return keras.Sequential(
        [
            keras.Input((23, 4)),
            layers.Conv1D(6, 3, padding="same", strides=2, activation="elu"),
            layers.BatchNormalization(),
            layers.Conv1D(6, 2, padding="causal", dilation_rate=2, groups=2),
            layers.LeakyReLU(negative_slope=0.1),
            layers.AveragePooling1D(2, padding="same"),  # no padding: with torch Keras copies rows
            layers.LayerNormalization(),
            layers.MaxPooling1D(2, padding="same"),
            layers.LSTM(5, return_sequences=True),
            layers.TimeDistributed(layers.Dense(3, activation="softmax")),
            layers.Flatten(),
            layers.Dense(2, activation="sigmoid"),
        ]
    )


def nested() -> Any:
    """Models in a model: two deep, one of them functional, with names that occur twice."""
    inner = keras.Sequential(
        [
            keras.Input((12, 4), name="first"),
            layers.Bidirectional(layers.GRU(3, return_sequences=True), name="rnn"),
            layers.BatchNormalization(name="norm"),
        ],
        name="rnn",
    )
    x, y = keras.Input((12, 3), name="x"), keras.Input((12, 4), name="y")
    z = layers.Concatenate()([inner(y), layers.Dense(2, name="dense")(x)])
    two = keras.Model([x, y], layers.LSTM(5, return_sequences=True, name="lstm")(z), name="two")
    start = keras.Input((12, 3))
    wide = keras.Sequential([layers.Dense(4, "tanh", name="dense")], name="wide")(start)
    end = layers.LSTM(4, name="lstm")(two([start, wide]))
    return keras.Model(start, layers.Dense(2, name="norm")(end))


WHOLE: dict[str, tuple[Callable[[], Any], Any]] = {
    "dense": (chain(lambda: layers.LSTM(4), lambda: layers.Dense(2, "softmax")), (12, 3)),
    "branches": (branches, (12, 3)),
    "convolutions": (convolutions, (23, 4)),
    "nested": (nested, (12, 3)),
    "a model first": (
        chain(
            lambda: keras.Sequential([keras.Input((12, 3)), layers.LSTM(4, return_sequences=True)]),
            lambda: layers.Permute((2, 1)),
            lambda: keras.Sequential([layers.Dense(3), layers.LayerNormalization()]),
            lambda: layers.LSTM(2),
        ),
        (12, 3),
    ),
    "autoencoder": (
        chain(
            lambda: layers.LSTM(4),
            lambda: layers.RepeatVector(12),
            lambda: layers.LSTM(4, return_sequences=True),
            lambda: layers.TimeDistributed(layers.Dense(3)),
        ),
        (12, 3),
    ),
    "backwards": (
        chain(
            lambda: layers.LSTM(4, go_backwards=True, return_sequences=True),
            lambda: layers.LSTM(3),
        ),
        (12, 3),
    ),
    "what does nothing": (
        chain(
            lambda: layers.TimeDistributed(layers.Dropout(0.2)),
            lambda: layers.Permute((1, 2)),
            lambda: layers.LSTM(4),
            lambda: layers.Flatten(),
        ),
        (12, 3),
    ),
    "pools": (
        chain(lambda: layers.LSTM(4, return_sequences=True), lambda: layers.GlobalMaxPooling1D()),
        (12, 3),
    ),
    "acts": (
        chain(
            *(lambda name=name: layers.Dense(5, name) for name in (
                "tanh", "relu6", "selu", "gelu", "silu", "softplus", "softsign", "exponential",
                "log_softmax", "leaky_relu", "hard_sigmoid",
            )),
            lambda: layers.ReLU(6),
            lambda: layers.ELU(0.5),
            lambda: layers.Softmax(),
            lambda: layers.Activation("swish"),
            shape=(12, 3),
        ),
        (12, 3),
    ),
}  # fmt: skip


@ways
@pytest.mark.parametrize("name", WHOLE)
def test_whole_models(name: str, way: Any, tmp_path: Path) -> None:
    build, shape = WHOLE[name]
    model = randomised(build())
    ours = way(model, tmp_path)
    assert isinstance(ours, cylstm.Sequential)
    agrees(model, ours, floats(3, *shape))


MASKS = {
    "masking": chain(
        lambda: layers.Masking(0.5),
        lambda: layers.LSTM(4, return_sequences=True),
        lambda: layers.Dense(3, "tanh"),
        lambda: layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        lambda: layers.GlobalAveragePooling1D(),
    ),
    "all steps": chain(
        lambda: layers.Masking(0.5),
        lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        lambda: layers.LSTM(3, return_sequences=True),
    ),
    "final": chain(lambda: layers.Masking(0.5), lambda: layers.Bidirectional(layers.LSTM(4))),
    "backwards": chain(lambda: layers.Masking(0.5), lambda: layers.LSTM(4, go_backwards=True)),
    "backwards, all steps": chain(  # whose mask Keras hands on as it was
        lambda: layers.Masking(0.5),
        lambda: layers.GRU(4, go_backwards=True, return_sequences=True),
        lambda: layers.LSTM(3, return_sequences=True),
    ),
    "zeros": chain(
        lambda: layers.Masking(0.5),
        lambda: layers.LSTM(4, return_sequences=True, zero_output_for_mask=True),
        lambda: layers.LSTM(3),
    ),
}


def test_parts_of_nested_models(tmp_path: Path) -> None:
    """Each by its path, and layers on both sides of a model's edge as one module."""
    encoder = keras.Sequential([keras.Input((None, 3)), layers.LSTM(4, return_sequences=True)])
    encoder.name = "encoder"
    model = keras.Sequential([keras.Input((None, 3)), encoder, layers.LSTM(4, name="second")])
    randomised(model).save(tmp_path / "m.keras")
    (stack,) = cylstm.inspect(tmp_path / "m.keras").layers
    first = encoder.layers[0].name
    assert [part.path for part in stack.parts] == [f"encoder.{first}", "second"]
    ours = cylstm.load(tmp_path / "m.keras")
    assert isinstance(ours, cylstm.LSTM) and ours.num_layers == 2
    agrees(model, ours, floats(2, 5, 3))
    alone: Any = cylstm.load(tmp_path / "m.keras", first)
    x = floats(2, 5, 3)
    want = keras.ops.convert_to_numpy(encoder(x))
    np.testing.assert_allclose(alone(x)[0], want, rtol=0, atol=1e-5)


@keras.saving.register_keras_serializable("ours")
class LSTM(layers.LSTM):  # type: ignore[misc]
    """Of another meaning than Keras' own."""

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        return super().call(2 * sequences, initial_state, mask, training)


def _shared(x: Any) -> Any:
    layer = layers.LSTM(3, return_sequences=True)
    return layer(layer(x))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("build", "why"),
    [
        (_shared, "used more than once"),
        (lambda x: layers.LSTM(3)(x * 2), "connected in a way"),
        (lambda x: layers.LSTM(3)(x) * 2, "connected in a way"),
        (lambda x: keras.ops.maximum(layers.LSTM(3)(x), 0.0), "connected in a way"),
        (lambda x: keras.ops.average(layers.LSTM(3, return_sequences=True)(x), 1), "verage"),
        (lambda x: layers.LSTM(3, return_state=True)(x)[2], "its output is a state"),
        (lambda x: layers.LSTM(3, return_state=True)(layers.Dense(2)(x))[2], "is a state"),
        (lambda x: layers.LSTM(3)(x, training=True), "connected in a way"),
        (lambda x: LSTM(3)(x), "ours>LSTM"),
        (lambda x: layers.Bidirectional(LSTM(3))(x), "ours>LSTM"),
    ],
    ids="shared times timed max mean c c-of-more training ours both-ways".split(),
)
def test_what_only_looks_like_layers_is_refused(
    build: Any, why: str, way: Any, tmp_path: Path
) -> None:
    x = keras.Input((5, 3))
    with pytest.raises(ValueError, match=why):
        way(keras.Model(x, build(x)), tmp_path)


def test_a_live_layer_of_another_class_is_refused() -> None:
    layer = LSTM(3)
    layer.build((None, 5, 3))
    with pytest.raises(ValueError, match="no recurrent layer|no such step"):
        from_keras(layer)


def test_a_model_used_twice_is_refused(tmp_path: Path) -> None:
    tower = keras.Sequential([keras.Input((6, 3)), layers.LSTM(3, return_sequences=True)])
    tower.name = "tower"
    x = keras.Input((6, 3))
    model = keras.Model(x, layers.LSTM(4)(layers.Dense(2)(tower(tower(x)))))
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="tower is used more than once"):
        cylstm.load(tmp_path / "m.keras")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("where", ["post", "pre", "within"])
def test_masked_steps(name: str, where: str, tmp_path: Path) -> None:
    model = randomised(MASKS[name]())
    x = floats(3, 12, 3)
    for row, n in zip(x, (12, 5, 1)):
        masked = {"post": range(n, 12), "pre": range(12 - n), "within": range(n % 3, 12, 3)}
        row[list(masked[where])] = 0.5
    agrees(model, as_keras(model, tmp_path), x)


@pytest.mark.parametrize("mask_zero", [False, True])
def test_ids(mask_zero: bool, tmp_path: Path) -> None:
    model = randomised(
        keras.Sequential(
            [
                keras.Input((12,), dtype="int32"),
                layers.Embedding(20, 5, mask_zero=mask_zero),
                layers.SpatialDropout1D(0.2),
                layers.Bidirectional(layers.LSTM(4)),
                layers.Dense(2),
            ]
        )
    )
    ids = rng.integers(1, 20, (3, 12)).astype(np.int32)
    ids[1, :5] = 0
    for way in WAYS.values():
        agrees(model, way(model, tmp_path), ids)


def test_a_whole_model_in_float64(tmp_path: Path) -> None:
    parts = [layers.LSTM(5, dtype="float64"), layers.Dense(2, dtype="float64")]
    model = randomised(keras.Sequential([keras.Input((8, 4), dtype="float64"), *parts]))
    for way in WAYS.values():
        ours: Any = way(model, tmp_path)
        assert ours.dtype == np.float64
        agrees(model, ours, rng.standard_normal((3, 8, 4)))


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "part, why",
    [
        (lambda: layers.UpSampling1D(2), "UpSampling1D.*no such step"),
        (lambda: layers.Reshape((36,)), "Reshape"),
        (lambda: layers.Dense(3, activation="mish"), "activation 'mish'"),
        (lambda: layers.BatchNormalization(axis=1), "axis 1"),
        (lambda: layers.PReLU(), "PReLU"),
        (lambda: layers.ReLU(max_value=3), "max_value, negative_slope or threshold"),
        (lambda: layers.ReLU(negative_slope=0.1), "max_value, negative_slope or threshold"),
        (lambda: layers.Softmax(axis=1), "axis 1"),
        (lambda: layers.TimeDistributed(layers.Reshape((3,))), "TimeDistributed of a Reshape"),
        (lambda: layers.MaxPooling1D(2, data_format="channels_first"), "data_format"),
        (
            lambda: layers.LSTM(3, activation="selu", return_sequences=True),
            "activations.* is 'selu'",
        ),
    ],
)
def test_what_is_unsupported_is_listed(part: Any, why: str, tmp_path: Path) -> None:
    def two() -> Any:
        return layers.LSTM(3, return_sequences=True)

    model = keras.Sequential(
        [keras.Input((12, 3)), two(), part(), layers.Flatten(), layers.Reshape((2, -1)), two()]
    )
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=f"no step for: .*{why}.*reshape.* alone"):
        cylstm.load(tmp_path / "m.keras")


def test_a_whole_model_is_not_taken_apart_unasked(tmp_path: Path, capsys: Any) -> None:
    parts = [layers.LSTM(3, return_sequences=True, name="rnn"), layers.PReLU()]
    model = randomised(keras.Sequential([keras.Input((12, 3)), *parts]))
    model.save(tmp_path / "m.keras")
    assert "\nas a whole: does not load: p_re_lu" in repr(cylstm.inspect(tmp_path / "m.keras"))
    assert main(["inspect", str(tmp_path / "m.keras"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] is False
    with pytest.raises(ValueError, match=r"PReLU.*load\(path, inside\) has its 'rnn' alone"):
        cylstm.load(tmp_path / "m.keras")
    x = floats(2, 12, 3)
    want = keras.ops.convert_to_numpy(model.layers[0](x))
    alone: Any = cylstm.load(tmp_path / "m.keras", "rnn")
    np.testing.assert_allclose(alone(x)[0], want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("last", [layers.Flatten, layers.GlobalMaxPooling1D])
def test_channels_first_is_refused(last: Any, tmp_path: Path) -> None:
    rnn = layers.LSTM(3, return_sequences=True)
    parts = [keras.Input((12, 3)), rnn, last(data_format="channels_first")]
    keras.Sequential(parts).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="data_format 'channels_first'"):
        cylstm.load(tmp_path / "m.keras")


def test_dropout_at_inference_is_refused(tmp_path: Path) -> None:
    """As Monte Carlo dropout calls it."""
    x = keras.Input((12, 3))
    y = layers.Dense(2)(layers.Dropout(0.5)(layers.LSTM(3)(x), training=True))
    keras.Model(x, y).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="connected in a way that can't be read"):
        cylstm.load(tmp_path / "m.keras")


def test_a_mask_behind_a_mask_is_refused(tmp_path: Path) -> None:
    """Keras forgets the first."""
    parts = [layers.Masking(1.0), layers.Dense(3), layers.Masking(0.0), layers.LSTM(3)]
    randomised(keras.Sequential([keras.Input((12, 3)), *parts])).save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Masking.*takes masked steps"):
        cylstm.load(tmp_path / "m.keras")


@pytest.mark.parametrize("name", ["leaky_relu", "linear", "relu", "hard_sigmoid", "softsign"])
def test_activations_in_cells(name: str, tmp_path: Path) -> None:
    """Their parameters are Keras', which are not ONNX's."""
    for layer in (
        layers.LSTM(4, activation=name, return_sequences=True),
        layers.GRU(4, activation=name, return_sequences=True),
        layers.SimpleRNN(4, activation=name, return_sequences=True),
        layers.LSTM(4, recurrent_activation=name, return_sequences=True),
    ):
        model = randomised(keras.Sequential([keras.Input((4, 3)), layer]))
        agrees(model, as_keras(model, tmp_path), floats(2, 4, 3), True)
