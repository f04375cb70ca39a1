"""PyTorch, with oneDNN and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs
from bench.problem import Problem


class Torch(Engine):
    name = "torch"
    package = "torch"

    def _lstm(self, p: Problem) -> Any:
        import torch

        s = p.shape
        lstm = torch.nn.LSTM(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            proj_size=s.proj_size,
            dtype=getattr(torch, str(p.x.dtype)),
        )
        lstm.load_state_dict({k: torch.tensor(v) for k, v in p.weights.items()})
        return lstm

    def _paths(self, p: Problem) -> list[bool]:
        """With oneDNN and without: it takes no projection and no float64, nor always wins."""
        return [False] if p.x.dtype != np.float32 or p.shape.proj_size else [True, False]

    def _around(
        self, onednn: bool, training: bool = False
    ) -> Callable[[], contextlib.AbstractContextManager[object]]:
        import torch

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            torch.set_num_threads(self.threads)
            torch.backends.mkldnn.enabled = onednn
            with torch.inference_mode(not training):
                yield
            torch.backends.mkldnn.enabled = True

        return around

    def forward(self, p: Problem) -> list[Call]:
        import torch

        lstm = self._lstm(p).eval()
        x, states = torch.tensor(p.x), (torch.tensor(p.h_0), torch.tensor(p.c_0))
        last: list[Any] = []

        def run() -> None:
            last[:] = lstm(x, states)

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y.numpy(), "h_n": h_n.numpy(), "c_n": c_n.numpy()}

        return [
            Call("LSTM, oneDNN" if path else "LSTM, native", run, read, self._around(path))
            for path in self._paths(p)
        ]

    def step(self, p: Problem) -> list[Call]:
        return [self._lstm_step(p, path) for path in self._paths(p)] + self._cell_step(p)

    def _lstm_step(self, p: Problem, onednn: bool) -> Call:
        import torch

        lstm = self._lstm(p).eval()
        x = torch.tensor(p.x)
        last: list[Any] = [None, (torch.tensor(p.h_0), torch.tensor(p.c_0))]

        def run() -> None:
            last[:] = lstm(x, last[1])

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y.numpy(), "h_n": h_n.numpy(), "c_n": c_n.numpy()}

        label = "LSTM, oneDNN" if onednn else "LSTM, native"
        return Call(label, run, read, self._around(onednn))

    def _cell_step(self, p: Problem) -> list[Call]:
        import torch

        s = p.shape
        if s.num_layers > 1 or s.D > 1 or s.proj_size:
            return []
        cell = torch.nn.LSTMCell(s.I, s.H, dtype=getattr(torch, str(p.x.dtype))).eval()
        cell.load_state_dict({k[:-3]: torch.tensor(v) for k, v in p.weights.items()})
        x = torch.tensor(p.x[0])
        last: list[Any] = [torch.tensor(p.h_0[0]), torch.tensor(p.c_0[0])]

        def run() -> None:
            last[:] = cell(x, last)

        def read() -> Outputs:
            h_n, c_n = (a.numpy()[None] for a in last)
            return {"y": h_n, "h_n": h_n, "c_n": c_n}

        return [Call("LSTMCell", run, read, self._around(True))]

    def training(self, p: Problem) -> list[Call]:
        # fused and foreach Adam differ little beside the network: each is tried on one path.
        first, *others = self._paths(p)
        return [
            self._training(p, first, "fused"),
            self._training(p, first, "foreach"),
            *(self._training(p, path, "fused") for path in others),
        ]

    def _training(self, p: Problem, onednn: bool, kind: str) -> Call:
        import torch

        lstm = self._lstm(p).train()
        adam = torch.optim.Adam(lstm.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS, **{kind: True})
        x = torch.tensor(p.x, requires_grad=True)  # a layer below would ask for it
        states = torch.tensor(p.h_0), torch.tensor(p.c_0)
        dy = torch.tensor(p.dy)
        last: list[Any] = []

        def run() -> None:
            x.grad = None
            adam.zero_grad(set_to_none=True)
            y, _ = lstm(x, states)
            y.backward(dy)
            adam.step()
            last[:] = [y]

        def read() -> Outputs:
            found = {"y": last[0].detach().numpy()}
            for name, weight in lstm.named_parameters():
                found["d " + name] = weight.grad.numpy()
                found[name] = weight.detach().numpy()
            return found

        label = f"{'oneDNN' if onednn else 'native'}, {kind} Adam"
        return Call(label, run, read, self._around(onednn, training=True))
