"""Losses against PyTorch's numbers, finite differences, and closed forms at the extremes."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cylstm.losses import cross_entropy, mse
from helpers import Array, numerical_gradient, rel, same_bits

GOLDEN = dict(np.load(Path(__file__).parent / "golden_training" / "losses.npz"))
REDUCTIONS = ("mean", "sum", "none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
def test_golden(dtype: str, tolerance: float, reduction: str) -> None:
    prediction, target, logits = (
        GOLDEN[name].astype(dtype) for name in ("prediction", "target", "logits")
    )
    for name, (loss, gradient) in {
        "mse": mse(prediction, target, reduction=reduction),
        "entropy": cross_entropy(logits, GOLDEN["classes"], reduction=reduction),
    }.items():
        assert rel(loss, GOLDEN[f"{name}_{reduction}"]) < tolerance
        assert rel(gradient, GOLDEN[f"d{name}_{reduction}"]) < tolerance
        assert gradient.dtype == dtype
        if reduction == "none":
            assert isinstance(loss, np.ndarray) and loss.dtype == dtype
        else:
            assert type(loss) is float


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_finite_differences(reduction: str) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 4))
    classes = np.array([3, -1, 0])
    losses: list[Callable[[Array], Any]] = [
        lambda at: mse(at, b, reduction=reduction),
        lambda at: cross_entropy(at, classes, reduction=reduction, ignore_index=-1),
    ]
    for loss in losses:

        def total(at: Array, loss: Any = loss) -> float:
            return float(np.sum(loss(at)[0]))

        gradient = loss(a)[1]
        assert rel(gradient.reshape(-1), numerical_gradient(total, a, range(a.size))) < 1e-8


def test_inputs_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    a, b, classes = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), np.array([0, 2, 9, 1])
    before = [a.copy(), b.copy(), classes.copy()]
    for array in (a, b, classes):
        array.flags.writeable = False
    for reduction in REDUCTIONS:
        for _, gradient in (
            mse(a, b, reduction=reduction),
            cross_entropy(a, classes, reduction=reduction, ignore_index=9),
        ):
            assert gradient.flags.writeable and not np.shares_memory(gradient, a)
    assert same_bits(before, [a, b, classes])


def test_strides_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5, 8, 6))
    classes = rng.integers(0, 4, (6, 10))
    x, y, k = a.T[:, ::-2], b.T[:, ::-2], classes[::-1, ::2]
    x, y = x.swapaxes(1, 2), y.swapaxes(1, 2)  # (6, 5, 4)
    tidy = np.ascontiguousarray
    for reduction in REDUCTIONS:
        for got, want in (
            (mse(x, y, reduction=reduction), mse(tidy(x), tidy(y), reduction=reduction)),
            (
                cross_entropy(x, k, reduction=reduction),
                cross_entropy(tidy(x), tidy(k), reduction=reduction),
            ),
        ):
            assert rel(got[0], want[0]) < 1e-15 and rel(got[1], want[1]) < 1e-15


def test_mse_accumulates_in_float64() -> None:
    """A million equal squares: one float32 sum of them would be off by far more."""
    x = np.full(1_000_000, 1e-3, "f")
    square = float(np.square(x[:1])[0])
    assert rel(mse(x, np.zeros_like(x), reduction="sum")[0], 1e6 * square) < 1e-12


def test_mse_of_a_number_and_of_nothing() -> None:
    loss, gradient = mse(np.array(3.0), np.array(1.0))
    assert loss == 4 and gradient.shape == () and gradient == 4
    loss, gradient = mse(np.array(3.0), np.array(1.0), reduction="none")
    assert np.shape(loss) == () and loss == 4
    for shape in ((0,), (3, 0)):
        loss, gradient = mse(np.zeros(shape), np.zeros(shape))
        assert isinstance(loss, float) and isnan(loss) and gradient.shape == shape
        assert mse(np.zeros(shape), np.zeros(shape), reduction="sum")[0] == 0


# --- what counts


def masks(shape: tuple[int, ...]) -> dict[str, tuple[dict[str, Any], Array]]:
    """Ways to say what counts of an array (T, B, ...) = (5, 4, ...), and what they mean."""
    rng = np.random.default_rng(2)
    lengths = np.array([3, 0, 5, 1])
    valid = np.arange(5)[:, None] < lengths
    steps = rng.random((5, 4)) < 0.5
    each = rng.random(shape) < 0.5
    tail = (1,) * (len(shape) - 2)
    full = [np.broadcast_to(m.reshape(5, 4, *tail), shape) for m in (valid, steps, valid & steps)]
    where = {"where": steps.reshape(5, 4, *tail)}
    return {
        "lengths": ({"lengths": lengths}, full[0]),
        "steps": (where, full[1]),
        "both": (where | {"lengths": lengths.tolist()}, full[2]),
        "each": ({"where": each}, each),
        "none": ({"where": False}, np.zeros(shape, bool)),
        "all": ({"where": [True]}, np.ones(shape, bool)),
    }


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", masks((5, 4, 3)))
def test_mse_of_what_counts(name: str, reduction: str, poison: float, dtype: str) -> None:
    """As of the counted elements alone; the others may hold anything."""
    options, counted = masks((5, 4, 3))[name]
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5, 4, 3)).astype(dtype)
    want, want_gradient = mse(a[counted], b[counted], reduction=reduction)
    for poisoned in (a, b):
        poisoned[~counted] = poison
        loss, gradient = mse(a, b, reduction=reduction, **options)
        if reduction == "none":
            assert np.all(loss[~counted] == 0)  # type: ignore[index]
            loss = loss[counted]  # type: ignore[index]
        assert np.array_equal(loss, want, equal_nan=True) or rel(loss, want) < 1e-15
        assert np.all(gradient[~counted] == 0) and gradient.dtype == dtype
        assert same_bits(gradient[counted], want_gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", masks((5, 4)))
def test_cross_entropy_of_what_counts(name: str, reduction: str, dtype: str) -> None:
    options, counted = masks((5, 4))[name]
    rng = np.random.default_rng(1)
    logits, targets = rng.standard_normal((5, 4, 3)).astype(dtype), rng.integers(0, 3, (5, 4))
    targets[2, 2] = -100
    want, want_gradient = cross_entropy(logits[counted], targets[counted], reduction=reduction)
    logits[~counted], targets[~counted] = np.nan, 99
    loss, gradient = cross_entropy(logits, targets, reduction=reduction, **options)
    if reduction == "none":
        assert np.all(loss[~counted] == 0)  # type: ignore[index]
        loss = loss[counted]  # type: ignore[index]
    assert np.array_equal(loss, want, equal_nan=True) or rel(loss, want) < 1e-15
    assert np.all(gradient[~counted] == 0) and same_bits(gradient[counted], want_gradient)


def test_lengths_of_batch_first_arrays() -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 4, 4, 3))  # T and B of one size
    lengths = [0, 1, 2, 4]
    want, want_gradient = mse(a, b, lengths=lengths)
    loss, gradient = mse(a.swapaxes(0, 1), b.swapaxes(0, 1), lengths=lengths, batch_first=True)
    assert rel(loss, want) < 1e-15 and same_bits(gradient.swapaxes(0, 1), want_gradient)
    classes = np.zeros((4, 4), int)
    want, want_gradient = cross_entropy(a, classes, lengths=lengths)
    loss, gradient = cross_entropy(a.swapaxes(0, 1), classes, lengths=lengths, batch_first=True)
    assert rel(loss, want) < 1e-15 and same_bits(gradient.swapaxes(0, 1), want_gradient)


# --- cross entropy


@pytest.mark.parametrize("offset", [0, 1e4, -1e4, 3e38, -3e38])
def test_large_logits(offset: float, dtype: str) -> None:
    logits = np.full((2, 4), offset, dtype)
    loss, gradient = cross_entropy(logits, np.array([1, 3]), reduction="none")
    assert rel(loss, [log(4)] * 2) < 1e-6
    assert rel(gradient, [[0.25, -0.75, 0.25, 0.25], [0.25, 0.25, 0.25, -0.75]]) < 1e-6


def test_far_apart_logits(dtype: str) -> None:
    logits = np.array([[1e4, 0, -1e4]], dtype)
    for target, loss, gradient in ((0, 0, [0, 0, 0]), (2, 2e4, [1, 0, -1])):
        got = cross_entropy(logits, [target])
        assert got[0] == loss and got[1].tolist() == [gradient]


def test_masked_classes() -> None:
    """-inf rules a class out; as a target it costs infinitely."""
    logits = np.array([[0.0, -np.inf, 0.0]] * 2)
    loss, gradient = cross_entropy(logits, np.array([2, 1]), reduction="none")
    assert rel(loss[0], log(2)) < 1e-15 and loss[1] == np.inf  # type: ignore[index]
    assert gradient.tolist() == [[0.5, 0, -0.5], [0.5, -1, 0.5]]


def test_logits_that_are_not_finite_give_nan() -> None:
    logits = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [0, 0]])
    loss, gradient = cross_entropy(logits, np.zeros(4, int), reduction="none")
    assert np.isnan(loss).tolist() == [True, True, True, False]
    assert np.isnan(gradient).all(1).tolist() == [True, True, True, False]


def test_ignored_rows_count_for_nothing() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.standard_normal((5, 3)), np.array([0, 7, 2, 7, 1])
    kept = [0, 2, 4]
    logits[1] = np.nan
    logits[3] = [np.inf, -np.inf, 0]
    for reduction in REDUCTIONS:
        loss, gradient = cross_entropy(logits, targets, reduction=reduction, ignore_index=7)
        want, want_gradient = cross_entropy(logits[kept], targets[kept], reduction=reduction)
        assert np.all(gradient[[1, 3]] == 0)
        assert rel(gradient[kept], want_gradient) < 1e-15
        if isinstance(loss, np.ndarray):
            assert loss[[1, 3]].tolist() == [0, 0]
            loss = loss[kept]
        assert rel(loss, want) < 1e-15


@pytest.mark.parametrize("shape", [(4, 3), (0, 3)])
def test_no_row_that_counts(shape: tuple[int, int]) -> None:
    logits, targets = np.ones(shape), np.full(shape[0], -100)
    loss, gradient = cross_entropy(logits, targets)
    assert isinstance(loss, float) and isnan(loss)
    assert gradient.shape == shape and np.all(gradient == 0)
    assert cross_entropy(logits, targets, reduction="sum")[0] == 0


def test_ignore_index_may_be_a_class() -> None:
    loss, gradient = cross_entropy(np.zeros((2, 4)), np.array([1, 2]), ignore_index=1)
    assert rel(loss, log(4)) < 1e-15
    assert gradient.tolist() == [[0, 0, 0, 0], [0.25, 0.25, -0.75, 0.25]]


@pytest.mark.parametrize("kind", "bBhHiIlLqQ")
def test_any_integer_dtype(kind: str) -> None:
    logits = np.random.default_rng(1).standard_normal((3, 4))
    targets = np.array([3, 0, 2])
    got, want = cross_entropy(logits, targets.astype(kind)), cross_entropy(logits, targets)
    assert got[0] == want[0] and same_bits(got[1], want[1])


def test_more_classes_than_the_dtype_holds() -> None:
    loss, _ = cross_entropy(np.zeros((2, 1000)), np.array([127, 0], np.int8))
    assert rel(loss, log(1000)) < 1e-14


def test_one_row_without_axes() -> None:
    loss, gradient = cross_entropy(np.zeros(4), 1)
    assert rel(loss, log(4)) < 1e-15 and gradient.tolist() == [0.25, -0.75, 0.25, 0.25]


# --- refusals


@pytest.mark.parametrize(
    "targets, where",
    [
        (np.array([[0, 1], [5, 0]]), r"targets holds 5 at index \(1, 0\), expected 0 to 4"),
        (np.array([[0, -1], [5, 0]]), r"targets holds -1 at index \(0, 1\), expected 0 to 4"),
        (
            np.array([[0, 0], [0, 2**64 - 1]], np.uint64),
            r"targets holds 18446744073709551615 at index",
        ),
    ],
)
def test_target_out_of_range(targets: Array, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        cross_entropy(np.zeros((2, 2, 5)), targets)


ZEROS = np.zeros((2, 3))


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda: mse(ZEROS, ZEROS.T), ValueError, r"target has shape \(3, 2\), expected \(2, 3\)"),
        (lambda: mse(ZEROS, ZEROS[:1]), ValueError, r"target has shape \(1, 3\)"),
        (
            lambda: mse(ZEROS, ZEROS.astype("f")),
            TypeError,
            "target is an array of float32, expected float64",
        ),
        (
            lambda: mse(ZEROS.astype("e"), ZEROS),
            TypeError,
            "prediction is an array of float16, expected float32 or",
        ),
        (
            lambda: mse(ZEROS.astype(np.int64), ZEROS),
            TypeError,
            "prediction is an array of int64, expected float32 or",
        ),
        (lambda: mse(None, ZEROS), TypeError, "prediction is None"),  # type: ignore[arg-type]
        (
            lambda: mse(np.ma.zeros((2, 3)), ZEROS),
            TypeError,
            "prediction is a MaskedArray, whose mask",
        ),
        (lambda: mse(ZEROS, np.ma.zeros((2, 3))), TypeError, "target is a MaskedArray, whose mask"),
        (lambda: cross_entropy(np.ma.zeros((2, 3)), [0, 0]), TypeError, "logits is a MaskedArray"),
        (lambda: cross_entropy(ZEROS, np.ma.zeros(2, int)), TypeError, "targets is a MaskedArray"),
        (
            lambda: mse(ZEROS, ZEROS, reduction="avg"),
            ValueError,
            "reduction is 'avg', expected 'mean' or 'sum' or 'none'",
        ),
        (
            lambda: cross_entropy(ZEROS, [0]),
            ValueError,
            r"targets has shape \(1,\), expected \(2,\)",
        ),
        (
            lambda: cross_entropy(ZEROS, ZEROS),
            TypeError,
            "targets is an array of float64, expected integers",
        ),
        (
            lambda: cross_entropy(ZEROS, [True, False]),
            TypeError,
            "targets is an array of bool, expected integers",
        ),
        (lambda: cross_entropy(np.zeros(()), 0), ValueError, r"logits has shape \(\)"),
        (lambda: cross_entropy(np.zeros((2, 0)), [0, 0]), ValueError, "C at least 1"),
        (
            lambda: cross_entropy(ZEROS.astype(">f8"), [0, 0]),
            TypeError,
            "logits is >f8, .* other byte order",
        ),
        (
            lambda: mse(ZEROS, ZEROS, where=np.ones((3, 2), bool)),
            ValueError,
            r"where has shape \(3, 2\), expected one that broadcasts to \(2, 3\)",
        ),
        (lambda: mse(ZEROS, ZEROS, where=ZEROS), TypeError, "where is an array of float64"),
        (
            lambda: mse(ZEROS, ZEROS, where=np.ma.ones((2, 3), bool)),
            TypeError,
            "where is a MaskedArray",
        ),
        (lambda: mse(ZEROS, ZEROS, lengths=[1, 2]), ValueError, r"lengths has shape \(2,\)"),
        (lambda: mse(ZEROS, ZEROS, lengths=[1, 2, 3]), ValueError, "lengths holds 3, expected 0"),
        (lambda: mse(ZEROS, ZEROS, lengths=[1.0, 2.0, 0.0]), TypeError, "lengths is float64"),
        (lambda: mse(ZEROS[0], ZEROS[0], lengths=[1]), ValueError, r"the shape is \(3,\)"),
        (
            lambda: mse(ZEROS, ZEROS, lengths=[1, 2], batch_first=1),  # type: ignore[arg-type]
            TypeError,
            "batch_first is 1, expected a bool",
        ),
        (lambda: cross_entropy(ZEROS, [0, 0], lengths=[1]), ValueError, r"the shape is \(2,\)"),
        (
            lambda: cross_entropy(ZEROS, [0, 0], reduction="avg"),
            ValueError,
            "reduction is 'avg', expected",
        ),
    ],
)
def test_refusals(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
