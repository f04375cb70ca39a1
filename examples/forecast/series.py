"""Read one column of a table as a time series, and say what was read and where it cannot be.

pandas reads the table. What people's tables leave open is decided here, from the cells, and told in
`Series.notes`: encoding, separator, decimal sign, the form of dates, the step between them, and
which values were missing.
"""

from __future__ import annotations

import gzip
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from model import Array

SHOWN = 5  # cells that a message names; it counts the others
MOST_FILLED = 0.2  # of all values
MISSING = {"", "-", "–", "—", ".", "?", "na", "n/a", "#n/a", "nan", "null", "none", "missing"}
SEPARATORS = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}

# Forms of dates, tried in this order. Where day and month could be either, both are tried.
FORMS = (
    *(
        f"%Y{sign}%m{sign}%d{time}"
        for sign in "-/."
        for time in (" %H:%M:%S", "T%H:%M:%S", " %H:%M", "T%H:%M", "")
    ),
    *(f"%d{s}%m{s}%Y{t}" for s in "./-" for t in (" %H:%M:%S", " %H:%M", "")),
    *(f"%m/%d/%Y{t}" for t in (" %H:%M:%S", " %H:%M", "")),
    "%Y-%m", "%Y/%m", "%m/%Y", "%m.%Y", "%b %Y", "%B %Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y",
    "%B %d, %Y", "%Y%m%d",
)  # fmt: skip
QUARTER = re.compile(r"(?P<y>\d{4})[ -/]?Q(?P<q>[1-4])|Q(?P<q2>[1-4])[ -/]?(?P<y2>\d{4})", re.I)
YEAR = re.compile(r"1[5-9]\d\d|20\d\d")

# The steps that dates may take: name, least and most days in one, steps in a season.
STEPS = (
    ("minute", 1 / 1440, 1 / 1440, 60),
    ("quarter hour", 1 / 96, 1 / 96, 96),
    ("half hour", 1 / 48, 1 / 48, 48),
    ("hour", 1 / 24, 1 / 24, 24),
    ("day", 1, 1, 7),
    ("week", 7, 7, 52),
    ("month", 28, 31, 12),
    ("quarter", 90, 92, 4),
    ("year", 365, 366, 1),
)
MINUTES = {"minute": 1, "quarter hour": 15, "half hour": 30}


class DataError(Exception):
    """The data cannot be used; the message says why and where."""


@dataclass(frozen=True)
class Series:
    """A series without gaps: its values (n,) float64, and what is known of its time axis."""

    name: str
    values: Array
    step: str = "step"  # or "month", "business day", ...
    season: int = 1  # steps in a season
    first: np.datetime64 | None = None
    notes: tuple[str, ...] = ()  # what was read, a line each

    def time(self, t: Any) -> Any:
        """When step t is (or all of an array t), which may lie past the end: a date, or t."""
        if self.first is None:
            return t
        if self.step == "business day":
            return np.busday_offset(self.first, t)
        unit, _ = np.datetime_data(self.first.dtype)
        many = MINUTES.get(self.step, {"week": 7, "quarter": 3}.get(self.step, 1))
        return self.first + (np.asarray(t) * many).astype(f"m8[{unit}]")


def read_csv(path: Path, column: str | None = None, decimal: str | None = None) -> Series:
    """Read a column of a table in text with a header; lines that start with # are skipped.

    The table may be gzipped, in UTF-8, UTF-16 or Latin-1, with cells between semicolons, tabs,
    commas or bars, and with thousands separators, currency signs and either decimal sign, which
    `decimal` sets where the cells leave it open. A column of dates is recognised; rows are sorted
    by it, it tells the step and the season, and what is missing is filled by straight lines.
    Without one the season is guessed from the autocorrelation.

    Raises DataError, naming column, line and cell where there is one.
    """
    text, encoding = _text(path)
    lines, table, separator = _table(path, text)
    columns = {name: table[name].tolist() for name in table}
    dates = next((name for name in columns if _is_dates(columns, name)), None)
    texts = {name: cells for name, cells in columns.items() if name != dates}
    sign = decimal or _decimal_sign([cell for cells in texts.values() for cell in cells], separator)
    name = _chosen(path, texts, column, sign)
    values = _numbers(path, lines, name, texts[name], sign)
    notes = [
        f"{encoding}, cells between {SEPARATORS.get(separator, 'line ends')}, decimal {sign!r}, "
        f"{len(values)} rows"
    ]
    if dates is None:
        notes.append("no column of dates: rows in their order")
        when, step, season = np.arange(len(values)), "step", 0
        first = None
    else:
        times, form = _times(path, lines, dates, columns[dates])
        falling = len(times) > 1 and bool((times[1:] < times[:-1]).all())
        order = np.argsort(times, kind="stable")
        times, values = times[order], values[order]
        lines = [lines[k] for k in order]
        step, season, first, when = _grid(path, lines, dates, times)
        sorted_ = "" if (order[1:] > order[:-1]).all() else ", falling" if falling else ", unsorted"
        notes.append(f"dates in {dates!r} as {form}{sorted_}: {step}s")
    have = np.flatnonzero(~np.isnan(values))
    ends = slice(have[0], have[-1] + 1)
    if len(values) > len(values[ends]):
        notes.append(f"left out: {len(values) - len(values[ends])} rows without values at the ends")
    when, values = when[ends], values[ends]
    if first is not None:
        first = Series(name, values, step, first=first).time(int(when[0]))
    values, filled = _filled(path, name, when, values)
    series = Series(name, values, step, season, first)
    if len(filled):
        some = ", ".join(str(series.time(t)) for t in filled[:SHOWN].tolist())
        more = f", ... ({len(filled)} in all)" if len(filled) > SHOWN else ""
        notes.append(f"missing and filled by straight lines: {some}{more}")
    season = season or season_by_autocorrelation(values)
    return Series(name, values, step, season, first, tuple(notes))


