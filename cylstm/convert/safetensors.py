"""Safetensors files: those of `cylstm.save`."""

from __future__ import annotations

from typing import Any

from .. import files
from ..tensors import read_header
from ..weights import Module
from .found import Contents, no_options
from .source import Source


def read(source: Source) -> Contents:
    """Return what a safetensors file holds."""
    metadata, _ = read_header(source.file, source.size)
    cls, config = files.described(metadata)

    def whole(**options: Any) -> Module:
        no_options(options)
        return files.read(source.file)

    return Contents(f"cylstm.{cls.__name__}, safetensors", (), str(config), whole)
