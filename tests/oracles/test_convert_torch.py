"""Files that torch writes, and live modules: the module that comes out computes what torch does."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cylstm
from cylstm import files
from helpers import same_bits, seeds

CELLS = [name for name in ("LSTM", "GRU", "RNN") if name in files.CLASSES]


def largest_difference(ours: Any, theirs: Any, rng: np.random.Generator) -> float:
    """Largest relative error over y and states, of random input from random states."""
    D, P = 1 + theirs.bidirectional, getattr(theirs, "proj_size", 0)
    T, B = rng.integers(1, 20), rng.integers(1, 6)
    x = rng.standard_normal((T, B, theirs.input_size)).astype("f")
    shape = (theirs.num_layers * D, B)
    states = [rng.standard_normal((*shape, P or theirs.hidden_size)).astype("f")]
    if theirs.mode == "LSTM":
        states.append(rng.standard_normal((*shape, theirs.hidden_size)).astype("f"))
    with torch.no_grad():
        if theirs.batch_first:
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        theirs = theirs.double()
        given = [torch.from_numpy(state).double() for state in states]
        y, last = theirs(torch.from_numpy(x).double(), tuple(given) if len(given) > 1 else given[0])
    last = last if isinstance(last, tuple) else (last,)
    our_y, our_last = ours(x, tuple(states) if len(states) > 1 else states[0])
    our_last = our_last if isinstance(our_last, tuple) else (our_last,)
    pairs = [(our_y, y), *zip(our_last, last)]
    return max(np.abs(a - b.numpy()).max() / np.abs(b.numpy()).max() for a, b in pairs)


def random_stack(rng: np.random.Generator, cell: str) -> Any:
    sizes: dict[str, Any] = dict(
        input_size=int(rng.choice([1, 7, 17, 50])),
        hidden_size=int(rng.choice([2, 7, 17, 50])),
        num_layers=int(rng.integers(1, 4)),
        bias=bool(rng.integers(4)),
        batch_first=bool(rng.integers(2)),
        bidirectional=bool(rng.integers(2)),
    )
    if cell == "LSTM" and rng.integers(3) == 0:
        sizes["proj_size"] = int(rng.integers(1, sizes["hidden_size"]))
    if cell == "RNN":
        sizes["nonlinearity"] = ["tanh", "relu"][rng.integers(2)]
    torch.manual_seed(int(rng.integers(2**31)))
    return getattr(torch.nn, cell)(**sizes)


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.rnn = rnn
        self.head = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


FORMS = ["state_dict", "checkpoint", "whole", "old", "pickle", "safetensors", "live"]


def written(rnn: Any, form: str, path: Path) -> Any:
    """The module that comes back, by way of a file of this form."""
    net = Net(rnn)
    options: dict[str, Any] = {}
    if form not in ("whole", "live"):
        options["batch_first"] = rnn.batch_first
        if rnn.mode.startswith("RNN"):
            options["nonlinearity"] = rnn.nonlinearity
    if form == "state_dict":
        torch.save(net.state_dict(), path)
    elif form == "checkpoint":
        optimizer = torch.optim.Adam(net.parameters())
        sum(parameter.sum() for parameter in net.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.save(
            {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path
        )
    elif form == "whole":
        torch.save(net, path)
    elif form == "old":
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(net.state_dict()))
    elif form == "safetensors":
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    else:
        return cylstm.from_torch(net)
    return cylstm.load(path, **options)


@pytest.mark.parametrize("number", seeds(100))
def test_random_stacks(number: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(number)
    rnn = random_stack(rng, CELLS[number % len(CELLS)])
    ours = written(rnn, FORMS[number % len(FORMS)], tmp_path / "model")
    state = rnn.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(same_bits(ours.state_dict()[name], state[name].numpy()) for name in state)
    assert ours.batch_first == rnn.batch_first
    assert largest_difference(ours, rnn, rng) < 1e-5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_in_every_form(cell: str, form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    rnn = random_stack(rng, cell)
    assert largest_difference(written(rnn, form, tmp_path / "model"), rnn, rng) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_are_no_rows(form: str, tmp_path: Path) -> None:
    """Parameters that are views: transposed, and parts of one larger tensor."""
    rnn = torch.nn.LSTM(3, 5)
    memory = torch.randn(400)
    rnn.weight_ih_l0 = torch.nn.Parameter(memory[7:67].view(3, 20).t())
    rnn.weight_hh_l0 = torch.nn.Parameter(memory.view(20, 20)[:, 2:12:2])
    if form == "safetensors":  # which refuses them
        rnn.weight_ih_l0, rnn.weight_hh_l0 = (
            torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format))
            for p in (rnn.weight_ih_l0, rnn.weight_hh_l0)
        )
    got = written(rnn, form, tmp_path / "model").state_dict()
    wanted = {name: tensor.detach().numpy() for name, tensor in rnn.state_dict().items()}
    assert all(same_bits(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(form: str, dtype: str, tmp_path: Path) -> None:
    rnn = torch.nn.LSTM(3, 5).to(getattr(torch, dtype))
    got = written(rnn, form, tmp_path / "model")
    assert got.dtype == ("float64" if dtype == "float64" else "float32")
    for name, tensor in rnn.state_dict().items():
        assert np.array_equal(got.state_dict()[name], tensor.double().numpy())


@pytest.mark.parametrize("form", ["state_dict", "old", "pickle", "safetensors", "live"])
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weight_norm(form: str, older: bool, dim: int | None, tmp_path: Path) -> None:
    rnn = torch.nn.LSTM(7, 17)
    wrap = torch.nn.utils.weight_norm if older else torch.nn.utils.parametrizations.weight_norm
    for name in ("weight_ih_l0", "weight_hh_l0"):
        wrap(rnn, name, dim=dim)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter *= 1.5
    rnn(torch.zeros(1, 1, 7))  # the older form computes the weights here
    ours = written(rnn, form, tmp_path / "model")
    for name in ("weight_ih_l0", "weight_hh_l0"):
        want = getattr(rnn, name).detach().numpy()
        np.testing.assert_allclose(ours.state_dict()[name], want, rtol=1e-6)


@pytest.mark.parametrize("cell", [f"{name}Cell" for name in CELLS])
@pytest.mark.parametrize("form", ["state_dict", "whole", "old", "live"])
def test_cells(cell: str, form: str, tmp_path: Path) -> None:
    theirs = getattr(torch.nn, cell)(3, 5)
    if form == "live":
        ours = cylstm.from_torch(theirs)
    else:
        value = theirs if form == "whole" else Net(theirs).state_dict()
        torch.save(value, tmp_path / "a", _use_new_zipfile_serialization=form != "old")
        tanh = {"nonlinearity": "tanh"} if cell == "RNNCell" and form != "whole" else {}
        ours = cylstm.load(tmp_path / "a", **tanh)
    x, h, c = (
        np.random.default_rng(n).standard_normal((2, m)).astype("f")
        for n, m in ((1, 3), (2, 5), (3, 5))
    )
    given = [torch.from_numpy(a) for a in (h, c)]
    with torch.no_grad():
        want = theirs(torch.from_numpy(x), tuple(given) if cell == "LSTMCell" else given[0])
    y, _ = ours(x[None], (h[None], c[None]) if cell == "LSTMCell" else h[None])
    np.testing.assert_allclose(y[0], want[0] if cell == "LSTMCell" else want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(how: str, tmp_path: Path) -> None:
    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.LSTM(3, 5, 2, batch_first=True)
            self.head = torch.nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0])

    model = Model()
    if how == "script":
        scripted = torch.jit.script(model)
    else:
        scripted = torch.jit.trace(model, torch.zeros(2, 4, 3))
    torch.jit.save(scripted, tmp_path / "a")
    contents = cylstm.inspect(tmp_path / "a")
    assert contents.format == "PyTorch, TorchScript" and contents.layers[0].path == "rnn"
    ours = cylstm.load(tmp_path / "a", batch_first=True)
    state = model.rnn.state_dict()
    assert all(same_bits(ours.state_dict()[name], state[name].numpy()) for name in state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_torchscript_says_the_arguments(
    kind: str, batch_first: bool, how: str, tmp_path: Path
) -> None:
    """Of two classes of one name, in whose code they are."""
    more = {"nonlinearity": "relu"} if kind == "RNN" else {}
    cls = getattr(torch.nn, kind)

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one = cls(
                3, 5, 2, bidirectional=True, dropout=0.5, batch_first=batch_first, **more
            )
            self.two = cls(3, 4, batch_first=not batch_first)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(x)[0], self.two(x)[0]

    model = Model().eval()
    x = torch.randn(3, 4, 3)
    scripted = torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)
    torch.jit.save(scripted, tmp_path / "a")
    for name, theirs in zip(("one", "two"), model(x)):
        ours = cylstm.load(tmp_path / "a", name)
        assert ours.batch_first is getattr(model, name).batch_first
        assert ours.dropout == getattr(model, name).dropout
        assert abs(ours(x.numpy())[0] - theirs.detach().numpy()).max() < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["LSTM", "RNN", "GRUCell"])
def test_a_frozen_archive_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), getattr(torch.nn, kind)(3, 5)).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "a")
    (layer,) = cylstm.inspect(tmp_path / "a").layers
    assert layer.cell == kind.removesuffix("Cell")
    with pytest.raises(ValueError, match=r"frozen, .* without torch\.jit\.freeze"):
        cylstm.load(tmp_path / "a")


class Doubled(torch.nn.LSTM):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, hx: Any = None) -> Any:
        return super().forward(2 * x, hx)


class DoubledCell(torch.nn.GRUCell):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, hx: Any = None) -> Any:
        return super().forward(2 * x, hx)


def test_live_layers_that_give_something_else_are_refused() -> None:
    hooked = torch.nn.LSTM(3, 5)
    hooked.register_forward_hook(lambda module, x, y: (2 * y[0], y[1]))
    before = torch.nn.GRU(3, 5)
    before.register_forward_pre_hook(lambda module, x: (2 * x[0],))
    for module in (hooked, before):
        with pytest.raises(ValueError, match="has a hook"):
            cylstm.from_torch(module)
    for module in (Doubled(3, 5), DoubledCell(3, 5)):
        with pytest.raises(ValueError, match="a forward of its own"):
            cylstm.from_torch(torch.nn.ModuleDict({"rnn": module}))

    class Same(torch.nn.LSTM):  # type: ignore[misc]
        pass

    assert cylstm.from_torch(Same(3, 5)).hidden_size == 5


def test_a_view_of_a_conjugate_has_other_signs(tmp_path: Path) -> None:
    state = torch.nn.LSTM(3, 5).state_dict()
    views = {name: torch.complex(-a, -a).conj().imag for name, a in state.items()}
    assert all(view.is_neg() for view in views.values())
    torch.save(views, tmp_path / "a")
    ours = cylstm.load(tmp_path / "a").state_dict()
    assert all(same_bits(ours[name], state[name].numpy()) for name in state)


@pytest.mark.parametrize("kind", ["sparse", "without values"])
def test_tensors_without_plain_values_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    state = torch.nn.LSTM(3, 5).state_dict()
    made = {n: a.to_sparse() if kind == "sparse" else a.to("meta") for n, a in state.items()}
    torch.save(made, tmp_path / "a")
    with pytest.raises(ValueError, match=f"LSTM: weight_ih_l0 is {kind}, expected a float"):
        cylstm.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["bias", "scale", "h_0"])
def test_a_cell_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    """One with an array that no cell of torch's has."""
    cell = torch.nn.ParameterDict(
        {"weight_ih": torch.ones(12, 3), "weight_hh": torch.ones(12, 3), name: torch.ones(12)}
    )
    torch.save({f"cell.{n}": a for n, a in cell.items()}, tmp_path / "a")
    with pytest.raises(ValueError, match=f"cell: beside a layer's weights it has {name}, and"):
        cylstm.load(tmp_path / "a")
    if name == "bias":
        torch.save(dict(cell.items()), tmp_path / "a")
        with pytest.raises(ValueError, match="LSTM: beside a layer's weights it has bias, and"):
            cylstm.load(tmp_path / "a")


