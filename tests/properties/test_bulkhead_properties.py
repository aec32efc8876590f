"""Random schedules of arrivals, releases, cancels, timeouts, resizes and rejections, against a simple model.

A schedule acts between two turns of the event loop, so that what it does happens in one tick: the interesting cases are
those in which a place is given to somebody who leaves, or expires, or is sent away, in the same tick. The model below
says in plain lists what has to happen, who gets a place and when; after each step the pool must agree with it.

A step is one action that changes or asks something of a pool in use; turns of the loop are not counted. The seeded
walks alone are at least 100,000 of them.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Task
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import inf
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bulkhead import Bulkhead
from gateway.outcome import BulkheadFull, CircuitOpen, DeadlineExceeded
from gateway.policy import BulkheadPolicy
from gateway.testing import VirtualTimeLoop
from tests.support import timers_of

WALKS = 16
STEPS_A_WALK = 10_000
assert WALKS * STEPS_A_WALK >= 100_000

Standing = Literal["starting", "waiting", "granted", "sent away", "in", "out"]


@dataclass(eq=False)
class Caller:
    """One caller, as the model knows it. `cancelled`: told to leave, and not run since."""

    task: Task[None]
    deadline: float = inf
    gives_up_at: float = inf
    gives_up_as: str = ""
    standing: Standing = "starting"
    cancelled: bool = False
    end: str = ""


@dataclass
class Model:
    """What has to happen, in plain words."""

    limit: float
    queue: float
    max_wait: float
    in_use: int = 0
    abandoned: int = 0
    rejected: int = 0
    peak: int = 0
    waiting: list[Caller] = field(default_factory=list)
    next_turn: list[Caller] = field(default_factory=list)  # who runs in the next turn of the loop, in order

    def take(self) -> None:
        self.in_use += 1
        self.peak = max(self.peak, self.in_use)

    def grant(self) -> None:
        while self.waiting and self.in_use < self.limit:
            self.take()
            self.wake(self.waiting.pop(0), "granted")

    def wake(self, caller: Caller, standing: Standing, end: str = "") -> None:
        caller.standing, caller.end = standing, end
        self.next_turn.append(caller)

    def release(self) -> None:
        self.in_use -= 1
        self.grant()

    def cancel(self, caller: Caller) -> None:
        caller.cancelled = True
        if caller in self.waiting:
            self.waiting.remove(caller)
            self.wake(caller, "sent away")

    def reject_all(self) -> None:
        for caller in self.waiting:
            self.wake(caller, "sent away", "CircuitOpen")
        self.waiting.clear()

    def turn(self, now: float) -> None:
        """One turn of the loop: who was woken runs; then whose time was over when it began, and still waits, goes."""
        runs, self.next_turn = self.next_turn, []
        due = sorted((caller for caller in self.waiting if caller.gives_up_at <= now), key=lambda one: one.gives_up_at)
        for caller in runs:
            self.run(caller, now)
        for caller in due:
            if caller in self.waiting:
                self.waiting.remove(caller)
                self.rejected += 1
                self.wake(caller, "sent away", caller.gives_up_as)

    def run(self, caller: Caller, now: float) -> None:
        if caller.cancelled:
            caller.end = "cancelled"
            if caller.standing == "granted":
                self.release()
            caller.standing = "out"
        elif caller.standing == "starting":
            self.ask(caller, now)
        elif caller.standing == "granted":
            caller.standing, caller.end = "in", "in"
        else:
            caller.standing = "out"

    def ask(self, caller: Caller, now: float) -> None:
        if self.in_use < self.limit:
            self.take()
            caller.standing, caller.end = "in", "in"
        elif caller.deadline <= now or len(self.waiting) >= self.queue:
            self.rejected += 1
            caller.standing = "out"
            caller.end = "DeadlineExceeded" if caller.deadline <= now else "queue_full"
        else:
            self.waiting.append(caller)
            caller.standing = "waiting"
            late = caller.deadline < now + self.max_wait
            caller.gives_up_at = caller.deadline if late else now + self.max_wait
            caller.gives_up_as = "DeadlineExceeded" if late else "max_wait"


class Walk:
    """A pool and its model, on a loop that is turned by hand."""

    def __init__(self, loop: VirtualTimeLoop, limit: float, queue: float, max_wait: float) -> None:
        self.loop = loop
        self.model = Model(limit, queue, max_wait)
        self.bulkhead = Bulkhead(BulkheadPolicy(limit=limit, queue=queue, max_wait=max_wait))
        self.callers: list[Caller] = []
        self.inside: list[Caller | None] = []  # who holds a place; None: somebody that did not need to wait
        self.steps = 0
        self.seen: Counter[str] = Counter()

    # -- actions; each tells whether there was something to do

    def arrive(self, patience: float) -> bool:
        deadline = self.loop.time() + patience
        task = self.loop.create_task(self.bulkhead.acquire(deadline))
        caller = Caller(task, deadline)
        self.callers.append(caller)
        self.model.next_turn.append(caller)
        return True

    def take_inline(self) -> bool:
        free = self.model.in_use < self.model.limit
        assert self.bulkhead.acquire_nowait() == free
        if free:
            self.model.take()
            self.inside.append(None)
        return True

    def release(self, which: int) -> bool:
        if not self.inside:
            return False
        self.inside.pop(which % len(self.inside))
        self.bulkhead.release()
        self.model.release()
        return True

    def leave_work_behind(self) -> bool:
        """A caller leaves, and its work cannot be stopped."""
        if not self.inside:
            return False
        self.inside.pop()
        self.bulkhead.keep()
        self.bulkhead.release()
        self.model.abandoned += 1
        return True

    def end_work(self) -> bool:
        if not self.model.abandoned:
            return False
        self.bulkhead.work_ended()
        self.model.abandoned -= 1
        self.model.release()
        return True

    def cancel(self, which: int) -> bool:
        leaving = [caller for caller in self.callers if not caller.cancelled]
        if not leaving:
            return False
        caller = leaving[which % len(leaving)]
        self.seen[f"cancelled while {caller.standing}"] += 1
        caller.task.cancel()
        self.model.cancel(caller)
        return True

    def resize(self, limit: float, queue: float, max_wait: float) -> bool:
        self.bulkhead.policy = BulkheadPolicy(limit=limit, queue=queue, max_wait=max_wait)
        self.model.limit, self.model.queue, self.model.max_wait = limit, queue, max_wait
        self.model.grant()
        return True

    def send_away(self) -> bool:
        somebody = bool(self.model.waiting)
        self.bulkhead.reject_waiters(lambda: CircuitOpen("open"))
        self.model.reject_all()
        return somebody

    def turn(self, seconds: float = 0.0) -> bool:
        """Let the clock move, then the loop turn once."""
        if seconds:
            self.loop.advance(seconds)
        self.loop.stop()
        self.loop.run_forever()
        self.model.turn(self.loop.time())
        self.inside += [caller for caller in self.callers if caller.standing == "in"]
        for caller in [caller for caller in self.callers if caller.standing in {"in", "out"}]:
            self.callers.remove(caller)
            self.seen[caller.end] += 1
            assert ending(caller.task) == caller.end
        return False

    # -- what must hold

    def step(self, action: Callable[[], bool]) -> None:
        """One step, and the promises after it."""
        bulkhead, before = self.bulkhead, self.bulkhead.in_use
        in_use = bool(bulkhead.in_use or self.callers)
        acted = action()
        self.steps += in_use and acted
        if bulkhead.in_use > bulkhead.policy.limit:
            assert bulkhead.in_use <= before, "promise 1: above the limit it only falls"
        self.check()

    def check(self) -> None:
        bulkhead, model = self.bulkhead, self.model
        assert not (bulkhead.waiting and bulkhead.in_use < bulkhead.policy.limit), "nobody waits while a place is free"
        assert (bulkhead.in_use, bulkhead.waiting) == (model.in_use, len(model.waiting))
        assert (bulkhead.abandoned, bulkhead.rejected) == (model.abandoned, model.rejected)
        assert bulkhead.peak == model.peak
        about_to_leave = sum(caller.cancelled for caller in self.callers)
        assert len(bulkhead._waiters) <= bulkhead.waiting + about_to_leave, "nothing is kept of those who left"

    def finish(self) -> None:
        """Everybody goes home: nothing is left."""
        for caller in self.callers:
            caller.task.cancel()
            self.model.cancel(caller)
        while self.callers:
            self.turn()
        while self.inside:
            self.release(0)
        while self.model.abandoned:
            self.end_work()
        self.check()
        assert (self.bulkhead.in_use, self.bulkhead.waiting, self.bulkhead.abandoned) == (0, 0, 0)
        assert not self.bulkhead._waiters
        assert not list(timers_of(self.loop))
        assert not asyncio.all_tasks(self.loop)


def ending(task: Task[None]) -> str:
    """How it really ended."""
    assert task.done(), "the model says that it has ended"
    try:
        task.result()
    except CancelledError:
        return "cancelled"
    except BulkheadFull as full:
        return full.reason
    except (CircuitOpen, DeadlineExceeded) as rejection:
        return type(rejection).__name__
    return "in"


@contextmanager
def loop_turned_by_hand() -> Iterator[VirtualTimeLoop]:
    loop = VirtualTimeLoop()
    try:
        yield loop
    finally:
        for task in asyncio.all_tasks(loop):  # after a failure, which is enough to read about
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture
def hand_turned() -> Iterator[VirtualTimeLoop]:
    with loop_turned_by_hand() as loop:
        yield loop


LIMITS = (1, 1, 2, 3, 5, 8, inf)
QUEUES = (0, 1, 2, 4, 8, inf)
PATIENCES = (0.0, 0.5, 1.0, 3.0, inf)
MAX_WAITS = (0.001, 0.5, 1.0, 3.0, inf)
"""Not 0: who comes then and must not wait at all is sent away in this turn of the loop, or in the next one."""


@pytest.mark.parametrize("seed", range(WALKS))
def test_a_pool_does_what_the_model_says_over_a_hundred_thousand_steps(seed: int, hand_turned: VirtualTimeLoop) -> None:
    random = Random(seed)
    walk = Walk(hand_turned, 2, 4, 3.0)
    actions = {
        lambda: walk.arrive(random.choice(PATIENCES) * random.random() if random.random() < 0.3 else inf): 40,
        walk.take_inline: 4,
        lambda: walk.release(random.randrange(1000)): 30,
        lambda: walk.cancel(random.randrange(1000)): 20,
        lambda: walk.resize(random.choice(LIMITS[:-1]), random.choice(QUEUES), random.choice(MAX_WAITS)): 6,
        walk.send_away: 2,
        walk.leave_work_behind: 3,
        walk.end_work: 4,
    }

    while walk.steps < STEPS_A_WALK:
        for action in random.choices(list(actions), list(actions.values()), k=random.randrange(1, 6)):
            walk.step(action)
        walk.step(lambda: walk.turn(random.choice((0.0, 0.0, 0.0, random.random(), 2.0))))
    walk.finish()

    assert walk.steps >= STEPS_A_WALK
    often = ("in", "cancelled", "queue_full", "max_wait", "DeadlineExceeded", "CircuitOpen")
    assert all(walk.seen[end] >= 20 for end in often), walk.seen
    assert walk.seen["cancelled while granted"] >= 20


numbers = st.integers(0, 7)
action = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from(PATIENCES)),
    st.tuples(st.sampled_from(["release", "cancel"]), numbers),
    st.tuples(st.sampled_from(["take_inline", "send_away", "leave_work_behind", "end_work"])),
    st.tuples(st.just("resize"), st.sampled_from(LIMITS), st.sampled_from(QUEUES), st.sampled_from(MAX_WAITS)),
    st.tuples(st.just("turn"), st.sampled_from([0.0, 0.0, 0.7, 2.0])),
)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(schedule=st.lists(action, min_size=5, max_size=40))
def test_any_short_schedule_does_what_the_model_says(schedule: list[tuple[object, ...]]) -> None:
    """The same in small, so that what goes wrong is shrunk to the least schedule that shows it."""
    with loop_turned_by_hand() as loop:
        walk = Walk(loop, 1, 2, 1.0)

        for name, *arguments in schedule:
            walk.step(partial(getattr(walk, str(name)), *arguments))

        walk.finish()
