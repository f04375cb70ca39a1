"""Data-parallel training on Dask, whose result does not depend on the cluster.

    python examples/dask_training.py [--parts 8] [--workers 2] [--steps 60]

The data are in parts, which stay where they are. At each step every part gives its share of the
gradient, a worker that has a part being given the weights, and the shares are summed in pairs, in a
fixed tree. So the sum, hence the training, has the same bits for a given number of parts, however
many workers there are and whichever of them die: a lost share is computed again, and counted once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

import cylstm
from cylstm import losses, optim

Array = NDArray[Any]
Part = tuple[Array, Array, Array]  # x (T, B, I), lengths (B,), the answers (B,)
Share = tuple[float, list[dict[str, Array]]]  # of the loss, and of the gradients of each module


def share_of(part: Part, modules: Sequence[Any], total: int) -> Share:
    """A part's share of the mean loss over `total` sequences, and of its gradients."""
    lstm, head = modules
    x, lengths, answers = part
    states = lstm.forward(x, lengths=lengths, threads=1)
    logits = head.forward(states.h_n[-1], threads=1)
    loss, dlogits = losses.cross_entropy(logits.y, answers)
    weight = len(answers) / total
    of_head = logits.backward(dlogits * np.float32(weight), threads=1)
    of_lstm = states.backward(dh_n=of_head.x[None], need_x=False, threads=1)
    return float(loss) * weight, [dict(of_lstm.weights), dict(of_head.weights)]


def added(a: Share, b: Share) -> Share:
    """Two shares as one."""
    grads = [{name: x[name] + y[name] for name in x} for x, y in zip(a[1], b[1])]
    return a[0] + b[0], grads


def tree(shares: list[Any], add: Callable[[Any, Any], Any]) -> Any:
    """The sum in pairs, ((0 + 1) + (2 + 3)) + ...: one order, in whatever order they are done."""
    while len(shares) > 1:
        pairs = [add(a, b) for a, b in zip(shares[::2], shares[1::2])]
        shares = pairs + shares[2 * len(pairs) :]
    return shares[0]


def train(
    parts: Sequence[Any],
    sizes: Sequence[int],
    modules: Sequence[Any],
    steps: int,
    lr: float = 1e-2,
    report: Callable[[int, float], Any] = lambda step, loss: None,
) -> float:
    """Train modules in place on parts of the data, and return the last loss.

    Parameters
    ----------
    parts : sequence of Part, of what gives one lazily, or of futures of a cluster
    sizes : sequence of int, the sequences in each
    modules : [LSTM, Linear]
    """
    optimizer = optim.Adam(modules, lr=lr)
    task, add = dask.delayed(share_of, pure=False), dask.delayed(added, pure=False)
    loss = float("nan")
    for step in range(steps):
        held = dask.delayed(list(modules), traverse=False)  # once for a worker, not for a part
        shares = [task(part, held, sum(sizes)) for part in parts]
        loss, grads = tree(shares, add).compute()
        optim.clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
        report(step, loss)
    return loss


def draw(seed: int, count: int = 40, steps: int = 16) -> Part:
    """Symbols one-hot, and which of the two comes more often."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, steps + 1, count)
    symbols = rng.integers(0, 2, (steps, count))
    ones = (symbols * (np.arange(steps)[:, None] < lengths)).sum(0)
    return np.eye(2, dtype=np.float32)[symbols], lengths, (2 * ones > lengths).astype(int)


def new_modules() -> list[Any]:
    return [cylstm.LSTM(2, 24, seed=0), cylstm.Linear(24, 2, seed=1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Data-parallel training on Dask.")
    for name, default in (("parts", 8), ("workers", 2), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    from distributed import Client, LocalCluster

    def report(step: int, loss: float) -> None:
        if step % 10 == 0:
            print(f"step {step}: loss {loss:.4f}", flush=True)

    options = {"n_workers": arguments.workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        parts = client.map(draw, range(arguments.parts), pure=False)
        sizes = [40] * arguments.parts
        loss = train(parts, sizes, new_modules(), arguments.steps, report=report)
    print(f"loss after {arguments.steps} steps: {loss!r}")


if __name__ == "__main__":
    main()
