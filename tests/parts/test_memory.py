"""What an operation keeps of its answers: which of them, how long each is fresh, and what contradicts itself."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import pytest
from aiocache import SimpleMemoryCache

from fallbacks import LastGood, Static
from gateway import ConfigError
from gateway.call import Call
from gateway.memory import EARLY_SHARE, Memory, worth_remembering
from gateway.terms import Terms
from tests.support import Boom, steady


class Answered(NamedTuple):
    """What memory looks at of a call."""

    key: Hashable
    at: float


def keep(memory: Memory, key: Hashable, value: Any, at: float) -> None:
    memory.keep(cast("Call", Answered(key, at)), value)


def made(*tiers: Any, kind: Any = Any, **said: Any) -> Memory:
    memory = Memory("world.ask", Terms(**said), kind=lambda: kind, worth=worth_remembering)
    memory.use(tiers)
    return memory


# -- where


def test_without_a_last_good_and_with_no_freshness_nothing_is_kept() -> None:
    memory = made(Static("s"))

    assert not memory
    assert (memory.first, memory.all, memory.looks_first) == (None, (), False)


def test_what_is_fresh_for_a_while_is_kept_for_that_while() -> None:
    memory = made(fresh_for=5.0)

    keep(memory, "k", "v", 0.0)

    assert memory.look("k", 5.0) == ("v", 5.0)
    assert memory.look("k", 5.1) is None
    assert memory.all == (memory.first,)
    assert memory.first is not None
    assert memory.first.max_age == 5.0


def test_what_is_asked_for_anew_in_the_background_is_kept_for_an_hour() -> None:
    memory = made(fresh_for=5.0, revalidate="background")
    keep(memory, "k", "v", 0.0)

    assert memory.look("k", 3600.0) == ("v", 3600.0)
    assert memory.look("k", 3601.0) is None


def test_fresh_answers_come_from_the_first_last_good_and_all_are_told() -> None:
    first, second = LastGood(), LastGood()
    memory = made(first, Static("s"), second, fresh_for=5.0)

    keep(memory, "k", "v", 0.0)

    assert memory.first is first
    assert memory.all == (first, second)
    assert (len(first), len(second)) == (1, 1)


def test_a_last_good_that_comes_later_takes_the_place_of_the_one_that_was_implied() -> None:
    memory = made(fresh_for=5.0)
    mine = LastGood()

    memory.use((mine,))
    keep(memory, "k", "v", 0.0)

    assert memory.all == (mine,)
    assert len(mine) == 1


def test_a_tier_of_ones_own_that_remembers_is_told() -> None:
    told = []

    class Mine:
        def answer(self, question: object) -> None: ...

        def remember(self, key: object, value: object, now: float) -> None:
            told.append((key, value, now))

    keep(made(Mine()), "k", "v", 7.0)

    assert told == [("k", "v", 7.0)]


def test_what_is_fresh_for_longer_than_it_is_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"world.ask fresh_for: 400 s are more than the 300 s") as caught:
        made(LastGood(max_age=300), fresh_for=400)

    assert caught.value.field == "world.ask fresh_for"


def test_what_cannot_be_stored_is_refused_where_there_is_a_store() -> None:
    class Connection:
        pass

    made(LastGood(), kind=Connection)
    with pytest.raises(ConfigError, match="its answers cannot be stored"):
        made(LastGood(store=SimpleMemoryCache()), kind=Connection)


# -- which


@pytest.mark.parametrize("value", [None, "", b"", [], (), {}, set(), frozenset(), range(0)], ids=repr)
def test_what_is_empty_is_not_worth_it(value: object) -> None:
    assert not worth_remembering(value)


@pytest.mark.parametrize("value", [0, 0.0, False, "0", [None], {"a": None}, object()], ids=steady)
def test_what_is_not_empty_is_worth_it(value: object) -> None:
    assert worth_remembering(value)


def test_an_empty_answer_does_not_replace_a_good_one() -> None:
    memory = made(LastGood(), fresh_for=50.0)
    keep(memory, "k", ["good"], 0.0)

    keep(memory, "k", [], 1.0)

    assert memory.look("k", 2.0) == (["good"], 2.0)


def test_the_user_may_say_what_is_worth_it() -> None:
    memory = made(LastGood(), fresh_for=50.0, remember=lambda value: value != ["good"])

    keep(memory, "a", [], 0.0)
    keep(memory, "b", ["good"], 0.0)

    assert memory.look("a", 0.0) == ([], 0.0)
    assert memory.look("b", 0.0) is None
    assert memory.asked_for


@pytest.mark.parametrize("who", ["remember", "size_of", "a tier"])
def test_what_goes_wrong_is_logged_and_the_others_remember(who: str, caplog: pytest.LogCaptureFixture) -> None:
    def raises(*_: object) -> Any:
        raise Boom

    class Mine:
        answer = remember = raises

    last = LastGood()
    memory = made(Mine(), last, **({} if who == "a tier" else {who: raises}))

    keep(memory, "k", "v", 0.0)

    assert len(last) == (1 if who == "a tier" else 0)
    assert [record.levelno for record in caplog.records].count(logging.ERROR) >= 1
    assert "world.ask" in caplog.text


def test_the_user_may_say_how_large_it_is() -> None:
    last = LastGood()
    keep(made(last, size_of=lambda _: 1234), "k", "v", 0.0)

    assert last.bytes_used == 1234


# -- how long


def test_a_caller_may_want_nothing_so_old() -> None:
    memory = made(fresh_for=50.0)
    keep(memory, "k", "v", 0.0)

    assert memory.look("k", 5.0, max_age=4.9) is None
    assert memory.look("k", 5.0, max_age=5.0) == ("v", 5.0)


def test_it_looks_for_nothing_without_a_key() -> None:
    memory = made(fresh_for=50.0)
    keep(memory, None, "v", 0.0)

    assert memory.look(None, 0.0) is None


def test_only_what_is_asked_for_anew_in_the_background_is_ever_due() -> None:
    assert not made(fresh_for=5.0).is_due("k", 99.0)
    assert made(revalidate="background").is_due("k", 0.0)


def test_keys_that_were_written_together_are_due_at_moments_of_their_own() -> None:
    memory = made(fresh_for=100.0, revalidate="background")
    keys = [f"key {number}" for number in range(2000)]
    early = 100.0 * (1.0 - EARLY_SHARE)

    due = {second: sum(memory.is_due(key, second) for key in keys) for second in (early - 0.1, early + 5.0, 100.0)}

    assert due[early - 0.1] == 0
    assert 800 < due[early + 5.0] < 1200
    assert due[100.0] == 2000
    assert [memory.is_due("k", 95.0) for _ in range(3)] in ([True] * 3, [False] * 3)  # the same for all who look
