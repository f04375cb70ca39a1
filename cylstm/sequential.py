"""Sequential: a chain of named steps, recurrent modules and what is around them, for inference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import _checks
from .module import Module
from .nodes import (
    INPUT,
    MODULES,
    STEPS,
    Valid,
    inner,
    is_recurrent,
    layer_text,
    mixes_time,
    named,
    nodes,
    run,
    shape_text,
    sizes,
    streams,
)
from .steps import FinalState, LastStep, Transpose
from .steps.step import Shape
from .weights import Array

if TYPE_CHECKING:
    from typing_extensions import Self


class Sequential:
    """A chain of steps that runs as one model, small and immutable.

    All arrays are batch-first: x is (B, T, F), or ids (B, T) before an Embedding. Layers are
    modules (`LSTM` and its like with batch_first=True, `Linear`, `Embedding`), which are shared
    and not copied, and `cylstm.steps`. A recurrent module passes its y on; in a
    `steps.FinalState` its last h. All products but the recurrent ones are NumPy's.

    Parameters
    ----------
    layers : sequence of layers, or of (name, layer), or of (name, layer, source)
        A step takes what the one before it gives, or the step that `source` names; `steps.Merge`
        takes a sequence of names. "input" is the name of what comes in; names are numbers if
        none is given.
    input_shape : sequence of sizes, or None
        The shape of x without its batch axis, with None for a size that may vary, such as T.

    Raises
    ------
    ValueError
        A name twice or unknown, sizes that do not fit each other, a module that is not
        batch-first, dtypes that differ.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 32, batch_first=True)
    >>> model = cylstm.Sequential([cylstm.steps.FinalState(lstm), cylstm.Linear(32, 3)])
    >>> model(np.zeros((4, 20, 8), np.float32)).shape
    (4, 3)
    """

    def __init__(self, layers: Iterable[Any], *, input_shape: Sequence[int | None] | None = None):
        self._nodes = tuple(nodes(layers))
        if not self._nodes:
            raise ValueError("layers is empty, expected at least one layer")
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self._shapes = self._infer()
        self.dtype = self._find_dtype()
        used = {source for node in self._nodes for source in node.sources}
        last = self._nodes[-1].name
        if lost := [n.name for n in self._nodes if n.name not in used and n.name != last]:
            raise ValueError(f"nothing takes what {', '.join(lost)} gives")

    # --- what it is made of

    @property
    def layers(self) -> dict[str, Any]:
        """{name: layer}, in order; a `FinalState` stands for the module inside it."""
        return {node.name: node.layer for node in self._nodes}

    def __getitem__(self, name: str) -> Any:
        """The layer of this name."""
        return self.layers[name]

    @property
    def _format(self) -> str | None:
        """How its modules of fewer bits store their weights, or None where all are floats."""
        formats = (getattr(inner(node.layer), "_format", None) for node in self._nodes)
        return next(filter(None, formats), None)

    def _with_modules(self, change: Callable[[Module], Module]) -> Self:
        """The same chain with other modules; an error says of which step it is."""
        layers: list[tuple[str, Any, tuple[str, ...]]] = []
        for node in self._nodes:
            layer = node.layer
            try:
                if isinstance(layer, FinalState):
                    layer = FinalState(change(layer.module))
                elif isinstance(layer, Module):
                    layer = change(layer)
            except (TypeError, ValueError) as error:
                raise named(error, node.name) from error
            layers.append((node.name, layer, node.sources))
        return type(self)(layers, input_shape=self.input_shape)

    def state_dict(self) -> dict[str, Array]:
        """{"step.weight": read-only array} of all layers, in order.

        Examples
        --------
        >>> list(cylstm.Sequential([("head", cylstm.Linear(32, 3))]).state_dict())
        ['head.weight', 'head.bias']
        """
        return {
            f"{node.name}.{key}": array
            for node in self._nodes
            for key, array in inner(node.layer).state_dict().items()
        }

    def __repr__(self) -> str:
        rows = [("step", "layer", "output", "weights")]
        rows += [(INPUT, "", shape_text(self._shapes[INPUT]), "")]
        before = INPUT
        for node in self._nodes:
            count = sum(array.size for array in inner(node.layer).state_dict().values())
            source = "" if node.sources == (before,) else f" of {', '.join(node.sources)}"
            before = node.name
            shape = shape_text(self._shapes[node.name])
            rows.append((node.name, layer_text(node.layer) + source, shape, f"{count:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            "  ".join((*(c.ljust(w) for c, w in zip(row[:3], widths)), row[3].rjust(widths[3])))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in [lines[0], "-" * len(lines[0]), *lines[1:]])

    def _infer(self) -> dict[str, Shape | None]:
        """The shape of what each step gives, None where it is not known."""
        first = self.input_shape
        if first is None and is_recurrent(inner(self._nodes[0].layer)):
            first = (None, inner(self._nodes[0].layer).input_size)
        shapes: dict[str, Shape | None] = {INPUT: first}
        for node in self._nodes:
            given = [shapes[source] for source in node.sources]
            known = [shape for shape in given if shape is not None]
            try:
                shapes[node.name] = sizes(node.layer, known) if len(known) == len(given) else None
            except ValueError as error:
                raise ValueError(f"step {node.name!r}: {error}") from None
        return shapes

    def _find_dtype(self) -> np.dtype[Any]:
        modules = {node.name: inner(node.layer) for node in self._nodes}
        dtypes = {
            f"{step}.{name} {each.dtype}": each.dtype
            for step, module in modules.items()
            for name, array in module.state_dict().items()
            for each in [module if isinstance(module, Module) else array]
        }
        if len(set(dtypes.values())) > 1:
            raise ValueError(f"dtypes differ: {', '.join(dtypes)}; expected one for all weights")
        return next(iter(dtypes.values()), np.dtype(np.float32))

    # --- computing

    def __call__(
        self, x: ArrayLike, lengths: ArrayLike | None = None, threads: int | None = None
    ) -> Array:
        """Run one batch.

        Parameters
        ----------
        x : array (B, T, F) of the model's dtype, or ids (B, T) before an Embedding, or (B, F)
            where the model knows no time
        lengths : integers (B,), each 1 to T, or None
            Each sequence gets the result that it gets by itself, whatever stands past its end;
            where y has a time axis it is 0 there.
        threads : int or None, for recurrent modules

        Raises
        ------
        ValueError, TypeError
            A wrong shape, dtype or length, or lengths where a `steps.Transpose` swaps the axes; the
            message names the step.

        Examples
        --------
        >>> model = cylstm.Sequential([cylstm.LSTM(8, 32, batch_first=True), cylstm.Linear(32, 3)])
        >>> model(np.ones((2, 20, 8), np.float32), lengths=[20, 7]).shape
        (2, 20, 3)
        """
        x = np.asarray(x)
        if x.ndim < 2 or (
            self.input_shape is not None and not _fits(x.shape[1:], self.input_shape)
        ):
            expected = shape_text(self._shapes[INPUT])
            raise ValueError(f"x has shape {x.shape}, expected {expected}")
        if lengths is None:
            return self._run(x, None, threads)
        if swaps := [node.name for node in self._nodes if isinstance(node.layer, Transpose)]:
            raise ValueError(f"lengths can't be had: step {swaps[0]!r} exchanges time and features")
        counts = _checks.integers("lengths", lengths, (len(x),))
        if counts.size and not 1 <= counts.min() <= counts.max() <= x.shape[1]:
            raise ValueError(f"lengths are {counts}, expected 1 to {x.shape[1]}")
        if not any(mixes_time(node.layer) for node in self._nodes):
            valid = Valid(np.arange(x.shape[1]) < counts[:, None], False)
            return self._run(x, valid, threads)
        # A window would look past an end: rows of one length run together, without padding.
        groups = [np.flatnonzero(counts == n) for n in np.unique(counts)]
        parts = [self._run(x[rows, : counts[rows[0]]], None, threads) for rows in groups]
        return _joined(parts, groups, len(x))

    def predict(
        self,
        x: ArrayLike,
        lengths: ArrayLike | None = None,
        batch_size: int | None = None,
        progress: bool | Callable[[int, int], Any] = False,
        threads: int | None = None,
    ) -> Array:
        """Run many sequences in batches of `batch_size` (None: all at once).

        x and lengths are those of a call; x may be a memory-mapped file. `progress` is True for a
        bar (needs tqdm), or is called with (sequences done, all sequences) after each batch.

        Examples
        --------
        >>> lstm = cylstm.LSTM(8, 32, batch_first=True)
        >>> model = cylstm.Sequential([cylstm.steps.FinalState(lstm), cylstm.Linear(32, 3)])
        >>> model.predict(np.ones((1000, 20, 8), np.float32), batch_size=128).shape
        (1000, 3)
        """
        x = x if isinstance(x, np.ndarray) else np.asarray(x)
        total = len(x)
        size = max(total, 1) if batch_size is None else _checks.integer("batch_size", batch_size)
        report, close = _progress(progress, total)
        parts = []
        try:
            for start in range(0, max(total, 1), size):
                some = None if lengths is None else np.asarray(lengths)[start : start + size]
                parts.append(self(x[start : start + size], some, threads))
                report(min(start + size, total), total)
        finally:
            close()
        if len({part.shape[1:] for part in parts}) == 1:
            return np.concatenate(parts)
        starts = np.cumsum([0, *map(len, parts)])
        return _joined(parts, [np.arange(a, b) for a, b in zip(starts, starts[1:])], total)

    def _run(self, x: Array, valid: Valid | None, threads: int | None) -> Array:
        values: dict[str, tuple[Array, Valid | None]] = {INPUT: (x, valid)}
        for node in self._nodes:
            try:
                values[node.name] = run(node.layer, [values[s] for s in node.sources], threads)
            except (ValueError, TypeError) as error:
                raise named(error, node.name) from error
        y, valid = values[self._nodes[-1].name]
        if valid is not None and not valid.repeats:
            y = np.where(valid.mask.reshape(*valid.mask.shape, *[1] * (y.ndim - 2)), y, 0)
        return y

    def stream(self, batch_size: int | None = None, *, threads: int | None = None) -> Stream:
        """Return a stream, which takes sequences step by step and keeps all states inside.

        A model that gives one result for a sequence gives at each step that of the sequence so
        far. Every layer has to take each time step by itself, or be a unidirectional recurrent
        module; the ValueError lists those that are not.

        Examples
        --------
        >>> model = cylstm.Sequential([cylstm.LSTM(8, 32, batch_first=True), cylstm.Linear(32, 3)])
        >>> stream = model.stream()
        >>> stream.step(np.ones(8, np.float32)).shape
        (3,)
        """
        wrong = [node.name for node in self._nodes if not streams(node.layer)]
        if wrong:
            raise ValueError(
                f"can't stream: {', '.join(wrong)} take more than the present step of a sequence"
            )
        if batch_size is not None:
            _checks.integer("batch_size", batch_size)
        return Stream(self, batch_size, threads)

    # --- files and copies

    def _config(self) -> dict[str, Any]:
        """What JSON can hold; arrays are in `state_dict`."""
        layers = [
            {
                "name": node.name,
                "class": type(inner(node.layer)).__name__,
                "config": inner(node.layer)._config(),
                "sources": list(node.sources),
                "final": isinstance(node.layer, FinalState),
            }
            for node in self._nodes
        ]
        shape = None if self.input_shape is None else list(self.input_shape)
        return {"layers": layers, "input_shape": shape}

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        """What is wrong with the names in a `_config()` read from a file."""
        names = ("layers", "input_shape")
        wrong = [f"missing: {name}" for name in names if name not in config]
        return wrong + [f"unexpected: {name}" for name in config if name not in names]

    @classmethod
    def _from(
        cls,
        config: dict[str, Any],
        state: Mapping[str, Any] | Callable[[None], Mapping[str, Any]],
    ) -> Self:
        """A model of this configuration and these arrays, or what a function reads of them."""
        if callable(state):
            state = state(None)
        arrays: dict[str, dict[str, Any]] = {}
        for key, array in state.items():
            name, _, rest = key.rpartition(".")
            arrays.setdefault(name, {})[rest] = array
        kinds: dict[str, Any] = {**MODULES, **STEPS}
        layers = []
        try:
            for entry in config["layers"]:
                name, arguments = entry["name"], entry["config"]
                kind = kinds[_checks.choice("class", entry["class"], kinds)]
                if wrong := kind._check_config(arguments):
                    raise ValueError(f"{name}: {'; '.join(wrong)}")
                given = arrays.pop(name, {})
                if arguments.get("num_layers", 1) > max(len(given), 1):  # before so many are named
                    raise ValueError(
                        f"{name} has too few tensors for its {arguments['num_layers']} layers"
                    )
                made = kind._from(arguments, given)
                layer = FinalState(made) if entry["final"] else made
                layers.append((name, layer, entry["sources"]))
            shape = config["input_shape"]
        except (KeyError, AttributeError) as error:
            raise ValueError(f"its configuration is not that of a Sequential: {error}") from error
        if arrays:
            raise ValueError(f"tensors of no layer: {', '.join(arrays)}")
        return cls(layers, input_shape=shape)

    def __reduce__(self) -> Any:
        return type(self)._from, (self._config(), self.state_dict())


class Stream:
    """What `Sequential.stream` returns; one thread at a time."""

    def __init__(self, model: Sequential, batch_size: int | None, threads: int | None) -> None:
        self._model = model
        self.batch_size = batch_size
        self._streams = {
            node.name: inner(node.layer).stream(batch_size or 1, threads=threads)
            for node in model._nodes
            if is_recurrent(inner(node.layer))
        }

    def step(self, x_t: ArrayLike) -> Array:
        """Return y_t (G,) for x_t (F,) or an id; with a batch_size N, (N, G) for (N, F) or (N,)."""
        x = np.asarray(x_t)
        if self.batch_size is None:
            x = x[None]
        elif x.ndim == 0 or len(x) != self.batch_size:
            raise ValueError(f"x_t has shape {x.shape}, expected {self.batch_size} rows")
        values = {INPUT: x}
        for node in self._model._nodes:
            name, layer = node.name, node.layer
            given = [values[source] for source in node.sources]
            try:
                if name in self._streams:
                    values[name] = self._streams[name].step(given[0])
                elif isinstance(layer, LastStep):
                    values[name] = given[0]
                else:
                    values[name] = layer(*given)  # type: ignore[operator]
            except (ValueError, TypeError) as error:
                raise named(error, name) from error
        y = values[self._model._nodes[-1].name]
        return y[0] if self.batch_size is None else y

    def run(self, block: ArrayLike) -> Array:
        """Return the results of many steps, (T, [N,] G), for (T, [N,] F) or ids."""
        return np.stack([self.step(x_t) for x_t in np.asarray(block)])

    def reset(self, indices: ArrayLike | None = None) -> None:
        """Begin again, all sequences or those of `indices`."""
        for stream in self._streams.values():
            stream.reset(indices)

    @property
    def state(self) -> dict[str, Any]:
        """{step: state of its recurrent module}, copies; may be set."""
        return {name: stream.state for name, stream in self._streams.items()}

    @state.setter
    def state(self, value: Mapping[str, Any]) -> None:
        if set(value) != set(self._streams):
            raise ValueError(f"state is of {', '.join(value)}, expected {', '.join(self._streams)}")
        before = self.state
        try:
            for name, state in value.items():
                self._streams[name].state = state
        except BaseException:
            for name, state in before.items():
                self._streams[name].state = state
            raise


def _joined(parts: list[Array], rows: list[Array], total: int) -> Array:
    """Parts of a batch in one array, padded with zeros where their time axes differ."""
    shape = np.max([part.shape[1:] for part in parts], axis=0)
    y = np.zeros((total, *shape), parts[0].dtype)
    for part, where in zip(parts, rows):
        if part.ndim == 2:
            y[where] = part
        else:
            y[where, : part.shape[1]] = part
    return y


def _progress(
    progress: bool | Callable[[int, int], Any], total: int
) -> tuple[Callable[[int, int], Any], Callable[[], Any]]:
    if callable(progress):
        return progress, lambda: None
    if not _checks.flag("progress", progress):
        return lambda done, total: None, lambda: None
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress=True needs tqdm: pip install cylstm[progress], or give a callable"
        ) from error
    bar = tqdm(total=total, unit="seq", file=sys.stderr)
    return lambda done, total: bar.update(done - bar.n), bar.close


def _fits(found: tuple[int, ...], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        size is None or n == size for n, size in zip(found, expected)
    )
