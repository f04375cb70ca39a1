"""Losses: each returns the loss and its gradient with respect to its first argument."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from . import _checks
from .weights import Array

REDUCTIONS = ("mean", "sum", "none")


def mse(
    prediction: ArrayLike, target: ArrayLike, reduction: str = "mean"
) -> tuple[float | Array, Array]:
    """Squared error, as torch.nn.functional.mse_loss.

    Parameters
    ----------
    prediction, target : float32 or float64 arrays of one shape and dtype
    reduction : "mean" over all elements, "sum", or "none"

    Returns
    -------
    loss : float, summed in float64; with "none" an array (prediction - target)^2
        The mean over no elements is nan.
    dprediction : array like `prediction`
        The gradient of the loss; with "none" that of the sum of its elements.

    Raises
    ------
    ValueError, TypeError
        Unequal shapes or dtypes, another dtype, an unknown reduction.
    """
    prediction = _checks.array("prediction", prediction, None)
    target = _checks.array("target", target, prediction.dtype, prediction.shape)
    _checks.choice("reduction", reduction, REDUCTIONS)
    error = np.atleast_1d(prediction - target)
    squares = np.square(error)
    count = max(error.size, 1) if reduction == "mean" else 1
    error *= 2 / count
    gradient = error.reshape(prediction.shape)
    if reduction == "none":
        return squares.reshape(prediction.shape), gradient
    return _reduced(squares, error.size, reduction), gradient


def cross_entropy(
    logits: ArrayLike, targets: ArrayLike, reduction: str = "mean", ignore_index: int = -100
) -> tuple[float | Array, Array]:
    """Minus the log of the softmax at the target class.

    As torch.nn.functional.cross_entropy with class indices, except that the classes always lie
    on the last axis.

    Parameters
    ----------
    logits : float32 or float64 array (..., C)
    targets : integers (...), each in 0 .. C-1 or equal to `ignore_index`
        Rows with an ignored target count for nothing: their loss and gradient are 0, whatever
        (NaN too) their logits are.
    reduction : "mean" over the rows that are not ignored, "sum", or "none"

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
    """
    logits = _checks.array("logits", logits, None)
    _checks.choice("reduction", reduction, REDUCTIONS)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}, expected (..., C) with C at least 1")
    targets = _checks.integers("targets", targets, logits.shape[:-1])
    n_classes = logits.shape[-1]
    ignored = targets == ignore_index
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


def _reduced(values: Array, count: int, reduction: str) -> float:
    total = float(values.sum(dtype=np.float64))
    if reduction == "sum":
        return total
    return total / count if count else float("nan")
