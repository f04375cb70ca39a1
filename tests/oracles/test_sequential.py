"""cylstm.steps against the layers of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cylstm import steps

THEIRS: dict[str, Any] = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "sigmoid": nn.Sigmoid(),
    "hard_sigmoid_keras3": nn.Hardsigmoid(),
    "tanh": nn.Tanh(),
    "softmax": nn.Softmax(-1),
    "log_softmax": nn.LogSoftmax(-1),
    "softplus": nn.Softplus(threshold=1000),
    "softsign": nn.Softsign(),
    "silu": nn.SiLU(),
    "exponential": torch.exp,
    "hard_sigmoid_keras2": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}


def agrees(step: Any, theirs: Any, x: torch.Tensor, channels_first: bool = False) -> None:
    with torch.no_grad():
        want = theirs(x.transpose(1, 2)).transpose(1, 2) if channels_first else theirs(x)
    np.testing.assert_allclose(step(x.numpy()), want.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", steps.ACTIVATIONS)
def test_activations(name: str) -> None:
    x = 4 * torch.randn(3, 5, 7, dtype=torch.float64)
    agrees(steps.Activation(name), THEIRS[name], x)


@pytest.mark.parametrize("padding", [0, 2, "same"])
@pytest.mark.parametrize("stride, dilation, groups", [(1, 1, 1), (2, 2, 3), (1, 3, 1)])
def test_convolution(padding: Any, stride: int, dilation: int, groups: int) -> None:
    if padding == "same":
        stride = 1
    theirs = nn.Conv1d(6, 9, 3, stride, padding, dilation, groups, dtype=torch.float64)
    ours = steps.Conv1d(
        theirs.weight.detach().numpy(),
        theirs.bias.detach().numpy(),
        stride,
        padding if padding == "same" else (padding, padding),
        dilation,
        groups,
    )
    agrees(ours, theirs, torch.randn(2, 17, 6, dtype=torch.float64), channels_first=True)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("size, stride", [(3, None), (2, 1), (3, 2)])
def test_pools(padding: int, size: int, stride: Any) -> None:
    x = torch.randn(2, 17, 6, dtype=torch.float64)
    both = (padding, padding)
    agrees(steps.Pool("max", size, stride, both), nn.MaxPool1d(size, stride, padding), x, True)
    theirs = nn.AvgPool1d(size, stride, padding)
    agrees(steps.Pool("average", size, stride, both, True), theirs, x, True)
    theirs = nn.AvgPool1d(size, stride, padding, count_include_pad=False)
    agrees(steps.Pool("average", size, stride, both), theirs, x, True)


def test_norms() -> None:
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    layer = nn.LayerNorm(7, eps=1e-3, dtype=torch.float64)
    batch = nn.BatchNorm1d(7, dtype=torch.float64).eval()
    with torch.no_grad():
        for p in (*layer.parameters(), *batch.parameters(), *batch.buffers()):
            if p.is_floating_point():
                p.uniform_(0.5, 2)
    agrees(steps.LayerNorm(layer.weight.detach(), layer.bias.detach(), 1e-3), layer, x)
    agrees(
        steps.BatchNorm(
            batch.running_mean, batch.running_var, batch.weight.detach(), batch.bias.detach()
        ),
        batch,
        x,
        channels_first=True,
    )
