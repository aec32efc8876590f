"""Flights without the engine: who leads, who follows, how each is told, and what each gets."""

from __future__ import annotations

from asyncio import CancelledError, Task, create_task, current_task, get_running_loop, sleep
from math import inf
from typing import Any, Self

import pytest

from gateway import CircuitOpen, Failed, Refused
from gateway.coalesce import ALONE, LEAD, MOST_FLIGHTS, MOST_FOLLOWERS, TOO_LATE, Flight, Flights, Landed, again
from tests.support import Boom, gone, now, steps, timers_of

pytestmark = pytest.mark.virtual_time


def begun(flights: Flights, key: Any = "k") -> Flight:
    flight = flights.begin(key, current_task())  # type: ignore[arg-type]
    assert flight is not None
    return flight


def following(flight: Flight, cutoff: float = inf) -> Task[Any]:
    return create_task(flight.follow(now, cutoff))


# -- who leads


async def test_the_first_leads_and_the_others_find_it() -> None:
    flights = Flights()

    flight = begun(flights)

    assert flights.of("k") is flight
    assert flights.begin("k", flight.task) is None
    assert flights.of("other") is None
    assert len(flights) == 1


async def test_a_call_without_a_key_has_no_flight() -> None:
    assert Flights().begin(None, current_task()) is None  # type: ignore[arg-type]


async def test_flights_are_bounded() -> None:
    flights = Flights()
    for number in range(MOST_FLIGHTS):
        begun(flights, number)

    over = flights.begin("one more", current_task())  # type: ignore[arg-type]
    flights.end(flights.of(0))  # type: ignore[arg-type]

    assert over is None
    assert flights.begin("one more", current_task()) is not None  # type: ignore[arg-type]


async def test_followers_are_bounded() -> None:
    flight = begun(Flights())
    flight.followers = dict.fromkeys(range(MOST_FOLLOWERS - 1), inf)  # type: ignore[arg-type]

    before = flight.full
    flight.followers[MOST_FOLLOWERS] = inf  # type: ignore[index]

    assert (before, flight.full) == (False, True)


async def test_a_flight_that_is_over_takes_no_other_with_it() -> None:
    flights = Flights()
    first = begun(flights)
    flights.end(first)
    second = begun(flights)

    flights.end(first)

    assert flights.of("k") is second


# -- how it ends


async def test_it_lands_for_all_and_each_gets_a_copy_of_his_own() -> None:
    flights = Flights()
    flight = begun(flights)
    tasks = [following(flight) for _ in range(3)]
    await steps(1)
    live = [1, [2]]

    flight.land(live)
    live.append("changed by its leader")
    values = [(await task).value_for_one() for task in tasks]
    values[0][1].append("changed by the first")

    assert values[1:] == [[1, [2]]] * 2
    assert (len(flights), flight.followers) == (0, {})


async def test_what_nobody_can_change_is_shared() -> None:
    flight = begun(Flights())
    task = following(flight)
    await steps(1)
    live = ("a", 1)

    flight.land(live)

    assert (await task).value_for_one() is live


async def test_nothing_is_copied_where_nobody_waits() -> None:
    class Dear:
        def __deepcopy__(self, memo: object) -> object:
            raise AssertionError("copied for nobody")

    flight = begun(Flights())
    await gone(following(flight))

    flight.land(Dear())


async def test_what_cannot_be_copied_is_its_leaders_alone(caplog: pytest.LogCaptureFixture) -> None:
    flight = begun(Flights())
    task = following(flight)
    await steps(1)

    flight.land(part for part in "abc")

    assert await task is ALONE
    assert "could not be copied" in caplog.text


async def test_it_fails_for_all() -> None:
    flights = Flights()
    flight = begun(flights)
    tasks = [following(flight) for _ in range(3)]
    await steps(1)
    failed = Landed(error=Failed("why"))

    flight.fail(failed)

    assert [await task for task in tasks] == [failed] * 3
    assert len(flights) == 0


async def test_an_answer_for_its_leader_alone_sends_the_others_their_own_way() -> None:
    flight = begun(Flights())
    tasks = [following(flight) for _ in range(2)]
    await steps(1)

    flight.part()

    assert [await task for task in tasks] == [ALONE] * 2


# -- who waits no longer


async def test_nobody_waits_beyond_his_time() -> None:
    flight = begun(Flights())
    began = now()

    assert await flight.follow(now, began + 0.5) is TOO_LATE
    assert now() - began == pytest.approx(0.5)
    assert flight.followers == {}


async def test_who_has_no_time_does_not_wait_at_all() -> None:
    flight = begun(Flights())

    assert await flight.follow(now, now()) is TOO_LATE
    assert await flight.follow(now, -inf) is TOO_LATE


async def test_who_leaves_is_told_nothing_and_leaves_no_timer() -> None:
    flight = begun(Flights())
    task = following(flight, now() + 5.0)
    await steps(1)

    await gone(task)
    flight.land("v")

    assert task.cancelled()
    assert flight.followers == {}
    assert list(timers_of(get_running_loop())) == []


