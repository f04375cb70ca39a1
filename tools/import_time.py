"""What `import cylstm` costs on top of `import numpy`.

    python tools/import_time.py [--runs 20] [--budget 15]

Prints the fastest and the median of several fresh interpreters, in milliseconds, and fails where
the fastest is above the budget.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

CODE = """
import numpy
from time import perf_counter
start = perf_counter()
import cylstm
print(perf_counter() - start)
"""


def import_times(runs: int) -> list[float]:
    """Seconds that `import cylstm` took after `import numpy`, in each of `runs` interpreters."""
    # From byte code, as installed packages are: a first run, not counted, may have to write it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def measure() -> float:
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return float(done.stdout)

    measure()
    return [measure() for _ in range(runs)]


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the cost of `import cylstm`")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--budget", type=float, default=15.0, help="milliseconds")
    args = parser.parse_args()
    times = [1e3 * seconds for seconds in import_times(args.runs)]
    fastest = min(times)
    print(
        f"import cylstm over numpy: {fastest:.1f} ms at best, {statistics.median(times):.1f} ms "
        f"in the median of {args.runs} runs; budget {args.budget:g} ms"
    )
    if fastest > args.budget:
        sys.exit("import_time: over the budget")


if __name__ == "__main__":
    main()
