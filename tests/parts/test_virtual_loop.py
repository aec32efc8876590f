"""Virtual time: nobody waits for timers; sockets and threads are real all the same."""

from __future__ import annotations

import asyncio
import time
import warnings
from asyncio import create_task, get_running_loop, sleep
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from threading import Event, Timer
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from gateway import Deadline
from gateway.testing import VirtualTimeLoop
from tests.support import now, steps

virtual_time = pytest.mark.virtual_time


def here() -> VirtualTimeLoop:
    return cast("VirtualTimeLoop", get_running_loop())


async def took(work: Awaitable[Any]) -> float:
    """Virtual seconds."""
    began_at = now()
    await work
    return now() - began_at


# -- timers


@virtual_time
async def test_sleeping_takes_virtual_time_and_no_real_one() -> None:
    real = time.monotonic()

    hours = await took(sleep(7200.0))

    assert hours == pytest.approx(7200.0)
    assert time.monotonic() - real < 5.0


@virtual_time
async def test_sleeps_beside_each_other_pass_together() -> None:
    assert await took(asyncio.gather(*(sleep(number) for number in range(60)))) == pytest.approx(59.0)


@virtual_time
async def test_things_happen_in_the_order_of_their_time() -> None:
    order: list[int] = []

    async def at(second: int) -> None:
        await sleep(second)
        order.append(second)

    await asyncio.gather(*(at(second) for second in (3, 1, 2, 5, 4)))

    assert order == [1, 2, 3, 4, 5]


@virtual_time
async def test_a_sleep_of_weeks_is_slept() -> None:
    assert await took(sleep(30 * 86_400.0)) == pytest.approx(30 * 86_400.0)


@virtual_time
async def test_no_time_passes_while_there_is_something_to_do() -> None:
    assert await took(steps(1000)) == 0.0


@virtual_time
async def test_limits_of_asyncio_end_in_virtual_time() -> None:
    async def limited() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30.0):
                await sleep(60.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sleep(60.0), 12.0)

    assert await took(limited()) == pytest.approx(42.0)


@virtual_time
async def test_the_clock_can_be_made_to_jump() -> None:
    sleeper = create_task(took(sleep(10.0)))
    await steps(1)

    here().advance(3600.0)

    assert await sleeper == pytest.approx(3600.0)


def test_each_loop_begins_after_the_last_one_ended_and_on_a_whole_second() -> None:
    first = VirtualTimeLoop()
    first.advance(1234.5)

    second = VirtualTimeLoop()

    assert second.time() >= first.time()
    assert second.time() == int(second.time())
    first.close()
    second.close()


# -- sockets


@virtual_time
async def test_a_loopback_server_and_its_client_talk_in_virtual_time() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await sleep(5.0)
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    answers: list[bytes] = []

    async def talk() -> None:
        for number in range(3):
            writer.write(b"%d\n" % number)
            answers.append(await reader.readline())

    seconds = await took(talk())

    assert answers == [b"0\n", b"1\n", b"2\n"]
    assert seconds == pytest.approx(15.0, abs=1.0)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@virtual_time
async def test_a_large_answer_is_not_overtaken_by_time() -> None:
    size = 8 * 1024 * 1024

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * size)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

    async with asyncio.timeout(1.0):
        answer = await reader.read(-1)

    assert len(answer) == size
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@virtual_time
async def test_an_aiohttp_server_and_client_talk_in_virtual_time() -> None:
    async def slow(request: web.Request) -> web.Response:
        await sleep(float(request.query["seconds"]))
        return web.json_response({"slept": request.query["seconds"]})

    app = web.Application()
    app.router.add_get("/", slow)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0)) as session:

        async def get(seconds: float) -> Any:
            async with session.get(url, params={"seconds": str(seconds)}) as reply:
                return await reply.json()

        began_at = now()
        answers = await asyncio.gather(*(get(seconds) for seconds in (3.0, 1.0, 2.0)))
        beside = now() - began_at
        began_at = now()
        with pytest.raises(TimeoutError):
            await get(3600.0)
        given_up_after = now() - began_at
    await runner.cleanup()

    assert [answer["slept"] for answer in answers] == ["3.0", "1.0", "2.0"]
    assert beside == pytest.approx(3.0, abs=1.0)
    assert given_up_after == pytest.approx(10.0, abs=1.5)  # aiohttp rounds its limits up to whole seconds


@virtual_time
async def test_names_are_looked_up_while_the_clock_stands_still() -> None:
    assert await took(get_running_loop().getaddrinfo("localhost", 80)) == 0.0


# -- threads


@virtual_time
async def test_the_clock_stands_still_while_a_thread_of_the_executor_works() -> None:
    alarm = create_task(sleep(0.001))
    seen: list[bool] = []

    def work() -> str:
        time.sleep(0.03)
        seen.append(alarm.done())
        return "done"

    began_at = now()
    answer = await asyncio.to_thread(work)

    assert (answer, seen, now()) == ("done", [False], began_at)
    assert not here().held
    await alarm


