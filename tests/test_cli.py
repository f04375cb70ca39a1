"""The command: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
import cylstm.cli_data
from cylstm.cli import main
from cylstm.steps import FinalState
from helpers import run_python

rng = np.random.default_rng(0)


@pytest.fixture
def lstm(tmp_path: Path) -> tuple[str, cylstm.LSTM]:
    module = cylstm.LSTM(3, 4, 2, seed=1)
    path = str(tmp_path / "lstm.safetensors")
    cylstm.save(module, path)
    return path, module


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, cylstm.Sequential]:
    layers = [FinalState(cylstm.LSTM(3, 4, batch_first=True, seed=1)), cylstm.Linear(4, 2, seed=2)]
    made = cylstm.Sequential(layers)
    path = str(tmp_path / "model.safetensors")
    cylstm.save(made, path)
    return path, made


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def frames(*shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def test_as_a_program() -> None:
    done = run_python("-m", "cylstm", "info")
    assert done.returncode == 0 and "isa_available" in done.stdout
    done = run_python("-m", "cylstm", "inspect", "no such file")
    assert done.returncode == 2 and done.stderr.startswith("cylstm inspect: ")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert run_python("-m", "cylstm").returncode == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["info"], ["inspect"], ["convert"], ["run"], ["check"], ["bench"]):
        with pytest.raises(SystemExit) as done:
            main([*arguments, "--help"])
        assert done.value.code == 0
        assert "Exit codes" in capsys.readouterr().out or arguments


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "info")
    assert found["version"] == cylstm.__version__ and found["packages"]["numpy"]


def test_inspect(lstm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = lstm
    assert told(capsys, "inspect", path)["whole"] is True
    assert main(["inspect", path]) == 0
    assert capsys.readouterr().out.strip() == repr(cylstm.inspect(path))


@pytest.mark.parametrize("end", ["safetensors", "npz", "keras.npz"])
def test_convert(lstm: Any, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, module = lstm
    out = str(tmp_path / f"out.{end}")
    assert told(capsys, "convert", path, out)["output"] == out
    state = module.state_dict()
    if end == "safetensors":
        assert repr(cylstm.load(out)) == repr(module)
    elif end == "npz":
        with np.load(out) as held:
            assert sorted(held.files) == sorted(state)
            assert all(np.array_equal(held[name], state[name]) for name in state)
    else:
        with np.load(out) as held:
            assert held["1.2"].shape == (16,) and held["0.0"].shape == (3, 16)


@pytest.mark.parametrize("batch_first", [False, True])
def test_run_a_module(
    batch_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = cylstm.LSTM(3, 4, batch_first=batch_first, seed=1)
    path = str(tmp_path / "m.safetensors")
    cylstm.save(module, path)
    x, lengths = frames(5, 7, 3), np.array([7, 1, 3, 4, 7])
    np.savez(tmp_path / "x.npz", x=x, lengths=lengths)
    told(
        capsys,
        "run",
        path,
        str(tmp_path / "x.npz"),
        "-o",
        str(tmp_path / "y.npy"),
        "--batch-size",
        "2",
    )
    laid_out = x if batch_first else x.swapaxes(0, 1)
    want, _ = module(laid_out, lengths=lengths)
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), want if batch_first else want.swapaxes(0, 1)
    )


def test_run_a_table(lstm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, module = lstm
    x = frames(6, 3)
    rows = [",".join(f"{value:.9g}" for value in row) for row in x]
    (tmp_path / "x.csv").write_text("\n".join(["a,b,c", *rows]))
    assert main(["run", path, str(tmp_path / "x.csv"), "-o", str(tmp_path / "y.csv")]) == 0
    y = np.loadtxt(tmp_path / "y.csv", delimiter=",")
    np.testing.assert_allclose(y, module(x)[0], rtol=1e-6, atol=1e-7)
    assert "(6, 4) float32" in capsys.readouterr().out


def test_run_a_whole_model(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, made = model
    x = rng.standard_normal((5, 7, 3))  # float64 is converted
    np.save(tmp_path / "x.npy", x)
    told(capsys, "run", path, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npz"))
    with np.load(tmp_path / "y.npz") as held:
        np.testing.assert_array_equal(held["y"], made(x.astype(np.float32)))


def test_run_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An Embedding takes ids, of any dtype that holds whole numbers; one sequence or many."""
    embedding = cylstm.Embedding(9, 4, seed=1)
    path = str(tmp_path / "embedding.safetensors")
    cylstm.save(embedding, path)
    ids = rng.integers(0, 9, (5, 7))
    for given in (ids, ids.astype(np.float64), ids[0]):
        np.savez(tmp_path / "ids.npz", whatever=given)
        told(capsys, "run", path, str(tmp_path / "ids.npz"), "-o", str(tmp_path / "y.npy"))
        np.testing.assert_array_equal(
            np.load(tmp_path / "y.npy"), embedding.state_dict()["weight"][given.astype(int)]
        )
    np.save(tmp_path / "x.npy", ids + 0.5)
    assert main(["run", path, str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]) == 2
    assert "holds fractions, expected ids" in capsys.readouterr().err


