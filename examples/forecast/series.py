"""Read one column of a CSV file as a time series, and say exactly where it cannot be read."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model import Array

DATE = re.compile(r"\d{4}[-/](0\d|1[0-2])([-/][0-3]\d([T ]\d{2}:\d{2}(:\d{2})?)?)?$")
SHOWN = 5  # cells that a message names; it counts the others

# The steps that dates may take: name, least and most days in one, steps in a season, unit of dates.
STEPS = (
    ("hour", 1 / 24, 1 / 24, 24, "h"),
    ("day", 1, 1, 7, "D"),
    ("week", 7, 7, 52, "D"),
    ("month", 28, 31, 12, "M"),
    ("year", 365, 366, 1, "Y"),
)


class DataError(Exception):
    """The data cannot be used; the message says why and where."""


@dataclass(frozen=True)
class Series:
    """A series without gaps: its values (n,) float64, and what is known of its time axis."""

    name: str
    values: Array
    step: str = "step"  # or "month", "day", ...
    season: int = 1  # steps in a season
    first: np.datetime64 | None = None  # in units of a step; in days if that is a week

    def time(self, t: Any) -> Any:
        """When step t is (or all of an array t), which may lie past the end: a date, or t."""
        if self.first is None:
            return t
        unit, _ = np.datetime_data(self.first.dtype)
        return self.first + (np.asarray(t) * (7 if self.step == "week" else 1)).astype(
            f"m8[{unit}]"
        )


def read_csv(path: Path, column: str | None = None) -> Series:
    """Read a column of a CSV file with a header; lines that start with # are skipped.

    A column of dates (1958-03, 1958/03/29, ...) is recognised and tells the season; without one
    it is guessed from the autocorrelation.

    Raises DataError, naming the line where there is one.
    """
    lines, (header, *rows) = _table(path)
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    dates = next((name for name in header if DATE.match(cells[name][0])), None)
    numeric = [name for name in header if name != dates and any(map(_is_number, cells[name]))]
    if column is None and len(numeric) == 1:
        column = numeric[0]
    if column not in numeric:
        asked = "which column?" if column is None else f"no column of numbers is named {column!r}."
        raise DataError(f"{path}: {asked} There are: {', '.join(numeric) or 'none'}")

    _check(path, lines[1:], column, cells[column], _is_number, "a number")
    values = np.array(cells[column], dtype=np.float64)
    if dates is None:
        return Series(column, values, season=season_by_autocorrelation(values))
    _check(path, lines[1:], dates, cells[dates], DATE.match, "a date like 1958-03 or 1958-03-29")
    return Series(column, values, *_time_axis(path, lines[1:], cells[dates]))


def _table(path: Path) -> tuple[list[int], list[list[str]]]:
    """The numbers and the cells of all lines that are neither empty nor comments."""
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = [k for k, line in enumerate(text, 1) if line.strip() and not line.startswith("#")]
    if len(lines) < 3:
        raise DataError(f"{path}: {len(lines)} lines are too few, expected a header and values")
    delimiter = max(",;\t", key=text[lines[0] - 1].count)
    reader = csv.reader((text[k - 1] for k in lines), delimiter=delimiter)
    rows = [[cell.strip() for cell in row] for row in reader]
    if any(map(_is_number, rows[0])):
        raise DataError(f"{path}: line {lines[0]}: expected the columns' names, got {rows[0]}")
    for k, row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}: line {k}: {len(row)} cells, expected {len(rows[0])}")
    return lines, rows


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _check(
    path: Path,
    lines: list[int],
    column: str,
    cells: Sequence[str],
    good: Callable[[str], Any],
    what: str,
) -> None:
    """Raise DataError, naming lines, if some cells are empty or not good."""
    said = [
        f"line {k}: {f'{cell!r} is not {what}' if cell else 'no value'}"
        for k, cell in zip(lines, cells, strict=True)
        if not good(cell)
    ]
    if said:
        more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        raise DataError(f"{path}: column {column!r}: {'; '.join(said[:SHOWN])}{more}")


def _time_axis(
    path: Path, lines: list[int], cells: Sequence[str]
) -> tuple[str, int, np.datetime64]:
    """Step, season and first date; every step must be as long as the typical one."""
    try:
        times = np.array([cell.replace("/", "-") for cell in cells], dtype="M8[s]")
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error  # 30 February; NumPy quotes it
    days = np.diff(times) / np.timedelta64(1, "D")
    typical = np.median(days)
    for step, least, most, season, unit in STEPS:
        if 0.99 * least <= typical <= 1.01 * most:
            for k in np.flatnonzero((days < 0.99 * least) | (days > 1.01 * most)).tolist():
                said = f"{cells[k + 1]} is not the {step} after {cells[k]}"
                raise DataError(f"{path}: line {lines[k + 1]}: {said}")
            return step, season, times[0].astype(f"M8[{unit}]")
    known = ", ".join(step for step, *_ in STEPS)
    raise DataError(f"{path}: dates {typical:g} days apart, expected one of: {known}")


def season_by_autocorrelation(values: Array) -> int:
    """The lag at which the differences resemble themselves most; 1 if they hardly do."""
    d = np.diff(values) - np.diff(values).mean()
    power = np.abs(np.fft.rfft(d, 2 * len(d))) ** 2  # twice as long: no wrapping around
    r = np.fft.irfft(power)[: len(d) // 3]
    peaks = [lag for lag in range(2, len(r) - 1) if r[lag] == max(r[lag - 1 : lag + 2])]
    best = max(peaks, key=lambda lag: float(r[lag]), default=0)
    return best if best and r[best] > 0.3 * r[0] else 1
