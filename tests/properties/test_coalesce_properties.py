"""Single flight under random schedules, held to a model that is read in a minute.

Callers come, have so much time, and leave or do not; the upstream takes its time and answers, fails or refuses. The
model tells of each caller how and when his call ends, and of which answer; the engine must agree on all of it. No two
calls for the same run at once but where the bound of followers says so; no value crosses users; none is shared.
"""

from __future__ import annotations

import asyncio
import heapq
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any, Literal

import pytest

from gateway import BulkheadPolicy, Deadline, Failed, FailedTimeout, Gateway, Policy, Refused, TimeoutPolicy
from gateway.testing import VirtualTimeLoop
from tests.support import NEVER_OPENS, ONE_TRY, Boom, assert_all_gone

SEEDS = 240
CHUNKS = 8
USER: ContextVar[str] = ContextVar("user")
POLICY = Policy(
    timeout=TimeoutPolicy(call=inf, attempt=inf),
    retry=ONE_TRY,
    breaker=NEVER_OPENS,
    bulkhead=BulkheadPolicy(limit=1000, queue=0),
)
Ending = Literal["answers", "fails", "refuses"]
Key = tuple[str, str]


@dataclass
class Caller:
    """Seconds: when he comes, until when he wants it, when he leaves."""

    name: int
    key: Key
    comes: float
    until: float
    leaves: float


@dataclass
class Schedule:
    """`sends`: of each call in the order they are sent, how long it takes and how it ends."""

    callers: list[Caller]
    sends: list[tuple[float, Ending]]
    most_followers: int


def a_schedule(seed: int) -> Schedule:
    random = Random(seed)
    patient, loyal = random.choice([0.3, 1.0]), random.choice([0.3, 1.0])
    callers = []
    for name in range(random.choice([3, 10, 30])):
        comes = random.random() * random.choice([0.001, 1.0, 5.0])
        until = inf if random.random() < patient else comes + random.random() * 2.0
        leaves = inf if random.random() < loyal else comes + random.random() * 2.0
        key = random.choice(["alien", "alien", "brazil"]), random.choice(["ada", "bob"])
        callers.append(Caller(name, key, comes, until, leaves))
    endings: list[Ending] = random.choice([["answers"], ["answers", "fails", "refuses"], ["fails", "answers"]])
    sends = [(random.random() * random.choice([0.1, 1.0, 3.0]), random.choice(endings)) for _ in range(len(callers))]
    return Schedule(callers, sends, random.choice([inf, inf, 3, 1]))  # type: ignore[arg-type]


End = tuple[str, float, int | None]
"""How a call ended, when, and of which send it has its answer or its failure."""


