"""Keras files written by hand: old layouts, and files that are broken or lie.

What Keras itself saves is in tests/oracles/test_keras_files.py.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm

h5py = pytest.importorskip("h5py")

rng = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    stored: dict[str, dict[str, Any]],
    config: Any = None,
    version: str = "2.2.4",
    inside: bool = True,
) -> Path:
    """A legacy file: {layer: {name: array}}."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = version.encode()
        if config is not None:
            file.attrs["model_config"] = json.dumps(config).encode()
        held = file.create_group("model_weights") if inside else file
        held.attrs["layer_names"] = [name.encode() for name in stored]
        for name, arrays in stored.items():
            group = held.create_group(name)
            group.attrs["weight_names"] = [key.encode() for key in arrays]
            for key, array in arrays.items():
                group[key] = array
    return path


def sequential(*layers: tuple[str, dict[str, Any]], nested: bool = False) -> Any:
    entries = [{"class_name": kind, "config": config} for kind, config in layers]
    return {"class_name": "Sequential", "config": {"layers": entries} if nested else entries}


def lstm_config(**changes: Any) -> dict[str, Any]:
    config = {"name": "l", "units": 4, "activation": "tanh", "recurrent_activation": "sigmoid"}
    return {**config, "use_bias": True, "return_sequences": True, **changes}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def lstm_loop(x: Any, w: Any, u: Any, b: Any) -> Any:
    """Keras' equations; w (I, 4H) and u (H, 4H) with gates i, f, c, o."""
    h = c = np.zeros((len(x), u.shape[0]))
    ys = []
    for x_t in x.swapaxes(0, 1):
        i, f, g, o = np.split(x_t @ w + h @ u + b, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys, 1)


W, U, B, X = floats(3, 16), floats(4, 16), floats(16), floats(2, 6, 3)
WANT = lstm_loop(X.astype(float), W.astype(float), U.astype(float), B.astype(float))
PLAIN = {"l/kernel:0": W, "l/recurrent_kernel:0": U, "l/bias:0": B}


def agrees(module: Any) -> None:
    np.testing.assert_allclose(module(X)[0], WANT, rtol=0, atol=1e-6)


# ------------------------------------------------------------------- layouts


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("version", ["1.2.2", "2.2.4", "2.2.4-tf", "2.8.0", "3.1.0"])
def test_with_a_configuration(tmp_path: Path, nested: bool, version: str) -> None:
    config = sequential(("LSTM", lstm_config()), nested=nested)
    agrees(cylstm.load(write(tmp_path / "m.h5", {"l": PLAIN}, config, version)))


def test_configuration_beside_or_given(tmp_path: Path) -> None:
    config = sequential(("LSTM", lstm_config()))
    path = write(tmp_path / "m_weights.h5", {"l": PLAIN}, inside=False)
    agrees(cylstm.load(path, config=config))
    (tmp_path / "else.json").write_text(json.dumps(config))
    agrees(cylstm.load(path, config=tmp_path / "else.json"))
    with pytest.raises(ValueError, match="recurrent_activation"):
        cylstm.load(path)
    (tmp_path / "m.json").write_text(json.dumps({"rnn": 3}))  # somebody else's
    with pytest.raises(ValueError, match="recurrent_activation"):
        cylstm.load(path)
    (tmp_path / "m.json").write_text(json.dumps(config))
    agrees(cylstm.load(path))
    whole = write(tmp_path / "whole.h5", {"l": PLAIN}, config)
    with pytest.raises(ValueError, match="config was given, but the file has one"):
        cylstm.load(whole, config=config)


