"""Draw what happened: the series, the roll-outs, their errors, and the gates behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from model import Array
from series import Series

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"seasonal naive": "#d99a1c", "ridge": "#2a7f9e", "LSTM": "#c8325a"}
WIDTHS = {"seasonal naive": 1.3, "ridge": 1.3, "LSTM": 2.0}
DARK, GREY, OURS = "#22242a", "#6b7078", COLOURS["LSTM"]
STYLE = {
    "axes.edgecolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.xmargin": 0.01,
    "grid.color": "#e3e5e9",
    "legend.edgecolor": "none",
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def draw(
    path: Path,
    series: Series,
    first: int,
    made: dict[str, Array],
    errors: dict[str, Array],
    future: Array,
    gates: Array,
) -> None:
    """Write the figure as a PNG.

    made, errors: the baselines' and the LSTM's (origins, horizon), in the order of COLOURS; the
    first origin is step `first`. future (horizon,): the LSTM's forecast after the end.
    gates (season, 4, H): the mean of i, f, g, o at each place in the season.
    """
    made = dict(zip(COLOURS, made.values(), strict=False))
    errors = dict(zip(COLOURS, errors.values(), strict=False))
    n, (count, horizon) = len(series.values), made["LSTM"].shape
    spread = np.sqrt(np.mean(np.square(errors["LSTM"]), axis=0))
    apart = range(0, count, horizon)  # of all origins those whose forecasts do not overlap
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9, 10), layout="constrained")
        panels = figure.subplot_mosaic("aa;bb;cc;de", height_ratios=(1.2, 3.4, 1.8, 2.3))
        whole, close, off, horizons, units = panels.values()
        off.sharex(close)

        whole.plot(*span(series, 0, series.values), color=DARK, lw=0.9)
        whole.axvspan(series.time(first), series.time(n - 1), color=OURS, alpha=0.12, lw=0)
        whole.set_title(f"{series.name}: {n} {series.step}s; the shaded {n - first} were held out")

        start = max(0, first - horizon)
        measured = span(series, start, series.values[start:])
        close.plot(*measured, ".-", color=DARK, lw=0.7, ms=4.5, zorder=3, label="measured")
        off.axhline(0, color=DARK, lw=0.8)
        for name, colour in COLOURS.items():
            look = {"color": colour, "lw": WIDTHS[name]}
            for k in apart:
                label = name if k == 0 else None
                close.plot(*span(series, first + k, made[name][k]), label=label, **look)
                off.plot(*span(series, first + k, errors[name][k]), **look)
            by_horizon = np.sqrt(np.mean(np.square(errors[name]), axis=0))
            horizons.plot(np.arange(1, horizon + 1), by_horizon, label=name, **look)
        x, _ = span(series, n, future)
        close.plot(x, future, color=OURS, lw=2, ls=(0, (3, 1)))
        close.fill_between(
            x, future - spread, future + spread, color=OURS, alpha=0.2, lw=0, label="± RMSE"
        )
        for t in [*(first + k for k in apart), n]:
            close.axvline(series.time(t - 1), color=GREY, lw=0.8, ls=":")
            off.axvline(series.time(t - 1), color=GREY, lw=0.8, ls=":")
        close.set_title(f"Forecasts of {horizon} {series.step}s")
        close.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=5, columnspacing=1.2, borderaxespad=0
        )
        close.tick_params(labelbottom=False)
        off.set_title("Forecast less measurement (dotted: where each forecast begins)")
        horizons.set_ylim(bottom=0)
        horizons.set_xticks(np.linspace(0, horizon, 5)[1:].round().astype(int))
        horizons.set_xlabel(f"{series.step}s ahead", color=GREY)
        horizons.set_title(f"RMSE over {count} origins")
        horizons.legend(loc="lower right")
        for axes in (whole, close, off, horizons):
            axes.grid(axis="y")
        draw_gates(units, series, gates)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_gates(axes: Any, series: Series, gates: Array) -> None:
    """What the season does to each unit's gates: four blocks, in each a row per unit."""
    season, _, hidden = gates.shape
    when = f"place 1 to {season}"
    if series.step == "month" and season == 12:
        when = "January to December"
        gates = np.roll(gates, int(series.time(0).astype(int)) % 12, axis=0)
    swing = gates - gates.mean(axis=0)
    wave = np.exp(2j * np.pi * np.arange(season) / season)
    order = np.argsort(np.angle(np.tensordot(wave, swing[:, 2], 1)))  # by when g is highest
    gap = np.full((1 + season // 12, hidden), np.nan)
    blocks = [np.concatenate([swing[:, k, order], gap]) for k in range(4)]
    limit = float(np.abs(swing).max()) or 1.0
    axes.imshow(np.concatenate(blocks).T, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(f"Gates, {when} in each")
    centres = (season - 1) / 2 + np.arange(4) * len(blocks[0])
    axes.set_xticks(centres, ["input", "forget", "cell", "output"])
    axes.set_xlabel(f"each unit less its mean: {limit:.2f} below (blue) to above (red)", color=GREY)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def span(series: Series, start: int, values: Array) -> tuple[Array, Array]:
    """The times of values that begin at step `start`, and the values."""
    return series.time(np.arange(start, start + len(values))), values
