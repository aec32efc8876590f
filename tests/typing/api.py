"""The types that users rely on. Read by mypy --strict and pyright; not run.

A line that must be an error names both codes; where it is no error any more, the check fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, assert_type

from gateway import (
    Alternate,
    Answer,
    AttemptFailed,
    BreakerPolicy,
    BreakerSnapshot,
    Bulkhead,
    BulkheadFull,
    BulkheadPolicy,
    BulkheadSnapshot,
    CallFinished,
    CircuitBreaker,
    CircuitChanged,
    Counts,
    Deadline,
    Event,
    Gateway,
    GatewayError,
    GatewaySnapshot,
    HttpPolicy,
    HttpRefused,
    HttpReply,
    LastGood,
    LatencySnapshot,
    MemorySnapshot,
    Outcome,
    Permit,
    Policy,
    PolicyChanged,
    Question,
    RetryPolicy,
    Slot,
    Source,
    Static,
    Tier,
    TimeoutPolicy,
    Upstream,
    UpstreamSnapshot,
    gather,
    handler,
)
from gateway.testing import Faults, VirtualTimeLoop, assert_nothing_left

gate = Gateway()
ratings = gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=20), timeout=TimeoutPolicy(call=0.8)))


@ratings.operation
async def bare(user: int, *, deep: bool = False) -> list[str]:
    return [str(user)] if deep else []


@ratings.operation(idempotent=True, fallback=[LastGood(max_age=300), Static([])], refused=(KeyError,))
async def declared(user: int, *, deep: bool = False) -> list[str]:
    return [str(user)] if deep else []


@ratings.operation(idempotent=True)
def plain(movie: str) -> bytes:
    return movie.encode()


def by_movie(_: object, movie: str, best: int = 5) -> tuple[str, int]:
    return movie, best


class Movies:
    @ratings.operation(idempotent=True, key=by_movie)
    async def by_instance(self, movie: str, *, best: int = 5) -> float:
        return float(best) if movie else 0.0

    @ratings.operation
    @staticmethod
    async def by_nobody(movie: str) -> str:
        return movie


class Search:
    """A tier of a user's own."""

    def answer(self, question: Question, /) -> Answer[str] | None:
        return Answer(str(question.args)) if question.outcome != "unknown" else None


class Later:
    """One that takes its time."""

    async def answer(self, question: Question, /) -> Answer[str] | None:
        return Answer(str(question.key))


