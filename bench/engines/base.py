"""What an engine is, and what the classes of this folder share."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np

from bench.problem import Array, Problem

LEARNING_RATE = 1e-6  # small: thousands of timed training steps must not wear the weights out
ADAM_EPS = 1e-8

Outputs = dict[str, Array]


class Unsupported(Exception):
    """The engine has no such computation; the message says which."""


class Call(NamedTuple):
    """One way to have an engine do the work once."""

    label: str
    run: Callable[[], object]  # what is timed
    read: Callable[[], Outputs]  # what the latest run computed, not timed
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


class Engine:
    """The engine `name`, from the distribution `package`; a method gives its calls to try.

    forward   y, h_n, c_n of a block
    step      the same for T = 1, each run starting from the states that the last one left
    training  forward, backward from dy, and a step of Adam: y, the gradients as "d <weight>" and
              the new weights
    """

    name: ClassVar[str]
    package: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # modules, where the package alone is not enough

    @classmethod
    def version(cls) -> str | None:
        """The version installed, or None."""
        try:
            found = all(importlib.util.find_spec(module) for module in cls.needs)
            return importlib.metadata.version(cls.package) if found else None
        except importlib.metadata.PackageNotFoundError:
            return None

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def calls(self, mode: str, problem: Problem) -> list[Call]:
        """The calls for a mode; Unsupported where the engine has none."""
        made: list[Call] = getattr(self, mode)(problem)
        return made

    def forward(self, problem: Problem) -> list[Call]:
        raise Unsupported("no blocks")

    def step(self, problem: Problem) -> list[Call]:
        raise Unsupported("no steps")

    def training(self, problem: Problem) -> list[Call]:
        raise Unsupported("no training")


def need_float32(p: Problem) -> None:
    if p.x.dtype != np.float32:
        raise Unsupported(f"no {p.x.dtype}")


def need_lstm(p: Problem) -> None:
    if p.shape.cell != "LSTM":
        raise Unsupported(f"no {p.shape.cell}")
