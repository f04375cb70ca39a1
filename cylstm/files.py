"""Files: `save` and `load` a module with its configuration, as one safetensors file.

The tensors have PyTorch's names and order of gates, so any reader of safetensors can use them;
the configuration stands in the file's metadata:

    cylstm.format    "1", the version of this layout
    cylstm.class     "LSTM" or "Linear"
    cylstm.config    the constructor's arguments, JSON
    cylstm.version   the version of cylstm that wrote the file; for information
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .layers import LSTM
from .linear import Linear
from .weights import Array, Module

FORMAT = "1"
CLASSES: dict[str, type[Module]] = {"LSTM": LSTM, "Linear": Linear}


def save(module: Module, path: str | os.PathLike[str]) -> None:
    """Write a module's configuration and weights to a file, whole or not at all.

    The file appears under its name only when it is complete and on the disk; what stood there
    stays until then.

    Raises TypeError for anything but an LSTM or a Linear, OSError if the file cannot be written,
    ImportError if safetensors is not installed.
    """
    name = type(module).__name__
    if CLASSES.get(name) is not type(module):
        raise TypeError(f"can save {' and '.join(CLASSES)}, got {type(module)}")
    _safetensors()
    from safetensors.numpy import save as to_bytes

    metadata = {
        "cylstm.format": FORMAT,
        "cylstm.class": name,
        "cylstm.config": json.dumps(module._config()),
        "cylstm.version": sys.modules["cylstm"].__version__,
    }
    _write(path, to_bytes(module.state_dict(), metadata))


def load(path: str | os.PathLike[str]) -> LSTM | Linear:
    """Read a file that `save` wrote, and return the module.

    Raises
    ------
    ValueError
        The file is broken, was not written by `save`, or by a version whose layout is unknown, or
        its weights do not fit its configuration. The message names the file and what is wrong.
    OSError
        There is no such file, or it cannot be read.
    ImportError
        safetensors is not installed.
    """
    file = os.fsdecode(path)
    _safetensors()
    try:
        return _module(*_read(file))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error


def _module(metadata: dict[str, str], tensors: dict[str, Array]) -> Any:
    """Return the module that a file's content describes; any exception means that it does not."""
    if metadata["cylstm.format"] != FORMAT:
        raise ValueError(f"format {metadata['cylstm.format']!r}, this version reads {FORMAT!r}")
    name = metadata.get("cylstm.class", "")
    if name not in CLASSES:
        raise ValueError(f"class {name!r}, expected {' or '.join(CLASSES)}")
    config = json.loads(metadata.get("cylstm.config", ""))
    if not isinstance(config, dict):
        raise ValueError(f"its configuration is {config!r}, expected a JSON object")
    if config.get("num_layers", 1) > len(tensors):  # before names for so many layers are made
        raise ValueError(f"{config['num_layers']} layers, but {len(tensors)} tensors")
    for key, array in tensors.items():
        if array.dtype.name != config.get("dtype"):
            raise ValueError(f"{key} is {array.dtype}, its configuration {config.get('dtype')!r}")
    return CLASSES[name]._rebuild(config, tensors)


def _read(file: str) -> tuple[dict[str, str], dict[str, Array]]:
    """Return the metadata of a file that `save` wrote, and all its tensors, copied out of it."""
    from safetensors import SafetensorError, safe_open

    with open(file, "rb"):  # a missing or forbidden file: Python's own OSError
        pass
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            if "cylstm.format" not in metadata:
                raise ValueError("not written by cylstm.save: its metadata has no cylstm.format")
            tensors = {}
            for name in opened.keys():
                dtype = opened.get_slice(name).get_dtype()
                if dtype not in ("F32", "F64"):  # of which NumPy may have no idea
                    raise ValueError(f"{name} has dtype {dtype}, expected F32 or F64")
                tensors[name] = opened.get_tensor(name)
            return metadata, tensors
    except SafetensorError as error:
        raise ValueError(f"not a whole safetensors file: {error}") from error


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write to a temporary file beside `path`, then give it that name in one step."""
    target = os.path.realpath(os.fsdecode(path))  # through a symbolic link, not in its place
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def _safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "cylstm.save and cylstm.load need safetensors: pip install cylstm[safetensors]"
        ) from error
