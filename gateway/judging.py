"""How a try that gave no value is judged, and the error that is made of it.

The verdict follows what the caller may do next: who raised what, whether anything was sent, and whose time was over.
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from reprlib import repr as brief
from typing import Any, TypeVar

from fallbacks.chain import told
from gateway.call import Call
from gateway.lane import Timer
from gateway.outcome import (
    ConfigError,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    GatewayError,
    NotSent,
    Outcome,
    Refused,
    Unknown,
    UnknownTimeout,
    retry_after_of,
    waited_for_of,
)
from gateway.terms import Terms

T = TypeVar("T")
CANCELLED = Outcome.CANCELLED  # module globals: reading a member through its class costs a descriptor call
REFUSED, FAILED, UNKNOWN = Outcome.REFUSED, Outcome.FAILED, Outcome.UNKNOWN
JUDGEMENTS = frozenset({REFUSED, FAILED, UNKNOWN})
FORGETFUL_GROUPS = sys.version_info < (3, 13)
"""A TaskGroup that fails cancels the task it stands in, and before 3.13 did not always take that back (gh-117407): an
exception group is then told from the leaving of the caller by what it is."""


class Judged(Exception):
    """A value that `classify=` judged to be no success."""

    def __init__(self, value: object, outcome: Outcome) -> None:
        super().__init__(f"the value {brief(value)} was judged {outcome}")
        self.value, self.outcome = value, outcome

    def refusal(self) -> Refused:
        """What its caller gets if it is a refusal."""
        refused = Refused(self.value)
        refused.__cause__ = None  # and this is not shown as its context either
        return refused


class Judge:
    """How one operation sorts what its function raises or, with `classify=`, gives."""

    __slots__ = ("_classify", "_refused")

    def __init__(self, said: Terms) -> None:
        self._refused = (Refused, ConfigError, *said.refused)
        self._classify = said.classify

    def over(self, send: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """The sender whose values are judged, too; itself where nobody judges them."""
        return send if self._classify is None else classified(send, self._classify)

    def verdict(
        self,
        call: Call,
        error: BaseException,
        idempotent: bool | None,  # noqa: FBT001
        timed_out: bool,  # noqa: FBT001
        sent: bool,  # noqa: FBT001 - all three, by place: see above
    ) -> tuple[Outcome, bool]:
        """The outcome of a try that raised, and whether it certainly had no effect.

        `timed_out`: its limit on time ended it. `sent`: something that must not be repeated went out.
        """
        usual = UNKNOWN if idempotent is False or (sent and idempotent is None) else FAILED
        not_sent = not sent and (isinstance(error, NotSent) or getattr(error, "not_sent", False))
        if timed_out:
            return (FAILED, True) if not_sent else (usual, False)
        if call.task.cancelling() > call.cancelling:  # the caller left, whatever the function made of that
            if not (FORGETFUL_GROUPS and isinstance(error, BaseExceptionGroup)):
                return CANCELLED, False
            call.cancelling = call.task.cancelling()
        if not isinstance(error, Exception):
            return (usual if isinstance(error, CancelledError) else CANCELLED), False
        if self._classify is not None:
            outcome = error.outcome if isinstance(error, Judged) else self._classified(error, self._classify)
            if outcome in JUDGEMENTS:
                return outcome, outcome is FAILED
        if isinstance(error, self._refused):
            return REFUSED, False
        return (FAILED, True) if not_sent else (usual, False)

    @staticmethod
    def _classified(error: Exception, classify: Callable[[Any], Outcome | None]) -> Outcome | None:
        """What the user's `classify=` makes of an error; None where it does not say, or raises."""
        try:
            return judgement(classify(error))
        except Exception:  # noqa: BLE001 - a classifier that raises has not classified: the failure stays one
            return None


def judgement(said: Outcome | str | None) -> Outcome | None:
    """What a classifier said, as an Outcome; ValueError for what is none."""
    return None if said is None else Outcome(said)


def classified(
    send: Callable[..., Awaitable[T]], classify: Callable[[Any], Outcome | None]
) -> Callable[..., Awaitable[T]]:
    """A sender whose values are judged, too."""

    async def send_and_judge(*args: Any, **kwargs: Any) -> T:
        value = await send(*args, **kwargs)
        outcome = judgement(classify(value))
        if outcome in JUDGEMENTS:
            raise Judged(value, outcome)
        return value

    return send_and_judge


def failure_of(  # noqa: PLR0917 - each failure passes here, as in `verdict`
    call: Call, error: BaseException, upstream: str, operation: str, took: float, limit: Timer | None
) -> GatewayError:
    """Our own fresh error: one that users store and raise again would grow with every call. `limit`: it fired."""
    kinds: tuple[type[GatewayError], type[GatewayError]]
    kinds = (Unknown, UnknownTimeout) if call.outcome is UNKNOWN else (Failed, FailedTimeout)
    kind = kinds[limit is not None or isinstance(error, TimeoutError)]
    if limit is not None:
        failure = kind(f"{upstream}.{operation}: no answer within {took:.3f} s")
        failure.waited_for = "deadline" if limit.nearer else "attempt"
    else:
        failure = kind(f"{upstream}.{operation}: {told(error)}")
        if (waited_for := waited_for_of(error)) is not None:
            failure.waited_for = waited_for
    failure.upstream, failure.operation, failure.attempts = upstream, operation, call.attempts
    if (retry_after := retry_after_of(error)) is not None:
        failure.retry_after = retry_after
    failure.__cause__ = None if isinstance(error, Judged) else error
    return failure


def too_late() -> DeadlineExceeded:
    """The error for a call whose time is over before it is sent."""
    late = DeadlineExceeded("the deadline passed before anything was sent")
    late.waited_for = "deadline"
    return late


def of_the_deadline(error: BaseException) -> bool:
    """Whether a call that the function made had no time left."""
    return isinstance(error, DeadlineExceeded) or (isinstance(error, GatewayError) and error.waited_for == "deadline")


def ended_from_above(call: Call, error: BaseException) -> bool:
    """Whether the call that this one is made in ran out of time: to the upstream the same as its own deadline."""
    above = call.outer
    return isinstance(above, Timer) and above.first and isinstance(error, (CancelledError, Exception))
