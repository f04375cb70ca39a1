"""PyTorch's files, made by hand: every layout, and what is broken or hostile."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import cylstm
from cylstm import GRU, LSTM
from cylstm.convert.found import Contents, Recurrent
from helpers import run_python, same_bits
from pickled import Call, Global, Persistent, TorchFile, dumped, numpy_array

SIZES: dict[str, Any] = dict(input_size=3, hidden_size=5, num_layers=2, bidirectional=True)
STATE = LSTM(**SIZES, seed=1).state_dict()


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": array for name, array in state.items()}


def only_layer(contents: Contents) -> Recurrent:
    (layer,) = contents.layers
    return layer


def zipped(path: Path, state: dict[str, Any], **options: Any) -> None:
    file = TorchFile(**options)
    file.zip(path, {name: file.tensor(array) for name, array in state.items()})


def old(path: Path, state: dict[str, Any], **options: Any) -> None:
    file = TorchFile(**options)
    file.old(path, {name: file.tensor(array) for name, array in state.items()})


def pickled(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(dumped({name: numpy_array(array) for name, array in state.items()}))


def pickled_tensors(path: Path, state: dict[str, Any]) -> None:
    """As pickle.dump writes a state_dict: each storage is a file of torch's within the file."""

    def tensor(array: np.ndarray) -> Call:
        inner = TorchFile()
        inner.old(path, inner.storage(array))
        storage = Call("torch.storage", "_load_from_bytes", path.read_bytes())
        return TorchFile().tensor(array, storage=storage)  # type: ignore[arg-type]

    path.write_bytes(dumped({name: tensor(array) for name, array in state.items()}))


def npz(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **state)


def foreign_safetensors(path: Path, state: dict[str, Any]) -> None:
    safetensors.numpy.save_file(state, path)


WRITERS = {
    "zip": zipped,
    "before 1.6": old,
    "pickle": pickled,
    "pickled tensors": pickled_tensors,
    "npz": npz,
    "safetensors": foreign_safetensors,
}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[..., None]:
    return WRITERS[request.param]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.parametrize("prefix", ["", "encoder.rnn."])
def test_a_state_dict(write: Callable[..., None], prefix: str, path: Path) -> None:
    other = {"linear.weight": np.ones((2, 10)), "scale": np.ones(1), "steps": np.arange(3)}
    write(path, prefixed(STATE, prefix) | other)
    layer = only_layer(cylstm.inspect(path))
    assert layer.path == prefix[:-1] and layer.obstacle() is None
    module = cylstm.load(path, batch_first=True, dropout=0.5)
    assert repr(module) == repr(LSTM(**SIZES, batch_first=True, dropout=0.5))
    assert same_bits(module.state_dict().values(), STATE.values())


@pytest.mark.parametrize(
    "more",
    [
        dict(num_layers=1), dict(num_layers=3, bias=False), dict(bidirectional=False),
        dict(proj_size=2), dict(proj_size=4, bias=False, num_layers=1), dict(dtype="float64"),
        dict(hidden_size=1), dict(input_size=1, hidden_size=2, proj_size=1),
    ],
)  # fmt: skip
def test_sizes_follow_from_shapes(write: Callable[..., None], more: Any, path: Path) -> None:
    module = LSTM(**(SIZES | more), seed=2)
    write(path, prefixed(module.state_dict(), "a.b."))
    loaded = cylstm.load(path)
    assert repr(loaded) == repr(module)
    assert same_bits(loaded.state_dict().values(), module.state_dict().values())


def test_a_cell(write: Callable[..., None], path: Path) -> None:
    state = LSTM(3, 5, seed=1).state_dict()
    write(path, {f"decoder.{name.removesuffix('_l0')}": array for name, array in state.items()})
    assert same_bits(cylstm.load(path).state_dict().values(), state.values())


