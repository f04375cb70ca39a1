"""cylstm itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs
from bench.problem import Problem


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

    def _lstm(self, p: Problem) -> Any:
        import cylstm

        s = p.shape
        lstm = cylstm.LSTM(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            proj_size=s.proj_size,
            dtype=p.x.dtype,
        )
        lstm.load_state_dict(p.weights)
        return lstm

    def forward(self, p: Problem) -> list[Call]:
        lstm, states, threads = self._lstm(p), (p.h_0, p.c_0), self.threads
        y = lstm(p.x, states, threads=threads)[0]
        last: list[Any] = []

        def run() -> None:
            last[:] = lstm(p.x, states, threads=threads, out=y)

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y, "h_n": h_n, "c_n": c_n}

        return [Call("lstm(x, out=y)", run, read)]

    def step(self, p: Problem) -> list[Call]:
        N = p.shape.B if p.shape.B > 1 else None  # one stream needs no batch axis
        stream = self._lstm(p).stream(N, threads=self.threads)
        x = p.x[0] if N else p.x[0, 0]
        y = np.empty((*x.shape[:-1], p.shape.P), x.dtype)
        stream.state = (p.h_0, p.c_0) if N else (p.h_0[:, 0], p.c_0[:, 0])

        def run() -> None:
            stream.step(x, out=y)

        def read() -> Outputs:
            h_n, c_n = (a.reshape(len(a), p.shape.B, -1) for a in stream.state)
            return {"y": y.reshape(1, p.shape.B, -1), "h_n": h_n, "c_n": c_n}

        return [Call("stream.step(x, out)", run, read)]

    def training(self, p: Problem) -> list[Call]:
        import cylstm

        lstm, states, threads = self._lstm(p), (p.h_0, p.c_0), self.threads
        adam = cylstm.optim.Adam(lstm, lr=LEARNING_RATE, eps=ADAM_EPS)
        last: list[Any] = []

        def run() -> None:
            tape = lstm.forward(p.x, states, threads=threads)
            grads = tape.backward(p.dy, threads=threads)
            adam.step(grads, threads=threads)
            last[:] = [tape.y, grads.weights]

        def read() -> Outputs:
            y, gradients = last
            return {"y": y, **{"d " + k: g for k, g in gradients.items()}, **lstm.state_dict()}

        return [Call("forward, backward, Adam", run, read)]
