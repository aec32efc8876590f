"""How a call can end, and the errors that say what the caller may do next.

Exception
├── GatewayError               raised by the gateway about a call
│   ├── Rejected               never sent: safe to ask again later, or elsewhere
│   │   ├── CircuitOpen            the upstream is sick (retry_after says when it is tried again)
│   │   ├── BulkheadFull           every place is taken (reason: "queue_full" or "max_wait")
│   │   ├── DeadlineExceeded       too late before anything was sent (also a TimeoutError)
│   │   └── GatewayClosed          the gateway was closed
│   ├── Failed                 certainly without effect, or safe to repeat
│   │   └── FailedTimeout          (also a TimeoutError)
│   └── Unknown                may have taken effect: look before you repeat it
│       └── UnknownTimeout         (also a TimeoutError)
├── Refused                    raised by users: a healthy "no"; never retried, never counted against anybody
├── NotSent                    raised by users: it certainly never reached the upstream
├── ConfigError (ValueError)   a setting that cannot work: field, problem, remedy
│   ├── UnknownName (LookupError)
│   └── ConfigErrors               several of them at once
├── KeyNeeded (TypeError)      arguments that name no call, where a name is needed
└── WrongLoop (RuntimeError)   a gateway belongs to one running event loop at a time
"""

from __future__ import annotations

from difflib import get_close_matches
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable

WaitedFor = Literal["queue", "connect", "read", "attempt", "deadline"]
WAITS: tuple[WaitedFor, ...] = get_args(WaitedFor)
Reason = Literal["throttled", "unavailable", "unreachable"]
"""Why an upstream did nothing: too many requests (429), it is out of order (503), no connection."""
REASONS: tuple[Reason, ...] = get_args(Reason)


class Outcome(StrEnum):
    """How one try, or a whole call, ended; sorted by what the caller may do next."""

    SUCCESS = "success"
    REFUSED = "refused"
    FAILED = "failed"
    UNKNOWN = "unknown"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


class GatewayError(Exception):
    """A call that got no live answer. `__cause__` is the upstream's own last error, `__notes__` has one line a tier.

    `attempts` counts the tries that were really sent; `retry_after` is in seconds, None when nobody knows, inf: never.
    """

    outcome: Outcome = Outcome.FAILED
    upstream: str = ""
    operation: str = ""
    attempts: int = 0
    retry_after: float | None = None
    waited_for: WaitedFor | None = None


class Rejected(GatewayError):
    """Never sent. Nothing happened upstream, and the circuit learns nothing from it."""

    outcome = Outcome.REJECTED


class CircuitOpen(Rejected):
    """The circuit is open. `retry_after`: seconds until it is tried again, 0.0 in half-open, None when isolated."""


class BulkheadFull(Rejected):
    """No place in the pool: the queue was full (`reason == "queue_full"`) or the wait too long (`"max_wait"`)."""

    reason: Literal["queue_full", "max_wait"] = "queue_full"


class DeadlineExceeded(Rejected, TimeoutError):
    """The deadline passed before anything was sent."""


class GatewayClosed(Rejected):
    """The gateway is closed; only `open()` or `async with` opens it again."""


class Failed(GatewayError):
    """The upstream failed; it certainly did nothing, or doing it again is safe."""


class FailedTimeout(Failed, TimeoutError):
    """Sent, and no answer in time; safe to repeat. `waited_for` says which limit it was."""


class Unknown(GatewayError):
    """It may have taken effect: a failure after sending, of an operation that must not be repeated."""

    outcome = Outcome.UNKNOWN


class UnknownTimeout(Unknown, TimeoutError):
    """Sent, no answer in time, and it may have taken effect."""


def retry_after_of(error: BaseException) -> float | None:
    """The seconds after which an error says to try again; None where it does not, or not in numbers.

    Below 0 means never, which is inf here, as in gRPC's pushback (proposal A6).
    """
    seconds = getattr(error, "retry_after", None)
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds != seconds:  # noqa: PLR0124 - nan
        return None
    try:
        return float(seconds) if seconds >= 0 else inf
    except OverflowError:  # a whole number that no float can hold
        return inf


def reason_of(error: BaseException) -> Reason | None:
    """The reason that an error gives, if it is one of ours."""
    if isinstance(error, ConnectionRefusedError):
        return "unreachable"
    said = getattr(error, "reason", None)
    return None if said is None else next((reason for reason in REASONS if reason == said), None)


def waited_for_of(error: BaseException) -> WaitedFor | None:
    """What an error of a sender says was waited for too long; that of another upstream is its own affair."""
    said = None if isinstance(error, GatewayError) else getattr(error, "waited_for", None)
    return None if said is None else next((wait for wait in WAITS if wait == said), None)


class Refused(Exception):
    """Raise it in an operation: the upstream is well and says no (404, validation). Reaches the caller untouched."""

    def __init__(self, *args: object, retry_after: float | None = None) -> None:
        super().__init__(*args)
        self.retry_after = retry_after


class NotSent(Exception):
    """Raise it in an operation: the request certainly had no effect upstream, so that any call may be repeated.

    `retry_after`: the upstream's own wish, in seconds; below 0: never. `reason` chooses the wait before the next try:
    "throttled" (429), "unavailable" (503), "unreachable" (no connection).
    """

    def __init__(self, *args: object, retry_after: float | None = None, reason: Reason = "unreachable") -> None:
        super().__init__(*args)
        self.retry_after = retry_after
        self.reason = reason


class ConfigError(ValueError):
    """A setting that cannot work: which field, what is wrong with it, and what would be right.

    `line`: where it stands in a policy file, as far as that is known.
    """

    line: int | None = None

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(field, problem, remedy)
        self.field, self.problem, self.remedy = field, problem, remedy

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


class UnknownName(ConfigError, LookupError):
    """No upstream, operation or field of that name."""

    @classmethod
    def among(cls, field: str, name: object, known: Iterable[str]) -> UnknownName:
        """The error for `name`, with the nearest known name as the remedy; whatever somebody took for a name."""
        names = sorted(known)
        near = get_close_matches(str(name), names, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names) or 'none yet'}"
        return cls(field, f"there is no {name!r}", remedy)


class ConfigErrors(ConfigError):
    """All that is wrong with a policy file: `errors`. Field, problem and remedy are those of the first."""

    def __init__(self, errors: tuple[ConfigError, ...]) -> None:
        first = errors[0]
        super().__init__(first.field, first.problem, first.remedy)
        self.args = (errors,)  # what copies and pickles are made with
        self.errors = errors
        self.line = first.line

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))

    @classmethod
    def together(cls, errors: Iterable[ConfigError]) -> ConfigError:
        """One error as it is, several as one; what is several already is taken apart."""
        flat = tuple(one for error in errors for one in (error.errors if isinstance(error, ConfigErrors) else (error,)))
        return flat[0] if len(flat) == 1 else cls(flat)


class KeyNeeded(TypeError):
    """An operation that remembers or coalesces was called with arguments that cannot name the call: give it `key=`."""


class WrongLoop(RuntimeError):
    """The gateway is open on another event loop: one gateway, one running loop at a time."""
