"""Our own files: `write` a module with its configuration as safetensors, and `read` it again.

The arrays have PyTorch's names and order of gates, so any reader of safetensors can use them;
the configuration stands in the file's metadata:

    cylstm.format    "1", the version of this layout
    cylstm.class     a name in `CLASSES`
    cylstm.config    what the module's `_config()` returns, JSON
    cylstm.version   the version of cylstm that wrote the file; for information

Nothing here knows a class beyond its name: what has `_config`, `_check_config`, `_from` and
`state_dict`, as every `Module` does, can be saved once it stands in `CLASSES`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from .module import Module
from .nodes import MODULES
from .parameter import Parameter
from .sequential import Sequential
from .tensors import Entry, parse_json, read_header, shown, size_of, to_bytes
from .weights import BFLOAT16, Array, Spec, mismatches

FORMAT = "1"
CLASSES: dict[str, type[Module] | type[Sequential]] = {
    **MODULES,
    "Parameter": Parameter,
    "Sequential": Sequential,
}


def write(module: Module | Sequential, path: str | os.PathLike[str]) -> None:
    """Write a module as `cylstm.save` says, which is where users find this."""
    name = type(module).__name__
    if CLASSES.get(name) is not type(module):
        raise TypeError(f"can't save {type(module)}, only {', '.join(CLASSES)}")
    metadata = {
        "cylstm.format": FORMAT,
        "cylstm.class": name,
        "cylstm.config": json.dumps(module._config()),
        "cylstm.version": sys.modules["cylstm"].__version__,
    }
    stored = module._stored if isinstance(module, Module) else {}
    bfloat16 = {name for name, kind in stored.items() if kind == BFLOAT16}
    _replace(os.fsdecode(path), to_bytes(module.state_dict(), metadata, bfloat16))


def is_own(metadata: dict[str, str]) -> bool:
    """Whether a safetensors file with this metadata was written by `write`."""
    return "cylstm.format" in metadata


def read(file: BinaryIO) -> Any:
    """Return the module that `write` wrote to an open file.

    Raises ValueError if the file is broken, was not written by `save` or by a version whose
    layout is unknown, or if its arrays do not fit its configuration.
    """
    metadata, entries = read_header(file, size_of(file))
    cls, config = described(metadata)
    count = config.get("num_layers")
    if isinstance(count, int) and count > len(entries):  # before names for so many are made
        raise ValueError(f"{shown(count)} layers, but {len(entries)} arrays")

    def arrays(spec: Spec | None) -> dict[str, Array]:
        """Read the arrays once all are known to be what the module needs; None: read all."""
        unread = {name: _unread(entry) for name, entry in entries.items()}
        if spec is not None and (wrong := mismatches(spec, unread)):
            raise ValueError("; ".join(wrong))
        return {name: entry.read(file) for name, entry in entries.items()}

    return cls._from(config, arrays)


def described(metadata: dict[str, str]) -> tuple[Any, dict[str, Any]]:
    """Return the class and the configuration that a file's metadata names, or raise ValueError."""
    if not is_own(metadata):
        raise ValueError("not written by cylstm.save: its metadata has no cylstm.format")
    if metadata["cylstm.format"] != FORMAT:
        found = shown(metadata["cylstm.format"])
        raise ValueError(f"format {found}, this version reads {FORMAT!r}")
    name = metadata.get("cylstm.class", "")
    if name not in CLASSES:
        raise ValueError(f"class {shown(name)}, expected one of {', '.join(CLASSES)}")
    try:
        config = parse_json(metadata.get("cylstm.config", ""))
    except ValueError as error:
        raise ValueError(f"its configuration: {error}") from error
    if wrong := CLASSES[name]._check_config(config):
        raise ValueError(f"its configuration: {'; '.join(wrong)}")
    return CLASSES[name], config


def _unread(entry: Entry) -> Array:
    """An array of an entry's shape that takes no memory, in place of its values."""
    return np.broadcast_to(np.float32(0), entry.shape)


def _replace(path: str, parts: Iterable[bytes | memoryview]) -> None:
    """Write to a temporary file beside `path`, then give it that name in one step."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    if old and not stat.S_ISREG(old.st_mode):  # no file that could be replaced
        with open(path, "wb") as file:
            file.writelines(parts)
        return
    target = os.path.realpath(path)  # through a symbolic link, not in its place
    temporary = os.path.join(os.path.dirname(target), f".cylstm-{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb", opener=_private if old else None) as file:
            file.writelines(parts)
            file.flush()
            if old:
                _take_over(file.fileno(), old)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def _private(path: str, flags: int) -> int:
    """Open a file that nobody else may read until it has the mode of the one it replaces."""
    return os.open(path, flags, 0o600)


def _take_over(descriptor: int, old: os.stat_result) -> None:
    """Give a file the mode of the one that it replaces, and its owner where that is allowed."""
    if hasattr(os, "fchown"):
        try:
            os.fchown(descriptor, old.st_uid, old.st_gid)
        except PermissionError:
            pass  # only root may give files away; the writer is the owner then
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
