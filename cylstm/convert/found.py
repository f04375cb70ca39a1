"""What a model file holds, in one form whatever the format, and how a module comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import numpy as np

from ..module import COMPACT, Module
from ..nodes import MODULES
from ..weights import Array


def _no_arrays() -> Mapping[str, Array]:
    return {}


@dataclass(frozen=True)
class Recurrent:
    """One recurrent layer of a file, or a stack that is one module.

    Attributes
    ----------
    path : str
        Its name in the file, by which `cylstm.load(path, inside)` takes it.
    cell : "LSTM", "GRU" or "RNN"
    input_size, hidden_size, num_layers, directions, proj_size : int
    bias : bool
    options : mapping
        Further arguments of the module's constructor, only those that differ from its defaults:
        batch_first, reset_after, nonlinearity, activations, peephole, clip, ... under the names
        that they have, or will have, in cylstm. One that the constructor does not know is an
        error that names it, so that a reader states all that the file says and leaves nothing out.
    read : function
        Returns {name: array}: PyTorch's names (without `path`), shapes and order of gates. It may
        be called while the file is open, that is by `load` alone.
    around : str
        What surrounds it, for people: "embedding -> * -> linear".
    problem : str or None
        Why it would not load, other than by an option: what in the file has no counterpart.
    parts : tuple of Recurrent
        The layers of a stack, where the file has a path for each; `load` takes them as well.
    """

    path: str
    cell: str
    input_size: int
    hidden_size: int
    num_layers: int = 1
    directions: int = 1
    proj_size: int = 0
    bias: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[], Mapping[str, Array]] = field(default=_no_arrays, repr=False)
    around: str = ""
    problem: str | None = None
    parts: tuple[Recurrent, ...] = ()

    def obstacle(self) -> str | None:
        """Return why this layer does not load in this version, or None if it does."""
        if self.problem:
            return self.problem
        if self.cell not in MODULES:
            return f"this version has no {self.cell}"
        known = _arguments(self.cell) | {*COMPACT}
        lacking = [f"{name}={self.options[name]!r}" for name in self.options if name not in known]
        if lacking:
            return f"this version's {self.cell} has no {', '.join(lacking)}"
        cls = MODULES[self.cell]
        try:
            cls.__new__(cls)._configure(**self.config())  # as a constructor, before any weights
        except (ValueError, TypeError) as error:
            return str(error)
        return None

    def config(self) -> dict[str, Any]:
        """Return the arguments of the module's constructor."""
        config = {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "bidirectional": self.directions == 2,
        }
        if self.proj_size:
            config["proj_size"] = self.proj_size
        return config | dict(self.options)


def _arguments(cell: str) -> set[str]:
    """The names that a module's configuration may have; a seed is no part of what it is."""
    return set(signature(MODULES[cell]).parameters) - {"seed"}


def unsupported(wrong: list[str], paths: list[str]) -> str:
    """What is said of a whole model that is none here, and of what can be had instead of it."""
    parts = f"; load(path, inside) has its {', '.join(map(repr, paths))} alone" if paths else ""
    return f"the whole model has what cylstm has no step for: {'; '.join(wrong)}{parts}"


class UnknownOption(TypeError):
    """An argument of `load` that nobody knows: the caller's mistake, and not the file's."""


def no_options(options: Mapping[str, Any]) -> None:
    """Raise if options are left for what has none, as a file that says everything by itself."""
    if options:
        raise UnknownOption(f"unexpected option {', '.join(options)}: the file says everything")


