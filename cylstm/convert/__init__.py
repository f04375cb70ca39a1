"""Model files: `save`, and `load` and `inspect` for every format, told apart by content.

A reader is a module of this package with one function,

    read(source: Source, *, its own options) -> Contents

which states what the file holds and leaves nothing out (`found.py`). `readers.py` lists them; one
is imported when a file is its own, and imports what it needs itself. Orders of gates are in
`gates.py`. This module is part of `import cylstm`, hence imports nothing of the package at its top.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..module import Module
    from ..sequential import Sequential
    from .found import Contents
    from .readers import Reader
    from .source import Source

MAX_MESSAGE = 2000  # characters


def save(module: Module | Sequential, path: str | os.PathLike[str]) -> None:
    """Write a module's configuration and weights to a file, whole or not at all.

    The file is replaced atomically: an existing one stays until the new one is complete and on the
    disk, even if the process is killed. (One that is killed may leave a file named
    `.cylstm-*.tmp` beside it.) A file that is replaced hands on its mode and, where the system
    allows it, its owner; symbolic links stay. Another hard link to the old file keeps the old
    content: only a new file can take a name in one step. A device or a FIFO is written to.

    Raises
    ------
    TypeError
        `module` is of a class that has no files.
    ValueError
        It has more arrays than a file can name, some 90,000.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> cylstm.save(cylstm.LSTM(8, 16, seed=1), "model.safetensors")
    >>> cylstm.load("model.safetensors").hidden_size
    16
    """
    from ..files import write

    write(module, path)


def load(path: str | os.PathLike[str], inside: str | None = None, **options: Any) -> Any:
    """Read a model file and return what it holds, exactly, or refuse.

    The format is told by the content of the file: what `cylstm.save` wrote, or another program's
    safetensors, PyTorch, Keras or ONNX file. A file that says how its layers make a model comes
    back as that model; one of weights alone gives its recurrent layer. `inspect` shows what there
    is.

    Parameters
    ----------
    path : str or path-like
    inside : str or None
        The path of one recurrent layer within the file, as `inspect` shows it.
    options : further arguments
        Of the module's constructor, where the file does not say or you want it otherwise
        (batch_first=True, dropout=0.1, dtype="float64"), or of the format's reader.

    Returns
    -------
    a module: LSTM, GRU, RNN, ..., or the class that `save` was given

    Raises
    ------
    ValueError
        The file is broken or of no known format, holds something that cylstm does not have, or
        several layers of which none was chosen. The message names the file and what is wrong.
    TypeError
        An option that neither the reader nor the module knows.
    OSError
        There is no such file, or it cannot be read.
    ImportError
        The format needs a package that is not installed; the message names it.

    Examples
    --------
    >>> cylstm.save(cylstm.GRU(8, 16, seed=1), "gru.safetensors")
    >>> gru = cylstm.load("gru.safetensors")
    >>> gru.input_size, gru.hidden_size
    (8, 16)
    """
    from .found import build

    with _opened(path) as (source, reader):
        read = _module(reader).read
        own = {name: options.pop(name) for name in _own_options(read) if name in options}
        contents: Contents = read(source, **own)
        if inside is None and contents.whole is not None:
            return contents.whole(**options)
        return build(contents.find(inside), **options)


def inspect(path: str | os.PathLike[str]) -> Contents:
    """Return what a model file holds, without loading it: its recurrent layers, and what is around.

    The result prints as a table: each layer's path in the file, its cell and sizes, the options it
    needs, and whether it loads; then whether the file does as a whole. `.layers` and `.problem`
    have the same as objects.

    Raises ValueError, OSError and ImportError as `load` does.

    Examples
    --------
    >>> np.savez("model.npz", **cylstm.GRU(8, 16).state_dict())
    >>> (layer,) = cylstm.inspect("model.npz").layers
    >>> layer.cell, layer.hidden_size
    ('GRU', 16)
    """
    from dataclasses import replace

    with _opened(path) as (source, reader):
        contents: Contents = _module(reader).read(source)
        if contents.unsure and contents.whole is not None:
            try:
                contents.whole()
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                return replace(contents, problem=str(error))
        return contents


def from_keras(live: Any) -> Any:
    """Return a live Keras layer or model as a module, or as a `Sequential`.

    Raises ValueError for what cylstm does not have; the message lists it.

    Examples
    --------
    >>> import keras
    >>> theirs = keras.layers.LSTM(16)
    >>> theirs.build((None, 20, 8))
    >>> cylstm.from_keras(theirs).input_size
    8
    """
    from .keras import from_keras

    return from_keras(live)


def from_torch(module: Any, inside: str | None = None, **options: Any) -> Any:
    """Return a live torch.nn.LSTM, GRU, RNN or cell as a module of cylstm, with its weights of now.

    A torch.nn.Sequential of more than that becomes a `Sequential`, whose x is torch's: (B, T, F),
    (B, C, T) before a Conv1d, ids (B, T), or (B, F).

    Parameters
    ----------
    module : torch.nn.Module
        The layer itself, or a model around it.
    inside : str or None
        The path of one recurrent layer within the model, as `model.named_modules()` has it.
    options : further arguments of the constructor, as for `load`
        batch_first, dropout and an RNN's nonlinearity are the module's own.

    Raises
    ------
    ValueError
        There is no recurrent layer in it, or several of which none was chosen, or one that cylstm
        does not have; or a torch.nn.Sequential has other layers than `Sequential`: the message
        lists them.
    TypeError
        An option that the module does not know.

    Examples
    --------
    >>> import torch
    >>> theirs = torch.nn.LSTM(8, 16, num_layers=2)
    >>> ours = cylstm.from_torch(theirs)
    >>> y, (h_n, c_n) = ours(np.zeros((5, 3, 8), np.float32))
    >>> y.shape, h_n.shape
    ((5, 3, 16), (2, 3, 16))
    """
    from .found import build
    from .torch import from_live
    from .torch_layers import from_sequential, kind_of_layer

    contents = from_live(module)
    if inside is None and kind_of_layer(module) == "Sequential" and len(module) > 1:
        return from_sequential(module, [layer.path for layer in contents.layers], **options)
    return build(contents.find(inside), **options)


def _module(reader: Reader) -> Any:
    try:
        return import_module(f"{__name__}.{reader.module}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{reader.module}":
            raise
        from .._core import with_article

        kind = with_article(reader.name)
        raise ValueError(f"{kind} file, which this version does not read") from error


def _own_options(read: Callable[..., Contents]) -> list[str]:
    parameters = signature(read).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Source, Reader]]:
    """Open a file and tell its format; what goes wrong inside becomes an error that names it."""
    from .found import UnknownOption
    from .readers import READERS
    from .source import Source

    name = os.fsdecode(path)
    if not stat.S_ISREG(os.stat(name).st_mode) and not os.path.isdir(name):
        raise ValueError(f"{name}: not a regular file")
    with open(name, "rb") as file:
        try:
            source = Source(name, file)
            reader = next((reader for reader in READERS if reader.sniff(source)), None)
            if reader is None:
                known = ", ".join(reader.name for reader in READERS)
                raise ValueError(f"of no format that cylstm reads: {known}")
            yield source, reader
        except UnknownOption:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            message = str(error)
            if len(message) > MAX_MESSAGE:
                message = f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"
            raise ValueError(f"{name}: {message}") from error
