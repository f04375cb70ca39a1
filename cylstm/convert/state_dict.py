"""Recurrent layers among arrays that have PyTorch's names, whatever file they come from.

A layer is what ends in weight_ih_l0, weight_hh_l0, ... under one prefix, or the same without _l0,
which is an LSTMCell, GRUCell or RNNCell. Its cell and sizes follow from the shapes. Weights under
weight_norm are multiplied out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from .._core import with_article
from ..weights import Array
from .arrays import Unread
from .found import Recurrent

GATES = {4: "LSTM", 3: "GRU", 1: "RNN"}
OWN_NAME = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)(_l\d{1,5})?(_reverse)?")
# weight_norm: the older form, and that of torch.nn.utils.parametrizations.
NORMED = re.compile(
    r"(?P<name>\w+?)_(?P<part>[gv])|parametrizations\.(?P<new>\w+)\.original(?P<number>[01])"
)
CHANGED = re.compile(rf"(parametrizations\.)?{OWN_NAME.pattern}\W")  # as by a spectral norm
LIKE_OWN = re.compile(r"(weight|bias)(_\w+)?")
NORM = re.compile(r"norm|ln(?![a-z])", re.IGNORECASE)
SHORT = re.compile(r"(?:(?P<prefix>.*)_)?(?P<kind>[wb])_(?P<of>ih|hh)")  # enc_w_ih, b_hh
FLOATS = ("float16", "bfloat16", "float32", "float64")


def layers(
    arrays: Mapping[str, Unread],
    hints: Mapping[str, Mapping[str, Any]],
    size: int | None,
    nonlinearity: str | None = None,
) -> tuple[tuple[Recurrent, ...], str]:
    """Return the recurrent layers among arrays, and what else there is, in words.

    Parameters
    ----------
    arrays : {name: array}, as in a state_dict
    hints : {prefix: options}
        What the file says of a module beside its weights: cell, directions, and arguments of the
        constructor.
    size : int or None
        Bytes of the file, of which a layer may take four times as many: tensors can share memory.
    nonlinearity : "tanh", "relu" or None
        Of an RNN, which no state_dict tells.
    """
    if nonlinearity not in (None, "tanh", "relu"):
        raise ValueError(f"nonlinearity is {nonlinearity!r}, expected 'tanh' or 'relu'")
    groups: dict[str, dict[str, Unread]] = {}
    others: dict[str, int] = {}
    for prefix, name, array in _placed(arrays):
        if name:
            groups.setdefault(prefix, {})[name] = array
        else:
            others[prefix] = others.get(prefix, 0) + 1
    strangers = _strangers(groups, arrays, hints)
    found = tuple(
        _layer(prefix, groups[prefix], hints.get(prefix, {}), size, nonlinearity, strangers[prefix])
        for prefix in _distinct(groups, hints)
    )
    words = [f"{prefix or 'top'} ({count})" for prefix, count in others.items()]
    more = f" and {len(words) - 12} more" if len(words) > 12 else ""
    return found, f"arrays of {', '.join(words[:12])}{more}" if words else ""


def _distinct(
    groups: Mapping[str, Mapping[str, Unread]], hints: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The prefixes, less those of the same arrays again, as beside a pickled module."""
    kept: dict[Any, str] = {}
    for prefix in sorted(groups, key=lambda prefix: (prefix not in hints, prefix.count("."))):
        places = tuple(sorted((name, array.place) for name, array in groups[prefix].items()))
        known = all(place is not None for _, place in places)
        kept.setdefault(places if known else prefix, prefix)
    return [prefix for prefix in groups if prefix in kept.values()]