def test_keras_1_has_an_array_for_each_gate(tmp_path: Path) -> None:
    parts = {"W": np.split(W, 4, 1), "U": np.split(U, 4, 1), "b": np.split(B, 4)}
    where = {gate: number for number, gate in enumerate("ifco")}
    arrays = {f"l_{k}_{g}:0": parts[k][where[g]] for g in "icfo" for k in "WUb"}
    config = {"name": "l", "output_dim": 4, "inner_activation": "sigmoid", "activation": "tanh"}
    path = write(
        tmp_path / "m.h5", {"l": arrays}, sequential(("LSTM", config)), "1.2.2", inside=True
    )
    agrees(cylstm.load(path))
    alone = write(tmp_path / "w.h5", {"l": arrays}, None, "1.2.2", inside=False)
    agrees(cylstm.load(alone, recurrent_activation="sigmoid"))


def test_cudnn_weights(tmp_path: Path) -> None:
    """Each gate's matrix is cuDNN's, (H, I) in row-major order, in a block (I, H)."""
    two = np.stack([B - 0.5, np.full(16, 0.5, np.float32)])
    kernel = np.concatenate([b.T.reshape(3, 4) for b in np.split(W, 4, 1)], 1)
    recurrent = np.concatenate([b.T for b in np.split(U, 4, 1)], 1)
    arrays = {"l/kernel:0": kernel, "l/recurrent_kernel:0": recurrent, "l/bias:0": two.ravel()}
    agrees(cylstm.load(write(tmp_path / "w.h5", {"l": arrays}, None, inside=False)))
    config = sequential(("CuDNNLSTM", {"name": "l", "units": 4, "return_sequences": True}))
    agrees(cylstm.load(write(tmp_path / "m.h5", {"l": arrays}, config)))


def test_a_functional_model_of_keras_2(tmp_path: Path) -> None:
    dense = {"d/kernel:0": floats(4, 2), "d/bias:0": floats(2)}
    config = {
        "class_name": "Model",
        "config": {
            "layers": [
                {
                    "class_name": "InputLayer",
                    "name": "x",
                    "config": {"name": "x", "batch_input_shape": [None, None, 3]},
                    "inbound_nodes": [],
                },
                {
                    "class_name": "LSTM",
                    "name": "l",
                    "config": lstm_config(return_sequences=False),
                    "inbound_nodes": [[["x", 0, 0, {}]]],
                },
                {
                    "class_name": "Dense",
                    "name": "d",
                    "config": {"name": "d", "activation": "softmax"},
                    "inbound_nodes": [[["l", 0, 0, {}]]],
                },
            ],
            "input_layers": [["x", 0, 0]],
            "output_layers": [["d", 0, 0]],
        },
    }
    model = cylstm.load(write(tmp_path / "m.h5", {"x": {}, "l": PLAIN, "d": dense}, config))
    z = WANT[:, -1] @ dense["d/kernel:0"] + dense["d/bias:0"]
    want = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    np.testing.assert_allclose(model(X), want, atol=1e-6)
    agrees(cylstm.load(tmp_path / "m.h5", "l"))
    assert "d (Dense)" in repr(cylstm.inspect(tmp_path / "m.h5"))


