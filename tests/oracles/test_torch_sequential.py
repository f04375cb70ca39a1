"""A live torch.nn.Sequential, here and there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cylstm
from cylstm import from_torch
from helpers import seeds


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


def test_axes_that_rows_have_not() -> None:
    """Softmax over axis 1 is that over features of rows, and of (B, T, F) it is not."""
    for layers in ([nn.LayerNorm(7), nn.Softmax(1)], [nn.Tanh(), nn.BatchNorm1d(7)]):
        model = nn.Sequential(*layers).eval()
        agrees(model, torch.randn(5, 7))
        with pytest.raises(ValueError, match=r"x has shape \(5, 7, 7\)"):
            from_torch(model)(np.zeros((5, 7, 7), np.float32))
    agrees(nn.Sequential(nn.Linear(7, 3), nn.LayerNorm(3), nn.Softmax(-1)), torch.randn(5, 6, 7))


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_ids_to_a_recurrent_layer(cell: str) -> None:
    torch.manual_seed(0)
    rnn = getattr(nn, cell)(4, 5, num_layers=2, batch_first=True, bidirectional=True)
    agrees(nn.Sequential(nn.Embedding(11, 4), nn.Tanh(), rnn), torch.randint(11, (3, 6)))


def random_layers(draw: random.Random, channels: int, steps: int) -> Any:
    """Layers over time for x (B, channels, steps), now and then with an end that has none.

    The first says that there is time; a norm alone takes (B, channels) as well.
    """
    parts: list[Any] = [nn.Conv1d(channels, channels, 1)]
    for _ in range(draw.randint(1, 5)):
        size = draw.randint(1, min(3, steps))
        pad = draw.choice(["same", "valid", 0, 1])
        part: Any
        match draw.choice(["conv", "conv", "pool", "norm", "act", "act", "linear", "layer norm"]):
            case "conv":
                groups = draw.choice([g for g in (1, 2, 3) if channels % g == 0])
                out = groups * draw.randint(1, 4)
                stride = 1 if pad == "same" else draw.randint(1, 2)
                mode = dict(padding=pad, stride=stride, groups=groups, bias=draw.random() < 0.7)
                part = nn.Conv1d(channels, out, size, dilation=draw.choice([1, 2]), **mode)
            case "pool":
                padding = draw.randint(0, size // 2)
                if draw.random() < 0.5:
                    part = nn.MaxPool1d(size, draw.choice([None, 1, 2]), padding)
                else:
                    counts = draw.random() < 0.5
                    part = nn.AvgPool1d(size, draw.choice([None, 1, 2]), padding, False, counts)
            case "norm":
                part = nn.BatchNorm1d(channels)
                part.running_mean.uniform_(-1, 1), part.running_var.uniform_(0.5, 2)
            case "linear":
                part = nn.Linear(steps, draw.randint(1, 9))
            case "layer norm":
                part = nn.LayerNorm(steps)
            case _:
                part = draw.choice([nn.ReLU(), nn.Tanh(), nn.Dropout(), nn.Softmax(1)])
        try:
            channels, steps = part(torch.zeros(2, channels, steps)).shape[1:]
        except RuntimeError:  # fewer steps than its window has
            continue
        parts.append(part)
    if draw.random() < 0.5:
        if draw.random() < 0.5:
            parts.append(draw.choice([nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d])(1))
            steps = 1
        if draw.random() < 0.7:
            parts += [
                nn.Flatten(),
                nn.BatchNorm1d(channels * steps),
                nn.Linear(channels * steps, 3),
            ]
    elif draw.random() < 0.5:
        parts.append(getattr(nn, draw.choice(["LSTM", "GRU", "RNN"]))(steps, 5, batch_first=True))
    return parts


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch on even windows
@pytest.mark.parametrize("seed", seeds(100))
def test_random_models(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, T = draw.randint(1, 6), draw.randint(1, 20)
    front = [nn.Embedding(11, T)] if draw.random() < 0.2 else []
    with torch.no_grad():
        layers = random_layers(draw, channels, T)
    x = torch.randint(11, (3, channels)) if front else torch.randn(3, channels, T)
    half = len(layers) // 2
    model = nn.Sequential(*front, nn.Sequential(*layers[:half]), *layers[half:])
    agrees(model, x)


def test_lengths_are_of_time() -> None:
    model = from_torch(nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU()).eval())
    x = np.zeros((2, 3, 9), np.float32)
    assert model(x).shape == (2, 4, 8)
    with pytest.raises(ValueError, match="'0.transposed' exchanges time and features"):
        model(x, [3, 9])
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 9\), expected \(B, 3, T\)"):
        model(np.zeros((2, 4, 9), np.float32))
    with pytest.raises(ValueError, match="can't stream"):
        model.stream()


def test_what_has_no_step_is_listed() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 4, 2, padding=1, padding_mode="circular"),
        nn.MaxPool1d(2, ceil_mode=True),
        nn.LSTM(4, 5),
        nn.Softmax(0),
        nn.Flatten(0),
        nn.LayerNorm((4, 5)),
        nn.AdaptiveAvgPool1d(3),
        nn.Sequential(nn.Conv2d(1, 2, 3)),
        nn.Softplus(threshold=1.0),
        nn.LSTM(5, 6),
    )
    with pytest.raises(ValueError) as error:
        from_torch(model)
    for part in (
        "0 (Conv1d): padding_mode 'circular'",
        "1 (MaxPool1d): ceil_mode",
        "2 (LSTM): gives a tuple",
        "3 (Softmax): dim 0",
        "4 (Flatten): start_dim",
        "5 (LayerNorm): goes over 2 axes",
        "6 (AdaptiveAvgPool1d): output_size 3",
        "7.0 (Conv2d): no such step",
        "8 (Softplus): threshold 1.0",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="expected batch_first=True"):
        from_torch(nn.Sequential(nn.Embedding(3, 4), nn.LSTM(4, 5, num_layers=2), nn.LSTM(5, 5)))


def test_hooks_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    from_torch(model)
    model[1].register_forward_hook(lambda module, x, y: 2 * y)
    with pytest.raises(ValueError, match=r"1 \(Sequential\): has a hook"):
        from_torch(model)


def test_a_lone_recurrent_layer_is_a_module() -> None:
    rnn = nn.LSTM(4, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), rnn)
    for ours in (from_torch(nn.Sequential(rnn)), from_torch(model, "1")):
        assert isinstance(ours, cylstm.LSTM) and not ours.batch_first
    with pytest.raises(ValueError, match=r"0 \(Conv2d\): no such step.*has its '1' alone"):
        from_torch(model)
