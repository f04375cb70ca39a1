"""Modules as other programs' files. Each writer is imported when it is called."""

from __future__ import annotations

import os

from ..weights import Module


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
    ::

        cylstm.to_onnx(cylstm.LSTM(3, 7), "lstm.onnx")
        session = onnxruntime.InferenceSession("lstm.onnx")
    """
    from .onnx_write import write

    write(module, path, states, lengths, opset)
