"""examples/sklearn_forecaster.py in a grid search."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


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
