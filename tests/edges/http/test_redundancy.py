"""Several endpoints: one that dies, lies or hangs costs no call that is safe to repeat."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar

import pytest
from msgspec import Struct

from gateway import (
    Alternate,
    BudgetPolicy,
    BulkheadPolicy,
    CircuitOpen,
    ConfigError,
    Deadline,
    EndpointsPolicy,
    Failed,
    Gateway,
    HttpPolicy,
    HttpReply,
    Outcome,
    Policy,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Unknown,
)
from gateway.http.client import HttpUpstream
from tests.edges.http.instances import Instance, instances, urls
from tests.edges.http.misbehaving import reply
from tests.support import NEVER_OPENS, ONE_TRY, counted, ended, until

pytestmark = [pytest.mark.asyncio, pytest.mark.alone]
LONG = 60.0
"""A pause that no test would sit out."""
PATIENT = Policy(retry=RetryPolicy(wait=lambda _: LONG), breaker=NEVER_OPENS)
LOAD = Policy(
    timeout=TimeoutPolicy(call=2.0, attempt=0.5, read=0.08),
    bulkhead=BulkheadPolicy(limit=12),
    retry=RetryPolicy(attempts=2, budget=BudgetPolicy(burst=20)),
)
QUICK = HttpPolicy(endpoints=EndpointsPolicy(eject_for=0.2, ramp_for=0.5))


async def load(up: HttpUpstream, number: int, *, method: str = "GET", workers: int = 12) -> list[object]:
    """So many calls, one after another by each of some workers; how they ended."""
    results: list[object] = []
    numbers = iter(range(number))

    async def works() -> None:
        for n in numbers:
            call = up.request(method)("/", data=None if method == "GET" else f"order {n}")
            results.append(await ended(call))

    await asyncio.gather(*(works() for _ in range(workers)))
    return results


def kinds(results: list[object]) -> Counter[str]:
    return Counter("fine" if isinstance(one, HttpReply) else type(one).__name__ for one in results)


def calls(running: list[Instance]) -> list[int]:
    return [one.calls for one in running]


def states(up: HttpUpstream) -> list[str]:
    return [one.state for one in up.endpoints.endpoints]


# -- one of three dies


@pytest.mark.parametrize("way", ["close", "hang", "500"])
async def test_one_of_three_dies_under_load_and_no_call_fails_that_may_be_repeated(gate: Gateway, way: str) -> None:
    async with instances(3) as running:
        up = gate.http("up", urls(running), policy=LOAD, http=QUICK)
        before = await load(up, 120)
        sick = running[1]
        reached = sick.calls

        under_load = asyncio.create_task(load(up, 240))
        await until(lambda: sick.calls > reached)
        if way == "close":
            await sick.die()
        else:
            sick.mode = way
        after = await under_load

        assert kinds(before + after) == {"fine": 360}
        assert reached > 15
        assert sick.calls - reached < 80
        assert all(one.calls > 70 for one in running if one is not sick)
        assert up.snapshot().breaker.state == "closed"


async def test_one_of_three_dies_and_only_posts_on_their_way_to_it_are_unknown(gate: Gateway) -> None:
    async with instances(3, takes=0.01) as running:
        up = gate.http("up", urls(running), policy=LOAD, http=QUICK)
        sick = running[1]

        under_load = asyncio.create_task(load(up, 600, method="POST"))
        await until(lambda: sick.calls > 10 and sick.in_flight > 1)
        await sick.die()
        results = await under_load

        ended_so = kinds(results)
        assert ended_so["fine"] + ended_so["Unknown"] == 600
        assert 0 < ended_so["Unknown"] <= LOAD.bulkhead.limit
        assert max(Counter(order for one in running for order in one.orders).values()) == 1


async def test_one_that_comes_back_is_let_in_by_a_ramp(gate: Gateway) -> None:
    asked_all_the_same = EndpointsPolicy(eject_for=0.2, ramp_for=0.5, failures_in_a_row=3, failure_cost=0.0)
    async with instances(3) as running:
        up = gate.http("up", urls(running), policy=LOAD, http=HttpPolicy(endpoints=asked_all_the_same))
        sick = running[1]
        await sick.die()
        while_it_is_dead: list[object] = []
        while states(up) != ["healthy", "ejected", "healthy"]:
            while_it_is_dead += await load(up, 20)
        await sick.start()
        await until(lambda: states(up)[1] == "ramping")
        assert set(kinds(while_it_is_dead)) == {"fine"}

        in_the_ramp = await load(up, 60)
        share_in_the_ramp = sick.calls
        assert states(up)[1] == "ramping"
        await until(lambda: states(up)[1] == "healthy")
        after_it = await load(up, 300)

        assert kinds(in_the_ramp + after_it) == {"fine": 360}
        assert share_in_the_ramp < 15
        assert sick.calls - share_in_the_ramp > 50


async def test_one_that_is_dead_from_the_start_does_not_open_the_circuit(gate: Gateway) -> None:
    async with instances(3) as running:
        up = gate.http("up", urls(running), policy=LOAD, http=QUICK)
        await running[1].die()

        results = await load(up, 100)

        assert kinds(results) == {"fine": 100}
        assert up.snapshot().breaker.failures == 0


async def test_when_all_are_down_the_circuit_opens(gate: Gateway) -> None:
    async with instances(3) as running:
        up = gate.http("up", urls(running))
        for one in running:
            await one.die()

        results = await load(up, 40)

        assert kinds(results)["CircuitOpen"] > 0
        assert up.snapshot().breaker.state == "open"


async def test_when_all_are_down_calls_fail_as_what_was_not_sent(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=Policy(breaker=NEVER_OPENS), http=QUICK)
        for one in running:
            await one.die()

        error = await ended(up.post("/", data="x"))

        assert isinstance(error, Failed)
        assert error.attempts == 2
        assert counted(up)["attempts"] == 2


# -- failover within a call


async def test_what_was_not_sent_goes_elsewhere_without_a_pause_also_a_post(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        await running[0].die()

        results = [await ended(up.post("/", data=f"{n}")) for n in range(20)]

        assert kinds(results) == {"fine": 20}
        assert len(running[1].orders) == 20


async def test_what_may_be_repeated_goes_elsewhere_without_a_pause(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        running[0].mode = "cut"

        results = [await ended(up.get("/")) for _ in range(20)]

        assert kinds(results) == {"fine": 20}
        assert 0 < running[0].calls < 20
        assert counted(up)["retries"] == running[0].calls


async def test_after_unknown_nothing_goes_elsewhere(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        for one in running:
            one.mode = "cut"

        error = await ended(up.post("/", data="an order"))

        assert isinstance(error, Unknown)
        assert sum(calls(running)) == 1


@pytest.mark.parametrize(("attempts", "tried"), [(1, 1), (2, 2), (3, 3), (9, 3)])
async def test_the_attempts_of_the_policy_bound_it_and_then_there_is_a_pause(
    gate: Gateway, attempts: int, tried: int
) -> None:
    async with instances(3) as running:
        for one in running:
            one.mode = "500"
        retry = RetryPolicy(attempts=attempts, wait=lambda _: LONG)
        up = gate.http("up", urls(running), policy=Policy(retry=retry, breaker=NEVER_OPENS))

        error = await ended(up.get("/"))

        assert error.attempts == tried
        assert sorted(calls(running), reverse=True) == [1] * tried + [0] * (3 - tried)


async def test_it_is_paid_for_by_the_budget(gate: Gateway) -> None:
    async with instances(2) as running:
        budget = BudgetPolicy(ratio=0.0, minimum=1e-9, burst=1)
        up = gate.http("up", urls(running), policy=Policy(retry=RetryPolicy(budget=budget), breaker=NEVER_OPENS))
        for one in running:
            one.mode = "500"

        one, two = await ended(up.get("/")), await ended(up.get("/"))

        assert (one.attempts, two.attempts) == (2, 1)
        assert "retry budget" in str(two.__notes__)


@pytest.mark.parametrize(
    ("retry", "left", "counted_failures"),
    [
        (ONE_TRY, 9, 6),  # none goes on
        (RetryPolicy(wait=lambda _: 0.0), 9, 3),  # one of the two of each call does
        (RetryPolicy(budget=BudgetPolicy(ratio=0.0, minimum=1e-9, burst=1)), 9, 3),
        (RetryPolicy(), 0, 3),
    ],
)
async def test_only_a_failure_that_goes_on_elsewhere_is_spared_the_circuit(
    gate: Gateway, retry: RetryPolicy, left: int, counted_failures: int
) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=Policy(retry=retry, breaker=NEVER_OPENS))
        for one in running:
            one.mode = "500"

        with Deadline.from_headers({Deadline.ATTEMPTS: str(left), "X-Deadline-Ms": "5000"}):
            for _ in range(6 if retry is ONE_TRY else 3):
                await ended(up.get("/"))

        assert up.snapshot().breaker.failures == counted_failures


async def test_a_try_that_has_no_time_left_is_not_made(gate: Gateway) -> None:
    async with instances(2, takes=0.03) as running:
        for one in running:
            one.mode = "500"
        policy = Policy(retry=RetryPolicy(min_try=0.05), breaker=NEVER_OPENS)
        up = gate.http("up", urls(running), policy=policy)

        with Deadline.after(0.07):
            error = await ended(up.get("/"))

        assert error.attempts == 1


async def test_one_instance_that_asks_to_be_left_alone_holds_nobody_back_while_there_is_another(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=Policy(breaker=NEVER_OPENS))
        running[0].answer = reply(b"", "Retry-After: 7", status=503)

        results = [await ended(up.post("/", data=f"{n}")) for n in range(20)]

        assert kinds(results) == {"fine": 20}
        assert running[0].calls > 0


async def test_when_all_ask_to_be_left_alone_they_are(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=Policy(breaker=NEVER_OPENS))
        for one in running:
            one.answer = reply(b"", "Retry-After: 7", status=503)

        results = [await ended(up.get("/")), await ended(up.get("/"))]

        assert kinds(results) == {"Failed": 1, "CircuitOpen": 1}
        assert calls(running) == [1, 1]


async def test_who_asks_for_too_much_is_not_sent_elsewhere_and_no_endpoint_is_blamed(gate: Gateway) -> None:
    async with instances(2) as running:
        for one in running:
            one.answer = reply(b"", "Retry-After: 7", status=429)
        up = gate.http("up", urls(running), policy=Policy(retry=ONE_TRY, breaker=NEVER_OPENS))

        first, second = await ended(up.get("/")), await ended(up.get("/"))

        assert isinstance(first, Failed)
        assert isinstance(second, CircuitOpen)
        assert sum(calls(running)) == 1
        assert [one.failures for one in up.endpoints.endpoints] == [0, 0]


# -- keys


@pytest.mark.parametrize("share", [True, False])
async def test_a_key_goes_elsewhere_only_among_endpoints_that_share_keys(gate: Gateway, share: bool) -> None:
    async with instances(2) as running:
        http = HttpPolicy(endpoints=EndpointsPolicy(share_keys=share, failures_in_a_row=1000, min_calls=1000))
        policy = Policy(retry=RetryPolicy(wait=lambda _: 0.0, budget=None), breaker=NEVER_OPENS)
        up = gate.http("up", urls(running), policy=policy, http=http)
        for one in running:
            one.mode = "cut"

        for n in range(10):
            await ended(up.post("/", data="x", idempotency_key=f"order {n}"))

        where: dict[str, set[str]] = {}
        for one in running:
            for n in range(one.calls):
                where.setdefault(one.key(n), set()).add(one.name)
        assert len(where) == 10
        assert {len(names) for names in where.values()} == ({2} if share else {1})
        assert sum(calls(running)) == 20


async def test_the_same_key_goes_to_the_same_endpoint_call_after_call(gate: Gateway) -> None:
    async with instances(3) as running:
        up = gate.http("up", urls(running))

        @up.operation(idempotent=True)
        async def within() -> None:
            await up.post("/", data="x", idempotency_key="order 7")

        for _ in range(5):
            await up.post("/", data="x", idempotency_key="order 7")
            await within()
        for n in range(30):
            await up.post("/", data="y", idempotency_key=f"other {n}")

        assert sorted(one.orders.count(b"x") for one in running) == [0, 0, 10]
        assert all(one.orders.count(b"y") > 2 for one in running)


async def test_a_key_that_was_certainly_not_sent_goes_elsewhere(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        await running[0].die()

        results = [await ended(up.post("/", data="x", idempotency_key=f"order {n}")) for n in range(10)]

        assert kinds(results) == {"fine": 10}


@pytest.mark.parametrize("declared", [False, True])
async def test_a_key_whose_endpoint_has_left_the_list_is_not_tried_at_another(gate: Gateway, declared: bool) -> None:
    async with instances(2) as running:
        policy = Policy(retry=RetryPolicy(wait=lambda _: 0.0), breaker=NEVER_OPENS)
        up = gate.http("up", running[0].url, policy=policy)
        running[0].mode = "hang"

        @up.post("/", into=HttpReply, idempotency_key=lambda data: "order 7")
        async def pay(data: str) -> HttpReply: ...

        call = asyncio.create_task(
            ended(pay("x") if declared else up.post("/", data="x", idempotency_key="order 7")),
        )
        await until(lambda: running[0].in_flight)
        up.replace_endpoints([running[1].url])
        await running[0].die()
        error = await call

        assert isinstance(error, Failed)
        assert error.attempts == 1
        assert running[1].calls == 0


async def test_a_key_whose_endpoint_leaves_the_list_during_the_pause_is_not_tried_at_another(gate: Gateway) -> None:
    async with instances(2) as running:
        resting = asyncio.Event()
        policy = Policy(retry=RetryPolicy(wait=lambda _: resting.set() or 0.02), breaker=NEVER_OPENS)  # type: ignore[func-returns-value]
        up = gate.http("up", running[0].url, policy=policy)
        running[0].mode = "500"

        call = asyncio.create_task(ended(up.post("/", data="x", idempotency_key="order 7")))
        await resting.wait()
        up.replace_endpoints([running[1].url])
        error = await call

        assert isinstance(error, Failed)
        assert "no longer there" in str(error)
        assert running[1].calls == 0


# -- what each endpoint is told, and what it is blamed for


async def test_credentials_stay_with_their_own_origin(gate: Gateway) -> None:
    async with instances(2) as running:
        one, two = running
        up = gate.http(
            "up", [one.url.replace("//", "//user:s3cret@"), two.url], http=HttpPolicy(headers={"X-Key": "k"})
        )

        for _ in range(20):
            await up.get("/")

        assert min(calls(running)) > 0
        assert all(b"Authorization: Basic" in head for head in one.asked)
        assert not any(b"Authorization" in head for head in two.asked)
        assert all(b"X-Key: k" in head for head in (*one.asked, *two.asked))
        assert "s3cret" not in repr(up.endpoints)


async def test_a_heavier_one_gets_more(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", [running[0].url, (running[1].url, 4.0)])

        await load(up, 300)

        assert running[1].calls > 2 * running[0].calls > 0


async def test_refusals_and_callers_who_leave_are_no_fault_of_an_endpoint(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running))
        for one in running:
            one.answer = reply(b"", status=404)
        for _ in range(10):
            await ended(up.get("/"))
        for one in running:
            one.mode, one.answer = "hang", b""

        leaving = [asyncio.create_task(up.get("/")) for _ in range(10)]
        await until(lambda: sum(one.in_flight for one in running) == 10)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        with Deadline.after(0.03):
            await ended(up.get("/"))

        assert [(one.failures, one.in_flight) for one in up.endpoints.endpoints] == [(0, 0), (0, 0)]


class Film(Struct):
    name: str


async def test_an_answer_that_is_not_as_agreed_is_a_failure_of_its_endpoint(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        running[0].answer, running[1].answer = reply(b"<html>"), reply(b'{"name": "Heat"}')

        @up.get("/films/{film_id}", into=Film, fallback=[Static(None)])
        async def film(film_id: str) -> Film: ...

        films = [await film(f"{n}") for n in range(20)]

        assert films == [Film("Heat")] * 20
        assert up.endpoints.endpoints[0].failures > 0
        assert up.endpoints.endpoints[1].failures == 0


async def test_fallbacks_are_given_what_the_caller_gave(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=Policy(retry=ONE_TRY))
        for one in running:
            one.mode = "500"
        up.get.fallback(lambda error, request: request.path)

        @up.get("/films/{film_id}", into=Film)
        async def film(film_id: str) -> Film: ...

        film.fallback(lambda error, film_id: film_id)

        assert await up.get("/a") == "/a"
        assert await film("7") == "7"


async def test_a_stream_goes_to_another_endpoint_until_it_has_begun(gate: Gateway) -> None:
    async with instances(2) as running:
        up = gate.http("up", urls(running), policy=PATIENT)
        await running[0].die()
        names = []

        for _ in range(10):
            async with up.stream("GET", "/") as answer:
                in_flight = sum(one.in_flight for one in up.endpoints.endpoints)
                names.append(b"".join([piece async for piece in answer]))
                assert in_flight == 1

        assert names == [b"b"] * 10
        assert up.endpoints.endpoints[0].failures > 0
        assert sum(one.in_flight for one in up.endpoints.endpoints) == 0


# -- the list


async def test_the_list_is_replaced_while_calls_are_in_flight(gate: Gateway) -> None:
    async with instances(3, takes=0.02) as running:
        up = gate.http("up", [running[0].url])

        first = asyncio.create_task(up.get("/"))
        await until(lambda: running[0].in_flight)
        up.replace_endpoints(urls(running[1:]))
        answer = await first
        await load(up, 40)
        up.replace_endpoints(running[2].url)
        third = await up.get("/")

        assert (answer.body, third.body) == (b"a", b"c")
        assert running[0].calls == 1
        assert min(calls(running)[1:]) > 0
        assert [one.url for one in up.endpoints.endpoints] == [running[2].url]


@pytest.mark.parametrize(
    "bad", [[], "ftp://a", ["http://a", "http://a/"], [("http://a", 0)], 7, ["http://a", 7], [("http://a", 1.0, 2)]]
)
async def test_a_list_that_cannot_be_changes_nothing(gate: Gateway, bad: object) -> None:
    up = gate.http("up", ["http://a", "http://b"])

    with pytest.raises(ConfigError):
        up.replace_endpoints(bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        gate.http("other", bad)  # type: ignore[arg-type]

    assert [one.url for one in up.endpoints.endpoints] == ["http://a", "http://b"]


# -- checks


CHECKED = HttpPolicy(
    health_path="/health",
    health_every=0.02,
    health_timeout=0.1,
    endpoints=EndpointsPolicy(ramp_for=0.0),
)


@pytest.mark.parametrize("way", ["close", "hang", "drip", "500", "404", "302"])
async def test_checks_take_out_what_is_ill_and_let_it_in_again_at_no_call_s_cost(gate: Gateway, way: str) -> None:
    async with instances(3) as running:
        up = gate.http("up", urls(running), http=CHECKED)
        await up.get("/")

        if way == "close":
            await running[0].die()
        else:
            running[0].mode = way
        await until(lambda: states(up) == ["down", "healthy", "healthy"])
        results = await load(up, 30, workers=2)
        if way == "close":
            await running[0].start()
        running[0].mode = "ok"
        await until(lambda: states(up) == ["healthy"] * 3)

        assert kinds(results) == {"fine": 30}
        assert counted(up) == {"asked": 31, "live": 31, "attempts": 31}
        assert up.snapshot().bulkhead.in_use == 0
        assert any(b"GET /health " in head for head in running[1].asked)


async def test_checks_know_nothing_of_who_opened_the_gateway_and_end_with_it() -> None:
    var: ContextVar[str] = ContextVar("var", default="nobody")
    seen = []

    def resolve(name: str) -> list[str]:
        return ["127.0.0.1"]

    async with instances(2) as running:
        gate = Gateway()
        http = HttpPolicy(health_path="/health", health_every=0.01, resolve=resolve)
        var.set("somebody")
        up = gate.http("up", urls(running), http=http)
        with Deadline.after(0.5):
            async with gate:
                await until(lambda: sum(calls(running)) > 3)
                task = up._checks
                assert task is not None
                seen.append(task.get_context().get(var) if hasattr(task, "get_context") else None)

        assert seen == [None]
        assert task.cancelled()
        assert not any(b"X-Deadline" in head for one in running for head in one.asked)


async def test_a_path_to_check_stays_below_the_base_url(gate: Gateway) -> None:
    with pytest.raises(ConfigError, match="path"):
        gate.http("up", "http://a", http=HttpPolicy(health_path="//b/health"))


# -- another provider


async def test_when_one_payment_provider_refuses_connections_the_other_pays(gate: Gateway) -> None:
    async with instances(2) as (first, second):
        one, two = gate.http("one", first.url), gate.http("two", second.url)
        one.post.fallback(Alternate(two.post))
        await first.die()

        answer = await one.post.ask("/charges", data="order 7")

        assert answer.source is Source.ALTERNATE
        assert answer.value.body == b"b"
        assert (first.orders, second.orders) == ([], [b"order 7"])
        assert counted(one)["alternate"] == 1


async def test_when_one_payment_provider_times_out_the_other_is_not_asked(gate: Gateway) -> None:
    async with instances(2) as (first, second):
        policy = Policy(timeout=TimeoutPolicy(read=0.05))
        one, two = gate.http("one", first.url, policy=policy), gate.http("two", second.url)
        one.post.fallback(Alternate(two.post))
        first.mode = "hang"

        error = await ended(one.post.ask("/charges", data="order 7"))

        assert error.outcome is Outcome.UNKNOWN
        assert (first.orders, second.orders) == ([b"order 7"], [])
