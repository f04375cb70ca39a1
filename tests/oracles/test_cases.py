"""Cases with literal numbers that other projects test their recurrent layers by.

They are not part of this repository. CYLSTM_CASES names a folder that holds them; what runs them
is tools/conformance.py, which `make conformance` calls too.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conformance
import cylstm

if "CYLSTM_CASES" not in os.environ:
    pytest.skip("CYLSTM_CASES names no folder of cases: NOT RUN", allow_module_level=True)

FOLDER = Path(os.environ["CYLSTM_CASES"])


# What has to pass, of each suite; the others may be refused by name.
PASSING = {"ONNX node tests": 30, "ONNX Runtime": 139, "Keras": 71, "LiteRT": 23, "ELMo": 30}


def test_cases() -> None:
    """None fails, and so many pass: an empty folder would fail nothing."""
    results = [conformance.check(case) for case in conformance.cases(FOLDER)]
    failed = [(r.case.suite, r.case.name, r.why) for r in results if r.outcome == "failed"]
    assert not failed
    passed = Counter(result.case.suite for result in results if result.outcome == "passed")
    assert {suite: passed[suite] for suite, n in PASSING.items() if passed[suite] < n} == {}


def test_onnxruntime_training(tmp_path: Path) -> None:
    """Its LSTM that keeps all gates and cells.

    The gradient's case is left out: it starts from gates and cells drawn at random, which no
    forward pass leaves behind.
    """
    found = conformance.load_cases(FOLDER).ort_training()
    forward = next(case for case in found if case["op"] == "LSTMTraining")
    x, H = forward["inputs"]["input_tensor"], forward["attributes"]["hidden_size"]
    inputs = {
        "X": x,
        **{
            role: forward["inputs"][name]
            for role, name in (("W", "weights"), ("R", "recurrence_weights"), ("B", "bias"))
        },
    }
    path = tmp_path / "model.onnx"
    model = conformance.one_node("LSTM", {"hidden_size": H}, inputs, ["Y"])
    path.write_bytes(model.SerializeToString())
    lstm: Any = cylstm.load(path)
    tape = lstm.forward(x)
    got = {
        "HAll": tape.y[:, None],
        "CAll": tape.cells[0][:, None],
        "iofc": tape.gates[0][:, :, [0, 3, 1, 2]].reshape(2, 1, 2, 4 * H),
        "final_h": tape.h_n,
        "final_c": tape.c_n,
    }
    for name, want in forward["outputs"].items():
        np.testing.assert_allclose(got[name], want, 0, forward["atol"], err_msg=name)