def test_long_lists_of_names_are_split(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", {"l": PLAIN, "d": {}}, sequential(("LSTM", lstm_config())))
    with h5py.File(path, "a") as file:
        held = file["model_weights"]
        del held.attrs["layer_names"]
        held.attrs["layer_names0"], held.attrs["layer_names1"] = [b"l"], [b"d"]
    agrees(cylstm.load(path))


# ------------------------------------------------------------------- what is meant

HARD2 = "hard_sigmoid_keras2"


@pytest.mark.parametrize(
    "version, given, wanted",
    [
        ("1.2.2", "hard_sigmoid", HARD2),
        ("2.2.4", "hard_sigmoid", HARD2),
        ("2.2.4", None, HARD2),  # the default of then
        ("2.2.4-tf", "hard_sigmoid", HARD2),
        ("2.9.0", "hard_sigmoid", HARD2),
        ("2.9.0", None, None),
        ("3.0.0", "hard_sigmoid", "hard_sigmoid_keras3"),
        ("3.0.0", {"class_name": "function", "config": "hard_sigmoid"}, "hard_sigmoid_keras3"),
        ("3.0.0", None, None),
        ("2.2.4", "sigmoid", None),
    ],
)
def test_hard_sigmoid_is_that_of_the_version(
    tmp_path: Path, version: str, given: Any, wanted: Any
) -> None:
    config = lstm_config(recurrent_activation=given)
    if given is None:
        del config["recurrent_activation"]
    path = write(tmp_path / "m.h5", {"l": PLAIN}, sequential(("LSTM", config)), version)
    (layer,) = cylstm.inspect(path).layers
    found = layer.options.get("activations")
    assert found == ((wanted, "tanh", "tanh") if wanted else None)


def test_weights_alone_take_what_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "w.h5", {"l": PLAIN}, inside=False)
    message = "hard_sigmoid.*recurrent_activation='sigmoid'"
    with pytest.raises(ValueError, match=message):
        cylstm.load(path)
    assert "recurrent_activation" in repr(cylstm.inspect(path))
    with pytest.raises(ValueError, match="recurrent_activation is 'tan', but"):
        cylstm.load(path, recurrent_activation="tan")
    agrees(cylstm.load(path, recurrent_activation="sigmoid"))


def test_rows_that_follow_are_a_stack_and_stay_apart(tmp_path: Path) -> None:
    second = {"m/kernel:0": floats(4, 16), "m/recurrent_kernel:0": U, "m/bias:0": B}
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["l+m"]),
        ({"odd": {}}, ["l", "m"]),
        ({"dropout_1": {}}, ["l+m"]),
    ]
    for between, paths in cases:
        stored = {"l": PLAIN, **between, "m": second}
        path = write(tmp_path / "w.h5", stored, inside=False)
        found = cylstm.inspect(path)
        assert [layer.path for layer in found.layers] == paths
        agrees(cylstm.load(path, "l", recurrent_activation="sigmoid"))


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"go_backwards": True, "return_sequences": True}, "go_backwards"),
        ({"time_major": True}, "time_major"),
        ({"activation": "no such"}, "no such"),
        ({"activation": {"class_name": "Mine"}}, "its activation is"),
        ({"units": 5}, None),  # what counts is what the arrays are
    ],
)
def test_arguments_are_honoured_or_refused(tmp_path: Path, changes: Any, why: Any) -> None:
    path = write(tmp_path / "m.h5", {"l": PLAIN}, sequential(("LSTM", lstm_config(**changes))))
    if why is None:
        agrees(cylstm.load(path, "l"))
        return
    with pytest.raises(ValueError, match=why):
        cylstm.load(path, "l")


# ------------------------------------------------------------------- broken files


def test_truncated_at_every_length(tmp_path: Path) -> None:
    path = write(tmp_path / "m.h5", {"l": PLAIN}, sequential(("LSTM", lstm_config())))
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            cylstm.load(path)


def test_bytes_changed(tmp_path: Path) -> None:
    """Whatever a byte of names and configuration is, there is a module or a ValueError.

    (The bytes of HDF5's own structures are libhdf5's to check: see hdf5.py.)
    """
    text = json.dumps(sequential(("LSTM", lstm_config()))).encode()
    for number in range(150):
        config, name = bytearray(text), bytearray(b"l")
        for content in (config, name) if number % 10 == 0 else (config,):
            content[rng.integers(len(content))] = rng.integers(1, 256)
        path = write(tmp_path / "m.h5", {"l": PLAIN})
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = np.bytes_(bytes(config))
            file["model_weights"].attrs["layer_names"] = [np.bytes_(bytes(name))]
        try:
            cylstm.load(path)
        except ValueError:
            pass


