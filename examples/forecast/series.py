"""Read one column of a CSV file as a time series, and say exactly where it cannot be read."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ISO_DATE = re.compile(r"\d{4}[-/]\d{2}([-/]\d{2}([T ]\d{2}:\d{2}(:\d{2})?)?)?$")
SHOWN = 5  # cells that a message names; it counts the others

# The steps that dates may take: name, least and most days in one, steps in a season, numpy unit.
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
    first: np.datetime64 | None = None  # in units of a step, but in days if that is a week

    def time(self, t: int) -> Any:
        """When step t is, which may lie past the end: a date, or t itself."""
        return t if self.first is None else self.first + t * (7 if self.step == "week" else 1)


def read_csv(path: Path, column: str | None = None) -> Series:
    """Read a column of a CSV file with a header; lines that start with # are skipped.

    A column of ISO dates (1958-03, 1958-03-29, ...) is recognised and tells the season; without
    one it is guessed from the autocorrelation.

    Raises DataError, naming the line where there is one.
    """
    header, lines, rows = _table(path)
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    dates = next((name for name in header if all(map(ISO_DATE.match, cells[name]))), None)
    numeric = [name for name in header if name != dates and any(map(_is_number, cells[name]))]
    if column is None and len(numeric) == 1:
        column = numeric[0]
    if column not in numeric:
        asked = "which column?" if column is None else f"no column of numbers is named {column!r}."
        raise DataError(f"{path}: {asked} There are: {', '.join(numeric) or 'none'}")

    said = [
        f"line {line}: {repr(cell) + ' is not a number' if cell else 'no value'}"
        for line, cell in zip(lines, cells[column], strict=True)
        if not _is_number(cell)
    ]
    if said:
        more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        raise DataError(f"{path}: column {column!r}: {'; '.join(said[:SHOWN])}{more}")

    values = np.array(cells[column], dtype=np.float64)
    if dates is None:
        return Series(column, values, season=season_by_autocorrelation(values))
    times = np.array([cell.replace("/", "-") for cell in cells[dates]], dtype="M8[s]")
    return Series(column, values, *_time_axis(path, lines, times))


def _table(path: Path) -> tuple[list[str], list[int], list[list[str]]]:
    """The header; then, of every other line that is no comment, its number and its cells."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    ]
    if len(numbered) < 2:
        raise DataError(f"{path}: expected a header and values, found {len(numbered)} lines")
    lines = [number for number, _ in numbered]
    delimiter = max(",;\t", key=numbered[0][1].count)
    reader = csv.reader((line for _, line in numbered), delimiter=delimiter)
    header, *rows = [[cell.strip() for cell in row] for row in reader]
    if any(map(_is_number, header)):
        raise DataError(f"{path}: line {lines[0]}: expected the names of columns, found {header}")
    for number, row in zip(lines[1:], rows, strict=True):
        if len(row) != len(header):
            raise DataError(f"{path}: line {number}: {len(row)} cells, expected {len(header)}")
    return header, lines[1:], rows


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


def _time_axis(path: Path, lines: list[int], times: Array) -> tuple[str, int, np.datetime64]:
    """Step, season and first date; every step must be as long as the typical one."""
    days = np.diff(times) / np.timedelta64(1, "D")
    typical = np.median(days)
    for step, least, most, season, unit in STEPS:
        if 0.99 * least <= typical <= 1.01 * most:
            for line, length, (a, b) in zip(lines[1:], days, pairwise(times), strict=True):
                if not 0.99 * least <= length <= 1.01 * most:
                    said = f"{b} follows {a}, expected the {step} after it"
                    raise DataError(f"{path}: line {line}: {said}")
            return step, season, times[0].astype(f"M8[{unit}]")
    raise DataError(
        f"{path}: the dates are {typical:g} days apart, expected one of "
        f"{', '.join(step for step, *_ in STEPS)}"
    )


def season_by_autocorrelation(values: Array) -> int:
    """The lag at which the differences resemble themselves most; 1 if they hardly do."""
    d = np.diff(values)
    d = d - d.mean()
    power = np.abs(np.fft.rfft(d, 2 * len(d))) ** 2  # twice as long: no wrapping around
    r = np.fft.irfft(power)[: len(d) // 3]
    peaks = [lag for lag in range(2, len(r) - 1) if r[lag] == max(r[lag - 1 : lag + 2])]
    best = max(peaks, key=lambda lag: float(r[lag]), default=0)
    return best if best and r[best] > 0.3 * r[0] else 1
