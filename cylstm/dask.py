"""For Dask: a model on the sequences of a bag, an array or a dataframe, wherever its workers are.

`predict` is lazy. The model is one value of the graph, which a worker holds once for all its tasks;
a task runs on one thread, for Dask has others beside it. What a worker that dies has lost is
computed again, to the same bits. Needs dask; `import cylstm` does not import this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from . import _checks
from ._core import kind_of
from .sequential import Sequential
from .weights import Array

__all__ = ["predict"]


def predict(
    model: Any,
    collection: Any,
    *,
    by: str | None = None,
    order: str | None = None,
    columns: Sequence[str] | None = None,
    batch_size: int = 64,
) -> Any:
    """Return a model's outputs for every sequence of a Dask collection, as such a collection.

    Parameters
    ----------
    model : LSTM, GRU, RNN or Sequential
        Of a recurrent module the output is y. A module takes sequences as below, batch-first or
        not.
    collection : dask.bag.Bag
        Each item is one sequence, (T, F) or ids (T,), each with a T of its own. The result has
        their outputs, (T, G) or (G,), in the same order.
    collection : dask.array.Array
        (N, T, F), or ids (N, T): N sequences, in chunks of as many as you like. The result is
        (N, T, G) or (N, G), in the same chunks.
    collection : dask.dataframe.DataFrame
        Rows are time steps, columns features. The result has columns y0, y1, ... and the same
        index, or one row for each sequence, whose index is the value of `by`.
    by : str or None
        The column of a dataframe that says which sequence a row is of; no sequence may lie in two
        partitions, as after `shuffle(by)`. None: a partition is one sequence.
    order : str or None
        The column by which the steps of a sequence are put in order; None takes rows as they
        stand in the partition, and a shuffle leaves them anyhow.
    columns : sequence of str or None
        The features of a dataframe, in order; None for all columns but `by` and `order`.
    batch_size : int
        Sequences of a bag or a dataframe that run together, those of like lengths.

    Raises
    ------
    TypeError
        `model` or `collection` is none of these.
    ValueError
        `by` or `columns` for what is no dataframe, or columns that are not there. What is wrong
        with a sequence is an error of its task.

    Examples
    --------
    >>> import dask.bag
    >>> from cylstm.dask import predict
    >>> bag = dask.bag.from_sequence([np.ones((T, 3), np.float32) for T in (2, 5, 1)])
    >>> outputs = predict(cylstm.LSTM(3, 4), bag)
    >>> [y.shape for y in outputs.compute(scheduler="threads")]
    [(2, 4), (5, 4), (1, 4)]
    """
    if not isinstance(model, Sequential) and not hasattr(model, "stream"):
        raise TypeError(f"model is {kind_of(model)}, expected an LSTM, GRU, RNN, Sequential")
    _checks.integer("batch_size", batch_size)
    kind = type(collection).__name__
    if kind != "DataFrame" and any(name is not None for name in (by, order, columns)):
        raise ValueError(
            f"by, order and columns are for dataframes, collection is {kind_of(collection)}"
        )
    held = _held(model)
    if kind == "Bag":
        return collection.map_partitions(_of_sequences, held, batch_size)
    if kind == "Array":
        return _of_dask_array(model, held, collection)
    if kind == "DataFrame" and hasattr(collection, "map_partitions"):
        return _of_dask_frame(model, held, collection, by, order, columns, batch_size)
    raise TypeError(
        f"collection is {kind_of(collection)}, expected a Bag, Array or DataFrame of Dask"
    )


def _held(model: Any) -> Delayed:
    """The model as one value of a graph: the same one for the same weights."""
    digest = blake2b(repr(model).encode(), digest_size=16)
    for name, array in model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return dask.delayed(model, name=f"cylstm-{digest.hexdigest()}", traverse=False)


# ------------------------------------------------------------------------------- one task


def _run(model: Any, x: Array, lengths: Any = None) -> Array:
    """Outputs of sequences (N, T, F), each of its own length."""
    if isinstance(model, Sequential):
        return model(x, lengths, threads=1)
    first: bool = model.batch_first
    y: Array = model(x if first else x.swapaxes(0, 1), lengths=lengths, threads=1)[0]
    return y if first else y.swapaxes(0, 1)


def _of_sequences(sequences: Any, model: Any, batch_size: int) -> list[Array]:
    """Outputs of sequences of any lengths: those of like lengths together, in batches."""
    arrays = [np.asarray(sequence) for sequence in sequences]
    if wrong := [array.shape for array in arrays if array.ndim not in (1, 2)]:
        raise ValueError(f"a sequence has shape {wrong[0]}, expected (T, F), or (T,) of ids")
    order = sorted(range(len(arrays)), key=lambda k: len(arrays[k]))
    outputs: list[Any] = [None] * len(arrays)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        lengths = [len(arrays[k]) for k in some]
        shapes = {arrays[k].shape[1:] for k in some}
        if len(shapes) > 1:
            raise ValueError(f"sequences have features of shapes {shapes}, expected one")
        dtype = np.result_type(*(arrays[k].dtype for k in some))
        x = np.zeros((len(some), lengths[-1], *shapes.pop()), dtype)
        for row, k in enumerate(some):
            x[row, : lengths[row]] = arrays[k]
        y = _run(model, x, lengths)
        over_time = y.ndim == 3
        for row, k in enumerate(some):
            outputs[k] = y[row, : lengths[row]].copy() if over_time else y[row]
    return outputs


# ------------------------------------------------------------------------------- arrays


def _of_dask_array(model: Any, held: Delayed, x: Any) -> Any:
    if x.ndim not in (2, 3):
        raise ValueError(f"collection has shape {x.shape}, expected (N, T, F), or (N, T) of ids")
    whole = x.rechunk({axis: -1 for axis in range(1, x.ndim)})  # a sequence is in one piece
    shape = _run(model, np.zeros((1, *x.shape[1:]), x.dtype)).shape[1:]
    lost = [axis for axis in range(1, x.ndim) if axis > len(shape)]
    return whole.map_blocks(
        _of_block,
        held,
        dtype=model.dtype,
        chunks=(whole.chunks[0], *((size,) for size in shape)),
        drop_axis=lost,
        new_axis=[axis for axis in range(1, len(shape) + 1) if axis >= x.ndim] or None,
        meta=np.empty((0,) * (len(shape) + 1), model.dtype),
    )


def _of_block(x: Array, model: Any) -> Array:
    return _run(model, np.ascontiguousarray(x))


# ------------------------------------------------------------------------------- dataframes


def _of_dask_frame(
    model: Any,
    held: Delayed,
    frame: Any,
    by: str | None,
    order: str | None,
    columns: Sequence[str] | None,
    batch_size: int,
) -> Any:
    named = [name for name in (by, order) if name is not None]
    chosen = [n for n in frame.columns if n not in named] if columns is None else [*columns]
    wanted = [*chosen, *named]
    if missing := [name for name in wanted if name not in frame.columns]:
        raise ValueError(f"no column {', '.join(missing)}, expected some of {[*frame.columns]}")
    sample = _run(model, np.zeros((1, 1, len(chosen)), model.dtype))
    names = [f"y{k}" for k in range(sample.shape[-1])]
    over_time = sample.ndim == 3
    meta = _table(frame._meta, None, names, sample[:0].reshape(0, len(names)))
    if not over_time and by is not None:
        meta.index = frame._meta[by].iloc[:0]
    return frame.map_partitions(
        _of_frame,
        held,
        by,
        order,
        chosen,
        names,
        over_time,
        batch_size,
        meta=meta,
        enforce_metadata=False,
        **({} if over_time else {"clear_divisions": True}),
    )


def _of_frame(
    table: Any,
    model: Any,
    by: str | None,
    order: str | None,
    columns: list[str],
    names: list[str],
    over_time: bool,
    batch_size: int,
) -> Any:
    """Outputs of the sequences of one partition, a table."""
    if order is not None:
        table = table.sort_values(order, kind="stable")
    x = table[columns].to_numpy(model.dtype)
    if by is None:
        groups = {None: np.arange(len(table))} if len(table) else {}
    else:
        if table[by].isna().any():
            raise ValueError(f"column {by} has missing values, expected the sequence of each row")
        groups = table.groupby(by, sort=False).indices
    outputs = _of_sequences([x[rows] for rows in groups.values()], model, batch_size)
    if over_time:
        y = np.zeros((len(table), len(names)), model.dtype)
        for rows, output in zip(groups.values(), outputs):
            y[rows] = output
        return _table(table, None, names, y)
    y = np.array(outputs, model.dtype).reshape(len(outputs), len(names))
    if by is None:
        return _table(table, table.index[:1], names, y)
    first = [rows[0] for rows in groups.values()]
    return _table(table, table[by].iloc[first], names, y)


def _table(like: Any, index: Any, names: list[str], y: Array) -> Any:
    """y as a table of the kind that `like` is, with its index or another."""
    return type(like)(y, index=like.index[: len(y)] if index is None else index, columns=names)
