"""Embedding: rows of a trained table, looked up by integers, with a gradient of the rows used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks
from .module import Fixed, Module, generator, given
from .weights import Array, LeafGrads, Shown, Spec


def sum_rows(rows: Array, values: Array) -> tuple[Array, Array]:
    """Return the distinct ones of `rows` (N,), ascending, and the sums of their `values` (N, D)."""
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    if not first.size:
        return rows, values[:0]
    return rows[first], np.add.reduceat(values[order], first, axis=0)


class RowGrads(Mapping[str, Array]):
    """The gradient with respect to some rows of a table; that of all other rows is zero.

    As a mapping it has the table's name and a dense, read-only array, a new one each time. An
    optimiser's step moves the touched rows only: the others keep their weights and their state,
    decay and momentum included, as with torch.optim.SparseAdam.

    Attributes
    ----------
    rows : integers (n,), distinct and ascending
    of_rows : array (n, D), their gradients, writable
    flat : 1-D array, the same memory as `of_rows`
    """

    __slots__ = ("of_rows", "rows", "spec")

    def __init__(self, spec: Spec, rows: Array, of_rows: Array) -> None:
        ((_, (count, width)),) = spec
        if of_rows.shape != (*rows.shape, width) or not of_rows.flags.carray:
            raise ValueError(f"of_rows has shape {of_rows.shape}, expected {(rows.size, width)}")
        if rows.size and not (rows[0] >= 0 and rows[-1] < count and (np.diff(rows) > 0).all()):
            raise ValueError(f"rows holds {rows}, expected ascending indices below {count}")
        self.spec, self.rows, self.of_rows = spec, rows, of_rows

    @property
    def flat(self) -> Array:
        return self.of_rows.reshape(-1)

    def __getitem__(self, name: str) -> Array:
        ((own, shape),) = self.spec
        if name != own:
            raise KeyError(name)
        dense = np.zeros(shape, self.of_rows.dtype)
        dense[self.rows] = self.of_rows
        dense.flags.writeable = False
        return dense

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.spec])

    def __len__(self) -> int:
        return len(self.spec)

    def __repr__(self) -> str:
        ((name, shape),) = self.spec
        return f"RowGrads({self.rows.size} rows of {name}={shape}, dtype={self.of_rows.dtype})"

    def __add__(self, other: RowGrads) -> RowGrads:
        """Return the gradients of two batches together."""
        if not isinstance(other, RowGrads):
            return NotImplemented
        if other.spec != self.spec or other.of_rows.dtype != self.of_rows.dtype:
            raise ValueError("the gradients are of different tables")
        rows = np.concatenate([self.rows, other.rows])
        return RowGrads(self.spec, *sum_rows(rows, np.concatenate([self.of_rows, other.of_rows])))


class EmbeddingTape(Shown):
    """One look-up, kept for its backward.

    Attributes
    ----------
    y : read-only array (..., embedding_dim)
    """

    __slots__ = ("_padding", "_rows", "_spec", "y")

    _shows = ("y",)

    def __init__(self, spec: Spec, rows: Array, padding: int | None, y: Array) -> None:
        y.flags.writeable = False
        self._spec, self._rows, self._padding, self.y = spec, rows, padding, y

    def backward(self, dy: ArrayLike) -> LeafGrads:
        """Return the gradients of a loss whose gradient with respect to `y` is `dy`.

        `weights` is a `RowGrads`: the rows that were looked up, each with the sum over its uses.

        Raises
        ------
        ValueError, TypeError
            `dy` does not have the shape or the dtype of `y`.
        """
        dy = _checks.array("dy", dy, self.y.dtype, self.y.shape)
        rows, values = self._rows, dy.reshape(self._rows.size, dy.shape[-1])
        if self._padding is not None:
            used = rows != self._padding
            rows, values = rows[used], values[used]
        return LeafGrads(RowGrads(self._spec, *sum_rows(rows, values)))


class Embedding(Module):
    """A table of vectors, looked up by integers, as torch.nn.Embedding.

    weight (num_embeddings, embedding_dim), drawn from N(0, 1).

    Parameters
    ----------
    num_embeddings, embedding_dim : int, at least 1
    padding_idx : int or None
        A row that starts as zeros and has no gradient; a negative one counts from the end.
    dtype : "float32" or "float64"
    seed : int or None
        For the first weights; None: fresh entropy.

    Examples
    --------
    >>> import numpy as np
    >>> import cylstm
    >>> embedding = cylstm.Embedding(1000, 16, seed=0)
    >>> tape = embedding.forward([[3, 7], [3, 0]])
    >>> tape.y.shape
    (2, 2, 16)
    >>> grads = tape.backward(np.ones((2, 2, 16), np.float32))
    >>> grads.weights.rows.tolist(), grads.weights.of_rows[:, 0].tolist()
    ([0, 3, 7], [1.0, 2.0, 1.0])
    """

    __slots__ = ()

    num_embeddings = Fixed[int]()
    embedding_dim = Fixed[int]()
    padding_idx = Fixed[int | None]()

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self._make(given(locals()), seed=seed)

    def _configure(
        self,
        *,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: DTypeLike = "float32",
    ) -> tuple[dict[str, Any], Spec]:
        rows = _checks.integer("num_embeddings", num_embeddings)
        if padding_idx is not None:
            padding_idx = _checks.integer("padding_idx", padding_idx, -rows, rows - 1) % rows
        arguments: dict[str, Any] = {
            "num_embeddings": rows,
            "embedding_dim": _checks.integer("embedding_dim", embedding_dim),
            "padding_idx": padding_idx,
            "dtype": _checks.float_dtype(dtype),
        }
        return arguments, (("weight", (rows, arguments["embedding_dim"])),)

    def _draw(self, flat: Array, seed: Any) -> None:
        flat[:] = generator(seed).standard_normal(flat.size)
        if self.padding_idx is not None:
            flat.reshape(self.num_embeddings, -1)[self.padding_idx] = 0

    def __call__(self, indices: ArrayLike) -> Array:
        """Return the rows (..., embedding_dim) for integers (...).

        Raises
        ------
        TypeError
            `indices` are not integers.
        ValueError
            One is outside 0 to num_embeddings - 1.

        Examples
        --------
        >>> cylstm.Embedding(1000, 16)([[3, 7], [3, 0]]).shape
        (2, 2, 16)
        """
        return self._look_up(self._checked_rows(indices))

    def forward(self, indices: ArrayLike) -> EmbeddingTape:
        """Return a tape with `y` as from a call, whose `backward` gives the gradients.

        Examples
        --------
        >>> cylstm.Embedding(1000, 16).forward([[3, 7], [3, 0]])
        EmbeddingTape(y=(2, 2, 16))
        """
        rows = self._checked_rows(indices)
        return EmbeddingTape(self._spec, rows.reshape(-1), self.padding_idx, self._look_up(rows))

    def _checked_rows(self, indices: ArrayLike) -> Array:
        """Return the indices as they are now, which nobody else can change."""
        rows = _checks.integers("indices", indices)
        outside = (rows < 0) | (rows >= self.num_embeddings)
        if outside.any():
            where = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"indices holds {rows[where]} at index {where}, expected 0 to "
                f"{self.num_embeddings - 1}"
            )
        return rows.astype(np.intp)

    def _look_up(self, rows: Array) -> Array:
        return self._weights.views()["weight"][rows]
