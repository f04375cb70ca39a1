"""The forecasting example: it runs, looks at nothing it must not see, and says what is wrong."""

from __future__ import annotations

import gzip
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "forecast"
MODULES = "series", "model", "forecast", "figure"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, imported as `python forecast.py` does."""
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(EXAMPLE)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES[:3]})
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress bar: tqdm is not among what the light tests install."""

    class Bar(SimpleNamespace):
        def __enter__(self) -> Any:
            return SimpleNamespace(update=lambda: None, set_postfix=lambda **_: None)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=Bar))


def wave(n: int = 200) -> np.ndarray[Any, Any]:
    """A trend, a season of 12 and noise, drawn always alike."""
    t = np.arange(n)
    noise = np.random.default_rng(1).standard_normal(n)
    return 100 + 0.2 * t + 5 * np.sin(2 * math.pi * t / 12) + noise


def write(path: Path, values: Any, dated: bool = True) -> Path:
    month = np.datetime64("2001-01")
    rows = [
        f"{month + np.timedelta64(k, 'M')},{v}" if dated else f"{v}" for k, v in enumerate(values)
    ]
    path.write_text("\n".join(["month,level" if dated else "level", *rows]) + "\n")
    return path


# --- the whole program


@pytest.mark.slow
def test_runs_on_the_shipped_series(
    example: Any, progress: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--epochs 3 --hidden 3 --seeds 2 --quantize --no-figure --out".split()
    assert example.forecast.main([*arguments, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "co2_ppm: 712 months, 1958-03 to 2017-06" in said
    assert "97 forecasts of 24 months" in said
    for row in ("LSTM, seed 1", "  seed 1, bfloat16", "  seed 0, int8"):
        assert said.count(row) == 2  # a table of RMSE, one of MAE
    assert "of 2 seeds" in said
    assert "to the bit (from 6 origins)" in said
    future = (tmp_path / "out" / "forecast.csv").read_text().splitlines()
    assert future[0] == "month,co2_ppm"
    assert [line.split(",")[0] for line in (future[1], future[-1])] == ["2017-07", "2019-06"]
    assert all(390 < float(line.split(",")[1]) < 430 for line in future[1:])


@pytest.mark.slow
def test_draws_a_picture(example: Any, progress: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    from PIL import Image

    arguments = "--epochs 2 --hidden 3 --seeds 1 --csv".split()
    csv = write(tmp_path / "wave.csv", wave())
    assert example.forecast.main([*arguments, str(csv), "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "forecast.png") as picture:
        assert picture.size == (1350, 1500)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert (0xC8, 0x32, 0x5A) in colours  # the LSTM's forecasts


def test_ctrl_c_stops_without_a_traceback(
    example: Any,
    progress: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> Iterator[float]:
        yield 1.0
        raise KeyboardInterrupt

    monkeypatch.setattr(example.model.Lstm, "train", interrupted)
    assert example.forecast.main(["--out", str(tmp_path / "out")]) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- the forecasters


def test_drift_and_surprise_of_a_straight_seasonal_line(example: Any) -> None:
    line = 0.5 * np.arange(60) + np.tile([3.0, -1.0, 7.0, 0.0], 15)
    assert example.model.drift(line, 4) == pytest.approx(2.0)
    np.testing.assert_allclose(example.model.surprises(line, 4), 0, atol=1e-12)
    line[50] += 1.0  # a surprise at 50, and its echo a season later
    z = example.model.surprises(line, 4)
    assert z[50] == pytest.approx(1.0)
    assert z[54] == pytest.approx(-1.0, abs=0.1)  # the drift has moved a little


def test_naive_forecast_repeats_the_season_and_adds_the_drift(example: Any) -> None:
    history = 0.5 * np.arange(40) + np.tile([3.0, -1.0, 7.0, 0.0], 10)
    made = example.model.forecast(history, 4, example.model.Naive().expect(history, 6))
    expected = 0.5 * np.arange(40, 46) + np.tile([3.0, -1.0, 7.0, 0.0], 2)[:6]
    np.testing.assert_allclose(made, expected)


def test_ridge_finds_an_autoregression(example: Any) -> None:
    rng = np.random.default_rng(0)
    z = np.zeros(4000)
    for t in range(2, len(z)):
        z[t] = 0.5 * z[t - 1] - 0.3 * z[t - 2] + rng.standard_normal()
    ridge = example.model.Ridge.fit(z, season=4, window=4, penalty=1e-6)
    np.testing.assert_allclose(ridge.weight, [0, 0, -0.3, 0.5], atol=0.05)
    one, two = ridge.expect(z, 2)
    assert one == pytest.approx(ridge.weight @ z[-4:])
    assert two == pytest.approx(ridge.weight @ [*z[-3:], one])


@pytest.fixture
def trained(example: Any) -> Any:
    values = wave()
    lstm = example.model.Lstm.create(values, 12, 4, seed=0)
    assert len(list(lstm.train(values, 5, seed=0))) == 5
    return lstm


def test_training_lowers_the_loss(example: Any) -> None:
    values = wave()
    losses = list(example.model.Lstm.create(values, 12, 8, seed=0).train(values, 100, seed=0))
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


def test_stream_and_whole_sequences_forecast_the_same_bits(example: Any, trained: Any) -> None:
    z = example.model.surprises(wave(), 12)
    for t in 100, 150, 200:
        streamed, whole = trained.expect(z[:t], 24), trained.expect_whole(z[:t], 24)
        assert streamed.tobytes() == whole.tobytes()
        assert np.ptp(streamed) > 0


def test_saved_and_loaded_it_forecasts_the_same(example: Any, trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path)
    z = example.model.surprises(wave(), 12)
    loaded = example.model.Lstm.load(tmp_path)
    np.testing.assert_array_equal(loaded.expect(z, 24), trained.expect(z, 24))


def test_nothing_after_an_origin_is_seen(example: Any) -> None:
    """With another future, the same weights and the same forecasts up to there."""
    values = wave()
    other = values.copy()
    other[150:] += 50 * np.random.default_rng(2).standard_normal(50)
    made = []
    for series in values, other:
        lstm = example.model.Lstm.create(series[:150], 12, 4, seed=0)
        list(lstm.train(series[:150], 5, seed=0))
        ridge = example.model.Ridge.choose(series[:150], 12, 24)
        origins = range(140, 177)
        made.append([example.model.roll_outs(f, series, 12, origins, 24) for f in (lstm, ridge)])
    for first, second in zip(*made, strict=True):
        np.testing.assert_array_equal(first[:11], second[:11])  # origins 140 to 150
        assert not np.allclose(first[11:], second[11:])


# --- the data


def test_dates_tell_the_season(example: Any, tmp_path: Path) -> None:
    series = example.series.read_csv(write(tmp_path / "a.csv", wave()))
    assert (series.name, series.step, series.season) == ("level", "month", 12)
    assert str(series.time(199)) == "2017-08"
    assert str(series.time(200)) == "2017-09"
    np.testing.assert_array_equal(series.values, wave())


def test_the_only_column_of_numbers_needs_no_name(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("month,x,y\n2001-01,a,1\n2001-02,b,3\n")
    assert example.series.read_csv(path).name == "y"


def test_without_dates_the_season_is_guessed(example: Any, tmp_path: Path) -> None:
    series = example.series.read_csv(write(tmp_path / "a.csv", wave(), dated=False))
    assert (series.step, series.season, series.time(3)) == ("step", 12, 3)
    noise = np.random.default_rng(0).standard_normal(300).cumsum()
    assert example.series.season_by_autocorrelation(noise) == 1


@pytest.mark.parametrize(
    ("first", "second", "step", "season"),
    [
        ("2020-02-28", "2020-02-29", "day", 7),
        ("2020/02/28", "2020/03/06", "week", 52),
        ("2020-02", "2020-03", "month", 12),
        ("2020-02-28 23:00", "2020-02-29 00:00", "hour", 24),
    ],
)
def test_steps_of_dates(
    example: Any, tmp_path: Path, first: str, second: str, step: str, season: int
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"when;x\n{first};1\n{second};2\n")
    series = example.series.read_csv(path)
    assert (series.step, series.season) == (step, season)
    assert series.time(1) == np.datetime64(second.replace("/", "-"))


# As people's programs write them: the same three values of three months, or what is said of them.
TABLES = {
    "Excel in Germany": "Datum;Umsatz in €|01.01.2001;1.234,50|01.02.2001;2.000,00|01.03.2001;3,25",
    "Excel in the US": 'Date,Sales|01/31/2001,"$1,234.50"|02/28/2001,"$2,000.00"|03/31/2001,$3.25',
    "Swiss": "Monat\tCHF|01.2001\t1'234.50|02.2001\t2’000.00|03.2001\t3.25",
    "French": "mois;prix|2001-01;1\u202f234,50 €|2001-02;2\u00a0000,00 €|2001-03;3,25 €",
    "months by name": "month;note;x|Jan 2001;a;1234.5|Feb 2001;b;2000|Mar 2001;c;3.25",
    "falling": "month,x|2001-03,3.25|2001-02,2000|2001-01,1234.5",
    "unsorted": "month,x|2001-02,2000|2001-03,3.25|2001-01,1234.5",
    "a last separator": "month;x;|2001-01;1234,5;|2001-02;2000;|2001-03;3,25;",
    "compact dates": "day,x|20010101,1234.5|20010201,2000|20010301,3.25",
    "separators in text": 'month,note,x|2001-01,"a, b; c",1234.5|2001-02,"",2000|2001-03,d,3.25',
    "units": "month,x|2001-01,1234.5 EUR|2001-02,USD 2000|2001-03,3.25%",
    "ends": "month,x|2000-12,|2001-01,1234.5|2001-02,2000|2001-03,3.25|2001-04,n/a",
    "UTC": "t,x|2001-01-01T00:00:00Z,1234.5|2001-02-01T00:00:00Z,2000|2001-03-01T00:00:00Z,3.25",
}


# Every table, and one of them in every encoding.
ENCODED = [(name, "utf-8") for name in TABLES]
ENCODED += [("French", name) for name in ("utf-8-sig", "utf-16", "utf-16-le", "cp1252")]


@pytest.mark.parametrize(("name", "encoding"), ENCODED)
def test_tables_of_people(example: Any, tmp_path: Path, name: str, encoding: str) -> None:
    try:
        content = TABLES[name].replace("|", "\r\n").encode(encoding)
    except UnicodeEncodeError:  # Latin-1 has no narrow space
        content = TABLES[name].replace("|", "\n").replace("\u202f", "\u00a0").encode(encoding)
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(content) if encoding == "utf-16" else content)
    series = example.series.read_csv(path)
    assert series.values.tolist() == [1234.5, 2000, 3.25]
    assert (series.step, str(series.time(0))) == ("month", "2001-01")


def test_what_was_read_is_told(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        "Datum;Umsatz in €\n08.01.2001;1,5\n07.01.2001;2,5\n06.01.2001;3,5\n05.01.2001;4,5\n"
        "04.01.2001;5,5\n03.01.2001;\n02.01.2001;7,5\n31.12.2000;9,5\n30.12.2000;10,5\n"
        "29.12.2000;11,5\n28.12.2000;\n".encode("cp1252")
    )
    series = example.series.read_csv(path, "umsatz in €")
    assert series.name == "Umsatz in €"
    assert series.values.tolist() == [11.5 - k for k in range(11)]
    assert series.notes == (
        "Latin-1, cells between semicolons, decimal ',', 11 rows",
        "dates in 'Datum' as day.month.year, falling: days",
        "left out: 1 rows without values at the ends",
        "missing and filled by straight lines: 2001-01-01, 2001-01-03",
    )


@pytest.mark.parametrize(
    ("cells", "separator", "decimal", "values"),
    [
        (["1,234", "2,345"], ";", None, [1.234, 2.345]),
        (["1,234", "2,345"], "\t", None, [1234, 2345]),
        (["1,234", "2,345"], ";", ".", [1234, 2345]),
        (["1.234", "2.345"], ";", None, [1.234, 2.345]),
        (["1.234", "2.345"], ";", ",", [1234, 2345]),
        (["1.234", "2.345,5"], ";", None, [1234, 2345.5]),
        (["1,234", "0,5"], "\t", None, [1.234, 0.5]),
        (["1,234,567", "12"], "\t", None, [1234567, 12]),
        (["0,123", "1,234"], "\t", None, [0.123, 1.234]),
        (["(1.5)", "2.5-"], ";", None, [-1.5, -2.5]),
        (["−1.5", "+2e3"], ";", None, [-1.5, 2000]),
    ],
)
def test_decimal_signs(
    example: Any,
    tmp_path: Path,
    cells: list[str],
    separator: str,
    decimal: Any,
    values: list[float],
) -> None:
    rows = [f"2001-0{k}{separator}{cell}" for k, cell in enumerate(cells, 1)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([f"month{separator}x", *rows]) + "\n", encoding="utf-8")
    series = example.series.read_csv(path, decimal=decimal)
    assert series.values.tolist() == values
    assert f"decimal '{decimal}'" in series.notes[0] or decimal is None


@pytest.mark.parametrize(
    ("dates", "step", "season", "after"),
    [
        (["2001-Q1", "2001-Q2", "2001-Q3"], "quarter", 4, "2001-10"),
        (["Q4 2000", "Q1 2001", "Q2 2001"], "quarter", 4, "2001-07"),
        (["2001-03-31", "2001-06-30", "2001-09-30"], "quarter", 4, "2001-12"),
        (["1999", "2000", "2001"], "year", 1, "2002"),
        (["2001-01-31", "2001-02-28", "2001-03-31"], "month", 12, "2001-04"),
        (["2001-01-01 00:00", "2001-01-01 00:15", "2001-01-01 00:30"], "quarter hour", 96,
         "2001-01-01T00:45"),
        (["03/04/2001", "04/04/2001", "05/04/2001"], "day", 7, "2001-04-06"),
        (["04/03/2001", "04/04/2001", "04/05/2001"], "day", 7, "2001-04-06"),
        (["2001-01-01", "2001-01-08", "2001-01-15"], "week", 52, "2001-01-22"),
    ],
)  # fmt: skip
def test_forms_and_steps_of_dates(
    example: Any, tmp_path: Path, dates: list[str], step: str, season: int, after: str
) -> None:
    path = tmp_path / "a.csv"
    for order in (1, -1):
        rows = [f"{date},{k}" for k, date in enumerate(dates)][::order]
        path.write_text("\n".join(["when,x", *rows]) + "\n")
        series = example.series.read_csv(path)
        assert (series.step, series.season) == (step, season)
        assert str(series.time(3)) == after
        assert series.values.tolist() == [0, 1, 2]


def test_business_days_and_holidays(example: Any, tmp_path: Path) -> None:
    days = np.arange("2001-01-01", "2001-03-01", dtype="M8[D]")
    days = days[np.is_busday(days)]
    values = np.arange(len(days), dtype=float)
    rows = [f"{day},{value}" for k, (day, value) in enumerate(zip(days, values)) if k != 10]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["day,close", *rows]) + "\n")
    series = example.series.read_csv(path)
    assert (series.step, series.season) == ("business day", 5)
    np.testing.assert_allclose(series.values, values)
    assert [str(day) for day in series.time(np.arange(len(days)))] == [str(day) for day in days]
    assert f"filled by straight lines: {days[10]}" in series.notes[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# note\nmonth,x\n2001-01,1\n\n2001-02,x1\n2001-03,abc\n2001-04,2\n2001-05,3\n",
         "column 'x': line 5: 'x1' is not a number (decimal sign '.'); line 6: 'abc' is not"),
        ("month;Umsatz in €\n2001-01;1,5\n2001-02;12 Stück\n2001-03;2,5\n",
         "column 'Umsatz in €': line 3: '12 Stück' is not a number (decimal sign ',')"),
        ("month;x\n2001-01;1,5\n2001-02;1.5\n2001-03;2,5\n", "line 3: '1.5' is not a number"),
        ("month,x\n2001-01,1\n2001-02,\n2001-03,\n2001-04,2\n",
         "column 'x': 2 of 4 steps have no value, at most 20% are filled"),
        ("month,x\n2001-01,1\n2001-02,1\n2001-03,2\n2001-09,3\n",
         "column 'x': 5 of 9 steps have no value"),
        ("month,x\n2001-01,\n2001-02,nan\n", "column 'x' has no values"),
        ("month,x\n2001-01,1\n,3\n", "column 'month': line 3: no value"),
        ("month,x\n2001-01,1\nlater,3\n", "line 3: 'later' is not a date like 2001-01"),
        ("month,x\n2001-01,1\n2001-02,2\n2001-02,3\n2001-03,3\n",
         "column 'month': lines 3 and 4 are of the same month, 2001-02"),
        ("month,x\n2001-01,1\n2001-02,3,4\n", "line 3: 3 cells, expected 2"),
        ("month,x,y\n2001-01,1,2\n2001-02,3,4\n", "which column? There are: x, y"),
        ("month,x,x\n2001-01,1,2\n2001-02,3,4\n", "line 1: two columns of one name"),
        ("month,x\n2001-01,a\n2001-02,b\n", "There are: none"),
        ("2001-01,1\n2001-02,3\n2001-03,3\n", "line 1: expected the columns' names"),
        ("month,x\n2001-01,1\n2021-01,3\n", "column 'month': dates 7305 days apart"),
        ("month,x\n2001-02-28,1\n2001-02-30,3\n", "2001-02-30"),
        ("month,x\n", "1 lines are too few"),
        ("", "0 lines are too few"),
    ],
)  # fmt: skip
def test_bad_csv(example: Any, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(example.series.DataError) as caught:
        named = "Umsatz in €" if "Umsatz" in text else "x"
        example.series.read_csv(path, None if "There are" in message else named)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_many_bad_cells_are_counted(example: Any, tmp_path: Path) -> None:
    with pytest.raises(example.series.DataError, match=r"line 6: 'a' is not .*; and 34 more$"):
        example.series.read_csv(write(tmp_path / "a.csv", ["a"] * 39 + [1]), "level")


def test_broken_gzip(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"month,x\n2001-01,1\n")[:-5])
    with pytest.raises(example.series.DataError, match="cannot read"):
        example.series.read_csv(path)


def test_errors_reach_the_terminal(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = example.forecast.main
    short = write(tmp_path / "short.csv", wave(120))
    assert main(["--csv", str(short)]) == 2
    said = capsys.readouterr().err
    assert "120 values are too few" in said and "need at least 121" in said
    assert main(["--csv", str(short), "--column", "nothing"]) == 2
    assert "no column is named 'nothing'. There are: level" in capsys.readouterr().err
    assert main(["--csv", str(tmp_path / "absent.csv")]) == 2
    assert "cannot read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "expected at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--season", "1"], ["--season", "4", "--horizon", "2"]])
def test_the_least_that_is_enough(
    example: Any, progress: None, tmp_path: Path, options: list[str]
) -> None:
    tiny = "--epochs 1 --hidden 2 --seeds 1 --no-figure".split()
    csv = str(write(tmp_path / "a.csv", wave(121)))
    assert example.forecast.main([*tiny, *options, "--csv", csv, "--out", str(tmp_path)]) == 0
