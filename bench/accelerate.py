"""cylstm.torch.accelerate against torch alone: a recurrent layer and a Linear in one model.

    python -m bench.accelerate [--cell LSTM] [--threads 1] [--steps 50] [--batch 1] [--seconds 10]

Times are the least of calls that take turns, so that a busy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from cylstm.torch import accelerate


class Model(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, cell: str) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, cell)(64, 128, 2)
        self.head = torch.nn.Linear(128, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.rnn(x)[0])


def infer(model: Any, x: Any) -> None:
    with torch.no_grad():
        model(x)


def train(model: Any, x: Any) -> None:
    """Forward and backward."""
    model.zero_grad()
    model(x).sum().backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=["LSTM", "GRU", "RNN"], default="LSTM")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    theirs = Model(given.cell)
    ours = accelerate(theirs)
    x = torch.randn(given.steps, given.batch, 64)
    for name, run in (("inference", infer), ("forward and backward", train)):
        best = turns(run, [theirs, ours], x, given.seconds)
        print(
            f"{name:22} torch {best[0] * 1e6:8.0f} us   cylstm {best[1] * 1e6:8.0f} us   "
            f"{best[0] / best[1]:.2f} times"
        )
    worst = max(
        float((a.grad - b.grad).abs().max())
        for a, b in zip(theirs.parameters(), ours.parameters(), strict=True)
    )
    print(f"largest difference of a gradient {worst:.1e}")


def turns(
    run: Callable[[Any, Any], None], models: list[Any], x: Any, seconds: float
) -> list[float]:
    """The least seconds of a call of each model."""
    best = [float("inf")] * len(models)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, model in enumerate(models):
            run(model, x)  # what another left in the caches is its own affair
            began = time.perf_counter()
            run(model, x)
            best[number] = min(best[number], time.perf_counter() - began)
    return best


if __name__ == "__main__":
    main()
