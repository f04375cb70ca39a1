"""The innermost loop of every kernel set: what compilers make of it, and what CPUs could.

    make inner-loops                   # or python tools/inner_loops.py [--model] [--out FILE]

Nearly all time goes into one loop: over k, in the tallest tile of a set. This compiles each set to
assembly with every compiler that is there, finds that loop, and counts its instructions.
tests/test_architecture.py uses what is here too: sums that go through the stack are an error, for a
compiler that runs out of registers makes the product three times as slow, and nothing else says so.

With --model, llvm-mca says how many cycles a pass through the loop takes on CPUs that may not be
at hand. A pass is one k: rows times four vectors of multiply-adds.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c11", "-ffp-contract=off", "-O3", "-g0", "-fPIC", "-S"]
TILE_VECTORS = 4


class Compiler(NamedTuple):
    """A command that makes assembly for an architecture."""

    name: str
    arch: str
    command: list[str]


class Loop(NamedTuple):
    """The instructions of a loop, and those of them that are of one kind."""

    lines: list[str]
    arithmetic: list[str]
    multiplications: list[str]
    loads: list[str]
    spills: list[str]  # vectors to and from the stack


SETS = {  # and the CPUs to model
    "avx512": ("x86_64", ["skylake-avx512"]),
    "avx2": ("x86_64", ["haswell", "znver3"]),
    "sse2": ("x86_64", ["nehalem", "slm"]),
    "neon": ("aarch64", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1"]),
}
ARITHMETIC = {
    "x86_64": r"v?(fn?madd\w+|mul|add)[ps][sd]\b",
    "aarch64": r"(fmla|fmul|fadd)\b",
}
MULTIPLY = {"x86_64": r"v?(fmadd\w+|mul)p[sd]\b", "aarch64": r"(fmla|fmul)\b"}
LOAD = {"x86_64": r".*\(", "aarch64": r"(ldr|ldp|ldur|ld1|ld1r)\b"}
SPILL = {"x86_64": r".*[%][xyz]mm", "aarch64": r"(ldr|str|ldp|stp|ldur|stur)\s+[qdv]\d"}
STACK = {"x86_64": r".*\(%rsp", "aarch64": r".*\[sp"}
# With the first, the stack is also where the second says; else that register is as any other.
FRAME = {
    "x86_64": (r"movq\s+%rsp, %rbp", r".*\(%r[sb]p"),
    "aarch64": (r"(mov|add)\s+x29, sp", r".*\[(sp|x29)"),
}
JUMP = {"x86_64": r"j\w+\s+(\.?\w+)", "aarch64": r"(?:b\.?(?:\w\w)?|cbn?z\s+\w+,)\s+(\.?\w+)\s*$"}


def compilers() -> Iterator[Compiler]:
    """Those of this machine, and those for another: Debian's gcc and zig."""
    for name in ("gcc", "clang"):
        if shutil.which(name):
            yield Compiler(name, platform.machine(), [name])
        for arch in ARITHMETIC:
            if arch != platform.machine() and shutil.which(f"{arch}-linux-gnu-{name}"):
                yield Compiler(name, arch, [f"{arch}-linux-gnu-{name}"])
    zig = [sys.executable, "-m", "ziglang", "cc", "-target"]
    if not subprocess.run([*zig[:3], "version"], capture_output=True, check=False).returncode:
        for arch in ARITHMETIC:
            yield Compiler("zig", arch, [*zig, f"{arch}-linux-gnu"])


def tile_rows(isa: str, kind: str = "TILE") -> int:
    """Return the rows of the set's tallest tile, or with "NARROW" of that of a narrow product."""
    text = (ROOT / f"src_c/kernels/vec_{isa}.h").read_text()
    found = re.search(rf"#define {kind}_ROWS (\d+)", text)
    assert found, f"no {kind}_ROWS in vec_{isa}.h"
    return int(found[1])


def assembly(compiler: Compiler, isa: str, bits: int) -> list[str]:
    """Return the lines of a kernel set."""
    source = ROOT / f"src_c/kernels/{isa}_f{bits}.c"
    with TemporaryDirectory() as folder:  # zig writes no assembly to stdout
        out = Path(folder) / "set.s"
        subprocess.run([*compiler.command, *FLAGS, str(source), "-o", str(out)], check=True)
        return out.read_text().splitlines()


