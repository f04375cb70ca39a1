"""Optimisers against PyTorch's numbers; frozen weights, clipping, and what they refuse."""

from __future__ import annotations

import copy
from math import inf, isnan, nan, sqrt
from typing import Any

import numpy as np
import pytest

from cylstm import LSTM, optim
from cylstm.linear import Linear
from cylstm.optim import SGD, Adam, AdamW, clip_grad_norm
from cylstm.weights import WeightGrads
from helpers import Array, rel, same_bits
from optimisers import CASES, GOLDEN, HALVED_AFTER, NAMES, SEEN, gradients, make, start


def as_weight_grads(module: Linear, grads: dict[str, Array]) -> WeightGrads:
    return WeightGrads(module._spec, np.concatenate([a.reshape(-1) for a in grads.values()]))


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, dtype: str, tolerance: float) -> None:
    """The weights on the way and the state at the end."""
    module = start(dtype)
    optimiser = make(case, module)
    seen = []
    for step in range(1, SEEN[-1] + 1):
        optimiser.step(gradients(step, dtype))
        if step == HALVED_AFTER:
            optimiser.lr /= 2
        if step in SEEN:
            seen.append(module._weights.flat.copy())
    for row, want in zip(seen, GOLDEN[case], strict=True):
        assert rel(row, want) < tolerance
    state = optimiser.state_dict()["state"]
    kinds = [key.split("/")[1] for key in GOLDEN if key.startswith(f"{case}/")]
    assert list(state) == [f"0.{name}.{kind}" for kind in kinds for name in NAMES]
    for kind in kinds:
        got = np.concatenate([state[f"0.{name}.{kind}"].reshape(-1) for name in NAMES])
        assert got.dtype == dtype and rel(got, GOLDEN[f"{case}/{kind}"]) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_threads_and_place_do_not_matter(case: str, dtype: str) -> None:
    """Each weight's step is its own: the same bits in any share, vector and lane."""
    n, part = 100_003, 17
    rng = np.random.default_rng(2)
    grads = rng.standard_normal((3, 1, n)).astype(dtype)
    weights = rng.standard_normal((1, n)).astype(dtype)

    def after_three_steps(columns: slice, threads: int) -> list[Array]:
        module = Linear(weights[:, columns].size, 1, bias=False, dtype=dtype)
        module.load_state_dict({"weight": weights[:, columns]})
        optimiser = make(case, module)
        for grad in grads:
            optimiser.step({"weight": grad[:, columns]}, threads=threads)
        return [module._weights.flat, *(a[0] for a in optimiser.state_dict()["state"].values())]

    whole = after_three_steps(slice(None), 1)
    assert not same_bits(whole[0], weights[0])
    for threads in (2, 3, 8):
        assert same_bits(after_three_steps(slice(None), threads), whole)
    for begin in (0, 5, 50_000, n - part):
        columns = slice(begin, begin + part)
        assert same_bits(after_three_steps(columns, 2), [a[columns] for a in whole])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threads_share_the_packing_too(dtype: str) -> None:
    """Outputs and gradients after a step, on weights that several threads have packed."""
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal((5, 3, n)).astype(dtype) for n in (70, 46))
    start_state = LSTM(70, 131, 2, bidirectional=True, proj_size=23, dtype=dtype).state_dict()

    def trained(threads: int) -> list[Array]:
        lstm = LSTM(70, 131, 2, bidirectional=True, proj_size=23, dtype=dtype)
        lstm.load_state_dict(start_state)
        optimiser = Adam(lstm, lr=0.01)
        for _ in range(3):
            tape = lstm.forward(x, threads=threads)
            grads = tape.backward(dy, threads=threads)
            optimiser.step(grads, threads=threads)
        return [lstm(x, threads=threads)[0], grads.x, grads.weights.flat, lstm._weights.flat]

    want = trained(1)
    for threads in (2, 5, 40):
        assert same_bits(trained(threads), want)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("gradient", [1e-45, 1e-25, 1e-19, 1e-12, 1.0, 1e12, 3e19, 1e20, 5e20])
def test_adam_at_the_ends_of_float32(gradient: float, eps: float) -> None:
    """As long as g^2 / 1000 is a number, a first step is lr; where it is flushed to 0, less."""
    module = Linear(1, 1, bias=False)
    module.load_state_dict({"weight": np.ones((1, 1), np.float32)})
    Adam(module, lr=1e-3, eps=eps).step({"weight": np.full((1, 1), gradient, np.float32)})
    (moved,) = 1 - module._weights.flat.astype(np.float64)
    want = 1e-3 * gradient / (gradient + eps)
    if gradient >= 1e-12:
        assert abs(moved - want) < 2e-7
    else:
        assert -1e-7 < moved < want + 1e-7


