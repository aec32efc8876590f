"""Many upstreams, a few in each turn of the loop: a call takes many turns, and would meet all of them otherwise."""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

T = TypeVar("T")

PAUSE = 0.002
"""Seconds from one slice to the next. Without a pause, a loop that has little to do would take them all at once."""


async def sliced(each: Iterable[T], *, size: int) -> AsyncIterator[T]:
    """Each of them, with a pause after so many; what is iterated over may move on in it."""
    for place, one in enumerate(each):
        if place and place % size == 0:
            await sleep(PAUSE)
        yield one
