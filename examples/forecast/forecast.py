"""Forecast a seasonal series with an LSTM, and see whether that was worth it.

    python forecast.py                                   # CO2 at Mauna Loa
    python forecast.py --csv sales.csv --column units    # your own
    python forecast.py --seeds 20                        # was it luck?
    python forecast.py --quantize                        # what do fewer bits cost?

The end of the series is held out: nothing is trained, scaled or chosen on it. From every origin
in it the LSTM and two baselines forecast the steps that follow, and their errors are compared.
"""

from __future__ import annotations

import argparse
import sys
from math import floor, log10
from pathlib import Path

import numpy as np

import model
from model import Array, Lstm
from series import DataError, Series, read_csv

SHIPPED = Path(__file__).parent / "data" / "mauna_loa_co2.csv"
HELD_OUT = 5  # horizons, or a quarter of the series, if that is less
HORIZONS = (1, 3, 6, 12, 24)  # in the table, beside the last


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        run(args)
    except DataError as error:
        print(f"forecast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nforecast: stopped by Ctrl-C", file=sys.stderr)
        return 130
    return 0


def run(args: argparse.Namespace) -> None:
    series = read_csv(args.csv, args.column, args.decimal)
    season = args.season or series.season
    horizon = args.horizon or max(2 * season, 12)
    values, n = series.values, len(series.values)
    first = first_held_out(n, season, horizon)
    seen, origins = values[:first], range(first, n - horizon + 1)
    print(f"{series.name}: {n} {series.step}s, {series.time(0)} to {series.time(n - 1)}")
    for note in series.notes:
        print(f"  {note}")
    print(f"season {season}; held out: the last {n - first}, from {series.time(first)} on")

    lstms = [train(seen, season, seed, args) for seed in range(args.seeds)]
    forecasters: dict[str, model.Forecaster] = {
        "seasonal naive with drift": model.Naive(),
        "ridge autoregression": model.Ridge.choose(seen, season, horizon),
        **{f"LSTM, seed {seed}": lstm for seed, lstm in enumerate(lstms)},
        **{
            f"  seed {seed}, {weights}": lstm.quantized(weights)
            for seed, lstm in enumerate(lstms)
            for weights in (("bfloat16", "int8") if args.quantize else ())
        },
    }
    made = {
        name: model.roll_outs(forecaster, values, season, origins, horizon)
        for name, forecaster in forecasters.items()
    }
    errors = {name: model.errors_of(forecasts, values, origins) for name, forecasts in made.items()}
    print_errors(errors, series.step)

    args.out.mkdir(parents=True, exist_ok=True)
    lstms[0].save(args.out)
    lstm = Lstm.load(args.out)
    z = model.surprises(values, season)
    apart = [*origins[::horizon], n]  # those whose forecasts do not overlap, and the end
    check_stream(lstm, z, apart, horizon)
    print(f"\nThe LSTM of seed 0, saved, loaded and streamed {series.step} by {series.step}, gives")
    print(f"what it gives when it reads whole sequences, to the bit (from {len(apart)} origins).")

    future = model.forecast(values, season, lstm.expect(z, horizon))
    write_csv(args.out / "forecast.csv", series, future)
    if not args.no_figure:
        from figure import draw  # here, because matplotlib takes a second to import

        gates = lstm.gates_by_season(z)
        draw(args.out / "forecast.png", series, first, made, errors, future, gates)
    print(
        f"Written to {args.out}: weights, forecast.csv{'' if args.no_figure else ', forecast.png'}"
    )


def first_held_out(n: int, season: int, horizon: int) -> int:
    """Where the held-out part begins; raises DataError if too little would be left before it."""
    least = max(8 * season, 3 * horizon, 48)  # to train, and to choose the ridge's penalty
    if n < least + horizon + 1:
        raise DataError(
            f"{n} values are too few: a season of {season} and a horizon of {horizon} need at "
            f"least {least + horizon + 1} (see --season and --horizon)"
        )
    held_out = max(min(HELD_OUT * horizon, n // 4), horizon + 1)
    return max(n - held_out, least)


def train(seen: Array, season: int, seed: int, args: argparse.Namespace) -> Lstm:
    from tqdm import tqdm

    lstm = Lstm.create(seen, season, args.hidden, seed)
    with tqdm(total=args.epochs, desc=f"training, seed {seed}", unit=" epochs") as bar:
        for loss in lstm.train(seen, args.epochs, seed):
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()
    return lstm


def check_stream(lstm: Lstm, z: Array, origins: list[int], horizon: int) -> None:
    """A stream is fed step by step and keeps a state; what it says must be the same, exactly."""
    for t in origins:
        streamed, whole = lstm.expect(z[:t], horizon), lstm.expect_whole(z[:t], horizon)
        if streamed.tobytes() != whole.tobytes():
            raise AssertionError(f"from origin {t} the stream gives {streamed}, not {whole}")


def print_errors(errors: dict[str, Array], step: str) -> None:
    """A table of RMSE and one of MAE: a row per forecaster, a column per horizon."""
    origins, horizon = next(iter(errors.values())).shape
    shown = [*(h for h in HORIZONS if h < horizon), horizon]
    overall = {name: model.rmse(e) for name, e in errors.items()}
    digits = max(0, 2 - floor(log10(max(overall.values()) or 1)))
    print(f"\n{origins} forecasts of {horizon} {step}s; columns: {step}s ahead")
    for measure, mean in ("RMSE", model.rmse), ("MAE", lambda e: np.abs(e).mean()):
        print(f"\n{measure:26}" + "".join(f"{h:>8}" for h in [*shown, "all"]))
        for name, e in errors.items():
            cells = [*(mean(e[:, h - 1]) for h in shown), mean(e)]
            print(f"{name:26}" + "".join(f"{cell:8.{digits}f}" for cell in cells))

    naive, ridge, *_ = overall.values()
    lstms = [found for name, found in overall.items() if name.startswith("LSTM")]
    print(f"\nRMSE over all: LSTM {np.mean(lstms):.{digits}f} on average; it beats")
    for name, baseline in ("seasonal naive", naive), ("ridge", ridge):
        wins = sum(lstm < baseline for lstm in lstms)
        print(f"  {name} ({baseline:.{digits}f}) with {wins} of {len(lstms)} seeds")


def write_csv(path: Path, series: Series, future: Array) -> None:
    rows = (f"{series.time(len(series.values) + k)},{v:.6g}" for k, v in enumerate(future))
    path.write_text("\n".join([f"{series.step},{series.name}", *rows]) + "\n")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, default=SHIPPED, metavar="FILE", help="with a header line")
    add("--column", metavar="NAME", help="needed if several columns have numbers")
    add("--decimal", choices=".,", help="the decimal sign, where the numbers leave it open")
    add("--season", type=at_least_1, metavar="N", help="steps in a season; by default guessed")
    add("--horizon", type=at_least_1, metavar="N", help="steps to forecast; by default 2 seasons")
    add("--seeds", type=at_least_1, default=5, metavar="N", help="train and compare N networks")
    add("--epochs", type=at_least_1, default=model.EPOCHS, metavar="N")
    add("--hidden", type=at_least_1, default=model.HIDDEN, metavar="N", help="units of the LSTM")
    add("--quantize", action="store_true", help="each network with bfloat16 and int8 weights too")
    add("--out", type=Path, default=Path("build/forecast"), metavar="FOLDER")
    add("--no-figure", action="store_true", help="do without matplotlib")
    return parser.parse_args(argv)


def at_least_1(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