@virtual_time
async def test_the_clock_stands_still_for_an_executor_of_the_users_own() -> None:
    with ThreadPoolExecutor(4) as executor:
        jobs = [get_running_loop().run_in_executor(executor, time.sleep, 0.01) for _ in range(8)]
        held = here().held
        seconds = await took(asyncio.gather(*jobs))

    assert (held, seconds, here().held) == (True, 0.0, False)


@virtual_time
async def test_a_thread_that_fails_lets_the_clock_go() -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 / 0)

    assert not here().held
    assert await took(sleep(5.0)) == pytest.approx(5.0)


@virtual_time
async def test_a_thread_that_nobody_waits_for_any_more_lets_the_clock_go() -> None:
    end = Event()
    job = get_running_loop().run_in_executor(None, end.wait)

    job.cancel()
    await steps(2)

    assert await took(sleep(5.0)) == pytest.approx(5.0)
    end.set()


@virtual_time
async def test_a_limit_on_a_thread_is_not_reached_before_the_thread_is() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.to_thread(time.sleep, 0.03)


@virtual_time
async def test_the_clock_can_be_held_by_hand_as_often_as_there_are_threads() -> None:
    loop = here()
    alarm = create_task(sleep(1.0))

    loop.hold_clock(1)
    loop.hold_clock(1)
    loop.hold_clock(-1)
    Timer(0.02, loop.call_soon_threadsafe, (loop.hold_clock, -1)).start()
    real = time.monotonic()
    await alarm

    assert time.monotonic() - real >= 0.015


@virtual_time
async def test_what_a_foreign_thread_brings_is_waited_for() -> None:
    loop = here()
    brought = loop.create_future()

    Timer(0.02, loop.call_soon_threadsafe, (brought.set_result, "value")).start()

    assert await took(asyncio.wait([brought])) == 0.0
    assert brought.result() == "value"


def test_a_thread_that_still_works_at_the_end_of_the_loop_is_waited_for_in_real_time() -> None:
    """From Python 3.12 on asyncio gives it 300 seconds, which in virtual time are none: it warned at once."""
    began, ended = Event(), Event()

    def work() -> None:
        began.set()
        time.sleep(0.04)
        ended.set()

    async def main() -> None:
        job = get_running_loop().run_in_executor(None, work)
        began.wait()
        job.cancel()
        await sleep(1.0)
        assert not ended.is_set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(main())

    assert ended.is_set()


# -- patience


def run(main: Callable[[], Awaitable[Any]], *, patience: float) -> None:
    loop = VirtualTimeLoop(patience=patience)
    try:
        loop.run_until_complete(main())
    finally:
        loop._threads = 0
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(sleep(0))
        loop.close()


def test_a_loop_that_waits_for_nothing_says_so_instead_of_hanging() -> None:
    async def main() -> None:
        await get_running_loop().create_future()

    with pytest.raises(RuntimeError, match=r"0\.02 real seconds, waiting for nothing: no timer, no thread, no event"):
        run(main, patience=0.02)


@pytest.mark.parametrize(
    "for_ever", [lambda: sleep(inf), lambda: asyncio.wait_for(asyncio.Event().wait(), inf)], ids=["sleep", "wait_for"]
)
def test_a_loop_that_waits_for_the_end_of_time_says_so_too(for_ever: Callable[[], Awaitable[Any]]) -> None:
    """Its clock would jump by a day, and by the next, and never come there."""

    async def main() -> None:
        get_running_loop().call_later(inf, sleep).cancel()
        await for_ever()

    with pytest.raises(RuntimeError, match="waiting for nothing"):
        run(main, patience=0.02)


def test_a_loop_that_waits_for_a_thread_without_end_says_so_instead_of_hanging() -> None:
    end = Event()

    async def main() -> None:
        get_running_loop().call_later(1.0, end.set)
        await asyncio.to_thread(end.wait)

    with pytest.raises(RuntimeError, match=r"0\.02 real seconds, waiting for a thread that does not end"):
        run(main, patience=0.02)

    end.set()


# -- with the rest


@virtual_time
async def test_deadlines_are_told_by_virtual_time() -> None:
    with Deadline.after(10.0) as deadline:
        await sleep(4.0)
        left = deadline.remaining()

    assert left == pytest.approx(6.0)


@virtual_time
async def test_the_marker_gives_a_test_a_virtual_loop() -> None:
    assert isinstance(get_running_loop(), VirtualTimeLoop)


@pytest.mark.asyncio
async def test_without_the_marker_a_test_has_an_ordinary_loop() -> None:
    assert not isinstance(get_running_loop(), VirtualTimeLoop)