def test_short_names(write: Callable[..., None], path: Path) -> None:
    """As programs have them that run a cell in plain NumPy."""
    short = {name: f"{name[0]}_{name.split('_')[1]}" for name in GRU(3, 5).state_dict()}
    names = ("enc_", "model.my_dec_", "")
    states = {name: GRU(3, 5, seed=len(name)).state_dict() for name in names}
    write(path, {p + short[name]: a for p, state in states.items() for name, a in state.items()})
    assert {layer.path for layer in cylstm.inspect(path).layers} == {"enc", "model.my_dec", ""}
    for inside, state in zip(("enc", "my_dec", ""), states.values()):
        assert same_bits(cylstm.load(path, inside).state_dict().values(), state.values())


def test_one_of_several(write: Callable[..., None], path: Path) -> None:
    first, second = (LSTM(3, 5, seed=seed).state_dict() for seed in (1, 2))
    write(path, prefixed(first, "model.encoder.") | prefixed(second, "model.decoder."))
    with pytest.raises(
        ValueError, match="2 recurrent layers, expected one of 'model.(en|de)coder', "
    ):
        cylstm.load(path)
    for inside in ("model.decoder", "decoder"):
        assert same_bits(cylstm.load(path, inside).state_dict().values(), second.values())
    with pytest.raises(ValueError, match="no recurrent layer 'coder'"):
        cylstm.load(path, "coder")


@pytest.mark.parametrize("gates, cell", [(3, "GRU"), (1, "RNN"), (2, "?"), (5, "?")])
def test_cells_follow_from_shapes(
    write: Callable[..., None], gates: int, cell: str, path: Path
) -> None:
    rows = gates * 5
    write(
        path, {"weight_ih_l0": np.zeros((rows, 3), "f"), "weight_hh_l0": np.zeros((rows, 5), "f")}
    )
    layer = only_layer(cylstm.inspect(path))
    assert (layer.cell, layer.bias) == (cell, False)
    if cell == "RNN":
        assert "nonlinearity" in str(layer.problem)
        with pytest.raises(ValueError, match='load\\(path, nonlinearity="tanh"\\) or "relu"'):
            cylstm.load(path)
        with pytest.raises(ValueError, match="nonlinearity is 'sin', expected 'tanh' or 'relu'"):
            cylstm.load(path, nonlinearity="sin")
    if cell == "?":
        wrong = f"weight_hh has shape ({gates * 5}, 5), expected 4, 3 or 1 times 5 rows"
        assert layer.problem == wrong


@pytest.mark.parametrize("form", ["older", "parametrized"])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_weight_norm(write: Callable[..., None], form: str, axis: int | None, path: Path) -> None:
    state, wanted = dict(STATE), dict(STATE)
    rng = np.random.default_rng(3)
    for name in ("weight_ih_l0", "weight_hh_l1_reverse"):
        v = state.pop(name)
        over = tuple(n for n in range(2) if n != axis)
        norm = np.sqrt((v.astype(float) ** 2).sum(over, keepdims=True))
        g = rng.uniform(0.5, 2, norm.shape).astype("f")
        wanted[name] = (g * v / norm).astype("f")
        g = g if axis is not None else g.reshape(())
        if form == "older":
            state |= {f"{name}_g": g, f"{name}_v": v}
        else:
            state |= {
                f"parametrizations.{name}.original0": g, f"parametrizations.{name}.original1": v,
            }  # fmt: skip
    write(path, prefixed(state, "lstm."))
    got = cylstm.load(path, "lstm").state_dict()
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=3e-7)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"bias_hh_l1": None}, "bias_hh_l1 is missing"),
        ({"weight_hh_l0_reverse": None}, "weight_hh_l0_reverse is missing"),
        ({"weight_ih_l0": None}, "weight_ih_l0 is missing"),
        ({"weight_hh_l0": np.zeros(20, "f")}, r"its first layer has shape \(20,\)"),
        (
            {
                "weight_hh_l0": None,
                "parametrizations.weight_hh_l0.original": np.zeros((20, 5), "f"),
            },
            "weight_hh_l0 is missing, in its place there is parametrizations.weight_hh_l0.original",
        ),
        ({"weight_ih_l1": np.zeros((20, 7), "f")}, r"weight_ih_l1 has shape \(20, 7\), expected"),
        ({"weight_ih_l1": np.zeros((20, 10), "i4")}, "weight_ih_l1 is int32, expected a float"),
        ({"weight_ih_l9999": np.zeros((20, 10), "f")}, "layers up to 9999, but"),
        ({"weight_hh_l0_raw": np.zeros((20, 5), "f")}, "weight_hh_l0_raw has no meaning here"),
        ({"weight_hh_l0_orig": np.zeros((20, 5), "f")}, "weight_hh_l0_orig has no meaning here"),
        ({"weight_hh_l0_g": np.zeros((20, 1), "f")}, "weight_hh_l0_g has no meaning here"),
        ({"weight_hr_l0": np.zeros((2, 5), "f")}, "expected"),
        ({"weight_ch_l0": np.zeros(15, "f")}, "beside a layer's weights it has weight_ch_l0"),
        ({"layernorm_i.weight": np.zeros(5, "f")}, "has layernorm_i.weight, and what they do"),
    ],
)
def test_what_does_not_fit(
    write: Callable[..., None], change: dict[str, Any], problem: str, path: Path
) -> None:
    state = {name: array for name, array in (STATE | change).items() if array is not None}
    write(path, prefixed(state, "lstm."))
    with pytest.raises(ValueError, match=f"lstm: .*{problem}"):
        cylstm.load(path)
    assert "does not load: " in repr(cylstm.inspect(path))


