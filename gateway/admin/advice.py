"""What the numbers of an upstream say about its knobs: which, to what, why, and how sure that is.

**The pool.** Little's law: as many are in it on average as arrive in a second, times the seconds that each stays.
Around that mean the number in a system with room for all is Poisson's, however service times scatter (the M/G/infinity
queue is insensitive to them), so the pool is large enough if it holds what that exceeds once in a thousand instants.
More places than that serve nobody; they are what an upstream that hangs can take.

**The limit on a try.** The time that all but one in a thousand tries need, and a third on top: AWS' "Timeouts, retries
and backoff with jitter" chooses by the share of false timeouts, too. Where the limit itself cuts the tail, what lies
behind it is unknown, and the advice is a guess.

**The circuit.** A rate needs as many calls as `min_calls`; where the window sees fewer, the circuit cannot open. Where
it takes so few that bad luck alone reaches the threshold at the usual share of failures, it opens without need.

Pure functions of what was measured. Nothing is said on less than `FEWEST` calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, exp, floor, isinf, log10, sqrt
from statistics import median
from typing import Any, Literal

from gateway.admin.sampler import ATTEMPTS, BEGINNING, LOADS, Buckets, Loads, Track
from gateway.policy import Policy
from gateway.upstream import Upstream

FEWEST = 30
"""Calls below which there is nothing to say."""
MANY, ENOUGH = 10_000, 1_000
"""Calls that make advice sure, or fairly sure: one in a thousand has to be seen."""
LONG, FAIR = 300.0, 60.0
"""Seconds that do, too: load has its minutes."""
EXCEEDED = 0.001
"""The share of instants in which a pool may be full, and of tries that a limit may cut without need."""
SMOOTHED = 10
"""Seconds that an arrival rate is averaged over: single seconds scatter, and Poisson's law has that in it already."""
ROOM = 4 / 3
"""What a limit on time has on top."""
CUT = 0.9
"""From this share of its limit on, the slowest tries say that the limit cuts others."""
BY_CHANCE = 1e-6
"""How rarely a window may reach the threshold by chance."""
TOO_MANY = 2.0
"""A pool is called too large from so many times what it needs: there is no harm in a little more."""

