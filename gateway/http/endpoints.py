"""Several endpoints that do the same: which one a call goes to, and which ones are left alone for a while.

    endpoint = endpoints.choose()                   # or choose(exclude=tried) for another one, or None
    lease = endpoint.begin(clock())
    ...
    lease.end(clock(), "success")                   # "failure", or "nothing" for a call that says nothing

Of two endpoints drawn at random by weight, the call goes to the one with the lower cost: what a call there takes of
late, times those in flight and itself. That spreads load nearly as well as looking at all of them, and a herd cannot
form. Sources: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; the cost is that of Finagle's and
linkerd's balancers, with an average that rises as slowly as it falls: a hang shows in the calls in flight long before
it shows in latencies, and one slow call should not move the load of a quiet service.

                 failures, or slow               the time is over
    HEALTHY ────────────────────────▶ EJECTED ────────────────────────▶ RAMPING ──▶ HEALTHY
       └───── checks ─────▶ DOWN ───────── checks, or none any more ───────┘

Health is one notion: whoever says that an endpoint is ill, calls or checks, it is out of rotation, and one floor holds
for all: never more than `max_ejected` of them are out, and never the last one, *after* an ejection as after any change
of the list or the policy (Envoy checked before, envoyproxy/envoy#27066). An ill one that has to stay is `held`, and
counted. When all that are in are held, there is no telling who is better: `panic`, the load is shared among all.

What an operator drains is no part of that: no call goes there, nothing is learned of it, and the floor is that of the
others. The last one that is left cannot be drained.

Synchronous and pure: it takes instants and verdicts and needs no timer. What is due happens when somebody looks.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import exp, floor, inf
from random import Random
from statistics import median
from time import monotonic
from typing import Any

from gateway.context import HALF_MICROSECOND, Clock
from gateway.http.endpoint import Endpoint, EndpointSnapshot
from gateway.http.health import Gone, Out, Serving, StateName, ejection_length, ejections_left, new_window
from gateway.outcome import ConfigError
from gateway.policy import EndpointsPolicy

RAMP_STEPS = 50
"""In how many steps it grows: between two of them, choosing costs no more than ever."""
CLEARLY = 1.25
"""Costs nearer than this are equal, and the load decides: the noise of latencies must not overrule load and weights."""
FAR = 700.0
"""So many times `decay_for` is as good as never, and `exp` can still say it."""
JUDGE_EVERY = 1.0
"""Seconds between two looks at whether an endpoint is slower than the others."""
ROUNDING = 1e-9
"""A share of endpoints this near to a whole number of them is that number: 0.29 x 100 is, as a float, below 29."""
LIGHTEST, HEAVIEST = 0.001, 1000.0
"""Between these, no sum or quotient of weights loses one of them to rounding."""
OnChange = Callable[[str, StateName, StateName, float], object]
"""Hears of a change of state: url, before, after, and the instant it was due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsSnapshot:
    """All of them. `out` of rotation now; `forbidden`: how often the floor forbade that, since start; `panic`."""

    endpoints: tuple[EndpointSnapshot, ...]
    out: int
    forbidden: int
    panic: bool


