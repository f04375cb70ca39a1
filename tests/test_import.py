"""Importing the package is cheap: nothing heavy comes with it."""

from __future__ import annotations

import json

import pytest

from helpers import run_python

# Optional, or needed by some calls only; `import cylstm` must not load them.
LAZY = {"scipy", "safetensors", "torch", "tqdm", "matplotlib", "onnx", "onnxruntime", "keras"}
LAZY |= {"threadpoolctl"}
# What only files want, and a module of the standard library that takes as long as ten of ours.
LAZY |= {"json", "copy", "reprlib", "errno", "dataclasses"}
OURS_LAZY = {"reference", "files", "tensors", "convert.readers", "convert.found", "convert.gates"}
OURS_LAZY |= {"cli", "dask", "torch", "torch_weights", "threadpoolctl", "embed"}

CODE = """
import sys
import numpy
from time import process_time
before, start = set(sys.modules), process_time()
import cylstm
seconds, modules = process_time() - start, sorted(set(sys.modules) - before)
ours = [vars(sys.modules[name]) for name in modules if name.startswith("cylstm")]
tuples = {v.__name__ for names in ours for v in names.values() if hasattr(v, "_field_defaults")}
import json
print(json.dumps([seconds, modules, sorted(tuples)]))
"""


def fresh_import() -> tuple[float, set[str], list[str]]:
    """CPU seconds of `import cylstm` after numpy in a fresh interpreter, the modules that it loads,
    and the NamedTuples that these make."""
    done = run_python("-c", CODE)
    assert done.returncode == 0, done.stderr
    seconds, modules, tuples = json.loads(done.stdout)
    return seconds, set(modules), tuples


def test_import_is_light() -> None:
    _, modules, tuples = fresh_import()
    assert "cylstm._core" in modules
    assert not LAZY & {name.split(".")[0] for name in modules}
    assert not {f"cylstm.{name}" for name in OURS_LAZY} & modules
    assert not tuples  # each takes as long to make as another module to load


@pytest.mark.timing
def test_import_is_fast() -> None:
    """Far above the 15 ms that tools/import_time.py holds, so that a busy machine does not fail it,
    and below what importing SciPy's BLAS, the likely mistake, costs."""
    assert min(fresh_import()[0] for _ in range(3)) < 0.1


CALLS = """
import sys
import numpy as np
import cylstm
from cylstm import losses, optim

x = np.ones((4, 2, 3), "f4")
lstm, head = cylstm.LSTM(3, 5, 2, dropout=0.5), cylstm.Linear(5, 3)
table, start = cylstm.Embedding(7, 3), cylstm.Parameter(np.zeros(5, "f4"))
model = cylstm.Sequential([table, cylstm.LSTM(3, 5, batch_first=True), cylstm.steps.LastStep()])
small = cylstm.quantize(lstm)
adam, sgd = optim.Adam([lstm, head]), optim.SGD(lstm, 0.1, momentum=0.9)
before = set(sys.modules)
lstm(x, lengths=[4, 2])
tape = lstm.forward(x)
out = head.forward(tape.y)
head(tape.y)
loss, dy = losses.mse(out.y, x)
losses.cross_entropy(out.y, np.zeros((4, 2), int))
back = out.backward(dy)
grads = tape.backward(back.x)
optim.clip_grad_norm([grads, back], 1.0)
adam.step([grads, back])
sgd.step(grads)
tape.jvp(x)
table.forward([1, 2]).backward(x[0][:2])
start.forward((2, 5)).backward(np.ones((2, 5), "f4"))
model(np.ones((2, 4), int), lengths=[4, 2])
model.stream().step(1)
small(x)
stream = lstm.stream(2)
stream.run(x)
stream.step(x[0][:1], active=[1])
stream.state = stream.state
stream.reset([1])
lstm.load_state_dict(lstm.state_dict())
lstm.release()
print(*set(sys.modules) - before)
"""


def test_no_call_imports_anything() -> None:
    """The first one would be the slowest by far, and a child forked meanwhile could not import."""
    for gemm in ("auto", "blas"):
        done = run_python("-c", CALLS, CYLSTM_GEMM=gemm)
        assert done.returncode == 0 and not done.stdout.split(), (done.stdout, done.stderr)