async def calls() -> None:
    assert_type(await bare(1, deep=True), list[str])
    assert_type(await declared(user=1), list[str])
    assert_type(await plain("alien"), bytes)
    answer = await declared.ask(1, deep=True)
    assert_type(answer, Answer[list[str]])
    assert_type(answer.value, list[str])
    assert_type(answer.source, Source)
    assert_type(answer.age, float)
    assert_type(answer.error, Exception | None)
    assert_type(answer.degraded, bool)
    assert_type((await plain.ask("alien")).value, bytes)
    answer.value = []  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def from_threads() -> None:
    assert_type(bare.call_blocking(1, deep=True), list[str])
    assert_type(plain.call_blocking("alien"), bytes)
    assert_type(declared.ask_blocking(1), Answer[list[str]])
    assert_type(Movies().by_instance.call_blocking("alien", best=3), float)
    assert_type(Movies().by_instance.ask_blocking("alien"), Answer[float])
    bare.call_blocking("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Movies().by_instance.call_blocking(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with gate as same:
        assert_type(same, Gateway)
    assert_type(gate.close_blocking(drain_for=1.0, join_for=1.0), tuple[str, ...])
    gate.open_blocking()


async def arguments_keep_their_types() -> None:
    await bare("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bare()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await bare(1, deeper=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await declared.ask("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await declared.ask(1, deep="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain(b"no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def methods() -> None:
    movies = Movies()
    assert_type(await movies.by_instance("alien", best=3), float)
    assert_type((await movies.by_instance.ask("alien")).value, float)
    assert_type(await Movies.by_instance(movies, "alien"), float)
    assert_type(movies.by_instance.name, str)
    assert_type(await Movies.by_nobody("alien"), str)
    await movies.by_instance(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@ratings.operation(
    idempotent=True,
    fallback=[LastGood(max_age=300)],
    fresh_for=5.0,
    revalidate="background",
    remember=bool,
    coalesce=True,
    size_of=len,
    secret=("token",),
)
async def remembered(user: int, token: str) -> bytes:
    return f"{user}{token}".encode()


async def remembering() -> None:
    assert_type(await remembered.using(max_age=5.0)(1, "t"), bytes)
    assert_type(await remembered.using(only_live=True).ask(1, "t"), Answer[bytes])
    assert_type(remembered.using().call_blocking(1, "t"), bytes)
    assert_type(await Movies().by_instance.using(max_age=5)("alien", best=3), float)
    assert_type(remembered.forget(1, "t"), bool)
    assert_type(remembered.forget_all(1), int)
    assert_type(await remembered.warm([(1, "t"), (2, "t")]), int)
    assert_type((await remembered.ask(1, "t")).stored_at, float | None)
    assert_type((await remembered.ask(1, "t")).to_headers(), dict[str, str])
    assert_type(ratings.snapshot().operations["remembered"].memory, MemorySnapshot | None)
    assert_type(ratings.snapshot().operations["remembered"].ages, LatencySnapshot)
    await remembered.using(max_age=5.0)("no", "t")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    remembered.forget("no", "t")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ratings.operation(revalidate="later")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    ratings.operation(fresh_for="5")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def a_page_of_parts() -> None:
    page = await gather(required={"a": bare.ask(1), "b": bare(1)}, optional={"c": plain("alien"), "d": Later().answer})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    assert_type(page, Mapping[str, Answer[Any]])
    await gather(required={"a": Movies().by_instance.ask("alien")})
    await gather({"a": bare(1)})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    page["a"] = Answer(1)  # type: ignore[index]  # pyright: ignore[reportIndexIssue]


@declared.fallback
async def plan_b(error: Exception, user: int, *, deep: bool = False) -> list[str]:
    return [repr(error), str(user), str(deep)]


@declared.fallback(timeout=0.5, after_unknown=True)
def plan_c(error: Exception, user: int, *, deep: bool = False) -> list[str]:
    return [repr(error), str(user), str(deep)]


async def what_a_decorator_got_it_gives_back() -> None:
    assert_type(await plan_b(ValueError(), 1), list[str])
    assert_type(plan_c(ValueError(), 1), list[str])
    assert_type(declared.fallback(LastGood()), LastGood)
    assert_type(heard(CircuitChanged(upstream="", at=0.0, before="closed", after="open")), None)


@gate.on(CallFinished, AttemptFailed)
def told(event: Event) -> None:
    assert_type(event.upstream, str)
    assert_type(event.at, float)


@gate.on(CallFinished, plain_every=0)
def told_of_the_others(event: CallFinished) -> None:
    assert_type(event.attempts, int)


@gate.on(PolicyChanged)
def tuned(event: PolicyChanged) -> None:
    assert_type((event.before, event.after), tuple[Policy, Policy])


@gate.on(CircuitChanged)
def heard(event: CircuitChanged) -> None:
    assert_type(event.before, str)
    assert_type(event.after, str)


def tiers() -> None:
    each: list[Tier] = [Search(), Later(), LastGood(), Static(1), Alternate(bare), handler(plan_b), handler(plan_c)]
    ratings.operation(name="more", fallback=each)
    ratings.operation(fallback=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def errors() -> None:
    try:
        await bare(1)
    except BulkheadFull as full:
        assert_type(full.retry_after, float | None)
        assert_type(full.reason, Literal["queue_full", "max_wait"])
    except GatewayError as error:
        assert_type(error.outcome, Outcome)
        assert_type(error.attempts, int)
        assert_type(error.upstream, str)
        assert_type(error.operation, str)


async def running() -> None:
    async with gate as same:
        assert_type(same, Gateway)
    await gate.open()
    assert_type(await gate.close(drain_for=1.0, join_for=1.0), tuple[str, ...])
    with Deadline.after(1.0) as deadline:
        assert_type(deadline.remaining(), float)
    assert_type(Deadline.current(), Deadline | None)
    assert_type(Deadline.after(1.0).to_headers(), dict[str, str])
    with Deadline.from_headers({"X-Deadline-Ms": "100"}):
        pass


def looking() -> None:
    assert_type(gate["ratings"], Upstream)
    assert_type([up.name for up in gate], list[str])
    assert_type(ratings.warnings, tuple[str, ...])
    snapshot = gate.snapshot()
    assert_type(snapshot, GatewaySnapshot)
    assert_type(snapshot.upstreams, Mapping[str, UpstreamSnapshot])
    one = ratings.snapshot()
    assert_type(one.counts, Counts)
    assert_type(one.bulkhead, BulkheadSnapshot)
    assert_type(one.breaker, BreakerSnapshot)
    assert_type(one.latency, LatencySnapshot)
    assert_type(one.breaker.failure_rate, float | None)


def tuning() -> None:
    ratings.policy = Policy(retry=RetryPolicy(attempts=1))
    ratings.tune(breaker=BreakerPolicy(window_calls=100), fallback_timeout=0.2)
    ratings.tune_fields({"bulkhead.limit": 40})
    ratings.isolate()
    ratings.restore()
    ratings.policy.retry.attempts = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    BulkheadPolicy(20)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def parts() -> None:
    bulkhead = Bulkhead(BulkheadPolicy(limit=1))
    async with bulkhead:
        assert_type(bulkhead.acquire_nowait(), bool)
    breaker = CircuitBreaker(BreakerPolicy())
    with breaker.admit() as permit:
        assert_type(permit, Permit)


def testing() -> None:
    with Faults(bare, seed=1).value([]).error(ValueError()).error(ValueError).delay(1.0).hang() as faults:
        faults.chance(0.5, ValueError).clear()
    Faults(Movies().by_instance).hang()
    Faults(plan_b)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_nothing_left(gate)
    VirtualTimeLoop().advance(3600.0)


async def blocks() -> str:
    assert_type(ratings.slot(), Slot)
    async with ratings.slot() as slot:
        assert_type(slot, Slot)
        assert_type(slot.waited, float)
        assert_type(slot.deadline, Deadline | None)
    async with (
        ratings.slot("report", timeout=TimeoutPolicy(attempt=1.0), refused=(KeyError,)),
        AsyncExitStack() as stack,
    ):
        assert_type(await stack.enter_async_context(ratings.slot()), Slot)
        return "a slot swallows no error: nothing is missing after it"


def blocks_say_only_what_fits() -> None:
    ratings.slot("a", TimeoutPolicy())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ratings.slot(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ratings.slot(timeout=5.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ratings.slot(refused=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    ratings.slot(idempotent=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ratings.slot(fallback=[Static(1)])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def classify(what: object) -> Outcome | None:
    return Outcome.FAILED if what is None else None


def who() -> str:
    return "ada"


@ratings.operation(classify=classify, identity=who, timeout=TimeoutPolicy(attempt=0.1))
async def everything(*args: int, **kwargs: str) -> dict[str, Any]:
    return {"args": args, "kwargs": kwargs}


async def variadic() -> None:
    assert_type(await everything(1, 2, a="b"), dict[str, Any])
    await everything("no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- HTTP

movies = gate.http("movies", "http://host/v1", policy=Policy(), http=HttpPolicy(max_body=1024))
several = gate.http("several", ["http://one", ("http://two", 2.0)])


@movies.get("/films/{film}", into=list[int], fallback=[LastGood(), Static([])], params={"deep": True})
async def stars_of(film: str, *, page: int = 1) -> Any: ...


def order_of(order: str, json: object) -> str:
    return order if json else ""


@movies.post("/charges", into=dict[str, int], idempotency_key=order_of, refused=(KeyError,))
async def charge(order: str, json: object) -> Any: ...


async def http() -> None:
    assert_type(await movies.get("/films/1", params={"page": 1}, headers={"X-A": "b"}), HttpReply)
    assert_type(await movies.get.ask("/films/1"), Answer[HttpReply])
    assert_type(await movies.post("/films", json={"name": "Alien"}, idempotency_key="one"), HttpReply)
    assert_type(await movies.request("PUT")("/films/1", data=b"x"), HttpReply)
    assert_type(await stars_of("603", page=2), list[int])
    assert_type(await stars_of.ask("603"), Answer[list[int]])
    assert_type(await charge("7", {"cents": 900}), dict[str, int])
    await stars_of(603)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await stars_of()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    async with movies.stream("GET", "/export") as stream:
        assert_type(stream.status, int)
        async for piece in stream:
            assert_type(piece, bytes)


def replies(reply: HttpReply, refused: HttpRefused) -> None:
    assert_type(reply.json(into=list[int]), list[int])
    assert_type(reply.json(), Any)
    assert_type((reply.status, reply.body, reply.text()), tuple[int, bytes, str])
    assert_type((refused.status, refused.reply), tuple[int, HttpReply])
    assert_type(reply.headers["Content-Type"], str)
    reply.status = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    gate.http("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    gate.http("x", "http://host", Policy())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    movies.get("/a", into=int, fallback=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
