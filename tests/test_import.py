"""Importing the package is cheap: nothing heavy comes with it."""

from __future__ import annotations

import json

from helpers import run_python

# Optional, or needed by some calls only; `import cylstm` must not load them.
LAZY = {"scipy", "safetensors", "torch", "tqdm", "matplotlib", "onnx", "onnxruntime", "keras"}

CODE = """
import json, sys
import numpy
from time import process_time
start = process_time()
import cylstm
print(json.dumps([process_time() - start, sorted(sys.modules)]))
"""


def fresh_import() -> tuple[float, list[str]]:
    """CPU seconds of `import cylstm` after numpy in a fresh interpreter, and all modules loaded."""
    done = run_python("-c", CODE)
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stdout)
    return seconds, modules


def test_import_is_light() -> None:
    _, modules = fresh_import()
    assert "cylstm._core" in modules
    assert not LAZY & {name.split(".")[0] for name in modules}
    assert "cylstm.reference" not in modules


def test_import_is_fast() -> None:
    """Far above the 15 ms that tools/import_time.py holds, so that a busy machine does not fail it,
    and below what importing SciPy's BLAS, the likely mistake, costs."""
    assert min(fresh_import()[0] for _ in range(3)) < 0.1
