"""Modules that torch.ao has quantised: they come as the floats of torch's own `dequantize`."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cylstm
from helpers import same_bits

pytestmark = pytest.mark.filterwarnings("ignore")

AO: Any = torch.ao.quantization
FORMS = ["state_dict", "whole", "TorchScript", "live"]


def stored(module: Any, form: str, path: Path) -> Any:
    """What `cylstm.load` or `from_torch` makes of a module, given the path of a layer in it."""
    if form == "live":
        return lambda inside=None, **options: cylstm.from_torch(module, inside, **options)
    if form == "TorchScript":
        torch.jit.save(torch.jit.script(module), path)
    else:
        torch.save(module.state_dict() if form == "state_dict" else module, path)
    return lambda inside=None, **options: cylstm.load(path, inside, **options)


def dequantised(packed: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Weight and bias of torch's LinearPackedParams, as torch gives them."""
    (weight, bias), _ = packed.__getstate__()
    weight = weight.dequantize() if weight.is_quantized else weight
    return weight.detach().numpy(), bias.detach().numpy()


def expected(rnn: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The state_dict of a dynamically quantised LSTM or GRU, by torch."""
    D, state = 1 + rnn.bidirectional, {}
    for k, part in enumerate(rnn._all_weight_values):
        for of, packed in zip(("ih", "hh"), part.param.__getstate__()[0][-1]):
            end = f"{of}_l{k // D}{'_reverse' if k % D else ''}"
            state[f"weight_{end}"], state[f"bias_{end}"] = dequantised(packed)
    return state


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["qint8", "float16", "per channel"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.nn.LSTM(3, 5),
        lambda: torch.nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True),
        lambda: torch.nn.GRU(4, 4, 3),
        lambda: torch.nn.GRU(4, 6, bidirectional=True),
    ],
)
def test_dynamically_quantised_layers(made: Any, how: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    spec: Any = {type(made())}
    if how == "per channel":
        spec = dict.fromkeys(spec, AO.per_channel_dynamic_qconfig)
    dtype = torch.float16 if how == "float16" else torch.qint8
    model: Any = torch.nn.ModuleDict({"rnn": made(), "head": torch.nn.Linear(5, 3)})
    if form == "TorchScript":
        model = torch.nn.Sequential(made())
    model = AO.quantize_dynamic(model, spec, dtype=dtype)
    inside = "0" if form == "TorchScript" else "rnn"
    theirs = model[0] if form == "TorchScript" else model["rnn"]
    ours = stored(model, form, tmp_path / "a")(inside)
    state = ours.state_dict()
    wanted = expected(theirs)
    assert state.keys() == wanted.keys()
    assert all(same_bits(state[name], wanted[name]) for name in wanted)
    assert form == "state_dict" or ours.batch_first == theirs.batch_first
    x = np.random.default_rng(0).standard_normal((7, 2, ours.input_size)).astype("f")
    y = ours(x.swapaxes(0, 1) if ours.batch_first else x)[0]
    given = torch.from_numpy(x.swapaxes(0, 1).copy() if theirs.batch_first else x)
    its = theirs(given)[0].detach().numpy()
    its = its.swapaxes(0, 1) if ours.batch_first != theirs.batch_first else its
    assert np.abs(y - its).max() < 0.05  # they round x and h too


@pytest.mark.parametrize("form", ["state_dict", "whole", "live"])
@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
def test_dynamically_quantised_cells(cell: str, form: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    kind = getattr(torch.nn, cell)
    model = AO.quantize_dynamic(torch.nn.ModuleDict({"cell": kind(3, 4)}), {kind})
    told = {"nonlinearity": "tanh"} if cell == "RNNCell" and form == "state_dict" else {}
    state = stored(model, form, tmp_path / "a")("cell", **told).state_dict()
    for of in ("ih", "hh"):
        weight, bias = dequantised(getattr(model["cell"], f"_packed_weight_{of}"))
        assert same_bits(state[f"weight_{of}_l0"], weight)
        assert same_bits(state[f"bias_{of}_l0"], bias)


@pytest.mark.parametrize("D", [1, 2])
def test_two_layers_or_two_directions(D: int, tmp_path: Path) -> None:
    """Where the sizes of a state_dict fit both it has to be said; a module says it itself."""
    rnn = torch.nn.LSTM(4, 4, 3 - D, bidirectional=D == 2)
    model = AO.quantize_dynamic(torch.nn.ModuleDict({"rnn": rnn}), {torch.nn.LSTM})
    load = stored(model, "state_dict", tmp_path / "a")
    with pytest.raises(ValueError, match=r"rnn: whether .*load\(path, directions=1\) or 2"):
        load()
    assert "directions=1" in repr(cylstm.inspect(tmp_path / "a"))
    with pytest.raises(ValueError, match="directions is 3, expected 1 or 2"):
        load(directions=3)
    ours = load(directions=D)
    assert (ours.num_layers, ours.bidirectional) == (3 - D, D == 2)
    assert stored(model, "whole", tmp_path / "b")().bidirectional == (D == 2)


def test_a_quantised_tensor_among_floats(tmp_path: Path) -> None:
    state = torch.nn.LSTM(3, 5).state_dict()
    name = "weight_ih_l0"
    narrow = torch.quantize_per_tensor(state[name], 0.01, 3, torch.quint8)
    torch.save({**state, name: narrow}, tmp_path / "a")
    ours = cylstm.load(tmp_path / "a").state_dict()[name]
    assert same_bits(ours, narrow.dequantize().numpy())


@pytest.mark.parametrize("converted", [False, True])
def test_what_is_quantised_statically_is_refused(converted: bool, tmp_path: Path) -> None:
    model: Any = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    model.eval()
    model.qconfig = AO.get_default_qconfig("x86")
    model = AO.prepare(model)
    if converted:
        model(torch.randn(5, 2, 3))
        model = AO.convert(model)
    for form in ("state_dict", "whole")[: 1 + converted]:  # torch can't pickle the other
        with pytest.raises(ValueError, match="0: an LSTM of torch.ao.nn.quantizable"):
            stored(model, form, tmp_path / "a")()
        assert "torch.ao.nn.quantizable" in repr(cylstm.inspect(tmp_path / "a"))


def test_changed_bytes_load_or_are_refused(tmp_path: Path) -> None:
    spec = {torch.nn.LSTM: AO.per_channel_dynamic_qconfig}
    model = AO.quantize_dynamic(torch.nn.Sequential(torch.nn.LSTM(3, 5)), spec)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    (pickle,) = (name for name in members if name.endswith("data.pkl"))
    whole, rng, refused = members[pickle], np.random.default_rng(0), 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        with zipfile.ZipFile(tmp_path / "a", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(changed) if name == pickle else content)
        try:
            cylstm.load(tmp_path / "a")
        except ValueError:
            refused += 1
    assert refused > 100
