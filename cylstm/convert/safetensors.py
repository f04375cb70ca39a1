"""Safetensors files: those of `cylstm.save`, and those of others with PyTorch's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import numpy as np

from .. import files
from ..layers import GRU, LSTM, RNN
from ..tensors import DTYPES, Entry, read_header
from . import state_dict
from .arrays import Unread
from .found import Contents, Recurrent, no_options
from .source import Source

RECURRENT: dict[str, type[Any]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


def read(source: Source, *, nonlinearity: str | None = None) -> Contents:
    """Return what a safetensors file holds.

    `nonlinearity`, "tanh" or "relu", is that of an RNN, which names and shapes do not tell.
    """
    metadata, entries = read_header(source.file, source.size)
    if files.is_own(metadata):
        return _own(source, *files.described(metadata))

    def unread(entry: Entry) -> Unread:
        dtype = "bfloat16" if entry.kind == "BF16" else np.dtype(DTYPES[entry.kind]).name
        return Unread(entry.shape, dtype, partial(entry.read, source.file))

    arrays = {name: unread(entry) for name, entry in entries.items()}
    layers, around = state_dict.layers(arrays, {}, source.size, nonlinearity)
    return Contents("safetensors", layers, around)


def _own(source: Source, cls: type[Any], config: dict[str, Any]) -> Contents:
    """What `save` wrote: it loads whole, and the recurrent steps of a Sequential by name too."""

    def whole(**options: Any) -> Any:
        no_options(options)
        return files.read(source.file)

    title, name = f"cylstm.{cls.__name__}, safetensors", cls.__name__
    if name in RECURRENT:
        return Contents(title, (_layer("", config, name, whole),), "", whole)
    if name != "Sequential":
        return Contents(title, (), str(config), whole)

    def step_of(path: str) -> Any:
        return whole()[path]

    listed = config["layers"] if isinstance(config["layers"], list) else []
    steps = [step for step in listed if _is_step(step)]
    layers = tuple(
        _layer(step["name"], step["config"], step["class"], partial(step_of, step["name"]))
        for step in steps
        if step["class"] in RECURRENT and not RECURRENT[step["class"]]._check_config(step["config"])
    )
    around = " -> ".join(f"{step['name']} ({step['class']})" for step in steps)
    return Contents(title, layers, around, whole)


def _is_step(step: Any) -> bool:
    """As far as listing goes: the rest is checked by the module that it becomes, when it does."""
    kinds = {"name": str, "class": str, "config": dict}
    return isinstance(step, dict) and all(isinstance(step.get(k), kinds[k]) for k in kinds)


def _layer(path: str, config: dict[str, Any], cell: str, take: Callable[[], Any]) -> Recurrent:
    """A layer by its configuration; `options` has what is not the constructor's default."""
    usual = {p.name: p.default for p in signature(RECURRENT[cell]).parameters.values()}
    said = {**usual, **config}
    plain = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")
    return Recurrent(
        path,
        cell,
        said["input_size"],
        said["hidden_size"],
        said["num_layers"],
        2 if said["bidirectional"] else 1,
        said.get("proj_size", 0),
        said["bias"],
        {
            name: value
            for name, value in config.items()
            if name not in plain and value != usual.get(name)
        },
        lambda: take().state_dict(),
    )