# --- checkpoints and modules


def nested(file: TorchFile) -> dict[str, Any]:
    """A checkpoint as training writes it."""
    state = {name: file.tensor(array) for name, array in prefixed(STATE, "lstm.").items()}
    moments = {0: {"exp_avg": file.tensor(np.zeros((20, 3), "f")), "step": 7}}
    return {
        "epoch": 3,
        "model_state": Call("collections", "OrderedDict", state={"_metadata": {}}, **state),
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "args": Call("argparse", "Namespace", state={"hidden": 5}),
    }


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_checkpoint(form: str, path: Path) -> None:
    file = TorchFile()
    getattr(file, form)(path, nested(file))
    assert only_layer(cylstm.inspect(path)).path == "model_state.lstm"
    assert same_bits(cylstm.load(path, "lstm").state_dict().values(), STATE.values())


def test_models_in_a_list(path: Path) -> None:
    file = TorchFile()
    states = [LSTM(3, 5, seed=seed).state_dict() for seed in (1, 2)]
    models = [{name: file.tensor(array) for name, array in state.items()} for state in states]
    file.zip(path, (7, {"models": models}))
    assert [layer.path for layer in cylstm.inspect(path).layers] == ["1.models.0", "1.models.1"]
    assert same_bits(cylstm.load(path, "1.models.1").state_dict().values(), states[1].values())


def whole_module(file: TorchFile, state: dict[str, Any], **attributes: Any) -> Call:
    """A pickled model around a pickled nn.LSTM, whose class is not torch's."""
    parameters = {
        name: Call("torch._utils", "_rebuild_parameter", file.tensor(array), True, {})
        for name, array in state.items()
    }
    lstm = Call(
        "their.module", "Subclass",
        state={"_parameters": Call("collections", "OrderedDict", **parameters), "_modules": {},
               "mode": "LSTM", **attributes},
    )  # fmt: skip
    return Call(
        "their.module", "Net",
        state={"_parameters": {}, "_modules": Call("collections", "OrderedDict", rnn=lstm)},
    )  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_whole_module(form: str, path: Path) -> None:
    file = TorchFile()
    getattr(file, form)(path, whole_module(file, STATE, batch_first=True, dropout=0.25))
    module = cylstm.load(path)
    assert repr(module) == repr(LSTM(**SIZES, batch_first=True, dropout=0.25))
    assert same_bits(module.state_dict().values(), STATE.values())
    assert not cylstm.load(path, "rnn", batch_first=False).batch_first