# --- the table


def _text(path: Path) -> tuple[str, str]:
    """The text of a file, and its encoding for people."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    half = len(content) // 2
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        tried = [("utf-16", "UTF-16")]
    elif half and content[1::2].count(0) > half / 3:
        tried = [("utf-16-le", "UTF-16")]
    elif half and content[::2].count(0) > half / 3:
        tried = [("utf-16-be", "UTF-16")]
    else:
        tried = [("utf-8-sig", "UTF-8"), ("cp1252", "Latin-1"), ("latin-1", "Latin-1")]
    for codec, name in tried:
        try:
            return content.decode(codec), name
        except UnicodeDecodeError as error:
            problem = error
    raise DataError(f"cannot read {path}: {problem}")


def _table(path: Path, text: str) -> tuple[list[int], pd.DataFrame, str]:
    """The numbers of the lines below the header, their cells as text, and the separator."""
    every = text.splitlines()
    lines = [k for k, line in enumerate(every, 1) if line.strip() and not line.startswith("#")]
    if len(lines) < 3:
        raise DataError(f"{path}: {len(lines)} lines are too few, expected a header and values")
    kept = [every[k - 1] for k in lines]
    separator = max(SEPARATORS, key=lambda sign: _columns_by(kept[:50], sign))
    if not _columns_by(kept[:50], separator):
        separator = "\x1f"  # a single column
    try:
        table = pd.read_csv(
            io.StringIO("\n".join(kept)), sep=separator, dtype=str, keep_default_na=False,
            skipinitialspace=True, header=None, index_col=False, skip_blank_lines=False,
        )  # fmt: skip
    except (pd.errors.ParserError, ValueError) as error:
        raise DataError(f"{path}: {_ragged(str(error), lines)}") from error
    table = table.fillna("").apply(lambda cells: cells.str.strip())
    table = table.loc[:, (table != "").any()]  # columns of nothing, as behind a last separator
    header = table.iloc[0].tolist()
    if any(_is_number(cell) or QUARTER.fullmatch(cell) for cell in header):
        raise DataError(f"{path}: line {lines[0]}: expected the columns' names, got {header}")
    if any(header.count(name) > 1 for name in header):
        raise DataError(f"{path}: line {lines[0]}: two columns of one name in {header}")
    return lines[1:], table.iloc[1:].set_axis(header, axis=1), separator


def _columns_by(lines: list[str], separator: str) -> int:
    """How many separators a line has, if all lines have as many; text in quotes does not count."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    counts = [line.count(separator) for line in bare]
    return min(counts) if min(counts) == max(counts) or separator in ";\t|" else counts[0]


def _ragged(message: str, lines: list[int]) -> str:
    """pandas counts the lines that it was given; people count those of the file."""
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message)
    if not found:
        return message
    return f"line {lines[int(found[2]) - 1]}: {found[3]} cells, expected {found[1]}"


def _chosen(path: Path, texts: dict[str, list[str]], column: str | None, sign: str) -> str:
    """The column asked for, or the only one of numbers."""
    numeric = [
        name
        for name, cells in texts.items()
        if sum(_value(cell, sign) is not None for cell in cells) * 2 > _given(cells)
    ]
    if column is None and len(numeric) == 1:
        return numeric[0]
    alike = [name for name in texts if column and name.casefold() == column.strip().casefold()]
    if len(alike) == 1:
        return alike[0]
    asked = "which column?" if column is None else f"no column is named {column!r}."
    raise DataError(f"{path}: {asked} There are: {', '.join(numeric) or 'none'}")


def _given(cells: list[str]) -> int:
    return sum(not _is_missing(cell) for cell in cells)


