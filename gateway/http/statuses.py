"""What a status means.

| status                  | means                                                                              |
|-------------------------|------------------------------------------------------------------------------------|
| 2xx, 3xx                | success: a reply                                                                   |
| 408, 425, 429           | failed: it did nothing, and says so (RFC 9110 15.5.9, RFC 8470, RFC 6585)          |
| any other 4xx           | refused: the server is well, and says no                                           |
| 503 with Retry-After    | failed: it did nothing, and says when it will                                      |
| any other 5xx           | unknown: it may have taken effect (a proxy's 502 hides what is behind it); failed  |
|                         | where the request may be repeated; so what is no status, or a switch of protocols  |

`HttpPolicy(statuses={...})` overlays it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from time import time

from gateway.outcome import Outcome, Reason

UNAVAILABLE = 503
CLASSES = {2: Outcome.SUCCESS, 3: Outcome.SUCCESS, 4: Outcome.REFUSED, 5: Outcome.UNKNOWN}
DID_NOTHING: Mapping[int, Reason] = {408: "unavailable", 425: "unavailable", 429: "throttled", 503: "unavailable"}
"""Statuses by which a server says that it did nothing, and why. 503: only if it says when to come again."""
DIGITS = 9
"""The most digits of a wait that are read: 31 years."""


class Statuses:
    """The table, with what a policy says instead."""

    __slots__ = ("_said",)

    def __init__(self, said: Mapping[int | str, str]) -> None:
        self._said = {status: Outcome(meaning) for status, meaning in said.items()}

    def meaning(self, status: int, retry_after: float | None) -> Outcome:
        """What a status means: success, refused, failed (certainly without effect) or unknown."""
        if self._said:
            said = self._said.get(status) or self._said.get(f"{status // 100}xx")
            if said is not None:
                return said
        if status in DID_NOTHING and (status != UNAVAILABLE or retry_after is not None):
            return Outcome.FAILED
        return CLASSES.get(status // 100, Outcome.UNKNOWN)


def reason_for(status: int) -> Reason:
    """Why a server did nothing."""
    return DID_NOTHING.get(status, "unavailable")


def retry_after_in(text: str | None) -> float | None:
    """Seconds to wait, from a header with seconds or a date (RFC 9110, 10.2.3); None for anything else."""
    text = "" if text is None else text.strip()
    if text.isascii() and text.isdigit():
        return float(text[-DIGITS:]) if len(text.lstrip("0")) <= DIGITS else None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a year of many digits
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)  # the old form without a zone, which is always GMT
    return max(0.0, date.timestamp() - time())