@dataclass
class Model:
    """One flight for each key: who leads, since which send, and who follows, in order."""

    schedule: Schedule
    sent: int = 0
    ends: dict[int, End] = field(default_factory=dict)
    leads: dict[Key, tuple[Caller, int]] = field(default_factory=dict)
    follow: dict[Key, list[Caller]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.todo: list[tuple[float, int, str, Any]] = []
        for caller in self.schedule.callers:
            self.at(caller.comes, "comes", caller)

    def at(self, when: float, what: str, about: Any) -> None:
        if when < inf:
            heapq.heappush(self.todo, (when, len(self.todo) + 1_000 * self.sent, what, about))

    def run(self) -> dict[int, End]:
        while self.todo:
            now, _, what, about = heapq.heappop(self.todo)
            getattr(self, what)(now, about)
        return self.ends

    def comes(self, now: float, caller: Caller) -> None:
        key = caller.key
        followers = self.follow.setdefault(key, [])
        if key not in self.leads:
            self.leads[key] = caller, self.send(now, caller)
        elif len(followers) >= self.schedule.most_followers:
            self.send(now, caller)
        else:
            followers.append(caller)
        self.at(caller.until, "too_late", caller)
        self.at(caller.leaves, "gone", caller)

    def send(self, now: float, caller: Caller) -> int:
        number = self.sent
        self.sent += 1
        self.at(now + self.schedule.sends[number][0], "over", (caller, number))
        return number

    def over(self, now: float, about: tuple[Caller, int]) -> None:
        caller, number = about
        if caller.name in self.ends:
            return
        ending = self.schedule.sends[number][1]
        self.ends[caller.name] = "live" if ending == "answers" else ending, now, number
        if self.leads.get(caller.key) == (caller, number):
            for follower in self.follow.pop(caller.key):
                self.ends[follower.name] = "coalesced" if ending == "answers" else ending, now, number
            del self.leads[caller.key]

    def too_late(self, now: float, caller: Caller) -> None:
        self.leave(now, caller, "too late")

    def gone(self, now: float, caller: Caller) -> None:
        self.leave(now, caller, "gone")

    def leave(self, now: float, caller: Caller, how: str) -> None:
        if caller.name in self.ends:
            return
        self.ends[caller.name] = how, now, None
        followers = self.follow.get(caller.key, [])
        if caller in followers:
            followers.remove(caller)
        elif self.leads.get(caller.key, (None, 0))[0] is caller:
            del self.leads[caller.key]
            best = max(followers, key=lambda one: one.until, default=None)  # of equals the first
            if best is not None and best.until - now >= POLICY.retry.min_try:
                followers.remove(best)
                self.leads[caller.key] = best, self.send(now, best)
                return
            for follower in self.follow.pop(caller.key, []):
                self.ends[follower.name] = "too late", now, None


class Play:
    """The same schedule, by the engine."""

    def __init__(self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gateway.coalesce.MOST_FOLLOWERS", schedule.most_followers)
        self.schedule = schedule
        self.gate = Gateway()
        self.sent = 0
        self.running: dict[Key, int] = {}
        self.ends: dict[int, End] = {}
        self.values: list[list[Any]] = []
        up = self.gate.upstream("world", policy=POLICY)
        self.operation: Any = up.operation(name="ask", idempotent=True, coalesce=True, identity=USER.get)(self.answer)
        self.up = up

    async def answer(self, movie: str) -> list[Any]:
        key = movie, USER.get()
        number = self.sent
        self.sent += 1
        self.running[key] = self.running.get(key, 0) + 1
        if self.schedule.most_followers == inf:
            assert self.running[key] == 1, "two calls for the same at once"
        try:
            took, ending = self.schedule.sends[number]
            await asyncio.sleep(took)
        finally:
            self.running[key] -= 1
        if ending != "answers":
            raise {"fails": Boom, "refuses": Refused}[ending](number)
        return [movie, USER.get(), number]

    async def caller(self, caller: Caller, began: float) -> None:
        loop = asyncio.get_running_loop()
        movie, user = caller.key
        USER.set(user)
        await asyncio.sleep(began + caller.comes - loop.time())
        how, number = "gone", None
        try:
            with Deadline.after(began + caller.until - loop.time()):
                answer = await self.operation.ask(movie)
            how, number = str(answer.source), answer.value[2]
            assert answer.value[:2] == [movie, user], "an answer to another's question"
            assert len(answer.value) == 3, "changed by another"
            answer.value.append(caller.name)
            self.values.append(answer.value)
        except FailedTimeout:
            how = "too late"
        except Refused as refused:
            how, number = "refuses", refused.args[0]
        except Failed as failed:
            how, number = "fails", failed.__cause__.args[0]  # type: ignore[union-attr]
        finally:
            self.ends[caller.name] = how, loop.time() - began, number

    async def run(self) -> dict[int, End]:
        loop = asyncio.get_running_loop()
        async with self.gate:
            began = loop.time()
            tasks = [loop.create_task(self.caller(caller, began)) for caller in self.schedule.callers]
            leaving = [
                loop.call_at(began + caller.leaves, task.cancel)
                for caller, task in zip(self.schedule.callers, tasks, strict=True)
                if caller.leaves < inf
            ]
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            for timer in leaving:
                timer.cancel()
            for end in ends:
                if isinstance(end, Exception):
                    raise end
            assert_all_gone(self.gate)
        return self.ends


def agree(seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[int, End]:
    schedule = a_schedule(seed)
    model, play = Model(schedule), Play(schedule, monkeypatch)
    expected = model.run()
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        ends = runner.run(play.run())

    assert {name: (how, number) for name, (how, _, number) in ends.items()} == {
        name: (how, number) for name, (how, _, number) in expected.items()
    }
    assert [ends[name][1] for name in sorted(ends)] == pytest.approx(
        [expected[name][1] for name in sorted(ends)], abs=1e-5
    )
    assert play.sent == model.sent
    assert len({id(value) for value in play.values}) == len(play.values)
    counts = play.up.snapshot().counts
    assert counts.adds_up
    assert (counts.asked, counts.attempts) == (len(schedule.callers), model.sent)
    leavers = sum(how in {"gone", "too late"} for how, _, _ in ends.values())
    if schedule.most_followers == inf:
        assert model.sent <= leavers + len({number for _, _, number in ends.values() if number is not None})
    return ends


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_caller_fares_as_in_the_model(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        try:
            agree(seed, monkeypatch)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_schedules_go_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    for seed in range(40):
        for how, _, _ in agree(seed, monkeypatch).values():
            seen[how] = seen.get(how, 0) + 1

    assert seen.keys() == {"live", "coalesced", "fails", "refuses", "too late", "gone"}
    assert min(seen.values()) > 20
