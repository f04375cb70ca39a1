"""The rules of the code, read from the sources: who may depend on whom, where intrinsics may
stand, that the C core compiles bare, and that the compiler keeps the product's tile in registers.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC_C = ROOT / "src_c"

# From the ground up; a file uses those in lines below its own. A new file goes into a line.
PYTHON_LEVELS = [
    {"_core"},
    {"_checks"},
    {"activations", "config", "embed", "weights"},
    {"module", "tensors"},
    {"recurrent"},
    {"layers", "linear", "embedding", "parameter"},
    {"steps"},
    {"nodes"},
    {"sequential"},
    {"frozen", "torch_weights"},
    {"dask", "losses", "optimizer", "files", "plot", "quantization", "threadpoolctl", "torch"},
    {"optim"},
    {"convert"},
    {"cli_data"},
    {"cli_graph"},
    {"cli"},
    {"__init__", "__main__"},
]
C_LEVELS = [
    {"kernels"},  # the folder
    {"cells", "cpu", "sizes"},
    {"layout", "threads"},
    {"arena", "call", "check", "dispatch"},
    {"blas", "compact", "walk"},
    {"split"},
    {"drop", "optim", "pack"},
    {"product"},
    {"forward_states", "backward_states"},
    {"forward_step", "backward_step", "backward_gradients", "jvp", "linear"},
    {"forward"},
    {"backward_recompute"},
    {"backward"},
    {"plan"},
]
PUBLIC_HEADER = "cylstm.h"  # the words that all C files above the kernels share

# Packages that the library may import: at the top of a module, or only inside a function.
IMPORTED = {"numpy"}
IMPORTED_LAZILY = {"scipy", "h5py", "keras", "matplotlib", "onnx", "torch", "tqdm"}
# Modules that `import cylstm` leaves alone, for users of a package which they import at the top.
OF_ANOTHER_PACKAGE = {name: {name} for name in ("dask", "threadpoolctl", "torch")}
OF_ANOTHER_PACKAGE["torch_weights"] = {"torch"}


def level(levels: list[set[str]], name: str) -> int:
    for number, names in enumerate(levels):
        if name in names:
            return number
    raise AssertionError(f"{name} has no place in the order of this file: give it one")


# --- Python


class _WithoutTypeChecking(ast.NodeTransformer):
    """Drops what is under `if TYPE_CHECKING:`, which never runs."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_typing else self.generic_visit(node)


