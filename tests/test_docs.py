"""The documentation is true: its Python runs, its links lead somewhere, and it names what there is.

A block of Python runs by itself, in a directory of its own, with warnings as errors. One that
needs a package which is not installed, such as torch, is skipped.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cylstm
from helpers import bits_promised

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)")

# The tests of an installed package run beside the documentation, and without the sources.
needs_sources = pytest.mark.skipif(not (ROOT / "cylstm").is_dir(), reason="no sources here")


def page(name: str) -> str:
    return (ROOT / name).read_text()


def python_blocks() -> list[tuple[str, int, str]]:
    """(page, line, code) of every block of Python."""
    return [
        (path.relative_to(ROOT).as_posix(), text.count("\n", 0, match.start()) + 2, match[2])
        for path in PAGES
        for text in [path.read_text()]
        for match in BLOCK.finditer(text)
        if match[1] == "python"
    ]


def packages(code: str) -> set[str]:
    """The packages that a block imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def test_there_is_something_to_run() -> None:
    """A fence that is spelt differently would leave its block untested."""
    pages = [name for name, _, _ in python_blocks()]
    assert {"README.md", "docs/training.md", "docs/numerics.md"} <= set(pages)
    imports = [re.findall("^import cylstm$", path.read_text(), re.M) for path in PAGES]
    assert len(sum(imports, [])) == len(pages)


@pytest.mark.parametrize(
    ("name", "line", "code"), [pytest.param(*b, id=f"{b[0]}:{b[1]}") for b in python_blocks()]
)
# Keras makes arrays of torch tensors, whose __array__ NumPy deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_block_runs(
    name: str, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [p for p in sorted(packages(code)) if importlib.util.find_spec(p) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if "array_equal" in code and not bits_promised():
        pytest.skip("says that bits are equal, which a BLAS does not promise")
    cylstm.save(cylstm.LSTM(8, 32), tmp_path / "model.pt")  # for those that load what is there
    monkeypatch.chdir(tmp_path)
    module = type(sys)("block")
    monkeypatch.setitem(sys.modules, "block", module)
    # so that a traceback shows the line in the page
    exec(compile("\n" * (line - 1) + code, ROOT / name, "exec"), module.__dict__)


PACKAGE = Path(cylstm.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
]
MODULES += ["cylstm", "cylstm.convert"]
PUBLIC = {f"cylstm.{name}": getattr(cylstm, name) for name in cylstm.__all__}
PUBLIC |= {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (cylstm.losses, cylstm.optim, cylstm.steps)
    for name in module.__all__
}


def run_examples(found: Any, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the examples of a docstring, with nothing imported but cylstm, and NumPy as np."""
    code = "".join(example.source for example in found.examples)
    missing = [p for p in sorted(packages(code)) if importlib.util.find_spec(p) is None]
    if missing:
        return 0
    monkeypatch.chdir(directory)
    found.globs = {"cylstm": cylstm, "np": np}
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    runner.run(found)
    return runner.failures


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("cylstm.dask", "cylstm.torch", "cylstm.torch_weights", "cylstm.threadpoolctl"):
        pytest.importorskip(name.split(".")[1].split("_")[0])
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder().find(module)
    if name == "cylstm":  # what is of the extension, which would have its methods left out
        for kind in (cylstm.Tape, cylstm.Stream, cylstm.Gradients):
            tests += doctest.DocTestFinder().find(kind, kind.__name__, module=False)
    failures = {test.name: run_examples(test, tmp_path, monkeypatch) for test in tests}
    assert not any(failures.values()), failures  # the output has been printed


def documented() -> Iterator[tuple[str, str]]:
    """(name, docstring) of every public function, class and method, inherited ones included."""
    for name, value in PUBLIC.items():
        if inspect.ismodule(value):
            continue
        yield name, value.__doc__ or ""
        for kind in value.__mro__ if inspect.isclass(value) else ():
            if not kind.__module__.startswith("cylstm"):
                continue
            for key, member in vars(kind).items():
                shown = not key.startswith("_") or key == "__call__"
                if shown and callable(member) and member.__doc__:
                    yield f"{name}.{key}", member.__doc__


def test_every_public_docstring_has_an_example() -> None:
    found = dict(documented())
    assert len(found) > 100 and "cylstm.Stream.run" in found and "cylstm.LSTM.stream" in found
    assert not [name for name, text in found.items() if ">>> " not in text]


@needs_sources
def test_the_reference_has_every_public_name() -> None:
    """Its pages name objects one by one; what they are called there is found."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    text = "".join(path.read_text() for path in pages)
    named = re.findall(r"^\.\. auto(class|function|module):: (\S+)$", text, re.M)
    whole = {name for kind, name in named if kind == "module"}
    shown = {name for _, name in named}
    missing = [
        name
        for name, value in PUBLIC.items()
        if not inspect.ismodule(value) and not {name, name.rpartition(".")[0]} & (shown | whole)
    ]
    assert not missing, f"docs/reference does not name {missing}"
    index = page("docs/index.md")
    assert all(f"reference/{path.stem}\n" in index for path in pages)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
@needs_sources
def test_links_lead_to_files(path: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", path.read_text())):
        assert (path.parent / target).exists(), target


@needs_sources
def test_commands_exist() -> None:
    """Every `make target` and every path of a `python path` that a page names."""
    targets = set(re.findall(r"^([a-z][\w-]*):", page("Makefile"), re.M))
    for path in PAGES:
        text = path.read_text()
        for command in re.findall(r"(?:`|^ {4})(?:PYTHON=\S+ )?make ([a-z][\w-]*)", text, re.M):
            assert command in targets, f"{path.name}: make {command}"
        for script in re.findall(r"python (?:-m pytest )?((?:\w+/)+\w+\.py)", text):
            assert (ROOT / script).is_file(), f"{path.name}: {script}"


@needs_sources
def test_environment_variables_are_documented() -> None:
    sources = [*(ROOT / "cylstm").glob("*.p*"), *(ROOT / "src_c").rglob("*.[ch]")]
    read = {
        name
        for path in sources
        for name in re.findall(
            r"(?:environ\.get\(|environ\[|getenv\()\s*\"(\w+)\"", path.read_text()
        )
    }
    own = {"CYLSTM_ISA", "CYLSTM_INT8", "CYLSTM_GEMM", "CYLSTM_NUM_THREADS"}
    assert read == own | {"OMP_NUM_THREADS"}
    assert all(name in page("README.md") for name in read)


@needs_sources
def test_the_map_names_every_file() -> None:
    """ARCHITECTURE.md has a line for each source file, and none for a file that is gone."""
    text = page("ARCHITECTURE.md")
    files = [path for path in (ROOT / "cylstm").iterdir() if path.suffix.startswith(".p")]
    files += (ROOT / "src_c").rglob("*.[ch]")
    named = set(re.findall(r"(?<![\w*])\w+\.(?:pyx|pyi|pxi|pxd|py|c|h)\b", text))
    for isas in re.findall(r"\{([\w,]+)\}_f\{32,64\}\.c\b", text):
        named |= {f"{isa}_f{bits}.c" for isa in isas.split(",") for bits in (32, 64)}
    missing = {path.name for path in files} - named
    assert not missing, f"ARCHITECTURE.md does not name {sorted(missing)}"
    folders = ["cylstm", "src_c", "tests", "tools"]
    everywhere = {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}
    assert not named - everywhere, f"ARCHITECTURE.md names {sorted(named - everywhere)}"


@needs_sources
def test_the_tests_that_promises_name_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page("SECURITY.md"))
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(), f"{file} has no {test}"
