"""PyTorch, with oneDNN and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs, Unsupported
from bench.problem import Array, Problem, named_states


class Torch(Engine):
    name = "torch"
    package = "torch"

    def _net(self, p: Problem) -> Any:
        import torch

        s = p.shape
        if not s.reset_after:
            raise Unsupported("no reset before the product")
        net = getattr(torch.nn, s.kind)(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            dtype=getattr(torch, str(p.x.dtype)),
            **({"proj_size": s.proj_size} if s.proj_size else {}),
        )
        net.load_state_dict({k: torch.tensor(v) for k, v in p.weights.items()})
        return net

    def _paths(self, p: Problem) -> list[bool]:
        """With oneDNN and without: it takes LSTMs alone, no projection and no float64, nor always
        wins."""
        s = p.shape
        taken = s.kind == "LSTM" and not s.proj_size and p.x.dtype == np.float32
        return [True, False] if taken else [False]

    def _tensor(self, array: Array) -> Any:
        """An input, as the network takes it."""
        import torch

        return torch.tensor(array)

    def _states(self, p: Problem) -> Any:
        states = tuple(self._tensor(a) for a in p.states.values())
        return states if len(states) > 1 else states[0]

    @staticmethod
    def _read(last: list[Any]) -> Outputs:
        wide = {"y": last[0], **named_states(last[1])}
        return {
            name: (a if a.is_floating_point() and a.element_size() > 2 else a.float()).numpy()
            for name, a in wide.items()
        }

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
        net = self._net(p).eval()
        x, states = self._tensor(p.x), self._states(p)
        last: list[Any] = []

        def run() -> None:
            last[:] = net(x, states)

        return [
            Call(self._label(p, path), run, lambda: self._read(last), self._around(path))
            for path in self._paths(p)
        ]

    @staticmethod
    def _label(p: Problem, onednn: bool) -> str:
        return f"{p.shape.kind}, {'oneDNN' if onednn else 'native'}"

    def step(self, p: Problem) -> list[Call]:
        return [self._net_step(p, path) for path in self._paths(p)] + self._cell_step(p)

    def _net_step(self, p: Problem, onednn: bool) -> Call:
        net = self._net(p).eval()
        x = self._tensor(p.x)
        last: list[Any] = [None, self._states(p)]

        def run() -> None:
            last[:] = net(x, last[1])

        return Call(self._label(p, onednn), run, lambda: self._read(last), self._around(onednn))

    def _cell_step(self, p: Problem) -> list[Call]:
        import torch

        s = p.shape
        if s.num_layers > 1 or s.D > 1 or s.proj_size:
            return []
        kind = getattr(torch.nn, f"{s.kind}Cell")
        cell = kind(s.I, s.H, dtype=getattr(torch, str(p.x.dtype))).eval()
        cell.load_state_dict({k[:-3]: torch.tensor(v) for k, v in p.weights.items()})
        x = torch.tensor(p.x[0])
        states = tuple(torch.tensor(a[0]) for a in p.states.values())
        last: list[Any] = [states if len(states) > 1 else states[0]]

        def run() -> None:
            last[0] = cell(x, last[0])

        def read() -> Outputs:
            found = {name: a.numpy()[None] for name, a in named_states(last[0]).items()}
            return {"y": found["h_n"], **found}

        return [Call(f"{s.kind}Cell", run, read, self._around(True))]

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

        net = self._net(p).train()
        adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS, **{kind: True})
        x = torch.tensor(p.x, requires_grad=True)  # a layer below would ask for it
        states = self._states(p)
        dy = torch.tensor(p.dy)
        last: list[Any] = []

        def run() -> None:
            x.grad = None
            adam.zero_grad(set_to_none=True)
            y, _ = net(x, states)
            y.backward(dy)
            adam.step()
            last[:] = [y]

        def read() -> Outputs:
            found = {"y": last[0].detach().numpy()}
            for name, weight in net.named_parameters():
                found["d " + name] = weight.grad.numpy()
                found[name] = weight.detach().numpy()
            return found

        label = f"{'oneDNN' if onednn else 'native'}, {kind} Adam"
        return Call(label, run, read, self._around(onednn, training=True))
