"""to_torch and to_keras, and the command's checks, against the frameworks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch

import cylstm
from cylstm.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
rng = np.random.default_rng(2)

CASES: list[dict[str, Any]] = [
    dict(),
    dict(num_layers=2, bidirectional=True),
    dict(bias=False, batch_first=True, dtype="float64"),
]
CELLS = [name for name in ("LSTM", "GRU", "RNN") if hasattr(cylstm, name)]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("case", [*CASES, dict(proj_size=3)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_to_torch(cell: str, case: dict[str, Any]) -> None:
    if "proj_size" in case and cell != "LSTM":
        return
    module = getattr(cylstm, cell)(5, 7, seed=0, **case)
    theirs = cylstm.to_torch(module)
    assert type(theirs) is getattr(torch.nn, cell)
    for name, array in module.state_dict().items():
        assert np.array_equal(theirs.state_dict()[name].numpy(), array)
    x = rng.standard_normal((4, 4, 5)).astype(module.dtype)
    with torch.no_grad():
        want = theirs(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(module(x)[0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_to_keras_and_back(cell: str, case: dict[str, Any], tmp_path: Path) -> None:
    module = getattr(cylstm, cell)(5, 7, seed=0, **{**case, "batch_first": True})
    kind = getattr(keras.layers, {"RNN": "SimpleRNN"}.get(cell, cell))
    layers = []
    for _ in range(module.num_layers):
        layer = kind(7, return_sequences=True, use_bias=module.bias, dtype=module.dtype.name)
        layers.append(keras.layers.Bidirectional(layer) if module.bidirectional else layer)
    model = keras.Sequential([keras.Input((None, 5), dtype=module.dtype.name), *layers])
    for layer, weights in zip(model.layers, cylstm.to_keras(module)):
        layer.set_weights(weights)
    x = rng.standard_normal((4, 6, 5)).astype(module.dtype)
    want = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(module(x)[0], want, rtol=0, atol=1e-6)
    again = cylstm.from_keras(model)
    for name, array in module.state_dict().items():
        if name.startswith("weight") or cell == "GRU":
            assert np.array_equal(again.state_dict()[name], array), name
    assert again(x)[0].tobytes() == module(x)[0].tobytes()


def test_a_linear_goes_out() -> None:
    linear = cylstm.Linear(5, 3, seed=0)
    x = rng.standard_normal((4, 5)).astype(np.float32)
    with torch.no_grad():
        theirs = cylstm.to_torch(linear)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(linear(x), theirs, rtol=0, atol=1e-6)
    ((kernel, bias),) = cylstm.to_keras(linear)
    np.testing.assert_allclose(linear(x), x @ kernel + bias, rtol=0, atol=1e-6)


def test_what_they_have_not_is_refused() -> None:
    with pytest.raises(ValueError, match="Keras's layer has no proj_size=3"):
        cylstm.to_keras(cylstm.LSTM(5, 7, proj_size=3))
    writers: list[Any] = [cylstm.to_keras, cylstm.to_torch]
    for writer in writers:
        with pytest.raises(TypeError, match="no layer for an int"):
            writer(3)
        for module in (cylstm.GRU(5, 7, seed=0), cylstm.Linear(5, 3, seed=0)):
            with pytest.raises(ValueError, match="layer has no weights='int8'"):
                writer(cylstm.quantize(module, "int8"))


def test_check_against_torch_and_keras(tmp_path: Path, capsys: Any) -> None:
    module = cylstm.LSTM(5, 7, 2, bidirectional=True, seed=0)
    cylstm.save(module, tmp_path / "m.safetensors")
    assert main(["check", str(tmp_path / "m.safetensors"), "--against", "torch"]) == 0
    model = keras.Sequential(
        [keras.Input((None, 5)), keras.layers.LSTM(7), keras.layers.Dense(3, "softmax")]
    )
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", rng.standard_normal((3, 8, 5)))
    given = ["--input", str(tmp_path / "x.npy")]
    assert main(["check", str(tmp_path / "m.keras"), "--against", "keras", *given]) == 0
    assert "x.npy: largest difference" in capsys.readouterr().out


def test_check_against_onnxruntime(tmp_path: Path) -> None:
    cylstm.to_onnx(cylstm.LSTM(5, 7, seed=0), tmp_path / "m.onnx", states=False)
    assert main(["check", str(tmp_path / "m.onnx"), "--against", "onnxruntime"]) == 0
