"""The one extension module; all metadata is in pyproject.toml.

Every C file gets the same flags: instruction sets are chosen by target regions in the sources and
at run time, so that an architecture flag here would only take the wheel off older machines.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from typing import Any

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

cflags, ldflags = [], []
if os.name == "posix":
    cflags = ["-std=c11", "-ffp-contract=off", "-g0", "-fvisibility=hidden", "-pthread"]
    cflags += ["-fno-ipa-cp-clone"]  # copies of cold functions, a twentieth of the wheel
    ldflags = ["-pthread", "-s"]
if "CYLSTM_CFLAGS" in os.environ:  # for `make asan`: more flags, the last word, and no stripping
    cflags += os.environ["CYLSTM_CFLAGS"].split()
    ldflags = ["-pthread", *os.environ["CYLSTM_CFLAGS"].split()]

core = Extension(
    "cylstm._core",
    sources=["cylstm/_core.pyx"],
    include_dirs=[numpy.get_include(), "src_c"],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_25_API_VERSION")],
    extra_compile_args=cflags,
    extra_link_args=ldflags,
)
# For `make coverage`: each line of Cython reports that it ran. What Cython writes for that has a
# folder of its own, since Cython compares time stamps alone.
trace = "CYLSTM_TRACE" in os.environ
if trace:
    core.define_macros.append(("CYTHON_TRACE_NOGIL", "1"))
(core,) = cythonize(
    [core],
    build_dir="build/cython-trace" if trace else "build/cython",
    # Bound functions would not check the type of `self`, and read the fields of any object.
    compiler_directives={
        "linetrace": trace,
        "binding": False,
        "embedsignature": True,
        "embedsignature.format": "clinic",
    },
)
# Added only now: cythonize would compile copies of them in its build_dir.
core.sources += sorted(glob("src_c/**/*.c", recursive=True))
core.depends = sorted(glob("src_c/**/*.h", recursive=True))


class BuildExt(build_ext):
    """Compiles the C files side by side: the core by -O3, and by -O2 what Cython wrote and the sets
    that no CPU of the last ten years chooses, which is as fast and smaller, a sixth of Cython's and
    a tenth of theirs. Kernels call nobody, so that nothing unwinds through them: the tables
    for it would be a fiftieth of the wheel."""

    def build_extensions(self) -> None:
        compile_all = self.compiler.compile

        def compile_one(source: str, extra_postargs: list[str], **options: object) -> list[str]:
            small = os.path.basename(source).startswith(("_core", "scalar", "sse2"))
            level = ["-O2" if small else "-O3"] if os.name == "posix" else []
            if os.name == "posix" and "kernels" in source:
                level += ["-fno-asynchronous-unwind-tables"]
            return compile_all([source], extra_postargs=level + extra_postargs, **options)

        def side_by_side(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                done = pool.map(lambda source: compile_one(source, **options), sources)
                return [path for paths in done for path in paths]

        self.compiler.compile = side_by_side
        super().build_extensions()


setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