def absolute_imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules that a Python file imports, relative ones by their full name."""
    tree = _WithoutTypeChecking().visit(ast.parse(path.read_text()))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts if node.level else ()
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "cylstm":
                names |= {f"cylstm.{alias.name}" for alias in node.names}
            else:
                names.add(module)
    return names


def python_modules() -> list[Path]:
    """All but the reference, which is apart."""
    paths = sorted((ROOT / "cylstm").rglob("*.py"))
    return [path for path in paths if "reference" not in path.parts]


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

    at_the_top = IMPORTED | OF_ANOTHER_PACKAGE.get(module_name(path), set())
    assert foreign(absolute_imports(path, top_level_only=True)) <= at_the_top
    assert foreign(absolute_imports(path)) <= at_the_top | IMPORTED_LAZILY


def test_the_package_brings_numpy_alone() -> None:
    """What else it can use is an extra, named after what it is for."""
    project = (ROOT / "pyproject.toml").read_text()
    (dependencies,) = re.findall(r"^dependencies = \[(.*?)\]", project, re.M | re.S)
    assert re.findall(r'"([\w-]+)', dependencies) == ["numpy"]
    assert re.search(r'^blas = \["scipy', project, re.M)


def test_reference_imports_numpy_alone() -> None:
    files = sorted((ROOT / "cylstm" / "reference").glob("*.py"))
    names = set().union(*map(absolute_imports, files))
    own = {f"cylstm.reference.{path.stem}" for path in files}
    typing_only = {"__future__", "collections.abc", "typing", "numpy.typing"}
    assert names - typing_only - own == {"numpy"}


def test_only_tests_and_docs_import_the_reference() -> None:
    folders = ["cylstm", "bench", "examples", "tools"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert files
    for path in [*files, ROOT / "setup.py"]:
        if "reference" not in path.parts:
            assert "cylstm.reference" not in absolute_imports(path), path
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
    """The name by which C_LEVELS knows a file."""
    return "kernels" if path.parent.name == "kernels" else path.stem


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
        if own.startswith(f"{used}_"):
            continue  # forward.h is what the files of that pass share; calls are checked below
        assert used == own or level(C_LEVELS, used) < level(C_LEVELS, own), f"{own} uses {used}"


@pytest.mark.parametrize("path", c_files(), ids=relative)
def test_no_python_in_the_core(path: Path) -> None:
    assert not re.search(r"\bPython\.h\b|\bPy[A-Z_]|numpy", without_comments(path.read_text()))


# A number of gates, states or vectors on a tape, by which a width is multiplied.
LITERAL = re.compile(r"\b[3-8] \* [^,;]*\b(H|hidden)\b|\b(H|hidden)\b\)? \* [3-8]\b|TAPE_VECTORS")
CELL_FILE = re.compile(r"cells\.[ch]|cell_\w+_tmpl\.h")  # where it may stand


def test_the_number_of_gates_stands_in_the_table_of_cells() -> None:
    """A new cell is a row of the table and a template: no other file counts its gates."""
    for literal in ("x = 4 * H;", "5 * p->l.H", "8 * B * (double)H * R", "dims->hidden * 4"):
        assert LITERAL.search(literal)
    assert sum(bool(CELL_FILE.fullmatch(path.name)) for path in c_files()) >= 3
    for path in c_files():
        if not CELL_FILE.fullmatch(path.name):
            found = LITERAL.search(without_comments(path.read_text()))
            assert not found, f"{relative(path)}: {found[0]}"


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


def module_of(path: Path) -> Any:
    """A program of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_c(compiler: str, *arguments: str | Path) -> None:
    command = [compiler, "-std=c11", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[Path, Path]]:
    """The object file of each source of the core, by compiler."""

    @functools.cache
    def compiled(compiler: str) -> dict[Path, Path]:
        folder = tmp_path_factory.mktemp(compiler)
        sources = sorted(SRC_C.rglob("*.c"))
        of = {path: folder / f"{number}.o" for number, path in enumerate(sources)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [
                pool.submit(
                    compile_c, compiler, "-O0", "-fPIC", "-pthread", "-c", "-o", output, path
                )
                for path, output in of.items()
            ]:
                done.result()
        return of

    return compiled


@pytest.mark.slow
@needs_compiler
@pytest.mark.xdist_group("objects")
@pytest.mark.parametrize("compiler", COMPILERS)
def test_core_compiles_bare(
    compiler: str, objects: Callable[[str], dict[Path, Path]], tmp_path: Path
) -> None:
    """No flags, no configure step, no Python: a shared object with nothing left undefined."""
    no_undefined = [] if sys.platform == "darwin" else ["-Wl,--no-undefined"]
    output = tmp_path / "core.so"
    compile_c(
        compiler, "-shared", "-pthread", "-o", output, *objects(compiler).values(), *no_undefined
    )
    compile_c(compiler, "-fsyntax-only", "-Wall", "-x", "c", SRC_C / PUBLIC_HEADER)


def symbols(listing: str) -> tuple[set[str], set[str]]:
    """The symbols of the library that an object file defines, and those that it needs."""
    names = re.findall(r"^[0-9a-f ]*\s([A-Za-z]) _?(cylstm_\w+)$", listing, re.M)
    needed = {name for kind, name in names if kind == "U"}
    return {name for kind, name in names if kind.isupper()} - needed, needed


@pytest.mark.slow
@needs_compiler
@pytest.mark.xdist_group("objects")
@pytest.mark.skipif(not shutil.which("nm"), reason="nm is not installed")
def test_calls_run_downward(objects: Callable[[str], dict[Path, Path]]) -> None:
    """What `#include`s do not show: a function that the public header declares may be anywhere."""
    defined, needed = dict[str, str](), dict[Path, set[str]]()
    for path, output in objects(COMPILERS[0]).items():
        listing = subprocess.run(["nm", output], capture_output=True, text=True, check=True).stdout
        own, uses = symbols(listing)
        defined |= dict.fromkeys(own, c_name(path))
        needed[path] = uses
    assert defined["cylstm_forward"] == "forward"
    for path, names in needed.items():
        here = c_name(path)
        for name in names:
            used = defined[name]
            assert used == here or level(C_LEVELS, used) < level(C_LEVELS, here), (
                f"{path.name} calls {name} of {used}.c"
            )


TOOL = module_of(ROOT / "tools" / "inner_loops.py")
LISTINGS = {
    "x86_64": """
tile_2x1:
    movq %rsp, %rbp
.L1:
    vbroadcastss (%rax), %zmm1
.L2:
    vmovups -64(%rbp), %zmm2
    vfmadd231ps (%rdx), %zmm1, %zmm2
    vfmadd231ps 64(%rsp), %zmm1, %zmm3  # reload
    addq 8(%rsp), %rdx
    jne .L2
    jne .L1
    .size tile_2x1, .-tile_2x1
""",
    "aarch64": """
tile_2x1:
.L1:
    ldr x1, [sp, 8]
.L2:
    ldr q8, [sp, 128]
    fmla v8.4s, v2.4s, v17.s[0]  // the first
    fmla v9.4s, v3.4s, v17.s[0]
    str q8, [sp, 128]
    ldr x2, [sp, 16]
    bne .L2
    b .L1
    .size tile_2x1, .-tile_2x1
""",
}


@pytest.mark.parametrize("arch", LISTINGS)
def test_stack_traffic_is_seen(arch: str) -> None:
    lines = TOOL.function(LISTINGS[arch].splitlines(), arch, "tile_2x1")
    (loop,) = TOOL.inner_loops(lines, arch)
    assert len(loop.multiplications) == 2 and len(loop.spills) == 2


@pytest.mark.parametrize(("set_up", "spills"), [("mov x29, sp", 4), ("mov x29, x0", 2)])
def test_a_frame_pointer_may_be_any_register(set_up: str, spills: int) -> None:
    listing = LISTINGS["aarch64"].replace("tile_2x1:", f"tile_2x1:\n    {set_up}", 1)
    listing = listing.replace("fmla v8", "ldp q1, q2, [x29, -32]\n    ldr q3, [x29]\n    fmla v8")
    lines = TOOL.function(listing.splitlines(), "aarch64", "tile_2x1")
    (loop,) = TOOL.inner_loops(lines, "aarch64")
    assert len(loop.spills) == spills


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    "compiler, isa",
    [
        pytest.param(compiler, isa, id=f"{compiler.name}-{isa}")
        for compiler in TOOL.compilers()
        for isa, (arch, _) in TOOL.SETS.items()
        if arch == compiler.arch
    ],
)
def test_tile_stays_in_registers(compiler: Any, isa: str, bits: int) -> None:
    """Spilled sums make the product three times slower and change no result."""
    listing = TOOL.assembly(compiler, isa, bits)
    tiles: dict[str, int] = {}
    for narrow, width in (("", 4), ("narrow_", 3)):
        for rows in range(1, TOOL.tile_rows(isa, "NARROW" if narrow else "TILE") + 1):
            for kind in "", "prefetch_":
                tiles[f"{narrow}{kind}tile_{rows}x4"] = width * rows
    tiles |= {f"tile_pair_{vectors}": 4 + vectors for vectors in range(1, 5)}
    tiles["narrow_tile_pair_4"] = 6
    for tile, products in tiles.items():
        loops = list(TOOL.inner_loops(TOOL.function(listing, compiler.arch, tile), compiler.arch))
        assert loops, f"{tile} has no loop"
        for loop in loops:
            count = len(loop.multiplications)
            assert count % products == 0, f"{tile}: {count} multiply-adds, is it unrolled?"
            assert not loop.spills, tile
