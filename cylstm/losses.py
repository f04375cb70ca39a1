"""Losses: each returns the loss and its gradient with respect to its first argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .weights import DTYPES, Array

REDUCTIONS = ("mean", "sum", "none")


def mse(prediction: Array, target: Array, reduction: str = "mean") -> tuple[float | Array, Array]:
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
    _check_floats("prediction", prediction)
    _check_floats("target", target)
    _check_reduction(reduction)
    if target.shape != prediction.shape:
        raise ValueError(f"target has shape {target.shape}, expected {prediction.shape}")
    if target.dtype != prediction.dtype:
        raise TypeError(f"target has dtype {target.dtype}, expected {prediction.dtype}")
    error = np.atleast_1d(prediction - target)
    squares = np.square(error)
    count = max(error.size, 1) if reduction == "mean" else 1
    error *= 2 / count
    gradient = error.reshape(prediction.shape)
    if reduction == "none":
        return squares.reshape(prediction.shape), gradient
    return _reduced(squares, error.size, reduction), gradient


def cross_entropy(
    logits: Array, targets: ArrayLike, reduction: str = "mean", ignore_index: int = -100
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
    _check_floats("logits", logits)
    _check_reduction(reduction)
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got dtype {targets.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {logits.shape}, expected (..., C) with C at least 1")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets has shape {targets.shape}, expected {logits.shape[:-1]}")
    n_classes = logits.shape[-1]
    ignored = targets == ignore_index
    outside = ~ignored & ((targets < 0) | (targets >= n_classes))
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"target {targets[where]} at index {where} is not one of {n_classes} classes "
            f"(0 to {n_classes - 1}) nor ignore_index {ignore_index}"
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


def _check_floats(name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {value.dtype}, expected float32 or float64")


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
