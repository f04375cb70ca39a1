"""What is measured: the shapes of shapes.json, and the same drawn arrays for every engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SHAPES_FILE = Path(__file__).with_name("shapes.json")


@dataclass(frozen=True)
class Shape:
    """One network and the block of data it is run on, in the letters of the C core."""

    name: str
    T: int
    B: int
    I: int
    H: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    cell: str = "LSTM"  # or "GRU", "GRU, reset before", "RNN"
    source: str = ""

    @property
    def kind(self) -> str:
        """The class, here and in PyTorch."""
        return self.cell.split(",")[0]

    @property
    def reset_after(self) -> bool:
        """Of a GRU."""
        return self.cell != "GRU, reset before"

    @property
    def gates(self) -> int:
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.kind]

    @property
    def D(self) -> int:
        """Directions."""
        return 2 if self.bidirectional else 1

    @property
    def P(self) -> int:
        """Width of h."""
        return self.proj_size or self.H

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(layer, width of its input) for each layer."""
        return [(n, self.I if n == 0 else self.D * self.P) for n in range(self.num_layers)]

    @property
    def forward_flops(self) -> int:
        """Multiplications and additions of the matrix products of one forward pass."""
        per_row = 0
        for _, width in self.layers:
            gates = 2 * self.gates * self.H * (width + self.P)
            per_row += self.D * (gates + 2 * self.H * self.proj_size)
        return per_row * self.T * self.B

    @property
    def modes(self) -> tuple[str, ...]:
        """The forward pass of one time step is a stream's step."""
        return ("step" if self.T == 1 else "forward", "training")

    def __str__(self) -> str:
        extra = f" L{self.num_layers}" if self.num_layers > 1 else ""
        extra += " bi" if self.bidirectional else ""
        extra += f" P{self.proj_size}" if self.proj_size else ""
        extra += f" {self.cell}" if self.cell != "LSTM" else ""
        return f"{self.T},{self.B},{self.I},{self.H}{extra}"


def load_shapes() -> dict[str, list[Shape]]:
    """Read shapes.json: {set: shapes}."""
    sets = json.loads(SHAPES_FILE.read_text())
    return {name: [Shape(**row) for row in rows] for name, rows in sets.items()}


def suffixes(shape: Shape) -> Iterator[tuple[int, list[str]]]:
    """Give (width of the input, name suffixes of the directions) for each layer."""
    for layer, width in shape.layers:
        yield width, [f"_l{layer}", f"_l{layer}_reverse"][: shape.D]


@dataclass(frozen=True)
class Problem:
    """A shape with numbers in it; the states are not zero. The weights have PyTorch's names."""

    shape: Shape
    x: Array  # (T,B,I)
    h_0: Array  # (L*D,B,P)
    c_0: Array  # (L*D,B,H); of an LSTM
    dy: Array  # (T,B,D*P)
    weights: dict[str, Array]

    @property
    def states(self) -> dict[str, Array]:
        """Those that the cell has, by name."""
        return {"h_0": self.h_0} | ({"c_0": self.c_0} if self.shape.kind == "LSTM" else {})

    @property
    def given(self) -> Any:
        """The states as PyTorch's layers and ours take and give them: h, or (h, c)."""
        h, *c = self.states.values()
        return (h, *c) if c else h

    def widened(self) -> Problem:
        """The same numbers in float64."""
        arrays = {
            name: getattr(self, name).astype(np.float64) for name in ("x", "h_0", "c_0", "dy")
        }
        weights = {name: array.astype(np.float64) for name, array in self.weights.items()}
        return Problem(self.shape, **arrays, weights=weights)

    @classmethod
    def draw(cls, s: Shape, dtype: str = "float32") -> Problem:
        rng = np.random.default_rng(0)
        sizes: dict[str, tuple[int, ...]] = {}
        for width, directions in suffixes(s):
            for suffix in directions:
                sizes["weight_ih" + suffix] = (s.gates * s.H, width)
                sizes["weight_hh" + suffix] = (s.gates * s.H, s.P)
                sizes["bias_ih" + suffix] = (s.gates * s.H,)
                sizes["bias_hh" + suffix] = (s.gates * s.H,)
                if s.proj_size:
                    sizes["weight_hr" + suffix] = (s.P, s.H)
        bound = s.H**-0.5
        return cls(
            shape=s,
            x=rng.standard_normal((s.T, s.B, s.I)).astype(dtype),
            h_0=(0.5 * rng.standard_normal((s.num_layers * s.D, s.B, s.P))).astype(dtype),
            c_0=rng.standard_normal((s.num_layers * s.D, s.B, s.H)).astype(dtype),
            dy=(rng.standard_normal((s.T, s.B, s.D * s.P)) / (s.T * s.B)).astype(dtype),
            weights={k: rng.uniform(-bound, bound, v).astype(dtype) for k, v in sizes.items()},
        )


def named_states(last: Any) -> dict[str, Any]:
    """h, or (h, c), as a layer gives them at its end, by name."""
    states = last if isinstance(last, tuple) else (last,)
    return dict(zip(("h_n", "c_n"), states, strict=False))


def relative_error(a: Array, b: Array) -> float:
    """max|a-b| / max|b|, infinite where the shapes differ or a number is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    scale = float(np.abs(b).max(initial=0.0))
    difference = float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
    return difference / scale if scale else difference
