"""What is asked of every contender, in words that all of them share; each says it in its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, Protocol

Function = Callable[[str], Awaitable[Any]]
"""What an upstream is asked: a function of a key."""
VALUE = "4 of 5"
DEFAULT = "no stars yet"


class CannotDo(Exception):
    """A contender has no such thing. The reason stands in the place of its figure."""


class Missing(CannotDo):
    """It is not installed here."""


class Trouble(Exception):
    """What upstreams of ours raise when they fail."""


class NoSuchFilm(Exception):
    """A healthy "no": the upstream works, and there is no such thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The guard that is wanted round an upstream. Times are in seconds."""

    limit: int = 64
    """At once."""
    queue: int = 10_000
    """May wait for a place."""
    timeout: float = 1.0
    """One try."""
    total: float | None = None
    """The whole call, with its pauses."""
    attempts: int = 2
    pause: float = 0.0
    """Between two tries."""
    opens_after: float = 10
    """Failures in a row that open the circuit; contenders with rates open at half of so many."""
    must_open: bool = False
    """The circuit is what the call is about."""
    open_for: float = 60.0
    window_for: float | None = None
    """A failure counts no longer than this; None: as the contender has it."""
    plan_b: Literal["last good", "default", "async function"] | None = "last good"
    must_remember: bool = False
    """The last good answer is what the call is about; else who has no memory goes without."""
    remembers: int = 10_000
    """The most keys that are remembered."""
    single_flight: bool = False
    """Whoever asks what is being asked already waits for that answer."""
    refused: type[Exception] | None = None
    """An error that is a healthy "no"."""
    listener: Callable[..., object] | None = None
    """Is told when the circuit changes."""

    @property
    def failures(self) -> int:
        """`opens_after` for those who want a whole number."""
        return 1_000_000_000 if self.opens_after == inf else int(self.opens_after)


class Contender(Protocol):
    """Something that stands between a caller and an upstream."""

    name: str
    note: str
    """What it is made of, or what it lacks; for the table's legend."""

    def guard(self, function: Function, terms: Terms) -> Function:
        """The function, guarded. Raises CannotDo."""
        ...

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """A function that blocks, guarded, so that it can be awaited. Raises CannotDo."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


async def stand_in(error: Exception | None = None, *_: Any) -> str:  # noqa: ARG001 - as fallbacks are called
    """A plan B that must be awaited."""
    return DEFAULT


def with_memory(guarded: Function, terms: Terms) -> Function:
    """The last good answers, as users add them to a library without a memory: a dict round the whole."""
    kept: dict[str, Any] = {}

    async def call(key: str) -> Any:
        try:
            value = await guarded(key)
        except Exception:
            if key in kept:
                return kept[key]
            raise
        if key not in kept and len(kept) >= terms.remembers:
            del kept[next(iter(kept))]
        kept[key] = value
        return value

    return call


def limited(guarded: Function, terms: Terms) -> Function:
    """The limit on the whole call, as users add it to a library without one."""
    if terms.total is None:
        return guarded

    async def call(key: str) -> Any:
        async with asyncio.timeout(terms.total):
            return await guarded(key)

    return call


LACKING = {
    "attempts": ("retries", lambda terms: terms.attempts > 1),
    "plan_b": ("plan B", lambda terms: terms.plan_b in {"default", "async function"}),
    "must_remember": ("memory", lambda terms: terms.must_remember),
    "circuit": ("circuit", lambda terms: terms.must_open),
    "single_flight": ("single flight", lambda terms: terms.single_flight),
    "refused": ("errors that do not count", lambda terms: terms.refused is not None),
    "listener": ("listeners", lambda terms: terms.listener is not None),
    "window_for": ("window of time", lambda terms: terms.window_for is not None),
}
"""What a contender may lack, and which terms ask for it."""


def check(terms: Terms, *lacks: str) -> None:
    """Raise CannotDo where the terms ask for one of these."""
    for name in lacks:
        word, asked = LACKING[name]
        if asked(terms):
            raise CannotDo(f"has no {word}")
