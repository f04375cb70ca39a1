"""cylstm.h for those who compile against it: its version, what a shared library exports, C++."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cylstm

SRC_C = Path(__file__).parents[1] / "src_c"
CC, CXX = (
    shutil.which(os.environ.get(name, usual)) for name, usual in (("CC", "cc"), ("CXX", "c++"))
)

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


@pytest.mark.skipif(not CC or not shutil.which("nm"), reason="needs a C compiler and nm")
def test_a_shared_library_exports_the_header(tmp_path: Path) -> None:
    """And nothing else: every function that it declares is marked, and no other is."""
    flags = "-std=c11 -O0 -fPIC -pthread -fvisibility=hidden -DCYLSTM_SHARED".split()

    def compile_one(source: Path) -> Path:
        out = tmp_path / source.with_suffix(".o").name
        run(str(CC), *flags, "-c", source, "-o", out)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sorted(SRC_C.rglob("*.c"))))
    run(str(CC), "-shared", "-pthread", "-o", tmp_path / "libcylstm.so", *objects)
    symbols = run("nm", "-D", "--defined-only", tmp_path / "libcylstm.so")
    exported = {line.split()[2] for line in symbols.splitlines()}
    code = re.sub(r"/\*.*?\*/", "", header(), flags=re.DOTALL)
    declared = set(re.findall(r"^(?!typedef)[\w ]+[ *](cylstm_\w+)\(", code, re.MULTILINE))
    assert len(declared) > 30 and exported == declared


@pytest.mark.skipif(not CXX, reason="there is no C++ compiler")
def test_cpp_reads_it(tmp_path: Path) -> None:
    source = tmp_path / "program.cpp"
    source.write_text('#include "cylstm.h"\nint main() { return cylstm_isa_count() == 0; }\n')
    run(str(CXX), "-Wall", "-Werror", "-fsyntax-only", "-I", SRC_C, source)