def test_the_same_arrays_under_two_names(path: Path) -> None:
    """A pickled module beside its state_dict is one layer."""
    file = TorchFile()
    tensors = {name: file.tensor(array) for name, array in STATE.items()}
    attributes = {"mode": "LSTM", "batch_first": True}
    lstm = Call("torch.nn", "LSTM", state={"_parameters": tensors, **attributes})
    file.zip(path, {"state_dict": prefixed(tensors, "model.rnn."), "rnn": lstm})
    assert only_layer(cylstm.inspect(path)).path == "rnn"
    assert cylstm.load(path).batch_first


def test_a_module_that_holds_itself(path: Path) -> None:
    file = TorchFile()
    content = dumped({name: file.tensor(array) for name, array in STATE.items()})
    file.zip(path, content[:-1] + b"q\x07X\x04\x00\x00\x00selfh\x07s.")
    assert same_bits(cylstm.load(path).state_dict().values(), STATE.values())


# --- tensors


def test_views_of_a_storage_before_1_6(path: Path) -> None:
    """A storage may itself be a part of another: where it starts there, and how long it is."""
    memory = np.concatenate([array.ravel() for array in STATE.values()])
    file, start = TorchFile(), 0
    whole, tensors = file.storage(memory), {}
    for name, array in STATE.items():
        part = Persistent((*whole.value[:5], (f"view of {name}", start, array.size)))
        tensors[name] = file.tensor(array, storage=part)
        start += array.size
    file.old(path, tensors)
    assert same_bits(cylstm.load(path).state_dict().values(), STATE.values())
    part.value = (*whole.value[:5], ("view", start - 1, 2))
    file.old(path, tensors)
    with pytest.raises(ValueError, match="elements"):
        cylstm.load(path)
    part.value = (*whole.value[:5], ("view", -1, 2))
    file.old(path, tensors)
    with pytest.raises(ValueError, match="a view of a storage"):
        cylstm.load(path)


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtypes_and_byte_orders(form: str, order: str, dtype: str, path: Path) -> None:
    file = TorchFile(order)
    exact = {name: np.round(array * 64) / 64 for name, array in STATE.items()}  # in all of them
    kind = "float32" if dtype == "bfloat16" else dtype
    tensors = {name: file.tensor(array.astype(kind), dtype) for name, array in exact.items()}
    getattr(file, form)(path, tensors)
    got = cylstm.load(path)
    assert got.dtype == ("float64" if dtype == "float64" else "float32")
    assert all(np.array_equal(got.state_dict()[name], exact[name]) for name in exact)


@pytest.mark.parametrize("form", ["zip", "old"])
def test_views_of_one_storage(form: str, path: Path) -> None:
    """Offsets, transposes and steps; several tensors share the storage."""
    file = TorchFile()
    memory = np.arange(200, dtype="f") / 100
    storage = file.storage(memory)
    tensors = {
        "weight_ih_l0": file.tensor(memory, offset=7, size=(8, 3), stride=(1, 8), storage=storage),
        "weight_hh_l0": file.tensor(memory, offset=40, size=(8, 2), stride=(5, 2), storage=storage),
        "bias_ih_l0": file.tensor(memory, offset=100, size=(8,), stride=(12,), storage=storage),
        "bias_hh_l0": file.tensor(memory, offset=199 - 7, size=(8,), stride=(1,), storage=storage),
    }
    getattr(file, form)(path, tensors)
    got = cylstm.load(path).state_dict()
    assert np.array_equal(got["weight_ih_l0"], memory[7:31].reshape(3, 8).T)
    rows, columns = np.meshgrid(range(8), range(2), indexing="ij")
    assert np.array_equal(got["weight_hh_l0"], memory[40 + 5 * rows + 2 * columns])
    assert np.array_equal(got["bias_ih_l0"], memory[100::12][:8])
    assert np.array_equal(got["bias_hh_l0"], memory[-8:])