def broken(tmp_path: Path, change: Any) -> Path:
    path = write(tmp_path / "m.h5", {"l": PLAIN}, sequential(("LSTM", lstm_config())))
    with h5py.File(path, "a") as file:
        group = file["model_weights/l/l"]
        if "kernel:0" in group:
            del group["kernel:0"]
        change(group)
    return path


BROKEN = {
    "missing": (lambda g: None, "no dataset"),
    "a group": (lambda g: g.create_group("kernel:0"), "no dataset"),
    "integers": (lambda g: g.create_dataset("kernel:0", data=np.zeros((3, 16), int)), "int64"),
    "shape": (lambda g: g.create_dataset("kernel:0", data=floats(3, 15)), "not those of such"),
    "rank": (lambda g: g.create_dataset("kernel:0", data=floats(48)), "not those of such"),
    "bomb": (
        lambda g: g.create_dataset(
            "kernel:0", shape=(10**9, 16), dtype="f4", chunks=(10**6, 16), compression="gzip"
        ),
        "would take 64000000000 bytes",
    ),
    "unwritten": (lambda g: g.create_dataset("kernel:0", shape=(10**8, 16), dtype="f4"), "bytes"),
    "soft link": (lambda g: g.__setitem__("kernel:0", h5py.SoftLink("/model_weights")), "no dat"),
    "external link": (
        lambda g: g.__setitem__("kernel:0", h5py.ExternalLink("/etc/hostname", "/")),
        "no dataset",
    ),
    "external values": (
        lambda g: g.create_dataset("kernel:0", shape=(3, 16), dtype="f4", external="/etc/hostname"),
        "values in other files",
    ),
    "virtual": (
        lambda g: g.create_virtual_dataset("kernel:0", _virtual()),
        "values in other files",
    ),
}


def _virtual() -> Any:
    layout = h5py.VirtualLayout((3, 16), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (3, 16))
    return layout


