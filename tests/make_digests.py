"""Write tests/digests.json: the bits that each kernel set gives, as SHA-256 of every result.

    python tests/make_digests.py        for the kernel sets of this machine; others keep theirs

A kernel set promises the same bits on every CPU (docs/numerics.md), whatever compiler built it. So
the digests hold everywhere, and a change of them is a change of results: run this program only
when one is meant, and say so in CHANGELOG.md.

Inputs and weights come from a hash of their place, exact in float32: no generator of NumPy, whose
streams may change between its versions, has a part in them.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

import cylstm
from helpers import Array, same_bits

DIGESTS = Path(__file__).parent / "digests.json"
DIGITS = 16  # of a digest in hexadecimal: 64 bits
THREADS = (1, 3)

MIXED = [9, 0, 1, 9, 4, 8, 2, 2, 7, 9, 3, 5, 5, 6, 1, 0, 9, 9, 3, 8, 4, 4, 9]

# Arguments of the network, of its dtype, and of the call: T, B (None: unbatched) and the like. The
# sizes meet each way of a call through the core: the odd ends of panels and tiles, one row and
# many, merged inputs, blocks and chunks of time, work split by rows, units and directions.
PROBLEMS: dict[str, dict[str, Any]] = {
    "smallest": dict(T=1, B=1, input_size=1, hidden_size=1),
    "smallest, steps": dict(T=5, B=1, input_size=1, hidden_size=1),
    "odd": dict(T=7, B=3, input_size=7, hidden_size=17),
    "odd, float64": dict(T=7, B=3, input_size=7, hidden_size=17, dtype="float64"),
    "audio": dict(T=50, B=1, input_size=1, hidden_size=16),
    "one row": dict(T=17, B=1, input_size=17, hidden_size=50),
    "one row, float64": dict(T=17, B=1, input_size=17, hidden_size=50, dtype="float64"),
    "few rows, merged": dict(T=60, B=2, input_size=4, hidden_size=50),
    "few rows, merged, lengths": dict(
        T=60, B=3, lengths=[60, 17, 31], input_size=5, hidden_size=33, dtype="float64"
    ),
    "tile and one row": dict(T=4, B=7, input_size=50, hidden_size=65),
    "whole panels": dict(T=4, B=12, input_size=64, hidden_size=128),
    "whole panels, float64": dict(T=4, B=12, input_size=32, hidden_size=64, dtype="float64"),
    "wide input": dict(T=3, B=5, input_size=333, hidden_size=7),
    "large batch": dict(T=3, B=300, input_size=5, hidden_size=17),
    "many rows and units": dict(T=2, B=100, input_size=130, hidden_size=150),
    "no bias": dict(T=5, B=4, input_size=3, hidden_size=9, bias=False),
    "no states": dict(T=5, B=4, input_size=3, hidden_size=9, states=False),
    "last states only": dict(T=5, B=4, input_size=3, hidden_size=9, given=("dh_n", "dc_n")),
    "output only": dict(T=5, B=4, input_size=3, hidden_size=9, num_layers=2, given=("dy",)),
    "batch first": dict(T=6, B=5, input_size=4, hidden_size=9, batch_first=True),
    "unbatched": dict(T=7, B=None, input_size=3, hidden_size=7, num_layers=2),
    "unbatched length": dict(
        T=7, B=None, lengths=4, input_size=3, hidden_size=7, bidirectional=True
    ),
    "lengths": dict(T=9, B=23, lengths=MIXED, input_size=17, hidden_size=50),
    "lengths, layers": dict(
        T=9, B=23, lengths=MIXED, input_size=5, hidden_size=33, num_layers=3, dtype="float64"
    ),
    "layers": dict(T=9, B=23, input_size=33, hidden_size=65, num_layers=2),
    "layers of one row": dict(T=40, B=1, input_size=3, hidden_size=17, num_layers=3),
    "blocks of layers": dict(T=700, B=3, input_size=5, hidden_size=50, num_layers=3),
    "chunks": dict(T=1000, B=2, input_size=3, hidden_size=7, dtype="float64"),
    "directions": dict(T=9, B=23, input_size=33, hidden_size=65, bidirectional=True),
    "directions, layers": dict(
        T=300, B=3, input_size=3, hidden_size=17, num_layers=2, bidirectional=True
    ),
    "directions, lengths": dict(
        T=9, B=23, lengths=MIXED, input_size=17, hidden_size=50, num_layers=2, bidirectional=True
    ),
    "projection": dict(T=7, B=5, input_size=7, hidden_size=50, proj_size=17),
    "projection, float64": dict(
        T=7, B=5, input_size=7, hidden_size=50, proj_size=17, dtype="float64"
    ),
    "projection to one": dict(
        T=17, B=1, input_size=1, hidden_size=7, proj_size=1, num_layers=2, bias=False
    ),
    "projection, everything": dict(
        T=9, B=23, lengths=MIXED, input_size=33, hidden_size=130, num_layers=2, proj_size=65
    )
    | dict(bidirectional=True, dropout=0.3),
    "dropout": dict(T=9, B=7, input_size=5, hidden_size=33, num_layers=3, dropout=0.5),
    "dropout, directions": dict(
        T=9, B=7, lengths=[9, 0, 1, 9, 4, 8, 2], input_size=5, hidden_size=33, num_layers=3
    )
    | dict(dropout=0.2, bidirectional=True, dtype="float64"),
    "units of one row": dict(T=40, B=1, input_size=33, hidden_size=150),
    "units of large weights": dict(T=3, B=19, input_size=50, hidden_size=333),
    "units, projected": dict(
        T=40, B=2, lengths=[40, 31], input_size=3, hidden_size=300, num_layers=2, proj_size=150
    ),
    "one step, raw": dict(T=1, B=1, input_size=33, hidden_size=150, num_layers=2),
    "one step, raw, rows": dict(T=1, B=7, input_size=33, hidden_size=65, bidirectional=True),
    "one step, raw, projected": dict(
        T=1, B=3, lengths=[1, 0, 1], input_size=17, hidden_size=77, proj_size=50, dtype="float64"
    ),
    "stream": dict(T=40, B=None, input_size=3, hidden_size=17, num_layers=2, stream=True),
    "stream, audio": dict(T=50, B=None, input_size=1, hidden_size=16, stream=True),
    "stream, projected": dict(
        T=20, B=5, input_size=3, hidden_size=33, num_layers=3, proj_size=7, stream=True
    ),
    "stream, some rows": dict(
        T=20, B=7, input_size=3, hidden_size=50, stream=True, active=[4, 0, 6], dtype="float64"
    ),
}
# The same of other cells, for what is theirs: panels with gaps, one state, tapes of their own.
OTHERS: dict[str, dict[str, Any]] = {
    name: PROBLEMS[name]
    for name in ("odd", "odd, float64", "one row", "few rows, merged", "many rows and units")
    + ("directions, lengths", "dropout", "units of one row", "one step, raw", "stream")
}
CELLS: dict[str, dict[str, Any]] = {
    "GRU": dict(cell="GRU"),
    "GRU, reset before": dict(cell="GRU", reset_after=False),
    "RNN": dict(cell="RNN"),
    "RNN relu": dict(cell="RNN", nonlinearity="relu"),
}
for name, options in CELLS.items():
    PROBLEMS |= {f"{name}, {other}": problem | options for other, problem in OTHERS.items()}

VARIANTS: dict[str, dict[str, Any]] = {
    "peephole": dict(peephole=True, cell_clip=0.8),
    "f=1-i": dict(coupled="f=1-i", clip=0.7),
    "activations": dict(
        activations=("hard_sigmoid_keras2", "softsign", ("elu", 0.8, 0)), coupled="i=1-f"
    ),
    "softplus": dict(activations=("sigmoid", ("leaky_relu", 0.1, 0), "softplus")),
    "Haste's norm": dict(layer_norm="haste"),
    "LiteRT's norm": dict(layer_norm="litert", peephole=True),
}
for name, options in VARIANTS.items():
    PROBLEMS |= {
        f"{name}, {other}": PROBLEMS[other] | options
        for other in ("odd", "odd, float64", "one row", "directions, lengths", "stream")
    }

CALL = ("T", "B", "lengths", "states", "given", "stream", "active", "cell")


def numbers(name: str, *shape: int, scale: float = 1.0) -> Array:
    """Float32 numbers in (-scale, scale) as float64, a function of the name and the place."""
    seed = hashlib.sha256(name.encode()).digest()[:8]
    with np.errstate(over="ignore"):  # SplitMix64, as it is published
        n = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        n += np.uint64(int.from_bytes(seed, "little"))
        n = (n ^ (n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        n = (n ^ (n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        n ^= n >> np.uint64(31)
    drawn = (2 * (n >> np.uint64(40)).astype(np.float64) + 1) / 2**24 - 1
    return (scale * drawn).astype(np.float32).astype(np.float64).reshape(shape)


def network(config: dict[str, Any], isa: str | None) -> Any:
    """The network of these arguments on the kernels of `isa`, or as anybody makes it."""
    config = dict(config)
    cell = getattr(cylstm, config.pop("cell", "LSTM"))
    arguments = {key: value for key, value in config.items() if key not in CALL}
    if isa is not None:
        cell = type(cell.__name__, (cell,), {"_isa": isa})
    net = cell(**arguments, seed=1)
    net.load_state_dict(
        {
            name: numbers(name, *a.shape, scale=1.2 / math.sqrt(a.shape[-1]) if a.ndim > 1 else 0.3)
            for name, a in net.state_dict().items()
        },
        cast=True,
    )
    return net


def states_of(problem: dict[str, Any], prefix: str, suffix: str) -> dict[str, Array]:
    """Arrays of the shapes of the states: h, and c where the cell has one."""
    L, D = problem.get("num_layers", 1), 1 + problem.get("bidirectional", False)
    H = problem["hidden_size"]
    widths = {"h": problem.get("proj_size", 0) or H}
    if problem.get("cell", "LSTM") == "LSTM":
        widths["c"] = H
    batch = () if problem["B"] is None else (problem["B"],)
    layers = L if problem.get("stream") else L * D
    return {
        name: numbers(prefix + letter, layers, *batch, width).astype(
            problem.get("dtype", "float32")
        )
        for letter, width in widths.items()
        for name in [f"{prefix}{letter}{suffix}"]
    }


def as_argument(states: dict[str, Array]) -> Any:
    """What a call takes for its states: (h, c), or h where that is all."""
    values = list(states.values())
    return tuple(values) if len(values) > 1 else values[0]


def series(problem: dict[str, Any], name: str, width: int) -> Array:
    T, B = problem["T"], problem["B"]
    shape = (T,) if B is None else (B, T) if problem.get("batch_first") else (T, B)
    return numbers(name, *shape, width, scale=1.5).astype(problem.get("dtype", "float32"))


def stream_results(problem: dict[str, Any], isa: str, threads: int) -> dict[str, Array]:
    """The outputs of steps and of a block, and the state that they leave."""
    net = network(problem, isa)
    stream = net.stream(problem["B"], threads=threads)
    stream.state = as_argument(states_of(problem, "", ""))
    x, T = series(problem, "x", problem["input_size"]), problem["T"]
    active = problem.get("active")
    some = x if active is None else x[:, active]
    half = T // 2 + 1
    steps = np.array([stream.step(x_t, active=active) for x_t in some[:half]])
    state = stream.state
    return {
        "steps": steps,
        "block": stream.run(x[half:]),
        "state": np.concatenate(
            [a.ravel() for a in (state if isinstance(state, tuple) else [state])]
        ),
    }


def results(problem: dict[str, Any], isa: str, threads: int) -> dict[str, Array]:
    """Every result and gradient of a problem, by name."""
    if problem.get("stream"):
        return stream_results(problem, isa, threads)
    net = network(problem, isa)
    states = states_of(problem, "", "_0") if problem.get("states", True) else {}
    arguments = (
        series(problem, "x", problem["input_size"]),
        as_argument(states) if states else None,
    )
    options = {"lengths": problem.get("lengths"), "threads": threads}
    y, last = net(*arguments, **options)
    tape = net.forward(*arguments, **options)
    given = {"dy": series(problem, "dy", y.shape[-1])} | states_of(problem, "d", "_n")
    names = problem.get("given", tuple(given))
    grads = tape.backward(**{name: given[name] for name in names}, threads=threads)
    found = {"y": tape.y, "dx": grads.x, "dweights": grads.weights.flat, "gates": tape.gates}
    for name in given:
        if name != "dy":
            letter = name[1]
            found[f"{letter}_n"] = getattr(tape, f"{letter}_n")
            found[f"d{letter}_0"] = getattr(grads, f"{letter}_0")
    if "c_n" in found:
        found["cells"] = tape.cells
    if problem.get("dropout", 0) == 0:  # the call's own results are the tape's
        assert same_bits(
            [y, *(last if isinstance(last, tuple) else [last])],
            [tape.y, *(found[f"{name[1]}_n"] for name in given if name != "dy")],
        )
    return found


def digests(problem: dict[str, Any], isa: str, threads: int) -> dict[str, str]:
    """{name: digest} of all results of a problem, of their values alone."""
    return {
        name: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:DIGITS]
        for name, a in sorted(results(problem, isa, threads).items())
    }


def load() -> dict[str, dict[str, dict[str, str]]]:
    """{problem: {kernel set: {result: digest}}}"""
    return json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}


def main() -> None:
    known = load()
    written: dict[str, dict[str, dict[str, str]]] = {}
    for name, problem in PROBLEMS.items():
        here = {isa: digests(problem, isa, 1) for isa in cylstm.show_config()["isa_available"]}
        written[name] = dict(sorted((known.get(name, {}) | here).items()))
    DIGESTS.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
