"""The last look round after a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from gateway.breaker import CircuitBreaker
from gateway.registry import Gateway
from gateway.states import HalfOpen
from gateway.upstream import Upstream


def assert_nothing_left(gate: Gateway) -> None:
    """Raise AssertionError if a call left anything behind, or if the numbers do not add up.

    Looks for places of the pools (threads whose caller has left count), waiters, time limits, calls in flight, probes
    of half-open circuits, circuits that are held, and tasks of the gateway's own.
    """
    left = [*(f"{upstream.name}: {what}" for upstream in gate for what in left_in(upstream)), *tasks_left()]
    if left:
        raise AssertionError("left behind: " + "; ".join(left))


def left_in(upstream: Upstream) -> Iterator[str]:
    """What is left in one upstream."""
    pool = upstream.bulkhead.snapshot()
    if pool.in_use:
        yield f"{pool.in_use} places in use ({pool.abandoned} by abandoned threads)"
    if pool.waiting:
        yield f"{pool.waiting} waiters"
    if upstream.timers:
        yield f"{upstream.timers} time limits"
    yield from left_of(upstream.breaker)
    for key, breaker in upstream.circuits:
        yield from (f"of the circuit {key!r}, {what}" for what in left_of(breaker))
    for operation in upstream.snapshot().operations.values():
        if operation.counts.in_flight:
            yield f"{operation.counts.in_flight} calls of {operation.name} in flight"
        if not operation.counts.adds_up:
            yield f"the numbers of {operation.name} do not add up: {operation.counts}"


def left_of(breaker: CircuitBreaker) -> Iterator[str]:
    """What is left in one circuit."""
    state = breaker.state
    if isinstance(state, HalfOpen) and state.probes_out:
        yield f"{state.probes_out} probes that never reported"
    if breaker.in_use:
        yield f"{breaker.in_use} calls that hold it"


def tasks_left() -> Iterator[str]:
    """Tasks of the gateway's own that still run."""
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:  # no loop runs
        return
    for task in tasks:
        if task.get_name().startswith("gateway:"):
            yield f"the task {task.get_name()!r}"
