"""What the tests share: goldens, random problems, and how far two arrays are apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import cylstm
from cylstm import reference

Array = NDArray[Any]
Weights = dict[str, Array]

# The largest relative error by which results and gradients may differ from float64.
TOLERANCES = {"float32": (5e-6, 2e-5), "float64": (1e-12, 1e-10)}

# The kernel sets of this machine, the best one first. Where each costs seconds, `make test` runs
# the best one, and `make test-slow` the others.
ISAS: list[str] = list(cylstm.show_config()["isa_available"])
EACH_ISA = [ISAS[0], *(pytest.param(isa, marks=pytest.mark.slow) for isa in ISAS[1:])]

# For tests that set a trace function: coverage's, which it replaces, would see no more of the run.
no_tracer = pytest.mark.skipif(sys.gettrace() is not None, reason="another tracer is at work")

several_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="a helper needs a core of its own",
)


def seeds(whole: int) -> range:
    """Seeds of random models: a fifth of them, or all where `make random-models` asks for that."""
    return range(whole if os.environ.get("CYLSTM_RANDOM_MODELS") == "all" else whole // 5)


def rel(a: ArrayLike, b: ArrayLike) -> float:
    """max|a - b| / max|b|: the error of a tensor against what it should be; NaN if a holds NaN."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    if a.size == 0 or np.array_equal(a, b):
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.abs(a - b).max() / np.abs(b).max())


def rel_grads(got: Any, want: Any) -> dict[str, float]:
    """`rel` of every gradient, {name: error}; the names of the weights must be the same."""
    assert list(got.weights) == list(want.weights)
    pairs = [(name, getattr(got, name), getattr(want, name)) for name in ("x", "h_0", "c_0")]
    pairs += [(name, got.weights[name], a) for name, a in want.weights.items()]
    return {name: rel(a, b) for name, a, b in pairs}


def assert_close(errors: Mapping[str, float], tolerance: float) -> None:
    """Fail with the worst of `errors` (NaN is the worst of all)."""
    bad = {name: e for name, e in errors.items() if not e < tolerance}
    assert not bad, f"relative error not below {tolerance}: {bad}"


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays, or two lists of arrays, agree in shape, dtype and every bit."""
    if isinstance(a, np.ndarray):
        return bool(
            a.dtype == b.dtype
            and a.shape == b.shape
            and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
        )
    a, b = list(a), list(b)
    return len(a) == len(b) and all(same_bits(i, j) for i, j in zip(a, b, strict=True))


@contextmanager
def new_weights(module: Any) -> Iterator[Array]:
    """The weights of a module as one writable array, which it gets when the block ends."""
    values = module._weights.flat.copy()
    yield values
    module._commit(module._prepare(partial(np.copyto, src=values)))


def all_grads(grads: Any) -> list[Array]:
    """Every gradient of one backward pass."""
    return [grads.x, grads.h_0, grads.c_0, *grads.weights.values()]


def results(p: Problem, lstm: Any, threads: int | None = None) -> list[Array]:
    """Everything that a call, a tape and its backward give."""
    y, (h_n, c_n) = lstm(p.x, p.states, lengths=p.lengths, threads=threads)
    tape = lstm.forward(p.x, p.states, lengths=p.lengths, threads=threads, train=False)
    grads = tape.backward(p.dy, p.dh_n, p.dc_n, threads=threads)
    return [y, h_n, c_n, tape.gates, tape.cells, *all_grads(grads)]


def infer(p: Problem, lstm: Any, threads: int | None) -> list[Array]:
    """What a call gives."""
    y, (h_n, c_n) = lstm(p.x, p.states, lengths=p.lengths, threads=threads)
    return [y, h_n, c_n]


def assert_same(got: list[Array], want: list[Array], tolerance: float = 1e-5) -> None:
    """The same bits; where they are not promised, nearly the same numbers."""
    assert len(got) == len(want)
    if bits_promised():
        assert same_bits(got, want)
    assert_close(
        {str(k): rel(a, b) for k, (a, b) in enumerate(zip(got, want, strict=True))}, tolerance
    )


def whole(p: Problem) -> list[Array]:
    """[y, h_n, c_n] of one call over all steps."""
    y, (h_n, c_n) = p.lstm()(p.x, p.states)
    return [y, h_n, c_n]


def stream_of(p: Problem, lstm: Any = None, **options: Any) -> Any:
    """A stream in the state (h_0, c_0)."""
    stream = (lstm or p.lstm()).stream(p.x.shape[1] if p.x.ndim == 3 else None, **options)
    stream.state = p.states
    return stream


def refused(
    call: Callable[..., Any],
    *words: object,
    error: type[Exception] | tuple[type[Exception], ...] = ValueError,
) -> None:
    """Check that ``call()`` raises ``error``, and that every one of ``words`` is in its message."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    missing = [str(word) for word in words if str(word) not in message]
    assert not missing, f"{missing} not in {message!r}"


def f32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def bits_promised() -> bool:
    """Whether a product's bits are the library's own; a BLAS may sum as it likes."""
    return os.environ.get("CYLSTM_GEMM") != "blas"