Sure = Literal["high", "medium", "low"]
Advice = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of an upstream.

    `arrivals`: calls in each second, the oldest first. `latency`: service times of tries that succeeded, under the
    limit of the upstream; `loads`: how many were in the pool. `queued`: the share of looks that saw somebody wait.
    `tries`: those that were sent, `failed` of them gave no answer. `crowd`: the most ever seen in the pool at once.
    """

    seconds: float
    arrivals: tuple[float, ...]
    latency: Buckets
    loads: Loads
    queued: float
    tries: int
    failed: int
    crowd: int = 0

    @property
    def peak(self) -> float:
        """Calls a second at the busiest of times."""
        most, number = 0.0, min(SMOOTHED, len(self.arrivals))
        for start in range(max(1, len(self.arrivals) - number + 1)):
            most = max(most, sum(self.arrivals[start : start + number]) / max(1, number))
        return most

    @property
    def mean(self) -> float:
        """Seconds that a try takes that succeeds."""
        return self.latency.sum / self.latency.total

    @property
    def sure(self) -> Sure:
        """How much was seen."""
        if self.latency.total >= MANY and self.seconds >= LONG:
            return "high"
        return "medium" if self.latency.total >= ENOUGH and self.seconds >= FAIR else "low"


def measured(upstream: Upstream, track: Track) -> Measured:
    """What the sampler knows."""
    now, began = track.now, track.began
    seconds = max(now.at - began.at, 1e-9)
    window = track.between(now, began)
    took: list[Buckets] = []
    for operation in upstream:
        if operation.timeout.attempt == upstream.policy.timeout.attempt:
            new, old = now.operations.get(operation.name, BEGINNING), began.operations.get(operation.name, BEGINNING)
            took.append(new.latency.since(old.latency))
    loads = track.loads
    tries, answered = window.moved[ATTEMPTS], window.latency.total + window.counts["refused"]
    return Measured(
        seconds=seconds,
        arrivals=tuple(track.arrivals)[-ceil(seconds) :],
        latency=Buckets.together(took),
        loads=loads,
        queued=sum(span.queued for span in track.spans) / loads.looks if loads.looks else 0.0,
        tries=tries,
        failed=max(0, tries - answered),
        crowd=upstream.bulkhead.peak,
    )


def advice_for(upstream: Upstream, track: Track) -> list[Advice]:
    """What there is to say about an upstream, as the document has it."""
    seen = measured(upstream, track)
    if seen.latency.total < FEWEST:
        return []
    each = (pool(upstream.policy, seen), attempt(upstream.policy, seen), volume(upstream.policy, seen))
    return [{"upstream": upstream.name, **one} for one in each if one is not None]


# -- the pool


def pool(policy: Policy, seen: Measured) -> Advice:
    """`bulkhead.limit`, by Little's law."""
    limit, rate, mean = policy.bulkhead.limit, seen.peak, seen.mean
    load = rate * mean
    needed = poisson(load)
    law = f"at most {rate:.3g} calls a second, {spell(mean)} each: {load:.3g} at once on average (Little's law)"
    full = seen.queued > EXCEEDED
    if not full:  # what was seen in a pool with room to spare has bursts in it that no law knows of
        needed = max(needed, int(min(seen.loads.quantile(1 - EXCEEDED) + 1, limit)))
    sure = seen.sure
    if sure == "low":  # a few looks miss short bursts, such as a page that asks for all its films at once
        needed = max(needed, int(min(seen.crowd, limit)))
    if full and needed <= limit:
        why = (
            f"{law}, {needed} but once in a thousand instants; it was full all the same: calls come in bursts, or hang"
        )
        suggested, sure = limit, "low"
    elif needed > limit:
        why = f"{law}, and {needed} once in a thousand instants; there are {limit:g} places, all taken at times"
        suggested, sure = needed, "medium" if full and sure == "high" else sure  # a crowd makes an upstream slower
    elif limit > TOO_MANY * needed:
        why = (
            f"{law}, {needed} but once in a thousand instants; of {shown(limit)} places a hang can take all the others"
        )
        suggested = needed
    else:
        why = f"{law}, {needed} but once in a thousand instants: {limit:g} places fit"
        suggested = limit
    histogram = list(seen.loads)
    return advised("bulkhead.limit", limit, suggested, sure=sure, why=f"{why}.", seen=seen, histogram=histogram)


def poisson(mean: float, exceeded: float = EXCEEDED) -> int:
    """The least number, at least 1, that a Poisson variable of this mean exceeds no oftener."""
    if mean > 500:  # noqa: PLR2004 - exp(-mean) would vanish; there the normal law is as good
        return ceil(mean + 3.09 * sqrt(mean) + 1)
    number, chance = 0, exp(-mean)
    below = chance
    while below < 1 - exceeded:
        number += 1
        chance *= mean / number
        below += chance
    return max(1, number)


# -- the limit on a try


def attempt(policy: Policy, seen: Measured) -> Advice | None:
    """`timeout.attempt`, from the distribution of latencies."""
    limit, call = policy.timeout.attempt, policy.timeout.call
    slowest = seen.latency.quantile(1 - EXCEEDED)
    share = seen.failed / seen.tries if seen.tries else 0.0
    sure = seen.sure
    tail = f"all but one in a thousand answers take at most {spell(slowest)}"
    fitting = round_up(slowest * ROOM)
    if slowest >= CUT * limit:
        suggested, sure = min(round_up(2 * limit), call), "low"
        why = (
            f"{tail}, close to the limit of {spell(limit)}, and {share:.1%} of the tries fail: it cuts what would come"
        )
        if suggested <= limit:
            suggested, why = limit, f"{why}; but timeout.call is {spell(call)}"
    elif limit > 2 * fitting:
        suggested = fitting
        why = f"{tail}; one that hangs is waited for {shown_seconds(limit)}, and holds its place as long"
    else:
        suggested, why = limit, f"{tail}: a limit of {spell(limit)} fits"
    histogram = list(seen.latency.bars())
    return advised("timeout.attempt", limit, suggested, sure=sure, why=f"{why}.", seen=seen, histogram=histogram)


def round_up(seconds: float) -> float:
    """To two digits, upwards: nobody sets a limit to 0.4387 s."""
    step: float = 10.0 ** (floor(log10(max(seconds, 1e-6))) - 1)
    return round(ceil(seconds / step - 1e-9) * step, 9)


# -- the circuit


