"""Files: whole or not at all, readable by others, and never more than a ValueError when broken."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import cylstm
from cylstm import LSTM, Linear, files, tensors
from helpers import new_weights, run_python, same_bits

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
    with new_weights(loaded) as flat:  # and it is a module like any other
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
    with new_weights(module) as flat:
        flat[:] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38, 0, 1]
    cylstm.save(module, tmp_path / "a")
    assert same_bits(cylstm.load(tmp_path / "a")._weights.flat, module._weights.flat)


# --- writing: whole or not at all


def test_saving_replaces_what_is_there(file: Path) -> None:
    with open(file, "rb") as old:
        before = old.read()
        old.seek(0)
        cylstm.save(Linear(3, 2, seed=2), file)
        assert old.read() == before  # a reader of the old file keeps it
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


on_posix = pytest.mark.skipif(os.name != "posix", reason="files as on POSIX")


@on_posix
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


@on_posix
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400])
def test_a_replaced_file_hands_on_its_mode(mode: int, file: Path) -> None:
    file.chmod(mode)
    cylstm.save(Linear(3, 2), file)
    assert stat.S_IMODE(file.stat().st_mode) == mode


@on_posix
def test_a_replaced_file_is_never_more_open_than_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.chmod(0o600)
    seen = []
    real = os.fchmod

    def watched(descriptor: int, mode: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", watched)
    cylstm.save(Linear(3, 2), file)
    assert seen == [0o600]


@on_posix
@pytest.mark.parametrize("allowed", [True, False])
def test_a_replaced_file_hands_on_its_owner(
    allowed: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def chown(descriptor: int, owner: int, group: int) -> None:
        asked.append((owner, group))
        if not allowed:
            raise PermissionError

    monkeypatch.setattr(os, "fchown", chown)
    cylstm.save(Linear(3, 2, seed=2), file)
    assert asked == [(file.stat().st_uid, file.stat().st_gid)]
    assert same_bits(cylstm.load(file)._weights.flat, Linear(3, 2, seed=2)._weights.flat)


@on_posix
def test_another_hard_link_keeps_the_old_content(file: Path) -> None:
    other = file.parent / "backup"
    other.hardlink_to(file)
    before = file.read_bytes()
    cylstm.save(Linear(3, 2, seed=2), file)
    assert other.read_bytes() == before != file.read_bytes()


@on_posix
def test_devices_and_fifos_are_written_to(file: Path) -> None:
    """The device is a terminal, in whose folder no code of ours could put a file instead."""
    import tty

    module, fifo = Linear(3, 2, seed=1), file.parent / "fifo"
    reading, writing = os.openpty()
    with open(reading, "rb", buffering=0) as master, open(writing, "wb"):
        tty.setraw(writing)
        cylstm.save(module, os.ttyname(writing))
        assert stat.S_ISCHR(os.stat(os.ttyname(writing)).st_mode)
        assert master.read(2**16) == file.read_bytes()
    os.mkfifo(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    cylstm.save(module, fifo)
    reader.join()
    assert received == [file.read_bytes()] and stat.S_ISFIFO(fifo.stat().st_mode)


@on_posix
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(OSError):
            cylstm.save(Linear(3, 2), "socket")
        assert stat.S_ISSOCK(os.stat("socket").st_mode)


def test_a_path_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="''"):
        cylstm.save(Linear(3, 2), "")
    assert os.listdir(tmp_path) == []


def test_the_longest_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    cylstm.save(Linear(3, 2), path)
    assert os.listdir(tmp_path) == [path.name] and cylstm.load(path)


def test_more_names_than_a_header_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_HEADER", 1000)
    with pytest.raises(ValueError, match="the names of 80 arrays take .* holds at most 1000"):
        cylstm.save(LSTM(1, 1, num_layers=20), tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@on_posix
@pytest.mark.parametrize("limit", [0, 1, 8, 9, 500, 1_000, 65_536, 500_000])
def test_a_full_disk(limit: int, tmp_path: Path) -> None:
    """A limit on file sizes fails in `write`, as a full disk does."""
    path = tmp_path / "model"
    for before in (False, True):
        if before:
            cylstm.save(LSTM(64, 300, seed=1), path)
        done = run_python(
            "-c",
            f"import resource, signal, cylstm; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            f"try: cylstm.save(cylstm.LSTM(64, 300, seed=2), {str(path)!r})\n"
            f"except OSError as error: print(type(error))",
        )
        assert done.stdout.strip() == "<class 'OSError'>", done.stderr
        assert os.listdir(tmp_path) == ["model"] * before
    assert same_bits(cylstm.load(path)._weights.flat, LSTM(64, 300, seed=1)._weights.flat)


@pytest.mark.timing
@on_posix
def test_a_process_killed_while_it_saves(tmp_path: Path) -> None:
    """At any moment the file under the name is whole, and one of those that were saved."""
    path = tmp_path / "model"
    code = (
        "import cylstm\nmodules = [cylstm.LSTM(64, 200, seed=seed) for seed in (1, 2)]\n"
        f"while True:\n    for module in modules: cylstm.save(module, {str(path)!r})"
    )
    wanted = [LSTM(64, 200, seed=seed)._weights.flat for seed in (1, 2)]
    rng = np.random.default_rng(1)
    cut_short = 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.wait()
        assert any(same_bits(cylstm.load(path)._weights.flat, flat) for flat in wanted)
        cut_short += len(os.listdir(tmp_path)) - 1
        for left in tmp_path.iterdir():
            left.unlink()
    assert cut_short  # or nothing was killed at its work


def test_saving_to_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cylstm.save(Linear(3, 2), tmp_path / "none" / "a")
    with pytest.raises(OSError):
        cylstm.save(Linear(3, 2), tmp_path)
    assert os.listdir(tmp_path.parent) and os.listdir(tmp_path) == []


def test_what_can_be_saved(tmp_path: Path) -> None:
    own = type("Linear", (Linear,), {})(3, 2)  # not a Linear, whatever its name
    for module in (None, {"weight": np.zeros(3)}, own):
        with pytest.raises(TypeError, match="can't save <class .*>, only GRU, LSTM, RNN, Linear"):
            cylstm.save(module, tmp_path / "a")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


# --- reading: all or nothing, and the message names the file and what is wrong


@pytest.mark.parametrize(
    "metadata, tensors, text",
    [
        ({"format": None}, {}, "no recurrent layer in this safetensors file"),
        ({"format": "2"}, {}, "format '2', this version reads '1'"),
        ({"class": "Conv"}, {}, "class 'Conv', expected one of GRU, LSTM, RNN, Linear"),
        ({"class": None}, {}, "class '', expected one of GRU, LSTM, RNN, Linear"),
        ({"class": "LSTM"}, {}, "missing: hidden_size; unexpected: in_features"),
        ({"config": None}, {}, "its configuration: Expecting value"),
        ({"config": "{"}, {}, "its configuration: Expecting property name"),
        ({"config": "[" * 100_000}, {}, "recursion|Expecting"),  # by the depth of Python's stack
        ({"config": "3"}, {}, "its configuration: 3 is no JSON object"),
        ({"config": "{}"}, {}, "missing: in_features; missing: out_features"),
        ({"config": '{"dtype": "float32"}'}, {}, "missing: in_features"),
        ({"config": '{"in_features": 3, "in_features": 3}'}, {}, "stands there twice"),
        ({"config": '{"in_features": 3, "out_features": 2, "depth": 1}'}, {}, "unexpected: depth"),
        ({"config": '{"in_features": 3, "out_features": 2, "seed": 1}'}, {}, "unexpected: seed"),
        ({"config": '{"in_features": 3, "out_features": 2, "dtype": [1]}'}, {},
         r"dtype is \[1\], expected"),
        ({"config": '{"in_features": 3, "out_features": "2", "dtype": "float32"}'}, {},
         "out_features is '2', expected an integer"),
        ({"config": '{"in_features": %s, "out_features": 2}' % ("9" * 5000)}, {},
         r"\(5002 characters\) is no size"),
        ({"config": '{"in_features": 4, "out_features": 2, "dtype": "float32"}'}, {},
         r"weight has shape \(2, 3\), expected \(2, 4\)"),
        ({"config": '{"in_features": 3, "out_features": 2, "bias": false, "dtype": "float32"}'}, {},
         "unexpected: bias"),
        ({}, {"bias": None}, "missing: bias"),
        ({}, {"bias": None, "bais": np.zeros(2, "f")}, "missing: bias; unexpected: bais"),
        ({}, {"bias": np.zeros(3, "f")}, r"bias has shape \(3,\), expected \(2,\)"),
        ({}, {"bias": np.zeros(2)}, "bias is float64, which only cast=True narrows to float32"),
        ({}, {"bias": np.zeros(2, np.int64)}, "bias is int64, expected float32"),
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
        with pytest.raises(ValueError, match="no recurrent layer in this safetensors file"):
            cylstm.load(path)


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


JUNK: list[Any] = [
    None, True, 0, 1, -1, 3, 2**31, 2**64, 10**19, 1.5, "", "3", "F32", "F64", "BF16", "LSTM",
    "x" * 99, [], [0], [5], [2, 3], [0, 20], {}, {"dtype": "F32"},
]  # fmt: skip


def mutated_json(value: Any, rng: np.random.Generator) -> Any:
    """The value with one entry somewhere within it removed, renamed, doubled or replaced."""
    junk = JUNK[rng.integers(len(JUNK))]
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return junk
    if isinstance(value, list):
        value = list(value)
        value[rng.integers(len(value))] = junk
        return value
    key = list(value)[rng.integers(len(value))]
    what = rng.integers(6)
    if what == 0:
        return {name: item for name, item in value.items() if name != key}
    if what == 1:
        return {**value, str(junk): value[key]}
    if what == 2:
        return {(str(junk) if name == key else name): item for name, item in value.items()}
    return {**value, key: mutated_json(value[key], rng)}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with bytes flipped, moved or cut, or with another header."""
    stop = 8 + int.from_bytes(content[:8], "little")
    what = rng.integers(6)
    if what < 2:  # some bytes become other printable ones, so that the JSON often stays JSON
        broken = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            value = rng.choice(list(b'0123456789{}[]",:eF_')) if what else rng.integers(256)
            broken[rng.integers(stop)] = value
        return bytes(broken)
    if what == 2:
        start, end = sorted(rng.integers(len(content), size=2))
        at = rng.integers(len(content))
        return [content[:start] + content[end:], content[:at] + content[start:end] + content[at:]][
            rng.integers(2)
        ]
    header = json.loads(content[8:stop])
    if what == 3:
        header = mutated_json(header, rng)
    else:
        metadata = header["__metadata__"]
        config = mutated_json(json.loads(metadata["cylstm.config"]), rng)
        header["__metadata__"] = {**metadata, "cylstm.config": json.dumps(config)}
        if what == 4:
            header = mutated_json(header, rng)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[stop:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "everything", "linear"])
def test_mutated_files_load_or_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    cylstm.save(MODULES[name](), path)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(1500):
        path.write_bytes(mutated(content, rng))
        refused += not assert_loads_or_refuses(path)
    assert 700 < refused < 1500


def test_a_refused_file_makes_no_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No constructor of an allocation runs before the tensors have been checked."""
    rewrite(file, {}, bias=np.zeros(3, "f"))
    monkeypatch.setattr(Linear, "_prepare", lambda *args: pytest.fail("prepared"))
    with pytest.raises(ValueError, match="bias has shape"):
        cylstm.load(file)
    assert files.FORMAT == "1"