def function(listing: list[str], arch: str, name: str) -> list[str]:
    """Return the lines of a function, local labels included, without comments."""
    comment = {"x86_64": "#", "aarch64": "//"}[arch]
    lines = [line.split(comment)[0].strip() for line in listing]
    start = lines.index(f"{name}:")
    ends = (n for n in range(start, len(lines)) if re.match(rf"\.size\s+{name}\b", lines[n]))
    return lines[start : next(ends, len(lines))]


def loops(lines: list[str], arch: str) -> Iterator[list[str]]:
    """Yield the bodies of the loops that hold no other: from a label to the jump back to it."""
    labels: dict[str, int] = {}
    for n, line in enumerate(lines):
        if label := re.match(r"(\.?\w+):", line):
            labels[label[1]] = n
        elif (jump := re.match(JUMP[arch], line)) and jump[1] in labels:
            yield [line for line in lines[labels[jump[1]] : n + 1] if re.match(r"[a-z]", line)]
            labels = {}  # a loop that began before this one holds it


def inner_loops(lines: list[str], arch: str) -> Iterator[Loop]:
    """Yield those loops of a function that multiply."""
    sets_frame, with_frame = FRAME[arch]
    has_frame = any(re.match(sets_frame, line) for line in lines)
    stack = with_frame if has_frame else STACK[arch]

    def those(body: list[str], *patterns: str) -> list[str]:
        return [line for line in body if all(re.match(pattern, line) for pattern in patterns)]

    for body in loops(lines, arch):
        if multiplications := those(body, MULTIPLY[arch]):
            yield Loop(
                body,
                those(body, ARITHMETIC[arch]),
                multiplications,
                those(body, LOAD[arch]),
                those(body, SPILL[arch], stack),
            )


def llvm_mca() -> str:
    """Return the newest that is installed."""
    names = [f"llvm-mca-{version}" for version in range(30, 13, -1)] + ["llvm-mca"]
    return next(filter(shutil.which, names), "llvm-mca")


def cycles(lines: list[str], arch: str, cpu: str) -> float:
    """Return the cycles of a pass through the loop, by llvm-mca."""
    times = 200
    command = [llvm_mca(), f"-mtriple={arch}-linux-gnu", f"-mcpu={cpu}", f"-iterations={times}"]
    text = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", text)
    assert found, text
    return int(found[1]) / times


def main() -> None:
    """Print a line per set and compiler."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="store_true", help="cycles of some CPUs, by llvm-mca")
    parser.add_argument("--out", type=Path, help="write the table here too")
    options = parser.parse_args()
    head = ["set", "compiler", "tile", "arithmetic", "loads", "others", "spills"]
    if options.model:
        head += ["CPU", "cycles", "multiply-adds a cycle"]
    table = [head, ["---"] * len(head)]
    for compiler, (isa, (arch, cpus)), bits in product(compilers(), SETS.items(), (32, 64)):
        if arch != compiler.arch:
            continue
        tile = f"tile_{tile_rows(isa)}x{TILE_VECTORS}"
        lines = function(assembly(compiler, isa, bits), arch, tile)
        loop = next(inner_loops(lines, arch))
        others = len(loop.lines) - len(loop.arithmetic) - len(loop.loads)
        counts = [len(loop.arithmetic), len(loop.loads), others, len(loop.spills)]
        row = [f"{isa} f{bits}", compiler.name, tile.removeprefix("tile_"), *map(str, counts)]
        for cpu in cpus if options.model else [""]:
            model = []
            if options.model:
                taken = cycles(loop.lines, arch, cpu)
                model = [cpu, f"{taken:.1f}", f"{len(loop.multiplications) / taken:.2f}"]
            table.append([*row, *model])
            print(*table[-1], sep=" | ", flush=True)
    if options.out:
        options.out.write_text("\n".join(f"| {' | '.join(row)} |" for row in table) + "\n")


if __name__ == "__main__":
    main()
