"""Files: whole or not at all, readable by others, and never more than a ValueError when broken."""

from __future__ import annotations

import builtins
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import cylstm
from cylstm import LSTM, Linear, files
from helpers import same_bits

MODULES: dict[str, Callable[[], LSTM | Linear]] = {
    "lstm": lambda: LSTM(3, 5, seed=1),
    "float64": lambda: LSTM(3, 5, seed=1, dtype="float64"),
    "everything": lambda: LSTM(
        3,
        5,
        num_layers=2,
        batch_first=True,
        dropout=0.25,
        bidirectional=True,
        proj_size=2,
        seed=1,
    ),
    "no_bias": lambda: LSTM(3, 5, bias=False, seed=1),
    "linear": lambda: Linear(3, 2, seed=1),
    "linear_no_bias": lambda: Linear(3, 2, bias=False, seed=1, dtype="float64"),
}


def rewrite(path: Path, metadata: dict[str, str | None] | None = None, **tensors: Any) -> None:
    """Change metadata (None: remove) and tensors (None: remove) of a file."""
    with safetensors.safe_open(path, framework="numpy") as opened:
        meta = dict(opened.metadata())
    arrays = safetensors.numpy.load_file(path)
    meta |= {f"cylstm.{key}": value for key, value in (metadata or {}).items()}
    arrays |= tensors
    safetensors.numpy.save_file(
        {name: array for name, array in arrays.items() if array is not None},
        path,
        {key: value for key, value in meta.items() if value is not None},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "linear.safetensors"
    cylstm.save(Linear(3, 2, seed=1), path)
    return path


@pytest.mark.parametrize("as_str", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_round_trip(name: str, as_str: bool, tmp_path: Path) -> None:
    module = MODULES[name]()
    path = tmp_path / "ünï code.safetensors"
    cylstm.save(module, str(path) if as_str else path)
    loaded = cylstm.load(str(path) if as_str else path)
    assert type(loaded) is type(module) and repr(loaded) == repr(module)
    assert list(loaded.state_dict()) == list(module.state_dict())
    assert same_bits(loaded.state_dict().values(), module.state_dict().values())
    x = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(module.dtype)
    got, want = loaded(x), module(x)
    assert same_bits(got, want) if isinstance(want, np.ndarray) else same_bits(got[0], want[0])
    with loaded._update() as flat:  # and it is a module like any other
        flat += 1
    assert not same_bits(loaded.state_dict().values(), module.state_dict().values())


@pytest.mark.parametrize("name", MODULES)
def test_others_can_read_it(name: str, tmp_path: Path) -> None:
    module = MODULES[name]()
    path = tmp_path / "model.safetensors"
    cylstm.save(module, path)
    arrays = safetensors.numpy.load_file(path)
    want = module.state_dict()
    assert sorted(arrays) == sorted(want)
    assert all(same_bits(arrays[name], want[name]) for name in want)
    with safetensors.safe_open(path, framework="numpy") as opened:
        metadata = opened.metadata()
    assert metadata["cylstm.format"] == "1"
    assert metadata["cylstm.class"] == type(module).__name__
    assert json.loads(metadata["cylstm.config"]) == module._config()
    assert metadata["cylstm.version"] == cylstm.__version__


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    module = Linear(3, 2)
    with module._update() as flat:
        flat[:] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38, 0, 1]
    cylstm.save(module, tmp_path / "a")
    assert same_bits(cylstm.load(tmp_path / "a")._weights.flat, module._weights.flat)


# --- writing: whole or not at all


def test_saving_replaces_what_is_there(file: Path) -> None:
    with open(file, "rb") as old:
        before = old.read()
        old.seek(0)
        cylstm.save(Linear(3, 2, seed=2), file)
        assert old.read() == before  # whoever has the old file open keeps it
    loaded = cylstm.load(file)
    assert same_bits(loaded._weights.flat, Linear(3, 2, seed=2)._weights.flat)
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(
    file: Path, step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def fail(*args: Any) -> None:
        assert len(os.listdir(file.parent)) == 2  # the temporary file lies in the same folder
        raise error

    monkeypatch.setattr(os, step, fail)
    for path in (file, file.parent / "new"):
        files_before = sorted(os.listdir(file.parent))
        with pytest.raises(type(error)):
            cylstm.save(Linear(3, 2, seed=2), path)
        assert sorted(os.listdir(file.parent)) == files_before
    assert file.read_bytes() == before


def test_the_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*args: Any) -> None:
            calls.append(name)
            real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    cylstm.save(Linear(3, 2), tmp_path / "a")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as on POSIX")
def test_permissions_and_links(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "model")
    mask = os.umask(0o027)
    try:
        for _ in range(2):
            cylstm.save(Linear(3, 2), tmp_path / "link")
    finally:
        os.umask(mask)
    target = tmp_path / "folder" / "model"
    assert (tmp_path / "link").is_symlink() and not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]


def test_saving_to_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cylstm.save(Linear(3, 2), tmp_path / "none" / "a")
    with pytest.raises(OSError):
        cylstm.save(Linear(3, 2), tmp_path)
    assert os.listdir(tmp_path.parent) and os.listdir(tmp_path) == []


def test_what_can_be_saved(tmp_path: Path) -> None:
    own = type("Linear", (Linear,), {})(3, 2)  # not a Linear, whatever its name
    for module in (None, {"weight": np.zeros(3)}, own):
        with pytest.raises(TypeError, match="can save LSTM and Linear, got <class"):
            cylstm.save(module, tmp_path / "a")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_safetensors_is_needed_only_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_safetensors(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "safetensors":
            raise ModuleNotFoundError("No module named 'safetensors'", name="safetensors")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_safetensors)
    for call in (lambda: cylstm.save(Linear(3, 2), file), lambda: cylstm.load(file)):
        with pytest.raises(ImportError, match=re.escape("pip install cylstm[safetensors]")):
            call()


