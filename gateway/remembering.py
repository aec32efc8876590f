"""What is done with the memory of an operation from outside of its calls: it is warmed, and made to forget."""

from __future__ import annotations

from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from inspect import isawaitable
from math import inf
from typing import Any, cast

from fallbacks.answer import Question
from gateway.call import Call
from gateway.coalesce import Flight, Flights
from gateway.host import Host
from gateway.memory import Memory
from gateway.outcome import ConfigError

MOST_WARMING = 100
"""Calls that `warm` makes at once, however large `refresh_limit` is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warming:
    """To have in memory what calls would be answered with. `ask` makes a call that only the upstream may answer."""

    memory: Memory
    upstream: Host
    key_for: Callable[[tuple[Any, ...], dict[str, Any]], Hashable]
    ask: Callable[..., Awaitable[Any]]

    async def all(self, keys: Iterable[Any], operation: str) -> int:
        """How many of them are in memory, having asked for the others."""
        if self.memory.first is None:
            remedy = "give it fallback=[LastGood(...)], or fresh_for="
            raise ConfigError(f"{self.memory.where}.warm", "it remembers nothing", remedy)
        self.upstream.enter(operation)  # which opens the gateway, if need be: it tells the time from now on
        todo, warmed = iter(keys), 0

        async def work() -> None:
            nonlocal warmed
            for one in todo:
                is_warm = await self.one(one if isinstance(one, tuple) else (one,))
                warmed += is_warm  # not in one: others add to it meanwhile

        try:
            async with TaskGroup() as group:
                for _ in range(int(min(self.upstream.policy.refresh_limit, MOST_WARMING))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # arguments that are none: the first of them says enough
        return warmed

    async def one(self, args: tuple[Any, ...]) -> bool:
        """Whether the answer to a call is in memory, having asked for it if need be."""
        key, first = self.key_for(args, {}), self.memory.first
        if first is None:
            return False
        now, kind, where = self.upstream.clock(), self.memory.kind, self.memory.where
        kept = first.answer(Question(key, args, {}, LookupError(), now, inf, kind=kind, operation=where))
        if isawaitable(kept):
            kept = await kept
        if kept is not None:
            return True
        try:
            await self.ask(*args)
        except Exception:  # noqa: BLE001 - it is counted as any call; the others go on
            return False
        key = self.key_for(args, {})  # a reply may have told what its answers differ by
        return first.recall(key, self.upstream.clock()) is not None


def disown(calls: Iterable[Call], flights: Flights | None, meant: Callable[[Hashable], bool]) -> None:
    """Calls under way whose answer is not to be remembered, and not to be waited for by those who ask now."""
    for call in calls:
        if call.key is not None and meant(call.key):
            if flights is not None and call.flight is not None:
                flights.end(cast("Flight", call.flight))
            call.key = None
