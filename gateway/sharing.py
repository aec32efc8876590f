"""A call among identical ones: how it joins them, what it takes from the one in flight, and how it leaves the lead.

`gateway.coalesce` has the flights; here stands what they are to a call.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any, cast

from fallbacks.answer import Answer, Source
from gateway.call import Call, Led
from gateway.coalesce import LEAD, TOO_LATE, Flights, Landed, News, again
from gateway.host import Host
from gateway.outcome import DeadlineExceeded, FailedTimeout, GatewayError, Outcome

log = logging.getLogger("gateway")


async def join(flights: Flights, key: Hashable | None, call: Call, upstream: Host) -> News | None:
    """How the identical call in flight ended, or TOO_LATE. None: this one is to be made, as their leader or alone."""
    flight = flights.of(key)
    if flight is None:
        call.flight = flights.begin(key, call.task)
        return None
    only_live = call.wants is not None and call.wants.only_live
    if only_live or flight.full or flight.task is call.task:
        return None
    news = await flight.follow(upstream.clock, call.cutoff)
    call.at = upstream.clock()
    if news is LEAD:
        call.flight, flight.task = flight, call.task
    return news if type(news) is Landed or news is TOO_LATE else None


def copy_for(call: Call, flight: Landed, where: str) -> Answer[Any] | None:
    """The answer of a flight, as one of those who waited for it gets it: his own. None where there is no other copy."""
    try:
        value = flight.value_for_one()
    except Exception:
        log.exception("%s: an answer could not be copied again", where)
        return None
    call.source = Source.COALESCED
    return Answer(value, Source.COALESCED)


def error_for(call: Call, flight: Landed) -> Exception:
    """The error of a flight, as one of those who waited for it gets it: his own."""
    error = again(cast("Exception", flight.error))
    call.outcome, call.not_sent = flight.outcome, flight.not_sent  # its tries are counted as the leader's
    if flight.outcome is Outcome.REFUSED:
        call.error = error
    elif isinstance(error, GatewayError) and flight.outcome is not Outcome.REJECTED:
        call.failure = error
    return error


def too_late_for(call: Call, upstream: str, operation: str) -> FailedTimeout:
    """The error of a call that waited for a flight until its own time was over."""
    took = call.at - call.asked_at
    late = FailedTimeout(f"{upstream}.{operation}: no answer within {took:.3f} s from the identical call in flight")
    late.upstream, late.operation, late.waited_for = upstream, operation, "deadline"
    late.attempts = 1  # the flight counts as one
    call.outcome, call.failure = Outcome.FAILED, late
    return late


def end_flight(call: Call, error: Exception, upstream: Host) -> None:
    """What a call that leads has come to. If that is its own affair, it hands over."""
    own = isinstance(error, DeadlineExceeded) or (error is call.failure and error.waited_for == "deadline")
    if own or call.outcome is Outcome.CANCELLED:
        leave_flight(call, upstream)
        return
    flight, call.flight = cast("Led", call.flight), None
    # A twin, made now: what the leader's own tiers will note on his error is nothing to the others.
    flight.fail(Landed(error=again(error), outcome=call.outcome, not_sent=call.not_sent))


def leave_flight(call: Call, upstream: Host) -> None:
    """A call that leads is over, or goes on alone: another one leads."""
    flight, call.flight = cast("Led", call.flight), None
    flight.hand_over(upstream.clock(), upstream.retry.policy.min_try)