def test_an_impossible_step_changes_nothing() -> None:
    module = start()
    optimiser = Adam(module)
    optimiser.step(gradients(1))
    saved = optimiser.state_dict()
    with pytest.raises(ValueError, match="step is 18446744073709551616, expected 0 to"):
        optimiser.load_state_dict({**saved, "step": 2**64})
    assert optimiser.state_dict()["step"] == 1


def test_gradients_as_a_matrix() -> None:
    module = Linear(4, 1, bias=False, seed=0)
    twin = copy.copy(module)
    grad = np.arange(4, dtype=np.float32).reshape(1, 4)
    Adam(module).step({"weight": grad.view(np.matrix)})
    Adam(twin).step({"weight": grad})
    assert same_bits(module._weights.flat, twin._weights.flat)


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, True, "2"])
def test_bad_threads_change_nothing(threads: Any) -> None:
    module = start()
    before, optimiser = module._weights.flat, Adam(module)
    with pytest.raises((TypeError, ValueError), match="threads is"):
        optimiser.step(gradients(1), threads=threads)
    assert module._weights.flat is before and optimiser.state_dict()["step"] == 0


@pytest.mark.parametrize("case", CASES)
def test_how_gradients_are_given_does_not_matter(case: str) -> None:
    class Grads:
        def __init__(self, weights: Any) -> None:
            self.weights = weights

    def strided(grads: dict[str, Array]) -> dict[str, Array]:
        """In another order and with strides."""
        return {name: np.repeat(grads[name], 2, -1)[..., ::2] for name in ("bias", "weight")}

    forms: list[Any] = [
        lambda module, grads: grads,
        lambda module, grads: [grads],
        lambda module, grads: strided(grads),
        as_weight_grads,
        lambda module, grads: Grads(as_weight_grads(module, grads)),
        lambda module, grads: (Grads(grads),),
    ]
    results = []
    for form in forms:
        module = start()
        optimiser = make(case, module)
        for step in (1, 2, 3):
            optimiser.step(form(module, gradients(step)))
        results.append(module._weights.flat)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("case", CASES)
def test_several_modules(case: str) -> None:
    """Modules of two dtypes at once step as each would alone; gradients stay as they are."""
    modules = [start("float64"), Linear(3, 2, seed=1), start("float32")]
    alone = [copy.copy(module) for module in modules]
    rng = np.random.default_rng(1)
    optimiser, optimisers = make(case, modules), [make(case, module) for module in alone]
    for _ in range(3):
        grads = [
            WeightGrads(m._spec, rng.standard_normal(m._weights.flat.size).astype(m.dtype))
            for m in modules
        ]
        before = [g.flat.copy() for g in grads]
        optimiser.step(grads)
        for one, gradient in zip(optimisers, grads, strict=True):
            one.step(gradient)
        assert same_bits(before, [g.flat for g in grads])
    for module, other in zip(modules, alone, strict=True):
        assert same_bits(module._weights.flat, other._weights.flat)


def test_a_step_leaves_no_trace_in_a_tape() -> None:
    module = start()
    x, dy = np.ones((2, 5)), np.ones((2, 7))
    tape = module.forward(x)
    want = tape.backward(dy).x
    optimiser = Adam(module, lr=0.1)
    for step in (1, 2, 3):
        optimiser.step(gradients(step))
    assert same_bits(tape.backward(dy).x, want)


@pytest.mark.parametrize("cls, lr", [(SGD, 0.01), (Adam, 0.05), (AdamW, 0.05)])
def test_training_fits_a_line(cls: Any, lr: float) -> None:
    rng = np.random.default_rng(1)
    truth, module = rng.standard_normal((2, 3)), Linear(3, 2, dtype="float64", seed=1)
    x = rng.standard_normal((64, 3))
    y = x @ truth.T + [1.0, -1.0]
    optimiser = cls(module, lr, weight_decay=0.0)
    for _ in range(1000):
        tape = module.forward(x)
        optimiser.step(tape.backward((tape.y - y) / 10))
    assert rel(module.state_dict()["weight"], truth) < 1e-3
    assert rel(module.state_dict()["bias"], [1, -1]) < 1e-3