def test_the_file_of_another_byte_order(tmp_path: Path) -> None:
    """As torch reads one, too."""
    from pickled import TorchFile

    file = TorchFile(">")
    state = torch.nn.LSTM(3, 5).state_dict()
    file.zip(tmp_path / "a", {name: file.tensor(tensor.numpy()) for name, tensor in state.items()})
    theirs = torch.load(tmp_path / "a")
    ours = cylstm.load(tmp_path / "a").state_dict()
    assert all(same_bits(ours[name], theirs[name].numpy()) for name in state)


def test_files_made_by_hand_are_those_of_torch(tmp_path: Path) -> None:
    """The light tests' files, read by torch."""
    from pickled import TorchFile

    for form in ("zip", "old"):
        file = TorchFile()
        array = np.arange(12, dtype="f")
        tensor = file.tensor(array, offset=1, size=(2, 3), stride=(4, 2))
        getattr(file, form)(tmp_path / "a", {"a": tensor, "b": file.tensor(array, "bfloat16")})
        got = torch.load(tmp_path / "a", weights_only=form == "zip")
        assert got["a"].tolist() == [[1, 3, 5], [5, 7, 9]] and got["b"].dtype == torch.bfloat16


def test_live_modules_say_what_they_are() -> None:
    net = torch.nn.ModuleDict(
        {
            "a": torch.nn.LSTM(3, 5, dropout=0.5, num_layers=2, batch_first=True),
            "b": torch.nn.LSTM(3, 5),
        }
    )
    with pytest.raises(ValueError, match="2 recurrent layers, expected one of 'a', 'b'"):
        cylstm.from_torch(net)
    ours = cylstm.from_torch(net, "a")
    assert (ours.dropout, ours.batch_first) == (0.5, True)
    with pytest.raises(ValueError, match="no recurrent layer"):
        cylstm.from_torch(torch.nn.Linear(2, 3))
    before = ours.state_dict()["weight_ih_l0"].copy()
    with torch.no_grad():
        net["a"].weight_ih_l0 += 1
    assert same_bits(ours.state_dict()["weight_ih_l0"], before)


