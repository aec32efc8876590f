"""Events, and who hears them, without a gateway."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway import AttemptFailed, CallFinished, CircuitChanged, ConfigError, Event, Outcome, Source
from gateway.events import KINDS, Listeners, check_kinds, same

CHANGED = CircuitChanged(upstream="ratings", at=1.0, before="closed", after="open")
FINISHED = CallFinished(
    upstream="ratings",
    at=2.0,
    operation="rate",
    outcome=Outcome.SUCCESS,
    source=Source.LIVE,
    duration=0.5,
    waited=0.0,
    attempts=1,
    error=None,
)
FAILED = AttemptFailed(
    upstream="ratings", at=3.0, operation="rate", attempt=1, outcome=Outcome.FAILED, error=ValueError(), duration=0.5
)


class Ear:
    """Hears, and keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[Event] = []

    def hear(self, event: Event) -> None:
        self.heard.append(event)


class Alike(Ear):
    """A listener that equals every other one of its kind."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike)

    def __hash__(self) -> int:
        return 1

    __call__ = Ear.hear


def tell_all(listeners: Listeners) -> None:
    listeners.tell(listeners.call_finished, FINISHED)
    listeners.tell(listeners.attempt_failed, FAILED)
    listeners.tell(listeners.circuit_changed, CHANGED)


@pytest.mark.parametrize("event", [CHANGED, FINISHED, FAILED])
def test_an_event_is_a_frozen_value_that_says_of_whom_and_when(event: Event) -> None:
    with pytest.raises(AttributeError):
        event.at = 9.0  # type: ignore[misc]

    assert isinstance(event, Event)
    assert event.upstream == "ratings"
    assert event.at > 0


def test_events_are_made_by_keywords_only() -> None:
    with pytest.raises(TypeError):
        CircuitChanged("ratings", 1.0, "closed", "open")  # type: ignore[misc]


@pytest.mark.parametrize("kinds", [(), (Event,), (Event, CircuitChanged), KINDS])
def test_every_event_is_heard_by_who_asks_for_all_of_them_once(kinds: tuple[type[Event], ...]) -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, kinds)

    tell_all(listeners)

    assert ear.heard == [FINISHED, FAILED, CHANGED]


@pytest.mark.parametrize(
    ("kind", "event"), [(CallFinished, FINISHED), (AttemptFailed, FAILED), (CircuitChanged, CHANGED)]
)
def test_one_kind_is_heard_by_who_asks_for_that(kind: type[Event], event: Event) -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (kind,))

    tell_all(listeners)

    assert ear.heard == [event]


def test_who_asks_for_two_kinds_hears_both() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (CircuitChanged, CallFinished))

    tell_all(listeners)

    assert ear.heard == [FINISHED, CHANGED]


def test_who_asks_later_for_more_hears_more_and_nothing_twice() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (CircuitChanged,))
    listeners.add(ear.hear, ())

    tell_all(listeners)

    assert ear.heard == [FINISHED, FAILED, CHANGED]


def test_nobody_listening_is_an_empty_tuple_of_each_kind() -> None:
    listeners = Listeners()

    assert (listeners.call_finished, listeners.attempt_failed, listeners.circuit_changed) == ((), (), ())


def test_listeners_hear_in_the_order_in_which_they_came() -> None:
    order: list[str] = []
    listeners = Listeners()
    for name in ("first", "second", "third"):
        listeners.add(lambda _, name=name: order.append(name), (CircuitChanged,))

    tell_all(listeners)

    assert order == ["first", "second", "third"]


def test_who_is_removed_hears_nothing_of_any_kind_and_the_others_hear_on() -> None:
    listeners, gone, other = Listeners(), Ear(), Ear()
    listeners.add(gone.hear, ())
    listeners.add(other.hear, ())

    listeners.remove(gone.hear)
    tell_all(listeners)

    assert gone.heard == []
    assert other.heard == [FINISHED, FAILED, CHANGED]


def test_removing_who_never_listened_is_nothing() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, ())

    listeners.remove(print)
    tell_all(listeners)

    assert len(ear.heard) == 3


def test_listeners_that_are_equal_are_still_two() -> None:
    listeners, one, other = Listeners(), Alike(), Alike()
    listeners.add(one, ())
    listeners.add(other, ())

    listeners.remove(one)
    tell_all(listeners)

    assert (len(one.heard), len(other.heard)) == (0, 3)


def test_a_method_of_one_object_is_one_listener_and_of_two_objects_two() -> None:
    one, other = Ear(), Ear()

    assert same(one.hear, one.hear)
    assert not same(one.hear, other.hear)
    assert not same(one.hear, print)
    assert not same(print, one.hear)


def test_a_listener_that_raises_is_logged_and_removed_and_the_next_one_hears(caplog: pytest.LogCaptureFixture) -> None:
    listeners, ear = Listeners(), Ear()

    def broken(_: Event) -> None:
        raise RuntimeError("deaf")

    listeners.add(broken, ())
    listeners.add(ear.hear, ())

    with caplog.at_level(logging.ERROR, "gateway"):
        tell_all(listeners)

    assert ear.heard == [FINISHED, FAILED, CHANGED]
    assert listeners.call_finished == listeners.attempt_failed == listeners.circuit_changed
    assert len(listeners.call_finished) == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [RuntimeError]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_nothing_that_a_listener_is_removed_for(error: type[BaseException]) -> None:
    listeners = Listeners()

    def interrupted(_: Event) -> None:
        raise error

    listeners.add(interrupted, (CircuitChanged,))

    with pytest.raises(error):
        tell_all(listeners)

    assert len(listeners.circuit_changed) == 1


def test_a_listener_may_remove_itself_and_others_while_it_hears() -> None:
    listeners, ear = Listeners(), Ear()

    def once(event: Event) -> None:
        ear.hear(event)
        listeners.remove(once)

    listeners.add(once, ())
    listeners.add(ear.hear, (CircuitChanged,))

    tell_all(listeners)
    tell_all(listeners)

    assert ear.heard == [FINISHED, CHANGED, CHANGED]


@pytest.mark.parametrize("thing", [print, "Event", int, Event(upstream="u", at=0.0), None], ids=repr)
def test_what_is_no_kind_of_event_is_refused_by_its_name(thing: Any) -> None:
    check_kinds((Event, *KINDS))

    with pytest.raises(ConfigError) as raised:
        check_kinds((CircuitChanged, thing))

    assert raised.value.field == "on"
    assert repr(thing) in raised.value.problem


# -- calls that went plainly well


def heard_of(listeners: Listeners, numbers: int) -> list[int]:
    return [number for number in range(1, numbers + 1) if listeners.of_plain(number)]


def test_of_plain_calls_each_is_heard_of_unless_it_is_said_how_many() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (CallFinished,))

    assert heard_of(listeners, 5) == [1, 2, 3, 4, 5]
    assert listeners.plain_step == 1


def test_what_is_said_last_of_how_many_holds() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (), plain_every=1)
    listeners.add(ear.hear, (CallFinished,), plain_every=3)

    assert heard_of(listeners, 7) == [1, 4, 7]
    assert len(listeners.of_plain(1)) == 1

    listeners.add(ear.hear, (CallFinished,), plain_every=0)

    assert heard_of(listeners, 7) == []
    assert listeners.call_finished == (ear.hear,)


def test_who_asks_for_another_kind_says_nothing_of_calls() -> None:
    listeners, ear = Listeners(), Ear()
    listeners.add(ear.hear, (CircuitChanged,))

    assert listeners.of_plain(1) == []

    listeners.add(ear.hear, (CallFinished,), plain_every=2)
    listeners.add(ear.hear, (CircuitChanged,))

    assert heard_of(listeners, 4) == [1, 3]


def test_the_step_passes_over_none_that_somebody_hears_of() -> None:
    listeners = Listeners()
    for every in (4, 6, 0, 10):
        listeners.add(Ear().hear, (CallFinished,), plain_every=every)

    step = listeners.plain_step

    assert step == 2
    assert all((number - 1) % step == 0 for number in heard_of(listeners, 200))


def test_who_is_removed_hears_of_no_plain_call() -> None:
    listeners, one, other = Listeners(), Ear(), Ear()
    listeners.add(one.hear, (), plain_every=2)
    listeners.add(other.hear, (), plain_every=3)

    listeners.remove(one.hear)

    assert heard_of(listeners, 7) == [1, 4, 7]
    listeners.remove(other.hear)
    assert listeners.plain_step == 0


def test_a_listener_that_raises_at_a_plain_call_hears_of_no_other() -> None:
    listeners = Listeners()

    def raises(_: Event) -> None:
        raise ValueError

    listeners.add(raises, ())
    listeners.tell(listeners.of_plain(1), FINISHED)

    assert listeners.plain_step == 0
    assert not listeners.call_finished
