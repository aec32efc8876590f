"""The ambient facts of a call, in one contextvar, and the clock they are told by.

A `Deadline` is the instant after which no answer is wanted. It only ever moves nearer, and it only tells: it cancels
nothing by itself, but every upstream called under it ends in time. Sources: gRPC deadline propagation; trio's cancel
scopes; Go's `context.WithTimeout`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from math import inf, isfinite
from time import monotonic
from typing import ClassVar, Protocol, Self

from msgspec import Struct

Clock = Callable[[], float]
HALF_MICROSECOND = 5e-7
"""Instants are told apart to the nearest microsecond: floats of epoch size cannot do better."""


def clock_of(loop: AbstractEventLoop) -> Clock:
    """The monotonic clock that agrees with a loop: its own if it is virtual, else `time.monotonic`.

    uvloop's `time()` moves in whole milliseconds, too coarse to measure by; it counts the same seconds as monotonic.
    """
    owner = next(kind for kind in type(loop).__mro__ if "time" in vars(kind))
    real = owner is BaseEventLoop or owner.__module__.partition(".")[0] in {"uvloop", "asyncio"}
    return monotonic if real else loop.time


def clock_here() -> Clock:
    """The clock of the running loop; outside of one, that of the call this context belongs to."""
    try:
        return clock_of(get_running_loop())
    except RuntimeError:
        ambient = AMBIENT.get()
        return monotonic if ambient is None else ambient.world.clock


class World(Protocol):
    """Where instants are told: a clock, and the gateway it is the clock of (None outside of one)."""

    clock: Clock
    gateway: object


class Ambient(Struct, eq=False):
    """What a call inherits from the one it is made in: the instant it must be over. Never changed once it is ambient.

    The time limit of a running try is one of these (`gateway.lane.Timer`).
    """

    at: float
    world: World


AMBIENT: ContextVar[Ambient | None] = ContextVar("gateway", default=None)


def translate(clock: Clock) -> None:
    """Tell the ambient deadline by this clock, where another one told it: the same seconds from now."""
    ambient = AMBIENT.get()
    if ambient is not None and ambient.world.clock != clock and ambient.at != inf:
        left = ambient.at - ambient.world.clock()
        AMBIENT.set(Ambient(clock() + left, Deadline(clock() + left, clock, ambient.world.gateway)))


def leave(token: Token[Ambient | None]) -> None:
    """Put back what was ambient before."""
    with suppress(ValueError):  # a coroutine that is thrown away ends in a context that is not its own
        AMBIENT.reset(token)


class Deadline:
    """The instant after which no answer is wanted; `with` makes it ambient.

        with Deadline.after(1.0):
            answer = await user_ratings.ask("ada")  # ends within the second, with the best answer there is

    `with` never moves an outer deadline further away.
    """

    __slots__ = ("_token", "at", "clock", "gateway")

    HEADER: ClassVar[str] = "X-Deadline-Ms"

    def __init__(self, at: float, clock: Clock | None = None, gateway: object = None) -> None:
        self.at = at
        self.gateway = gateway
        self.clock = clock or clock_here()
        self._token: Token[Ambient | None] | None = None

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline this many seconds from now."""
        clock = clock_here()
        return cls(clock() + seconds, clock)

    @classmethod
    def current(cls) -> Deadline | None:
        """The ambient deadline, or None."""
        ambient = AMBIENT.get()
        return None if ambient is None or ambient.at == inf else cls(ambient.at, ambient.world.clock)

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Deadline:
        """The deadline that a caller sent along; absent or not a number of milliseconds: none."""
        wanted = cls.HEADER.lower()
        text = next((value for name, value in headers.items() if name.lower() == wanted), "")
        plain = text.strip()
        digits = plain.isascii() and plain.isdigit() and len(plain) <= 12  # noqa: PLR2004 - 31 years
        return cls.after(int(plain) / 1000 if digits else inf)

    def remaining(self) -> float:
        """Seconds left; 0.0 when it has passed."""
        return max(0.0, self.at - self.clock())

    def to_headers(self) -> dict[str, str]:
        """The header that tells another service: whole milliseconds left, rounded down. Empty without a limit."""
        left = self.remaining()
        return {self.HEADER: str(int((left + HALF_MICROSECOND) * 1000))} if isfinite(left) else {}

    def __enter__(self) -> Self:
        if self._token is not None:
            msg = "this Deadline is already entered; make another with Deadline.after"
            raise RuntimeError(msg)
        inner = outer = AMBIENT.get()
        if outer is None or self.at < outer.at:
            if self.gateway is None and outer is not None:
                self.gateway = outer.world.gateway
            inner = Ambient(self.at, self)
        self._token = AMBIENT.set(inner)
        return self

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            leave(token)

    def __repr__(self) -> str:
        return f"<Deadline in {self.at - self.clock():.3f} s>"
