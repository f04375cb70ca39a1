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
CASES = list(conformance.cases(FOLDER))
outcomes: Counter[tuple[str, str]] = Counter()


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c.suite}: {c.name}") for c in CASES])
def test_case(case: conformance.Case) -> None:
    result = conformance.check(case)
    outcomes[case.suite, result.outcome] += 1
    assert result.outcome != "failed", result.why


def test_cases_were_run() -> None:
    """An empty folder, or one of which all is refused, would pass the above."""
    least = {"ONNX node tests": 28, "ONNX Runtime": 139, "Keras": 71, "LiteRT": 20}
    least["ELMo"] = 30
    assert {s: outcomes[s, "passed"] for s, n in least.items() if outcomes[s, "passed"] < n} == {}


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
