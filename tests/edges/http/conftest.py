"""A gateway for each test, that must be empty when the test is over."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from gateway import Gateway
from tests.support import assert_all_gone, steps


@pytest_asyncio.fixture
async def gate() -> AsyncIterator[Gateway]:
    """A gateway on this loop; nothing may be left in it at the end."""
    gate = Gateway()
    async with gate:
        yield gate
        assert_all_gone_but_idle(gate)
    await steps(2)  # a transport that is closed tells its protocol, and its timers end, in the next turn of the loop
    assert_all_gone(gate)


def assert_all_gone_but_idle(gate: Gateway) -> None:
    """No connection is in use."""
    for upstream in gate:
        session = getattr(upstream, "_session", None)
        if session is not None:
            assert session.connections.in_use == 0
