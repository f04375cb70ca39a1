"""cylstm.h for those who compile against it: its version, what a shared library exports, C++."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import cylstm

SRC_C = Path(__file__).parents[1] / "src_c"
CXX = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(not SRC_C.is_dir(), reason="src_c/ is not here")


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def header() -> str:
    return (SRC_C / "cylstm.h").read_text()


def test_version() -> None:
    """That of the package, as a string and as numbers."""
    found = dict(re.findall(r"#define CYLSTM_(VERSION\w*) (\S+)", header()))
    assert found.pop("VERSION") == f'"{cylstm.__version__}"'
    parts = [found[f"VERSION_{part}"] for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(parts) == cylstm.__version__


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_a_shared_library_exports_the_header(build_c: Callable[..., Path]) -> None:
    """And nothing else: every function that it declares is marked, and no other is."""
    library = build_c("libcylstm.so", "-shared")
    symbols = run("nm", "-D", "--defined-only", library)
    exported = {line.split()[2] for line in symbols.splitlines()}
    code = re.sub(r"/\*.*?\*/", "", header(), flags=re.DOTALL)
    declared = set(re.findall(r"^(?!typedef)[\w ]+[ *](cylstm_\w+)\(", code, re.MULTILINE))
    assert len(declared) > 30 and exported == declared


@pytest.mark.skipif(not CXX, reason="there is no C++ compiler")
def test_cpp_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "program.cpp"
    source.write_text('#include "cylstm.h"\nint main() { return cylstm_isa_count() == 0; }\n')
    run(str(CXX), "-Wall", "-Werror", "-fsyntax-only", "-I", SRC_C, source)