def volume(policy: Policy, seen: Measured) -> Advice | None:
    """`breaker.min_calls`, or the window, against the traffic there is."""
    breaker = policy.breaker
    least, rate = breaker.min_calls, (median(seen.arrivals) if seen.arrivals else 0.0) or seen.tries / seen.seconds
    if isinf(least) or not rate:
        return None  # it is not to open
    share = min(seen.failed / seen.tries, breaker.failure_rate / 2) if seen.tries else 0.0
    safe = safe_volume(share, breaker.failure_rate)
    if breaker.window_calls is not None:
        in_window, window = float(breaker.window_calls), f"{breaker.window_calls} calls"
    else:
        seconds = breaker.window_for or 1.0
        in_window, window = rate * seconds, f"{seconds:g} s"
    histogram = counted(seen.arrivals)
    usual = f"{rate:.3g} calls a second make {in_window:.3g} in a window of {window}"
    luck = f"at {share:.1%} of failures fewer than {safe} calls reach {breaker.failure_rate:.0%} by chance"
    sure: Sure = "low" if seen.sure == "low" and seen.seconds < FAIR else "medium" if seen.sure == "low" else "high"
    knob, now, suggested = "breaker.min_calls", least, least
    if in_window < least:
        if floor(in_window / 2) >= safe:
            suggested, why = floor(in_window / 2), f"{usual}: fewer than min_calls={least:g}, so it cannot open"
        else:
            knob, now = "breaker.window_for", breaker.window_for or 0.0
            suggested = ceil(2 * max(safe, 3) / rate)
            why = f"{usual}: it cannot open at min_calls={least:g}, and {luck}; look back over {suggested} s"
            why += f", with min_calls={max(safe, 3)}" if suggested * rate < least else ""
    elif least < safe <= in_window:
        suggested, why = safe, f"{luck}; {usual}, enough for more"
    else:
        why = f"{usual}: min_calls={least:g} fits"
    return advised(knob, now, suggested, sure=sure, why=f"{why}.", seen=seen, histogram=histogram)


def safe_volume(share: float, threshold: float) -> int:
    """The least number of calls of which, at this share of failures, chance alone hardly ever makes a threshold."""
    for number in range(3, 1000):
        least = ceil(threshold * number - 1e-9)
        chance = sum(
            comb(number, failures) * share**failures * (1 - share) ** (number - failures)
            for failures in range(least, number + 1)
        )
        if chance <= BY_CHANCE:
            return number
    return 1000


def counted(rates: tuple[float, ...]) -> list[tuple[int, int]]:
    """How many seconds had so many calls."""
    seconds: dict[int, int] = {}
    for rate in rates:
        bound = next(bound for bound in (*LOADS, ceil(rate)) if bound >= rate)
        seconds[bound] = seconds.get(bound, 0) + 1
    return sorted(seconds.items())


# -- how it is said


def advised(
    knob: str,
    now: float,
    suggested: float,
    *,
    sure: Sure,
    why: str,
    seen: Measured,
    histogram: Sequence[tuple[float, int]],
) -> Advice:
    """As the document has it. `suggested` is `now` where there is nothing to change."""
    loads, latency = seen.loads, seen.latency.snapshot()
    return {
        "knob": knob,
        "now": said(now),
        "suggested": said(suggested),
        "sure": sure,
        "why": why[:1].upper() + why[1:],
        "picture": {
            "limit": said(now),
            "concurrency": {
                "p50": loads.quantile(0.5),
                "p90": loads.quantile(0.9),
                "p99": loads.quantile(0.99),
                "max": loads.max,
            },
            "latency": {
                "count": latency.count,
                "mean": latency.mean,
                "p50": latency.p50,
                "p90": latency.p90,
                "p99": latency.p99,
                "p999": seen.latency.quantile(0.999),
                "max": latency.max,
            },
            "histogram": [list(one) for one in histogram],
        },
    }


def said(number: float) -> float | str:
    """A number as JSON can say it."""
    if isinf(number):
        return "inf"
    return int(number) if float(number).is_integer() else number


def shown(limit: float) -> str:
    """A limit, in words."""
    return "endless" if isinf(limit) else f"{limit:g}"


def shown_seconds(limit: float) -> str:
    """A limit on time, in words."""
    return "for ever" if isinf(limit) else spell(limit)


def spell(seconds: float) -> str:
    """A duration, to three digits."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
