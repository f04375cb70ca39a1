"""When a cell writes, keeps and reads: an LSTM that has learned to remember, seen from inside.

    python examples/gates.py docs/gates.png

Letters go by. One in brackets is to be remembered, until a question mark asks for it; then a new
one may be stored. All other letters are noise. An open gate costs a little, by a gradient on the
gates themselves, so that the cell writes and reads where it has to. Training takes some
seconds, and what is drawn is the gates of one sequence that the network has never seen.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

import cylstm
from cylstm import losses, optim, plot

LETTERS = "abc"
SILENCE = -1  # the answer where nothing is asked: no loss
STORE, ASK = len(LETTERS), len(LETTERS) + 1  # inputs beside those of the letters
UNITS = 8
PRICE = 0.1  # of gates i and o that stand open, on average: once the task is learned


def draw(rng: np.random.Generator, T: int, B: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """x (T, B, 5): a letter, or a question, and whether the letter is to be stored; and the answer
    (T, B): the letter at a question, else silence."""
    x = np.zeros((T, B, len(LETTERS) + 2), np.float32)
    answer = np.full((T, B), SILENCE)
    letters = rng.integers(0, len(LETTERS), (T, B))
    for b in range(B):
        t, stored = int(rng.integers(0, 4)), None
        x[np.arange(T), b, letters[:, b]] = 1
        while t < T:
            if stored is None:
                x[t, b, STORE] = 1
                stored = letters[t, b]
            else:
                x[t, b, :] = 0
                x[t, b, ASK] = 1
                answer[t, b], stored = stored, None
            t += int(rng.integers(2, 9))
    return x, answer


def train(steps: int = 4000, T: int = 24, B: int = 32) -> tuple[cylstm.LSTM, cylstm.Linear]:
    rng = np.random.default_rng(0)
    lstm = cylstm.LSTM(len(LETTERS) + 2, UNITS, seed=3)
    with_bias = {name: a.copy() for name, a in lstm.state_dict().items()}
    with_bias["bias_ih_l0"][UNITS : 2 * UNITS] += 2  # to begin with, keep
    lstm.load_state_dict(with_bias)
    head = cylstm.Linear(UNITS, len(LETTERS), seed=1)
    optimizer = optim.Adam([lstm, head], lr=1e-2)
    for step in range(steps):
        optimizer.lr = 1e-2 * (1 - step / steps)
        x, answer = draw(rng, T, B)
        tape = lstm.forward(x)
        out = head.forward(tape.y)
        _, dlogits = losses.cross_entropy(out.y, answer, ignore_index=SILENCE)
        its_head = out.backward(dlogits)
        dgates = np.zeros_like(tape.gates)
        dgates[..., [0, 3], :] = PRICE / (2 * T * B * UNITS) * (step > steps // 2)
        its_lstm = tape.backward(its_head.x, dgates=dgates, need_x=False)
        optim.clip_grad_norm([its_lstm, its_head], 1.0)
        optimizer.step([its_lstm, its_head])
    return lstm, head


def names(x: NDArray[Any]) -> list[str]:
    """The labels of the steps of x (T, 5)."""
    letters = [LETTERS[k] for k in x[:, : len(LETTERS)].argmax(1)]
    return [
        "?" if step[ASK] else f"[{letter}]" if step[STORE] else letter
        for step, letter in zip(x, letters, strict=True)
    ]


def main(path: str) -> None:
    lstm, head = train()
    x, answer = draw(np.random.default_rng(99), 32, 200)
    tape = lstm.forward(x, train=False)
    asked = answer != SILENCE
    right = float((head(tape.y).argmax(-1) == answer)[asked].mean())
    print(f"{right:.1%} of {asked.sum()} questions are answered right, of sequences never seen")
    title = "An LSTM of 8 units remembers the letter in brackets until it is asked"
    plot.gates(tape, sequence=1, labels=names(x[:, 1]), title=title).savefig(path, dpi=90)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "gates.png")
