"""Orders of gates: each is what its name says, and undone by its inverse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cylstm.convert import gates
from helpers import same_bits

# As each system's documentation words it, letter by letter, in the words of PyTorch.
WORDED = {
    ("LSTM", "keras"): ("i f c o", {"c": "g"}),
    ("LSTM", "keras1"): ("i c f o", {"c": "g"}),
    ("LSTM", "tf1"): ("i j f o", {"j": "g"}),
    ("LSTM", "tf_block"): ("i c f o", {"c": "g"}),
    ("LSTM", "tf_block2"): ("i f c o", {"c": "g"}),
    ("LSTM", "onnx"): ("i o f c", {"c": "g"}),
    ("LSTM", "openvino"): ("f i c o", {"c": "g"}),
    ("LSTM", "onednn"): ("i f c o", {"c": "g"}),
    ("LSTM", "ncnn"): ("i f o g", {}),
    ("LSTM", "coreml"): ("i f o z", {"z": "g"}),
    ("LSTM", "dynet"): ("i f o g", {}),
    ("LSTM", "haste"): ("i g f o", {}),
    ("LSTM", "thinc"): ("f i o c", {"c": "g"}),
    ("LSTM", "torch"): ("i f g o", {}),
    ("LSTM", "cudnn"): ("i f c o", {"c": "g"}),
    ("GRU", "torch"): ("r z n", {}),
    ("GRU", "cudnn"): ("r i h", {"i": "z", "h": "n"}),
    ("GRU", "keras"): ("z r h", {"h": "n"}),
    ("GRU", "onnx"): ("z r h", {"h": "n"}),
    ("GRU", "openvino"): ("z r h", {"h": "n"}),
    ("GRU", "onednn"): ("u r o", {"u": "z", "o": "n"}),
    ("GRU", "coreml"): ("r o z", {"o": "n"}),
    ("GRU", "ncnn"): ("r u n", {"u": "z"}),
}
ALL = [(cell, system) for cell, orders in gates.ORDERS.items() for system in orders]


def test_all_are_worded() -> None:
    assert set(ALL) == set(WORDED)


def blocks(letters: str) -> np.ndarray:
    """One column of 3 for each gate, filled with its letter's number."""
    return np.repeat([ord(letter) for letter in letters], 3)[:, None] * np.ones((1, 2))


@pytest.mark.parametrize("cell, system", ALL)
def test_the_order_is_what_it_is_called(cell: str, system: str) -> None:
    words, meaning = WORDED[cell, system]
    order = "".join(meaning.get(letter, letter) for letter in words.split())
    own = {"LSTM": "ifgo", "GRU": "rzn"}[cell]
    assert same_bits(gates.to_own(blocks(order), cell, system), blocks(own))
    assert same_bits(gates.from_own(blocks(own), cell, system), blocks(order))
    assert same_bits(gates.to_own(blocks(order).T, cell, system, axis=1), blocks(own).T)


@pytest.mark.parametrize("cell, system", ALL)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_undoes_the_other(cell: str, system: str, axis: int) -> None:
    count = len(gates.OWN[cell]) * 5
    array = np.random.default_rng(1).standard_normal((count, count))
    for first, second in (gates.to_own, gates.from_own), (gates.from_own, gates.to_own):
        once = first(array, cell, system, axis)
        assert same_bits(second(once, cell, system, axis), array)


@pytest.mark.parametrize("system", gates.LSTM)
def test_peepholes_keep_the_order_of_their_gates(system: str) -> None:
    order = gates.LSTM[system].replace("g", "")
    assert same_bits(gates.peepholes_to_own(blocks(order), system), blocks("ifo"))
    assert same_bits(gates.peepholes_from_own(blocks("ifo"), system), blocks(order))


def test_a_plain_rnn_has_no_order() -> None:
    array = np.arange(6.0).reshape(3, 2)
    assert gates.to_own(array, "RNN", "onnx") is array is gates.from_own(array, "RNN", "keras")


@pytest.mark.parametrize("call", [gates.to_own, gates.from_own])
def test_a_shape_of_no_gates(call: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"shape \(6, 2\), expected a multiple of 4 along axis 0"):
        call(np.zeros((6, 2)), "LSTM", "onnx")