# -- when the leader leaves


async def test_the_one_with_the_most_time_left_leads() -> None:
    flights = Flights()
    flight = begun(flights)
    began = now()
    tasks = [following(flight, began + seconds) for seconds in (1.0, 5.0, 3.0)]
    await steps(1)

    flight.hand_over(began)
    told = await tasks[1]
    on = (flights.of("k"), len(flight.followers))
    flight.land("v")

    assert told is LEAD
    assert on == (flight, 2)
    assert [(await task).value for task in (tasks[0], tasks[2])] == ["v"] * 2


async def test_of_two_with_as_much_time_the_first_leads() -> None:
    flight = begun(Flights())
    first, second = following(flight), following(flight)
    await steps(1)

    flight.hand_over(now())
    await steps(1)

    assert (first.done(), second.done()) == (True, False)
    await gone(second)


async def test_where_nobody_has_the_time_for_a_call_all_are_too_late() -> None:
    flights = Flights()
    flight = begun(flights)
    tasks = [following(flight, now() + 0.04) for _ in range(2)]
    await steps(1)

    flight.hand_over(now(), least=0.05)

    assert [await task for task in tasks] == [TOO_LATE] * 2
    assert len(flights) == 0


async def test_where_nobody_follows_it_is_over() -> None:
    flights = Flights()

    begun(flights).hand_over(now())

    assert len(flights) == 0


async def test_one_who_was_given_the_lead_and_cancelled_at_once_passes_it_on() -> None:
    flight = begun(Flights())
    first, second = following(flight), following(flight)
    await steps(1)

    flight.hand_over(now())
    first.cancel()

    assert await second is LEAD
    with pytest.raises(CancelledError):
        await first


async def test_one_who_was_given_the_lead_and_is_the_last_to_leave_ends_it() -> None:
    flights = Flights()
    flight = begun(flights)
    only = following(flight)
    await steps(1)

    flight.hand_over(now())
    await gone(only)

    assert len(flights) == 0


async def test_one_who_leaves_after_it_has_landed_leaves_the_others_alone() -> None:
    flight = begun(Flights())
    first, second = following(flight), following(flight)
    await steps(1)

    flight.land("v")
    first.cancel()

    assert (await second).value == "v"
    await gone(first)


# -- the same error once more


class Own(Exception):
    """Made in a way of its own."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code, self.why = code, why


class Formatted(Exception):
    """That would be formatted twice."""

    def __init__(self, code: object, why: str = "nobody knows") -> None:
        super().__init__(f"{code}, {why}")


class Strict(Exception):
    """That is made in one place only."""

    def __new__(cls, *args: object) -> Self:
        if args[-1:] != ("let me",):
            raise TypeError("not like that")
        return super().__new__(cls, *args)

    def __init__(self, *args: object) -> None:
        super().__init__(*args[:-1])

    def __reduce__(self) -> Any:
        raise TypeError("not like that either")


ERRORS: list[Exception] = [
    Boom("why"),
    Own(5, why="no"),
    Formatted(5),
    Failed("why"),
    CircuitOpen("why"),
    Refused("no", retry_after=3.0),
    KeyError("k"),
    OSError(2, "No such file", "/a"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ImportError("m", name="n"),
    StopAsyncIteration(5),
    ExceptionGroup("several", [Boom(), Own(1, why="x")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_same_error_is_another_object_that_says_the_same(error: Exception) -> None:
    cause = ValueError("the cause")
    error.__cause__ = cause
    error.__notes__ = ["a note"]  # type: ignore[attr-defined]

    twin = again(error)
    twin.add_note("of the other caller")

    assert twin is not error
    assert type(twin) is type(error)
    assert (repr(twin), str(twin), twin.args) == (repr(error), str(error), error.args)
    assert twin.__cause__ is cause
    assert error.__notes__ == ["a note"]  # type: ignore[attr-defined]
    facts = {name: value for name, value in vars(error).items() if name != "__notes__"}
    assert {name: value for name, value in vars(twin).items() if name != "__notes__"} == facts


def test_of_an_error_that_cannot_be_made_again_there_is_one() -> None:
    error = Strict("why", "let me")

    assert again(error) is error


def test_a_value_that_was_judged_is_each_callers_own() -> None:
    error = Refused({"reasons": ["no"]})

    twin = again(error)
    twin.args[0]["reasons"].append("changed")

    assert error.args == ({"reasons": ["no"]},)


def test_the_traceback_stays_with_the_first() -> None:
    def raised(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return caught

    error = raised(Failed("why"))

    twin = again(error)

    assert twin.__traceback__ is None
    assert error.__traceback__ is not None


async def test_those_whose_loop_is_gone_are_told_nothing() -> None:
    flights = Flights()
    begun(flights)
    flights.clear()
    await sleep(0)

    assert len(flights) == 0