def _strangers(
    groups: Mapping[str, Mapping[str, Unread]],
    arrays: Mapping[str, Unread],
    hints: Mapping[str, Any],
) -> dict[str, list[str]]:
    """For each prefix, arrays of its module that no recurrent layer of PyTorch's has.

    With those it may be a cell of another kind. At the top of a file stands what belongs to the
    whole model too, and in a pickled module any attribute: of that, only names like a layer's
    count, and norms beside a cell.
    """
    own = {prefix: {array.place for array in group.values()} for prefix, group in groups.items()}
    found: dict[str, list[str]] = {prefix: [] for prefix in groups}
    for full, array in arrays.items():
        module, name = _split(full)
        own_name = OWN_NAME.match(name) or CHANGED.match(name)
        like = LIKE_OWN.fullmatch(name) and not own_name
        prefix = module
        while True:
            if prefix in groups and (array.place is None or array.place not in own[prefix]):
                inside = full[len(prefix) + 1 :] if prefix else full
                norm = "weight_ih" in groups[prefix] and NORM.search(inside.partition(".")[0])
                below = module not in groups if prefix else bool(norm)
                beside = like or (prefix and prefix not in hints and not own_name)
                if beside if module == prefix else below:
                    found[prefix].append(inside)
            if not prefix:
                break
            prefix = prefix.rpartition(".")[0]
    return found


def _placed(arrays: Mapping[str, Unread]) -> Iterator[tuple[str, str, Unread]]:
    """Yield (prefix, name within a recurrent layer or "", array)."""
    parts: dict[tuple[str, str], dict[str, Unread]] = {}
    for full, array in arrays.items():
        prefix, name = _split(full)
        normed = NORMED.fullmatch(name)
        if OWN_NAME.fullmatch(name):
            yield prefix, name, array
        elif normed and OWN_NAME.fullmatch(normed["name"] or normed["new"]):
            part = normed["part"] or "gv"[int(normed["number"])]
            parts.setdefault((prefix, normed["name"] or normed["new"]), {})[part] = array
        elif OWN_NAME.match(name) or CHANGED.match(
            name
        ):  # weight_hh_l0_raw, weight_ih_l0_orig, ...: a change of a weight
            yield prefix, name, array
        else:
            yield prefix, "", array
    for (prefix, name), pair in parts.items():
        if pair.keys() == {"g", "v"}:
            yield prefix, name, _denormed(pair["g"], pair["v"])
        else:
            yield prefix, f"{name}_{''.join(pair)}", next(iter(pair.values()))


def _split(full: str) -> tuple[str, str]:
    """Split a name before its last part, or before the parts of a parametrization.

    A short name, as of a program that runs a cell in plain NumPy, is one of a cell's.
    """
    before, dot, name = full.rpartition(".")
    if short := SHORT.fullmatch(name):
        prefix = ".".join(filter(None, (before, short["prefix"])))
        return prefix, f"{'weight' if short['kind'] == 'w' else 'bias'}_{short['of']}"
    at = before.find("parametrizations.") if "parametrizations." in before else -1
    if at == 0 or (at > 0 and before[at - 1] == "."):
        return before[: max(at - 1, 0)], full[at:]
    return before, name


def _denormed(g: Unread, v: Unread) -> Unread:
    """w = g v / |v|, the norm over the axes that g has not (Salimans and Kingma 2016)."""

    def read() -> Array:
        direction, length = v.read(), g.read()
        wide = direction.astype(np.float64)
        if length.ndim not in (0, wide.ndim):
            raise ValueError(f"a weight norm of shape {g.shape} for a weight of {v.shape}")
        axes = tuple(n for n in range(wide.ndim) if length.ndim == 0 or length.shape[n] == 1)
        norm = np.sqrt((wide**2).sum(axes, keepdims=True))
        return (wide * (length / norm)).astype(direction.dtype)

    return Unread(v.shape, v.dtype, read)