@pytest.mark.parametrize("name", BROKEN)
def test_datasets_that_lie(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    with pytest.raises(ValueError, match=message):
        cylstm.load(broken(tmp_path, change))


def test_a_model_in_a_model_of_keras_2(tmp_path: Path) -> None:
    """Its arrays stand together, under the outer model's name and their own."""
    dense = {"d/kernel:0": floats(4, 2), "d/bias:0": floats(2)}
    inner = sequential(("LSTM", lstm_config()), ("Dense", {"name": "d", "activation": None}))
    inner["config"] = {"name": "inner", "layers": inner["config"]}
    outer = sequential(("Sequential", inner["config"]), ("Activation", {"activation": "tanh"}))
    path = write(tmp_path / "m.h5", {"inner": {**PLAIN, **dense}}, outer)
    want = np.tanh(WANT @ dense["d/kernel:0"] + dense["d/bias:0"])
    np.testing.assert_allclose(cylstm.load(path)(X), want, atol=1e-6)
    agrees(cylstm.load(path, "inner.l"))
    other = write(tmp_path / "o.h5", {"inner": {**PLAIN, "x/kernel:0": floats(4, 2)}}, outer)
    with pytest.raises(ValueError, match="x/kernel:0 is of no layer of inner"):
        cylstm.load(other)


def deep(levels: int) -> Any:
    config = sequential(("LSTM", lstm_config()))
    for _ in range(levels):
        config = sequential(("Sequential", config["config"]))
    return config


def functional(*layers: tuple[str, str, list[Any]], output: str = "l") -> Any:
    """(class, name, sources); a name that is "l" has the arrays of an LSTM."""
    entries = [
        {
            "class_name": kind,
            "name": name,
            "config": lstm_config() if kind == "LSTM" else {},
            "inbound_nodes": [[[source, 0, 0, {}] for source in sources]] if sources else [],
        }
        for kind, name, sources in layers
    ]
    ends = {"input_layers": [["x", 0, 0]], "output_layers": [[output, 0, 0]]}
    return {"class_name": "Model", "config": {"layers": entries, **ends}}


@pytest.mark.parametrize(
    "config",
    [
        3,
        [],
        deep(20),
        functional(("InputLayer", "x", []), ("LSTM", "l", ["nowhere"])),
        functional(("LSTM", "l", ["d"]), ("Dropout", "d", ["l"])),
        functional(("LSTM", "l", ["l"])),
        functional(("Dropout", "d", ["e"]), ("Dropout", "e", ["d"]), ("LSTM", "l", ["e"])),
        functional(("InputLayer", "x", []), ("LSTM", "l", ["x"]), output="nowhere"),
        {"class_name": "Sequential"},
        {"class_name": "Sequential", "config": 3},
        {"class_name": "Sequential", "config": [3]},
        {"class_name": "Sequential", "config": [{"class_name": "LSTM", "config": 3}]},
        {"class_name": "Model", "config": {"layers": [{"inbound_nodes": [[[0]]]}]}},
        {"class_name": "Sequential", "config": [{"class_name": "Bidirectional", "config": {}}]},
        {"class_name": "Sequential", "config": [{"class_name": "RNN", "config": {"cell": 3}}]},
    ],
)
def test_odd_configurations(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        cylstm.load(write(tmp_path / "m.h5", {"l": PLAIN}, config))


def test_broken_archives(tmp_path: Path) -> None:
    weights = write(tmp_path / "m.h5", {"l": PLAIN}).read_bytes()
    members = {
        "config.json": json.dumps(sequential(("LSTM", lstm_config()))).encode(),
        "metadata.json": b'{"keras_version": "3.1.0"}',
        "model.weights.h5": weights,
    }
    for name, content in (
        ("config.json", b"{"),
        ("config.json", b"\xff"),
        ("metadata.json", b"[]"),
        ("model.weights.h5", b"\x89HDF"),
        ("model.weights.h5", weights[:-500]),
        ("model.weights.h5", bytes(2**25)),
    ):
        with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as file:
            for member, good in members.items():
                file.writestr(member, content if member == name else good)
        with pytest.raises(ValueError):
            cylstm.load(tmp_path / "m.keras")


def test_a_file_without_a_version_is_of_keras_1(tmp_path: Path) -> None:
    """As Keras itself reads it: hard_sigmoid is the one of before Keras 3."""
    arrays = {"l_W": floats(3, 16), "l_U": floats(4, 16), "l_b": floats(16)}
    said = sequential(("LSTM", lstm_config(recurrent_activation="hard_sigmoid")))
    for config, chosen in ((said, {}), (None, {"recurrent_activation": "hard_sigmoid"})):
        path = write(tmp_path / "m.h5", {"l": arrays}, config)
        with h5py.File(path, "a") as file:
            del file.attrs["keras_version"]
        model = cylstm.load(path, **chosen)
        assert model.activations == ("hard_sigmoid_keras2", "tanh", "tanh")


def test_pooling_of_keras_1(tmp_path: Path) -> None:
    """Its arguments had other names."""
    arrays = {"l_W": floats(3, 16), "l_U": floats(4, 16), "l_b": floats(16)}
    pool = {"name": "pool", "pool_length": 3, "stride": 2, "border_mode": "valid"}
    config = sequential(("LSTM", lstm_config()), ("MaxPooling1D", pool))
    model = cylstm.load(write(tmp_path / "m.h5", {"l": arrays, "pool": {}}, config, "1.2.2"))
    pooled = model["pool"]
    assert (pooled.size, pooled.stride, pooled.padding) == (3, 2, "valid")
    norm = ("BatchNormalization", {"name": "norm", "mode": 1, "epsilon": 1e-3})
    config = sequential(("LSTM", lstm_config()), norm)
    stored = {"l": arrays, "norm": {f"n_{k}": floats(4) for k in range(4)}}
    with pytest.raises(ValueError, match="norm .*mode 1"):
        cylstm.load(write(tmp_path / "n.h5", stored, config, "1.2.2"))
