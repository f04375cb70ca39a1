"""Fuzzing of the Python face and of `cylstm.load`, for some minutes: `make fuzz`.

    python tests/fuzz/python.py [minutes] [seed]

Whatever is called with: a result that the reference confirms, or ValueError, TypeError or
MemoryError, and the LSTM as it was. A crash ends the process. What fails is printed as an example
that hypothesis has made small.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

sys.path.insert(0, str(Path(__file__).parents[1]))

import cylstm
from helpers import make_problem, rel, same_bits

REFUSED = ValueError, TypeError, MemoryError
EXAMPLES = 300  # of a round
outcomes: Counter[str] = Counter()

sizes = st.integers(1, 9)
configurations = st.fixed_dictionaries(
    {
        "input_size": sizes,
        "hidden_size": sizes,
        "num_layers": st.integers(1, 3),
        "bidirectional": st.booleans(),
        "batch_first": st.booleans(),
        "bias": st.booleans(),
        "dtype": st.sampled_from(["float32", "float64"]),
    }
)
dtypes = st.sampled_from(["f4", "f8", "f2", ">f4", "i8", "?", "c8", "O", "U3", "M8[s]"])
arrays = dtypes.flatmap(
    lambda dtype: npst.arrays(
        dtype,
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements=st.none() if dtype == "O" else None,
    )
)
oddities = st.one_of(
    arrays,
    arrays.map(lambda a: np.ma.masked_array(a)),
    arrays.map(lambda a: a.T),
    arrays.map(lambda a: np.broadcast_to(a, (2, *a.shape))),
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-3, 12), max_size=5),
    st.just(object()),
)


@given(config=configurations, T=sizes, B=sizes, data=st.data())
def call_anything(config: dict[str, Any], T: int, B: int, data: st.DataObject) -> None:
    """One argument of a call is replaced by something odd, as a rule."""
    p = make_problem(1, T=T, B=B, **config)
    lstm = p.lstm()
    want = lstm(p.x, p.states)[0]
    tape, _ = p.reference()
    assert rel(want, tape.y) < (1e-5 if config["dtype"] == "float32" else 1e-12)
    arguments = {"x": p.x, "states": p.states, "lengths": None, "threads": 1}
    broken = data.draw(st.sampled_from([*arguments, "nothing"]))
    if broken != "nothing":
        arguments[broken] = data.draw(oddities)
    if broken == "states" and data.draw(st.booleans()):
        arguments["states"] = (data.draw(oddities), p.states[1])
    x, states = arguments["x"], arguments["states"]
    options = {name: arguments[name] for name in ("lengths", "threads")}

    def train() -> Any:
        taped = lstm.forward(x, states, **options)
        return taped.backward(data.draw(oddities), data.draw(oddities), data.draw(oddities))

    def stream() -> Any:
        running = lstm.stream(data.draw(st.one_of(st.none(), sizes)))
        running.step(x)
        running.run(x, out=data.draw(oddities))
        running.reset(data.draw(oddities))
        running.state = data.draw(oddities)

    works: list[Callable[[], Any]] = [
        lambda: lstm(x, states, **options),
        lambda: lstm(x, states, out=data.draw(oddities), **options),
        train,
        stream,
        lambda: lstm.load_state_dict({**lstm.state_dict(), "bias_hh_l0": data.draw(oddities)}),
    ]
    try:
        data.draw(st.sampled_from(works))()
        outcomes["took"] += 1
    except REFUSED as error:
        outcomes[f"refused: {type(error).__name__}"] += 1
    if arguments["x"] is p.x:
        assert np.array_equal(p.x, make_problem(1, T=T, B=B, **config).x)  # an input is not written
    if same_bits([*lstm.state_dict().values()], [*p.lstm().state_dict().values()]):
        assert same_bits(lstm(p.x, p.states)[0], want)


# One small file of each format, as the programs write them that it is named after.
FILES = [
    path.read_bytes()
    for path in sorted((Path(__file__).parent / "files").iterdir())
    if path.suffix != ".onnx" or importlib.util.find_spec("onnx")
]
LONGEST = max(map(len, FILES))
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "copy"]),
        st.one_of(st.integers(0, 600), st.integers(0, LONGEST)),  # headers, and all else
        st.integers(0, LONGEST),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=6,
)


@given(file=st.sampled_from(FILES), edits=edits)
def load_anything(file: bytes, edits: list[tuple[str, int, int, bytes]]) -> None:
    """A file of any format, edited: loaded, or refused in so many words."""
    content = bytearray(file)
    for edit, at, other, some in edits:
        at %= len(content) + 1
        if edit == "flip":
            content[at : at + len(some)] = some
        elif edit == "cut":
            del content[at : at + 1 + other % 64]
        elif edit == "insert":
            content[at:at] = some
        else:
            content[at:at] = content[other : other + 32]
    with tempfile.NamedTemporaryFile() as written:
        written.write(content)
        written.flush()
        try:
            repr(cylstm.inspect(written.name))
            cylstm.load(written.name)
            outcomes["loaded"] += 1
        except REFUSED as error:
            outcomes[f"not loaded: {type(error).__name__}"] += 1


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    number = int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32
    print(f"python tests/fuzz/python.py {minutes:g} {number}", flush=True)  # to do it again
    end = time.monotonic() + 60 * minutes
    limits = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    targets = [limits(call_anything), limits(load_anything)]
    rounds = 0
    while not rounds or time.monotonic() < end:
        for target in targets:
            seed(number + rounds)(target)()
        rounds += 1
    print(f"{2 * EXAMPLES * rounds} examples:", dict(outcomes))


if __name__ == "__main__":
    main()