def test_gradients_that_are_not_finite_are_used() -> None:
    for cls in (SGD, Adam):
        module = start()
        grads = gradients(1)
        grads["bias"][:3] = nan, inf, -inf
        cls(module, lr=0.1).step(grads)
        assert np.isfinite(module.state_dict()["weight"]).all()
        assert not np.isfinite(module.state_dict()["bias"][:3]).any()


# --- frozen weights


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_do_not_move(case: str) -> None:
    """Neither decay nor momentum nor a NaN moves them; the others step as they would."""
    rng = np.random.default_rng(1)
    names = ["weight_hh_l0", "bias_ih_l0"]
    free, half, head = LSTM(3, 5, seed=0), LSTM(3, 5, seed=0), Linear(5, 2, seed=1)
    cls, arguments = CASES[case]
    arguments = arguments | {"weight_decay": 0.1}
    optimiser = getattr(optim, cls)([half, head], **arguments, frozen=[names, []])
    alone = getattr(optim, cls)(free, **arguments)
    assert optimiser.frozen == [set(names), set()]
    first = half.state_dict()
    for _ in range(4):
        grads = {n: rng.standard_normal(a.shape).astype("f") for n, a in first.items()}
        its = {n: rng.standard_normal(a.shape).astype("f") for n, a in head.state_dict().items()}
        alone.step(grads)
        optimiser.step([grads | {name: np.full_like(first[name], nan) for name in names}, its])
    moved, want = half.state_dict(), free.state_dict()
    for name, array in moved.items():
        assert same_bits(array, first[name] if name in names else want[name])
        assert not same_bits(want[name], first[name])
    for name, array in optimiser.state_dict()["state"].items():
        if name.split(".")[1] in names:
            assert not array.any()
    for twin in (copy.copy(optimiser), copy.deepcopy(optimiser)):
        assert twin.frozen == optimiser.frozen


def test_all_or_none_may_be_frozen() -> None:
    module = start()
    first = module._weights.flat.copy()
    optimiser = Adam(module, frozen=NAMES)
    optimiser.step(gradients(1))
    assert same_bits(module._weights.flat, first)
    Adam(module, frozen=[]).step(gradients(1))
    assert not same_bits(module._weights.flat, first)


@pytest.mark.parametrize(
    "frozen, text",
    [
        (["wieght"], r"frozen has wieght, expected names of module 0 \(Linear\): weight, bias"),
        ("weight", "frozen is 'weight', expected names of weights"),
        ([["weight"], ["bias"]], "expected names of weights"),
        ([1], "expected names of weights"),
    ],
)
def test_what_cannot_be_frozen(frozen: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        SGD(start(), lr=0.1, frozen=frozen)


def test_names_of_several_modules_are_given_per_module() -> None:
    for frozen in (["weight"], [["weight"]], [["weight"], "bias"], [["weight"], [], []]):
        with pytest.raises(ValueError, match="a list of them for each of 2 modules"):
            SGD([start(), start()], lr=0.1, frozen=frozen)


# --- refusals of step


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda g: [], ValueError, "got gradients for 0 modules, expected 2"),
        (lambda g: g[0], ValueError, "got gradients for 1 modules, expected 2"),
        (lambda g: [*g, g[0]], ValueError, "got gradients for 3 modules, expected 2"),
        (lambda g: None, ValueError, "got gradients for 1 modules"),
        (
            lambda g: [g[0], None],
            TypeError,
            r"module 1 \(Linear\): expected a mapping, got NoneType",
        ),
        (lambda g: [g[0], {"weight": g[1]["weight"]}], ValueError, "module 1 .* missing: bias"),
        (
            lambda g: [g[0], g[1] | {"bias": None}],
            ValueError,
            "bias is a NoneType, expected an arr",
        ),
        (lambda g: [g[0] | {"b": np.zeros(1)}, g[1]], ValueError, "module 0 .*unexpected: b"),
        (
            lambda g: [g[0], g[1] | {"bias": np.ma.zeros(7)}],
            ValueError,
            "bias is a MaskedArray, whose mask would be ignored",
        ),
        (
            lambda g: [g[0], {n: a.astype("f") for n, a in g[1].items()}],
            TypeError,
            r"gradients of module 1 \(Linear\): float32, expected float64",
        ),
        (
            lambda g: [{"weight": g[0]["weight"].T, "bais": g[0]["bias"]}, {}],
            ValueError,
            r"module 0 \(Linear\): missing: bias; .*unexpected: bais; .*weight has shape \(5, 7\), "
            r"expected \(7, 5\); .*module 1 \(Linear\): missing: weight, bias",
        ),
    ],
)
@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_refused_gradients_change_nothing(
    cls: Any, change: Any, error: type[Exception], text: str
) -> None:
    modules = [start(), start()]
    optimiser = cls(modules, lr=0.1)
    weights = [module._weights for module in modules]
    with pytest.raises(error, match=text):
        optimiser.step(change([gradients(1), gradients(1)]))
    assert all(module._weights is old for module, old in zip(modules, weights, strict=True))
    assert optimiser.state_dict()["step"] == 0 and not optimiser.state_dict()["state"]


