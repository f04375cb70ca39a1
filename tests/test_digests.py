"""The bits of every kernel set, against those that it gave before: see make_digests.py.

A refactoring changes no digest. Where a change of results is meant, make_digests.py writes the new
ones, and the changelog says so.
"""

from __future__ import annotations

import pytest

from helpers import ISAS, bits_promised
from make_digests import PROBLEMS, THREADS, digests, load

DIGESTS = load()

pytestmark = pytest.mark.skipif(not bits_promised(), reason="a BLAS sums as it likes")


def test_every_problem_has_digests() -> None:
    assert list(DIGESTS) == list(PROBLEMS)
    for name, sets in DIGESTS.items():
        # of norms, whose sums are over lanes, AVX-512's are not AVX2's: they wait for such a CPU
        lacking = {"avx512"} if "norm" in name else set()
        assert {"avx512", "avx2", "sse2", "scalar"} - lacking <= sets.keys()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_digests(name: str, isa: str) -> None:
    if isa not in DIGESTS[name]:
        pytest.skip(f"no digests of {isa} yet: tests/make_digests.py adds them")
    for threads in THREADS:
        assert digests(PROBLEMS[name], isa, threads) == DIGESTS[name][isa], f"threads={threads}"