@pytest.mark.parametrize("form", ["zip", "old"])
@pytest.mark.parametrize(
    "fields",
    [
        dict(offset=1), dict(offset=-1), dict(offset=1.5), dict(offset=None), dict(size=(20, 4)),
        dict(size=(2**40, 3)), dict(size=(20, 3), stride=(2**61, 1)), dict(size=(20, -3)),
        dict(size=(60, 3), stride=(0, 1)), dict(size=(20, 3), stride=(-3, 1)), dict(size=(20.0, 3)),
        dict(size=(20, 3), stride=(3,)), dict(size=(True, 3)), dict(size=[1] * 50), dict(size=7),
    ],
)  # fmt: skip
def test_tensors_outside_their_storage(form: str, fields: dict[str, Any], path: Path) -> None:
    file = TorchFile()
    state = {name: file.tensor(array) for name, array in LSTM(3, 5).state_dict().items()}
    state["weight_ih_l0"] = file.tensor(np.ones((20, 3), "f"), **fields)
    getattr(file, form)(path, state)
    with pytest.raises(ValueError, match="a tensor"):
        cylstm.load(path)


def test_layers_that_share_their_memory_take_no_more_than_the_file(path: Path) -> None:
    file = TorchFile()
    storage = file.storage(np.zeros(2000, "f"))
    tensors = {}
    for layer in range(200):
        for name, size in (("ih", (80, 20)), ("hh", (80, 20))):
            tensors[f"weight_{name}_l{layer}"] = file.tensor(
                np.zeros(1, "f"), size=size, stride=(20, 1), storage=storage
            )
    file.zip(path, tensors)
    with pytest.raises(ValueError, match="its arrays would take 640000 elements, the file has"):
        cylstm.load(path)


# --- broken and hostile files


