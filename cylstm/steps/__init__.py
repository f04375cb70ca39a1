"""Steps of a `Sequential` that are no modules of their own: the layers around recurrent ones.

All of them take x as (B, T, F), or as (B, F) where no time axis is left, compute in x's dtype with
NumPy, and never change. They are for inference; what has weights takes them as arrays.
"""

from .activation import ACTIVATIONS as ACTIVATIONS
from .activation import Activation
from .merge import Merge, MergeDirections
from .norm import BatchNorm, LayerNorm
from .step import Step as Step
from .time import (
    FinalState,
    Flatten,
    GlobalPool,
    LastStep,
    Mask,
    Repeat,
    Reverse,
    Transpose,
    ZeroMasked,
)
from .window import Conv1d, Pool

__all__ = [
    "Activation",
    "BatchNorm",
    "Conv1d",
    "FinalState",
    "Flatten",
    "GlobalPool",
    "LastStep",
    "LayerNorm",
    "Mask",
    "Merge",
    "MergeDirections",
    "Pool",
    "Repeat",
    "Reverse",
    "Transpose",
    "ZeroMasked",
]