def test_weight_grads_of_another_shape_are_refused() -> None:
    module = start()
    same_size = Linear(6, 6, dtype="float64")
    for other, text in ((same_size, "shape"), (start("float32"), "float32, expected float64")):
        grads = WeightGrads(other._spec, np.zeros(other._weights.flat.size, other.dtype))
        with pytest.raises((ValueError, TypeError), match=text):
            SGD(module, lr=0.1).step(grads)


@pytest.mark.parametrize(
    "make_it, error, text",
    [
        (lambda m: SGD([], lr=0.1), ValueError, "at least one module"),
        (lambda m: SGD([m, m], lr=0.1), ValueError, "more than once"),
        (lambda m: SGD([m, None], lr=0.1), TypeError, "got a NoneType"),  # type: ignore[list-item]
        (lambda m: SGD(m.state_dict(), lr=0.1), TypeError, "got a str"),
        (lambda m: SGD(m, lr=-0.1), ValueError, "lr is -0.1, expected a number of at least 0"),
        (lambda m: SGD(m, lr=nan), ValueError, "lr is nan, expected a number"),
        (lambda m: SGD(m, lr=inf), ValueError, "lr is inf, expected a number"),
        (lambda m: SGD(m, "0.1"), TypeError, "lr is '0.1', expected a number"),  # type: ignore[arg-type]
        (lambda m: SGD(m, lr=True), TypeError, "lr is True, expected a number"),
        (
            lambda m: SGD(m, lr=0.1, momentum=-1),
            ValueError,
            "momentum is -1, expected a number of at least 0",
        ),
        (
            lambda m: SGD(m, lr=0.1, weight_decay=-1),
            ValueError,
            "weight_decay is -1, expected a number of at least 0",
        ),
        (lambda m: SGD(m, lr=0.1, nesterov=True), ValueError, "nesterov needs a momentum"),
        (lambda m: SGD(m, lr=0.1, nesterov=1), TypeError, "nesterov is 1, expected a bool"),  # type: ignore[arg-type]
        (
            lambda m: SGD(m, lr=0.1, momentum=0.5, dampening=0.5, nesterov=True),
            ValueError,
            "nesterov needs a momentum above 0 and a dampening of 0",
        ),
        (
            lambda m: Adam(m, betas=(1.0, 0.5)),
            ValueError,
            r"betas\[0\] is 1.0, expected a number from 0 to less than 1",
        ),
        (
            lambda m: Adam(m, betas=(0.5, -0.1)),
            ValueError,
            r"betas\[1\] is -0.1, expected a number from 0",
        ),
        (lambda m: Adam(m, betas=0.5), ValueError, "betas is 0.5, expected two"),  # type: ignore[arg-type]
        (lambda m: AdamW(m, eps=-1), ValueError, "eps is -1, expected a number of at least 0"),
    ],
)
def test_bad_arguments(make_it: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make_it(start())


def test_lr_is_checked_when_set() -> None:
    optimiser = Adam(start(), lr=0.5)
    with pytest.raises(ValueError, match="lr is -1, expected a number"):
        optimiser.lr = -1
    assert optimiser.lr == 0.5


# --- clip_grad_norm


def some_gradients(dtype: str = "float64") -> list[WeightGrads]:
    rng = np.random.default_rng(1)
    modules = [Linear(5, 7, dtype=dtype), Linear(2, 3, dtype=dtype)]
    return [
        WeightGrads(m._spec, rng.standard_normal(m._weights.flat.size).astype(dtype))
        for m in modules
    ]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3, inf])