def _is_missing(cell: str) -> bool:
    return cell.casefold() in MISSING


# --- numbers


def _bare(cell: str) -> str | None:
    """Digits, signs, points and commas of a number, without currency and spaces; None if none."""
    text = "".join(
        "" if unicodedata.category(c) in ("Sc", "Zs") or c in "'’%" else c for c in cell
    ).replace("−", "-")
    text = re.sub(r"^([A-Z]{3}|kr\.?)|([A-Z]{3}|kr\.?)$", "", text)
    if found := re.fullmatch(r"\((.+)\)|(.+)-", text):  # as accountants write what is negative
        text = f"-{found[1] or found[2]}"
    return text if re.fullmatch(r"[+-]?[\d.,]*\d[\d.,]*([eE][+-]?\d+)?", text) else None


def _decimal_sign(cells: list[str], separator: str) -> str:
    """The decimal sign that the cells of a table agree on; of those that leave it open, a point."""
    bare = [text.lstrip("+-") for cell in cells if (text := _bare(cell))]
    votes = {".": 0, ",": 0}
    for text in bare:
        points, commas = text.count("."), text.count(",")
        if points and commas:
            votes["." if text.rindex(".") > text.rindex(",") else ","] += 1
        elif points + commas > 1:
            if re.fullmatch(r"\d{1,3}([.,]\d{3})+", text):  # thousands
                votes["," if points else "."] += 1
        elif points + commas == 1:
            before, after = re.split("[.,]", text)
            if len(after) != 3 or not 1 <= len(before) <= 3 or before == "0":
                votes["." if points else ","] += 1
    if votes["."] == votes[","]:  # 1,234 between semicolons may be either; it is told
        lone = any("," in text for text in bare) and not any("." in text for text in bare)
        return "," if lone and separator == ";" else "."
    return max(votes, key=lambda sign: votes[sign])


def _value(cell: str, sign: str) -> float | None:
    """The number that a cell holds with this decimal sign, or None."""
    text = _bare(cell)
    if text is None:
        return None
    other = "." if sign == "," else ","
    if other in text:  # thousands: three digits behind each
        whole, _, _ = text.partition(sign)
        if not re.fullmatch(rf"[+-]?\d{{1,3}}({re.escape(other)}\d{{3}})+", whole):
            return None
        text = text.replace(other, "")
    try:
        value = float(text.replace(sign, "."))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _is_number(cell: str) -> bool:
    return _value(cell, ".") is not None or _value(cell, ",") is not None


def _numbers(path: Path, lines: list[int], name: str, cells: list[str], sign: str) -> Array:
    """The numbers of a column, NaN where there is none."""

    def good(cell: str) -> bool:
        return _is_missing(cell) or _value(cell, sign) is not None

    _check(path, lines, name, cells, good, f"a number (decimal sign {sign!r})")
    found = [None if _is_missing(cell) else _value(cell, sign) for cell in cells]
    values = np.array([np.nan if value is None else value for value in found])
    if np.isnan(values).all():
        raise DataError(f"{path}: column {name!r} has no values")
    return values


def _check(
    path: Path,
    lines: list[int],
    column: str,
    cells: Sequence[str],
    good: Callable[[str], Any],
    what: str,
) -> None:
    """Raise DataError, naming lines, if some cells are not good."""
    said = [
        f"line {k}: {f'{cell!r} is not {what}' if cell else 'no value'}"
        for k, cell in zip(lines, cells, strict=True)
        if not good(cell)
    ]
    if said:
        more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        raise DataError(f"{path}: column {column!r}: {'; '.join(said[:SHOWN])}{more}")


# --- dates


def _is_date(cell: str) -> bool:
    return bool(QUARTER.fullmatch(cell)) or any(
        len(_parsed([cell], form)) for form in FORMS if form != "%Y%m%d"
    )


def _is_dates(columns: dict[str, list[str]], name: str) -> bool:
    """Whether the first cell of a column is a date; a year or 20010131 only where all are."""
    cells = columns[name]
    if _is_date(cells[0]):
        return True
    if all(YEAR.fullmatch(cell) for cell in cells):
        steps = np.diff([int(cell) for cell in cells])
        return len(columns) > 1 and bool((steps == 1).all() or (steps == -1).all())
    return all(re.fullmatch(r"\d{8}", cell) for cell in cells) and len(
        _parsed(cells, "%Y%m%d")
    ) == len(cells)


def _parsed(cells: list[str], form: str) -> Any:
    """The dates of those cells that have this form."""
    cells = [re.sub(r"(\.\d+)?(Z|\+00:?00)$", "", cell) for cell in cells]  # UTC is left so
    if not re.search(r"%[bB]", form) and any(c.isalpha() and c != "T" for c in cells[0]):
        return []
    found = pd.to_datetime(pd.Series(cells), format=form, errors="coerce", exact=True)
    return found[found.notna()].to_numpy("M8[s]")


