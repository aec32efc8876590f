"""An upstream for tests of answers that are remembered and shared: it counts, and does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import Gateway, Policy, Upstream
from tests.support import QUIET

Told = Callable[[], Awaitable[Any]]


class World:
    """One upstream. `took`: seconds an answer takes; `error`: what it raises; `value`: what it answers, by the call."""

    def __init__(self, gate: Gateway, policy: Policy = QUIET) -> None:
        self.up: Upstream = gate.upstream("world", policy=policy)
        self.took = 1.0
        self.error: BaseException | None = None
        self.value: Callable[[str], Any] | None = None  # else the movie, and which answer it is
        self.sent = 0
        self.running = self.peak = 0

    def ask(self, **said: Any) -> Any:
        """An operation of it."""

        @self.up.operation(name="ask", **{"idempotent": True, **said})
        async def ask(movie: str = "alien") -> list[Any]:
            self.sent = number = self.sent + 1
            self.running += 1
            self.peak = max(self.peak, self.running)
            try:
                await asyncio.sleep(self.took)
            finally:
                self.running -= 1
            if self.error is not None:
                raise self.error
            return [movie, number] if self.value is None else self.value(movie)  # type: ignore[no-any-return]

        return ask


def facts(answer: Any) -> tuple[Any, str, float]:
    """What a caller sees first: value, source, age."""
    return answer.value, str(answer.source), round(answer.age, 6)
