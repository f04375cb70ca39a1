"""cylstm on Dask: predictions and training on a cluster of processes, of which one is killed."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array
import dask.bag
import dask.dataframe
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster, as_completed

import cylstm
from cylstm.dask import predict
from helpers import Array

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # as the workers' PYTHONPATH: tasks name their functions
dask_training: Any = importlib.import_module("dask_training")

rng = np.random.default_rng(0)

pytestmark = pytest.mark.xdist_group("dask")  # one cluster


def floats(*shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


LSTM = cylstm.LSTM(3, 17, 2, bidirectional=True, seed=1)
SEQUENCES = [floats(int(T), 3) for T in rng.integers(1, 20, 30)]
HEAD = cylstm.Linear(4, 2, seed=1)
STEPS = cylstm.Sequential([cylstm.LSTM(3, 4, batch_first=True, seed=0), HEAD])
FINAL = cylstm.steps.FinalState(cylstm.GRU(3, 4, batch_first=True, seed=0))
LAST = cylstm.Sequential([FINAL, HEAD])
TABLE = cylstm.Embedding(11, 3, seed=0)
IDS = cylstm.Sequential([TABLE, cylstm.RNN(3, 4, batch_first=True, seed=0)])


@pytest.fixture(autouse=True)
def synchronous() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Two processes of one thread, which know the examples."""
    paths = f"{EXAMPLES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            yield client


@pytest.fixture
def client(cluster: Client) -> Iterator[Client]:
    with dask.config.set(scheduler="dask.distributed"):
        yield cluster


def kill_one(client: Client) -> None:
    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)


# ------------------------------------------------------------------------------- collections


def alone(model: Any, sequence: Array) -> Array:
    """What one sequence gets by itself."""
    whole = isinstance(model, cylstm.Sequential)
    y: Array = model(sequence[None])[0] if whole else model(sequence)[0]
    return y


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_bag(batch_size: int) -> None:
    """Sequences of any lengths, in their order; a module's bits are those that each gets alone."""
    bag = dask.bag.from_sequence(SEQUENCES, npartitions=4)
    got = predict(LSTM, bag, batch_size=batch_size).compute()
    for y, sequence in zip(got, SEQUENCES, strict=True):
        np.testing.assert_array_equal(y, LSTM(sequence)[0])
    for model in (STEPS, LAST):
        got = predict(model, bag, batch_size=batch_size).compute()
        for y, sequence in zip(got, SEQUENCES, strict=True):
            np.testing.assert_allclose(y, alone(model, sequence), atol=1e-6)


def test_an_array() -> None:
    x, ids = floats(10, 7, 3), rng.integers(0, 11, (10, 7))
    pieces = dask.array.from_array(x, chunks=(4, 3, 2))
    y = predict(LSTM, pieces)
    assert y.chunks == ((4, 4, 2), (7,), (34,)) and y.dtype == np.float32
    np.testing.assert_array_equal(y.compute(), LSTM(x.swapaxes(0, 1))[0].swapaxes(0, 1))
    of_ids = dask.array.from_array(ids, chunks=(4, 7))
    for model, given, want in ((STEPS, pieces, x), (LAST, pieces, x), (IDS, of_ids, ids)):
        y = predict(model, given)
        np.testing.assert_allclose(y.compute(), model(want), atol=1e-6)
        assert y.shape == model(want).shape
    assert (predict(STEPS, pieces)[3:5] + 1).compute().shape == (2, 7, 2)


@pytest.mark.parametrize("model", [LSTM, STEPS, LAST], ids=["module", "steps", "last"])
def test_a_dataframe(model: Any) -> None:
    lengths = rng.integers(1, 9, 12)
    table = pd.DataFrame(floats(int(lengths.sum()), 3), columns=[*"abc"])
    table["name"] = np.repeat([f"n{k}" for k in range(12)], lengths)
    table["time"] = np.arange(len(table))
    mixed = dask.dataframe.from_pandas(table.sample(frac=1, random_state=0), npartitions=3)
    frame = mixed.shuffle("name")
    got = predict(model, frame, by="name", order="time", batch_size=2)
    computed = got.compute()
    assert list(got.columns) == list(computed.columns) == [f"y{k}" for k in range(got.shape[1])]
    for name, rows in table.groupby("name"):
        want = alone(model, rows[[*"abc"]].to_numpy())
        found = computed.loc[rows.index] if want.ndim == 2 else computed.loc[name]
        np.testing.assert_allclose(found.to_numpy(), want, atol=1e-6)
    one = dask.dataframe.from_pandas(table, npartitions=1)
    want = alone(model, table[[*"abc"]].to_numpy())
    np.testing.assert_allclose(
        predict(model, one, columns=[*"abc"]).compute().to_numpy().squeeze(), want, atol=1e-6
    )


