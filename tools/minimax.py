"""The tables of src_c/kernels/activation_tmpl.h, computed from the functions that they stand for.

    python -m pip install mpmath
    python tools/minimax.py

Each polynomial is the minimax fit: of its degree, the one whose largest error over the interval is
the least. Remez's exchange finds it in 50 digits; the coefficients are rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpmath import mp, mpf

mp.dps = 50


def remez(
    f: Callable[[Any], Any], weight: Callable[[Any], Any], end: Any, degree: int
) -> tuple[list[Any], Any]:
    """Fit a polynomial p to f on (0, end] by the error |p - f| * weight.

    Returns the coefficients, constant first, and the largest error. The best fit is known by its
    error, which takes its largest size degree + 2 times, with signs in turn: a fit that has equal
    errors of such signs at some nodes is solved for, and the nodes move to where its error peaks.
    """
    count = degree + 2
    nodes = [end * mp.sin(mp.pi * (i + 1) / (2 * count)) ** 2 for i in range(count)]
    grid = [end * mp.sin(mp.pi * i / 6000) ** 2 for i in range(1, 3001)]
    points = [(u, f(u), weight(u)) for u in grid]
    while True:
        rows = [[u**k for k in range(degree + 1)] for u in nodes]
        for i, u in enumerate(nodes):
            rows[i].append((-1) ** i / weight(u))
        *p, level = mp.lu_solve(mp.matrix(rows), mp.matrix([f(u) for u in nodes]))
        errors = [(mp.polyval(p[::-1], u) - y) * w for u, y, w in points]
        peaks = [0]
        for i, error in enumerate(errors):
            if error * errors[peaks[-1]] < 0:
                peaks.append(i)
            elif abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        nodes = [grid[i] for i in peaks[:count]]
        worst = max(map(abs, errors))
        if worst < abs(level) * mpf("1.0001"):
            return p, worst


def h_coefficients(degree: int) -> tuple[list[Any], Any]:
    """h = 2 + c_1 v + ... + c_degree v^degree, near r coth(r / 2) for v = r^2 <= (ln 2 / 2)^2.

    Fitted by the relative error of e^r = (h + r) / (h - r). The constant is not: with 2, e^r and
    tanh are exact to first order near 0.
    """

    def h(v: Any) -> Any:
        return mp.sqrt(v) * mp.coth(mp.sqrt(v) / 2)

    def weight(v: Any) -> Any:  # the derivative of log e^r by h; times v for the quotient below
        return v * 2 * mp.sqrt(v) / (h(v) ** 2 - v)

    c, error = remez(lambda v: (h(v) - 2) / v, weight, (mp.ln(2) / 2) ** 2, degree - 1)
    return [mpf(2), *c], error


def softplus_coefficients(degree: int) -> tuple[list[Any], Any]:
    """atanh(z) / z = 1 + v (c_0 + c_1 v + ...), v = z^2 <= 1/9, by its relative error."""

    def whole(v: Any) -> Any:
        return mp.atanh(mp.sqrt(v)) / mp.sqrt(v)

    return remez(lambda v: (whole(v) - 1) / v, lambda v: v / whole(v), mpf(1) / 9, degree)


def literal(number: Any, bits: int) -> str:
    """A C literal, with enough digits for its type."""
    return f"{float(number):#.10g}f" if bits == 32 else f"{float(number):#.17g}"


def table(name: str, coefficients: Sequence[Any], bits: int) -> str:
    """A C array of the coefficients, highest power first."""
    numbers = ", ".join(literal(c, bits) for c in reversed(coefficients))
    return f"static const real {name}[] = {{{numbers}}};"


def print_tables(
    bits: int, degree: int, exponent_bits: int, significand_bits: int, softplus_degree: int
) -> None:
    # A multiple of ln 2 by any exponent is exact where ln 2 has only the bits left beside those.
    scale = mpf(2) ** (significand_bits - exponent_bits)
    high = mp.floor(mp.ln(2) * scale) / scale
    h, error = h_coefficients(degree)
    # m = (h(2 r) / 2 - r) / 2 = 1/2 - r / 2 + v (c_1 + 4 c_2 v + 16 c_3 v^2 + ...)
    m = [c * 4**k for k, c in enumerate(h[1:])]
    print(f"/* {bits} bits: relative error of e^r {mp.nstr(error, 2)} */")
    print(f"static const real LOG2_E = {literal(1 / mp.ln(2), bits)};")
    print(f"static const real LN2_HIGH = {literal(high, bits)};")
    print(f"static const real LN2_LOW = {literal(mp.ln(2) - high, bits)};")
    print(table("SIGMOID_H", h, bits))
    print(table("TANH_M", m, bits))
    c, error = softplus_coefficients(softplus_degree)
    print(f"/* relative error {mp.nstr(error, 2)} */")
    print(table("SOFTPLUS_Q", c, bits))


def main() -> None:
    print_tables(bits=32, degree=2, exponent_bits=8, significand_bits=24, softplus_degree=3)
    print_tables(bits=64, degree=5, exponent_bits=11, significand_bits=53, softplus_degree=8)


if __name__ == "__main__":
    main()
