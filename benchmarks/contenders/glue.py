"""The glue of today: tenacity, a circuit breaker, a semaphore, `asyncio.timeout`, aiocache, put together with care."""

from __future__ import annotations

import asyncio
from asyncio import Semaphore
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import aiobreaker
import purgatory
from aiocache import SimpleMemoryCache, cached
from purgatory.domain.model import OpenedState
from tenacity import retry, retry_if_not_exception_type, stop_after_attempt, wait_fixed

from benchmarks.terms import DEFAULT, Function, NoSuchFilm, Terms, check, limited, stand_in

NUMBERS = count()


class Glue:
    """What both have in common: everything but the circuit."""

    open_error: type[Exception]

    def guard(self, function: Function, terms: Terms) -> Function:
        """Put together as a careful user would."""
        check(terms, "window_for")
        tried = limited(self._tried(function, terms), terms)
        if terms.single_flight:
            return cached(ttl=300, key_builder=lambda _, key: key)(tried)
        cache = SimpleMemoryCache() if terms.plan_b == "last good" else None

        async def call(key: str) -> Any:
            try:
                value = await tried(key)
            except Exception:
                kept = await plan_b(key)
                if kept is None:
                    raise
                return kept
            if cache is not None:
                await cache.set(key, value, ttl=300)
            return value

        async def plan_b(key: str) -> Any:
            match terms.plan_b:
                case "default":
                    return DEFAULT
                case "async function":
                    return await stand_in()
            return None if cache is None else await cache.get(key)

        return call

    def _tried(self, function: Function, terms: Terms) -> Function:
        """Tries, each through the circuit, with a place and a limit on time."""
        semaphore = Semaphore(terms.limit)
        through_circuit = self._circuit(terms)

        async def one_try(key: str) -> Any:
            async with semaphore, asyncio.timeout(terms.timeout):
                return await function(key)

        async def tried(key: str) -> Any:
            return await through_circuit(one_try, key)

        if terms.attempts == 1:
            return tried
        return retry(
            stop=stop_after_attempt(terms.attempts),
            wait=wait_fixed(terms.pause),
            retry=retry_if_not_exception_type((self.open_error, NoSuchFilm)),
            reraise=True,
        )(tried)

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The same round `asyncio.to_thread`."""

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(function, key)

        return self.guard(in_thread, terms)

    def _circuit(self, terms: Terms) -> Callable[..., Any]:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is held."""


class Purgatory(Glue):
    """With purgatory."""

    name = "glue with purgatory"
    note = "tenacity, purgatory, asyncio.Semaphore, asyncio.timeout, aiocache"
    open_error = OpenedState

    def _circuit(self, terms: Terms) -> Callable[..., Any]:
        factory = purgatory.AsyncCircuitBreakerFactory(
            default_threshold=terms.failures,
            default_ttl=terms.open_for,
            exclude=[] if terms.refused is None else [terms.refused],
        )
        if terms.listener is not None:
            factory.add_listener(lambda *event: terms.listener(event))
        name = f"ratings-{next(NUMBERS)}"

        async def through(one_try: Function, key: str) -> Any:
            async with await factory.get_breaker(name):
                return await one_try(key)

        return through


class Told(aiobreaker.CircuitBreakerListener):
    """Hands on what happens to the circuit."""

    def __init__(self, tell: Callable[..., object]) -> None:
        self._tell = tell

    def state_change(self, breaker: object, old: object, new: object) -> None:
        """It changed."""
        self._tell((breaker, old, new))


class Aiobreaker(Glue):
    """With aiobreaker."""

    name = "glue with aiobreaker"
    note = "tenacity, aiobreaker, asyncio.Semaphore, asyncio.timeout, aiocache"
    open_error = aiobreaker.CircuitBreakerError

    def _circuit(self, terms: Terms) -> Callable[..., Any]:
        breaker = aiobreaker.CircuitBreaker(
            fail_max=terms.failures,
            timeout_duration=timedelta(seconds=terms.open_for),
            exclude=[] if terms.refused is None else [terms.refused],
            listeners=[] if terms.listener is None else [Told(terms.listener)],
        )
        return breaker.call_async