def test_what_is_wrong_is_said() -> None:
    bag = dask.bag.from_sequence(SEQUENCES[:2])
    frame = dask.dataframe.from_pandas(pd.DataFrame({"a": [1.0]}), npartitions=1)
    with pytest.raises(TypeError, match="model is a Linear"):
        predict(cylstm.Linear(3, 2), bag)
    with pytest.raises(TypeError, match="collection is a list, expected a Bag"):
        predict(LSTM, SEQUENCES)
    with pytest.raises(TypeError, match="collection is a DataFrame, expected a Bag"):
        predict(LSTM, pd.DataFrame({"a": [1.0]}))
    with pytest.raises(ValueError, match="by, order and columns are for dataframes"):
        predict(LSTM, bag, by="a")
    with pytest.raises(ValueError, match=r"no column b, expected some of \['a'\]"):
        predict(LSTM, frame, by="b")
    with pytest.raises(ValueError, match="a sequence has shape"):
        predict(LSTM, dask.bag.from_sequence([floats(2, 3, 1)])).compute()
    table = pd.DataFrame({"name": ["p", None, "q"], "a": 1.0, "b": 1.0, "c": 1.0})
    frame = dask.dataframe.from_pandas(table, npartitions=1)
    with pytest.raises(ValueError, match="column name has missing values"):
        predict(STEPS, frame, by="name").compute()
    mixed = [rng.integers(0, 11, 3), np.full(3, 1.5)]  # which would have been ids of 1
    with pytest.raises(TypeError, match="float64"):
        predict(IDS, dask.bag.from_sequence(mixed, npartitions=1)).compute()


# ------------------------------------------------------------------------------- a cluster


def test_the_model_reaches_a_worker_once(client: Client) -> None:
    """However many tasks it has, and for another prediction with the same weights not again."""

    def count() -> None:
        import cylstm

        kind: Any = cylstm.module.Module
        make = vars(kind)["_from"].__func__
        os.environ["CYLSTM_TEST_MADE"] = "0"

        def counted(cls: Any, config: Any, state: Any) -> Any:
            os.environ["CYLSTM_TEST_MADE"] = str(int(os.environ["CYLSTM_TEST_MADE"]) + 1)
            return make(cls, config, state)

        counted.__name__ = "_from"  # by which it is pickled
        kind._from = classmethod(counted)

    client.run(count)
    bag = dask.bag.from_sequence(SEQUENCES, npartitions=15)
    got = client.compute(predict(LSTM, bag)).result()
    assert len(got) == len(SEQUENCES)
    made = client.run(lambda: int(os.environ["CYLSTM_TEST_MADE"]))
    assert all(times <= 2 for times in made.values()), made  # as a task's, and from another worker


def test_a_worker_is_killed_in_a_prediction(client: Client) -> None:
    long = [floats(3000, 3) for _ in range(30)]
    bag = dask.bag.from_sequence(long, npartitions=15)
    futures = client.compute(predict(LSTM, bag).to_delayed())
    next(iter(as_completed(futures)))
    kill_one(client)
    got = [y for part in client.gather(futures) for y in part]
    for y, sequence in zip(got, long, strict=True):
        np.testing.assert_array_equal(y, LSTM(sequence)[0])


def test_a_worker_is_killed_in_training(client: Client) -> None:
    """The weights are, to the bit, those of one process: no share lost, none counted twice."""
    killed = []

    def report(step: int, loss: float) -> None:
        if step == 2:
            kill_one(client)
            killed.append(step)

    sizes = [40] * 5
    ours, there = dask_training.new_modules(), dask_training.new_modules()
    parts = client.map(dask_training.draw, range(5), pure=False)
    loss = dask_training.train(parts, sizes, there, 5, report=report)
    assert killed
    with dask.config.set(scheduler="synchronous"):
        local = [dask_training.draw(seed) for seed in range(5)]
        assert dask_training.train(local, sizes, ours, 5) == loss
    for a, b in zip(ours, there):
        for name, array in a.state_dict().items():
            np.testing.assert_array_equal(array, b.state_dict()[name])
