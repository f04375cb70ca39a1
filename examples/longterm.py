"""What an LSTM was made for: sequences whose answer lies a thousand steps back.

    make longterm                           # a few minutes; or python examples/longterm.py --quick

Three tasks of the papers that introduced the LSTM and its forget gate, each with a plain recurrent
network beside it, and the reason for what is seen: how much of a gradient is left after so many
steps.

- Adding (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, experiment 4): two of
  T numbers are marked, the answer is their mean; at least T / 2 steps lie in between.
- Temporal order (the same, experiment 6a): two of T symbols are X or Y, far apart among noise; the
  answer is which came first and which second.
- Continual embedded Reber grammar (Gers et al. 2000, doi:10.1162/089976600300015015): an endless
  stream of strings, whose last symbol but one repeats the second. Nothing says where a string ends
  and the state is never reset, so the network has to forget by itself.

Trained with Adam on batches instead of online gradient descent, and with the biases of Tallec and
Ollivier (2018, arXiv:1804.11188), by which the gates start with time constants up to T.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import cylstm
from cylstm import losses, optim

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Array = NDArray[Any]
BATCH, UNITS, TEST = 50, 32, 2560  # the papers test on 2560 sequences
OUT = Path(__file__).with_suffix(".png")


# --- the tasks: inputs (T, B, I) and answers


def adding(rng: np.random.Generator, count: int, T: int) -> tuple[Array, Array]:
    x = np.zeros((T, count, 2), np.float32)
    x[:, :, 0] = rng.uniform(-1, 1, (T, count))
    first, second = rng.integers(0, 10, count), rng.integers(10, T // 2, count)
    rows = np.arange(count)
    x[first, rows, 1] = x[second, rows, 1] = 1
    return x, (0.5 + (x[first, rows, 0] + x[second, rows, 0]) / 4)[:, None]


def temporal_order(rng: np.random.Generator, count: int, T: int) -> tuple[Array, Array]:
    length = int(rng.integers(T, T + T // 10 + 1))
    symbols = rng.integers(2, 6, (length, count))
    symbols[0], symbols[-1] = 0, 1
    answer, rows = rng.integers(0, 4, count), np.arange(count)
    symbols[rng.integers(T // 10, T // 5 + 1, count), rows] = 6 + answer // 2
    symbols[rng.integers(T // 2, T * 6 // 10 + 1, count), rows] = 6 + answer % 2
    return np.eye(8, dtype=np.float32)[symbols], answer


class Task(NamedTuple):
    draw: Any
    inputs: int
    outputs: int
    loss: Any
    wrong: Any  # of outputs and answers: which are wrong, as the paper counts


TASKS = {
    "adding": Task(adding, 2, 1, losses.mse, lambda y, t: np.abs(y - t)[:, 0] > 0.04),
    "temporal order": Task(
        temporal_order, 8, 4, losses.cross_entropy, lambda y, t: y.argmax(1) != t
    ),
}


# --- networks


def make(cell: str, inputs: int, T: int, seed: int) -> Any:
    """An LSTM whose gates start with time constants from 1 to T, or a plain recurrent network."""
    if cell == "RNN":
        return cylstm.RNN(inputs, UNITS, seed=seed)
    lstm = cylstm.LSTM(inputs, UNITS, seed=seed)
    state = {name: array.copy() for name, array in lstm.state_dict().items()}
    forget = np.log(np.random.default_rng(seed).uniform(1, T - 1, UNITS))
    state["bias_hh_l0"][:] = 0
    state["bias_ih_l0"][:] = np.concatenate([-forget, forget, np.zeros(2 * UNITS)])
    lstm.load_state_dict(state, cast=True)
    return lstm


class Result(NamedTuple):
    sequences: int | None  # until solved; None: not within the budget
    wrong: float  # share of the test's sequences


def train(name: str, cell: str, T: int, seed: int, steps: int, bar: Any) -> Result:
    """Until none of the last 40 batches (2000 sequences) has more than 1 % wrong."""
    task, rng = TASKS[name], np.random.default_rng(seed)
    net, head = make(cell, task.inputs, T, seed), cylstm.Linear(UNITS, task.outputs, seed=seed + 1)
    optimizer = optim.Adam([net, head], lr=1e-2 if cell == "LSTM" else 1e-3)
    recent = [1.0] * 40
    solved = None
    for step in range(1, steps + 1):
        x, answer = task.draw(rng, BATCH, T)
        tape = net.forward(x)
        y = head.forward(tape.h_n[-1])
        _, dy = task.loss(y.y, answer)
        its_head = y.backward(dy)
        its_net = tape.backward(dh_n=its_head.x[None], need_x=False)
        optim.clip_grad_norm([its_net, its_head], 1.0)
        optimizer.step([its_net, its_head])
        recent[step % 40] = float(task.wrong(y.y, answer).mean())
        bar.update()
        if np.mean(recent) < 0.01:
            solved = step * BATCH
            break
    wrong = []
    for start in range(0, TEST, 256):
        x, answer = task.draw(rng, min(256, TEST - start), T)
        h_n = net(x)[1] if cell == "RNN" else net(x)[1][0]
        wrong.append(task.wrong(head(h_n[-1]), answer))
    bar.update(steps - step)
    return Result(solved, float(np.concatenate(wrong).mean()))


# --- continual embedded Reber grammar

SYMBOLS = "BTPSXVE"
GRAMMAR: list[dict[str, int]] = [
    {"T": 1, "P": 2},
    {"S": 1, "X": 3},
    {"T": 2, "V": 4},
    {"X": 2, "S": 5},
    {"P": 3, "V": 5},
    {"E": -1},
]


def reber(rng: np.random.Generator) -> str:
    node, text = 0, "B"
    while node >= 0:
        symbol = str(rng.choice(list(GRAMMAR[node])))
        text, node = text + symbol, GRAMMAR[node][symbol]
    return text


def stream_of_strings(rng: np.random.Generator, length: int) -> tuple[Array, Array]:
    """Symbols (length + 1,), and which of them are a string's last but one."""
    symbols: list[str] = []
    repeats: list[int] = []
    while len(symbols) <= length:
        branch = str(rng.choice(["T", "P"]))
        symbols += f"B{branch}{reber(rng)}{branch}E"
        repeats.append(len(symbols) - 2)
    marked = np.zeros(len(symbols), bool)
    marked[repeats] = True
    return np.array([SYMBOLS.index(s) for s in symbols[: length + 1]]), marked[: length + 1]


