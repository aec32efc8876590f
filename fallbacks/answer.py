"""What a caller gets, where it came from, and who may be asked for it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Hashable, Iterator, Mapping
from enum import StrEnum
from math import inf
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from msgspec import Struct

T_co = TypeVar("T_co", covariant=True)


class Source(StrEnum):
    """Where an answer came from."""

    LIVE = "live"
    COALESCED = "coalesced"
    CACHED = "cached"
    LAST_GOOD = "last_good"
    STATIC = "static"
    HANDLER = "handler"
    ALTERNATE = "alternate"


LIVE = Source.LIVE  # a module global: reading a member through its class costs a descriptor call on every answer


class Answer(Struct, Generic[T_co], frozen=True):
    """A value and where it came from. `age` is in seconds; `error` says why it stands in for a live one, if it does.

    `stored_at`: of a remembered one, when it was live, by the wall clock (seconds since 1970); None if it is live.
    """

    value: T_co
    source: Source = LIVE
    age: float = 0.0
    error: Exception | None = None
    stored_at: float | None = None

    @property
    def degraded(self) -> bool:
        """Whether this stands in for an answer that could not be had."""
        return self.error is not None

    def to_headers(self, cache: str = "gateway") -> dict[str, str]:
        """What tells an HTTP client where this came from: `Cache-Status` (RFC 9211) and, if it was remembered, `Age`.

            Cache-Status: catalog; fwd=stale; fwd-status=503; detail=last_good
            Age: 12

        `cache` is the name that you go by there, such as "catalog". ValueError for one that no header can hold.
        """
        headers = {"Cache-Status": "; ".join((named(cache), *self._status()))}
        if self.stored_at is not None:
            headers["Age"] = str(int(min(max(self.age, 0.0), LONGEST_AGE)))
        return headers

    def _status(self) -> Iterator[str]:
        """In the words of RFC 9211: `fwd` says that it was sent on, and why, so not what an open circuit kept here."""
        if self.source is Source.CACHED:
            yield "hit"
            return
        if getattr(self.error, "attempts", 1) or self.source is Source.ALTERNATE:
            yield "fwd=stale" if self.source is Source.LAST_GOOD else "fwd=miss"
            status = getattr(getattr(self.error and self.error.__cause__, "reply", None), "status", None)
            if status is not None:  # without it, the upstream would have said what this answer says
                yield f"fwd-status={status}"
        elif self.source is Source.LAST_GOOD:
            yield "hit"
        if self.source is Source.COALESCED:
            yield "collapsed"
        elif self.source is not LIVE:
            yield f"detail={self.source}"


TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")
TEXT = re.compile(r"[ -~]*")
LONGEST_AGE = 2**31
"""Seconds; RFC 9111, 1.2.2."""


def named(name: str) -> str:
    """A name in a structured header (RFC 8941): a token if it is one, else a string."""
    if TOKEN.fullmatch(name):
        return name
    if not TEXT.fullmatch(name):
        raise ValueError(f"Answer.to_headers cache: {name!r} is no line of ASCII; give a name such as 'catalog'")
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Question(Struct, frozen=True):
    """What a tier is asked: the call that got no live answer, and why.

    `now` and `deadline` are instants of the caller's clock, in seconds. `outcome` is "rejected", "failed" or "unknown";
    `not_sent` says that nothing certainly reached the upstream, so that the call may be made elsewhere. `max_age`: the
    caller wants nothing older, in seconds. `kind`: the type of the answer, as it was declared; `operation`: the full
    name of what was asked, "upstream.operation".
    """

    key: Hashable | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    error: Exception
    now: float
    deadline: float
    outcome: str = "failed"
    idempotent: bool | None = None
    not_sent: bool = False
    max_age: float = inf
    kind: Any = Any
    operation: str = ""


@runtime_checkable
class Tier(Protocol):
    """One way to answer without the upstream.

    It answers at once, or in a while (an awaitable), or declines (None, or by raising): then the next tier is asked.
    A tier may also have `remember(key, value, now)`, which is told every live value; `timeout`, the seconds it wants
    instead of the policy's `fallback_timeout`; and `after_unknown = True`, to be asked even when the call may have
    taken effect.
    """

    def answer(self, question: Question, /) -> Answer[Any] | Awaitable[Answer[Any] | None] | None:
        """The answer, a promise of one, or None."""
        ...