def _layer(
    path: str,
    group: dict[str, Unread],
    hints: Mapping[str, Any],
    size: int | None,
    nonlinearity: str | None,
    strangers: list[str],
) -> Recurrent:
    """Return the layer that the arrays under one prefix are, with its problem if they are none."""
    is_cell = "weight_ih" in group
    arrays = {f"{name}_l0": array for name, array in group.items()} if is_cell else group
    names = [re.search(r"_l(\d+)", name) for name in arrays]
    count = max((int(name[1]) for name in names if name), default=0) + 1
    directions = 1 + any(name.endswith("_reverse") for name in arrays)
    bias = any(name.startswith("bias") for name in arrays)
    first, states = arrays.get("weight_ih_l0"), arrays.get("weight_hh_l0")
    projection = arrays.get("weight_hr_l0")
    if not first or not states:
        lost = "weight_hh_l0" if first else "weight_ih_l0"
        changes = [name for name in arrays if re.search(rf"{lost}(?!_reverse)", name)]
        instead = f", in its place there is {', '.join(changes)}" if changes else ""
        return Recurrent(path, "?", 0, 0, problem=f"{lost} is missing{instead}")
    for array in (first, states, projection or first):
        if len(array.shape) != 2:
            shape = f"a matrix of its first layer has shape {array.shape}"
            return Recurrent(path, "?", 0, 0, problem=shape)
    P, H = projection.shape if projection else (0, states.shape[1])
    I = first.shape[1]
    rows = states.shape[0]
    cell = GATES.get(rows // H, "?") if H and rows % H == 0 else "?"
    options = {name: hints[name] for name in hints if name not in ("cell", "directions")}
    problem: str | None = None
    taken = sum(prod(array.shape) for array in arrays.values())
    if count > len(arrays):
        problem = f"layers up to {count - 1}, but {len(arrays)} arrays"
    elif size is not None and taken > 4 * size:
        problem = f"its arrays would take {taken} elements, the file has {size} bytes"
    else:
        wanted = _shapes(rows, I, H, P, count, directions, bias)
        problem = _difference(wanted, arrays)
    if strangers:
        shown = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
        problem = f"beside a layer's weights it has {shown}, and what they do is not in the file"
    if cell == "?":
        problem = f"weight_hh has shape {states.shape}, expected 4, 3 or 1 times {H} rows"
    elif cell != hints.get("cell", cell):
        problem = f"weights of shape {states.shape} in {with_article(hints['cell'])}"
    elif directions != hints.get("directions", directions):
        kind = with_article(cell)
        problem = f"weights of {directions} directions in {kind} of {hints['directions']}"
    if cell == "RNN":
        options.setdefault("nonlinearity", nonlinearity)
        if options["nonlinearity"] is None:
            del options["nonlinearity"]
            problem = problem or (
                "the nonlinearity of an RNN is not in the file: "
                'load(path, nonlinearity="tanh") or "relu"'
            )
        elif options["nonlinearity"] == "tanh":
            del options["nonlinearity"]
    return Recurrent(
        path, cell, I, H, count, directions, P, bias, options, partial(_read, arrays), "", problem
    )


def _read(arrays: dict[str, Unread]) -> dict[str, Array]:
    return {name: array.read() for name, array in arrays.items()}


def _shapes(
    rows: int, I: int, H: int, P: int, L: int, D: int, bias: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a whole stack."""
    R = P or H
    for layer in range(L):
        for suffix in ("", "_reverse")[:D]:
            end = f"_l{layer}{suffix}"
            yield f"weight_ih{end}", (rows, D * R if layer else I)
            yield f"weight_hh{end}", (rows, R)
            if bias:
                yield f"bias_ih{end}", (rows,)
                yield f"bias_hh{end}", (rows,)
            if P:
                yield f"weight_hr{end}", (P, H)


def _difference(
    wanted: Iterator[tuple[str, tuple[int, ...]]], arrays: Mapping[str, Unread]
) -> str | None:
    """What is wrong with names, shapes and dtypes, or None."""
    surplus = dict.fromkeys(arrays)
    for name, shape in wanted:
        if name not in arrays:
            return f"{name} is missing"
        if arrays[name].shape != shape:
            return f"{name} has shape {arrays[name].shape}, expected {shape}"
        if arrays[name].dtype not in FLOATS:
            return f"{name} is {arrays[name].dtype}, expected a float"
        del surplus[name]
    return f"{next(iter(surplus))} has no meaning here" if surplus else None
