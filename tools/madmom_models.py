"""madmom's models, pickles of its own classes: their numbers as our modules, and its own answers.

Nothing of the package is installed. The pickles are read as data; the answers come from its file
of layers, plain Python and NumPy, run on the same numbers.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cylstm
from cylstm.convert.arrays import PickledArray
from cylstm.convert.torch import MAKERS
from cylstm.convert.unpickle import Name, Stub, unpickle

Array = NDArray[Any]
RECURRENT = {"LSTMLayer": "LSTM", "GRULayer": "GRU", "RecurrentLayer": "RNN"}
GATES = {  # in PyTorch's order
    "LSTM": ("input_gate", "forget_gate", "cell", "output_gate"),
    "GRU": ("reset_gate", "update_gate", "cell"),
}


def compare(path: Path, steps: int = 50) -> tuple[int, float]:
    """Run the recurrent layers of a model both ways: how many, and the largest difference."""
    with path.open("rb") as file:
        network: Any = unpickle(file, MAKERS)
    stack = [layer for layer in _state(network)["layers"] if _directions(layer)]
    module, initial = load(stack)
    x = np.random.default_rng(0).standard_normal((steps, module.input_size)).astype(np.float32)
    y, _ = module(x, initial)
    want = x
    for layer in stack:
        want = _theirs(layer, _layers_of(path))(want)
    return len(stack), float(np.abs(y - want).max())


def load(stack: list[Stub]) -> tuple[Any, Any]:
    """A stack of layers as one module, and its initial states, which a GRU of theirs has."""
    arrays: dict[str, Array] = {}
    initial = []
    for number, layer in enumerate(stack):
        for part, end in zip(_directions(layer), ("", "_reverse")):
            named, h_0 = _direction(part)
            arrays |= {f"{name}_l{number}{end}": array for name, array in named.items()}
            initial.append(h_0)
    first = _directions(stack[0])
    cell = RECURRENT[_kind(first[0])]
    hidden = len(initial[0])
    module: Any = getattr(cylstm, cell)(
        arrays["weight_ih_l0"].shape[1],
        hidden,
        len(stack),
        bidirectional=len(first) == 2,
        **({"peephole": True} if cell == "LSTM" else {}),
    )
    module.load_state_dict(arrays)
    return module, np.stack(initial) if cell == "GRU" else None


def _direction(layer: Stub) -> tuple[dict[str, Array], Array]:
    """The arrays of one layer and direction, PyTorch's names and order, and its h_0."""
    cell, state = RECURRENT[_kind(layer)], _state(layer)
    gates = [_state(state[name]) for name in GATES[cell]] if cell in GATES else [state]
    signs = [1, -1, 1] if cell == "GRU" else [1] * len(gates)  # their u is 1 - z
    columns = {
        name: np.concatenate([sign * _array(gate[key]).T for sign, gate in zip(signs, gates)])
        for name, key in (("weight_ih", "weights"), ("weight_hh", "recurrent_weights"))
    }
    bias = np.concatenate([sign * _array(gate["bias"]).ravel() for sign, gate in zip(signs, gates)])
    arrays = {**columns, "bias_ih": bias, "bias_hh": np.zeros_like(bias)}
    if cell == "LSTM":
        peepholes = [_array(gates[k]["peephole_weights"]).ravel() for k in (0, 1, 3)]
        arrays["weight_peep"] = np.concatenate(peepholes)
    hidden = columns["weight_hh"].shape[1]
    h_0 = next((state[name] for name in ("init", "hid_init") if name in state), None)
    return arrays, np.zeros(hidden, np.float32) if h_0 is None else _array(h_0).ravel()


def _kind(stub: Stub) -> str:
    """The name of an object's class; protocol 0 hands it to a function."""
    named = stub.args[0] if isinstance(stub.of, Name) and stub.of.module == "copy_reg" else stub.of
    assert isinstance(named, Name)
    return named.name


def _directions(layer: Stub) -> list[Stub]:
    """The recurrent layers that a layer is made of: one, two, or none for another layer."""
    if _kind(layer) == "BidirectionalLayer":
        return [_state(layer)[name] for name in ("fwd_layer", "bwd_layer")]
    return [layer] if _kind(layer) in RECURRENT else []


def _state(stub: Stub) -> dict[str, Any]:
    assert isinstance(stub.state, dict)
    return stub.state


def _array(value: Any) -> Array:
    assert isinstance(value, PickledArray) and value.unread is not None
    return value.unread.read()


# --- its own answers


def _layers_of(path: Path) -> ModuleType:
    """The package's module of layers, without the rest of the package."""
    folder = next(parent for parent in path.parents if parent.name == "models").parent / "ml" / "nn"
    package = sys.modules.setdefault("madmom_nn", ModuleType("madmom_nn"))
    package.__path__ = [str(folder)]
    return importlib.import_module("madmom_nn.layers")


def _theirs(value: Any, layers: ModuleType) -> Any:
    """A pickled object as one of the package's own classes."""
    if isinstance(value, PickledArray):
        return _array(value)
    if isinstance(value, Name):
        return getattr(sys.modules["madmom_nn.activations"], value.name.lstrip("_"))
    if not isinstance(value, Stub):
        return value
    made = object.__new__(getattr(layers, _kind(value)))
    state = {name: _theirs(item, layers) for name, item in _state(value).items()}
    if isinstance(state.get("peephole_weights"), np.ndarray):
        state["peephole_weights"] = state["peephole_weights"].ravel()
    if hasattr(type(made), "__setstate__"):
        with warnings.catch_warnings():  # its models are older than its classes
            warnings.simplefilter("ignore")
            made.__setstate__(state)
    else:
        vars(made).update(state)
    return made


def paths(folder: Path) -> Iterator[Path]:
    """The models of an unpacked package that have recurrent layers."""
    for name in ("beats", "downbeats", "onsets", "notes"):
        for path in sorted(folder.glob(f"**/models/{name}/*/*.pkl")):
            if "cnn" not in path.name:
                yield path
