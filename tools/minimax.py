"""The numbers in src_c/kernels/activation_tmpl.h, from first principles.

    python -m pip install mpmath
    python tools/minimax.py

Prints the tables as they stand there. Each is a minimax fit: of all coefficients of its form, those
whose largest error over the interval is the least, found by Remez's exchange in 50 digits and
rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mpmath import mp, mpf

Function = Callable[[Any], Any]
mp.dps = 50


def remez(f: Function, weight: Function, end: Any, m: int, n: int) -> tuple[list[Any], list[Any], Any]:
    """P, Q, E: the ratio of polynomials of degree m and n that is nearest to f on [0, end].

    Nearest: the largest |P / Q - f| * weight, which is E, is the least. Coefficients are in
    ascending order and Q[0] is 1.
    """
    count = m + n + 2  # the error of the best fit takes its largest size this often, with signs in turn
    nodes = [end * mp.sin(mp.pi * (i + 1) / (2 * count)) ** 2 for i in range(count)]
    grid = [end * mp.sin(mp.pi * i / 6000) ** 2 for i in range(1, 3001)]
    targets, weights = [f(u) for u in grid], [weight(u) for u in grid]
    q = [mpf(1)] + [mpf(0)] * n
    while True:
        # P - f Q = +-E Q / weight at the nodes: linear, but for Q beside E, which is taken from before.
        change = mpf(1)
        while change > mpf(10) ** -30:
            rows, right = mp.matrix(count), mp.matrix(count, 1)
            for i, u in enumerate(nodes):
                right[i] = f(u)
                rows[i, m + n + 1] = (-1) ** i * value(q, u) / weight(u)
                for k in range(m + 1):
                    rows[i, k] = u**k
                for k in range(1, n + 1):
                    rows[i, m + k] = -right[i] * u**k
            solution = list(mp.lu_solve(rows, right))
            last, q = q, [mpf(1), *solution[m + 1 : m + n + 1]]
            change = max(abs(a - b) for a, b in zip(q, last, strict=True))
        p = solution[: m + 1]
        errors = [
            (value(p, u) / value(q, u) - t) * w
            for u, t, w in zip(grid, targets, weights, strict=True)
        ]
        peaks = [0]
        for i, e in enumerate(errors):
            if e * errors[peaks[-1]] < 0:
                peaks.append(i)
            elif abs(e) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        while len(peaks) > count:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        nodes = [grid[i] for i in peaks]
        worst = max(map(abs, errors))
        if worst < abs(solution[-1]) * mpf("1.0001"):
            return p, q, worst


def value(coefficients: Sequence[Any], u: Any) -> Any:
    """The polynomial with these coefficients, in ascending order, at u."""
    return mp.polyval(list(reversed(coefficients)), u)


def split_ln2(bits: int) -> tuple[Any, Any]:
    """ln 2 as a number of so few bits that a whole number of exponent size times it is exact, and the rest."""
    high = mp.floor(mp.ln(2) * 2**bits) / 2**bits
    return high, mp.ln(2) - high


def exp_h(degree: int) -> tuple[list[Any], Any]:
    """h(v) = 2 + h_1 v + ... near r coth(r / 2) at v = r^2, by the relative error of (h + r) / (h - r)."""

    def h(v: Any) -> Any:
        return mp.sqrt(v) * mp.coth(mp.sqrt(v) / 2)

    def weight(v: Any) -> Any:  # d ln((h + r) / (h - r)) / dh, times v for the quotient below
        return 2 * mp.sqrt(v) / (h(v) ** 2 - v) * v

    p, _, error = remez(lambda v: (h(v) - 2) / v, weight, (mp.ln(2) / 2) ** 2, degree - 1, 0)
    return [mpf(2), *p], error


def tanh_pq(limit: Any) -> tuple[list[Any], list[Any], Any]:
    """P, Q of degree 2 and 3, Q[3] = 1, with t = tanh(x / 2) near x P(x^2) / Q(x^2) for |x| <= limit.

    By the relative error of tanh(x) = 2 t / (1 + t^2): that of t, times (1 - t^2) / (1 + t^2).
    """

    def f(u: Any) -> Any:
        return mp.tanh(mp.sqrt(u) / 2) / mp.sqrt(u)

    p, q, error = remez(f, lambda u: 1 / (f(u) * mp.cosh(mp.sqrt(u))), limit**2, 2, 3)
    return [c / q[-1] for c in p], [c / q[-1] for c in q], error


def table(name: str, coefficients: Sequence[Any], digits: int) -> str:
    """A C array of the coefficients, the highest first."""
    numbers = ", ".join(mp.nstr(c, digits) for c in reversed(coefficients))
    return f"{name}[] = {{{numbers}}}"


def main() -> None:
    for bits, degree, high_bits, digits in ((32, 2, 15, 10), (64, 5, 42, 18)):
        high, low = split_ln2(high_bits)
        h, error = exp_h(degree)
        print(f"/* REAL_BITS == {bits} */")
        print(f"LOG2_E = {mp.nstr(1 / mp.ln(2), digits)}")
        print(f"LN2_HIGH = {float(high).hex()}, LN2_LOW = {mp.nstr(low, digits)}")
        print(table("EXP_H", h, digits), f"  /* {mp.nstr(error, 2)} */")
        if bits == 32:
            limit = mpf("9.2")
            p, q, error = tanh_pq(limit)
            print(table("TANH_P", p, digits), f"  /* {mp.nstr(error, 2)} */")
            print(table("TANH_Q", q[:-1], digits))
            print(f"TANH_LIMIT = {limit}")


if __name__ == "__main__":
    main()
