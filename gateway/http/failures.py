"""Our own error for what ended a request, by the phase it had reached."""

from __future__ import annotations

from asyncio import CancelledError

from aiohttp import ClientResponseError

from gateway.context import AMBIENT
from gateway.http.errors import (
    AnswerTimeout,
    BadReply,
    ConnectionLost,
    ConnectTimeout,
    ReadTimeout,
    Unreachable,
    wrong_with,
)
from gateway.lane import Timer
from gateway.outcome import WaitedFor


def failure_of(error: BaseException, what: str, *, silent_for: float, took: float) -> BaseException:
    """Our own error for what ended a request: it says what was waited for, how long, and where."""
    if isinstance(error, CancelledError):
        return cut(error, what, took)
    if isinstance(error, Unreachable):
        return type(error)(f"{what}: {error}")
    if isinstance(error, BadReply):
        return BadReply(f"{what}: {error}")
    if isinstance(error, TimeoutError):
        return ReadTimeout(f"{what}: silence for {silent_for:.3f} s")
    if isinstance(error, ClientResponseError):
        return BadReply(f"{what}: not HTTP as agreed: {wrong_with(error.message)}")
    return ConnectionLost(f"{what}: the connection broke after {took:.3f} s")


def cut(error: CancelledError, what: str, took: float) -> BaseException:
    """The error for a request that was cancelled: our own if its limit on time did it, else the cancel."""
    limit = limit_that_ended()
    if limit is None:
        return error
    waited_for: WaitedFor = "deadline" if limit.nearer else "attempt"
    if getattr(error, "not_sent", False):
        return ConnectTimeout(f"{what}: no connection within the {took:.3f} s it had", waited_for=waited_for)
    return AnswerTimeout(f"{what}: no whole answer within {took:.3f} s", waited_for=waited_for)


def limit_that_ended() -> Timer | None:
    """The limit of the running try, if nothing else is why this request was cancelled."""
    limit = AMBIENT.get()
    if not isinstance(limit, Timer) or limit.fired_at is None:
        return None
    return limit if limit.task.cancelling() - 1 <= limit.cancelling else None
