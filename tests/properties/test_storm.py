"""A storm: callers come and leave at random, upstreams fail, hang and resist, an operator turns every knob.

Whatever happens, promises 1, 2, 3, 4, 5, 7 and 10 of the design hold, at every step and at the end. Virtual time; then
threads, in real time. A storm is known by its seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from tenacity import wait_none, wait_random

from gateway import (
    Alternate,
    Answer,
    AttemptFailed,
    BreakerPolicy,
    BulkheadPolicy,
    CallFinished,
    CircuitChanged,
    Deadline,
    Event,
    Gateway,
    LastGood,
    NotSent,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Upstream,
)
from gateway.states import HalfOpen
from gateway.testing import VirtualTimeLoop
from tests.support import Boom, assert_all_gone, ended

SEEDS = 96
CHUNKS = 8
CALLERS = 80
CALL = 0.5
"""Seconds a call of the storm may take, whatever happens to it."""
MAX_AGE = 1.0
ASKED_BY: contextvars.ContextVar[int] = contextvars.ContextVar("asked_by", default=-1)


class Places:
    """Promise 1, as seen from outside: who runs, and how many that may be after each resize."""

    def __init__(self, up: Upstream) -> None:
        self.up = up
        self.running = 0
        self.allowed: float = up.policy.bulkhead.limit

    def check(self) -> None:
        pool = self.up.bulkhead.snapshot()
        self.allowed = max(pool.limit, min(self.allowed, pool.in_use))
        assert pool.in_use <= self.allowed, f"{pool.in_use} of {pool.limit} places in use"
        assert self.running <= pool.in_use, f"{self.running} run in {pool.in_use} places"
        assert not (pool.waiting and pool.in_use < pool.limit), f"{pool.waiting} wait while a place is free"
        state = self.up.breaker.state
        if isinstance(state, HalfOpen):
            assert 0 <= state.probes_left <= state.window.size
            assert state.probes_left + state.window.calls <= state.window.size

    def resized(self) -> None:
        pool = self.up.bulkhead.snapshot()
        self.allowed = max(pool.limit, pool.in_use)


class Storm:
    """One storm. `resisting`: some functions swallow their cancel, so that some calls end late."""

    def __init__(self, seed: int, *, resisting: bool) -> None:
        self.random = Random(seed)
        self.resisting = resisting
        self.gate = Gateway()
        self.events: list[Event] = []
        self.refreshes = 0  # tries that no caller waited for
        self.tries: dict[int, list[BaseException | None]] = {}
        self.deepest = 0.0
        self.world = self.gate.upstream("world", policy=self.policy())
        self.other = self.gate.upstream("other", policy=self.policy())
        self.places = {up.name: Places(up) for up in self.gate}
        self.gate.on()(self.hear)
        self.register()

    def policy(self) -> Policy:
        pick = self.random.choice
        return Policy(
            timeout=TimeoutPolicy(call=CALL, attempt=pick([0.1, 0.2, 0.5])),
            retry=RetryPolicy(attempts=pick([1, 2, 3]), wait=pick([wait_none(), wait_random(0, 0.05)]), min_try=0.01),
            bulkhead=BulkheadPolicy(limit=pick([1, 2, 4, 8]), queue=pick([0, 3, 6]), max_wait=pick([0.02, 0.1, 0.5])),
            breaker=BreakerPolicy(
                min_calls=pick([2, 8]),
                window_calls=pick([None, 10]),
                open_for=pick([0.05, 0.3]),
                probes=pick([1, 3]),
                max_half_open=pick([0.2, 1.0]),
                enforce=pick([True, True, True, False]),
            ),
            fallback_timeout=0.05,
            fallback_limit=pick([1, 4]),
        )

    def hear(self, event: Event) -> None:
        self.events.append(event)

    def register(self) -> None:
        world, other = self.world, self.other

        @other.operation(idempotent=True, fallback=[LastGood(max_age=MAX_AGE)])
        async def mirror(number: int, user: str) -> tuple[int, str]:
            return await self.work(other, number, user)

        @world.operation(idempotent=True, fallback=[LastGood(max_age=MAX_AGE), Alternate(mirror)])
        async def read(number: int, user: str) -> tuple[int, str]:
            return await self.work(world, number, user)

        @read.fallback
        async def plan_b(error: Exception, number: int, user: str) -> tuple[int, str]:
            await asyncio.sleep(self.random.choice([0, 0.01, 1.0]))
            if self.random.random() < 0.3:
                raise Boom
            return number, user

        @world.operation(idempotent=False, fallback=[Static(("nothing happened", ""))])
        async def write(number: int, user: str) -> tuple[int, str]:
            return await self.work(world, number, user)

        @world.operation
        async def nested(number: int, user: str) -> tuple[int, str]:
            parts = await asyncio.gather(mirror(number, user), read(number, user), return_exceptions=True)
            for part in parts:
                if isinstance(part, BaseException):
                    raise part
            assert parts == [(number, user)] * 2
            return await mirror(number, user)

        @world.operation(
            idempotent=True,
            fallback=[LastGood(max_age=MAX_AGE)],
            fresh_for=self.random.choice([0.0, 0.02, 0.2]),
            revalidate=self.random.choice([None, "background"]),
            coalesce=True,
        )
        async def shared(number: int, user: str) -> list[object]:
            self.refreshes += "refresh" in asyncio.current_task().get_name()  # type: ignore[union-attr]
            return list(await self.work(world, number, user))

        self.operations = [read, read, shared, shared, write, nested]

    async def work(self, up: Upstream, number: int, user: str) -> tuple[int, str]:
        places = self.places[up.name]
        places.running += 1
        places.check()
        error: BaseException | None = None
        try:
            await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.05, 0.15, 5]))
            end = self.random.random()
            if end < 0.5:
                raise Boom if end < 0.3 else Refused if end < 0.4 else NotSent
            return number, user
        except asyncio.CancelledError as cancel:
            error = cancel
            if self.resisting and self.random.random() < 0.3:
                await asyncio.sleep(0.03)
                if self.random.random() < 0.5:
                    return number, user
                raise Boom from None
            raise
        except Exception as raised:
            error = raised
            raise
        finally:
            places.running -= 1
            self.tries.setdefault(ASKED_BY.get(), []).append(error)

    async def caller(self, number: int) -> None:
        loop, random = asyncio.get_running_loop(), self.random
        operation, user = random.choice(self.operations), random.choice(["ada", "bob"])
        asked = random.randrange(4), user
        patience = random.choice([None, None, 0.005, 0.2])
        began = loop.time()
        ASKED_BY.set(number)
        try:
            if patience is None:
                answer = await operation.ask(*asked)
            else:
                with Deadline.after(patience):
                    answer = await operation.ask(*asked)
        except Exception as error:
            answer = error
        finally:
            self.deepest = max(self.deepest, loop.time() - began - (CALL if patience is None else patience))
            self.check_tries(operation.name, number)
        if isinstance(answer, Answer):
            if isinstance(answer.value, list):
                assert answer.value == list(asked)
                answer.value.append("mine to change")
                assert answer.age <= MAX_AGE
                assert answer.degraded == (answer.source is Source.LAST_GOOD)
                return
            assert answer.value == asked or (answer.source is Source.STATIC and answer.error.outcome != "unknown")
            assert answer.source is not Source.LAST_GOOD or answer.age <= MAX_AGE
            assert answer.degraded == (answer.source is not Source.LIVE)

    def check_tries(self, operation: str, number: int) -> None:
        """Promise 5: what must not be repeated was not, unless nothing had been sent."""
        tries = self.tries.pop(number, [])
        if operation == "write":
            assert all(isinstance(error, NotSent) for error in tries[:-1]), tries

    async def blow(self) -> None:
        random, loop = self.random, asyncio.get_running_loop()
        tasks, cancels = [], []
        for number in range(CALLERS):
            task = loop.create_task(self.caller(number))
            tasks.append(task)
            if random.random() < 0.3:
                cancels.append(loop.call_later(random.choice([0, 0, 0.001, 0.1, 0.2, 0.3]), task.cancel))
            if random.random() < 0.1:
                self.operate(random.choice([self.world, self.other]))
            if random.random() < 0.5:
                await asyncio.sleep(random.choice([0, 0, 0.001, 0.02, 0.1]))
            self.check()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        for cancel in cancels:
            cancel.cancel()
        await asyncio.sleep(0)
        for up in self.gate:
            await asyncio.gather(*up.refreshing.values())
        await asyncio.sleep(0)  # one that was over already has not told its upstream yet
        for end in ends:
            if isinstance(end, Exception):
                raise end
        self.check()

    def operate(self, up: Upstream) -> None:
        turn = self.random.randrange(6)
        if turn == 0:
            up.isolate()
        elif turn == 1:
            up.restore()
        elif turn == 2:
            up.tune(bulkhead=self.policy().bulkhead)
            self.places[up.name].resized()
        elif turn == 3:
            up.tune(timeout=self.policy().timeout, retry=self.policy().retry)
        elif turn == 4:
            up.tune(breaker=self.policy().breaker)
        else:
            up.policy = self.policy()
            self.places[up.name].resized()

    def check(self) -> None:
        for up in self.gate:
            self.places[up.name].check()
            for operation in up:
                assert operation.snapshot().counts.adds_up

    async def calm(self) -> None:
        """Promise 3: no circuit sticks. After the storm, an upstream that is well is asked again."""
        for up in self.gate:
            if up.snapshot().breaker.state == "isolated":
                up.restore()
        self.random.random = lambda: 0.9  # type: ignore[method-assign]  # all go well from now on
        self.random.choice = lambda options: options[0]  # type: ignore[method-assign,assignment]
        for _ in range(5):
            await asyncio.sleep(0.4)
            for _ in range(10):
                await ended(self.operations[0].ask(1, "ada"))
                await ended(self.gate["other"]["mirror"].ask(1, "ada"))
        for up in self.gate:
            assert up.snapshot().breaker.state == "closed"

    async def run(self) -> None:
        async with self.gate:
            await self.blow()
            assert_all_gone(self.gate)
            assert self.resisting or self.deepest <= 1e-6, f"{self.deepest} s late"
            self.check_events()
            await self.calm()
        assert_all_gone(self.gate)

    def check_events(self) -> None:
        finished = [event for event in self.events if isinstance(event, CallFinished)]
        counts = [up.snapshot().counts for up in self.gate]
        assert len(finished) == sum(each.asked for each in counts)
        told = Counter(str(event.source or event.outcome) for event in finished)
        for end in (*Source, Outcome.REFUSED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.REJECTED, Outcome.CANCELLED):
            assert told[str(end)] == sum(getattr(each, end) for each in counts), end
        assert sum(event.attempts for event in finished) == sum(each.attempts for each in counts) - self.refreshes
        failed = sum(isinstance(event, AttemptFailed) for event in self.events)
        assert failed <= sum(each.attempts for each in counts)
        for up in self.gate:
            changes = [e for e in self.events if isinstance(e, CircuitChanged) and e.upstream == up.name]
            for before, after in pairwise(changes):
                assert before.after == after.before
                assert before.at <= after.at + 1e-6


def in_virtual_time(storm: Any) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(storm.run())
        left = asyncio.all_tasks(runner.get_loop())
    assert not left


@pytest.mark.parametrize("resisting", [False, True], ids=["obedient", "resisting"])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_promises_hold_in_any_storm(chunk: int, resisting: bool) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        try:
            in_virtual_time(Storm(seed, resisting=resisting))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_storms_go_everywhere() -> None:
    total: Counter[str] = Counter()
    changes: Counter[tuple[str, str]] = Counter()
    for seed in range(24):
        storm = Storm(seed, resisting=bool(seed % 2))
        in_virtual_time(storm)
        for up in storm.gate:
            counts = up.snapshot().counts
            total.update({name: getattr(counts, name) for name in counts.__slots__})
        changes.update((e.before, e.after) for e in storm.events if isinstance(e, CircuitChanged))

    unheard = {name for name, number in total.items() if not number} - {"in_flight"}
    assert not unheard
    states = (
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
        ("half_open", "open"),
        ("open", "isolated"),
    )
    assert all(changes[change] for change in states)


class Leaving(Storm):
    """Nobody fails, nobody is late: callers only leave. So no circuit may learn anything bad.

    (Not of calls around others: what those are told, a full pool for example, is an ordinary failure to them.)
    """

    def register(self) -> None:
        super().register()
        self.operations.pop()

    def policy(self) -> Policy:
        return replace(super().policy(), timeout=TimeoutPolicy(call=60.0, attempt=30.0), fallback_limit=100)

    async def work(self, up: Upstream, number: int, user: str) -> tuple[int, str]:
        places = self.places[up.name]
        places.running += 1
        try:
            await asyncio.sleep(self.random.choice([0, 0.001, 0.05, 0.5]))
            return number, user
        except asyncio.CancelledError:
            if self.random.random() < 0.3:
                raise ConnectionError("closed under us") from None
            raise
        finally:
            places.running -= 1

    async def run(self) -> None:
        async with self.gate:
            await self.blow()
            assert_all_gone(self.gate)
            for event in self.events:
                if isinstance(event, CircuitChanged):
                    assert "isolated" in {event.before, event.after}, event
            for up in self.gate:
                assert up.snapshot().breaker.failures == 0


@pytest.mark.parametrize("chunk", range(4))
def test_callers_who_leave_teach_no_circuit_anything(chunk: int) -> None:  # promises 2 and 6
    for seed in range(chunk, 40, 4):
        try:
            in_virtual_time(Leaving(seed, resisting=False))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


# -- threads


class ThreadStorm:
    """Plain functions, real threads, real time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.lock = threading.Lock()
        self.running = self.most = 0
        self.user: contextvars.ContextVar[int] = contextvars.ContextVar("user")
        self.gate = Gateway()
        timeout = TimeoutPolicy(call=0.2, attempt=0.02)
        bulkhead = BulkheadPolicy(limit=4, queue=1000, max_wait=0.15)
        policy = Policy(timeout=timeout, retry=RetryPolicy(attempts=2), bulkhead=bulkhead)
        self.up = self.gate.upstream("storm", policy=replace(policy, breaker=BreakerPolicy(min_calls=1_000_000)))
        self.ask = self.up.operation(name="ask", idempotent=True)(self.work)

    def work(self, seconds: float, number: int) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(seconds)
        with self.lock:
            self.running -= 1
        assert self.user.get() == number
        return number

    async def caller(self, number: int) -> None:
        self.user.set(number)
        try:
            value = await self.ask(self.random.choice([0.0, 0.0, 0.001, 0.01, 0.05]), number)
        except Exception as error:
            if isinstance(error.__cause__, AssertionError):
                raise
        else:
            assert value == number

    async def run(self, limits: list[int]) -> None:
        async with self.gate:
            tasks, cancels = [], []
            for number in range(300):
                task = asyncio.ensure_future(self.caller(number))
                tasks.append(task)
                if self.random.random() < 0.3:
                    seconds = self.random.choice([0, 0.001, 0.01, 0.03])
                    cancels.append(asyncio.get_running_loop().call_later(seconds, task.cancel))
                if number % 50 == 49:
                    limit = limits[number // 50 % len(limits)]
                    self.up.tune(bulkhead=BulkheadPolicy(limit=limit, queue=1000, max_wait=0.15))
                if self.random.random() < 0.3:
                    await asyncio.sleep(0.001)
            for end in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(end, Exception):
                    raise end
            for cancel in cancels:
                cancel.cancel()
            while self.up.snapshot().bulkhead.abandoned:
                await asyncio.sleep(0.001)
            assert_all_gone(self.gate)
            assert self.up.snapshot().bulkhead.in_use == 0


@pytest.mark.parametrize("seed", range(3))
def test_threads_stay_within_their_pool_in_any_storm(seed: int) -> None:
    storm = ThreadStorm(seed)

    asyncio.run(storm.run([4]))

    assert storm.most <= 4
    assert storm.up.snapshot().counts.live > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_pool_of_threads_that_is_resized_stays_within_the_largest(seed: int) -> None:
    storm = ThreadStorm(seed)

    asyncio.run(storm.run([8, 1, 2, 6]))

    assert storm.most <= 8
    assert storm.running == 0
