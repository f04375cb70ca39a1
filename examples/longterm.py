"""What an LSTM was made for: sequences whose answer lies a thousand steps back.

    make longterm                           # a few minutes; or python examples/longterm.py --quick

Three tasks of the papers that introduced the LSTM and its forget gate, each with a plain recurrent
network beside it, and the reason for what is seen: how much of a gradient is left after so many
steps.

- Adding (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735, experiment 4): two of
  the first T / 2 of at least T numbers are marked, the answer is their mean.
- Temporal order (the same, experiments 6a and 6b): two or three of at least T symbols are X or Y,
  far apart among noise; the answer is which came where.
- Continual embedded Reber grammar (Gers et al. 2000, doi:10.1162/089976600300015015): an endless
  stream of strings, whose last symbol but one repeats the second. Nothing says where a string ends
  and the state is never reset, so the network has to forget by itself.

The data are as the papers define them, for T = 100, and longer by the same proportions. Trained
with Adam on batches instead of online gradient descent, and with the biases of Tallec and Ollivier
(2018, arXiv:1804.11188), by which the gates start with time constants up to T. Ctrl-C ends it
early, with what is there by then.
"""

from __future__ import annotations

import argparse
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
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
OUT = Path(__file__).parents[1] / "docs" / "longterm.png"
stopped = Event()  # by Ctrl-C


# --- the tasks: inputs (T, B, I) and answers