def build(layer: Recurrent, **chosen: Any) -> Module:
    """Return the module that a file's layer is, exactly, or raise ValueError.

    Parameters
    ----------
    layer : Recurrent
    chosen : arguments of the module's constructor that go before what the file says
        dtype is float64 where the file has an array in float64, else float32.

    Raises ValueError for what the file has and the module has not, and for weights that are NaN, of
    a training that failed; TypeError for unknown options.
    """
    if obstacle := layer.obstacle():
        raise ValueError(f"{layer.path or layer.cell}: {obstacle}")
    cls = MODULES[layer.cell]
    if unknown := [name for name in chosen if name not in _arguments(layer.cell)]:
        raise UnknownOption(f"unexpected option {', '.join(unknown)}: {layer.cell} has none")
    arrays = layer.read()
    for name, array in arrays.items():
        if (wrong := np.isnan(array)).any():
            at = np.argwhere(wrong)[0].tolist()
            raise ValueError(f"{layer.path or layer.cell}: {name} is NaN at {at}")
    wide = any(array.dtype.itemsize > 4 for array in arrays.values())
    config = {"dtype": "float64" if wide else "float32", **layer.config(), **chosen}
    return cls._from(config, arrays)


@dataclass(frozen=True, repr=False)
class Contents:
    """What a file holds; printed, a table.

    Attributes
    ----------
    format : str
        For people: "PyTorch, zip, state_dict".
    layers : tuple of Recurrent
    around : str
        What else the file holds, for people.
    whole : function or None
        Returns what the file holds as a whole, given the constructor's arguments that the user
        chose; None where nothing but its recurrent layers can be had.
    problem : str or None
        Why `whole` raises: what the file has that cylstm has not.
    unsure : bool
        Whether only a call of `whole` tells, which `inspect` makes then.
    """

    format: str
    layers: tuple[Recurrent, ...]
    around: str = ""
    whole: Callable[..., Any] | None = None
    problem: str | None = None
    unsure: bool = False

    def find(self, inside: str | None) -> Recurrent:
        """Return the layer of this path, or the only one that ends so, or the only one at all."""
        paths = [layer.path for layer in self.layers]
        if inside is not None:
            every = [one for layer in self.layers for one in (layer, *layer.parts)]
            fits = [layer for layer in every if layer.path == inside] or [
                layer for layer in every if layer.path.endswith(f".{inside}")
            ]
            if len(fits) != 1:
                found = f"{len(fits)} recurrent layers end in" if fits else "no recurrent layer"
                raise ValueError(f"{found} {inside!r}, {_choice([layer.path for layer in every])}")
            return fits[0]
        if len(paths) != 1:
            raise ValueError(
                f"{len(paths)} recurrent layers, {_choice(paths)}: "
                "choose one by its path, load(path, inside)"
                if paths
                else f"no recurrent layer in this {self.format} file"
            )
        return self.layers[0]

    def __repr__(self) -> str:
        rows: list[Iterable[Any]] = [
            ("path", "cell", "input", "hidden", "layers", "directions", "options", "around", "")
        ]
        for layer in self.layers:
            options = {"proj_size": layer.proj_size} if layer.proj_size else {}
            options |= {} if layer.bias else {"bias": False}
            options |= layer.options
            obstacle = layer.obstacle()
            rows.append(
                (
                    layer.path or "(top)",
                    layer.cell,
                    layer.input_size,
                    layer.hidden_size,
                    layer.num_layers,
                    layer.directions,
                    ", ".join(f"{name}={value!r}" for name, value in options.items()),
                    layer.around,
                    f"does not load: {obstacle}" if obstacle else "loads",
                )
            )
        lines = [self.format, *_table(rows if self.layers else [("no recurrent layers",)])]
        if self.around:
            lines.append(f"also: {self.around}")
        if self.whole is not None:
            why = f"does not load: {self.problem}" if self.problem else "loads"
            lines.append(f"as a whole: {why}")
        return "\n".join(lines)


def _choice(paths: list[str]) -> str:
    shown = ", ".join(repr(path) for path in paths[:20])
    more = f" and {len(paths) - 20} more" if len(paths) > 20 else ""
    return f"expected one of {shown}{more}" if paths else "the file has none"


def _table(rows: list[Iterable[Any]]) -> list[str]:
    """Lines of columns, each as wide as its widest cell; columns without content are left out."""
    columns = [list(map(str, column)) for column in zip(*rows)]
    kept = [column for column in columns if len(rows) == 1 or any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
        for cells in zip(*kept)
    ]
