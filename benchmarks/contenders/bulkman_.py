"""bulkman: a bulkhead with a circuit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any

from bulkman import Bulkhead, BulkheadConfig
from bulkman.core import with_bulkhead

from benchmarks.terms import Function, Terms, check, limited, with_memory

NUMBERS = count()


class Bulkman:
    """A pool, a circuit and a limit on time; no retries, no plan B."""

    name = "bulkman"
    note = "bulkhead, circuit, timeout; it has no retries and no plan B; a dict round it for last good"

    def __init__(self) -> None:
        self._bulkheads: list[Bulkhead] = []
        logging.getLogger("bulkman").setLevel(logging.ERROR)

    def guard(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """One decorator."""
        check(terms, "plan_b", "single_flight", "listener", "refused", "window_for")
        if terms.plan_b is None:
            check(terms, "attempts")
        bulkhead = Bulkhead(
            BulkheadConfig(
                name=f"ratings-{next(NUMBERS)}",
                max_concurrent_calls=terms.limit,
                max_queue_size=terms.queue,
                timeout_seconds=terms.timeout,
                failure_threshold=min(terms.failures, 1_000),
                success_threshold=1,
                isolation_duration=terms.open_for,
                circuit_breaker_enabled=True,
            )
        )
        self._bulkheads.append(bulkhead)
        call = limited(with_bulkhead(bulkhead)(function), terms)
        return with_memory(call, terms) if terms.plan_b == "last good" else call

    guard_plain = guard  # it has threads of its own

    async def close(self) -> None:
        """End the threads."""
        for bulkhead in self._bulkheads:
            await bulkhead.shutdown()