def length_of(rng: np.random.Generator, T: int) -> int:
    return int(rng.integers(T, T + T // 10 + 1))


def adding(rng: np.random.Generator, count: int, T: int) -> tuple[Array, Array]:
    x = np.zeros((length_of(rng, T), count, 2), np.float32)
    x[:, :, 0] = rng.uniform(-1, 1, x.shape[:2])
    rows, first = np.arange(count), rng.integers(0, 10, count)
    second = rng.integers(0, T // 2 - 2, count)
    second += second >= first  # among those that are not marked yet
    x[first, rows, 1] = x[second, rows, 1] = 1
    x[0, :, 1] = x[-1, :, 1] = -1  # the ends; a mark there is lost, and counts as 0
    answer = np.where(x[:, :, 1] == 1, x[:, :, 0], 0).sum(axis=0)
    return x, (0.5 + answer / 4)[:, None]


def order(*places: tuple[int, int]) -> Any:
    """X or Y at places that are drawn from these ranges, in hundredths of T."""

    def draw(rng: np.random.Generator, count: int, T: int) -> tuple[Array, Array]:
        symbols = rng.integers(2, 6, (length_of(rng, T), count))
        symbols[0], symbols[-1] = 0, 1
        rows, answer = np.arange(count), np.zeros(count, int)
        for low, high in places:
            which = rng.integers(0, 2, count)
            symbols[rng.integers(T * low // 100, T * high // 100 + 1, count), rows] = 6 + which
            answer = 2 * answer + which
        return np.eye(8, dtype=np.float32)[symbols], answer

    return draw


class Task(NamedTuple):
    draw: Any
    inputs: int
    outputs: int
    loss: Any
    wrong: Any  # of outputs and answers: which are wrong


def wrong_class(y: Array, answer: Array) -> Array:
    """By the largest output; the paper wants each output within 0.3 of its target."""
    return y.argmax(1) != answer


TASKS = {
    "adding": Task(  # wrong as the paper counts
        adding, 2, 1, losses.mse, lambda y, t: np.abs(y - t)[:, 0] > 0.04
    ),
    "temporal order of 2": Task(order((10, 20), (50, 60)), 8, 4, losses.cross_entropy, wrong_class),
    "temporal order of 3": Task(
        order((10, 20), (33, 43), (66, 76)), 8, 8, losses.cross_entropy, wrong_class
    ),
}


# --- networks


def make(cell: str, inputs: int, T: int, seed: int) -> Any:
    """A network whose gates start with time constants from 1 to T, or a plain recurrent one."""
    net = getattr(cylstm, cell)(inputs, UNITS, seed=seed)
    if cell == "RNN":
        return net
    state = {name: array.copy() for name, array in net.state_dict().items()}
    kept, none = np.log(np.random.default_rng(seed).uniform(1, T - 1, UNITS)), np.zeros(UNITS)
    gates = [-kept, kept, none, none] if cell == "LSTM" else [none, kept, none]  # or r, z, n
    state["bias_hh_l0"][:] = 0
    state["bias_ih_l0"][:] = np.concatenate(gates)
    net.load_state_dict(state, cast=True)
    return net


class Result(NamedTuple):
    sequences: int | None  # until solved; None: not within the budget
    wrong: float  # share of the test's sequences


def train(name: str, cell: str, T: int, seed: int, steps: int, bar: Any) -> Result | None:
    """Until of the last 40 batches (2000 sequences) less than 1 % are wrong. None: stopped."""
    task, rng = TASKS[name], np.random.default_rng(seed)
    net, head = make(cell, task.inputs, T, seed), cylstm.Linear(UNITS, task.outputs, seed=seed + 1)
    optimizer = optim.Adam([net, head], lr=1e-2 if cell == "LSTM" else 1e-3)
    recent = [1.0] * 40
    solved = None
    for step in range(1, steps + 1):
        if stopped.is_set():
            return None
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


class Recall(NamedTuple):
    predicted: list[float]  # the share of repeated symbols, in each eighth of a long test
    largest: float  # |c| at its end


def continual(forgets: bool, seed: int, steps: int, bar: Any) -> Recall | None:
    """With or without a forget gate. None: stopped."""
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
        if stopped.is_set():
            return None
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
    predicted = [float(part.mean()) for part in np.array_split(right, 8)]
    return Recall(predicted, float(np.abs(c_n).max()))


# --- what is left of a gradient

LAGS = np.unique(np.logspace(0, 3, 16).astype(int))


def gradient_norms(cell: str) -> list[float]:
    """|dL/dh_0|, of L = a sum of h_T with random signs, after T steps of noise."""
    rng, found = np.random.default_rng(0), []
    kind, *opened = cell.split(", ")
    net = make(kind, 4, 1000, 0) if opened else getattr(cylstm, kind)(4, UNITS, seed=0)
    x = rng.standard_normal((1000, 8, 4)).astype(np.float32)
    dh_n = rng.choice([-1, 1], (1, 8, UNITS)).astype(np.float32)
    for lag in LAGS:
        grads = net.forward(x[-lag:]).backward(dh_n=dh_n, need_x=False)
        norms = np.linalg.norm(grads.h_0[0], axis=1)
        if kind == "LSTM":  # its state has two parts
            norms = np.hypot(norms, np.linalg.norm(grads.c_0[0], axis=1))
        found.append(float(norms.mean()))
    return found


# --- all of it

# Of Hochreiter and Schmidhuber's tables 7 and 9: sequences until it was solved, one at a time, and
# wrong ones of a test of 2560; means of 10 networks (of 20 for the order of 2).
PAPER = {
    ("adding", 100): (74_000, 1),
    ("adding", 500): (209_000, 0),
    ("adding", 1000): (853_000, 1),
    ("temporal order of 2", 100): (31_390, 1),
    ("temporal order of 3", 100): (571_100, 2),
}
# Of table 2 of Gers et al.; solved is a million symbols without an error.
PAPER_STRINGS = (
    "In 2000, of 100 networks each: 18 with a forget gate solve it (62 with a learning rate "
    "that falls), none without"
)
FORGETTING = {"no forget gate": False, "forget gate": True}
COLOURS = {"RNN": "#d99a1c", "GRU": "#2a7f9e", "LSTM": "#c8325a"}


def label(axes: Any, x: float, y: float, text: str, colour: str, **options: Any) -> None:
    axes.annotate(text, (x, y), color=colour, fontsize=9, **options)


def draw_wrong(axes: Any, wrong: dict[tuple[str, str], dict[int, float]]) -> None:
    styles = dict(zip(TASKS, ("-o", "--s", ":^"), strict=True))
    for (name, cell), by_lag in wrong.items():
        lags = sorted(by_lag)
        shares = [100 * by_lag[T] for T in lags]
        axes.semilogx(lags, shares, styles[name], color=COLOURS[cell], ms=5, lw=1.5)
    for name, style in styles.items():
        axes.plot([], [], style, color="0.4", label=name, ms=5, lw=1.5)
    for cell, y in (("RNN", 66), ("LSTM", 6)):
        label(axes, 105, y, cell, COLOURS[cell], fontweight="bold")
    axes.set(xlabel="steps of a sequence", ylim=(-4, 104), title="Wrong answers in the test, %")
    axes.set_xlim(88, 1150)
    axes.set_xticks([100, 200, 500, 1000], ["100", "200", "500", "1000"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9, loc=(0.3, 0.25))


def draw_gradients(axes: Any) -> None:
    for kind, colour in COLOURS.items():
        for opened in ("", ", gates open") if kind != "RNN" else ("",):
            norms = np.maximum(gradient_norms(kind + opened), 1e-30)
            axes.loglog(LAGS, norms, "-" if opened else "--", color=colour, lw=1.8)
    axes.loglog([], [], "-", color="0.4", label="open gates")
    axes.loglog([], [], "--", color="0.4", label="as drawn")
    for kind, x, y in (("RNN", 9, 1e-7), ("GRU", 70, 12), ("LSTM", 70, 0.12), ("GRU", 62, 1e-10)):
        label(axes, x, y, kind, COLOURS[kind], fontweight="bold")
    axes.set(
        xlabel="steps back", ylim=(1e-12, 1e2), title="Norm of the gradient at the first state"
    )
    axes.legend(frameon=False, fontsize=9, loc=(0.03, 0.1))


def draw_strings(axes: Any, recalls: dict[str, list[Recall]]) -> None:
    for (name, runs), colour in zip(recalls.items(), ("0.45", COLOURS["LSTM"]), strict=True):
        for k, run in enumerate(runs):
            shown = {"label": name} if k == 0 else {}
            axes.plot(
                np.arange(1, 9) * 5, [100 * p for p in run.predicted], color=colour, lw=1.5, **shown
            )
    axes.axhline(50, color="0.7", lw=0.8, ls=":")
    axes.set(
        xlabel="thousand symbols without a reset",
        ylim=(-4, 104),
        title="Reber strings: repeated symbols told, %",
    )
    axes.legend(frameon=False, fontsize=9, loc=(0.05, 0.12))


def draw_figure(wrong: Any, recalls: dict[str, list[Recall]], out: Path) -> None:
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    draw_wrong(axes[0], wrong)
    draw_gradients(axes[1])
    draw_strings(axes[2], recalls)
    figure.savefig(out, dpi=110)


Key = tuple[str, int, str]  # task, T, cell


def run_all(
    runs: dict[tuple[str, int], int], seeds: int, strings: int
) -> tuple[dict[Key, list[Result]], dict[str, list[Recall]]]:
    """Every run of each seed, two at a time; when it is stopped, those that ended."""
    cells = ("RNN", "LSTM")
    total = seeds * (len(cells) * sum(runs.values()) + len(FORGETTING) * strings)
    jobs: list[tuple[Key | str, Future[Any]]] = []
    with (
        tqdm(total=total, unit=" steps", smoothing=0.02) as bar,
        ThreadPoolExecutor(2) as pool,  # the library releases the GIL
    ):
        for (name, T), steps in sorted(runs.items(), key=lambda run: -run[0][1] * run[1]):
            for cell in cells:
                for seed in range(seeds):
                    job = pool.submit(train, name, cell, T, seed, steps, bar)
                    jobs.append(((name, T, cell), job))
        for name, forgets in FORGETTING.items():
            for seed in range(seeds):
                jobs.append((name, pool.submit(continual, forgets, seed, strings, bar)))
        try:
            for _, job in jobs:
                job.result()
        except KeyboardInterrupt:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    ended = [(key, job.result()) for key, job in jobs if not job.cancelled()]
    results: dict[Key, list[Result]] = {(name, T, cell): [] for name, T in runs for cell in cells}
    recalls: dict[str, list[Recall]] = {name: [] for name in FORGETTING}
    for key, result in ended:
        if isinstance(result, Result) and isinstance(key, tuple):
            results[key].append(result)
        if isinstance(result, Recall) and isinstance(key, str):
            recalls[key].append(result)
    return results, recalls


def report(results: dict[Key, list[Result]], recalls: dict[str, list[Recall]]) -> None:
    print(
        "\n| task | T | network | solved | sequences | wrong in the test | 1997: sequences, wrong |"
    )
    print("|---|--:|---|--:|--:|--:|--:|")
    for (name, T, cell), found in results.items():
        if not found:
            continue
        solved = [r.sequences for r in found if r.sequences is not None]
        wrong = 100 * np.mean([r.wrong for r in found])
        paper = PAPER.get((name, T)) if cell == "LSTM" else None
        print(
            f"| {name} | {T} | {cell} | {len(solved)} of {len(found)} "
            f"| {f'{int(np.mean(solved)):,}' if solved else '-'} | {wrong:.1f} % "
            f"| {f'{paper[0]:,}, {100 * paper[1] / TEST:.2f} %' if paper else '-'} |"
        )
    print("\nContinual Reber strings: repeated symbols predicted, in eighths of 40,000 symbols")
    for name, runs in recalls.items():
        for run in runs:
            shares = " ".join(f"{100 * share:3.0f} %" for share in run.predicted)
            print(f"{name:>15}: {shares}   largest |c| at the end {run.largest:,.0f}")
    print(PAPER_STRINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="lags of 100, one seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT, help="where the picture goes")
    options = parser.parse_args()
    cylstm.set_num_threads(1)
    # Each task's T, and the batches that a network may take.
    runs = {("adding", 100): 800, ("temporal order of 2", 100): 800}
    runs[("temporal order of 3", 100)] = 1200
    if not options.quick:
        runs |= {("adding", 500): 800, ("adding", 1000): 800}
        for T in 500, 1000:
            runs |= {("temporal order of 2", T): 800, ("temporal order of 3", T): 1200}
    seeds, strings = (1, 200) if options.quick else (options.seeds, 1500)
    results, recalls = run_all(dict(sorted(runs.items())), seeds, strings)
    report(results, recalls)
    wrong: dict[tuple[str, str], dict[int, float]] = {}
    for (name, T, cell), found in results.items():
        if found:
            wrong.setdefault((name, cell), {})[T] = float(np.mean([r.wrong for r in found]))
    draw_figure(wrong, recalls, options.out)
    print(f"\n{options.out} is drawn.")


if __name__ == "__main__":
    main()