own_products = pytest.mark.skipif(not bits_promised(), reason="a BLAS has threads of its own")


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that finds the modules that this one finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more


def run_python(
    *arguments: str, cwd: Path | None = None, timeout: float | None = 120, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python on the same modules as here, with more in its environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(**more),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def output(code: str, *arguments: str, **more: Any) -> str:
    """What a script prints; it must end well and not complain."""
    done = run_python("-c", code, *arguments, **more)
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stdout, done.stderr)
    return done.stdout.strip()


def numerical_gradient(
    loss: Callable[[Array], float], at: Array, indices: Iterable[int], eps: float = 1e-5
) -> Array:
    """Central differences of ``loss(array)`` in some flat indices of ``at``."""
    result = []
    for index in indices:
        up, down = at.copy(), at.copy()
        up.flat[index] += eps
        down.flat[index] -= eps
        result.append((loss(up) - loss(down)) / (up.flat[index] - down.flat[index]))
    return np.array(result)


class Problem(NamedTuple):
    """A network and one call of it, with an upstream gradient for each of its results."""

    config: dict[str, Any]  # the constructor's arguments, but for dtype
    weights: Weights
    x: Array
    h_0: Array
    c_0: Array
    lengths: Array | int | None
    dy: Array
    dh_n: Array
    dc_n: Array

    def cast(self, dtype: str) -> Problem:
        """The same problem in another dtype."""
        return Problem(
            self.config,
            {name: a.astype(dtype) for name, a in self.weights.items()},
            self.x.astype(dtype),
            self.h_0.astype(dtype),
            self.c_0.astype(dtype),
            self.lengths,
            self.dy.astype(dtype),
            self.dh_n.astype(dtype),
            self.dc_n.astype(dtype),
        )

    @property
    def states(self) -> tuple[Array, Array]:
        return self.h_0, self.c_0

    def lstm(self, **changes: Any) -> Any:
        """The network as a `cylstm.LSTM` of the weights' dtype."""
        import cylstm  # here, because the tests of the reference can do without

        lstm = cylstm.LSTM(**(self.config | {"dtype": self.x.dtype} | changes))
        lstm.load_state_dict(self.weights)
        return lstm

    def reference(self, dropout: list[Array] | None = None) -> tuple[reference.Tape, Any]:
        """Results and gradients of cylstm.reference in float64."""
        p = self.cast("float64")
        tape = reference.forward(
            p.weights,
            p.x,
            p.states,
            p.lengths,
            batch_first=self.config.get("batch_first", False),
            dropout=dropout,
        )
        return tape, reference.backward(tape, p.dy, p.dh_n, p.dc_n)

    def put(self, name: str, a: Array) -> Problem:
        """The same problem with another array of this name, be it a weight."""
        if name in self.weights:
            return self._replace(weights=self.weights | {name: a})
        change: Any = {name: a}
        return self._replace(**change)

    def take(self, rows: Array) -> Problem:
        """Some sequences of a time-major batch, in the order of ``rows``."""
        return self._replace(
            x=self.x[:, rows],
            h_0=self.h_0[:, rows],
            c_0=self.c_0[:, rows],
            lengths=None if self.lengths is None else np.asarray(self.lengths)[rows],
            dy=self.dy[:, rows],
            dh_n=self.dh_n[:, rows],
            dc_n=self.dc_n[:, rows],
        )

    def loss(self, y: Array, h_n: Array, c_n: Array) -> float:
        """The number whose gradients with respect to the results are dy, dh_n and dc_n."""
        return float((y * self.dy).sum() + (h_n * self.dh_n).sum() + (c_n * self.dc_n).sum())

    def valid(self) -> Array:
        """(T, B), which steps lie before their sequence's length."""
        first = self.config.get("batch_first", False) and self.x.ndim == 3
        T = self.x.shape[1 if first else 0]
        B = 1 if self.x.ndim == 2 else self.x.shape[0 if first else 1]
        n = np.full(B, T) if self.lengths is None else np.asarray(self.lengths).reshape(B)
        return np.arange(T)[:, None] < n


def weight_shapes(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    bidirectional: bool = False,
    proj_size: int = 0,
    **_: Any,
) -> dict[str, tuple[int, ...]]:
    """The names and shapes of torch.nn.LSTM's weights."""
    D, out = 1 + bidirectional, proj_size or hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        for d in range(D):
            ih, hh, b_ih, b_hh, hr, *_others = reference.names(layer, d)
            shapes[ih] = (4 * hidden_size, input_size if layer == 0 else D * out)
            shapes[hh] = (4 * hidden_size, out)
            if bias:
                shapes[b_ih] = shapes[b_hh] = (4 * hidden_size,)
            if proj_size:
                shapes[hr] = (proj_size, hidden_size)
    return shapes


