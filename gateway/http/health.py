"""What the calls to one endpoint say about it, and how long it is left alone for that.

As with a circuit, a state is an object that holds only its own data, and the leave to try *is* that object: a verdict
counts only while the endpoint is still in the state in which the call began. So stragglers that fail after an ejection
neither lengthen it nor count against the endpoint when it is back (envoyproxy/envoy#40697).
"""

from __future__ import annotations

from math import inf
from typing import Literal

from gateway.policy import EndpointsPolicy
from gateway.window import TimeWindow

ALMOST_ONE = 1 - 1e-9
"""Shares this near are equal: a product of floats must not miss a threshold by its rounding."""
StateName = Literal["healthy", "ejected", "ramping", "down", "draining"]
Verdict = Literal["success", "failure", "nothing"]
"""What a call says about its endpoint. Nothing: cancelled, never sent, lost a race, or cut by a caller in a hurry."""


class Serving:
    """In rotation since some instant: what the calls have shown since then."""

    __slots__ = ("failures_in_a_row", "judge_at", "since", "window")

    def __init__(self, now: float, policy: EndpointsPolicy) -> None:
        self.since = now
        self.failures_in_a_row = 0
        self.window = new_window(now, policy)
        self.judge_at = -inf

    def calls(self, now: float) -> int:
        """How many calls its window knows of."""
        self.window.advance(now)
        return self.window.calls

    def failing(self, now: float, policy: EndpointsPolicy) -> bool:
        """Whether its failures make it an outlier."""
        if self.failures_in_a_row >= policy.failures_in_a_row:
            return True
        calls = self.calls(now)
        return calls >= policy.min_calls and self.window.failures >= policy.failure_rate * ALMOST_ONE * calls

    def turn_back(self, by: float, policy: EndpointsPolicy) -> None:
        """Go on by a clock that went back this far. A window cannot: it would forget nothing until the time it knew."""
        self.since -= by
        self.judge_at -= by
        if by >= 1.0:
            self.window = new_window(self.since, policy)


class Out:
    """Out of rotation: nothing counts but, when there is no other, a success."""

    __slots__ = ()


class Gone:
    """No longer in the list: nothing counts any more."""

    __slots__ = ()


State = Serving | Out | Gone


def new_window(now: float, policy: EndpointsPolicy) -> TimeWindow:
    """An empty window of the size that the policy says."""
    return TimeWindow(int(policy.window_for), now)


def ejections_left(ejections: int, served: float, policy: EndpointsPolicy) -> int:
    """How many ejections still lengthen the next one, after this many seconds in rotation."""
    if served < policy.forgive_after:
        return ejections
    return max(0, ejections - int(min(served / policy.forgive_after, ejections)))


def ejection_length(nth: int, policy: EndpointsPolicy) -> float:
    """How long the n-th ejection lasts."""
    return min(policy.eject_for * nth, policy.eject_cap)
