"""The rules of the house, read from the sources: who may depend on whom, where intrinsics may
stand, that the C core compiles bare, and that the compiler keeps the product's tile in registers.
"""

from __future__ import annotations

import ast
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC_C = ROOT / "src_c"

# From the ground up; a file uses what stands in a line below its own. A new file goes into a line.
PYTHON_LEVELS = [
    {"_core"},
    {"config", "embed", "weights"},
    {"layers", "linear"},
    {"losses", "optim", "files", "convert"},
    {"__init__"},
]
C_LEVELS = [
    {"kernels"},  # the folder
    {"cpu"},
    {"layout", "threads"},
    {"dispatch", "gemm", "pack"},
    {"sequence"},
    {"forward", "backward", "optim"},
]
PUBLIC_HEADER = "cylstm.h"  # the words that all C files above the kernels share

# Packages that the library may import: at the top of a module, or only inside a function.
IMPORTED = {"numpy"}
IMPORTED_LAZILY = {"scipy", "safetensors"}


def level(levels: list[set[str]], name: str) -> int:
    for number, names in enumerate(levels):
        if name in names:
            return number
    raise AssertionError(f"{name} has no place in the order of this file: give it one")


# --- Python


class _WithoutTypeChecking(ast.NodeTransformer):
    """Drops what stands under `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_typing else self.generic_visit(node)


def absolute_imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules that a Python file imports; "cylstm.x" for relative imports."""
    tree = _WithoutTypeChecking().visit(ast.parse(path.read_text()))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "cylstm" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "cylstm":
                names |= {f"cylstm.{alias.name}" for alias in node.names}
            else:
                names.add(module)
    return names


def python_modules() -> list[Path]:
    return [path for path in sorted((ROOT / "cylstm").rglob("*.py")) if path.stem != "reference"]


def cython_files() -> list[Path]:
    return [path for path in sorted((ROOT / "cylstm").iterdir()) if path.suffix in {".pyx", ".pxi"}]


def module_name(path: Path) -> str:
    """The name by which PYTHON_LEVELS knows a file of cylstm/: a folder counts as one."""
    return path.relative_to(ROOT / "cylstm").with_suffix("").parts[0]


@pytest.mark.parametrize("path", python_modules(), ids=module_name)
def test_python_dependencies_run_downward(path: Path) -> None:
    own = module_name(path)
    here = level(PYTHON_LEVELS, own)
    for name in absolute_imports(path):
        if name.startswith("cylstm."):
            used = name.split(".")[1]
            if used != "__version__":
                assert used == own or level(PYTHON_LEVELS, used) < here, f"{own} imports {used}"


@pytest.mark.parametrize("path", python_modules(), ids=module_name)
def test_python_needs_numpy_alone(path: Path) -> None:
    def foreign(names: set[str]) -> set[str]:
        packages = {name.split(".")[0] for name in names}
        return packages - set(sys.stdlib_module_names) - {"cylstm"}

    assert foreign(absolute_imports(path, top_level_only=True)) <= IMPORTED
    assert foreign(absolute_imports(path)) <= IMPORTED | IMPORTED_LAZILY


def test_reference_imports_numpy_alone() -> None:
    names = absolute_imports(ROOT / "cylstm" / "reference.py")
    typing_only = {"__future__", "collections.abc", "typing", "numpy.typing"}
    assert names - typing_only == {"numpy"}


def test_only_tests_and_docs_import_the_reference() -> None:
    folders = ["cylstm", "bench", "examples", "tools"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    for path in [*files, ROOT / "setup.py"]:
        assert not any("reference" in name for name in absolute_imports(path)), path
    for path in cython_files():
        assert not re.search(r"import.*\breference\b", path.read_text()), path


def test_core_imports_nothing_above_it() -> None:
    for path in cython_files():
        # What it cimports are declarations: _c.pxd mirrors cylstm.h, embed.pxd promises to others.
        for module in re.findall(
            r"^\s*(?:from|import)\s+(\S+)(?!.*\bcimport\b)", path.read_text(), re.M
        ):
            assert not module.startswith(("cylstm", ".")), f"{path.name} imports {module}"


# --- C


def without_comments(source: str) -> str:
    source = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), source, flags=re.S)
    return re.sub(r"//.*", "", source)


def c_files(folder: Path = SRC_C) -> list[Path]:
    return sorted([*folder.rglob("*.c"), *folder.rglob("*.h")])


def c_name(path: Path) -> str:
    """The name by which C_LEVELS knows a file: pack_tmpl.h is a part of pack."""
    return "kernels" if path.parent.name == "kernels" else path.stem.removesuffix("_tmpl")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", c_files(), ids=relative)
def test_c_dependencies_run_downward(path: Path) -> None:
    own = c_name(path)
    for include in re.findall(r'#\s*include\s*"(.+?)"', without_comments(path.read_text())):
        target = (path.parent / include).resolve()
        assert target.is_file(), f"{include} is not found beside {path.name}"
        if path.name == PUBLIC_HEADER:
            raise AssertionError("the public header stands alone")
        if target.name == PUBLIC_HEADER:
            assert own != "kernels", "the kernels know nothing of the public header"
            continue
        used = c_name(target)
        assert used == own or level(C_LEVELS, used) < level(C_LEVELS, own), f"{own} uses {used}"


@pytest.mark.parametrize("path", c_files(), ids=relative)
def test_no_python_in_the_core(path: Path) -> None:
    assert not re.search(r"\bPython\.h\b|\bPy[A-Z_]|numpy", without_comments(path.read_text()))


INTRINSIC = re.compile(
    r"\b(_mm\d*_\w+|__m(128|256|512)\w*|v\w+q_[fsup]\d+|(float|u?int)(16|32|64)x\d+_t)\b"
)


