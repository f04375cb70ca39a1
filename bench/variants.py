"""Variants of the cells, and the other cells, beside the plain LSTM of the same sizes, in turns.

python -m bench.variants                 # a table; --strict: exit with 1 where a limit is missed
python -m bench.variants --only peephole,GRU --modes training --seconds 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cylstm
from bench.measure import settle
from bench.problem import named_states
from bench.report import geomean, seconds

SMALL = 64  # hidden units, below which variants may cost a little more
SHAPES = [
    (50, 1, 40, 40),
    (100, 1, 128, 128),
    (50, 8, 128, 128),
    (20, 32, 128, 128),
    (10, 32, 256, 256),
]


class Variant(NamedTuple):
    """A class, its arguments, and at most how many times the plain LSTM's time it may take."""

    cell: type
    options: dict[str, Any]
    limit: float
    limit_small: float | None = None  # where H < SMALL; None: there is none


def of_lstm(**options: Any) -> Variant:
    return Variant(cylstm.LSTM, options, 1.10, 1.15)


VARIANTS = {
    "peephole": of_lstm(peephole=True),
    "f = 1 - i": of_lstm(coupled="f=1-i"),
    "i = 1 - f": of_lstm(coupled="i=1-f"),
    "clip": of_lstm(clip=2.0),
    "cell clip": of_lstm(cell_clip=2.0),
    "hard sigmoid": of_lstm(activations=("hard_sigmoid_keras2", "tanh", "tanh")),
    "softsign": of_lstm(activations=("sigmoid", "softsign", "softsign")),
    "elu and softplus": of_lstm(activations=("sigmoid", "elu", "softplus")),
    "layer norm": Variant(cylstm.LSTM, {"layer_norm": "litert"}, 1.40, 1.40),
    "layer norm Haste": Variant(cylstm.LSTM, {"layer_norm": "haste"}, 1.40, 1.40),
    "zoneout": Variant(cylstm.LSTM, {"zoneout": 0.1}, 1.40),
    "GRU": Variant(cylstm.GRU, {}, 0.85),
    "GRU reset before": Variant(cylstm.GRU, {"reset_after": False}, 0.95),
    "RNN": Variant(cylstm.RNN, {}, 0.40),
}


def call_of(cell: type, options: dict[str, Any], mode: str, shape: tuple[int, ...]) -> Any:
    """A function that runs forward, or forward and backward, once."""
    T, B, I, H = shape
    rng = np.random.default_rng(0)
    net: Any = cell(I, H, seed=0, **options)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    dy = rng.standard_normal((T, B, H)).astype(np.float32)
    y, last = net(x, threads=1)
    states = tuple(
        rng.standard_normal(a.shape).astype(a.dtype) for a in named_states(last).values()
    )
    given = states if len(states) > 1 else states[0]
    if mode == "forward":
        return lambda: net(x, given, threads=1, out=y)
    return lambda: net.forward(x, given, threads=1).backward(dy, threads=1)


def turns(calls: list[Callable[[], object]], duration: float) -> list[float]:
    """The least time of each call, one after the other for so many seconds."""
    best = [float("inf")] * len(calls)
    settle()
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.variants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"some of {', '.join(VARIANTS)}")
    parser.add_argument("--modes", default="forward,training", help="forward,training")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line (1)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a limit is missed")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(VARIANTS)
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        parser.error(f"no such variant: {', '.join(unknown)}; there are {', '.join(VARIANTS)}")

    print(f"{cylstm.show_config()['isa']}, one thread, times the plain LSTM's; ! above the limit")
    missed = 0
    for mode in options.modes.split(","):
        print(f"\n| {mode} | LSTM | {' | '.join(chosen)} |")
        print("|---|--:|" + "--:|" * len(chosen))
        ratios: dict[str, list[float]] = {name: [] for name in chosen}
        for shape in SHAPES:
            calls = [call_of(cylstm.LSTM, {}, mode, shape)]
            calls += [
                call_of(v.cell, v.options, mode, shape) for v in map(VARIANTS.get, chosen) if v
            ]
            plain, *times = turns(calls, options.seconds * len(calls))
            cells = []
            for name, taken in zip(chosen, times, strict=True):
                variant, ratio = VARIANTS[name], taken / plain
                limit = variant.limit_small if shape[-1] < SMALL else variant.limit
                over = limit is not None and ratio > limit
                missed += over
                ratios[name].append(ratio)
                cells.append(f"{ratio:.2f}{' !' if over else ''}")
            print(
                f"| {', '.join(map(str, shape))} | {seconds(plain)} | {' | '.join(cells)} |",
                flush=True,
            )
        means = " | ".join(f"{geomean(ratios[name]):.2f}" for name in chosen)
        print(f"| geometric mean | | {means} |")
    return int(options.strict and missed > 0)


if __name__ == "__main__":
    sys.exit(main())