@pytest.mark.slow
def test_every_truncation_is_refused(write: Callable[..., None], path: Path) -> None:
    write(path, STATE)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for length in {*rng.integers(len(content), size=150), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            cylstm.load(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_mutated_files_load_or_are_refused(write: Callable[..., None], path: Path) -> None:
    write(path, LSTM(1, 2, seed=1).state_dict())
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(700):
        broken = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(len(broken))
            if rng.random() < 0.7:
                broken[at] = rng.integers(256)
            elif rng.random() < 0.5:
                del broken[at : at + rng.integers(1, 9)]
            else:
                broken[at:at] = broken[rng.integers(len(broken)) :][:9]
        path.write_bytes(broken)
        try:
            cylstm.load(path)
        except ValueError:
            refused += 1
    assert 200 < refused


def test_a_storage_that_is_not_there_or_of_another_length(path: Path) -> None:
    file = TorchFile()
    state = {name: file.tensor(array) for name, array in STATE.items()}
    key = next(iter(file.storages))
    kind, elements = file.storages[key]
    file.storages[key] = kind, elements[:-1]
    for form in ("zip", "old"):
        getattr(file, form)(path, state)
        with pytest.raises(ValueError, match="bytes, expected|elements, expected"):
            cylstm.load(path)
    del file.storages[key]
    for form in ("zip", "old"):
        getattr(file, form)(path, state)
        with pytest.raises(ValueError, match="the archive has no archive/data/0|'0' is missing"):
            cylstm.load(path)


@pytest.mark.slow
def test_bombs_in_archives(path: Path) -> None:
    """A compressed storage or pickle that unpacks to a hundred megabytes is not unpacked."""
    file = TorchFile()
    zeros = np.zeros(10_000_000, "f")
    tensor = file.tensor(zeros, size=(2500, 4000), stride=(4000, 1))
    member = {"data.pkl": dumped({"weight_ih_l0": tensor, "weight_hh_l0": tensor})}
    for large in ("data/0", "data.pkl"):
        content = member | {"data/0": zeros.tobytes()}
        if large == "data.pkl":
            content["data.pkl"] += b"\0" * 100_000_000
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in content.items():
                archive.writestr(f"a/{name}", data)
        del content
        tracemalloc.start()
        with pytest.raises(ValueError):
            cylstm.load(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
        tracemalloc.stop()


def test_two_pickles_in_an_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", dumped({}))
        archive.writestr("b/data.pkl", dumped({}))
    with pytest.raises(ValueError, match="2 members are named data.pkl"):
        cylstm.load(path)


@pytest.mark.parametrize(
    "value", [None, (), ("storage",), ("storage", "FloatStorage", "0", "cpu", 1), 7,
              ("storage", Global("torch", "FloatStorage"), "0", "cpu", -1),
              ("storage", Global("torch", "FloatStorage"), "0", "cpu", "x")]
)  # fmt: skip
def test_persistent_ids_of_nothing(value: Any, path: Path) -> None:
    file = TorchFile()
    for form in ("zip", "old"):
        getattr(file, form)(path, {"a": Persistent(value)})
        with pytest.raises(ValueError, match="persistent id|a storage of"):
            cylstm.load(path)


def test_a_persistent_id_that_takes_for_ever_to_print(path: Path) -> None:
    """((x, x), (x, x)), sixty times over."""
    TorchFile().zip(path, b"\x80\x02)" + b"2\x86" * 60 + b"Q.")
    with pytest.raises(ValueError, match="persistent id that is no storage") as error:
        cylstm.load(path)
    assert len(str(error.value)) < 500


def test_a_dict_that_takes_for_ever_to_walk(path: Path) -> None:
    """{a: x, b: x} within itself, sixty times over."""
    file = TorchFile()
    state = dumped({name: file.tensor(array) for name, array in STATE.items()})[:-1]
    file.zip(path, state + b"q\x000}(U\x01ah\x00U\x01bh\x00u" * 60 + b".")
    layer = only_layer(cylstm.inspect(path))
    assert set(layer.path) == {"a", "."} and layer.obstacle() is None


def test_names_that_add_up(path: Path) -> None:
    """A long name with many arrays below it would be kept once for each."""
    path.write_bytes(dumped({"x" * 100_000: {"a": {str(k): None for k in range(1000)}}}))
    with pytest.raises(ValueError, match="a name of 100000 characters, expected at most 500"):
        cylstm.load(path)


def test_arrays_of_types_that_are_not_read(path: Path) -> None:
    """They stand beside, and only a layer of them is refused."""
    file = TorchFile()
    state = {name: file.tensor(array) for name, array in STATE.items()}
    odd = Persistent(("storage", Global("torch", "ComplexFloatStorage"), "x", "cpu", 4))
    state["other.weight"] = file.tensor(np.zeros(4), storage=odd)
    file.zip(path, state)
    assert same_bits(cylstm.load(path).state_dict().values(), STATE.values())


def test_nothing_is_imported() -> None:
    code = "import sys, cylstm.convert.torch; assert 'torch' not in sys.modules"
    assert run_python("-c", code).returncode == 0


def test_a_pickle_within_a_pickle_within(path: Path) -> None:
    """The function that reads a file in a file is not among those within it."""
    file = TorchFile()
    file.old(path, Call("torch.storage", "_load_from_bytes", b"x"))
    content = path.read_bytes()
    path.write_bytes(dumped(Call("torch.storage", "_load_from_bytes", content)))
    with pytest.raises(ValueError, match="no recurrent layer"):
        cylstm.load(path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_weights_that_are_nan_are_refused(write: Callable[..., None], tmp_path: Path) -> None:
    """By name and place. Infinities are loaded: a bias may be one on purpose."""
    path, state = tmp_path / "model", {name: array.copy() for name, array in STATE.items()}
    state["bias_hh_l1"][2] = -np.inf
    write(path, state)
    assert same_bits(cylstm.load(path).state_dict()["bias_hh_l1"], state["bias_hh_l1"])
    state["weight_hh_l1_reverse"][7, 3] = np.nan
    write(path, state)
    with pytest.raises(ValueError, match=r"weight_hh_l1_reverse is NaN at \[7, 3\]"):
        cylstm.load(path)
