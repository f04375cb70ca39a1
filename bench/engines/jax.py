"""JAX."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.engines.base import ADAM_EPS, LEARNING_RATE, Call, Engine, Outputs, need_lstm
from bench.problem import Problem, suffixes


class Jax(Engine):
    """A jitted `lax.scan` over merged input products, the way LSTMs are written in JAX."""

    name = "jax"
    package = "jax"
    needs = ("jax", "jaxlib")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ["NPROC"] = str(threads)  # XLA reads it when its backend starts

    @staticmethod
    def _lstm(p: Problem) -> Callable[..., Any]:
        """lstm(weights, x, h_0, c_0) -> y, h_n, c_n, traceable."""
        import jax
        from jax import numpy as jnp

        need_lstm(p)
        if p.x.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)

        def direction(w: dict[str, Any], suffix: str, x: Any, h: Any, c: Any) -> Any:
            bias = w["bias_ih" + suffix] + w["bias_hh" + suffix]
            w_hr = w.get("weight_hr" + suffix)

            def step(state: Any, product: Any) -> Any:
                h, c = state
                i, f, g, o = jnp.split(product + h @ w["weight_hh" + suffix].T, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                h = h if w_hr is None else h @ w_hr.T
                return (h, c), h

            products = x @ w["weight_ih" + suffix].T + bias
            (h, c), y = jax.lax.scan(step, (h, c), products, reverse="reverse" in suffix)
            return y, h, c

        def lstm(w: dict[str, Any], x: Any, h_0: Any, c_0: Any) -> Any:
            states: list[Any] = []
            for _, directions in suffixes(p.shape):
                ys = []
                for suffix in directions:
                    y, *state = direction(w, suffix, x, h_0[len(states)], c_0[len(states)])
                    ys.append(y)
                    states.append(state)
                x = jnp.concatenate(ys, axis=-1)
            h_n, c_n = (jnp.stack(parts) for parts in zip(*states, strict=True))
            return x, h_n, c_n

        return lstm

    def _call(self, p: Problem, feed_back: bool) -> list[Call]:
        import jax

        lstm = jax.jit(self._lstm(p))
        weights, x, *states = jax.device_put((p.weights, p.x, p.h_0, p.c_0))
        last: list[Any] = []

        def run() -> None:
            last[:] = jax.block_until_ready(lstm(weights, x, *states))
            if feed_back:
                states[:] = last[1:]

        def read() -> Outputs:
            return dict(zip(("y", "h_n", "c_n"), map(np.asarray, last), strict=True))

        return [Call("jit, scan", run, read)]

    def forward(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=False)

    def step(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=True)

    def training(self, p: Problem) -> list[Call]:
        import jax
        from jax import numpy as jnp

        lstm = self._lstm(p)

        @jax.jit
        def train(w: Any, m: Any, v: Any, t: Any, x: Any, dy: Any) -> Any:
            y, pull_back = jax.vjp(lambda w, x: lstm(w, x, p.h_0, p.c_0)[0], w, x)
            dw, dx = pull_back(dy)
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, dw)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, dw)
            rate, scale = LEARNING_RATE / (1 - 0.9**t), 1 / jnp.sqrt(1 - 0.999**t)
            w = jax.tree.map(
                lambda w, m, v: w - rate * m / (jnp.sqrt(v) * scale + ADAM_EPS), w, m, v
            )
            return (w, m, v, t), y, dw, dx

        zeros = {k: np.zeros_like(v) for k, v in p.weights.items()}
        state, x, dy = jax.device_put(((p.weights, zeros, zeros, np.float32(0)), p.x, p.dy))
        last: list[Any] = [state]

        def run() -> None:
            last[:] = jax.block_until_ready(train(*last[0], x, dy))

        def read() -> Outputs:
            (weights, *_), y, gradients, _ = last
            return {
                "y": np.asarray(y),
                **{"d " + k: np.asarray(v) for k, v in gradients.items()},
                **{k: np.asarray(v) for k, v in weights.items()},
            }

        return [Call("jit, scan, vjp", run, read)]
