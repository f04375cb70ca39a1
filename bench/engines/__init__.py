"""The engines that are compared, each by its fastest documented API; nothing here measures time.

An engine turns a problem into calls. To add one, write a class with `forward`, `step` or `training`
in a file of its own and name it in `ENGINES`. Those of `NARROW` compute with fewer bits.
"""

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs, Unsupported
from bench.engines.cylstm import Cylstm
from bench.engines.jax import Jax
from bench.engines.narrow import NARROW
from bench.engines.ncnn import Ncnn
from bench.engines.onnx import OnnxRuntime, OnnxRuntimeBinding, OpenVino
from bench.engines.torch import Torch

__all__ = [
    "ADAM_EPS",
    "ENGINES",
    "LEARNING_RATE",
    "NARROW",
    "Call",
    "Cylstm",
    "Engine",
    "Outputs",
    "Unsupported",
]

ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (Cylstm, Torch, OnnxRuntime, OnnxRuntimeBinding, OpenVino, Ncnn, Jax)
}
