"""Safetensors files: those of `cylstm.save`, and those of others with PyTorch's names."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .. import files
from ..tensors import DTYPES, Entry, read_header
from ..weights import Module
from . import state_dict
from .arrays import Unread
from .found import Contents, no_options
from .source import Source


def read(source: Source, *, nonlinearity: str | None = None) -> Contents:
    """Return what a safetensors file holds.

    `nonlinearity`, "tanh" or "relu", is that of an RNN, which names and shapes do not tell.
    """
    metadata, entries = read_header(source.file, source.size)
    if files.is_own(metadata):
        cls, config = files.described(metadata)

        def whole(**options: Any) -> Module:
            no_options(options)
            return files.read(source.file)

        return Contents(f"cylstm.{cls.__name__}, safetensors", (), str(config), whole)

    def unread(entry: Entry) -> Unread:
        dtype = "bfloat16" if entry.kind == "BF16" else np.dtype(DTYPES[entry.kind]).name
        return Unread(entry.shape, dtype, partial(entry.read, source.file))

    arrays = {name: unread(entry) for name, entry in entries.items()}
    layers, around = state_dict.layers(arrays, {}, source.size, nonlinearity)
    return Contents("safetensors", layers, around)
