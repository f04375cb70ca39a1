"""A run of `--sets narrow`: time and error of engines with fewer bits, in tables and a picture.

`python -m bench.narrow results.json` draws the picture once more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.problem import Shape, load_shapes
from bench.rows import OURS, Result

if TYPE_CHECKING:
    from rich.console import Console

SETS = ("models", "steps", "square")  # the grid; steps of less than 64 units are calls, not sums
PEERS = {
    "int8": ("ort-int8", "ort-int8-binding", "torch-int8"),
    "bf16": ("openvino-bf16", "torch-bf16"),
}
LABELS = {OURS: "cylstm, float32"}
MARKS = {
    OURS: "o",
    "cylstm-bf16": "D",
    "cylstm-int8": "s",
    "cylstm-int8-x16": "p",
    "ort-int8": "^",
    "ort-int8-binding": "v",
    "torch-int8": "<",
    "openvino-bf16": ">",
    "torch-bf16": "P",
}
COLORS = (
    *("#08519c", "#3182bd", "#6baed6", "#2171b5"),  # ours
    *("#31a354", "#006d2c", "#e6550d", "#756bb1", "#fdae6b"),
)


def shapes() -> list[Shape]:
    sets = load_shapes()
    return [one for name in SETS for one in sets[name] if name != "steps" or one.H >= 64]


class Line:
    """One job: seconds and errors by engine."""

    def __init__(self, results: Result, job: Result) -> None:
        fields = dict(results["shapes"][job["shape"]])
        fields.pop("set")
        self.shape = Shape(**fields)
        self.key = job["mode"], job["threads"]
        self.disturbed = job["others"] > report.DISTURBED
        engines = job["engines"]
        self.times = {name: one["min"] for name, one in engines.items() if "min" in one}
        self.errors = {name: one["error"] for name, one in engines.items() if "min" in one}
        self.flaws = [f"{n} {one['left_out']}" for n, one in engines.items() if one.get("failed")]

    def against(self, own: str, others: tuple[str, ...]) -> tuple[float, str] | None:
        """How many times as fast as the fastest of some others ours is, and which that is."""
        there = [name for name in others if name in self.times]
        if own not in self.times or not there:
            return None
        fastest = min(there, key=self.times.__getitem__)
        return self.times[fastest] / self.times[own], fastest


def lines_of(results: Result) -> list[Line]:
    return [Line(results, job) for job in results["jobs"]]


def groups(lines: list[Line]) -> Iterator[tuple[str, list[Line]]]:
    for mode, threads in dict.fromkeys(line.key for line in lines):
        yield f"{mode}, {threads} thread(s)", [one for one in lines if one.key == (mode, threads)]


def table(lines: list[Line]) -> list[list[str]]:
    """A row for each shape: time over that of our float32, and the error, of every engine."""
    names = [name for name in MARKS if any(name in line.times for line in lines)]
    rows = [["T,B,I,H", *(LABELS.get(name, name) for name in names)]]
    for line in lines:
        cells = [str(line.shape) + (" ~" if line.disturbed else "")]
        for name in names:
            if name not in line.times:
                cells.append("–")
                continue
            own = line.times.get(OURS)
            ratio = "" if name == OURS or not own else f"×{own / line.times[name]:.2f}, "
            cells.append(f"{report.seconds(line.times[name])} ({ratio}{line.errors[name]:.0e})")
        rows.append(cells)
    return rows


def comparisons(lines: list[Line]) -> list[tuple[str, list[float], str]]:
    """(what, its ratio at every shape, what else is to be said)."""
    found = []
    wide = [line for line in lines if line.shape.H >= 128]
    alone = [line for line in lines if line.shape.B == 1 and line.shape.H >= 64]
    for own, what, others, some in (
        ("cylstm-int8", "int8 against our float32, H >= 128", (OURS,), wide),
        ("cylstm-bf16", "bfloat16 against our float32, B = 1, H >= 64", (OURS,), alone),
        ("cylstm-int8", "int8 against the fastest int8 peer", PEERS["int8"], lines),
        ("cylstm-int8-x16", "int8 with x of 16 bits against that peer", PEERS["int8"], lines),
        ("cylstm-bf16", "bfloat16 against the fastest bf16 peer", PEERS["bf16"], lines),
    ):
        ratios, errors = [], []
        for line in some:
            if pair := line.against(own, others):
                ratios.append(pair[0])
                if pair[1] != OURS and line.errors[own] and line.errors[pair[1]]:
                    errors.append(line.errors[own] / line.errors[pair[1]])
        more = ""
        if errors:
            more = f"; its error {report.geomean(errors):.2f} of theirs, {max(errors):.2f} at most"
        if ratios:
            found.append((what, ratios, more))
    return found


def summary(lines: list[Line]) -> list[str]:
    text = []
    for title, group in groups(lines):
        for what, ratios, more in comparisons(group):
            text.append(
                f"{title}: {what}: ×{report.geomean(ratios):.2f} (geometric mean of "
                f"{len(ratios)}), ×{min(ratios):.2f} at least{more}"
            )
    return text + [f"{line.shape}: {flaw}" for line in lines for flaw in line.flaws]


def markdown(results: Result) -> str:
    lines, about = lines_of(results), results["about"]
    versions = ", ".join(f"{name} {v}" for name, v in about["versions"].items() if v)
    text = ["# Fewer bits beside the peers", ""]
    text += [
        f"{about['cpu']}, {about['cpus']} CPUs, int8 by {about['int8']}, products of bfloat16 by "
        f"{about['bf16'] or 'nobody'}; {versions}; {about['date']}",
        "",
    ]
    text += [
        "Least time of a call, in brackets how many times as fast as cylstm's float32 that is, and "
        "max|error| / max|y| against PyTorch in float64; ~: other processes ran beside it.",
        "",
        *(f"- {line}" for line in summary(lines)),
        "",
    ]
    for title, group in groups(lines):
        heads, *rows = table(group)
        text += [f"## {title}", ""]
        align = ["---"] + ["---:"] * (len(heads) - 1)
        text += ["| " + " | ".join(line) + " |" for line in (heads, align, *rows)]
        text.append("")
    return "\n".join(text)


def draw(results: Result, path: Path) -> None:
    """Speed over error, a point for each engine and shape."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    lines = [line for line in lines_of(results) if OURS in line.times]
    titles = list(groups(lines))
    figure, axes = plt.subplots(
        1, len(titles), figsize=(5.5 * len(titles), 4.6), layout="constrained", squeeze=False
    )
    for one, (title, group) in zip(axes[0], titles, strict=True):
        for (name, mark), color in zip(MARKS.items(), COLORS, strict=True):
            there = [line for line in group if name in line.times]
            xs: list[Any] = [max(line.errors[name], 1e-9) for line in there]
            ys: list[Any] = [line.times[OURS] / line.times[name] for line in there]
            face = color if name.startswith(OURS) else "none"
            one.scatter(xs, ys, 22, marker=mark, edgecolors=color, facecolors=face, lw=0.9,
                        label=LABELS.get(name, name))  # fmt: skip
        one.set(xscale="log", yscale="log", title=title, xlabel="max|error| / max|y|")
        one.axhline(1, color="black", lw=0.8)
        one.grid(color="#eeeeee", lw=0.5, which="both", zorder=0)
    axes[0][0].set_ylabel("times as fast as cylstm in float32")
    axes[0][-1].legend(fontsize=7, frameon=False)
    figure.suptitle(f"{results['about']['cpu']}, {results['about']['date'][:10]}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(results: Result, out: Path, console: Console) -> bool:
    """Write <out>.json, .md and .png, show the summary."""
    report.save(results, out)
    out.with_name(out.name + ".md").write_text(markdown(results))
    for line in summary(lines_of(results)):
        console.print(line, highlight=False)
    draw(results, out.with_name(out.name + ".png"))
    console.print(f"written: {out}.json, .md, .png")
    return True


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
