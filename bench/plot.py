"""A picture of a run: ratios and a roofline. `python -m bench.plot results.json [picture.png]`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.limits import bandwidth, forward_bytes
from bench.rows import OURS, RIVALS, Result, Row, rows_of

ROW_INCHES = 0.30  # height of a shape
BAR = "#9ecae1", "#3182bd", "#08519c", "#08306b"  # by number of threads, in order
MARKS = {
    "torch": ("o", "#e6550d"),
    "ort": ("s", "#31a354"),
    "ort-binding": ("D", "#006d2c"),
    "openvino": ("^", "#756bb1"),
    "ncnn": ("v", "#dd1c77"),
    "jax": ("x", "#636363"),
}
LEVELS = ((32 << 10, "32 KiB"), (512 << 10, "512 KiB"), (8 << 20, "8 MiB"), (128 << 20, "128 MiB"))


def plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def base_of(row: Row) -> float:
    """What times are divided by: ours, or without ours the machine's limit."""
    return row.times.get(OURS, row.limit)


def draw_ratios(axes: Axes, rows: list[Row], threads: list[int]) -> None:
    """A bar per shape and number of threads up to the fastest rival; a mark for every peer."""
    names = list(dict.fromkeys(row.shape.name for row in rows))
    height = 0.8 / len(threads)
    for row in rows:
        lane = threads.index(row.threads)
        y = names.index(row.shape.name) - 0.4 + (lane + 0.5) * height
        base, rival = base_of(row), row.rival(row.times)
        if rival:
            color = BAR[lane % len(BAR)]
            axes.barh(y, rival / base - 1, 0.9 * height, left=1, color=color, zorder=2)
        for name, (mark, color) in MARKS.items():
            if name in row.times:
                axes.plot(row.times[name] / base, y, mark, color=color, ms=3.2, mew=0.9, zorder=3)
        if OURS in row.times:
            ends = (y - height / 2, y + height / 2)
            axes.plot([row.target] * 2, ends, color="#de2d26", lw=1.2, zorder=4)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.axvline(1, color="black", lw=0.8, zorder=4)
    sets = [next(row.set for row in rows if row.shape.name == name) for name in names]
    for k in range(1, len(names)):
        if sets[k] != sets[k - 1]:
            axes.axhline(k - 0.5, color="#888888", lw=0.6, zorder=1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="x", color="#dddddd", lw=0.5, zorder=0)
    axes.tick_params(axis="x", labelsize=7)
    ours = any(OURS in row.times for row in rows)
    axes.set_xlabel("peer's time / cylstm's" if ours else "time / machine's limit", fontsize=8)
    axes.set_title(rows[0].mode, fontsize=10, loc="left", fontweight="bold")


def draw_roofline(axes: Axes, rows: list[Row], machine: Any, item: int) -> None:
    """GFLOP/s reached over flops per byte of weights read, under the machine's roofs."""
    points = []
    for row in rows:
        for name, time in row.times.items():
            kind = "rival" if name in RIVALS[row.mode] else name
            if kind == OURS or (kind == "rival" and time == row.rival(row.times)):
                intensity = row.shape.forward_flops / forward_bytes(row.shape, item)
                points.append((kind, intensity, row.shape.forward_flops / time / 1e9))
    low, high = min(x for _, x, _ in points) / 2, max(x for _, x, _ in points) * 1.6
    peak = machine["f64" if item == 8 else "f32"]
    bottom = min(min(y for _, _, y in points) / 1.5, 10)
    for (size, label), dashes in zip(LEVELS, ("-", "--", "-.", ":"), strict=True):
        rate = bandwidth(machine, size) / 1e9
        ends = [low, peak / rate, high], [low * rate, peak, peak]
        axes.plot(*ends, dashes, color="#777777", lw=1, label=f"{label}: {rate:.0f} GB/s")
    axes.legend(loc="lower right", fontsize=7, title="weights in", title_fontsize=7, frameon=False)
    axes.text(high / 1.1, peak * 1.05, f"peak {peak:.0f} GFLOP/s", fontsize=6.5, ha="right")
    for kind, mark, color, face in (
        ("rival", "o", "#e6550d", "none"),
        (OURS, "o", "#08519c", "#08519c"),
    ):
        xs, ys = [p[1] for p in points if p[0] == kind], [p[2] for p in points if p[0] == kind]
        axes.scatter(xs, ys, 16, marker=mark, edgecolors=color, facecolors=face, lw=0.9, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, peak * 1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(plain))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)
    axes.grid(color="#eeeeee", lw=0.5, zorder=0)
    axes.set_xlabel("flops per byte of weights", fontsize=8)
    axes.set_ylabel("GFLOP/s", fontsize=8)
    axes.set_title(
        f"forward and step, {rows[0].threads} thread(s)", fontsize=10, loc="left", fontweight="bold"
    )


