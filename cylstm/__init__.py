"""cylstm: recurrent layers on a CPU, NumPy arrays in and out, forward and backward."""

from . import losses, optim, plot, steps
from ._core import Gradients, Stream, Tape
from .config import get_num_threads, set_num_threads, show_config, threads
from .convert import from_keras, from_torch, inspect, load, save
from .convert.write import to_keras, to_onnx, to_torch
from .embedding import Embedding
from .layers import GRU, LSTM, RNN
from .linear import Linear, LinearGrads, LinearTape
from .parameter import Parameter
from .quantization import compare, quantize
from .sequential import Sequential
from .weights import WeightGrads

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Embedding",
    "Gradients",
    "Linear",
    "LinearGrads",
    "LinearTape",
    "Parameter",
    "Sequential",
    "Stream",
    "Tape",
    "WeightGrads",
    "compare",
    "from_keras",
    "from_torch",
    "get_num_threads",
    "inspect",
    "load",
    "losses",
    "optim",
    "plot",
    "quantize",
    "save",
    "set_num_threads",
    "show_config",
    "steps",
    "threads",
    "to_keras",
    "to_onnx",
    "to_torch",
]
