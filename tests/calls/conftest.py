"""A gateway for each test, that must be empty when the test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway import Gateway
from tests.support import assert_all_gone


@pytest.fixture
def gate() -> Iterator[Gateway]:
    """A gateway; nothing may be left in it at the end."""
    gate = Gateway()
    yield gate
    assert_all_gone(gate)
    for workers in [upstream.dismiss() for upstream in gate]:
        assert workers is None or not workers.join(1.0), "threads do not end"
