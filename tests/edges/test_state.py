"""The document that the page shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import fields
from itertools import pairwise
from math import inf
from typing import Any

import pytest

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    Counts,
    Gateway,
    LastGood,
    Policy,
    Static,
    TimeoutPolicy,
    UnknownName,
)
from gateway.admin.state import CIRCUITS, State, Tuned, bare
from tests.support import ONE_TRY, Boom, ended

virtual = pytest.mark.virtual_time
TENANT: ContextVar[str | None] = ContextVar("tenant", default=None)


@asynccontextmanager
async def watched(gate: Gateway, **settings: Any) -> AsyncIterator[State]:
    state = State(gate, **settings)
    state.start()
    try:
        yield state
    finally:
        await state.close()
        assert not any(getattr(gate.listeners, slot) for slot in gate.listeners.__slots__)


def gate_with_trouble() -> Gateway:
    """One upstream of each kind, with calls that went every way."""
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=Policy(retry=ONE_TRY, bulkhead=BulkheadPolicy(limit=inf)))

    @ratings.operation(idempotent=True, fallback=[LastGood(max_age=60)], key=lambda film, **_: film)
    async def stars(film: str, *, error: Exception | None = None) -> int:
        if error is not None:
            raise error
        return 5

    @ratings.operation(idempotent=True, fallback=[Static(0)])
    async def shaky() -> int:
        raise Boom("down")

    gate.http("films", "http://user:s3cret@127.0.0.1:1/v1", policy=Policy(retry=ONE_TRY))
    return gate


@virtual
async def test_the_document_is_json_and_the_two_ways_to_it_agree() -> None:
    gate = gate_with_trouble()

    async with gate, watched(gate) as state:
        await gate["ratings"]["stars"]("Alien")
        await asyncio.sleep(1.1)
        at_once = state.document()
        in_slices = json.loads(await state.encoded())

    assert json.loads(json.dumps(at_once, allow_nan=False)) == in_slices | {"at": at_once["at"]}
    assert set(in_slices) == {"at", "gateway", "upstreams", "events"}
    assert set(in_slices["gateway"]) == {"lag", "adds_up", "version", "uptime", "journal"}
    assert [one["name"] for one in in_slices["upstreams"]] == ["ratings", "films"]
    assert [one["kind"] for one in in_slices["upstreams"]] == ["plain", "http"]


@virtual
async def test_every_number_is_there_and_infinity_is_a_word() -> None:
    gate = gate_with_trouble()

    async with gate, watched(gate) as state:
        stars = gate["ratings"]["stars"]
        await stars("Alien")
        await stars("Alien", error=Boom())
        await gate["ratings"]["shaky"]()
        await asyncio.sleep(1.1)
        shown = state.document()["upstreams"][0]

    assert set(shown["total"]) == {one.name for one in fields(Counts)}
    assert shown["total"]["asked"] == 3
    assert shown["total"]["live"] == shown["total"]["last_good"] == shown["total"]["static"] == 1
    assert shown["window"]["rates"]["static"] == pytest.approx(1.0)
    assert set(shown["window"]["rates"]) >= {
        *("asked", "live", "coalesced", "cached", "last_good", "static", "handler", "alternate", "refused", "failed"),
        *("unknown", "rejected", "cancelled", "attempts", "retries", "overran"),
    }
    assert set(shown["window"]["waits"]) == {"count", "mean", "p50", "p90", "p99", "max"}
    assert len(shown["spark"]) == len(shown["spark_degraded"]) == len(shown["spark_failed"]) == 60
    assert shown["spark"][-1] == pytest.approx(3.0)
    assert shown["pool"]["limit"] == "inf"
    assert shown["adds_up"] is True
    assert [one["name"] for one in shown["operations"]] == ["stars", "shaky"]
    assert shown["operations"][1]["total"]["static"] == 1
    assert shown["operations"][1]["memory"] is shown["operations"][1]["ages"] is None
    assert shown["operations"][0]["memory"]["entries"] == shown["operations"][0]["ages"]["count"] == 1
    assert shown["operations"][0]["memory"]["store"] is None
    assert shown["endpoints"] is None


@virtual
async def test_an_upstream_that_was_never_asked_has_the_same_fields() -> None:
    gate = Gateway()
    quiet = gate.upstream("quiet")

    @quiet.operation(idempotent=True)
    async def one() -> int:
        return 1

    gate.upstream("empty")
    async with gate, watched(gate) as state:
        await one()
        asked, empty = state.document()["upstreams"]

    assert set(asked) == set(empty)
    assert asked["total"].keys() == empty["total"].keys()
    assert empty["adds_up"] is True
    assert set(empty["total"].values()) == {0}


@virtual
async def test_a_circuit_says_since_when_and_for_how_long() -> None:
    gate = Gateway()
    policy = Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1, open_for=5.0))
    sick = gate.upstream("sick", policy=policy)

    @sick.operation(idempotent=True)
    async def one() -> int:
        raise Boom

    async with gate, watched(gate, wall=lambda: 1_000_000.0) as state:
        before = state.document()["upstreams"][0]["circuit"]
        await ended(one())
        await asyncio.sleep(2.0)
        after = state.document()["upstreams"][0]["circuit"]
        event = state.document()["events"][-1]

    assert (before["state"], before["since"], before["closes_in"]) == ("closed", None, None)
    assert (after["state"], after["closes_in"]) == ("open", pytest.approx(3.0))
    assert after["since"] == pytest.approx(1_000_000.0 - 2.0)
    assert event["at"] == pytest.approx(1_000_000.0 - 2.0)
    assert (event["kind"], event["upstream"], event["text"]) == ("circuit", "sick", "closed -> open")


@virtual
async def test_circuits_with_a_key_are_few_and_the_sick_ones_first() -> None:
    gate = Gateway()
    policy = Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1))
    shared = gate.upstream("shared", policy=policy)

    @shared.operation(idempotent=True, circuit_by=TENANT)
    async def one(*, sick: bool = False) -> int:
        if sick:
            raise Boom
        return 1

    async with gate, watched(gate) as state:
        for number in range(CIRCUITS + 30):
            TENANT.set(f"tenant {number}")
            await ended(one(sick=number == 41))
        TENANT.set(None)
        shown = state.document()["upstreams"][0]

    assert len(shown["circuits"]) == CIRCUITS
    assert shown["circuits_in_all"] == CIRCUITS + 30
    assert (shown["circuits"][0]["key"], shown["circuits"][0]["state"]) == ("tenant 41", "open")


@virtual
async def test_endpoints_are_shown_without_what_may_be_secret() -> None:
    gate = gate_with_trouble()

    async with gate, watched(gate) as state:
        document = await state.encoded()

    (endpoint,) = json.loads(document)["upstreams"][1]["endpoints"]
    assert endpoint["url"] == "http://127.0.0.1:1/v1"
    assert endpoint["state"] == "up"
    assert b"s3cret" not in document


@virtual
async def test_endpoints_that_come_and_go_are_in_the_log() -> None:
    gate = Gateway()
    films = gate.http("films", ["http://user:s3cret@a.example", "http://b.example"])

    async with gate, watched(gate) as state:
        films.replace_endpoints(["http://b.example", "http://c.example"])
        await asyncio.sleep(1.1)
        lines = [(event["kind"], event["text"]) for event in state.document()["events"]]

    assert ("endpoint", "http://a.example up -> gone") in lines
    assert not any("s3cret" in text for _, text in lines)


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    assert bare("http://user:s3cret@a.example:81/v1?key=s3cret#s3cret") == "http://a.example:81/v1"


@virtual
async def test_a_state_that_is_closed_listens_no_more_for_hystrix_either() -> None:
    gate = Gateway()

    async with gate, watched(gate) as state:
        assert list(state.hystrix.messages()) == []
        assert len(gate.listeners.call_finished) == 2


@virtual
async def test_an_endpoint_that_is_ejected_is_in_the_log() -> None:
    gate = Gateway()
    films = gate.http("films", ["http://a.example", "http://b.example"])

    async with gate, watched(gate) as state:
        sick = films.routes.endpoints["http://a.example"]
        for _ in range(5):
            sick.begin(films.clock()).end(films.clock(), "failure")
        await asyncio.sleep(1.1)
        document = state.document()

    assert [(event["kind"], event["text"]) for event in document["events"]] == [
        ("endpoint", "http://a.example up -> ejected")
    ]
    assert [one["state"] for one in document["upstreams"][0]["endpoints"]] == ["ejected", "up"]


@virtual
async def test_what_admin_knows_of_a_policy_stands_beside_the_numbers() -> None:
    gate = Gateway()
    gate.upstream("ratings")
    tuned = Tuned(etag='"7"', drift={"bulkhead.limit": (20, inf)})

    async with gate, watched(gate, tuned=lambda name: tuned, journal=True) as state:
        document = state.document()

    assert document["upstreams"][0]["etag"] == '"7"'
    assert document["upstreams"][0]["drift"] == {"bulkhead.limit": [20, "inf"]}
    assert document["gateway"]["journal"] is True


@virtual
async def test_numbers_that_do_not_add_up_are_told_once_and_shown() -> None:
    gate = Gateway()
    ratings = gate.upstream("ratings")

    @ratings.operation(idempotent=True)
    async def stars() -> int:
        return 5

    async with gate, watched(gate) as state:
        stars.tally.asked += 1  # type: ignore[attr-defined]
        await asyncio.sleep(3.1)
        broken = state.document()
        stars.tally.asked -= 1  # type: ignore[attr-defined]
        await asyncio.sleep(1.1)
        mended = state.document()

    assert broken["gateway"]["adds_up"] is False
    assert broken["upstreams"][0]["adds_up"] is False
    assert broken["upstreams"][0]["operations"][0]["adds_up"] is False
    assert [event["kind"] for event in broken["events"]] == ["warning"]
    assert mended["gateway"]["adds_up"] is True


@virtual
async def test_unwise_numbers_are_in_the_log_once() -> None:
    gate = Gateway()
    policy = Policy(timeout=TimeoutPolicy(attempt=10.0), bulkhead=BulkheadPolicy(limit=1))
    gate.upstream("ratings", policy=policy)

    async with gate, watched(gate) as state:
        await asyncio.sleep(3.1)
        document = state.document()

    assert len(document["upstreams"][0]["warnings"]) == 1
    assert [(event["kind"], event["upstream"]) for event in document["events"]] == [("warning", "ratings")]


@virtual
async def test_an_upstream_that_is_registered_meanwhile_is_shown() -> None:
    gate = Gateway()

    async with gate, watched(gate) as state:
        await asyncio.sleep(1.5)
        gate.upstream("late")
        document = state.document()

    assert [one["name"] for one in document["upstreams"]] == ["late"]


@virtual
async def test_calls_are_told_of_one_upstream_or_of_all() -> None:
    gate = gate_with_trouble()

    async with gate, watched(gate) as state:
        await ended(gate["ratings"]["shaky"]())
        await asyncio.sleep(0.5)
        calls = json.loads(json.dumps(state.calls()))["calls"]
        with pytest.raises(UnknownName):
            state.calls("rating")

        assert state.calls("films") == {"calls": []}
        assert state.calls("ratings", 0) == {"calls": []}

    (call,) = calls
    assert set(call) == {
        *("id", "at", "upstream", "operation", "outcome", "source", "age", "duration", "waited", "attempts"),
        *("plain", "steps", "text"),
    }
    assert (call["upstream"], call["operation"], call["source"]) == ("ratings", "shaky", "static")
    assert call["text"] == "circuit closed; attempt 1: Boom('down'); answered by static"
    assert {*call["steps"][0]} == {"kind", "seconds", "ok", "text"}


@virtual
async def test_names_are_left_to_whoever_shows_them() -> None:
    gate = Gateway()
    gate.upstream("<script>alert(1)</script>")

    async with gate, watched(gate) as state:
        document = json.loads(await state.encoded())

    assert document["upstreams"][0]["name"] == "<script>alert(1)</script>"


@virtual
async def test_what_rests_is_the_same_bytes_and_whatever_moves_is_seen_the_next_second() -> None:
    gate = gate_with_trouble()
    ratings, films = gate["ratings"], gate["films"]

    async with gate, watched(gate) as state:
        await ratings["stars"]("Alien")
        await asyncio.sleep(80.0)
        rests = [state.upstream(ratings), state.upstream(films)]
        await asyncio.sleep(1.0)
        assert all(one is kept for one, kept in zip(map(state.upstream, (ratings, films)), rests, strict=True))

        seen = [state.document()]
        for move in (
            lambda: ratings["stars"]("Alien"),
            lambda: ended(ratings["stars"]("Psycho", error=Boom())),
            lambda: asyncio.sleep(0, ratings["stars"].forget("Alien")),
            lambda: asyncio.sleep(0, ratings.tune_fields({"bulkhead.queue": 7})),
            lambda: asyncio.sleep(0, ratings.isolate()),
            lambda: asyncio.sleep(0, ratings.restore()),
            ratings.bulkhead.acquire,
            lambda: asyncio.sleep(0, ratings.bulkhead.release()),
            lambda: asyncio.sleep(11.0),
            lambda: asyncio.sleep(1.0),  # the sparkline moves on
        ):
            await move()
            seen.append(state.document())

    ratings_seen = [document["upstreams"][0] for document in seen]
    assert all(before != after for before, after in pairwise(ratings_seen))
    assert all(document["upstreams"][1] == seen[0]["upstreams"][1] for document in seen)
    assert [one["total"]["asked"] for one in ratings_seen] == [1, 2, *[3] * 9]
    assert [one["pool"]["in_use"] for one in ratings_seen] == [*[0] * 7, 1, 0, 0, 0]
    assert [one["circuit"]["state"] for one in ratings_seen][4:7] == ["closed", "isolated", "closed"]
    assert [one["operations"][0]["memory"]["entries"] for one in ratings_seen] == [1, 1, 1, *[0] * 8]
    assert ratings_seen[4]["pool"]["queue"] == 7
    assert ratings_seen[-1]["window"]["rates"]["asked"] == 0


@virtual
async def test_a_circuit_that_is_open_counts_down_though_nothing_moves() -> None:
    gate = Gateway()
    sick = gate.upstream("sick", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1, open_for=100.0)))

    @sick.operation(idempotent=True)
    async def one() -> int:
        raise Boom

    async with gate, watched(gate) as state:
        await ended(one())
        await asyncio.sleep(80.0)
        first = state.document()["upstreams"][0]["circuit"]["closes_in"]
        await asyncio.sleep(0.25)
        later = state.document()["upstreams"][0]["circuit"]["closes_in"]

    assert (first, later) == (pytest.approx(20.0), pytest.approx(19.75))
