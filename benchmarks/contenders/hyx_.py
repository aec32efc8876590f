"""hyx: decorators, one upon another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hyx.bulkhead import bulkhead
from hyx.circuitbreaker import consecutive_breaker
from hyx.fallback import fallback
from hyx.retry import retry
from hyx.timeout import timeout
from hyx.timeout.exceptions import MaxDurationExceeded

from benchmarks.terms import DEFAULT, Function, Terms, Trouble, check, limited, stand_in, with_memory


class Hyx:
    """Decorators; what blocks goes to `asyncio.to_thread`."""

    name = "hyx"
    note = "fallback, retry, consecutive_breaker, bulkhead, timeout; a dict round it for last good"

    def guard(self, function: Function, terms: Terms) -> Function:
        """Decorators round it."""
        check(terms, "single_flight", "listener", "window_for")
        counts = Exception if terms.refused is None else Trouble
        call = timeout(terms.timeout)(function)
        call = bulkhead(terms.limit, terms.limit + terms.queue)(call)
        call = consecutive_breaker(
            exceptions=counts, failure_threshold=terms.failures, recovery_time_secs=terms.open_for, recovery_threshold=1
        )(call)
        if terms.attempts > 1:
            # its `attempts` are those after the first
            call = retry(on=(Trouble, MaxDurationExceeded), attempts=terms.attempts - 1, backoff=terms.pause)(call)
        if terms.plan_b in {"default", "async function"}:
            call = fallback(default if terms.plan_b == "default" else stand_in)(call)
        call = limited(call, terms)
        return with_memory(call, terms) if terms.plan_b == "last good" else call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The same round `asyncio.to_thread`."""

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(function, key)

        return self.guard(in_thread, terms)

    def block(self, terms: Terms) -> Any:
        """One object for many blocks."""
        return timeout(terms.timeout)

    def pool(self, terms: Terms) -> Any:
        """One object for many blocks."""
        return bulkhead(terms.limit, terms.limit + terms.queue)

    async def close(self) -> None:
        """Nothing is held."""


async def default(*_: Any) -> str:
    """What a user's handler would give."""
    return DEFAULT