def draw(results: Result, path: Path) -> None:
    """Write the picture: forward, training, and beside them step above the rooflines."""
    rows = rows_of(results)
    threads = sorted({row.threads for row in rows})
    item = 8 if results["dtype"] == "float64" else 4
    by_mode = {m: [r for r in rows if r.mode == m] for m in ("forward", "training", "step")}
    tall = [mode for mode in ("forward", "training") if by_mode[mode]]
    roofs = [n for n in threads if any(r.threads == n for r in rows if r.mode != "training")]

    def inches(mode: str) -> float:
        return 0.9 + ROW_INCHES * len({row.shape.name for row in by_mode[mode]})

    side = ([("step", inches("step"))] if by_mode["step"] else []) + [(n, 3.6) for n in roofs]
    height = max([inches(mode) for mode in tall] + [sum(h for _, h in side)])
    columns = len(tall) + bool(side)
    figure = plt.figure(figsize=(5.6 * columns, height + 1.1), layout="constrained")
    grid = figure.add_gridspec(1, columns)
    for k, mode in enumerate(tall):
        own = inches(mode)
        cell = grid[0, k].subgridspec(2, 1, height_ratios=[own, max(height - own, 0.01)])
        draw_ratios(figure.add_subplot(cell[0]), by_mode[mode], threads)
    if side:
        rest = max(height - sum(h for _, h in side), 0.01)
        ratios = [h for _, h in side] + [rest]
        cell = grid[0, -1].subgridspec(len(ratios), 1, height_ratios=ratios)
        for k, (what, _) in enumerate(side):
            axes = figure.add_subplot(cell[k])
            if what == "step":
                draw_ratios(axes, by_mode["step"], threads)
            else:
                some = [r for r in rows if r.threads == what and r.mode != "training"]
                draw_roofline(axes, some, results["limits"][str(what)], item)

    seen = {name for row in rows for name in row.times}
    handles: list[Any] = [
        Patch(color=BAR[k % len(BAR)], label=f"fastest rival, {n} thread(s)")
        for k, n in enumerate(threads)
    ]
    handles += [
        Line2D([], [], marker=mark, color=color, ls="", ms=5, label=name)
        for name, (mark, color) in MARKS.items()
        if name in seen
    ]
    if OURS in seen:
        handles.append(Line2D([], [], color="#de2d26", label="target"))
        handles.append(Line2D([], [], color="#08519c", marker="o", ls="", label="cylstm, roofline"))
    handles.append(
        Line2D([], [], color="#e6550d", marker="o", ls="", mfc="none", label="rival, roofline")
    )
    about = results["about"]
    figure.suptitle(
        f"{about['cpu']}, {about['cpus']} CPUs, {results['dtype']}, {about['date'][:10]}",
        fontsize=10,
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".png")
    draw(json.loads(source.read_text()), target)
    print(f"written: {target}")


if __name__ == "__main__":
    main()
