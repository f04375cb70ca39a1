"""What tests of optimisers share: PyTorch's numbers, and what they start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cylstm import optim
from cylstm.linear import Linear
from helpers import Array

GOLDEN = dict(np.load(Path(__file__).parent / "golden_training" / "optimisers.npz"))
CASES, SEEN, HALVED_AFTER = json.loads(str(GOLDEN["config"]))
NAMES = ("weight", "bias")


def start(dtype: str = "float64") -> Linear:
    module = Linear(5, 7, dtype=dtype)
    module.load_state_dict({name: GOLDEN[f"start/{name}"].astype(dtype) for name in NAMES})
    return module


def gradients(step: int, dtype: str = "float64") -> dict[str, Array]:
    return {name: GOLDEN[f"grads/{name}"][step - 1].astype(dtype) for name in NAMES}


def make(case: str, modules: Any) -> Any:
    cls, arguments = CASES[case]
    return getattr(optim, cls)(modules, **arguments)
