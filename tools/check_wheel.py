"""Build the sdist, a wheel from the sdist, and test that wheel as a user would get it.

    make check-wheel

The wheel is built in isolation, installed into an environment of its own, and put to the light
tests of the unpacked sdist. Its cylstm/ is removed before, so that only what was installed can be
found; test_architecture.py, which reads the sources, stays out for that reason.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "check-wheel"
WHEEL_LIMIT = 1_000_000  # bytes, to download
SOURCES = {".c", ".pyx", ".pxi"}

SDIST_HAS = [
    "LICENSE",
    "Makefile",
    "README.md",
    "cylstm/_core.pyx",
    "cylstm/_core.pyi",
    "cylstm/py.typed",
    "examples/forecast/forecast.py",
    "pyproject.toml",
    "setup.py",
    "src_c/cylstm.h",
    "src_c/kernels/kernels.h",
    "tests/test_architecture.py",
]
LIGHT_SUITE = ["-n", "auto", "--dist", "loadgroup"]
LIGHT_SUITE += ["tests", "-m", "not timing and not slow", "--ignore=tests/oracles"]
LIGHT_SUITE += ["--ignore=tests/test_architecture.py"]


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], cwd=cwd, check=True)


def check(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"{Path(sys.argv[0]).stem}: {message}")


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    check(len(found) == 1, f"expected one {pattern}, found {[path.name for path in found]}")
    return found[0]


def make_sdist(work: Path) -> Path:
    """Build the sdist, unpack it and check what is in it; gives the unpacked folder."""
    run(sys.executable, "-m", "build", "--sdist", "--outdir", work, ROOT)
    sdist = only(work, "*.tar.gz")
    with tarfile.open(sdist) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(work)
    folder = work / sdist.name.removesuffix(".tar.gz")
    missing = [name for name in SDIST_HAS if not (folder / name).is_file()]
    check(not missing, f"{sdist.name} lacks {missing}")
    core_c = {path.relative_to(ROOT) for path in (ROOT / "src_c").rglob("*.[ch]")}
    core_c -= {path.relative_to(folder) for path in (folder / "src_c").rglob("*.[ch]")}
    check(not core_c, f"{sdist.name} lacks {sorted(map(str, core_c))}")
    extra = [path for path in folder.rglob("*") if path.suffix in {".so", ".o", ".pyc"}]
    extra += (folder / "cylstm").rglob("*.c")
    check(not extra, f"{sdist.name} holds build products: {extra}")
    return folder


def check_wheel(wheel: Path) -> None:
    size = wheel.stat().st_size
    check(size < WHEEL_LIMIT, f"{wheel.name} has {size:,} bytes, more than {WHEEL_LIMIT:,}")
    print(f"{size:10,} {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        for name in filter(lambda name: name.endswith(".so"), sizes):
            stripped = not {b".symtab", b".debug_info"} & set(archive.read(name).split(b"\0"))
            check(stripped, f"{name} in {wheel.name} is not stripped")
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    for name in ["__init__.py", "_core.pyi", "embed.pxd", "py.typed"]:
        check(f"cylstm/{name}" in sizes, f"{wheel.name} lacks {name}")
    check(f"{metadata}/licenses/LICENSE" in sizes, f"{wheel.name} lacks the licence")
    for name, size in sizes.items():
        print(f"{size:10,} {name}")
        check(name.split("/")[0] in {"cylstm", metadata}, f"{wheel.name} holds {name}")
        check(Path(name).suffix not in SOURCES, f"{wheel.name} ships the source {name}")


def install(wheel: Path, environment: Path, python: str = sys.executable) -> Path:
    """Install a wheel, and what its tests need, into a new environment; gives its Python."""
    run(python, "-m", "venv", "--clear", "--without-pip", environment)
    groups = [f"--group={ROOT / 'pyproject.toml'}:{name}" for name in ("test", "build")]
    inside = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", inside, "install", "-q", wheel, *groups)
    return inside


def main() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)

    source = make_sdist(WORK)
    sdist = only(WORK, "*.tar.gz")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", WORK, sdist)
    wheel = only(WORK, "*.whl")
    check_wheel(wheel)

    python = install(wheel, WORK / "venv")
    shutil.rmtree(source / "cylstm")
    run(python, "-c", "import cylstm, sys; sys.exit(sys.prefix not in cylstm.__file__)", cwd=source)
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LIGHT_SUITE, cwd=source)
    print(f"check_wheel: {wheel.name} is good")


if __name__ == "__main__":
    main()