# --- reading: all or nothing, and the message names the file and what is wrong


@pytest.mark.parametrize(
    "metadata, tensors, text",
    [
        ({"format": None}, {}, "not written by cylstm.save: its metadata has no cylstm.format"),
        ({"format": "2"}, {}, "format '2', this version reads '1'"),
        ({"class": "GRU"}, {}, "class 'GRU', expected LSTM or Linear"),
        ({"class": None}, {}, "class '', expected LSTM or Linear"),
        ({"class": "LSTM"}, {}, "in_features"),
        ({"config": None}, {}, "Expecting value"),
        ({"config": "{"}, {}, "Expecting property name"),
        ({"config": "[" * 100_000}, {}, "recursion|Expecting"),  # by the depth of Python's stack
        ({"config": "3"}, {}, "its configuration is 3, expected a JSON object"),
        ({"config": "{}"}, {}, "is float32, its configuration None"),
        ({"config": '{"dtype": "float32"}'}, {}, "in_features"),
        ({"config": '{"in_features": 3, "out_features": 2, "dtype": "float64"}'}, {},
         "is float32, its configuration 'float64'"),
        ({"config": '{"in_features": 3, "out_features": "2", "dtype": "float32"}'}, {},
         "out_features is '2', expected an integer"),
        ({"config": '{"in_features": 4, "out_features": 2, "dtype": "float32"}'}, {},
         r"weight has shape \(2, 3\), expected \(2, 4\)"),
        ({"config": '{"in_features": 3, "out_features": 2, "bias": false, "dtype": "float32"}'}, {},
         "unexpected: bias"),
        ({}, {"bias": None}, "missing: bias"),
        ({}, {"bias": None, "bais": np.zeros(2, "f")}, "missing: bias; unexpected: bais"),
        ({}, {"bias": np.zeros(3, "f")}, r"bias has shape \(3,\), expected \(2,\)"),
        ({}, {"bias": np.zeros(2)}, "bias is float64, its configuration 'float32'"),
        ({}, {"bias": np.zeros(2, "e")}, "bias has dtype F16, expected F32 or F64"),
        ({}, {"bias": np.zeros(2, np.int64)}, "bias has dtype I64, expected F32 or F64"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit(
    metadata: dict[str, str | None], tensors: dict[str, Any], text: str, file: Path
) -> None:
    rewrite(file, metadata, **tensors)
    with pytest.raises(ValueError, match=text) as error:
        cylstm.load(file)
    assert str(error.value).startswith(f"{file}: ")


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for dtype in ("float32", "float16", "int64"):
        safetensors.numpy.save_file({"weight": np.zeros((2, 3), dtype)}, path)
        with pytest.raises(ValueError, match="not written by cylstm.save"):
            cylstm.load(path)
    for content in (b"", b"\0" * 100, b"PK\3\4 not safetensors", b"\xff" * 1000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole safetensors file") as error:
            cylstm.load(path)
        assert str(path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cylstm.load(tmp_path / "none")
    with pytest.raises(OSError):
        cylstm.load(tmp_path)
    with pytest.raises(TypeError):
        cylstm.load(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        dict(input_size=2**40, hidden_size=2**40, dtype="float32"),
        dict(input_size=1, hidden_size=10**30, dtype="float32"),
        dict(input_size=1, hidden_size=1, num_layers=10**12, dtype="float32"),
        dict(input_size=2**30, hidden_size=2**12, dtype="float32"),
    ],
)
def test_a_size_that_lies_takes_no_memory(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a"
    cylstm.save(LSTM(1, 1), path)
    rewrite(path, {"config": json.dumps(config)})
    with pytest.raises(ValueError, match=re.escape(str(path))):
        cylstm.load(path)


def assert_loads_or_refuses(path: Path) -> bool:
    """Whether the file loads; anything but a module, a ValueError or an OSError fails."""
    try:
        module = cylstm.load(path)
    except (ValueError, OSError):
        return False
    assert isinstance(module, (LSTM, Linear))
    return True


@pytest.mark.parametrize("name", ["lstm", "linear"])
def test_every_truncation_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    cylstm.save(MODULES[name](), path)
    content = path.read_bytes()
    for length in {*range(0, len(content), 16), *range(24), len(content) - 1}:
        path.write_bytes(content[:length])
        assert not assert_loads_or_refuses(path), length
    path.write_bytes(content)
    assert assert_loads_or_refuses(path)


@pytest.mark.parametrize("name", ["lstm", "everything", "linear"])
def test_flipped_bytes_in_the_header(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    cylstm.save(MODULES[name](), path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(1)
    refused = 0
    for trial in range(400):
        broken = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            # Some flips become other printable bytes, so that the JSON often stays JSON.
            value = rng.integers(256) if trial % 2 else rng.choice(list(b'0123456789{}[]",:eF_'))
            broken[rng.integers(header)] = value
        path.write_bytes(broken)
        refused += not assert_loads_or_refuses(path)
    assert refused > 200


def test_a_refused_file_makes_no_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No constructor of an allocation runs before the tensors have been checked."""
    rewrite(file, {}, bias=np.zeros(3, "f"))
    monkeypatch.setattr(Linear, "_install", lambda *args: pytest.fail("installed"))
    with pytest.raises(ValueError, match="bias has shape"):
        cylstm.load(file)
    assert files.FORMAT == "1"
