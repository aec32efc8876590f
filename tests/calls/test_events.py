"""What is observed: events, numbers that add up, and listeners that cannot break anything."""

from __future__ import annotations

import asyncio
import pickle
from copy import deepcopy
from dataclasses import FrozenInstanceError, asdict, dataclass, field, replace
from typing import Any

import pytest
from tenacity import wait_none

from gateway import (
    AttemptFailed,
    BreakerPolicy,
    BulkheadPolicy,
    CallFinished,
    CircuitChanged,
    ConfigError,
    Counts,
    Deadline,
    Event,
    Failed,
    Gateway,
    LastGood,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    UnknownTimeout,
)
from gateway.testing import Faults
from tests.support import QUIET, Boom, counted, ended, fail_until_open, gone, now, steps


class Log(list[Any]):
    """A listener, and no other's equal."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self if type(event) is kind]


@pytest.fixture
def log(gate: Gateway) -> Log:
    log = Log()
    gate.on()(log)
    return log


# -- one for each call


@pytest.mark.virtual_time
async def test_one_event_for_a_call_that_went_well(gate: Gateway, log: Log) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None:
        await asyncio.sleep(0.5)

    await ask()

    (event,) = log
    assert event == CallFinished(
        upstream="world",
        at=now(),
        operation="ask",
        outcome="success",
        source=Source.LIVE,
        duration=pytest.approx(0.5),
        waited=0.0,
        attempts=1,
        error=None,
        call=event.call,
    )


@pytest.mark.virtual_time
async def test_the_event_of_a_degraded_answer_says_why_and_from_where(gate: Gateway, log: Log) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True, fallback=[Static("s")])
    async def ask() -> None:
        raise Boom

    answer = await ask.ask()

    (event,) = log.of(CallFinished)
    assert (event.outcome, event.source, event.attempts) == ("failed", "static", 1)
    assert event.error is answer.error


@pytest.mark.virtual_time
async def test_the_event_of_an_error_has_the_error_and_no_source(gate: Gateway, log: Log) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=False)
    async def ask() -> None:
        await asyncio.sleep(99)

    error = await ended(ask())

    (event,) = log.of(CallFinished)
    assert (event.outcome, event.source) == ("unknown", None)
    assert event.error is error
    assert type(error) is UnknownTimeout


@pytest.mark.virtual_time
async def test_the_events_of_refused_rejected_and_cancelled_calls(gate: Gateway, log: Log) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask(refuse: bool = False) -> None:
        if refuse:
            raise Refused
        await asyncio.sleep(99)

    refused = await ended(ask(refuse=True))
    with Deadline.after(0.0):
        rejected = await ended(ask())
    call = asyncio.ensure_future(ask())
    await steps(1)
    await gone(call)

    assert [(event.outcome, event.source, event.attempts) for event in log] == [
        ("refused", None, 1),
        ("rejected", None, 0),
        ("cancelled", None, 1),
    ]
    assert [event.error for event in log[:2]] == [refused, rejected]
    assert not log.of(AttemptFailed)


@pytest.mark.virtual_time
async def test_a_call_that_could_not_be_made_is_no_event(gate: Gateway, log: Log) -> None:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def ask() -> None: ...

    with pytest.raises(TypeError):
        await ask("too many")
    await gate.close()
    await ended(ask())

    assert not log


# -- one for each failed try


@pytest.mark.virtual_time
async def test_one_event_for_each_try_that_failed(gate: Gateway, log: Log) -> None:
    policy = replace(QUIET, retry=RetryPolicy(attempts=3, wait=wait_none()))

    @gate.upstream("world", policy=policy).operation(idempotent=True)
    async def ask() -> str:
        return "live"

    with Faults(ask).error(Boom("first")).hang():
        await ask()

    first, second, finished = log
    assert (type(first), first.attempt, first.outcome, first.duration) == (AttemptFailed, 1, "failed", 0.0)
    assert isinstance(first.error, Failed)
    assert str(first.error.__cause__) == "first"
    assert (second.attempt, second.duration, second.operation) == (2, pytest.approx(10.0), "ask")
    assert (finished.outcome, finished.attempts, finished.error) == ("success", 3, None)


# -- one for each transition


@pytest.mark.virtual_time
async def test_one_event_for_each_transition(gate: Gateway, log: Log) -> None:
    breaker = BreakerPolicy(min_calls=2, open_for=5.0, probes=2)
    up = gate.upstream("world", policy=replace(QUIET, breaker=breaker))

    @up.operation(idempotent=True)
    async def ask() -> None: ...

    began = now()
    with Faults(ask).error(Boom).error(Boom):
        await ended(ask())
        await ended(ask())
    await asyncio.sleep(5.1)
    await ask()
    await ask()
    up.isolate()
    up.isolate()
    up.restore()

    changes = log.of(CircuitChanged)
    assert [(event.before, event.after) for event in changes] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
        ("closed", "isolated"),
        ("isolated", "closed"),
    ]
    assert [event.at - began for event in changes] == pytest.approx([0.0, 5.1, 5.1, 5.1, 5.1])
    assert {event.upstream for event in changes} == {"world"}


@pytest.mark.virtual_time
async def test_a_transition_that_nobody_looked_at_is_told_as_of_when_it_was_due(gate: Gateway, log: Log) -> None:
    breaker = BreakerPolicy(min_calls=1, open_for=5.0, auto_half_open=True, max_half_open=10.0)
    up = gate.upstream("world", policy=replace(QUIET, breaker=breaker))
    await fail_until_open(up)
    began = now()

    await asyncio.sleep(12.0)
    up.snapshot()

    opened, half_open = log.of(CircuitChanged)
    assert opened.after == "open"
    assert (half_open.after, half_open.at - began) == ("half_open", pytest.approx(5.0))


# -- listeners


@pytest.mark.virtual_time
async def test_a_listener_hears_what_it_asked_for(gate: Gateway) -> None:
    everything, all_events, calls, two = Log(), Log(), Log(), Log()
    assert gate.on()(everything) is everything
    gate.on(Event)(all_events)
    gate.on(CallFinished)(calls)
    gate.on(AttemptFailed, CircuitChanged)(two)
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1)))

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    await ended(ask())

    kinds = [CircuitChanged, AttemptFailed, CallFinished]
    assert [type(event) for event in everything] == [type(event) for event in all_events] == kinds
    assert [type(event) for event in calls] == [CallFinished]
    assert [type(event) for event in two] == [CircuitChanged, AttemptFailed]


@pytest.mark.virtual_time
async def test_a_listener_added_twice_hears_once_and_off_it_hears_nothing(gate: Gateway, log: Log) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None: ...

    gate.on()(log)
    await ask()
    gate.off(log)
    gate.off(log)
    await ask()

    assert len(log) == 1


@pytest.mark.virtual_time
async def test_a_method_can_listen_and_stop_listening(gate: Gateway) -> None:
    class Monitor:
        def __init__(self) -> None:
            self.seen: list[Event] = []

        def hear(self, event: Event) -> None:
            self.seen.append(event)

    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None: ...

    monitor = Monitor()
    gate.on()(monitor.hear)
    await ask()
    gate.off(monitor.hear)
    await ask()

    assert len(monitor.seen) == 1


async def hears_later(event: Event) -> None: ...


class LateEar:
    async def __call__(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "listener", [hears_later, LateEar(), 5, None], ids=["async", "an async object", "a number", "nothing"]
)
def test_what_could_not_hear_is_refused_when_it_is_added(gate: Gateway, listener: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.on(CallFinished)(listener)

    assert caught.value.field == "on"
    assert caught.value.remedy


@pytest.mark.virtual_time
async def test_two_listeners_that_are_equal_are_two(gate: Gateway) -> None:
    @dataclass
    class Counter:
        events: int = field(default=0, compare=False)

        def __call__(self, event: Event) -> None:
            self.events += 1

    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None: ...

    one, two = Counter(), Counter()
    gate.on()(one)
    gate.on()(two)
    await ask()
    gate.off(two)
    await ask()

    assert (one.events, two.events) == (2, 1)


@pytest.mark.virtual_time
@pytest.mark.parametrize("error", [KeyError("the listener's"), asyncio.CancelledError("the listener's")], ids=repr)
async def test_a_listener_that_raises_is_logged_and_removed_and_changes_nothing(
    gate: Gateway, log: Log, caplog, error: BaseException
) -> None:
    heard = []  # peers, row 5
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=2)))

    @gate.on()
    def raises(event: Event) -> None:
        heard.append(event)
        raise error

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    errors = [await ended(ask()) for _ in range(3)]

    assert [type(error).__name__ for error in errors] == ["Failed", "Failed", "CircuitOpen"]
    assert len(heard) == 1
    assert len(log) == 2 + 1 + 3
    assert "the listener's" in caplog.text
    assert up.snapshot().breaker.state == "open"


@pytest.mark.parametrize(
    "thing", [lambda event: None, int, "CallFinished", None], ids=["function", "type", "text", "nothing"]
)
def test_what_is_no_kind_of_event_cannot_be_listened_to(gate: Gateway, thing) -> None:
    with pytest.raises(ConfigError):
        gate.on(thing)(lambda event: None)


@pytest.mark.virtual_time
async def test_without_a_listener_no_event_is_made(gate: Gateway, monkeypatch) -> None:
    made = []
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1)))
    for name in ("CallFinished", "AttemptFailed"):
        monkeypatch.setattr(f"gateway.operation.{name}", lambda **facts: made.append(facts))
    monkeypatch.setattr("gateway.upstream.CircuitChanged", lambda **facts: made.append(facts))

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    await ended(ask())

    assert up.snapshot().breaker.state == "open"
    assert made == []


# -- who hears of calls that went plainly well


@pytest.mark.virtual_time
async def test_who_wants_none_of_the_plain_calls_hears_of_all_others(gate: Gateway) -> None:
    ends = {"failed": Boom(), "refused": Refused(), "well": None}
    policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=1))
    up = gate.upstream("world", policy=policy)
    heard = Log()
    gate.on(plain_every=0)(heard)

    @up.operation(idempotent=True)
    async def ask(how: str) -> str:
        await asyncio.sleep(0.1)
        if (error := ends[how]) is not None:
            raise error
        return how

    @up.operation(idempotent=True, fallback=[Static("none")])
    async def answered(how: str) -> str:
        return await ask.__wrapped__(how)

    for how in ends:
        await ended(ask(how))
    await ended(answered("failed"))
    await asyncio.gather(*[ended(ask("well")) for _ in range(3)])  # one at once, one from the queue, one rejected
    leaving = asyncio.create_task(ask("well"))
    await asyncio.sleep(0.05)
    await gone(leaving)

    finished = [str(event.source or event.outcome) for event in heard.of(CallFinished)]
    assert finished == ["failed", "refused", "static", "rejected", "live", "cancelled"]
    assert heard.of(CallFinished)[4].waited == pytest.approx(0.1)
    assert len(heard.of(AttemptFailed)) == 2


@pytest.mark.virtual_time
async def test_a_call_that_took_a_second_try_is_not_plain(gate: Gateway) -> None:
    policy = replace(QUIET, retry=RetryPolicy(attempts=2, wait=wait_none(), budget=None))
    heard = Log()
    gate.on(CallFinished, plain_every=0)(heard)

    @gate.upstream("world", policy=policy).operation(idempotent=True)
    async def ask() -> str:
        return "well"

    with Faults(ask) as faults:
        faults.error(Boom())
        await ask()
    await ask()

    assert [(event.source, event.attempts) for event in heard] == [(Source.LIVE, 2)]


@pytest.mark.virtual_time
async def test_answers_from_memory_and_of_calls_in_flight_are_plain(gate: Gateway) -> None:
    heard, every = Log(), Log()
    gate.on(CallFinished, plain_every=0)(heard)
    gate.on(CallFinished)(every)

    @gate.upstream("world").operation(idempotent=True, fresh_for=60.0, coalesce=True)
    async def ask(film: str) -> str:
        await asyncio.sleep(0.1)
        return film

    await asyncio.gather(ask("Alien"), ask("Alien"))
    await ask("Alien")

    assert not heard
    assert sorted(event.source for event in every) == ["cached", "coalesced", "live"]


@pytest.mark.virtual_time
async def test_one_in_so_many_plain_calls_of_each_operation_is_told_the_first_of_them(gate: Gateway) -> None:
    up, third, fourth = gate.upstream("world"), Log(), Log()
    gate.on(plain_every=3)(third)
    gate.on(CallFinished, plain_every=4)(fourth)

    @up.operation(idempotent=True)
    async def ask() -> None: ...

    @up.operation(idempotent=True)
    async def other() -> None: ...

    told = []
    for number in range(1, 9):
        await ask()
        told.append((number, len(third), len(fourth)))
    await other()

    assert told == [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 2, 1), (5, 2, 2), (6, 2, 2), (7, 3, 2), (8, 3, 2)]
    assert (third[-1].operation, fourth[-1].operation) == ("other", "other")


@pytest.mark.virtual_time
async def test_no_event_is_made_of_a_call_that_nobody_hears_of(gate: Gateway, monkeypatch) -> None:
    made = []
    monkeypatch.setattr("gateway.operation.CallFinished", lambda **facts: made.append(facts))
    gate.on(CallFinished, plain_every=100)(lambda event: None)

    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None: ...

    for _ in range(101):
        await ask()

    assert len(made) == 2


@pytest.mark.parametrize("number", [-1, 0.5, True, "all", None])
def test_so_many_is_a_whole_number(gate: Gateway, number: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.on(CallFinished, plain_every=number)

    assert caught.value.field == "plain_every"


@pytest.mark.virtual_time
async def test_a_listener_may_tune_isolate_and_restore(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1)))

    @gate.on(CircuitChanged)
    def adapt(event: CircuitChanged) -> None:
        if event.after == "open":
            up.tune(bulkhead=BulkheadPolicy(limit=3))
            up.restore()

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise Boom

    errors = [await ended(ask()) for _ in range(3)]

    assert [type(error) for error in errors] == [Failed] * 3
    assert up.snapshot().breaker.state == "closed"
    assert up.snapshot().bulkhead.limit == 3


@pytest.mark.virtual_time
async def test_a_listener_that_isolates_when_probes_begin_lets_no_probe_through(gate: Gateway) -> None:
    sent = []
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1, open_for=1.0)))

    @gate.on(CircuitChanged)
    def watch(event: CircuitChanged) -> None:
        if event.after == "half_open":
            up.isolate()

    @up.operation(idempotent=True)
    async def ask() -> None:
        sent.append(1)

    await fail_until_open(up)
    await asyncio.sleep(1.1)
    error = await ended(ask())

    assert type(error).__name__ == "CircuitOpen"
    assert not sent
    assert up.snapshot().breaker.state == "isolated"
    up.restore()


@pytest.mark.virtual_time
async def test_a_listener_may_take_itself_away(gate: Gateway, log: Log) -> None:
    heard = []

    @gate.on()
    def once(event: Event) -> None:
        heard.append(event)
        gate.off(once)

    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> None: ...

    await ask()
    await ask()

    assert (len(heard), len(log)) == (1, 2)


@pytest.mark.virtual_time
async def test_a_snapshot_is_plain_data_that_can_be_copied_pickled_and_taken_apart(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True, circuit_by=str.upper)
    async def ask(film: str) -> None: ...

    await ask("alien")
    snapshot = gate.snapshot()

    taken_apart = asdict(snapshot)

    assert taken_apart["upstreams"]["world"]["operations"]["ask"]["counts"]["live"] == 1
    assert taken_apart["upstreams"]["world"]["circuits"]["ALIEN"]["state"] == "closed"
    assert pickle.loads(pickle.dumps(snapshot)).upstreams["world"].counts == snapshot.upstreams["world"].counts  # noqa: S301 - our own
    assert deepcopy(snapshot).upstreams["world"].operations == snapshot.upstreams["world"].operations


def test_events_and_snapshots_are_frozen(gate: Gateway) -> None:
    event = CircuitChanged(upstream="world", at=1.0, before="closed", after="open")
    gate.upstream("world")
    snapshot = gate.snapshot()

    with pytest.raises(AttributeError):
        event.after = "closed"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        snapshot.upstreams = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot.upstreams["other"] = snapshot.upstreams["world"]  # type: ignore[index]
    with pytest.raises(TypeError):
        snapshot.upstreams["world"].operations["other"] = None  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        snapshot.upstreams["world"].counts.asked = 5  # type: ignore[misc]


# -- numbers


@pytest.mark.virtual_time
async def test_the_numbers_add_up_at_any_time(gate: Gateway) -> None:  # promise 10
    policy = replace(
        QUIET,
        timeout=TimeoutPolicy(call=2.0, attempt=0.5),
        bulkhead=BulkheadPolicy(limit=2, queue=2, max_wait=0.3),
        retry=RetryPolicy(attempts=2, wait=wait_none()),
    )
    up = gate.upstream("world", policy=policy)
    ends = {"well": 0.1, "boom": Boom, "no": Refused, "slow": 9.0}

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask(how: str) -> str:
        await asyncio.sleep(0.05)
        end = ends[how]
        if not isinstance(end, float):
            raise end
        await asyncio.sleep(end)
        return how

    @up.operation(idempotent=False)
    async def act(how: str) -> str:
        return await ask.__wrapped__(how)

    calls = []
    for number, how in enumerate([*ends] * 6):
        calls.append(asyncio.ensure_future(ended((ask if number % 3 else act)(how))))
        await steps(1 + number % 3)
        if number % 5 == 0:
            calls[-1].cancel()
        if number % 7 == 0:
            await asyncio.sleep(0.2)
        for operation in (ask, act):
            assert operation.snapshot().counts.adds_up
    await asyncio.wait(calls)

    total = up.snapshot().counts
    assert total.in_flight == 0
    assert total.adds_up
    assert total == Counts.total([ask.snapshot().counts, act.snapshot().counts])
    assert min(total.live, total.refused, total.failed, total.unknown, total.rejected, total.cancelled) > 0


@pytest.mark.virtual_time
async def test_latency_is_the_service_time_of_tries_that_went_well(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask(seconds: float) -> None:
        await asyncio.sleep(seconds)

    for hundredths in range(1, 101):
        await ask(hundredths / 100)
    await ended(ask(99.0))

    latency = up.snapshot().latency
    assert latency.count == 100
    assert latency.mean == pytest.approx(0.505)
    assert latency.max == pytest.approx(1.0)
    assert 0.5 <= latency.p50 <= 0.5 * 1.2
    assert 0.9 <= latency.p90 <= 1.0
    assert 0.99 <= latency.p99 <= 1.0
    assert up.snapshot().operations["ask"].latency == latency
    assert up.snapshot().waits.count == 0


@pytest.mark.virtual_time
async def test_counters_survive_a_listener_that_comes_late(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    async def ask() -> None: ...

    await ask()
    log = Log()
    gate.on()(log)
    await ask()

    assert counted(up)["asked"] == 2
    assert len(log) == 1
