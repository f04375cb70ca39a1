"""Every set of kernels that this machine can run, and the bits that each one promises.

CYLSTM_ISA is read when a process starts computing, so other sets than this process's are tested
in a process of their own: it runs the goldens and the tests of bits that stand here and elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cylstm import _core
from helpers import (
    ISAS,
    Array,
    Problem,
    all_grads,
    bits_promised,
    make_problem,
    run_python,
    same_bits,
)

HERE = Path(__file__).parent
CALL = "import cylstm, numpy; cylstm.LSTM(1, 1)(numpy.zeros((1, 1, 1), 'f4'))"


def test_configuration(isa: str) -> None:
    """The best set unless CYLSTM_ISA asks for another, which then it is; any machine has scalar."""
    assert isa == os.environ.get("CYLSTM_ISA", ISAS[0])
    assert ISAS[-1] == "scalar" and len(set(ISAS)) == len(ISAS)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_that_ran_are_those_configured(isa: str, threads: int, dtype: str) -> None:
    p = make_problem(1, 3, 2, dtype=dtype, input_size=3, hidden_size=7)
    lstm = p.lstm()
    lstm(p.x, p.states, threads=threads)
    assert isa in _core._last_kernels()
    tape = lstm.forward(p.x, p.states, threads=threads)
    assert isa in _core._last_kernels()
    tape.backward(p.dy, threads=threads)
    assert isa in _core._last_kernels()


@pytest.mark.slow
@pytest.mark.parametrize("other", ISAS)
def test_each_set_in_a_process_of_its_own(other: str) -> None:
    """Its goldens, and its bits; the packed products are its own, so no BLAS stands in for them."""
    wanted = "golden or (test_isa and (configuration or kernels or bits))"
    tests = [f"test_{name}.py" for name in ("isa", "forward", "backward")]
    done = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted),
        *(str(HERE / test) for test in tests),
        cwd=HERE.parent,
        timeout=None,
        CYLSTM_ISA=other,
        CYLSTM_GEMM="packed",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("impossible", ["nonsense", "AVX2 ", "avx512,avx2", *{"neon"} - set(ISAS)])
def test_an_impossible_set_is_an_error_that_names_the_possible(impossible: str) -> None:
    done = run_python("-c", CALL, CYLSTM_ISA=impossible)
    assert done.returncode == 1, "nothing was raised"
    message = done.stderr.splitlines()[-1]
    assert message.startswith(("ValueError", "ImportError"))
    assert impossible in message and "CYLSTM_ISA" in message
    assert all(isa in message for isa in ISAS)


def test_an_impossible_choice_of_products_is_an_error() -> None:
    done = run_python("-c", CALL, CYLSTM_GEMM="nonsense")
    assert done.returncode == 1, "nothing was raised"
    message = done.stderr.splitlines()[-1]
    assert message.startswith(("ValueError", "ImportError"))
    assert all(word in message for word in ("CYLSTM_GEMM", "nonsense", "auto", "packed", "blas"))


# ---------------------------------------------------------------------------------------------
# Bits. A sequence gets the same ones whatever batch it stands in, however many threads compute it,
# and however it is split in time.
# ---------------------------------------------------------------------------------------------

needs_own_products = pytest.mark.skipif(
    not bits_promised(), reason="a BLAS may compute products, and has bits of its own"
)


@st.composite
def problems(draw: Any, both_directions: bool = True) -> Problem:
    size = st.one_of(st.sampled_from([1, 7, 8, 16, 17, 33, 50]), st.integers(1, 70))
    T, B, H = draw(st.integers(1, 9)), draw(st.integers(1, 20)), draw(size)
    lengths = st.lists(st.integers(0, T), min_size=B, max_size=B)
    return make_problem(
        draw(st.integers(0, 1000)),
        T,
        B,
        draw(st.none() | lengths),
        draw(st.sampled_from(["float32", "float64"])),
        input_size=draw(size),
        hidden_size=H,
        num_layers=draw(st.integers(1, 2)),
        bias=draw(st.booleans()),
        bidirectional=both_directions and draw(st.booleans()),
        proj_size=draw(st.integers(0, min(H - 1, 20))),
    )


def infer(p: Problem, threads: int) -> list[Array]:
    y, (h_n, c_n) = p.lstm()(p.x, p.states, lengths=p.lengths, threads=threads)
    return [y, h_n, c_n]


@needs_own_products
@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(1, 5), st.data())
def test_bits_do_not_depend_on_the_batch(p: Problem, threads: int, data: Any) -> None:
    """Neither on the rows beside, nor on their number and order."""
    B = p.x.shape[1]
    rows = np.array(data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=B)))
    whole = infer(p, 1)
    assert same_bits(infer(p.take(rows), threads), [a[:, rows] for a in whole])


@needs_own_products
@settings(max_examples=25, deadline=None)
@given(problems(both_directions=False), st.integers(1, 5), st.data())
def test_bits_do_not_depend_on_cuts_in_time(p: Problem, threads: int, data: Any) -> None:
    """A sequence in pieces, each from the state that the one before left."""
    p = p._replace(lengths=None)
    T = len(p.x)
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1)))) if T > 1 else []
    lstm = p.lstm()
    y, (h_n, c_n) = lstm(p.x, p.states)
    states, pieces = p.states, []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        piece, states = lstm(p.x[start:stop], states, threads=threads)
        pieces.append(piece)
    assert same_bits([np.concatenate(pieces), *states], [y, h_n, c_n])


@needs_own_products
@settings(max_examples=25, deadline=None)
@given(problems(), st.integers(2, 7))
def test_bits_do_not_depend_on_threads(p: Problem, threads: int) -> None:
    """Nor on whether a tape is kept; and those of gradients do not depend on threads either."""
    one = infer(p, 1)
    assert same_bits(infer(p, threads), one)
    grads = []
    for n in (1, threads):
        tape = p.lstm().forward(p.x, p.states, lengths=p.lengths, threads=n)
        assert same_bits([tape.y, tape.h_n, tape.c_n], one)
        grads.append(all_grads(tape.backward(p.dy, p.dh_n, p.dc_n, threads=n)))
    assert same_bits(grads[1], grads[0])
