"""interlock-cb: a pipeline of strategies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

from interlock import CircuitBreaker, CircuitOpenError, Config, Pipeline
from interlock.window import WindowType
from tenacity import retry_if_not_exception_type, wait_fixed

from benchmarks.terms import DEFAULT, Function, NoSuchFilm, Terms, check, limited, stand_in, with_memory

NUMBERS = count()


class Listener:
    """Hands on what happens to the circuit."""

    def __init__(self, tell: Callable[..., object]) -> None:
        self._tell = tell

    def on_state_change(self, *, name: str, old: object, new: object) -> None:
        """It changed."""
        self._tell((name, old, new))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


class Refusals:
    """A classifier: what is a healthy no."""

    def is_failure(self, *, exception: BaseException | None = None, result: object = None) -> bool:  # noqa: ARG002
        """Anything else is a failure."""
        return exception is not None and not isinstance(exception, NoSuchFilm)


class Interlock:
    """Strategies, in the order its documentation recommends."""

    name = "interlock-cb"
    note = "Pipeline: fallback, retry (tenacity), circuit_breaker, bulkhead, timeout; a dict round it for last good"

    def guard(self, function: Function, terms: Terms) -> Function:
        """A pipeline round it."""
        check(terms, "single_flight")
        call = limited(self._pipeline(terms)(function), terms)
        return with_memory(call, terms) if terms.plan_b == "last good" else call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The plain pipeline, in a thread."""
        call = self._pipeline(terms)(function)

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(call, key)

        return in_thread

    @staticmethod
    def _pipeline(terms: Terms) -> Any:
        window = {} if terms.window_for is None else {"window_type": WindowType.TIME_BASED}
        size = max(100, int(min(terms.opens_after, 1_000))) if terms.window_for is None else int(terms.window_for)
        breaker = CircuitBreaker(
            name=f"ratings-{next(NUMBERS)}",
            config=Config(
                minimum_number_of_calls=int(min(terms.opens_after, 1_000 if window else size)),
                failure_rate_threshold=0.5 if terms.opens_after < 1_000 else 1.0,
                wait_duration_in_open=terms.open_for,
                permitted_calls_in_half_open=1,
                window_size=size,
                **window,
            ),
            classifier=None if terms.refused is None else Refusals(),
            listener=None if terms.listener is None else Listener(terms.listener),
        )
        builder = Pipeline.builder()
        match terms.plan_b:
            case "default":
                builder.fallback(lambda _: DEFAULT)
            case "async function":
                builder.fallback(stand_in)
        if terms.attempts > 1:
            unrepeated = retry_if_not_exception_type((CircuitOpenError, NoSuchFilm))
            builder.retry(attempts=terms.attempts, wait=wait_fixed(terms.pause), retry=unrepeated)
        return builder.circuit_breaker(breaker).bulkhead(terms.limit, max_wait=10.0).timeout(terms.timeout).build()

    async def close(self) -> None:
        """Nothing is held."""
