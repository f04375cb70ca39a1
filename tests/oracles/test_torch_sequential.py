"""A live torch.nn.Sequential, here and there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cylstm
from cylstm import from_torch


def agrees(theirs: Any, x: Any) -> None:
    theirs = theirs.eval()
    with torch.no_grad():
        want = theirs(x)
    want = want[0] if isinstance(want, tuple) else want
    ours = from_torch(theirs)
    assert isinstance(ours, cylstm.Sequential)
    np.testing.assert_allclose(ours(x.numpy()), want.numpy(), rtol=0, atol=1e-5)


def test_rows() -> None:
    torch.manual_seed(0)
    batch = nn.BatchNorm1d(7)
    with torch.no_grad():
        batch.running_mean.uniform_(-1, 1), batch.running_var.uniform_(0.5, 2)
    acts = [
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.SELU(), nn.SiLU(), nn.GELU(),
        nn.GELU("tanh"), nn.Softplus(), nn.Softsign(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(),
    ]  # fmt: skip
    parts = [part for act in acts for part in (nn.Linear(7, 7), act)]
    model = nn.Sequential(
        *parts, batch, nn.Dropout(), nn.LayerNorm(7), nn.Linear(7, 3, bias=False), nn.Softmax(-1)
    )
    agrees(model, torch.randn(5, 7))
    with pytest.raises(ValueError, match=r"x has shape \(5, 6, 7\)"):
        from_torch(model)(np.zeros((5, 6, 7), np.float32))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_ids_to_a_recurrent_layer(cell: str) -> None:
    torch.manual_seed(0)
    rnn = getattr(nn, cell)(4, 5, num_layers=2, batch_first=True, bidirectional=True)
    agrees(nn.Sequential(nn.Embedding(11, 4), nn.Tanh(), rnn), torch.randint(11, (3, 6)))


def test_what_has_no_step_is_listed() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 4, 2),
        nn.BatchNorm1d(4),
        nn.LSTM(4, 5),
        nn.Softmax(1),
        nn.Flatten(0),
        nn.LayerNorm((4, 5)),
        nn.LSTM(5, 6),
    )
    with pytest.raises(ValueError) as error:
        from_torch(model)
    for part in (
        "0 (Conv1d): no such step",
        "1 (BatchNorm1d): would take (B, C, T)",
        "2 (LSTM): gives a tuple",
        "3 (Softmax): dim 1",
        "4 (Flatten): start_dim",
        "5 (LayerNorm): goes over 2 axes",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="expected batch_first=True"):
        from_torch(nn.Sequential(nn.Embedding(3, 4), nn.LSTM(4, 5, num_layers=2), nn.LSTM(5, 5)))


def test_a_lone_recurrent_layer_is_a_module() -> None:
    rnn = nn.LSTM(4, 5)
    for model in (nn.Sequential(rnn), nn.Sequential(nn.Conv1d(3, 4, 2), rnn)):
        ours = from_torch(model)
        assert isinstance(ours, cylstm.LSTM) and not ours.batch_first
