"""cylstm in a PyTorch model: an nn.Module with the arguments, parameters and results of nn.LSTM.

A state dict of either fits the other, autograd runs through it, and any torch optimiser trains it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import cylstm


class _Run(torch.autograd.Function):  # type: ignore[misc]
    """One call: cylstm's tape is what the backward pass needs."""

    @staticmethod
    def forward(
        ctx: Any, lstm: cylstm.LSTM, train: bool, x: Tensor, h_0: Any, c_0: Any, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        states = None if h_0 is None else (h_0.detach().numpy(), c_0.detach().numpy())
        ctx.tape = lstm.forward(x.detach().numpy(), states, train=train)
        # copies, because PyTorch may write into them and the tape may not change
        return tuple(torch.tensor(a) for a in (ctx.tape.y, ctx.tape.h_n, ctx.tape.c_n))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_n: Tensor, dc_n: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        grads = ctx.tape.backward(dy.numpy(), dh_n.numpy(), dc_n.numpy(), need_x=needed[0])
        arrays = (grads.x, grads.h_0, grads.c_0, *grads.weights.values())
        found = (torch.from_numpy(a) if n else None for a, n in zip(arrays, needed, strict=True))
        return None, None, *found


class LSTM(torch.nn.Module):  # type: ignore[misc]
    """torch.nn.LSTM on cylstm, for tensors on the CPU, without packed sequences.

    The parameters are the module's, as always in PyTorch; every call hands them to `self.lstm`,
    because nothing tells whether somebody changed them. That is a copy of the weights, small
    beside a sequence. To step or serve a trained model, use `self.lstm` and no torch at all.
    """

    def __init__(self, *args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> None:
        super().__init__()
        self.lstm = cylstm.LSTM(*args, dtype=str(dtype).removeprefix("torch."), **kwargs)
        for name, array in self.lstm.state_dict().items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))

    def forward(
        self, x: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """y, (h_n, c_n) of x (T, B, I), as torch.nn.LSTM."""
        self.lstm.load_state_dict(self.state_dict())
        h_0, c_0 = states or (None, None)
        y, h_n, c_n = _Run.apply(self.lstm, self.training, x, h_0, c_0, *self.parameters())
        return y, (h_n, c_n)