def continual(forgets: bool, seed: int, steps: int, bar: Any) -> tuple[list[float], float]:
    """The share of repeated symbols that are predicted, along a long test; and the last |c|."""
    rng = np.random.default_rng(seed)
    lstm, head = make("LSTM", 7, 20, seed), cylstm.Linear(UNITS, 7, seed=seed + 1)
    if not forgets:  # sigmoid(40) is 1, its derivative 0: the gate never moves
        state = {name: array.copy() for name, array in lstm.state_dict().items()}
        for name, array in state.items():
            array[UNITS : 2 * UNITS] = 40 if name == "bias_ih_l0" else 0
        lstm.load_state_dict(state)
    optimizer = optim.Adam([lstm, head], lr=5e-3)
    streams, block = 16, 50
    data = [stream_of_strings(rng, steps * block) for _ in range(streams)]
    symbols = np.stack([s for s, _ in data], 1)
    one_hot, states = np.eye(7, dtype=np.float32), None
    for step in range(steps):
        piece = symbols[step * block : (step + 1) * block + 1]
        tape = lstm.forward(one_hot[piece[:-1]], states)
        y = head.forward(tape.y)
        _, dy = losses.cross_entropy(y.y, piece[1:])
        its_head = y.backward(dy)
        its_lstm = tape.backward(its_head.x, need_x=False)
        optim.clip_grad_norm([its_lstm, its_head], 1.0)
        optimizer.step([its_lstm, its_head])
        states = tape.h_n, tape.c_n
        bar.update()
    test, marked = stream_of_strings(np.random.default_rng(seed + 1000), 40_000)
    y, (_, c_n) = lstm(one_hot[test[:-1]])
    right = (head(y).argmax(1) == test[1:])[marked[1:]]
    return [float(part.mean()) for part in np.array_split(right, 8)], float(np.abs(c_n).max())


# --- what is left of a gradient

LAGS = np.unique(np.logspace(0, 3, 16).astype(int))


