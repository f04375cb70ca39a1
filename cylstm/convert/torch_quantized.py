"""Recurrent modules that torch.ao has quantised dynamically, as floats under their usual names.

Such a module keeps its weights packed, one object of TorchScript for each layer and direction, a
cell one for each of its two products:

    rnn._all_weight_values.0.param                     CellParamsBase
        ("quantized_dynamic", ..., [LinearPackedParams, LinearPackedParams])
    cell._packed_weight_ih, cell._packed_weight_hh     LinearPackedParams (weight, bias)

A weight is a tensor of 8 bits with a scale and a zero point, or of float16's numbers. Both are read
as the floats that they stand for, bit for bit those of torch's `dequantize`. (PyTorch rounds x and
h to 8 bits as well, by the range of the whole batch, so that its outputs are not quite those of
these weights.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..tensors import shown
from ..weights import Array
from .arrays import TORCH, Unread, tensor
from .unpickle import Makers, Name, Stub

PRODUCT, LAYER = "LinearPackedParamsBase", "CellParamsBase"
TYPED = Name("torch.jit._pickle", "restore_type_tag")  # around a list of TorchScript's
LAYERS = re.compile(
    r"(?:(?P<path>.*)\.)?_all_weight_values\.(?P<number>\d{1,6})\.param\.(?P<of>.*)"
)
CELL = re.compile(r"(?P<path>(?:.*\.)?)_packed_weight_(?P<of>ih|hh)\.(?P<name>weight|bias)")
# An LSTM that torch.ao has prepared for static quantisation, or quantised so.
STATIC = re.compile(r"(?:(?P<path>.*)\.)?layers\.\d+\.layer_(?:fw|bw)\.cell\.[ih]gates\..*")


def quantized_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, quantizer: Any, *rest: Any
) -> Any:
    """Return the tensor that torch._utils._rebuild_qtensor would make, in floats and unread."""
    codes = tensor(storage, offset, size, stride)
    scheme, *numbers = quantizer if isinstance(quantizer, tuple) and quantizer else (None,)
    kind = scheme.name if isinstance(scheme, Name) else None
    if kind == "per_tensor_affine" and len(numbers) == 2:
        scale, zero = numbers
        if type(scale) not in (int, float) or type(zero) is not int or abs(zero) > 2**31:
            raise ValueError(f"a tensor with scale {shown(scale)}, zero point {shown(zero)}")
        return Unread(codes.shape, "float32", lambda: _floats(codes.read(), scale, zero))
    if kind == "per_channel_affine" and len(numbers) == 3:
        scales, zeros, axis = numbers
        if not isinstance(scales, Unread) or not isinstance(zeros, Unread):
            raise ValueError("a tensor with a scale for each channel, but no scales")
        if type(axis) is not int or not 0 <= axis < len(codes.shape):
            raise ValueError(f"a tensor of shape {shown(codes.shape)} with channels {shown(axis)}")
        if not scales.shape == zeros.shape == codes.shape[axis : axis + 1]:
            raise ValueError(
                f"a tensor of shape {shown(codes.shape)}, {shown(scales.shape)} scales"
            )
        wide = [-1 if n == axis else 1 for n in range(len(codes.shape))]

        def read() -> Array:
            each = scales.read().reshape(wide), zeros.read().reshape(wide)
            return _floats(codes.read(), *each)

        return Unread(codes.shape, "float32", read)
    return Unread(codes.shape, f"quantised by {shown(kind)}", codes.read)


def _floats(codes: Array, scale: Any, zero: Any) -> Array:
    """What torch's `dequantize` gives: one rounding, of a product of two float32."""
    return (codes.astype(np.int64) - zero).astype(np.float32) * np.float32(scale)


QUANTIZED: Makers = {**TORCH, Name("torch._utils", "_rebuild_qtensor"): quantized_tensor}


