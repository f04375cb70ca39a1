"""cylstm itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs
from bench.problem import Problem, named_states


class Cylstm(Engine):
    name = "cylstm"
    package = "cylstm"
    needs = ("cylstm",)

    @classmethod
    def version(cls) -> str | None:
        """Of the package that would be imported: a build in place has no metadata."""
        try:
            import cylstm._core
        except ImportError:
            return None
        return str(cylstm.__version__)

    def _net(self, p: Problem) -> Any:
        import cylstm

        s = p.shape
        special: dict[str, Any] = {}
        if s.kind == "LSTM":
            special["proj_size"] = s.proj_size
        if s.kind == "GRU":
            special["reset_after"] = s.reset_after
        net = getattr(cylstm, s.kind)(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            dtype=p.x.dtype,
            **special,
        )
        net.load_state_dict(p.weights)
        return net

    def forward(self, p: Problem) -> list[Call]:
        net, states, threads = self._net(p), p.given, self.threads
        y = net(p.x, states, threads=threads)[0]
        last: list[Any] = []

        def run() -> None:
            last[:] = net(p.x, states, threads=threads, out=y)

        return [Call("net(x, out=y)", run, lambda: {"y": last[0], **named_states(last[1])})]

    def step(self, p: Problem) -> list[Call]:
        N = p.shape.B if p.shape.B > 1 else None  # one stream needs no batch axis
        stream = self._net(p).stream(N, threads=self.threads)
        x = p.x[0] if N else p.x[0, 0]
        y = np.empty((*x.shape[:-1], p.shape.P), x.dtype)
        states = tuple(a if N else a[:, 0] for a in p.states.values())
        stream.state = states if len(states) > 1 else states[0]

        def run() -> None:
            stream.step(x, out=y)

        def read() -> Outputs:
            states = named_states(stream.state)
            shaped = {name: a.reshape(len(a), p.shape.B, -1) for name, a in states.items()}
            return {"y": y.reshape(1, p.shape.B, -1), **shaped}

        return [Call("stream.step(x, out)", run, read)]

    def training(self, p: Problem) -> list[Call]:
        import cylstm

        net, states, threads = self._net(p), p.given, self.threads
        adam = cylstm.optim.Adam(net, lr=LEARNING_RATE, eps=ADAM_EPS)
        last: list[Any] = []

        def run() -> None:
            last.clear()  # torch's engine releases its gradients too
            tape = net.forward(p.x, states, threads=threads)
            grads = tape.backward(p.dy, threads=threads)
            adam.step(grads, threads=threads)
            last[:] = [tape.y, grads.weights]

        def read() -> Outputs:
            y, gradients = last
            return {"y": y, **{"d " + k: g for k, g in gradients.items()}, **net.state_dict()}

        return [Call("forward, backward, Adam", run, read)]