def gradient_norms(cell: str) -> list[float]:
    """|dL/dh_0|, of L = a sum of h_T with random signs, after T steps of noise."""
    rng, found = np.random.default_rng(0), []
    net = {"RNN": cylstm.RNN, "GRU": cylstm.GRU}.get(cell, cylstm.LSTM)(4, UNITS, seed=0)
    if cell == "LSTM, gates open":
        net = make("LSTM", 4, 1000, 0)
    x = rng.standard_normal((1000, 8, 4)).astype(np.float32)
    dh_n = rng.choice([-1, 1], (1, 8, UNITS)).astype(np.float32)
    for lag in LAGS:
        grads = net.forward(x[-lag:]).backward(dh_n=dh_n, need_x=False)
        norms = np.linalg.norm(grads.h_0[0], axis=1)
        if cell.startswith("LSTM"):  # its state has two parts
            norms = np.hypot(norms, np.linalg.norm(grads.c_0[0], axis=1))
        found.append(float(norms.mean()))
    return found


# --- all of it

PAPER = {  # sequences that the LSTM of 1997 took, one at a time
    ("adding", 100): 74_000,
    ("adding", 500): 209_000,
    ("adding", 1000): 853_000,
    ("temporal order", 100): 31_390,
}
CELLS = ["RNN", "GRU", "LSTM", "LSTM, gates open"]
COLOURS = dict(zip(CELLS, ["#d99a1c", "#2a7f9e", "#e08aa0", "#c8325a"], strict=True))


def draw_figure(reber_curves: dict[str, list[float]], out: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for cell in CELLS:
        norms = np.maximum(gradient_norms(cell), 1e-30)
        left.loglog(LAGS, norms, color=COLOURS[cell], label=cell)
    left.set(
        xlabel="steps", ylim=(1e-12, 1e2), title="What is left of the gradient at the first state"
    )
    left.legend(frameon=False)
    for name, curve in reber_curves.items():
        colour = COLOURS["LSTM, gates open" if name == "forget gate" else "RNN"]
        right.plot(np.arange(1, 9) * 5, curve, color=colour, label=name)
    right.set(
        xlabel="thousand symbols without a reset",
        ylim=(0, 1.03),
        title="Continual Reber strings: repeated symbols predicted",
    )
    right.legend(frameon=False)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="lags up to 100, one seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT, help="where the picture goes")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    runs = [("adding", 100), ("temporal order", 100)]
    runs += [] if options.quick else [("adding", 500), ("adding", 1000), ("temporal order", 500)]
    budget = {"LSTM": 800, "RNN": 800}
    strings = 200 if options.quick else 1500

    rows, curves, largest = [], {}, {}
    total = len(runs) * len(seeds) * sum(budget.values()) + 2 * strings
    with tqdm(total=total, unit=" steps", smoothing=0.02) as bar:
        for name, T in runs:
            for cell, steps in budget.items():
                bar.set_description(f"{name}, T = {T}, {cell}")
                results = [train(name, cell, T, seed, steps, bar) for seed in seeds]
                solved = [r.sequences for r in results if r.sequences is not None]
                rows.append(
                    (
                        name,
                        f"{T}",
                        cell,
                        f"{len(solved)} of {len(results)}",
                        f"{int(np.mean(solved)):,}" if solved else "-",
                        f"{100 * np.mean([r.wrong for r in results]):.1f} %",
                        f"{PAPER[name, T]:,}" if cell == "LSTM" and (name, T) in PAPER else "-",
                    )
                )
        for name, forgets in (("no forget gate", False), ("forget gate", True)):
            bar.set_description(f"continual Reber strings, {name}")
            curves[name], largest[name] = continual(forgets, 0, strings, bar)

    print("\n| task | T | network | solved | sequences | wrong in the test | LSTM of 1997 |")
    print("|---|--:|---|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print("\nContinual Reber strings: repeated symbols predicted, in eighths of 40,000 symbols")
    for name, curve in curves.items():
        shares = " ".join(f"{100 * share:3.0f} %" for share in curve)
        print(f"{name:>15}: {shares}   largest |c| at the end {largest[name]:,.0f}")
    draw_figure(curves, options.out)
    print(f"\n{options.out.name} is drawn.")


if __name__ == "__main__":
    main()
