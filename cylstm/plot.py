"""Pictures, by matplotlib, which is imported where one is drawn (`pip install cylstm[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _checks, _core
from ._core import kind_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# By the number of gates on a tape, panels in the order in which a step uses them: the gate's place
# in tape.gates (None: tape.cells); its name; what it does; whether it is signed, that is from -1 to
# 1 or without bounds, and not from 0 to 1.
_PANELS = {
    4: (
        (0, "i", "writes", False),
        (2, "g", "what it writes", True),
        (1, "f", "keeps", False),
        (None, "c", "what it holds", True),
        (3, "o", "reads", False),
    ),
    3: (
        (0, "r", "reads the past", False),
        (2, "n", "what it writes", True),
        (1, "z", "keeps", False),
    ),
    1: ((0, "h", "what it holds", True),),
}
_ROW, _COLUMN, _TITLE = 0.13, 0.16, 0.34  # inches: of a unit, of a step, of a panel's name
_NARROWEST, _WIDEST = 6.0, 16.0
_MOST_TICKS = 60


def gates(
    tape: _core.Tape,
    *,
    sequence: int = 0,
    layer: int = -1,
    direction: int = 0,
    units: int | Sequence[int] = 12,
    labels: Sequence[Any] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the gates of one sequence, a panel each: a row for a unit, a column for a step.

    So one sees when an LSTM's cell writes (i), keeps (f) and reads (o), what it writes (g) and what
    it holds (c); of a GRU r, n and z; of an RNN h. Dark is open; red is positive, blue negative.
    Steps past the sequence's length are left out.

    Parameters
    ----------
    tape : Tape of an LSTM, a GRU or an RNN
    sequence : int
        Which one of the batch.
    layer, direction : int
        Which layer, by default the last; direction 1 of a bidirectional one reads from the right.
    units : int, or the units to draw, in order
        A number draws as many (or all there are), those whose cell moves most, in their order.
    labels : one for each step drawn, or None
        Put below the steps, such as the symbols that were read. Fewer labels than steps
        draw fewer steps.
    title : str or None

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `figure.savefig("gates.png")` writes it, and notebooks show it.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError, ValueError
        An argument is out of range.

    Examples
    --------
    >>> import cylstm, numpy as np
    >>> import matplotlib  # which cylstm[plot] brings
    >>> tape = cylstm.LSTM(3, 8, seed=1).forward(np.ones((5, 2, 3), np.float32))
    >>> figure = cylstm.plot.gates(tape, sequence=1, labels="hello")
    >>> len(figure.axes)  # i, g, f, c, o, and a scale each
    10
    """
    all_gates, cells = _select(tape, sequence, layer, direction)
    steps = _steps(all_gates, labels)
    all_gates, cells = all_gates[:steps], cells[:steps]
    chosen = _choose_units(cells, units)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot needs matplotlib: pip install cylstm[plot]") from None
    panels = _PANELS[all_gates.shape[1]]
    width = min(max(_COLUMN * steps + 2.2, _NARROWEST), _WIDEST)
    height = len(panels) * (max(_ROW * len(chosen), 0.4) + _TITLE) + 0.9
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for (gate, name, does, signed), ax in zip(panels, axes, strict=True):
        values = cells if gate is None else all_gates[:, gate]
        image = _draw(ax, values[:, chosen].T, chosen, signed, bounded=gate is not None)
        ax.set_title(f"{name}:  {does}", loc="left", fontsize=10, pad=3)
        bar = figure.colorbar(image, ax=ax, pad=0.01, aspect=12)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_visible(False)
    _label_steps(axes[-1], steps, labels)
    if title is not None:
        figure.suptitle(title)
    return figure


def _select(
    tape: Any, sequence: int, layer: int, direction: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The gates (T, G, H) of a sequence, layer and direction, and its cells (T, H), or in their
    place the candidate of a GRU, the state of an RNN."""
    if not isinstance(tape, _core.Tape):
        raise TypeError(f"tape is {kind_of(tape)}, expected the tape of a recurrent layer")
    all_gates, cells = tape.gates, tape.cells
    if all_gates is None:
        raise ValueError("tape was made with checkpoint=True, expected one that keeps its gates")
    batched = all_gates.ndim == 5
    passes, batch = len(all_gates), all_gates.shape[2] if batched else 1
    directions = tape.directions
    layers = passes // directions
    _checks.integer("sequence", sequence, -batch, batch - 1)
    _checks.integer("layer", layer, -layers, layers - 1)
    _checks.integer("direction", direction, 0, directions - 1)
    if all_gates.shape[1] == 0:
        raise ValueError("tape has no steps, expected at least one")
    at = (layer % layers) * directions + direction
    its_gates = all_gates[at, :, sequence] if batched else all_gates[at]
    if cells is None:
        return its_gates, its_gates[:, -1]
    return its_gates, cells[at, :, sequence] if batched else cells[at]


def _steps(its_gates: NDArray[Any], labels: Sequence[Any] | None) -> int:
    """How many steps to draw: past a length, all gates are exactly zero."""
    used = np.flatnonzero(its_gates.any(axis=(1, 2)))
    steps = int(used[-1]) + 1 if used.size else 1
    if labels is None:
        return steps
    if not 1 <= len(labels) <= len(its_gates):
        raise ValueError(f"labels has {len(labels)} entries, expected 1 to {len(its_gates)}")
    return len(labels)


def _choose_units(cells: NDArray[Any], units: int | Sequence[int]) -> list[int]:
    H = cells.shape[1]
    if isinstance(units, (int, np.integer)):
        count = min(_checks.integer("units", units), H)
        return sorted(np.argsort(-cells.std(axis=0), kind="stable")[:count].tolist())
    chosen = [_checks.integer("units", unit, 0, H - 1) for unit in units]
    if not chosen:
        raise ValueError("units is empty, expected a number or units to draw")
    return chosen


def _draw(ax: Any, values: NDArray[Any], units: list[int], signed: bool, bounded: bool) -> Any:
    largest = max(float(np.abs(values).max()), 1e-6)
    limit = max(1.0, largest) if signed or not bounded else 1.0
    image = ax.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap="RdBu_r" if signed else "Greys",
        vmin=-limit if signed else min(0.0, float(values.min())),
        vmax=limit if signed else max(1.0, float(values.max())),
    )
    ax.set_ylabel("unit", fontsize=8)
    every = max(1, -(-len(units) // 12))
    ax.set_yticks(range(0, len(units), every), units[::every], fontsize=7)
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(values.shape[1]) - 0.5, minor=True)
    if values.shape[1] <= _MOST_TICKS:
        ax.grid(which="minor", axis="x", color="white", linewidth=0.8)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _label_steps(ax: Any, steps: int, labels: Sequence[Any] | None) -> None:
    every = max(1, -(-steps // _MOST_TICKS))
    at = range(0, steps, every)
    if labels is None:
        every = max(1, -(-steps // 20))
        ax.set_xticks(range(0, steps, every))
        ax.set_xlabel("step", fontsize=9)
        return
    texts = [str(labels[t]) for t in at]
    upright = max(map(len, texts)) > 2
    ax.set_xticks(at, texts, fontsize=9, rotation=90 if upright else 0)
