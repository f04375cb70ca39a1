"""Orders of gates: the only place where blocks of gates are permuted.

Everywhere else gates stand in PyTorch's order: i, f, g, o for an LSTM (g is what others call c, j,
z or u), r, z, n for a GRU (n is what others call h or o). An order is written as a string of these
letters, and an array of gates is one block of equal size for each of them along one axis.
"""

from __future__ import annotations

import numpy as np

from ..weights import Array

OWN = {"LSTM": "ifgo", "GRU": "rzn"}

# Who else writes them how. Peepholes, which g has none of, keep the order of the other three.
LSTM = {
    "torch": "ifgo",
    "cudnn": "ifgo",
    "keras": "ifgo",
    "keras1": "igfo",  # twelve separate arrays, in this order
    "tf1": "igfo",
    "tf_block": "igfo",  # BlockLSTM; BlockLSTMV2 has tf_block2
    "tf_block2": "ifgo",
    "onnx": "iofg",
    "openvino": "figo",
    "onednn": "ifgo",
    "ncnn": "ifog",
    "coreml": "ifog",
    "dynet": "ifog",
    "haste": "igfo",
    "thinc": "fiog",
}
GRU = {
    "torch": "rzn",
    "cudnn": "rzn",
    "keras": "zrn",
    "onnx": "zrn",
    "openvino": "zrn",
    "onednn": "zrn",
    "coreml": "rnz",
    "ncnn": "rzn",
}
ORDERS = {"LSTM": LSTM, "GRU": GRU}


def to_own(array: Array, cell: str, system: str, axis: int = 0) -> Array:
    """Return an array of another system's with its gates in PyTorch's order.

    Parameters
    ----------
    array : (..., G*H, ...), or (..., 3*H, ...) for the peepholes of an LSTM
    cell : "LSTM", "GRU", or "RNN", which has one block and no order
    system : a key of `LSTM` or `GRU` above
    axis : along which the blocks lie
    """
    return array if cell == "RNN" else _moved(array, ORDERS[cell][system], OWN[cell], axis)


def from_own(array: Array, cell: str, system: str, axis: int = 0) -> Array:
    """Return an array whose gates are in PyTorch's order in another system's: `to_own` undone."""
    return array if cell == "RNN" else _moved(array, OWN[cell], ORDERS[cell][system], axis)


def peepholes_to_own(array: Array, system: str, axis: int = 0) -> Array:
    """Return the peepholes (3*H) of an LSTM in the order i, f, o."""
    return _moved(array, LSTM[system].replace("g", ""), "ifo", axis)


def peepholes_from_own(array: Array, system: str, axis: int = 0) -> Array:
    """Return peepholes in the order i, f, o as another system has them."""
    return _moved(array, "ifo", LSTM[system].replace("g", ""), axis)


def _moved(array: Array, order: str, wanted: str, axis: int) -> Array:
    if array.shape[axis] % len(order):
        raise ValueError(
            f"an array of {len(order)} gates has shape {array.shape}, expected a multiple of "
            f"{len(order)} along axis {axis}"
        )
    blocks = np.split(array, len(order), axis)
    return np.concatenate([blocks[order.index(gate)] for gate in wanted], axis)
