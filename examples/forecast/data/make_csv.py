"""Make mauna_loa_co2.csv from the monthly file of the Scripps CO2 Program.

    pip download --no-deps pymc3==3.9.3
    python make_csv.py pymc3-3.9.3-py3-none-any.whl > mauna_loa_co2.csv

The argument is that wheel, or the Scripps file itself (a newer one too; the text below then
needs its dates).
"""

import sys
import zipfile
from pathlib import Path

MEMBER = "pymc3/examples/data/monthly_in_situ_co2_mlo.csv"
MEASURED, FILLED, MISSING = 4, 8, -99.99  # columns of the Scripps file, counted from 0

HEAD = """\
# Carbon dioxide in the air at Mauna Loa, Hawaii: monthly means in ppm (08A calibration scale).
# Source: R. F. Keeling, S. J. Walker, S. C. Piper and A. F. Bollenbacher, Scripps CO2 Program,
#   Scripps Institution of Oceanography at UC San Diego, https://scrippsco2.ucsd.edu
#   (monthly_in_situ_co2_mlo.csv, archive of 6 July 2017).
# Licence: Creative Commons Attribution 4.0, https://creativecommons.org/licenses/by/4.0/
# Changed: one column of ten, ends without values cut off. See README.md beside this file.
# Filled by Scripps, not measured: """


def main(path: str) -> None:
    if path.endswith(".whl"):
        text = zipfile.ZipFile(path).read(MEMBER).decode()
    else:
        text = Path(path).read_text()
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    months = [row for row in rows if row[0].isdigit() and float(row[FILLED]) != MISSING]
    filled = [f"{row[0]}-{row[1]}" for row in months if float(row[MEASURED]) == MISSING]
    print(HEAD + ", ".join(filled))
    print("month,co2_ppm")
    for row in months:
        print(f"{row[0]}-{row[1]},{row[FILLED]}")


if __name__ == "__main__":
    main(sys.argv[1])