def make_problem(
    seed: int,
    T: int,
    B: int | None,
    lengths: ArrayLike | None = None,
    dtype: str = "float64",
    **config: Any,
) -> Problem:
    """A random `Problem`; B None is unbatched. All of it float32 numbers, so casts are exact.

    Weights, states and inputs are wide enough that no gate is nearly constant, and narrow enough
    that none saturates.
    """
    rng = np.random.default_rng(seed)
    config.setdefault("num_layers", 1)
    L, D = config["num_layers"], 1 + config.get("bidirectional", False)
    H = config["hidden_size"]
    R = config.get("proj_size", 0) or H

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

    def series(width: int) -> tuple[int, ...]:
        if B is None:
            return (T, width)
        return (B, T, width) if config.get("batch_first", False) else (T, B, width)

    batch = () if B is None else (B,)
    # A product of n terms has a spread of about 1, as in a trained network.
    weights = {
        name: draw(*shape, scale=0.2 if len(shape) == 1 else 0.7 / np.sqrt(shape[-1]))
        for name, shape in weight_shapes(**config).items()
    }
    return Problem(
        config,
        weights,
        draw(*series(config["input_size"])),
        draw(L * D, *batch, R, scale=0.5),
        draw(L * D, *batch, H, scale=0.8),
        lengths if lengths is None or isinstance(lengths, int) else np.asarray(lengths),
        draw(*series(D * R)),
        draw(L * D, *batch, R),
        draw(L * D, *batch, H),
    ).cast(dtype)


# Calls that are worth several threads: each is large enough, and cut in another way.
THREADED: dict[str, dict[str, Any]] = {
    "rows": dict(T=9, B=23, input_size=33, hidden_size=65, num_layers=2),
    "directions": dict(T=9, B=23, input_size=33, hidden_size=65, num_layers=2, bidirectional=True),
    "rows of different lengths": dict(
        T=9,
        B=23,
        lengths=[9, 0, 1, 9, 4, 8, 2, 2, 7, 9, 3, 5, 5, 6, 1, 0, 9, 9, 3, 8, 4, 4, 9],
        input_size=33,
        hidden_size=130,
        num_layers=2,
        bidirectional=True,
        proj_size=65,
    ),
    "units of one row": dict(T=40, B=1, input_size=33, hidden_size=150),
    "units, projected": dict(
        T=40, B=2, lengths=[40, 31], input_size=3, hidden_size=300, num_layers=2, proj_size=150
    ),
    "units of both directions": dict(
        T=20, B=2, input_size=33, hidden_size=150, num_layers=2, bidirectional=True
    ),
    "units of large weights": dict(T=3, B=19, input_size=50, hidden_size=333),
    "many steps": dict(T=300, B=5, input_size=7, hidden_size=50, num_layers=3),
}

# Calls longer than any block of time that a pass may be cut into, in one and in three layers:
# layers exchange 256 kB, gradients are added up by 512 rows.
LONG: dict[str, dict[str, Any]] = {
    "one layer": dict(T=600, B=2, input_size=3, hidden_size=7),
    "layers": dict(T=130, B=12, input_size=5, hidden_size=50, num_layers=3),
    "batch": dict(T=30, B=300, input_size=5, hidden_size=17, num_layers=2),
    "directions": dict(T=300, B=3, input_size=3, hidden_size=17, num_layers=2, bidirectional=True),
    "lengths": dict(
        T=150,
        B=17,
        lengths=[1, 150, 0, 133, 149, *range(12)],
        input_size=5,
        hidden_size=50,
        num_layers=3,
        proj_size=33,
    ),
}


def check_by_differences(p: Problem, loss: Callable[[Problem], float], grads: Any) -> None:
    """Up to 12 elements of every gradient in ``grads``, against central differences of ``loss``."""
    rng = np.random.default_rng(0)

    def check(name: str, at: Array, grad: Array) -> None:
        indices = rng.permutation(at.size)[:12]
        want = numerical_gradient(lambda a: loss(p.put(name, a)), at, indices)
        assert np.abs(grad.flat[indices] - want).max() < 1e-7 * np.abs(grad).max(), name

    for name in ("x", "h_0", "c_0"):
        check(name, getattr(p, name), getattr(grads, name))
    for name, at in p.weights.items():
        check(name, at, grads.weights[name])


class Golden(NamedTuple):
    """A `Problem` with the results and gradients that PyTorch gives for it in float64."""

    problem: Problem
    dropout: list[Array] | None  # masks (T, B, D*R) that were put between the layers
    y: Array
    h_n: Array
    c_n: Array
    grads: reference.Grads


GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def load_golden(name: str) -> Golden:
    """Read one of `GOLDEN_NAMES`."""
    with np.load(GOLDEN / f"{name}.npz") as z:
        a = {key: z[key] for key in z.files}
    config = json.loads(str(a.pop("config")))
    weights = {key[2:]: a[key] for key in a if key.startswith("w/")}
    dweights = {key[3:]: a[key] for key in a if key.startswith("dw/")}
    lengths = a.get("lengths")
    if lengths is not None and lengths.ndim == 0:
        lengths = int(lengths)
    p = Problem(config, weights, a["x"], a["h_0"], a["c_0"], lengths, a["dy"], a["dh_n"], a["dc_n"])
    return Golden(
        p,
        [a[key] for key in sorted(a) if key.startswith("mask")] or None,
        a["y"],
        a["h_n"],
        a["c_n"],
        reference.Grads(a["dx"], a["dh_0"], a["dc_0"], dweights),
    )
