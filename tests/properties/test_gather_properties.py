"""Random schedules of parts: whoever fails, hangs, resists or leaves, nothing runs on and no error is lost."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, create_task, sleep
from collections.abc import Awaitable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import pytest

from gateway import Answer, Deadline, Source, Unknown, UnknownTimeout, gather
from gateway.context import AMBIENT
from tests.support import Boom, now, steps

SEEDS = range(400)
HOW = ["value", "answer", "error", "at once", "hang", "resist", "resist and give", "resist and raise", "gives up"]


class Exit(BaseException):
    """What ends programs."""


@dataclass
class Plan:
    """What was planned, and what the parts saw of it."""

    random: Random
    raised: dict[str, BaseException] = field(default_factory=dict)
    gave: dict[str, Any] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    gave_up: set[str] = field(default_factory=set)

    async def part(self, name: str, how: str) -> Any:
        self.running.add(name)
        try:
            return await self._part(name, how)
        finally:
            self.running.remove(name)

    async def _part(self, name: str, how: str) -> Any:
        random = self.random
        if how == "at once":
            raise self._error(name, Boom(name))
        if how in {"value", "answer", "error", "gives up", "exit"}:
            await self._take_time(random)
            if how == "error":
                raise self._error(name, Boom(name))
            if how == "exit":
                raise self._error(name, Exit(name))
            if how == "gives up":
                self.gave_up.add(name)
                raise CancelledError(name)
            self.gave[name] = Answer(name, Source.CACHED) if how == "answer" else name
            return self.gave[name]
        try:
            await sleep(1000 if random.random() < 0.7 else random.random())
        except CancelledError:
            if how != "hang":
                await steps(random.randrange(6))
            if how == "resist and raise":
                raise self._error(name, Boom(name)) from None
            if how != "resist and give":
                raise
        self.gave[name] = f"late {name}"
        return self.gave[name]

    def _error(self, name: str, error: BaseException) -> BaseException:
        self.raised[name] = error
        return error

    @staticmethod
    async def _take_time(random: Random) -> None:
        if random.random() < 0.5:
            await steps(random.randrange(4))
        else:
            await sleep(random.choice([0.1, 0.2, 0.3, random.random()]))

    def parts(self, prefix: str) -> dict[str, Awaitable[Any]]:
        parts: dict[str, Awaitable[Any]] = {}
        bad = self.random.choice([0.1, 0.5, 1.0])
        for number in range(self.random.randrange(5)):
            name = f"{prefix}{number}"
            how = self.random.choice(HOW) if self.random.random() < bad else "value"
            if self.random.random() < 0.01:
                how = "exit"
            part = self.part(name, how)
            parts[name] = create_task(part) if self.random.random() < 0.2 else part
        return parts


@pytest.mark.virtual_time
@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_runs_on_and_every_error_is_raised_or_answered_or_noted(seed: int) -> None:
    random = Random(seed)
    plan = Plan(random)
    before = asyncio.all_tasks()
    seconds = random.choice([inf, 0.15, 0.5, random.random()])
    deadline: AbstractContextManager[object] = nullcontext() if seconds == inf else Deadline.after(seconds)
    required, optional = plan.parts("r"), plan.parts("o")
    names, needed = [*required, *optional], {*required}
    end: BaseException | None = None
    page: Mapping[str, Answer[Any]] = {}

    async def caller() -> None:
        nonlocal page, end
        with deadline:
            ambient = AMBIENT.get()
            try:
                page = await gather(required=required, optional=optional)
            except BaseException as error:
                end = error
            ended.append(now())
            assert not plan.running
            assert AMBIENT.get() is ambient

    ended: list[float] = []
    began = now()
    call = create_task(caller())
    leaves = random.random() < 0.4 or seconds == inf
    if leaves:
        if random.random() < 0.5:
            await steps(1 + random.randrange(10))
        else:
            await sleep(random.choice([0.1, 0.2, 0.3, random.random()]))
    was_over, left_at = bool(ended), now()
    cancelled = leaves and call.cancel()
    await asyncio.wait({call})
    if not call.cancelled():
        call.result()

    assert asyncio.all_tasks() == before
    assert not plan.running
    assert ended[0] - began <= seconds + 0.05 + 1e-6 or (leaves and seconds == inf)
    told = "\n".join(getattr(end, "__notes__", ()))
    if end is None:
        assert list(page) == names
    for name, error in plan.raised.items():
        answered = name in page and page[name].error is error
        assert end is error or answered or f'part "{name}" failed: {error!r}' in told
    for name, answer in page.items():
        if name in plan.gave:
            gave = plan.gave[name]
            assert answer == (gave if isinstance(gave, Answer) else Answer(gave))
        else:
            assert name not in needed
            assert (answer.value, answer.source, answer.degraded) == (None, Source.STATIC, True)
            assert answer.error is plan.raised.get(name) or type(answer.error) in {Unknown, UnknownTimeout}
    exits = [error for error in plan.raised.values() if isinstance(error, Exit)]
    if exits:
        assert end in exits
    elif cancelled and not was_over:
        assert isinstance(end, CancelledError)
        assert ended[0] == left_at  # the parts take turns to end, and no time
    elif needed & (plan.raised.keys() | plan.gave_up):
        assert isinstance(end, Exception)
        assert any(note == f'part "{name}"' for name in needed for note in end.__notes__)
    elif end is not None:
        assert type(end) is UnknownTimeout
        assert ended[0] - began == pytest.approx(seconds + 0.05)
