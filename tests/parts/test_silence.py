"""The limit on silence: one timer for all who wait, and one of its own only for who waits long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import inf

import pytest

from gateway.http.silence import PART, Silence
from tests.support import now

pytestmark = [pytest.mark.asyncio, pytest.mark.virtual_time]
LIMIT = 1.6


class Line:
    """A connection that notes when it is told to time a silence, and of what length."""

    def __init__(self) -> None:
        self.read_timeout: float | None = None
        self.started: list[tuple[float, float | None]] = []

    def start_timeout(self) -> None:
        self.started.append((round(now(), 6), self.read_timeout))


def limit(seconds: float = LIMIT) -> Silence:
    return Silence(seconds, loop=asyncio.get_running_loop(), clock=now)


def timers() -> Iterator[asyncio.TimerHandle]:
    loop = asyncio.get_running_loop()
    return (timer for timer in loop._scheduled if not timer.cancelled())  # type: ignore[attr-defined]


async def test_many_who_wait_have_one_timer() -> None:
    silence, lines = limit(), [Line() for _ in range(100)]

    for line in lines:
        silence.begins(line)

    assert len(list(timers())) == 1
    for line in lines:
        silence.ends(line)
    await asyncio.sleep(2 * LIMIT)
    assert not any(line.started for line in lines)
    assert not list(timers())


async def test_who_waits_long_gets_a_timer_for_the_rest_and_after_it_for_the_whole() -> None:
    silence, line = limit(), Line()
    began = now()

    silence.begins(line)
    await asyncio.sleep(LIMIT)

    [(at, rest)] = line.started
    assert at == pytest.approx(began + LIMIT * PART)
    assert rest == pytest.approx(LIMIT * (1 - PART))
    assert line.read_timeout == LIMIT  # for the next read


async def test_each_gets_its_timer_after_its_own_wait() -> None:
    silence, early, late = limit(), Line(), Line()
    began, between = now(), LIMIT * PART / 2

    silence.begins(early)
    await asyncio.sleep(between)
    silence.begins(late)
    await asyncio.sleep(LIMIT)

    [(first, _)], [(second, _)] = early.started, late.started  # and none of them twice
    assert first == pytest.approx(began + LIMIT * PART)
    assert second == pytest.approx(began + between + LIMIT * PART)


async def test_a_loop_that_comes_late_leaves_at_least_a_moment() -> None:
    time = 0.0
    silence, line = Silence(LIMIT, loop=asyncio.get_running_loop(), clock=lambda: time), Line()

    silence.begins(line)
    time = 10 * LIMIT
    await asyncio.sleep(LIMIT)

    [(_, rest)] = line.started
    assert rest is not None
    assert 0 < rest < 0.01


async def test_an_answer_that_goes_on_is_timed_from_its_beginning() -> None:
    silence, line = limit(), Line()

    silence.begins(line)
    silence.ends(line)
    silence.goes_on(line)

    assert line.started == [(now(), LIMIT)]
    silence.stop()


async def test_without_a_limit_there_is_no_timer() -> None:
    silence, line = limit(inf), Line()

    silence.begins(line)
    silence.goes_on(line)

    assert not list(timers())
    assert not line.started


async def test_none_is_left_when_it_stops() -> None:
    silence, line = limit(), Line()

    silence.begins(line)
    silence.stop()
    await asyncio.sleep(LIMIT)

    assert not line.started
    assert not list(timers())
