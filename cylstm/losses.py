"""Losses: each returns the loss and its gradient with respect to its first argument.

What does not count, by `where`, `lengths` or `ignore_index`, has no loss, no part in a mean, and
a gradient of exactly 0, whatever stands in the arrays there: NaN too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _checks, _core
from .weights import Array

__all__ = ["cross_entropy", "mse"]

REDUCTIONS = ("mean", "sum", "none")


def mse(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    reduction: str = "mean",
    where: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float | Array, Array]:
    """Squared error, as torch.nn.functional.mse_loss.

    Parameters
    ----------
    prediction, target : float32 or float64 arrays of one shape and dtype
    reduction : "mean" over all elements that count, "sum", or "none"
    where : array of bools, or None: all
        The elements that count; broadcast to the shape of `prediction` by NumPy's rules, so a
        mask of steps (T, B) is given as `mask[..., None]`.
    lengths : integers (B,), each 0 to T, or None: all T
        Of arrays (T, B, ...) the steps past a sequence's length do not count.
    batch_first : bool
        With `lengths`: the arrays are (B, T, ...).

    Returns
    -------
    loss : float, summed in float64; with "none" an array (prediction - target)^2
        The mean over no elements is nan.
    dprediction : array like `prediction`
        The gradient of the loss; with "none" that of the sum of its elements.

    Raises
    ------
    ValueError, TypeError
        Unequal shapes or dtypes, another dtype, an unknown reduction, a mask that does not
        broadcast, a length outside 0 to T.

    Examples
    --------
    >>> import numpy as np
    >>> from cylstm import losses
    >>> prediction = np.array([[1.0, 2.0], [3.0, 4.0]])  # 2 steps of 2 sequences
    >>> loss, gradient = losses.mse(prediction, np.zeros((2, 2)), lengths=[2, 1])
    >>> loss == (1 + 9 + 4) / 3
    True
    >>> gradient[1].tolist() == [2 * 3 / 3, 0]
    True
    """
    prediction = _checks.array("prediction", prediction, None)
    target = _checks.array("target", target, prediction.dtype, prediction.shape)
    _checks.choice("reduction", reduction, REDUCTIONS)
    counted = _counted(prediction.shape, where, lengths, batch_first)
    if counted is None:
        error, count = np.atleast_1d(prediction - target), prediction.size
    else:
        error = np.zeros_like(prediction, subok=False)
        np.subtract(prediction, target, out=error, where=counted)
        error, count = np.atleast_1d(error), int(np.count_nonzero(counted))
    squares = np.square(error)
    error *= 2 / max(count, 1) if reduction == "mean" else 2
    gradient = error.reshape(prediction.shape)
    if reduction == "none":
        return squares.reshape(prediction.shape), gradient
    return _reduced(squares, count, reduction), gradient


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    batch_first: bool = False,
) -> tuple[float | Array, Array]:
    """Cross-entropy between logits and class indices.

    As torch.nn.functional.cross_entropy with class indices, except that the classes always lie
    on the last axis.

    Parameters
    ----------
    logits : float32 or float64 array (..., C)
    targets : integers (...), each in 0 .. C-1 or equal to `ignore_index`
        Rows with an ignored target do not count; nor do those that `where` or `lengths` leave
        out, whose targets may be any integers.
    reduction : "mean" over the rows that count, "sum", or "none"
    where, lengths, batch_first
        As for `mse`: `where` broadcasts to the shape of `targets`, and with `lengths` that is
        (T, B, ...).

    Returns
    -------
    loss : float, summed in float64; with "none" an array (...)
        The mean over no rows, none given or all ignored, is nan; its gradient is 0.
    dlogits : array like `logits`
        The gradient of the loss; with "none" that of the sum of its elements.

    Raises
    ------
    ValueError, TypeError
        Shapes that do not fit, another dtype, a target out of range, an unknown reduction.

    Examples
    --------
    >>> import numpy as np
    >>> from cylstm import losses
    >>> loss, gradient = losses.cross_entropy(np.zeros((2, 4)), [3, -100])
    >>> round(loss, 3)  # log 4
    1.386
    >>> gradient.tolist()
    [[0.25, 0.25, 0.25, -0.75], [0.0, 0.0, 0.0, 0.0]]
    """
    logits = _checks.array("logits", logits, None)
    _checks.choice("reduction", reduction, REDUCTIONS)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}, expected (..., C) with C at least 1")
    targets = _checks.integers("targets", targets, logits.shape[:-1])
    n_classes = logits.shape[-1]
    ignored = targets == ignore_index
    counted = _counted(targets.shape, where, lengths, batch_first)
    if counted is not None:
        ignored |= ~counted
    outside = ~ignored & ((targets < 0) | (targets >= n_classes))
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"targets holds {targets[where]} at index {where}, expected 0 to {n_classes - 1}, "
            f"the classes of logits, or ignore_index {ignore_index}"
        )

    ignored = ignored.reshape(-1)
    classes = np.where(ignored, 0, targets.reshape(-1)).astype(np.intp)
    rows = np.arange(classes.size)
    count = classes.size - int(np.count_nonzero(ignored))

    # log softmax(x)[k] = x[k] - max - log sum exp(x - max): no exp can overflow
    matrix = logits.reshape(-1, n_classes)
    with np.errstate(invalid="ignore"):  # infinite logits give nan, as they do in torch
        work = matrix - matrix.max(axis=1, keepdims=True)
        picked = work[rows, classes]
        np.exp(work, out=work)
        total = work.sum(axis=1, keepdims=True)
        losses = np.log(total[:, 0]) - picked
        # d loss / d logits = softmax - one-hot
        work /= total
    work[rows, classes] -= 1
    if reduction == "mean":
        work *= 1 / max(count, 1)
    if count < classes.size:
        losses[ignored] = 0
        work[ignored] = 0
    dlogits = work.reshape(logits.shape)
    if reduction == "none":
        return losses.reshape(targets.shape), dlogits
    return _reduced(losses, count, reduction), dlogits


def _counted(shape: tuple[int, ...], where: Any, lengths: Any, batch_first: bool) -> Array | None:
    """Return which elements of this shape count; None: all."""
    batch_first = _checks.flag("batch_first", batch_first)
    counted = None if where is None else _checks.mask("where", where, shape)
    if lengths is not None:
        if len(shape) < 2:
            raise ValueError(
                f"lengths is for arrays with steps and sequences, (T, B, ...); the shape is {shape}"
            )
        T, B = shape[1::-1] if batch_first else shape[:2]
        lengths = _core.check_lengths(lengths, T, B, True)
        steps = np.arange(T, dtype=np.uintp)
        valid = steps < lengths[:, None] if batch_first else steps[:, None] < lengths
        valid = valid.reshape(valid.shape + (1,) * (len(shape) - 2))
        counted = np.broadcast_to(valid, shape) if counted is None else counted & valid
    return counted


def _reduced(values: Array, count: int, reduction: str) -> float:
    total = float(values.sum(dtype=np.float64))
    if reduction == "sum":
        return total
    return total / count if count else float("nan")
