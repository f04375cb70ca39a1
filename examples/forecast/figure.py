"""Draw what happened: the record, the roll-outs, their errors, and the gates behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from model import Array, errors_of
from series import Series

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {"seasonal naive": "#d99a1c", "ridge": "#2a7f9e", "LSTM": "#c8325a"}
WIDTHS = {"seasonal naive": 1.3, "ridge": 1.3, "LSTM": 2.0}
DARK, GREY, OURS = "#22242a", "#6b7078", COLOURS["LSTM"]
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.xmargin": 0.01,
    "font.size": 10,
    "grid.color": "#e3e5e9",
    "legend.frameon": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


def draw(
    path: Path,
    series: Series,
    first: int,
    forecasts: dict[str, Array],
    future: Array,
    gates: Array,
) -> None:
    """Write the figure as a PNG.

    forecasts: {name in COLOURS: (origins, horizon)}, the first origin being step `first`;
    future (horizon,): what the LSTM forecasts after the end; gates (season, 4, H): the mean of
    i, f, g, o at each place in the season.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9, 10), layout="constrained")
        rows = figure.add_gridspec(4, 1, height_ratios=(1.2, 3.4, 1.8, 2.3))
        bottom = rows[3].subgridspec(1, 5, width_ratios=(4.2, 1, 1, 1, 1), wspace=0.06)

        draw_record(figure.add_subplot(rows[0]), series, first)
        above = figure.add_subplot(rows[1])
        draw_roll_outs(above, series, first, forecasts, future)
        draw_errors(figure.add_subplot(rows[2], sharex=above), series, first, forecasts)
        draw_horizons(figure.add_subplot(bottom[0]), series, first, forecasts)
        draw_gates(figure, [figure.add_subplot(cell) for cell in list(bottom)[1:]], series, gates)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_record(axes: Any, series: Series, first: int) -> None:
    n = len(series.values)
    x = times(series, 0, n)
    axes.plot(x, series.values, color=DARK, lw=0.9)
    axes.axvspan(x[first], x[-1], color=OURS, alpha=0.12, lw=0)
    axes.set_title(f"{series.name}: {n} {series.step}s; the shaded {n - first} were held out")


def draw_roll_outs(
    axes: Any, series: Series, first: int, forecasts: dict[str, Array], future: Array
) -> None:
    n, horizon = len(series.values), len(future)
    context = max(0, first - horizon)
    axes.plot(times(series, context, n), series.values[context:], ".-", color=DARK, lw=0.7, ms=4.5,
              label="measured", zorder=3)  # fmt: skip
    for name, made in forecasts.items():
        label = name
        for t in shown_origins(first, made):
            axes.plot(times(series, t, t + horizon), made[t - first], color=COLOURS[name],
                      lw=WIDTHS[name], label=label)  # fmt: skip
            label = None
    spread = np.sqrt(np.mean(errors_of(forecasts["LSTM"], series.values, first) ** 2, axis=0))
    x = times(series, n, n + horizon)
    axes.plot(x, future, color=OURS, lw=2, ls=(0, (3, 1)))
    axes.fill_between(
        x, future - spread, future + spread, color=OURS, alpha=0.2, lw=0, label="± RMSE"
    )
    mark_origins(axes, series, [*shown_origins(first, forecasts["LSTM"]), n])
    axes.set_title(f"Forecasts of {horizon} {series.step}s, each from the dotted line before it")
    axes.legend(loc="upper left", ncols=5, columnspacing=1.2, handlelength=1.4)
    axes.tick_params(labelbottom=False)


def draw_errors(axes: Any, series: Series, first: int, forecasts: dict[str, Array]) -> None:
    axes.axhline(0, color=DARK, lw=0.8)
    for name, made in forecasts.items():
        off = errors_of(made, series.values, first)
        for t in shown_origins(first, made):
            x = times(series, t, t + made.shape[1])
            axes.plot(x, off[t - first], color=COLOURS[name], lw=WIDTHS[name])
    mark_origins(axes, series, [*shown_origins(first, made), len(series.values)])
    axes.set_title("Forecast less measurement")


def draw_horizons(axes: Any, series: Series, first: int, forecasts: dict[str, Array]) -> None:
    for name, made in forecasts.items():
        by_horizon = np.sqrt(np.mean(errors_of(made, series.values, first) ** 2, axis=0))
        axes.plot(1 + np.arange(len(by_horizon)), by_horizon, color=COLOURS[name], lw=WIDTHS[name],
                  label=name)  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True, steps=[1, 2, 3, 6, 10]))
    axes.set_xlabel(f"{series.step}s ahead", color=GREY)
    axes.legend(loc="lower right")
    axes.set_title(f"RMSE over {len(made)} origins")


def draw_gates(figure: Any, all_axes: list[Any], series: Series, gates: Array) -> None:
    """What the season does to each unit's gates: rows are units, columns places in the season."""
    season = len(gates)
    ticks = [0, season - 1], ["1", str(season)]
    if series.step == "month" and season == 12:  # begin in January
        gates = np.roll(gates, int(series.time(0).astype("M8[M]").astype(int)) % 12, axis=0)
        ticks = [0, 3, 6, 9], ["J", "A", "J", "O"]
    swing = gates - gates.mean(axis=0)
    wave = np.exp(2j * np.pi * np.arange(season) / season)
    order = np.argsort(np.angle(np.tensordot(wave, swing[:, 2], 1)))  # by when g is highest
    limit = float(np.abs(swing).max()) or 1.0
    names = "input", "forget", "cell", "output"
    for k, (axes, name) in enumerate(zip(all_axes, names, strict=True)):
        image = axes.imshow(
            swing[:, k, order].T, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit
        )
        axes.set_xlabel(name, color=GREY)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.set_xticks(*ticks)
        axes.tick_params(length=0)
    title = all_axes[0].set_title("The LSTM's gates in a season, less their mean")
    title.set_in_layout(False)  # it is wider than its panel
    bar = figure.colorbar(image, ax=all_axes, fraction=0.08, pad=0.02)
    bar.outline.set_visible(False)


def times(series: Series, start: int, stop: int) -> Array:
    x = np.array([series.time(t) for t in range(start, stop)])
    return x.astype("M8[s]") if x.dtype.kind == "M" else x


def shown_origins(first: int, made: Array) -> range:
    """Of all origins those whose forecasts do not overlap."""
    return range(first, first + made.shape[0], made.shape[1])


def mark_origins(axes: Any, series: Series, origins: list[int]) -> None:
    for x in times(series, 0, max(origins))[np.array(origins) - 1]:
        axes.axvline(x, color=GREY, lw=0.8, ls=":")
