"""aioresilience: decorators from objects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from aioresilience import (
    Bulkhead,
    BulkheadConfig,
    CircuitBreaker,
    CircuitConfig,
    FallbackConfig,
    FallbackHandler,
    RetryConfig,
    RetryPolicy,
    TimeoutConfig,
    TimeoutManager,
    with_bulkhead,
    with_circuit_breaker,
    with_fallback_handler,
    with_retry,
    with_timeout_manager,
)
from aioresilience.exceptions import OperationTimeoutError

from benchmarks.terms import DEFAULT, Function, Terms, Trouble, check, limited, stand_in, with_memory

NUMBERS = count()
CONSTANT = 0


class Aioresilience:
    """Decorators; what blocks goes to `asyncio.to_thread`."""

    name = "aioresilience"
    note = "fallback, retry, circuit, bulkhead, timeout; a dict round it for last good"

    def guard(self, function: Function, terms: Terms) -> Function:
        """Decorators round it."""
        check(terms, "single_flight", "window_for")
        circuit = CircuitBreaker(
            name=f"ratings-{next(NUMBERS)}",
            config=CircuitConfig(
                failure_threshold=terms.failures,
                recovery_timeout=terms.open_for,
                success_threshold=1,
                failure_exceptions=(Exception,) if terms.refused is None else (Trouble, OperationTimeoutError),
            ),
        )
        if terms.listener is not None:
            circuit.events.on("*")(told(terms.listener))
        pool = Bulkhead(config=BulkheadConfig(max_concurrent=terms.limit, max_waiting=terms.queue, timeout=10.0))
        call = with_timeout_manager(TimeoutManager(config=TimeoutConfig(timeout=terms.timeout)))(function)
        call = with_circuit_breaker(circuit)(with_bulkhead(pool)(call))
        if terms.attempts > 1:
            policy = RetryPolicy(
                config=RetryConfig(
                    max_attempts=terms.attempts,
                    initial_delay=terms.pause,
                    strategy=CONSTANT,
                    jitter=0.0,
                    retry_on_exceptions=(Trouble, OperationTimeoutError),
                )
            )
            call = with_retry(policy)(call)
        if terms.plan_b in {"default", "async function"}:
            plan_b = DEFAULT if terms.plan_b == "default" else stand_in
            call = with_fallback_handler(FallbackHandler(config=FallbackConfig(fallback=plan_b)))(call)
        call = limited(call, terms)
        return with_memory(call, terms) if terms.plan_b == "last good" else call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The same round `asyncio.to_thread`."""

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(function, key)

        return self.guard(in_thread, terms)

    def pool(self, terms: Terms) -> Any:
        """One object for many blocks."""
        return Bulkhead(config=BulkheadConfig(max_concurrent=terms.limit, max_waiting=terms.queue, timeout=10.0))

    async def close(self) -> None:
        """Nothing is held."""


def told(listener: Callable[..., object]) -> Callable[..., Any]:
    """Its listeners are awaited."""

    async def tell(event: object) -> None:
        listener(event)

    return tell
