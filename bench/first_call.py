"""What the first call of a process takes, beside the second: `python -m bench.first_call --help`.

Each entry runs in processes of its own, so that nothing has prepared the way. What the first call
may do that others do not: pack weights, start threads, get memory from the system. It imports
nothing, which would take milliseconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

PREPARED = """
import sys, time
import numpy as np
import cylstm
from cylstm import losses, optim

x = np.ones((20, 4, 16), "f4")
lstm, head = cylstm.LSTM(16, 32, seed=1), cylstm.Linear(32, 8, seed=2)
y, target = np.ones((20, 4, 32), "f4"), np.zeros((20, 4, 32), "f4")
classes = np.zeros((20, 4), int)
{prepare}
before, times = set(sys.modules), []
for _ in range(3):
    start = time.perf_counter()
    {call}
    times.append(time.perf_counter() - start)
print(times[0], min(times[1:]), *set(sys.modules) - before)
"""

# What is timed, by the name of the entry, and what must be there before it.
ENTRIES = {
    "call": ("lstm(x)", ""),
    "call with lengths": ("lstm(x, lengths=[20, 3, 0, 7])", ""),
    "forward": ("lstm.forward(x)", ""),
    "backward": ("tape.backward(y)", "tape = lstm.forward(x)"),
    "stream": ("lstm.stream(4)", ""),
    "stream.step": ("stream.step(x[0])", "stream = lstm.stream(4)"),
    "stream.run": ("stream.run(x)", "stream = lstm.stream(4)"),
    "load_state_dict": ("lstm.load_state_dict(state)", "state = lstm.state_dict()"),
    "Linear": ("head(y)", ""),
    "Linear.forward": ("head.forward(y)", ""),
    "Linear backward": ("out.backward(out.y)", "out = head.forward(y)"),
    "mse": ("losses.mse(y, target)", ""),
    "cross_entropy": ("losses.cross_entropy(y, classes)", ""),
    "clip_grad_norm": (
        "optim.clip_grad_norm(grads, 1.0)",
        "grads = lstm.forward(x).backward(y)",
    ),
    "SGD.step": (
        "sgd.step(grads)",
        "sgd = optim.SGD(lstm, 0.1, momentum=0.9); grads = lstm.forward(x).backward(y)",
    ),
    "Adam.step": (
        "adam.step(grads)",
        "adam = optim.Adam(lstm); grads = lstm.forward(x).backward(y)",
    ),
}


def measured(entry: str) -> tuple[float, float, list[str]]:
    """Seconds of the first call and of a later one, and what the first has imported."""
    call, prepare = ENTRIES[entry]
    code = PREPARED.format(prepare=prepare, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second, *modules = done.stdout.split()
    return float(first), float(second), modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=5, help="of each entry; the least counts")
    options = parser.parse_args()
    print(f"{'':20} {'first, ms':>10} {'then, ms':>10}  imports")
    for entry in ENTRIES:
        runs = [measured(entry) for _ in range(options.processes)]
        first, second = min(run[0] for run in runs), min(run[1] for run in runs)
        modules = sorted({module for run in runs for module in run[2]})
        print(f"{entry:20} {1e3 * first:10.3f} {1e3 * second:10.3f}  {len(modules) or ''}")


if __name__ == "__main__":
    main()
