"""The ambient facts of a call, in one contextvar, and the clock they are told by.

A `Deadline` is the instant after which no answer is wanted. It only ever moves nearer, and it only tells: it cancels
nothing by itself, but every upstream called under it ends in time. Sources: gRPC deadline propagation; trio's cancel
scopes; Go's `context.WithTimeout`.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, get_running_loop
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from functools import lru_cache
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
    return monotonic if is_real(type(loop)) else loop.time  # type: ignore[arg-type]  # mypy takes classes for unhashable


@lru_cache(maxsize=16)
def is_real(loop: type) -> bool:
    """Whether loops of this kind live in real time. Found out once: each `Deadline` asks."""
    owner = next(kind for kind in loop.__mro__ if "time" in vars(kind))
    return owner is BaseEventLoop or owner.__module__.partition(".")[0] in {"uvloop", "asyncio"}


def clock_here() -> Clock:
    """The clock of the running loop; outside of one, that of the call this context belongs to."""
    try:
        return clock_of(get_running_loop())
    except RuntimeError:
        ambient = AMBIENT.get()
        return monotonic if ambient is None else ambient.world.clock


class World(Protocol):
    """Where instants are told: a clock, and the gateway it is the clock of (None outside of one).

    `attempts`: how many tries the call under a limit of this kind has in all; 1 where nothing is repeated.
    """

    clock: Clock
    gateway: object

    @property
    def attempts(self) -> float:
        """How many tries a call has in all."""
        ...


class Tries(Struct, eq=False):
    """The retries that are left to a call and to all that is called in it: nested retries add up, not multiply.

    The outermost call that repeats anything opens it, and whoever repeats something below spends from it
    (hynek/stamina#19; Google SRE, "Addressing Cascading Failures": three layers of three tries are 27 calls).
    """

    left: float


class Ambient(Struct, eq=False):
    """What a call inherits from the one it is made in: the instant it must be over, and the retries that are left.

    The time limit of a running try is one of these (`gateway.lane.Timer`).
    """

    at: float
    world: World
    tries: Tries | None  # of the outermost call; opened when somebody below its first try asks


AMBIENT: ContextVar[Ambient | None] = ContextVar("gateway", default=None)
ambient_here, put_ambient, take_back = AMBIENT.get, AMBIENT.set, AMBIENT.reset
"""Its methods, bound once: Python makes them anew for every look at a global's, which every call of ours would pay."""


def tries_under(ambient: Ambient | None) -> Tries | None:
    """The retries that are left to what is called here; None where nobody outside repeats anything."""
    if ambient is None:
        return None
    if ambient.tries is None and ambient.world.attempts > 1:
        ambient.tries = Tries(ambient.world.attempts - 1)
    return ambient.tries


def translate(clock: Clock) -> None:
    """Tell the ambient deadline by this clock, where another one told it: the same seconds from now."""
    ambient = AMBIENT.get()
    if ambient is not None and ambient.world.clock != clock and ambient.at != inf:
        left = ambient.at - ambient.world.clock()
        world = Deadline(clock() + left, clock, ambient.world.gateway)
        AMBIENT.set(Ambient(world.at, world, tries_under(ambient)))


def try_here() -> Ambient | None:
    """What the innermost try told this code, behind the deadlines that were set in it since."""
    ambient = AMBIENT.get()
    while ambient is not None and isinstance(ambient.world, Deadline):
        ambient = ambient.world.outer
    return ambient


def leave(token: Token[Ambient | None]) -> None:
    """Put back what was ambient before."""
    try:  # noqa: SIM105 - each failure passes here, and `suppress` costs more than all else of it
        take_back(token)
    except ValueError:  # a coroutine that is thrown away ends in a context that is not its own
        pass


class Deadline:
    """The instant after which no answer is wanted; `with` makes it ambient.

        with Deadline.after(1.0):
            answer = await user_ratings.ask("ada")  # ends within the second, with the best answer there is

    `with` never moves an outer deadline further away.
    """

    __slots__ = ("_token", "at", "clock", "gateway", "tries")

    HEADER: ClassVar[str] = "X-Deadline-Ms"
    ATTEMPTS: ClassVar[str] = "X-Attempts-Left"
    attempts: ClassVar[float] = 1  # it repeats nothing

    def __init__(
        self, at: float, clock: Clock | None = None, gateway: object = None, *, tries: Tries | None = None
    ) -> None:
        self.at = at
        self.gateway = gateway
        self.clock = clock or clock_here()
        self.tries = tries  # of the call it is told in
        self._token: Token[Ambient | None] | None = None

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline this many seconds from now. Raises ValueError for what is no number of them: nan."""
        if seconds != seconds:  # noqa: PLR0124 - the quickest way to ask; nothing is later than that, or sooner
            raise ValueError("Deadline.after: nan is no number of seconds; give one, or inf for no end")
        clock = clock_here()
        return cls(clock() + seconds, clock)

    @classmethod
    def current(cls) -> Deadline | None:
        """The ambient deadline, or None."""
        here = cls._here()
        return None if here is None or here.at == inf else here

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Deadline:
        """The deadline that a caller sent along; absent or not a number of milliseconds: none.

        X-Attempts-Left, where it stands beside it, says how many tries all that is done for that caller may take.
        """
        left, attempts = number_in(headers, cls.HEADER), number_in(headers, cls.ATTEMPTS)
        deadline = cls.after(inf if left is None else left / 1000)
        if attempts is not None:
            deadline.tries = Tries(max(attempts - 1, 0))
        return deadline

    @classmethod
    def outgoing(cls) -> dict[str, str]:
        """The headers for a request that is sent from here, as `to_headers`; empty where there is nothing to tell."""
        here = cls._here()
        return {} if here is None else here.to_headers()

    @classmethod
    def _here(cls) -> Deadline | None:
        """What is ambient, endless or not."""
        ambient = AMBIENT.get()
        return None if ambient is None else cls(ambient.at, ambient.world.clock, tries=tries_under(ambient))

    @property
    def outer(self) -> Ambient | None:
        """What was ambient where it was entered."""
        before = None if self._token is None else self._token.old_value
        return before if isinstance(before, Ambient) else None

    def remaining(self) -> float:
        """Seconds left; 0.0 when it has passed."""
        return max(0.0, self.at - self.clock())

    def to_headers(self) -> dict[str, str]:
        """The headers that tell another service: whole milliseconds left, rounded down; empty without a limit.

        Inside a try of something that is repeated, X-Attempts-Left says how many tries are left after this one.
        """
        left = self.remaining()
        headers = {self.HEADER: str(whole_ms(left))} if isfinite(left * 1000) else {}
        if self.tries is not None and isfinite(self.tries.left):
            headers[self.ATTEMPTS] = str(int(self.tries.left))
        return headers

    def __enter__(self) -> Self:
        if self._token is not None:
            msg = "this Deadline is already entered; make another with Deadline.after"
            raise RuntimeError(msg)
        inner = outer = AMBIENT.get()
        tries = tries_under(outer) or self.tries  # the outermost's
        if outer is None or self.at < outer.at:
            if self.gateway is None and outer is not None:
                self.gateway = outer.world.gateway
            inner = Ambient(self.at, self, tries)
        elif tries is not outer.tries:
            inner = Ambient(outer.at, outer.world, tries)
        self._token = AMBIENT.set(inner)
        return self

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            leave(token)

    def __repr__(self) -> str:
        return f"<Deadline in {self.at - self.clock():.3f} s>"


def whole_ms(left: float) -> int:
    """Whole milliseconds of what is left, rounded down; 0 when it is over."""
    return int((left + HALF_MICROSECOND) * 1000) if left > 0 else 0


def number_in(headers: Mapping[str, str], name: str) -> int | None:
    """The whole number that a header is; None where it is absent or something else."""
    small, text = name.lower(), ""
    for header, value in headers.items():
        if header.lower() == small:
            text = value.strip()
            break
    digits = text.isascii() and text.isdigit() and len(text) <= 12  # noqa: PLR2004 - 31 years, in milliseconds
    return int(text) if digits else None
