"""One request on its way."""

from __future__ import annotations

from asyncio import Task
from collections.abc import Hashable
from math import inf
from typing import Any, Protocol, cast

from msgspec import Struct

from fallbacks.answer import Source
from gateway.context import Ambient, Tries
from gateway.outcome import CircuitOpen, GatewayError, Outcome


class Nobody:
    """In the place of a call's task when the call is over: its errors lead to it, and a task leads to its errors."""

    @staticmethod
    def cancelling() -> int:
        """Nobody was cancelled."""
        return 0


NOBODY = cast("Task[Any]", Nobody())


class Circuit(Protocol):
    """A circuit as a call sees it: a `CircuitBreaker`, or one that is told who asks."""

    @property
    def unguarded(self) -> Any:
        """The leave of everybody, where nobody need ask for it; else None."""
        ...

    @property
    def slow_beyond(self) -> float:
        """A try that takes longer, in seconds, is slow."""
        ...

    def refuses(self, now: float) -> bool:
        """Whether `enter` would raise; this spends nothing."""
        ...

    def refusal(self, refused_at: float) -> CircuitOpen:
        """The error for a caller who was refused then; counts it."""
        ...

    def enter(self, now: float, caller: Hashable = None) -> Any:
        """Leave to try, or CircuitOpen. One that knows its caller asks for no other."""
        ...

    def leave(self, state: Any, now: float, failed: bool | None, slow: bool, caller: Hashable = None) -> None:  # noqa: FBT001 - the hot path
        """How it went."""
        ...

    def leave_refused(self, state: Any, now: float) -> None:
        """It was refused."""
        ...

    def hold(self, until: float) -> None:
        """The upstream asked to be left alone."""
        ...

    def held_for(self, now: float) -> float:
        """Seconds for which it still wants to be."""
        ...


class Wants(Struct, frozen=True, kw_only=True):
    """What one caller wants of the answer: none that is older than `max_age`, in seconds; none that is not live."""

    max_age: float = inf
    only_live: bool = False


class Led(Protocol):
    """A flight as the call sees it that leads it: see `gateway.coalesce.Flight`."""

    def land(self, value: Any) -> None:
        """Its answer is here."""
        ...

    def part(self) -> None:
        """Its answer is for nobody but its leader."""
        ...

    def fail(self, landed: Any) -> None:
        """It came to nothing, for all."""
        ...

    def hand_over(self, now: float, least: float) -> None:
        """Its leader leaves."""
        ...


class Call(Struct, eq=False):
    """What is known of one call: what was asked, when, until when, and how it has gone so far.

    Instants are of the upstream's clock. `at`: when its current step began. `cutoff`: when tries must be over, so that
    the fallbacks get the time that is reserved for them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: Hashable | None
    task: Task[Any]
    cancelling: int  # cancels of the task that were asked for before the call
    asked_at: float
    at: float
    cutoff: float
    deadline: float
    outer: Ambient | None
    breaker: Circuit
    tries: Tries | None  # the retries left to it and to all that is called in it; None: as many as its policy says
    attempts: int = 0  # tries that were sent and gave no value
    waited: float = 0.0  # seconds spent in the queue
    source: Source | None = None  # of an answer that is not live
    age: float = 0.0  # of that answer, in seconds
    outcome: Outcome = Outcome.FAILED  # how it ends, if it ends in an error
    failure: GatewayError | None = None  # of the last try that was sent
    not_sent: bool = False  # that failure had certainly no effect upstream
    error: BaseException | None = None  # what the caller was told, or why the answer is not live
    wants: Wants | None = None  # where it says more than its operation
    flight: Led | None = None  # that it leads: others wait for how it ends
    queues: bool = True  # whether it may wait for a place in the pool
