"""Our engine, with several policies and by both spellings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import Any

from tenacity import wait_fixed

from benchmarks.terms import DEFAULT, Function, Terms, check, stand_in
from gateway import (
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    CallFinished,
    CircuitChanged,
    Deadline,
    Gateway,
    LastGood,
    Operation,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    handler,
)


class Called:
    """Everything armed, the value wanted."""

    name = "gateway: await op()"
    note = "pool, queue, circuit, limits on time, retries with a budget, last good: all armed; no listener"

    def __init__(self) -> None:
        self._gates: list[Gateway] = []
        logging.getLogger("gateway").setLevel(logging.ERROR)

    def guard(self, function: Function, terms: Terms) -> Function:
        """As an operation of an upstream of its own."""
        return self._spelled(self._operation(function, terms))

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """A plain function is an operation like any other."""
        return self._spelled(self._operation(function, terms))

    def _spelled(self, operation: Operation[..., Any]) -> Function:
        return operation

    def _policy(self, terms: Terms) -> Policy:
        call_for = max(20.0, 2 * terms.timeout) if terms.total is None else terms.total
        return Policy(
            timeout=TimeoutPolicy(call=call_for, attempt=min(call_for, terms.timeout)),
            retry=RetryPolicy(
                attempts=terms.attempts,
                wait=wait_fixed(terms.pause),
                min_try=0.0,
                budget=BudgetPolicy(ratio=terms.attempts, minimum=1e6, burst=1e6),  # armed, and never in the way
            ),
            breaker=BreakerPolicy(
                min_calls=terms.opens_after, open_for=terms.open_for, window_for=terms.window_for or 10.0
            ),
            bulkhead=BulkheadPolicy(limit=terms.limit, queue=terms.queue),
        )

    def _operation(self, function: Callable[[str], Any], terms: Terms) -> Operation[..., Any]:
        gate = Gateway()
        self._gates.append(gate)
        if terms.listener is not None:
            gate.on(CircuitChanged)(terms.listener)
        extra: dict[str, Any] = {}
        if terms.refused is not None:
            extra["refused"] = (terms.refused,)
        return gate.upstream("ratings", policy=self._policy(terms)).operation(
            name="stars", idempotent=True, fallback=self._tiers(terms), coalesce=terms.single_flight, **extra
        )(function)

    def _tiers(self, terms: Terms) -> list[Any]:
        match terms.plan_b:
            case "last good":
                return [LastGood(max_entries=terms.remembers, max_bytes=inf)]
            case "default":
                return [Static(DEFAULT)]
            case "async function":
                return [handler(stand_in)]
        return []

    def block(self, terms: Terms) -> Callable[[], Any]:
        """A slot for a block of code, each time anew: that is how they are made."""
        gate = Gateway()
        self._gates.append(gate)
        upstream = gate.upstream("ratings", policy=self._policy(terms))
        return upstream.slot

    pool = block

    async def close(self) -> None:
        """Close the gateways."""
        for gate in self._gates:
            await gate.close(drain_for=0.0, join_for=0.0)


class Asked(Called):
    """Everything armed, the answer wanted."""

    name = "gateway: await op.ask()"
    note = "the same, for the answer with its source and age"

    def _spelled(self, operation: Operation[..., Any]) -> Function:
        if type(self) is Asked:
            ask = operation.ask

            async def value(key: str) -> Any:
                return (await ask(key)).value

            value.ask = ask  # type: ignore[attr-defined]
            return value
        return operation


class Minimum(Called):
    """Nothing armed that need not be."""

    name = "gateway: bare minimum"
    note = "no limit in the pool, no retries, no memory, a circuit that never opens, time without end"

    def _policy(self, terms: Terms) -> Policy:  # noqa: ARG002 - as little as can be, whatever they are
        return Policy(
            timeout=TimeoutPolicy(call=inf, attempt=inf),
            retry=RetryPolicy(attempts=1, budget=None),
            breaker=BreakerPolicy(min_calls=inf),
            bulkhead=BulkheadPolicy(limit=inf, queue=0),
        )

    def _operation(self, function: Callable[[str], Any], terms: Terms) -> Operation[..., Any]:
        check(terms, "plan_b", "must_remember", "single_flight", "circuit")
        return super()._operation(function, terms)

    def _tiers(self, terms: Terms) -> list[Any]:  # noqa: ARG002 - none
        return []


class UnderDeadline(Called):
    """Everything armed, under a deadline that is nearer than the limit of a try: it needs a timer of its own."""

    name = "gateway: under a nearer Deadline"
    note = "all armed, each call in `with Deadline.after(...)` that ends before the try's own limit would"

    def _spelled(self, operation: Operation[..., Any]) -> Function:
        async def call(key: str) -> Any:
            with Deadline.after(0.9):
                return await operation(key)

        return call


class ListenedTo(Called):
    """Everything armed, and somebody listens to every call."""

    name = "gateway: listened to"
    note = "all armed, and a listener that is told of every finished call"

    def _operation(self, function: Callable[[str], Any], terms: Terms) -> Operation[..., Any]:
        operation = super()._operation(function, terms)
        self._gates[-1].on(CallFinished)(lambda _: None)
        return operation