def _times(
    path: Path, lines: list[int], name: str, cells: list[str]
) -> tuple[np.ndarray[Any, Any], str]:
    """The times of a column, and their form for people."""
    if any(map(QUARTER.fullmatch, cells)):
        _check(path, lines, name, cells, QUARTER.fullmatch, "a quarter like 2001-Q3")
        found = [QUARTER.fullmatch(cell) for cell in cells]
        months = [f"{m['y'] or m['y2']}-{3 * int(m['q'] or m['q2']) - 2:02}" for m in found if m]
        return np.array(months, "M8[s]"), "quarters"
    if all(map(YEAR.fullmatch, cells)):
        return np.array(cells, "M8[Y]").astype("M8[s]"), "years"
    best = max(FORMS, key=lambda form: len(_parsed(cells, form)))
    fits = [form for form in FORMS if len(_parsed(cells, form)) == len(_parsed(cells, best))]
    if len(fits) > 1:  # 03/04/2001: as the steps are more alike
        best = min(fits, key=lambda form: _unevenness(_parsed(cells, form)))
    _check(path, lines, name, cells, lambda c: len(_parsed([c], best)), f"a date like {cells[0]}")
    return _parsed(cells, best), _for_people(best)


def _unevenness(times: Any) -> float:
    steps = np.diff(np.sort(times)).astype(float)
    return float(np.std(steps) / max(np.mean(steps), 1e-9)) if len(steps) else 0.0


def _for_people(form: str) -> str:
    words = {"%Y": "year", "%m": "month", "%d": "day", "%H:%M:%S": "time", "%H:%M": "time",
             "%b": "month", "%B": "month"}  # fmt: skip
    for code, word in words.items():
        form = form.replace(code, word)
    return form


def _grid(
    path: Path, lines: list[int], name: str, times: np.ndarray[Any, Any]
) -> tuple[str, int, np.datetime64, np.ndarray[Any, Any]]:
    """Step, season, first date, and at which step each of the sorted times is."""
    days = np.diff(times) / np.timedelta64(1, "D")
    typical = float(np.median(days)) if len(days) else 0.0
    fits = [row for row in STEPS if 0.98 * row[1] <= typical <= 1.02 * row[2]]
    if not fits:
        known = ", ".join(row[0] for row in STEPS)
        raise DataError(
            f"{path}: column {name!r}: dates {typical:g} days apart, expected one of: {known}"
        )
    step, _, _, season = fits[0]
    if step == "day" and len(times) > 5 and np.is_busday(times.astype("M8[D]")).all():
        step, season = "business day", 5
    unit = {"month": "M", "quarter": "M", "year": "Y", "hour": "h"}.get(step, "D")
    first = times[0].astype(f"M8[{'m' if step in MINUTES else unit}]")
    if step == "business day":
        when = np.busday_count(first, times.astype("M8[D]"))
    else:
        elapsed = (times.astype(first.dtype) - first).astype(int)
        many = MINUTES.get(step, {"week": 7, "quarter": 3}.get(step, 1))
        when = np.round(elapsed / many).astype(int)
    if (twice := np.flatnonzero(np.diff(when) == 0)).size:
        k = int(twice[0])
        raise DataError(
            f"{path}: column {name!r}: lines {lines[k]} and {lines[k + 1]} are of the same {step}, "
            f"{times[k].astype(first.dtype)}"
        )
    return step, season, first, when


def _filled(
    path: Path, name: str, when: np.ndarray[Any, Any], values: Array
) -> tuple[Array, np.ndarray[Any, Any]]:
    """The values at every step, and the steps that had none and lie on a line between others."""
    have = ~np.isnan(values)
    steps = np.arange(when[0], when[-1] + 1)
    missing = np.setdiff1d(steps, when[have])
    if len(missing) > MOST_FILLED * len(steps):
        raise DataError(
            f"{path}: column {name!r}: {len(missing)} of {len(steps)} steps have no value, at most "
            f"{MOST_FILLED:.0%} are filled"
        )
    return np.interp(steps, when[have], values[have]), missing - when[0]


def season_by_autocorrelation(values: Array) -> int:
    """The lag at which the differences resemble themselves most; 1 if they hardly do."""
    d = np.diff(values) - np.diff(values).mean()
    power = np.abs(np.fft.rfft(d, 2 * len(d))) ** 2  # twice as long: no wrapping around
    r = np.fft.irfft(power)[: len(d) // 3]
    peaks = [lag for lag in range(2, len(r) - 1) if r[lag] == max(r[lag - 1 : lag + 2])]
    best = max(peaks, key=lambda lag: float(r[lag]), default=0)
    return best if best and r[best] > 0.3 * r[0] else 1