class Endpoints:
    """Endpoints of one upstream: urls, or pairs of url and weight. `clock` gives monotonic seconds.

    Where there is only one there is nothing to choose: it costs next to nothing, and nothing is learned of it.
    `on_change(url, before, after, at)` hears of every change of a state, once all is settled; it must not raise.

    Raises a ConfigError for an empty list, a url that is there twice, or a weight that is no number above 0.
    """

    def __init__(
        self,
        urls: str | Iterable[str | tuple[str, float]],
        policy: EndpointsPolicy | None = None,
        *,
        clock: Clock = monotonic,
        random: Random | None = None,
        on_change: OnChange | None = None,
    ) -> None:
        self._policy = policy or EndpointsPolicy()
        self.clock = clock
        self._random = random or Random()  # noqa: S311 - load is no secret
        self._draw = self._random.random
        self._on_change = on_change
        self._changes: list[tuple[str, StateName, StateName, float]] = []
        self._forbidden = self._out = 0
        self._newest = now = clock()
        self._all = {url: Endpoint(url, weight, self, now) for url, weight in weighted(urls).items()}
        self._settle(now)

    # -- for each call

    def choose(self, exclude: Collection[Endpoint] = ()) -> Endpoint | None:
        """Where the next call goes: in O(log n), O(1) where all weigh the same.

        Never to an excluded one, such as those that this call has tried already: None if no other is in rotation. Only
        for that it looks at all of them.
        """
        only = self._only
        if only is not None:
            return only if not exclude or only not in exclude else None
        now = self.clock()
        if now < self._newest or now >= self._due:
            self._look(now)
        table, sums = self._table, self._sums
        if exclude:
            return self._choose_from([one for one in table if one not in exclude])
        last = len(table) - 1
        if sums is None:
            if not last:
                return table[0]
            first, second = divmod(int(self._draw() * last * (last + 1)), last)
            if second >= first:
                second += 1  # two different ones, by one draw
        else:  # twice the same may come: a light one then cannot get more than twice its share for being idle
            first = bisect(sums, self._draw() * sums[-1], 0, last)
            second = bisect(sums, self._draw() * sums[-1], 0, last)
        return self._cheaper(table[first], table[second])

    def _choose_from(self, rest: list[Endpoint]) -> Endpoint | None:
        if len(rest) < 2:  # noqa: PLR2004 - it takes two to choose
            return rest[0] if rest else None
        if self._sums is None:
            one, other = self._random.sample(rest, 2)
        else:
            one, other = self._random.choices(rest, [1.0 / each.per for each in rest], k=2)
        return self._cheaper(one, other)

    def _cheaper(self, one: Endpoint, other: Endpoint) -> Endpoint:
        load = one.in_flight * one.per + 1.0
        others = other.in_flight * other.per + 1.0
        if one.cost and other.cost:  # of one that nothing is known of, only the load is compared
            age = (one.seen_at - other.seen_at) / self._policy.decay_for
            if age > FAR:
                age = FAR
            times = (
                one.cost / other.cost * exp(age)
            )  # what is old weighs less, or a slow one would never be tried again
            if not 1.0 / CLEARLY <= times <= CLEARLY:
                load *= times
        return other if others < load else one

    def learn(self, endpoint: Endpoint, now: float, *, failed: bool, latency: float) -> None:
        """A call to an endpoint ended, in the state in which it began. For its leases."""
        if (self._only is not None and not endpoint.held) or endpoint.drained:
            return  # there is nothing to choose, and nothing to eject
        if now > self._newest:
            self._newest = now
        policy, state = self._policy, endpoint.state
        serving = state if type(state) is Serving else None
        if serving is not None:
            serving.window.record(now, failed, False)
        endpoint.observe(now, None if failed else latency, policy)
        if serving is None:
            if type(state) is Out and not failed:
                self._prove(endpoint)
        elif failed:
            serving.failures_in_a_row += 1
            if serving.failing(now, policy):
                self._eject(endpoint, now)
        else:
            serving.failures_in_a_row = 0
            if endpoint.held or policy.slow_factor is not None:
                self._judge(endpoint, serving, now)

    def __getitem__(self, url: str) -> Endpoint:
        """The endpoint of this url; KeyError if it is not in the list."""
        return self._all[url]

    # -- for others than calls

    def report(self, url: str, healthy: bool, now: float) -> None:  # noqa: FBT001 - a verdict, like a lease's
        """What a check saw at an instant. Older ones than the last, or of one that is gone, say nothing.

        One that checks call healthy is let in again only when its ejection is over: a check is not a call.
        """
        here = self._look(self.clock())
        endpoint = self._all.get(url)
        if endpoint is None or now < endpoint.reported_at:
            return
        endpoint.reported_at = now
        if not healthy:
            endpoint.down_until = here + self._policy.max_report_age
            self._note(endpoint, here)
        elif endpoint.down_until > -inf:
            endpoint.down_until = min(endpoint.down_until, here)
            self._due = here
        self._settle(self._look(here))

    def replace(self, urls: str | Iterable[str | tuple[str, float]]) -> None:
        """Go on with another list: the names resolved anew, say.

        What is in both keeps all it has, what is new has its ramp, and leases of the rest end harmlessly.
        Raises a ConfigError, as a new one does, and then nothing has changed.
        """
        weights = weighted(urls)
        now = self._look(self.clock())
        before, self._all = self._all, {}
        for url, weight in weights.items():
            endpoint = before.pop(url, None)
            if endpoint is None:
                endpoint = Endpoint(url, weight, self, now)
                endpoint.ramp(now, self._policy)
                endpoint.told = endpoint.name
            endpoint.weight = weight
            self._all[url] = endpoint
        for endpoint in before.values():
            endpoint.state = Gone()
        self._settle(now)

    def drain(self, url: str) -> None:
        """Send no new calls there, until `restore`; those in flight go on. KeyError if it is not in the list.

        Raises a ConfigError for the last one that calls can go to.
        """
        endpoint = self._all[url]
        if endpoint.drained:
            return
        if sum(not one.drained for one in self._all.values()) == 1:
            raise ConfigError("endpoints", f"{url} is the last one that calls can go to", "isolate the upstream")
        now = self._look(self.clock())
        endpoint.drained = True
        self._note(endpoint, now)
        self._settle(now)

    def restore(self, url: str) -> None:
        """Send calls there again, few at first; KeyError if it is not in the list. What checks say still holds."""
        endpoint = self._all[url]
        if not endpoint.drained:
            return
        now = self._look(self.clock())
        endpoint.drained = False
        if type(endpoint.state) is Serving:
            self._put_back(endpoint, now)
        else:
            self._note(endpoint, now)
        self._settle(now)

    @property
    def policy(self) -> EndpointsPolicy:
        """The numbers it goes by. Assign others: all state survives, a window of another size starts empty.

        An ejection under way lasts as long as it was told to, unless the new floor ends it.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: EndpointsPolicy) -> None:
        now = self._look(self.clock())  # what was due was due under the old numbers
        before, self._policy = self._policy, policy
        for endpoint in self._all.values():
            if type(endpoint.state) is Serving and policy.window_for != before.window_for:
                endpoint.state.window = new_window(now, policy)
            endpoint.price(policy)
        self._due = now
        self._look(now)

    def snapshot(self) -> EndpointsSnapshot:
        """All of them as they are now."""
        now = self._look(self.clock())
        return EndpointsSnapshot(
            endpoints=tuple(endpoint.snapshot(now) for endpoint in self._all.values()),
            out=self._out,
            forbidden=self._forbidden,
            panic=self._panic,
        )

    def states(self) -> dict[str, StateName]:
        """The state that each is in now, by its url: what is worth a look every second."""
        self._look(self.clock())
        return {url: endpoint.name for url, endpoint in self._all.items()}

    # -- what a verdict changes

    def _eject(self, endpoint: Endpoint, at: float) -> None:
        """Its calls say that it is ill."""
        if endpoint.held and self._out >= self._most and at < self._due:
            return  # as was known, and nothing has changed
        now = self._look(self.clock())
        state, policy = endpoint.state, self._policy
        if type(state) is not Serving:
            return  # looking has put it out
        if self._out < self._most:
            endpoint.ejections = ejections_left(endpoint.ejections, now - state.since, policy) + 1
            endpoint.ejected_until = now + ejection_length(endpoint.ejections, policy)
            self._put_out(endpoint, now)
        else:
            self._hold(endpoint)
        self._settle(now)

    def _judge(self, endpoint: Endpoint, state: Serving, now: float) -> None:
        """A call went well: the endpoint may be well again, or too slow."""
        if not endpoint.held and now < state.judge_at:
            return
        state.judge_at = now + JUDGE_EVERY
        if self._slow(endpoint, state, now):
            self._eject(endpoint, now)
        elif endpoint.held and endpoint.down_until == -inf and not state.failing(now, self._policy):
            endpoint.held = False
            self._settle(self._look(self.clock()))

    def _slow(self, endpoint: Endpoint, state: Serving, now: float) -> bool:
        factor, least = self._policy.slow_factor, self._policy.min_calls
        if factor is None or state.window.calls < least:
            return False
        others = [
            other.latency
            for other in self._all.values()
            if other is not endpoint and type(other.state) is Serving and other.state.calls(now) >= least
        ]
        return bool(others) and endpoint.latency > factor * median(others)

    def _prove(self, endpoint: Endpoint) -> None:
        """All were ill, and this one answered: it need not wait any longer, whatever its calls had said."""
        now = self._look(self.clock())
        if type(endpoint.state) is Out:
            endpoint.ejected_until = min(endpoint.ejected_until, now)
            self._due = now
            self._look(now)

    # -- what is due

    def _look(self, now: float) -> float:
        """Everything as of now: what was due happens, as of the instant it was due."""
        if now < self._newest:
            self._turn_back(self._newest - now)
        self._newest = now
        late = now + HALF_MICROSECOND
        if late < self._due:
            return now
        for endpoint in self._all.values():
            over = -inf
            if -inf < endpoint.down_until <= late:
                over, endpoint.down_until = endpoint.down_until, -inf
                if type(endpoint.state) is Serving:
                    endpoint.held = endpoint.held and endpoint.state.failing(now, self._policy)
                elif endpoint.ejected_until > over:
                    self._note(endpoint, over)
            if type(endpoint.state) is Out and endpoint.until <= late:
                self._put_back(endpoint, max(endpoint.until, over))
            if endpoint.ramp_from + self._policy.ramp_for <= late:
                over, endpoint.ramp_from = endpoint.ramp_from + self._policy.ramp_for, inf
                self._note(endpoint, over)
        self._settle(now)
        return now

    def _turn_back(self, by: float) -> None:
        """The clock went back: what was to last some time from then lasts as long from now."""
        for endpoint in self._all.values():
            endpoint.turn_back(by, self._policy)
        self._due -= by

    # -- in and out of rotation

    def _put_out(self, endpoint: Endpoint, at: float) -> None:
        endpoint.state = Out()
        endpoint.held = False
        endpoint.ramp_from = inf
        self._out += 1
        self._note(endpoint, at)

    def _put_back(self, endpoint: Endpoint, at: float) -> None:
        endpoint.state = Serving(at, self._policy)
        endpoint.ejected_until = -inf
        endpoint.forget(at)
        endpoint.ramp(at, self._policy)
        self._note(endpoint, at)

    def _hold(self, endpoint: Endpoint) -> None:
        """It is ill, and the floor says that it stays."""
        if not endpoint.held:
            endpoint.held = True
            self._forbidden += 1

    def _note(self, endpoint: Endpoint, at: float) -> None:
        """Whoever listens is told when all is settled: he may change everything again."""
        before, endpoint.told = endpoint.told, endpoint.name
        if before != endpoint.told:
            self._changes.append((endpoint.url, before, endpoint.told, at))

    def _settle(self, now: float) -> None:
        """After any change: keep the floor, share the load out anew, tell what changed."""
        every = [endpoint for endpoint in self._all.values() if not endpoint.drained]
        if not every:  # another list has only drained ones left: better there than nowhere
            every = list(self._all.values())
            for endpoint in every:
                endpoint.drained = False
                self._note(endpoint, now)
        self._keep_floor(every, now)
        self._panic = all(endpoint.held or type(endpoint.state) is Out for endpoint in every)
        self._share_out(every if self._panic else [one for one in every if type(one.state) is Serving], now)
        self._only = every[0] if len(every) == 1 else None
        step = now + self._policy.ramp_for / RAMP_STEPS
        self._due = min(endpoint.due(step, self._policy.ramp_for) for endpoint in self._all.values())
        while self._changes and self._on_change is not None:
            self._on_change(*self._changes.pop(0))
        self._changes.clear()

    def _keep_floor(self, every: list[Endpoint], now: float) -> None:
        """Never more are out than may be, whatever it was that changed: their states, their number, the policy."""
        out = [endpoint for endpoint in every if type(endpoint.state) is Out]
        self._out = len(out)
        self._most = min(len(every) - 1, floor(self._policy.max_ejected * len(every) + ROUNDING))
        out.sort(key=soonest_back)
        for endpoint in out[: max(0, self._out - self._most)]:
            self._put_back(endpoint, now)
            self._out -= 1
            self._hold(endpoint)
        for endpoint in every:
            if type(endpoint.state) is Serving and endpoint.down_until > -inf:
                if self._out < self._most:
                    self._put_out(endpoint, now)
                else:
                    self._hold(endpoint)

    def _share_out(self, table: list[Endpoint], now: float) -> None:
        shares = [endpoint.share(now, self._policy.ramp_for) for endpoint in table]
        mean = sum(shares) / len(shares)
        for endpoint, share in zip(table, shares, strict=True):
            endpoint.per = mean / share
        self._table = table
        self._sums = None if min(shares) == max(shares) else list(accumulate(shares))


def soonest_back(endpoint: Endpoint) -> tuple[float, float]:
    """The order in which the floor takes them back: what checks say is down comes last."""
    return endpoint.down_until, endpoint.ejected_until


def with_weights(urls: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each url with what is given as its weight, or 1; neither is looked at."""
    for one in urls:
        match one:
            case (url, weight):
                yield url, weight
            case url:
                yield url, 1.0


def weighted(urls: str | Iterable[str | tuple[str, float]]) -> dict[str, float]:
    """Each url with its weight, checked."""
    weights: dict[str, float] = {}
    for url, weight in with_weights([urls] if isinstance(urls, str) else urls):
        if not isinstance(url, str) or not url:
            raise ConfigError("endpoints", f"{url!r} is no url", "give urls, or pairs of url and weight")
        if url in weights:
            raise ConfigError("endpoints", f"{url} is there twice", "give it once, with a weight of 2")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not LIGHTEST <= weight <= HEAVIEST:
            problem = f"the weight of {url}, {weight!r}, is not a number from {LIGHTEST} to {HEAVIEST}"
            raise ConfigError("endpoints", problem, "give 1 to each, and 2 to what can carry twice as much")
        weights[url] = float(weight)
    if not weights:
        raise ConfigError("endpoints", "there are none", "give at least one url")
    return weights
