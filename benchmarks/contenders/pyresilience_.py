"""pyresilience: one decorator for all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pyresilience import (
    BulkheadConfig,
    CacheConfig,
    CircuitBreakerConfig,
    CircuitOpenError,
    FallbackConfig,
    RetryConfig,
    TimeoutConfig,
    resilient,
)

from benchmarks.terms import DEFAULT, Function, Terms, check, limited, stand_in, with_memory


class Consecutive:
    """With a circuit that counts failures in a row."""

    name = "pyresilience"
    note = "resilient(retry, timeout, circuit_breaker, bulkhead); a dict round it for last good"
    window = 0

    def guard(self, function: Function, terms: Terms) -> Function:
        """One decorator."""
        check(terms, "window_for")
        call = limited(self._decorated(function, terms), terms)
        return with_memory(call, terms) if terms.plan_b == "last good" and not terms.single_flight else call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The same decorator on the plain function, in a thread."""
        call = self._decorated(function, terms)

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(call, key)

        return in_thread

    def _decorated(self, function: Callable[[str], Any], terms: Terms) -> Any:
        ignored = () if terms.refused is None else (terms.refused,)
        fallback = None
        match terms.plan_b:
            case "default":
                fallback = FallbackConfig(handler=DEFAULT)
            case "async function":
                fallback = FallbackConfig(handler=stand_in)
        return resilient(
            retry=RetryConfig(
                max_attempts=terms.attempts, delay=terms.pause, jitter=False, ignore_on=(CircuitOpenError, *ignored)
            )
            if terms.attempts > 1
            else None,
            timeout=TimeoutConfig(seconds=terms.timeout, pool_size=terms.limit + 2),
            circuit_breaker=CircuitBreakerConfig(
                failure_threshold=terms.failures,
                recovery_timeout=terms.open_for,
                success_threshold=1,
                sliding_window_size=self.window,
                minimum_calls=terms.failures if self.window else 0,
                ignore_on=ignored,
            ),
            bulkhead=BulkheadConfig(max_concurrent=terms.limit, max_wait=10.0),
            fallback=fallback,
            cache=CacheConfig(max_size=terms.remembers) if terms.single_flight else None,
            listeners=[] if terms.listener is None else [terms.listener],
        )(function)

    async def close(self) -> None:
        """Nothing is held."""


class Windowed(Consecutive):
    """With a circuit that counts the share of failures in the last hundred calls."""

    name = "pyresilience, window"
    note = "the same with sliding_window_size=100"
    window = 100