def test_intrinsics_stand_in_op_tables_only() -> None:
    tables = {path for path in c_files() if re.fullmatch(r"vec_\w+\.h", path.name)}
    assert tables == {path for path in tables if path.parent == SRC_C / "kernels"}
    assert any(INTRINSIC.search(path.read_text()) for path in tables)  # the pattern finds them
    others = [path for path in c_files() if path not in tables]
    for path in [*others, *cython_files()]:
        found = INTRINSIC.search(without_comments(path.read_text()))
        assert not found, f"{relative(path)}: {found[0]}"


def test_kernels_do_not_allocate_or_start_threads_or_call_blas() -> None:
    forbidden = re.compile(
        r"\b(\w*alloc|free|posix_memalign|pthread_\w+|thrd_\w+|[sd]gemm_?|cblas_\w+)\s*\("
        r"|#\s*include\s*<(stdlib|pthread|threads|malloc)\.h>"
    )
    for path in c_files(SRC_C / "kernels"):
        found = forbidden.search(without_comments(path.read_text()))
        assert not found, f"{relative(path)}: {found[0]}"


# --- what compilers make of it

COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
needs_compiler = pytest.mark.skipif(not COMPILERS, reason="neither gcc nor clang is installed")


def compile_c(compiler: str, *arguments: str | Path) -> None:
    command = [compiler, "-std=c11", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@needs_compiler
@pytest.mark.parametrize("compiler", COMPILERS)
def test_core_compiles_bare(compiler: str, tmp_path: Path) -> None:
    """No flags, no configure step, no Python: a shared object with nothing left undefined."""
    sources = sorted(SRC_C.rglob("*.c"))
    output = tmp_path / "core.so"
    no_undefined = [] if sys.platform == "darwin" else ["-Wl,--no-undefined"]
    compile_c(
        compiler, "-O0", "-fPIC", "-shared", "-pthread", "-o", output, *sources, *no_undefined
    )
    compile_c(compiler, "-fsyntax-only", "-Wall", "-x", "c", SRC_C / PUBLIC_HEADER)


def functions_of(assembly: str) -> dict[str, list[str]]:
    """Lines of each function in an AT&T listing, local labels included."""
    functions: dict[str, list[str]] = {}
    lines: list[str] = []
    for raw in assembly.splitlines():
        line = raw.split("#")[0].strip()
        if re.fullmatch(r"[A-Za-z_]\w*:", line):
            lines = functions.setdefault(line[:-1], [])
        else:
            lines.append(line)
    return functions


def inner_loops(lines: list[str]) -> Iterator[list[str]]:
    """Bodies of the loops that hold no other loop: from a label to the jump back to it."""
    labels = {line[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    spans = []
    for number, line in enumerate(lines):
        jump = re.fullmatch(r"j\w+\s+(\.L\w+)", line)
        if jump and labels.get(jump[1], number) < number:
            spans.append((labels[jump[1]], number))
    for begin, end in spans:
        if not any((a, b) != (begin, end) and begin <= a and b <= end for a, b in spans):
            yield lines[begin : end + 1]


def tile_loops(lines: list[str], fmas: int) -> list[list[str]]:
    """The loops over k of a tile: those with a whole multiple of `fmas` multiply-adds."""
    counted = (
        (loop, sum(line.startswith("vfmadd") for line in loop)) for loop in inner_loops(lines)
    )
    return [loop for loop, count in counted if count and count % fmas == 0]


def vector_stack_traffic(lines: list[str], loop: list[str]) -> list[str]:
    """Vector instructions of a loop that read or write the stack frame of its function."""
    has_frame = any(re.match(r"movq\s+%rsp, %rbp", line) for line in lines)
    frame = re.compile(r"\(%r[sb]p" if has_frame else r"\(%rsp")
    return [line for line in loop if line.startswith("v") and frame.search(line)]


def test_stack_traffic_is_seen() -> None:
    spilling = """
tile_2x1:
    movq %rsp, %rbp
.L1:
    vbroadcastss (%rax), %zmm1
.L2:
    vmovups -64(%rbp), %zmm2
    vfmadd231ps (%rdx), %zmm1, %zmm2
    vfmadd231ps 64(%rsp), %zmm1, %zmm3  # reload
    jne .L2
    jne .L1
"""
    lines = functions_of(spilling)["tile_2x1"]
    (loop,) = tile_loops(lines, 2)
    assert len(vector_stack_traffic(lines, loop)) == 2
    assert not tile_loops(lines, 3)


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 assembly")
@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("isa, bits", [(i, b) for i in ("avx512", "avx2") for b in (32, 64)])
def test_tile_stays_in_registers(compiler: str, isa: str, bits: int, tmp_path: Path) -> None:
    """Spilled accumulators make the product three times slower and change no result."""
    kernels = SRC_C / "kernels"
    rows_defined = re.search(r"#define TILE_ROWS (\d+)", (kernels / f"vec_{isa}.h").read_text())
    assert rows_defined
    listing = tmp_path / "kernels.s"
    source = kernels / f"{isa}_f{bits}.c"
    compile_c(compiler, "-ffp-contract=off", "-O3", "-fPIC", "-S", "-o", listing, source)
    functions = functions_of(listing.read_text())
    for rows in range(1, int(rows_defined[1]) + 1):
        lines = functions[f"tile_{rows}x4"]
        loops = tile_loops(lines, 4 * rows)
        assert loops, f"tile_{rows}x4 has no loop of {4 * rows} multiply-adds: is it unrolled?"
        for loop in loops:
            assert not vector_stack_traffic(lines, loop), f"tile_{rows}x4"
