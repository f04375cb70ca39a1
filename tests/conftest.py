"""Fixtures for all tests, and the kernels they run on at the head of pytest's report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import cylstm


@pytest.fixture(scope="session")
def isa() -> str:
    """The instruction set that this process computes with; CYLSTM_ISA chooses it."""
    return str(cylstm.show_config()["isa"])


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def default_threads() -> Iterator[None]:
    """For tests that change the default: it comes back."""
    before = cylstm.get_num_threads()
    yield
    cylstm.set_num_threads(before)


def pytest_report_header() -> str:
    config = cylstm.show_config()
    return f"cylstm: isa {config['isa']} of {', '.join(config['isa_available'])}"