def packed_arrays(value: Any) -> dict[str, Any] | None:
    """Return what packed parameters hold, by the names of a cell or a product; None for others."""
    kind, state = _packed(value)
    if kind == PRODUCT and isinstance(state, tuple) and len(state) == 2:
        weight, bias = state
        return {"weight": weight} | ({} if bias is None else {"bias": bias})
    if kind != LAYER:
        return None
    how, products = (state[0], state[-1]) if isinstance(state, tuple) and state else (None, None)
    if isinstance(products, Stub) and products.of == TYPED and isinstance(products.args, tuple):
        products = products.args[0] if products.args else None
    known = how in ("quantized_dynamic", "quantized_fp16")
    if not known or not isinstance(products, (list, tuple)) or len(products) != 2:
        raise ValueError(f"packed weights of a kind that cylstm does not read: {shown(how)}")
    found = {}
    for end, product in zip(("ih", "hh"), products):
        for name, array in (packed_arrays(product) or {}).items():
            found[f"{name}_{end}"] = array
    return found


def _packed(value: Any) -> tuple[str | None, Any]:
    """Return the class and the state of an object of TorchScript: pickled, of an archive, live."""
    state = None
    if isinstance(value, Stub) and isinstance(value.of, Name):
        if value.of.module.startswith("__torch__.torch.classes."):
            return value.of.name, value.state
        state = value.state if value.of == Name("torch", "ScriptObject") else None
    elif type(value).__name__ == "ScriptObject":
        state = value.__getstate__()
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], str):
        return state[1].rpartition(".")[2], state[0]
    return None, None


def unpacked(
    arrays: Mapping[str, Unread], hints: Mapping[str, Mapping[str, Any]], directions: int | None
) -> tuple[dict[str, Unread], dict[str, str]]:
    """Return arrays with those of packed parameters under the names of a float module, and why a
    module does not load, by its path.

    `directions` is that of layers where neither `hints` nor shapes tell it.
    """
    found: dict[str, Unread] = {}
    layers: dict[str, dict[int, dict[str, Unread]]] = {}
    problems: dict[str, str] = {}
    cells: dict[str, Unread] = {}
    for full, array in arrays.items():
        if match := LAYERS.fullmatch(full):
            number = int(match["number"])
            layers.setdefault(match["path"] or "", {}).setdefault(number, {})[match["of"]] = array
        elif match := CELL.fullmatch(full):
            cells[f"{match['path']}{match['name']}_{match['of']}"] = array
        elif match := STATIC.fullmatch(full):
            problems[match["path"] or ""] = (
                "an LSTM of torch.ao.nn.quantizable, whose static quantisation makes its gates "
                "and states integers: load the one that it was made of"
            )
        else:
            found[full] = array
    found |= cells  # whose biases are attributes too, for the eye alone
    for path, numbered in layers.items():
        D = hints.get(path, {}).get("directions") or directions or _directions(numbered)
        if not D:
            problems[path] = (
                "whether it has two layers or two directions is not in the file: "
                "load(path, directions=1) or 2"
            )
        for number, group in numbered.items():
            layer, direction = divmod(number, D or 1)
            end = f"_l{layer}{'_reverse' if direction else ''}"
            for name, array in group.items():
                found[f"{path}.{name}{end}" if path else f"{name}{end}"] = array
    return found, problems


def _directions(numbered: Mapping[int, Mapping[str, Unread]]) -> int | None:
    """1 or 2 by the widths of the inputs, or None where they fit both."""
    if len(numbered) % 2:
        return 1
    widths = list(_widths(numbered))
    states = numbered.get(0, {}).get("weight_hh")
    if len(widths) != len(numbered) or not states or len(states.shape) != 2:
        return 1  # broken, which `state_dict.py` says
    H = states.shape[1]
    fits = [
        D
        for D in (1, 2)
        if all(n == (D * H if k >= D else widths[0]) for k, n in enumerate(widths))
    ]
    return fits[0] if len(fits) == 1 else None if fits else 1


def _widths(numbered: Mapping[int, Mapping[str, Unread]]) -> Iterator[int]:
    for number in range(len(numbered)):
        weight = numbered.get(number, {}).get("weight_ih")
        if weight and len(weight.shape) == 2:
            yield weight.shape[1]
