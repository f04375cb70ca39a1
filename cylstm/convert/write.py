"""Modules as those of other programs, and as their files. Writers import what they need."""

from __future__ import annotations

import os
from inspect import signature
from typing import Any

import numpy as np

from .._core import kind_of
from ..module import Module
from ..weights import Array


def to_onnx(
    module: Module,
    path: str | os.PathLike[str],
    *,
    states: bool = True,
    lengths: bool = False,
    opset: int = 17,
) -> None:
    """Write a recurrent module as an ONNX file, which the onnx checker has passed.

    Inputs and outputs are named as here: x, h_0, c_0, lengths; y, h_n, c_n; their shapes are those
    of a call, T and B open. Weights are written bit for bit. Dropout acts in training only and is
    not in the file. A sequence of length 0 keeps its initial state here, and gets one of zeros in
    ONNX Runtime, which has no recurrent operators in float64 either.

    Parameters
    ----------
    module : LSTM, GRU or RNN
    path : str or path-like
    states : bool
        Whether h_0 (and c_0) are inputs; without, sequences start from zeros.
    lengths : bool
        Whether lengths (B,), int32, is an input.
    opset : int
        Version of the operators, at least 14.

    Raises
    ------
    TypeError
        Not a recurrent module.
    ValueError
        The operator has nothing for an argument of the module; the message names it.
    ImportError
        The onnx package is not installed.

    Examples
    --------
    >>> import onnx
    >>> cylstm.to_onnx(cylstm.LSTM(3, 7), "lstm.onnx")
    >>> [value.name for value in onnx.load("lstm.onnx").graph.input]
    ['x', 'h_0', 'c_0']
    """
    from .onnx_write import write

    write(module, path, states, lengths, opset)


# What the layers of PyTorch and of Keras take. A module with another argument, unless it has its
# usual value, is none of them.
TORCH = {
    "LSTM": "input_size hidden_size num_layers bias batch_first dropout bidirectional proj_size",
    "GRU": "input_size hidden_size num_layers bias batch_first dropout bidirectional",
    "RNN": "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional",
    "Linear": "in_features out_features bias",
    "Embedding": "num_embeddings embedding_dim padding_idx",
}
KERAS = {
    "LSTM": "input_size hidden_size num_layers bias batch_first dropout bidirectional activations",
    "GRU": "input_size hidden_size num_layers bias batch_first dropout bidirectional reset_after "
    "activations",
    "RNN": "input_size hidden_size num_layers nonlinearity bias batch_first dropout bidirectional "
    "activations",
    "Linear": "in_features out_features bias",
    "Embedding": "num_embeddings embedding_dim",
}


def to_torch(module: Module) -> Any:
    """Return a module as PyTorch's layer of that name, with a copy of its weights, bit for bit.

    `state_dict()` has the same names and values without torch:
    `{name: torch.tensor(a) for name, a in module.state_dict().items()}`.

    Raises TypeError for a module that PyTorch has no layer for, ValueError for an argument that its
    layer does not have, ImportError without torch.

    Examples
    --------
    >>> import torch
    >>> cylstm.to_torch(cylstm.LSTM(3, 7))
    LSTM(3, 7)
    """
    arguments = _arguments(module, TORCH, "PyTorch")
    try:
        import torch
    except ImportError as error:
        raise ImportError("cylstm.to_torch needs torch: pip install cylstm[torch]") from error
    theirs = getattr(torch.nn, type(module).__name__)
    made = theirs(**arguments, dtype=getattr(torch, module.dtype.name))
    made.load_state_dict({name: torch.tensor(a) for name, a in module.state_dict().items()})
    return made


def to_keras(module: Module) -> list[list[Array]]:
    """Return what `set_weights` of Keras' layers takes: one list for each layer of the module.

    A recurrent module is `num_layers` layers LSTM, GRU or SimpleRNN, or Bidirectional ones, all but
    the last with return_sequences=True; a Linear is a Dense, an Embedding an Embedding. Where Keras
    has one bias it is the sum of the two; all else is bit for bit.

    Raises TypeError for a module that Keras has no layer for, ValueError for an argument that its
    layer does not have.

    Examples
    --------
    >>> (weights,) = cylstm.to_keras(cylstm.LSTM(3, 7))
    >>> [array.shape for array in weights]  # for layer.set_weights(weights)
    [(3, 28), (7, 28), (28,)]
    """
    from . import gates

    arguments = _arguments(module, KERAS, "Keras")
    cell, state = type(module).__name__, module.state_dict()
    if cell == "Embedding":
        return [[state["weight"].copy()]]
    if cell == "Linear":
        return [[state["weight"].T.copy(), *([state["bias"].copy()] if "bias" in state else [])]]
    two_rows = cell == "GRU" and arguments.get("reset_after", True)
    layers = []
    for number in range(arguments["num_layers"]):
        weights: list[Array] = []
        for direction in ("", "_reverse")[: 1 + arguments["bidirectional"]]:

            def own(name: str, end: str = f"_l{number}{direction}") -> Array:
                return gates.from_own(state[name + end], cell, "keras")

            weights += [own("weight_ih").T.copy(), own("weight_hh").T.copy()]
            if arguments["bias"]:
                pair = np.stack([own("bias_ih"), own("bias_hh")])
                weights.append(pair if two_rows else pair.sum(0))
        layers.append(weights)
    return layers


def _arguments(module: Module, known: dict[str, str], whose: str) -> dict[str, Any]:
    """The arguments of a module that another library's layer has as well, if these are all."""
    kind = type(module).__name__
    if not isinstance(module, Module) or kind not in known:
        raise TypeError(
            f"{whose} has no layer for {kind_of(module)}, expected one of {', '.join(known)}"
        )
    usual = {name: p.default for name, p in signature(type(module)).parameters.items()}
    unsaid = ("dtype", "forget_bias")  # nor is what weights were before they were loaded
    config = {name: value for name, value in module._config().items() if name not in unsaid}
    names = known[kind].split()
    if other := [f"{n}={v!r}" for n, v in config.items() if n not in names and v != usual.get(n)]:
        raise ValueError(f"{whose}'s layer has no {', '.join(other)}")
    return {name: value for name, value in config.items() if name in names}
