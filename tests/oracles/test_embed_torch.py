"""examples/torch_module.py against torch.nn.LSTM; sklearn_forecaster.py in a grid search."""

from __future__ import annotations

import copy
import importlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

CASES: list[dict[str, Any]] = [
    dict(),
    dict(bias=False, batch_first=True),
    dict(num_layers=2, bidirectional=True),
    dict(num_layers=2, bidirectional=True, proj_size=2, batch_first=True),
]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("torch_module")


def pair(module: Any, case: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and torch's, with the same weights, which torch drew."""
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(3, 4, dtype=torch.float64, **case)
    ours = module.LSTM(3, 4, dtype=torch.float64, **case)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """x, and states that are not zero; B = T, so that batch_first changes no shape."""
    n = case.get("num_layers", 1) * (2 if case.get("bidirectional") else 1)
    shapes = (5, 5, 3), (n, 5, case.get("proj_size", 4)), (n, 5, 4)
    x, h_0, c_0 = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    return x, h_0, c_0


def flat(result: Any) -> tuple[Any, ...]:
    y, (h_n, c_n) = result
    return y, h_n, c_n


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(module: Any, case: dict[str, Any]) -> None:
    ours, theirs = pair(module, case)
    x, *states = inputs(case)
    got, want = flat(ours(x, tuple(states))), flat(theirs(x, tuple(states)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    d = [torch.randn_like(a) for a in want]
    assert [name for name, _ in ours.named_parameters()] == [
        n for n, _ in theirs.named_parameters()
    ]
    dgot = torch.autograd.grad(got, [x, *states, *ours.parameters()], d)
    dwant = torch.autograd.grad(want, [x, *states, *theirs.parameters()], d)
    torch.testing.assert_close(dgot, dwant, rtol=0, atol=1e-11)
    torch.testing.assert_close(flat(ours(x)), flat(theirs(x)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(module: Any, case: dict[str, Any]) -> None:
    ours, _ = pair(module, case)
    names, weights = zip(*ours.named_parameters(), strict=True)
    x, h_0, c_0 = inputs(case)

    def run(x: Any, h_0: Any, c_0: Any, *weights: Any) -> Any:
        named = dict(zip(names, weights, strict=True))
        return flat(torch.func.functional_call(ours, named, (x, (h_0, c_0))))

    given = (
        x[:3, :3].detach().requires_grad_(),
        h_0[:, :3].detach().requires_grad_(),
        c_0[:, :3].detach().requires_grad_(),
        *weights,
    )
    assert torch.autograd.gradcheck(run, given)


def test_part_of_the_gradients(module: Any) -> None:
    """Only y in the loss, x without a gradient, one weight frozen; dy is expanded, not dense."""
    ours, theirs = pair(module, CASES[2])
    x = inputs(CASES[2])[0].detach()
    for lstm in (ours, theirs):
        lstm.weight_hh_l1.requires_grad_(False)
        lstm(x)[0].sum().backward()
    assert ours.weight_hh_l1.grad is None and x.grad is None
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=0, atol=1e-11)


def test_trains_as_torch_does(module: Any) -> None:
    """Also with weights changed behind autograd's back, and in a copy, and from a state dict."""
    losses = []
    for lstm in pair(module, CASES[2]):
        torch.manual_seed(2)
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        optimizer = torch.optim.Adam(lstm.parameters(), lr=0.02)
        seen = []
        for step in range(20):
            loss = (lstm(x)[0] - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 10:
                lstm.weight_ih_l0.data.mul_(0.5)
            seen.append(loss.item())
        losses.append(seen)
        clone = pickle.loads(pickle.dumps(copy.deepcopy(lstm)))
        torch.testing.assert_close(flat(clone(x)), flat(lstm(x)), rtol=0, atol=0)
    assert losses[0][-1] < 0.8 * losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


def test_state_dicts_fit_both_ways(module: Any) -> None:
    for case in CASES:
        ours, theirs = pair(module, case)
        theirs.load_state_dict(ours.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())


def test_dropout_follows_the_mode(module: Any) -> None:
    lstm = module.LSTM(3, 8, num_layers=2, dropout=0.5, seed=1)
    x = torch.ones(4, 2, 3)
    assert not torch.equal(lstm(x)[0], lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


@pytest.mark.parametrize("backend, n_jobs", [("threading", 2), ("loky", 2)])
def test_scikit_learn(monkeypatch: pytest.MonkeyPatch, backend: str, n_jobs: int) -> None:
    """A grid search in a pipeline finds the same, one after another or side by side."""
    joblib = pytest.importorskip("joblib")
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = importlib.import_module("sklearn.pipeline")
    preprocessing = importlib.import_module("sklearn.preprocessing")
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=os.pathsep)  # for joblib's processes
    forecaster = importlib.import_module("sklearn_forecaster").LSTMForecaster
    series = np.sin(np.arange(90) / 3)
    X, y = np.array([series[t : t + 9] for t in range(80)]), series[9:89]

    def search(jobs: int) -> Any:
        model = pipeline.make_pipeline(
            preprocessing.StandardScaler(), forecaster(epochs=3, random_state=0)
        )
        grid = {"lstmforecaster__hidden_size": [2, 12]}
        return selection.GridSearchCV(model, grid, cv=2, n_jobs=jobs).fit(X, y)

    alone = search(1)
    with joblib.parallel_backend(backend, n_jobs=n_jobs):
        together = search(n_jobs)
    scores = [s.cv_results_["mean_test_score"] for s in (alone, together)]
    np.testing.assert_array_equal(*scores)
    assert len(set(scores[0])) == 2 and together.best_params_ == alone.best_params_
    np.testing.assert_array_equal(alone.predict(X), together.predict(X))