def test_a_buffer_of_torch_is_read_whole(tmp_path: Path) -> None:
    """A large model, written to memory and to a file."""
    rnn = torch.nn.LSTM(100, 200, 3)
    memory = io.BytesIO()
    torch.save(rnn.state_dict(), memory)
    (tmp_path / "a").write_bytes(memory.getvalue())
    got = cylstm.load(tmp_path / "a").state_dict()
    assert all(same_bits(got[name], tensor.numpy()) for name, tensor in rnn.state_dict().items())


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    """Tensors of types that only newer files have, of no elements, and sizes."""
    lstm = torch.nn.LSTM(3, 5)
    checkpoint = {
        "short": torch.arange(3).to(torch.uint16),
        "eight": torch.ones(3).to(torch.float8_e4m3fn),
        "complex": torch.ones(3, dtype=torch.complex64),
        "none": torch.empty(0, 5),
        "size": torch.Size([3, 5]),
        "model": lstm.state_dict(),
    }
    for new in (True, False):
        torch.save(checkpoint, tmp_path / "c.pt", _use_new_zipfile_serialization=new)
        got: Any = cylstm.load(tmp_path / "c.pt")
        for name, tensor in lstm.state_dict().items():
            assert np.array_equal(got.state_dict()[name], tensor.numpy())