def test_check_of_ids(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ones are within the table."""
    embedding = cylstm.Embedding(9, 4, seed=1)
    cylstm.save(embedding, tmp_path / "embedding.safetensors")
    table = embedding.state_dict()["weight"]
    monkeypatch.setattr("cylstm.cli.PEERS", {"torch": lambda given, model: lambda x: table[x]})
    found = told(capsys, "check", str(tmp_path / "embedding.safetensors"), "--against", "torch")
    assert found["differences"] == {"random": 0.0}


def test_check_of_a_model_that_takes_any_width(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No random input can be drawn for it, but one may be given."""
    model = cylstm.Sequential([cylstm.steps.Activation("relu")])
    path, x = str(tmp_path / "relu.safetensors"), np.ones((2, 5, 3), np.float32)
    cylstm.save(model, path)
    np.save(tmp_path / "x.npy", -x)
    monkeypatch.setattr("cylstm.cli.PEERS", {"torch": lambda given, model: lambda x: 0 * x})
    assert main(["check", path, "--against", "torch"]) == 2
    assert "give one with --input" in capsys.readouterr().err
    file = str(tmp_path / "x.npy")
    found = told(capsys, "check", path, "--against", "torch", "--input", file)
    assert found["differences"] == {file: 0.0}


def test_options_are_json_or_words(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    given: dict[str, Any] = {}

    def load(path: str, inside: Any = None, **options: Any) -> Any:
        given.update(options)
        return cylstm.LSTM(3, 4)

    monkeypatch.setattr("cylstm.convert.load", load)
    words = ["a=True", "b=None", "c=tanh", "d=0.5", "e=false", "f=[1, 2]"]
    options = [part for word in words for part in ("--option", word)]
    told(capsys, "convert", "model", str(tmp_path / "out.npz"), *options)
    assert given == {"a": True, "b": None, "c": "tanh", "d": 0.5, "e": False, "f": [1, 2]}


def test_bench_of_what_has_no_stream(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    path = tmp_path / "both.safetensors"
    cylstm.save(cylstm.LSTM(3, 4, bidirectional=True), path)
    monkeypatch.setattr("cylstm.cli.PEERS", {})
    arguments = ("--seconds", "0.01", "--steps", "5", "--batch", "2")
    found = told(capsys, "bench", str(path), *arguments)
    assert (
        list(found["seconds"]) == ["call"] and "direction" in found["refused"]["step of a stream"]
    )
    assert main(["bench", str(path), *arguments]) == 0
    assert capsys.readouterr().out.startswith("x (2, 5, 3)\ncall ")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def load(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("cylstm.convert.load", load)
    assert main(["bench", "model"]) == 130
    assert capsys.readouterr().err == "cylstm bench: interrupted\n"


def test_progress_is_for_terminals(
    lstm: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", frames(5, 7, 3))
    arguments = ["run", lstm[0], str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy")]
    arguments += ["--batch-size", "2"]
    assert main(arguments) == 0 and not capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main([*arguments, "--json"]) == 0 and not capsys.readouterr().err
    assert main(arguments) == 0
    shown = [f"\r{n} of 5 sequences" for n in (2, 4, 5)]
    assert capsys.readouterr().err == "".join(shown) + "\n"


def test_bench(model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def peer(given: Any, model: Any) -> Any:
        raise ValueError("not a file of theirs")

    monkeypatch.setattr("cylstm.cli.PEERS", {"torch": peer})
    monkeypatch.setattr("cylstm.cli.version_of", lambda name: "1.0")
    found = told(capsys, "bench", model[0], "--seconds", "0.01", "--steps", "5", "--batch", "2")
    assert found["shape"] == [2, 5, 3]
    assert found["refused"] == {"call, torch": "ValueError: not a file of theirs"}
    assert all(isinstance(value, float) for value in found["seconds"].values())
    assert found["seconds"]["call"] > 0 and found["seconds"]["step of a stream"] > 0


def test_check(lstm: Any, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    path, module = lstm

    def peer(given: Any, model: Any) -> Any:
        return lambda x: model(x.swapaxes(0, 1))[0].swapaxes(0, 1) + 1e-3

    monkeypatch.setattr("cylstm.cli.PEERS", {"torch": peer})
    assert main(["check", path, "--against", "torch"]) == 1
    assert "NOT within 1e-05" in capsys.readouterr().out
    assert main(["check", path, "--against", "torch", "--tolerance", "0.01"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["convert", "{lstm}", "x.odd"], "expected .safetensors"),
        (["convert", "{model}", "x.npz"], "goes into .safetensors alone"),
        (["convert", "{lstm}", "x.npz", "--option", "a"], "expected NAME=VALUE"),
        (["convert", "{lstm}", "x.npz", "--option", "a=1"], "unexpected option a"),
        (["run", "{lstm}", "{csv}", "-o", "y.npy"], "no table of numbers"),
        (["run", "{lstm}", "{words}", "-o", "y.npy"], "could not convert string"),
        (["run", "{lstm}", "{two}", "-o", "y.npy"], "holds a, b, expected x, and lengths if any"),
        (["run", "{lstm}", "{many}", "-o", "y.csv"], "y has shape (2, 5, 4), which is no table"),
        (["run", "{lstm}", "{many}", "-o", "y.txt"], "y.txt: expected .npy, .npz or .csv"),
        (["run", "{lstm}", "x.txt", "-o", "y.npy"], "expected .npy, .npz or .csv"),
        (["run", "{lstm}", "{complex}", "-o", "y.npy"], "holds complex128, expected numbers"),
        (["run", "{lstm}", "{empty}", "-o", "y.npy"], "empty.npy: No data"),
        (["check", "{lstm}", "--against", "torch", "--input", "{lengths}"], "has lengths"),
        (["check", "{lstm}", "--against", "torch", "--input", "{odd}"], "KeyError: 'two\\nlines'"),
        (["bench", "{lstm}", "--shape", "x=1,2"], "expected --steps and --batch"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    message: str,
    lstm: Any,
    model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    def peer(given: Any, model: Any) -> Any:
        def run(x: Any) -> Any:
            if len(x) == 5:
                raise KeyError("two\nlines")  # as it may come from elsewhere
            return cylstm.cli_data.predict(model, x)

        return run

    monkeypatch.setattr("cylstm.cli.PEERS", {"torch": peer})
    (tmp_path / "x.csv").write_text("1,2\n3\n")
    (tmp_path / "words.csv").write_text("1,2,3\n4,5,six\n")
    np.savez(tmp_path / "two.npz", a=frames(2, 5, 3), b=frames(2, 5, 3))
    np.save(tmp_path / "many.npy", frames(2, 5, 3))
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "complex.npy", np.ones((2, 3), complex))
    np.save(tmp_path / "odd.npy", np.ones((5, 2, 3)))
    np.savez(tmp_path / "lengths.npz", x=frames(2, 4, 3), lengths=[4, 1])
    files = (
        "x.csv",
        "empty.npy",
        "complex.npy",
        "odd.npy",
        "lengths.npz",
        "words.csv",
        "two.npz",
        "many.npy",
    )
    names = {name.partition(".")[0]: tmp_path / name for name in files}
    names |= {"lstm": lstm[0], "model": model[0], "csv": tmp_path / "x.csv"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "m", "x.npy", "-o", "y.npy", "--batch-size", "0"],
        ["check", "m", "--against", "torch", "--steps", "0"],
        ["check", "m", "--against", "torch", "--batch", "-1"],
        ["bench", "m", "--seconds", "nan"],
        ["bench", "m", "--shape", "x=2,three"],
    ],
)
def test_what_no_number_can_be(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 2 and f"argument {arguments[-2]}: " in capsys.readouterr().err
