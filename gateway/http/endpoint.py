"""One endpoint: the calls that are there, what is known of it, how much it is to carry; and one call's lease of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf
from typing import Protocol

from gateway.http.health import Out, Serving, State, StateName, Verdict, ejections_left
from gateway.policy import EndpointsPolicy

RAMP_BEGINS = 0.1
"""The share of its weight that an endpoint begins with (Envoy's `min_weight_percent`)."""
WELL = 10
"""Calls that are taken to have gone well before the first: of one failure alone no share is known."""


class Owner(Protocol):
    """Who an endpoint belongs to."""

    @property
    def policy(self) -> EndpointsPolicy:
        """The numbers it goes by."""
        ...

    def learn(self, endpoint: Endpoint, now: float, *, failed: bool, latency: float) -> None:
        """A call to the endpoint ended, in the state in which it began."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSnapshot:
    """One endpoint as it is now.

    `latency` is an average of late in seconds, None while unknown; `calls` and `failures` are those of the window,
    `failures_in_a_row` those since the last success, 0 while it is out. `ejected_until` is an instant of the clock,
    None unless it is out. `ejections` still lengthen the next one. `held`: ill, but the floor keeps it in.
    """

    url: str
    weight: float
    state: StateName
    held: bool
    in_flight: int
    latency: float | None
    calls: int
    failures: int
    failures_in_a_row: int
    ejected_until: float | None
    ejections: int


class Lease:
    """One call's share of an endpoint's load. It ends once; one that is lost gives its load back, and says nothing."""

    __slots__ = ("_begun_at", "_endpoint", "_state")

    def __init__(self, endpoint: Endpoint, now: float) -> None:
        self._endpoint: Endpoint | None = endpoint  # None once it has ended
        self._state = endpoint.state
        self._begun_at = now
        endpoint.in_flight += 1

    def end(self, now: float, verdict: Verdict, latency: float | None = None) -> None:
        """The call ended. Without a latency, in seconds, it is the time since the lease began."""
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        endpoint.in_flight -= 1
        if verdict != "nothing" and endpoint.state is self._state:
            took = now - self._begun_at if latency is None else latency
            endpoint.owner.learn(endpoint, now, failed=verdict == "failure", latency=max(0.0, took))

    def lasted(self, now: float) -> float:
        """Seconds since it began."""
        return now - self._begun_at

    def __del__(self) -> None:
        if self._endpoint is not None:
            self._endpoint.in_flight -= 1


class Endpoint:
    """One address that calls can go to.

    Users read `url`, `weight` and `in_flight`, and `begin`; the rest is kept by the `Endpoints` that it belongs to.
    """

    __slots__ = (
        *(
            "cost",
            "down_until",
            "drained",
            "ejected_until",
            "ejections",
            "held",
            "in_flight",
            "latency",
            "owner",
            "per",
        ),
        *("ramp_from", "reported_at", "seen", "seen_at", "state", "told", "url", "weight"),
    )

    def __init__(self, url: str, weight: float, owner: Owner, now: float) -> None:
        self.url = url
        self.weight = weight
        self.owner = owner
        self.in_flight = 0
        self.state: State = Serving(now, owner.policy)
        self.told: StateName = "healthy"
        self.held = False
        self.drained = False  # an operator wants no new calls there
        self.ejections = 0
        self.ejected_until = self.down_until = self.reported_at = -inf
        self.ramp_from = inf  # inf: no ramp
        self.per = 1.0  # one call in flight weighs this much: a light endpoint is full sooner
        self.forget(now)

    def begin(self, now: float) -> Lease:
        """A call goes there now."""
        return Lease(self, now)

    @property
    def until(self) -> float:
        """When it may come back."""
        return max(self.ejected_until, self.down_until)

    @property
    def name(self) -> StateName:
        """Its state in a word."""
        if self.drained:
            return "draining"
        if type(self.state) is Out:
            return "down" if self.down_until > -inf else "ejected"
        return "healthy" if self.ramp_from == inf else "ramping"

    def ramp(self, at: float, policy: EndpointsPolicy) -> None:
        """Begin with a tenth."""
        self.ramp_from = at if policy.ramp_for else inf

    def share(self, now: float, ramp_for: float) -> float:
        """Its weight as of now."""
        if self.ramp_from == inf or now - self.ramp_from >= ramp_for:
            return self.weight
        return self.weight * max(RAMP_BEGINS, (now - self.ramp_from) / ramp_for)

    def due(self, step: float, ramp_for: float) -> float:
        """When something about it changes by itself; `step` is when the next step of a ramp is."""
        back = self.until if type(self.state) is Out else inf
        down = self.down_until if self.down_until > -inf else inf
        return min(back, down, step, self.ramp_from + ramp_for) if self.ramp_from < inf else min(back, down)

    def turn_back(self, by: float, policy: EndpointsPolicy) -> None:
        """Go on by a clock that went back this far."""
        self.ejected_until -= by
        self.down_until -= by
        self.reported_at -= by
        self.ramp_from -= by
        self.seen_at -= by
        if type(self.state) is Serving:
            self.state.turn_back(by, policy)

    def forget(self, now: float) -> None:
        """Begin without latencies."""
        self.latency = self.cost = 0.0
        self.seen = 0
        self.seen_at = now

    def observe(self, now: float, latency: float | None, policy: EndpointsPolicy) -> None:
        """One more call; None for the latency of one that failed: it says nothing about those that do not.

        The average is over time, so that it reacts equally fast however many calls there are.
        """
        age = now - self.seen_at
        if age > 0.0:
            self.seen_at = now
        if latency is not None:
            self.seen += 1
            fresh = 1.0 - exp(-age / policy.decay_for) if age > 0.0 else 0.0
            self.latency += (latency - self.latency) * max(fresh, 1.0 / self.seen)  # the first few count alike
        self.price(policy)

    def price(self, policy: EndpointsPolicy) -> None:
        """What a call there takes, by what is known: failures cost, too, or who refuses at once would draw all load."""
        self.cost = self.latency
        if type(self.state) is not Serving:
            self.cost += policy.failure_cost
        elif self.state.window.failures:
            window = self.state.window
            self.cost += policy.failure_cost * window.failures / (window.calls + WELL)

    def snapshot(self, now: float) -> EndpointSnapshot:
        """It as it is now."""
        state, ejections = self.state, self.ejections
        calls = failures = in_a_row = 0
        if type(state) is Serving:
            calls, failures, in_a_row = state.calls(now), state.window.failures, state.failures_in_a_row
            ejections = ejections_left(ejections, now - state.since, self.owner.policy)
        return EndpointSnapshot(
            url=self.url,
            weight=self.weight,
            state=self.name,
            held=self.held,
            in_flight=self.in_flight,
            latency=self.latency or None,
            calls=calls,
            failures=failures,
            failures_in_a_row=in_a_row,
            ejected_until=self.until if type(state) is Out else None,
            ejections=ejections,
        )
