"""The rows of a run: what tables and pictures are drawn from, and each shape's target."""

from __future__ import annotations

from typing import Any, NamedTuple

from bench.problem import Shape

Result = dict[str, Any]

OURS = "cylstm"
# Ratios to "the fastest" are to the fastest of these; training has torch alone.
RIVALS = {
    "forward": ("torch", "ort", "ort-binding", "openvino"),
    "step": ("torch", "ort", "ort-binding", "openvino"),
    "training": ("torch",),
}


def target(shape: Shape, mode: str) -> float:
    """How many times as fast as the fastest rival cylstm is to be at this shape."""
    if shape.cell != "LSTM":
        return 1.10
    if mode == "forward":
        return 1.05
    if mode == "training":
        return 1.20
    if shape.B == 1:
        for largest, ratio in ((40, 8.0), (64, 5.0), (128, 2.5)):
            if shape.H <= largest:
                return ratio
    return 1.10


class Row(NamedTuple):
    """One job, read for the tables and the plot."""

    shape: Shape
    set: str
    mode: str
    threads: int
    times: dict[str, float]  # seconds of every engine that was measured, the minimum
    medians: dict[str, float]
    limit: float
    others: float  # CPUs that other processes took meanwhile
    flaws: list[str]  # engines that failed or were wrong, and why

    def rival(self, times: dict[str, float]) -> float | None:
        """The time of the fastest rival."""
        return min((times[name] for name in RIVALS[self.mode] if name in times), default=None)

    @property
    def ratio(self) -> float | None:
        """The fastest rival's time over ours."""
        rival = self.rival(self.times)
        return rival / self.times[OURS] if rival and OURS in self.times else None

    @property
    def median_ratio(self) -> float | None:
        rival = self.rival(self.medians)
        return rival / self.medians[OURS] if rival and OURS in self.medians else None

    @property
    def target(self) -> float:
        return target(self.shape, self.mode)

    @property
    def passed(self) -> bool:
        return self.ratio is not None and self.ratio >= self.target


def rows_of(results: Result) -> list[Row]:
    """The rows of a run, in its order."""
    rows = []
    for job in results["jobs"]:
        engines = job["engines"]
        measured = {name: one for name, one in engines.items() if "min" in one}
        fields = dict(results["shapes"][job["shape"]])
        rows.append(
            Row(
                set=fields.pop("set"),
                shape=Shape(**fields),
                mode=job["mode"],
                threads=job["threads"],
                times={name: one["min"] for name, one in measured.items()},
                medians={name: one["median"] for name, one in measured.items()},
                limit=job["limit"],
                others=job["others"],
                flaws=[f"{n} {one['left_out']}" for n, one in engines.items() if one.get("failed")],
            )
        )
    return rows
