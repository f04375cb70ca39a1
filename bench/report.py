"""From results to tables: JSON, Markdown, the terminal, and whether the targets are met."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import OURS, Result, Row, rows_of

if TYPE_CHECKING:
    from rich.console import Console

DISTURBED = 0.1  # CPUs; where others took more, the shape is marked
GEOMEAN_TARGET = {"forward": 1.5, "training": 2.0}


def seconds(time: float) -> str:
    """Three figures and a unit."""
    for scale, unit in ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")):
        if time < 999.5 * scale or scale == 1:
            value = time / scale
            return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
    raise AssertionError


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def means(rows: list[Row]) -> tuple[float, float]:
    """Geometric means of the ratios, by least times and by medians."""
    return (
        geomean([row.ratio for row in rows if row.ratio]),
        geomean([row.median_ratio for row in rows if row.median_ratio]),
    )


def by_mode(rows: list[Row]) -> Iterator[tuple[str, int, list[Row]]]:
    """The rows of each table."""
    for mode, threads in dict.fromkeys((row.mode, row.threads) for row in rows):
        yield mode, threads, [r for r in rows if (r.mode, r.threads) == (mode, threads)]


def table(rows: list[Row], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and cells; a peer's cell is its time and how many times ours that is.

    `brief`, for the terminal, leaves a peer's time out where there is ours.
    """
    peers = list(dict.fromkeys(name for row in rows for name in row.times if name != OURS))
    heads = ["shape", "T,B,I,H", OURS, "of limit", *peers, "fastest", "target"]
    cells = []
    for row in rows:
        ours, rival = row.times.get(OURS), row.rival(row.times)
        line = [row.shape.name + (" ~" if row.others > DISTURBED else ""), str(row.shape)]
        line += [seconds(ours), f"{row.limit / ours:.0%}"] if ours else ["–", "–"]
        for name in peers:
            time = row.times.get(name)
            if time is None:
                line.append("–")
            elif ours is None:
                line.append(seconds(time))
            else:
                line.append(f"×{time / ours:.2f}" + ("" if brief else f" ({seconds(time)})"))
        if row.ratio is not None:
            line += [f"×{row.ratio:.2f}", f"{row.target:g} {'✓' if row.passed else '✗'}"]
        else:
            line += [f"{row.limit / rival:.0%} of limit" if rival else "–", "–"]
        cells.append(line)
    return heads, cells


def summary(rows: list[Row]) -> tuple[list[str], bool]:
    """Geometric means, what misses its target, and whether nothing does."""
    lines, passed = [], True
    for mode, threads, group in by_mode(rows):
        for name in dict.fromkeys(row.set for row in group):
            some = [row for row in group if row.set == name and row.ratio is not None]
            if not some:
                continue
            # The forward pass of a shape with T = 1 is a stream's step.
            steps = (name, threads, "step") if mode == "forward" else ()
            whole = some + [
                row for row in rows if (row.set, row.threads, row.mode) == steps and row.ratio
            ]
            mean, median = means(whole)
            sequences = [row for row in whole if row.shape.T > 1]
            of_which = ""
            if 0 < len(sequences) < len(whole):
                of_which = f"; ×{means(sequences)[0]:.2f} over the {len(sequences)} with T > 1"
            wanted = GEOMEAN_TARGET.get(mode, 0.0)
            missed = [f"{r.shape.name} ×{r.ratio:.2f} < {r.target:g}" for r in some if not r.passed]
            good = mean >= wanted and not missed
            passed &= good
            rivals = "torch" if mode == "training" else "the fastest"
            lines.append(
                f"{'PASS' if good else 'FAIL'}  {name}, {mode}, {threads} thread(s): "
                f"geometric mean ×{mean:.2f} of {rivals} (by medians ×{median:.2f}{of_which})"
                + (f", target {wanted:g}" if wanted else "")
                + f"; {len(some) - len(missed)} of {len(some)} shapes meet theirs"
            )
            lines += [f"      missed: {one}" for one in missed]
    for row in rows:
        for flaw in row.flaws:
            lines.append(f"FAIL  {row.shape.name}, {row.mode}, {row.threads} thread(s): {flaw}")
            passed &= not flaw.startswith(OURS)
    return lines, passed


def preface(results: Result) -> list[str]:
    """What was measured, on what and how."""
    about, effort = results["about"], results["effort"]
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v)
    lines = [
        f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}, Python {about['python']}",
        f"{versions}; {results['dtype']}; {about['date']}",
        f"Least time of one call over at most {effort['rounds']} rounds in which the engines take "
        "turns; × is a peer's time over cylstm's, fastest the best of torch, ONNX Runtime and "
        "OpenVINO (training: of torch).",
    ]
    disturbed = [job["others"] for job in results["jobs"] if job["others"] > DISTURBED]
    if disturbed:
        lines.append(
            f"~ marks the {len(disturbed)} of {len(results['jobs'])} lines beside which other "
            f"processes took up to {max(disturbed):.1f} CPUs: read them with caution, and those of "
            "several threads not at all."
        )
    for threads, machine in results["limits"].items():
        read = machine["read"]
        points = [read[k] for k in range(0, len(read), 4)]
        rates = ", ".join(f"{size / 2**20:.3g} MiB {rate:.0f}" for size, rate in points)
        lines.append(
            f"{threads} thread(s): {machine['f32']:.0f} GFLOP/s in float32, "
            f"{machine['f64']:.0f} in float64; GB/s read by working set: {rates}"
        )
    return lines


def save(results: Result, out: Path) -> None:
    """Write <out>.json, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".json.part")
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(out.with_name(out.name + ".json"))


def markdown(results: Result) -> str:
    rows = rows_of(results)
    text = ["# cylstm beside its peers", ""]
    text += [line for part in preface(results) for line in (part, "")]
    text += ["```", *summary(rows)[0], "```", ""]
    for mode, threads, group in by_mode(rows):
        heads, cells = table(group)
        text += [f"## {mode}, {threads} thread(s)", ""]
        align = ["---", "---"] + ["---:"] * (len(heads) - 2)
        text += ["| " + " | ".join(line) + " |" for line in (heads, align, *cells)]
        text.append("")
    return "\n".join(text)


def show(results: Result, console: Console) -> None:
    """The tables and the verdict, in the terminal."""
    from rich.table import Table

    rows = rows_of(results)
    for mode, threads, group in by_mode(rows):
        heads, cells = table(group, brief=True)
        drawn = Table(title=f"{mode}, {threads} thread(s)", title_style="bold")
        for k, head in enumerate(heads):
            drawn.add_column(head, justify="left" if k < 2 else "right", no_wrap=k == 0)
        for row, line in zip(group, cells, strict=True):
            if row.ratio is not None:
                color = "green" if row.passed else "red"
                line[-2:] = [f"[{color}]{text}[/]" for text in line[-2:]]
            drawn.add_row(*line)
        console.print(drawn)
    for text in preface(results)[3:]:
        console.print(text, style="dim")
    for text in summary(rows)[0]:
        color = {"PASS": "bold green", "FAIL": "bold red"}.get(text[:4], "red")
        console.print(text, style=color, highlight=False)


def write(results: Result, out: Path, console: Console) -> bool:
    """Write <out>.json, .md and .png, show the tables; whether every target is met."""
    save(results, out)
    out.with_name(out.name + ".md").write_text(markdown(results))
    show(results, console)
    try:
        from bench import plot
    except ImportError as missing:
        console.print(f"no picture: {missing}")
    else:
        plot.draw(results, out.with_name(out.name + ".png"))
    console.print(f"written: {out}.json, .md, .png")
    return summary(rows_of(results))[1]