def test_clip_scales_all_by_one_factor(max_norm: float, dtype: str, tolerance: float) -> None:
    grads = some_gradients(dtype)
    before = [g.flat.astype(np.float64) for g in grads]
    want = sqrt(sum(float(np.vdot(g, g)) for g in before))
    norm = clip_grad_norm(grads, max_norm)
    assert type(norm) is float and rel(norm, want) < tolerance
    for g, old in zip(grads, before, strict=True):
        if max_norm > want:
            assert np.array_equal(g.flat, old)
        else:
            assert rel(g.flat, old * (max_norm / (want + 1e-6))) < tolerance


def test_clip_takes_what_a_step_takes() -> None:
    want = some_gradients()
    clip_grad_norm(want, 1.0)
    plain = [dict(g) for g in some_gradients()]
    clip_grad_norm(tuple(plain), 1.0)
    for g, w in zip(plain, want, strict=True):
        assert rel(np.concatenate([a.reshape(-1) for a in g.values()]), w.flat) < 1e-15
    one = some_gradients()[0]
    assert rel(clip_grad_norm(one, inf), np.linalg.norm(one.flat)) < 1e-14
    module = start()
    grads = module.forward(np.ones((2, 5))).backward(np.ones((2, 7)))
    assert rel(clip_grad_norm(grads, 1e-3), sqrt(6 * 7 * 4)) < 1e-14
    assert rel(np.linalg.norm(grads.weights.flat), 1e-3) < 1e-6
    assert (grads.x == module.forward(np.ones((2, 5))).backward(np.ones((2, 7))).x).all()


def test_clip_of_long_float32_vectors() -> None:
    """Many elements, and squares that no float32 holds."""
    grads = {"a": np.full(100_001, 1e25, "f"), "b": np.zeros((0, 3), "f")}
    norm = clip_grad_norm(grads, 1.0)
    assert rel(norm, float(np.float32(1e25)) * sqrt(100_001)) < 1e-12
    assert rel(grads["a"], np.full(100_001, 1 / sqrt(100_001))) < 1e-6


def test_clip_of_nothing() -> None:
    grads = {"a": np.zeros(3)}
    assert clip_grad_norm(grads, 1.0) == 0 and not grads["a"].any()
    assert clip_grad_norm([], 1.0) == 0 and clip_grad_norm({}, 1.0) == 0


def test_clip_of_strided_arrays_is_in_place() -> None:
    base = np.ones((4, 6))
    clip_grad_norm({"a": base[::2, ::3]}, 1.0)
    assert rel(base[::2, ::3], np.full((2, 2), 0.5)) < 1e-6
    assert base[1::2].all() and (base[:, 1] == 1).all()


@pytest.mark.parametrize("value", [nan, inf])
def test_clip_of_a_norm_that_is_not_finite(value: float) -> None:
    grads = {"a": np.array([value, 1.0])}
    with pytest.raises(ValueError, match=f"the norm of the gradients is {value}"):
        clip_grad_norm(grads, 1.0, error_if_nonfinite=True)
    assert grads["a"][1] == 1
    norm = clip_grad_norm(grads, 1.0)
    assert isnan(norm) if isnan(value) else norm == inf
    assert isnan(grads["a"][0])
    assert isnan(grads["a"][1]) if isnan(value) else grads["a"][1] == 0


def test_clip_refusals() -> None:
    grads = {"a": np.ones(3)}
    read_only = {"a": np.ones(3), "b": np.ones(3)}
    read_only["b"].flags.writeable = False
    for bad, max_norm, error, text in (
        (grads, -1.0, ValueError, "max_norm is -1.0, expected a number of at least 0"),
        (grads, nan, ValueError, "max_norm is nan, expected a number"),
        (grads, None, TypeError, "max_norm is None, expected a number"),
        (None, 1.0, TypeError, "expected a mapping of gradients, got NoneType"),
        ([grads, None], 1.0, TypeError, "expected a mapping of gradients, got NoneType"),
        ({**grads, "b": None}, 1.0, TypeError, "arrays of floats, got NoneType"),
        ({**grads, "b": np.ones(3, np.int64)}, 1.0, TypeError, "arrays of floats, got int64"),
        (read_only, 1.0, ValueError, "read-only"),
    ):
        with pytest.raises(error, match=text):
            clip_grad_norm(bad, max_norm)  # type: ignore[arg-type]
    assert grads["a"].tolist() == read_only["a"].tolist() == [1, 1, 1]
