"""The ambient deadline, and the clock that agrees with a loop."""

from __future__ import annotations

import asyncio
from asyncio import create_task, get_running_loop, sleep
from collections.abc import Generator
from contextvars import Context, copy_context
from math import inf, nan
from threading import Thread
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import Deadline
from gateway.context import AMBIENT, Ambient, clock_of
from gateway.testing import VirtualTimeLoop
from tests.support import now, steps

HEADER = "X-Deadline-Ms"


# -- telling


@pytest.mark.virtual_time
async def test_a_deadline_tells_how_much_time_is_left() -> None:
    deadline = Deadline.after(2.0)

    left = [deadline.remaining()]
    for _ in range(3):
        await sleep(0.75)
        left.append(deadline.remaining())

    assert left == pytest.approx([2.0, 1.25, 0.5, 0.0])
    assert left[-1] == 0.0


@pytest.mark.virtual_time
async def test_inside_its_block_a_deadline_is_the_current_one() -> None:
    before = Deadline.current()

    with Deadline.after(2.0) as deadline:
        current = Deadline.current()

    assert before is None
    assert current is not None
    assert current.at == deadline.at == now() + 2.0
    assert Deadline.current() is None


@pytest.mark.virtual_time
async def test_a_deadline_only_tells_and_cancels_nothing() -> None:
    with Deadline.after(1.0) as deadline:
        await sleep(5.0)

    assert deadline.remaining() == 0.0


@pytest.mark.virtual_time
async def test_inside_of_another_one_a_deadline_only_moves_nearer() -> None:
    seen: list[float] = []

    def look() -> None:
        current = Deadline.current()
        assert current is not None
        seen.append(current.remaining())

    with Deadline.after(5.0):
        look()
        with Deadline.after(9.0):
            look()
            with Deadline.after(1.0):
                look()
                with Deadline.after(3.0):
                    look()
                look()
            look()
        look()

    assert seen == pytest.approx([5.0, 5.0, 1.0, 1.0, 1.0, 5.0, 5.0])
    assert Deadline.current() is None


@pytest.mark.virtual_time
async def test_a_deadline_without_end_is_none() -> None:
    with Deadline.after(inf) as endless:
        assert Deadline.current() is None
        with Deadline.after(1.0):
            assert Deadline.current() is not None

    assert endless.remaining() == inf
    assert endless.to_headers() == {}


def test_a_deadline_after_no_number_of_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="nan is no number of seconds"):
        Deadline.after(nan)


@pytest.mark.virtual_time
async def test_a_deadline_so_far_away_that_nobody_counts_it_is_not_told() -> None:
    assert Deadline.after(1e308).to_headers() == {}


@pytest.mark.virtual_time
async def test_a_block_that_raises_puts_back_what_was_ambient_before() -> None:
    with Deadline.after(5.0) as outer:
        with pytest.raises(ValueError, match="inside"), Deadline.after(1.0):
            raise ValueError("inside")
        current = Deadline.current()

    assert current is not None
    assert current.at == outer.at


@pytest.mark.virtual_time
async def test_a_deadline_can_be_used_again_but_not_inside_of_itself() -> None:
    deadline = Deadline.after(5.0)
    with deadline:
        pass

    with deadline, pytest.raises(RuntimeError, match="already entered"), deadline:
        pytest.fail("entered twice")

    assert Deadline.current() is None
    with deadline:
        assert Deadline.current() is not None


@pytest.mark.virtual_time
async def test_a_deadline_that_one_task_is_in_is_not_for_another() -> None:
    deadline = Deadline.after(5.0)

    async def use() -> None:
        with deadline:
            await sleep(1.0)

    first, second = create_task(use()), create_task(use())
    ends = await asyncio.gather(first, second, return_exceptions=True)

    assert [type(end) for end in ends] == [type(None), RuntimeError]
    await use()


def test_leaving_what_was_never_entered_changes_nothing() -> None:
    Deadline.after(1.0).__exit__(None, None, None)

    assert AMBIENT.get() is None


@pytest.mark.virtual_time
async def test_tasks_inherit_a_deadline_and_keep_their_own_to_themselves() -> None:
    seen: list[float] = []

    async def child() -> None:
        with Deadline.after(1.0):
            seen.append(Deadline.current().remaining())  # type: ignore[union-attr]
            await sleep(0.5)

    with Deadline.after(5.0):
        task = create_task(child())
        await steps(2)
        seen.append(Deadline.current().remaining())  # type: ignore[union-attr]
    await task

    assert seen == pytest.approx([1.0, 5.0])
    assert Deadline.current() is None


def test_a_generator_that_is_thrown_away_in_another_context_does_no_harm() -> None:
    def values() -> Generator[int]:
        with Deadline.after(5.0):
            yield 1

    generator = values()
    elsewhere = Context()
    elsewhere.run(next, generator)

    generator.close()

    assert AMBIENT.get() is None
    assert elsewhere.run(AMBIENT.get) is not None


@pytest.mark.virtual_time
async def test_an_asynchronous_generator_that_another_task_closes_does_no_harm() -> None:
    async def values():
        with Deadline.after(5.0):
            yield 1

    generator = values()
    await create_task(anext(generator))  # type: ignore[arg-type]

    await generator.aclose()

    assert Deadline.current() is None


@pytest.mark.virtual_time
async def test_a_deadline_inside_of_a_call_belongs_to_the_calls_gateway() -> None:
    gateway = object()

    with Deadline(now() + 5.0, get_running_loop().time, gateway), Deadline.after(1.0):
        ambient = AMBIENT.get()

    assert isinstance(ambient, Ambient)
    assert ambient.world.gateway is gateway


