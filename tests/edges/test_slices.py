"""A few in each turn of the loop."""

from __future__ import annotations

import asyncio

import pytest

from gateway.slices import PAUSE, sliced
from tests.support import now

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]


@pytest.mark.parametrize(("number", "pauses"), [(0, 0), (1, 0), (3, 0), (4, 1), (6, 1), (7, 2)])
async def test_there_is_a_pause_between_two_slices_and_none_before_or_after(number: int, pauses: int) -> None:
    began_at = now()

    seen = [one async for one in sliced(range(number), size=3)]

    assert seen == list(range(number))
    assert now() - began_at == pytest.approx(pauses * PAUSE)


async def test_what_comes_in_a_pause_is_met_as_it_is_then() -> None:
    names = ["films", "ratings"]
    asyncio.get_running_loop().call_later(PAUSE / 2, names.append, "posters")

    assert [name async for name in sliced(iter(names), size=1)] == ["films", "ratings", "posters"]