@pytest.mark.virtual_time
async def test_a_deadline_shows_how_long_it_lasts() -> None:
    assert repr(Deadline.after(1.5)) == "<Deadline in 1.500 s>"


# -- headers


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250"), (0.0, "0"), (-1.0, "0"), (1.0, "1000"), (0.2509, "250"), (0.0009, "0"), (86_400.0, "86400000")],
)
async def test_a_header_carries_the_whole_milliseconds_that_are_left(seconds: float, text: str) -> None:
    assert Deadline.after(seconds).to_headers() == {HEADER: text}


@pytest.mark.virtual_time
@pytest.mark.parametrize("name", [HEADER, "x-deadline-ms", "X-DEADLINE-MS"])
@pytest.mark.parametrize("text", ["250", " 250 ", "000250"])
async def test_a_header_is_read_in_any_case(name: str, text: str) -> None:
    deadline = Deadline.from_headers({"Host": "here", name: text, "Accept": "*/*"})

    assert deadline.remaining() == pytest.approx(0.25)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "-250",
        "+250",
        "2.5",
        "1e3",
        "inf",
        "nan",
        "0x10",
        "1_000",
        "٢٥٠",
        "²",
        "250ms",
        "2 50",
        "1" * 13,
    ],
)
async def test_a_bad_header_sets_no_deadline(text: str) -> None:
    with Deadline.from_headers({HEADER: text}) as deadline:
        current = Deadline.current()

    assert deadline.remaining() == inf
    assert current is None


@pytest.mark.virtual_time
async def test_without_a_header_the_outer_deadline_holds() -> None:
    with Deadline.after(5.0) as outer, Deadline.from_headers({}):
        current = Deadline.current()

    assert current is not None
    assert current.at == outer.at


@pytest.mark.virtual_time
async def test_a_header_of_nothing_left_is_over_at_once() -> None:
    with Deadline.from_headers({HEADER: "0"}):
        current = Deadline.current()

    assert current is not None
    assert current.remaining() == 0.0


@pytest.mark.virtual_time
async def test_a_header_of_many_years_is_read() -> None:
    assert Deadline.from_headers({HEADER: "9" * 12}).remaining() == pytest.approx(999_999_999.999)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(milliseconds=st.integers(0, 10**9), now=st.floats(0, 4e9))
def test_a_deadline_survives_the_way_through_a_header_whatever_the_clock_shows(milliseconds: int, now: float) -> None:
    """Clocks of epoch size too, whose floats are coarse: not one millisecond is lost."""
    sent = Deadline(now + milliseconds / 1000, clock=lambda: now)

    headers = sent.to_headers()

    assert headers == {HEADER: str(milliseconds)}


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(seconds=st.floats(0, 1e6))
def test_a_header_never_promises_more_time_than_is_left(seconds: float) -> None:
    headers = Deadline(1000.0 + seconds, clock=lambda: 1000.0).to_headers()

    assert seconds - 0.001 <= int(headers[HEADER]) / 1000 <= seconds + 1e-6


# -- threads, and no loop at all


@pytest.mark.virtual_time
async def test_in_a_thread_the_ambient_deadline_is_told_by_the_clock_of_its_call() -> None:
    def look() -> tuple[float, float, float]:
        current = Deadline.current()
        assert current is not None
        with Deadline.after(0.5) as nearer:
            return current.remaining(), nearer.at, Deadline.current().remaining()  # type: ignore[union-attr]

    with Deadline.after(2.0):
        left, nearer_at, left_inside = await asyncio.to_thread(look)

    assert (left, nearer_at, left_inside) == pytest.approx((2.0, now() + 0.5, 0.5))


def test_without_a_loop_time_is_monotonic() -> None:
    with Deadline.after(60.0) as deadline:
        current = Deadline.current()

    assert current is not None
    assert current.at == deadline.at == pytest.approx(monotonic() + 60.0, abs=5.0)
    assert 55.0 < deadline.remaining() <= 60.0
    assert 55_000 < int(deadline.to_headers()[HEADER]) <= 60_000


def test_a_context_can_be_carried_into_a_thread_without_a_loop() -> None:
    seen: list[float] = []

    def look() -> None:
        seen.append(Deadline.current().remaining())  # type: ignore[union-attr]

    with Deadline.after(60.0):
        context = copy_context()
    thread = Thread(target=context.run, args=(look,))
    thread.start()
    thread.join()

    assert 55.0 < seen[0] <= 60.0


# -- clocks


def test_the_clock_of_an_ordinary_loop_is_monotonic() -> None:
    loop = asyncio.new_event_loop()

    assert clock_of(loop) is monotonic
    loop.close()


def test_the_clock_of_a_virtual_loop_is_its_own() -> None:
    class Derived(VirtualTimeLoop):
        pass

    for kind in (VirtualTimeLoop, Derived):
        loop = kind()
        clock = clock_of(loop)
        loop.advance(2.5)
        assert clock() == loop.time()
        loop.close()


def test_the_clock_of_uvloop_is_monotonic_unless_somebody_gives_it_another() -> None:
    uvloop = pytest.importorskip("uvloop", reason="the extra `speed` is not installed")

    class Derived(uvloop.Loop):
        pass

    class Virtual(uvloop.Loop):
        def time(self) -> float:
            return 42.0

    clocks = []
    for kind in (uvloop.Loop, Derived, Virtual):
        loop = kind()
        clocks.append(clock_of(loop))
        loop.close()

    assert clocks[:2] == [monotonic, monotonic]
    assert clocks[2]() == 42.0


@pytest.mark.asyncio
async def test_on_an_ordinary_loop_deadlines_are_told_by_monotonic() -> None:
    assert Deadline.after(60.0).at == pytest.approx(monotonic() + 60.0, abs=5.0)
