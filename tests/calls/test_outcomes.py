"""The whole table: how a try can end, and what follows from it for the caller, the retry, the tiers and the circuit."""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tenacity import wait_none

from gateway import (
    Alternate,
    BreakerPolicy,
    BulkheadFull,
    BulkheadPolicy,
    CircuitOpen,
    ConfigError,
    Deadline,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    Gateway,
    GatewayClosed,
    GatewayError,
    KeyNeeded,
    LastGood,
    NotSent,
    Outcome,
    Policy,
    Refused,
    Rejected,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
    Unknown,
    UnknownName,
    UnknownTimeout,
    WrongLoop,
)
from tests.support import NEVER_OPENS, QUIET, Boom, counted, ended, fail_until_open, gone, steps

TWO_TRIES = Policy(
    timeout=TimeoutPolicy(call=10.0, attempt=1.0),
    retry=RetryPolicy(attempts=2, wait=wait_none()),
    breaker=BreakerPolicy(min_calls=1000),
)


class No(Exception):
    """A healthy "no" in the user's own words."""


async def awaits_what_somebody_cancelled() -> None:
    inner = asyncio.ensure_future(asyncio.sleep(9))
    inner.cancel()
    await inner


def raising(error: Exception | type[Exception]) -> Callable[[], Any]:
    async def function() -> None:
        raise error

    return function


def giving(value: object) -> Callable[[], Any]:
    async def function() -> object:
        return value

    return function


async def hanging() -> None:
    await asyncio.sleep(99)


def judge(**verdicts: Outcome) -> Callable[[object], Outcome | None]:
    """Verdicts by the name of an exception's type, or by a value."""
    return lambda what: verdicts.get(type(what).__name__ if isinstance(what, Exception) else str(what))


def judge_that_raises(what: object) -> Outcome:
    raise KeyError(what)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What follows when `function` ends as it does, by whether the operation may be repeated."""

    function: Callable[[], Any]
    raised: dict[bool | None, type[Exception]]
    tries: dict[bool | None, int]
    cause: type[BaseException] | None
    declared: dict[str, Any]
    waited_for: str | None = None

    @property
    def may_be_tried_elsewhere(self) -> dict[bool | None, bool]:
        return {idempotent: tries == 2 for idempotent, tries in self.tries.items()}


def usual(function: Callable[[], Any], cause: type[BaseException] | None, **declared: Any) -> Row:
    return Row(
        function=function,
        raised={True: Failed, None: Failed, False: Unknown},
        tries={True: 2, None: 1, False: 1},
        cause=cause,
        declared=declared,
    )


def late(function: Callable[[], Any], cause: type[BaseException], waited_for: str | None) -> Row:
    row = usual(function, cause)
    return replace(row, raised={True: FailedTimeout, None: FailedTimeout, False: UnknownTimeout}, waited_for=waited_for)


def always(
    function: Callable[[], Any], raised: type[Exception], tries: int, cause: type[BaseException] | None, **declared: Any
) -> Row:
    each = (True, None, False)
    return Row(
        function=function,
        raised=dict.fromkeys(each, raised),
        tries=dict.fromkeys(each, tries),
        cause=cause,
        declared=declared,
    )


FAILED, UNKNOWN, REFUSED = Outcome.FAILED, Outcome.UNKNOWN, Outcome.REFUSED
TABLE = {
    "an error": usual(raising(Boom), Boom),
    "a TimeoutError of its own": late(raising(TimeoutError), TimeoutError, None),
    "no answer in time": late(hanging, asyncio.CancelledError, "attempt"),
    "a task of its own was cancelled": usual(awaits_what_somebody_cancelled, asyncio.CancelledError),
    "NotSent": always(raising(NotSent), Failed, 2, NotSent),
    "Refused": always(raising(Refused), Refused, 1, None),
    "a refusal by its type": always(raising(No), No, 1, None, refused=(No,)),
    "a subclass of NotSent": always(raising(type("Unreachable", (NotSent, OSError), {})), Failed, 2, NotSent),
    "an error judged failed": always(raising(Boom), Failed, 2, Boom, classify=judge(Boom=FAILED)),
    "an error judged unknown": always(raising(Boom), Unknown, 1, Boom, classify=judge(Boom=UNKNOWN)),
    "an error judged refused": always(raising(Boom), Boom, 1, None, classify=judge(Boom=REFUSED)),
    "an error not judged": usual(raising(Boom), Boom, classify=judge()),
    "an error judged a success": usual(raising(Boom), Boom, classify=judge(Boom=Outcome.SUCCESS)),
    "a refusal judged failed": always(raising(No), Failed, 2, No, refused=(No,), classify=judge(No=FAILED)),
    "an error whose judge raises": usual(raising(Boom), Boom, classify=judge_that_raises),
    "a refusal whose judge raises": always(raising(No), No, 1, None, refused=(No,), classify=judge_that_raises),
    "a value judged failed": always(giving("bad"), Failed, 2, None, classify=judge(bad=FAILED)),
    "a value judged unknown": always(giving("bad"), Unknown, 1, None, classify=judge(bad=UNKNOWN)),
    "a value judged refused": always(giving("bad"), Refused, 1, None, classify=judge(bad=REFUSED)),
    "a value whose judge raises": usual(giving("good"), KeyError, classify=judge_that_raises),
    "a rejection of another upstream": usual(raising(CircuitOpen("the other one")), CircuitOpen),
    "a failure of another upstream": usual(raising(Failed("the other one")), Failed),
    "an unknown end of another upstream": usual(raising(Unknown("the other one")), Unknown),
    "a timeout of another upstream": late(raising(FailedTimeout("the other one")), FailedTimeout, None),
    "several errors at once": usual(raising(ExceptionGroup("two", [Boom(), No()])), ExceptionGroup, refused=(No,)),
}
IDEMPOTENT = {"may be repeated": True, "says nothing": None, "must not be repeated": False}
over_the_table = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
either_way = pytest.mark.parametrize("idempotent", IDEMPOTENT.values(), ids=IDEMPOTENT)


@pytest.mark.virtual_time
@either_way
@over_the_table
async def test_what_is_raised_how_often_it_was_tried_and_what_is_counted(gate: Gateway, row: Row, idempotent) -> None:
    up = gate.upstream("world", policy=TWO_TRIES)
    operation = up.operation(name="ask", idempotent=idempotent, **row.declared)(row.function)

    error = await ended(operation())

    tries, refused = row.tries[idempotent], not issubclass(row.raised[idempotent], GatewayError)
    assert type(error) is row.raised[idempotent]
    assert isinstance(error, TimeoutError) == ("Timeout" in type(error).__name__)
    outcome = "refused" if refused else "unknown" if isinstance(error, Unknown) else "failed"
    retries = {"retries": 1} if tries == 2 else {}
    assert counted(up) == {"asked": 1, outcome: 1, "attempts": tries} | retries
    circuit = up.snapshot().breaker
    assert (circuit.calls, circuit.failures) == ((0, 0) if refused else (tries, tries))
    if not refused:
        assert (error.upstream, error.operation) == ("world", "ask")
        assert (error.outcome, error.attempts) == (outcome, tries)
        assert error.waited_for == row.waited_for
        assert error.retry_after is None
        assert row.cause is None if error.__cause__ is None else isinstance(error.__cause__, row.cause)


@pytest.mark.virtual_time
@either_way
@over_the_table
async def test_which_tiers_are_asked(gate: Gateway, row: Row, idempotent) -> None:
    up = gate.upstream("world", policy=TWO_TRIES)
    static = up.operation(name="static", idempotent=idempotent, fallback=[Static("s")], **row.declared)(row.function)
    brave = up.operation(
        name="brave", idempotent=idempotent, fallback=[Static("b", after_unknown=True)], **row.declared
    )(row.function)

    plain, bold = await ended(static.ask()), await ended(brave.ask())

    raised = row.raised[idempotent]
    if issubclass(raised, Failed):
        assert (plain.value, plain.source, type(plain.error)) == ("s", Source.STATIC, raised)
    else:
        assert type(plain) is raised
    if issubclass(raised, GatewayError):
        assert (bold.value, bold.source, type(bold.error)) == ("b", Source.STATIC, raised)
        assert bold.degraded
    else:
        assert type(bold) is raised


@pytest.mark.virtual_time
@either_way
@over_the_table
async def test_another_upstream_is_asked_only_where_the_call_may_be_repeated(
    gate: Gateway, row: Row, idempotent
) -> None:
    other = gate.upstream("other").operation(name="other", idempotent=True)(giving("elsewhere"))
    up = gate.upstream("world", policy=TWO_TRIES)
    operation = up.operation(name="ask", idempotent=idempotent, fallback=[Alternate(other)], **row.declared)(
        row.function
    )

    answer = await ended(operation.ask())

    if row.may_be_tried_elsewhere[idempotent]:
        assert (answer.value, answer.source) == ("elsewhere", Source.ALTERNATE)
    else:
        assert type(answer) is row.raised[idempotent]
        assert counted(gate["other"]) == {}


# -- values


@pytest.mark.virtual_time
@pytest.mark.parametrize("verdict", [None, Outcome.SUCCESS, Outcome.CANCELLED, Outcome.REJECTED], ids=str)
async def test_a_value_that_is_judged_no_failure_is_the_answer(gate: Gateway, verdict) -> None:
    up = gate.upstream("world")
    operation = up.operation(name="ask", classify=lambda value: verdict)(giving("fine"))

    answer = await operation.ask()

    assert (answer.value, answer.source, answer.age, answer.error, answer.degraded) == (
        "fine",
        "live",
        0.0,
        None,
        False,
    )


@pytest.mark.virtual_time
async def test_a_value_judged_refused_is_in_the_refusal(gate: Gateway) -> None:
    up = gate.upstream("world")
    operation = up.operation(name="ask", classify=judge(bad=REFUSED))(giving("bad"))

    error = await ended(operation())

    assert error.args == ("bad",)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.virtual_time
async def test_a_value_judged_failed_is_named_by_the_error(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    operation = up.operation(name="ask", classify=judge(bad=FAILED))(giving("bad"))

    error = await ended(operation())

    assert "'bad'" in str(error)
    assert "world.ask" in str(error)


@pytest.mark.virtual_time
async def test_a_value_judged_failed_is_not_remembered(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    values = ["good", "bad", "bad"]

    @up.operation(idempotent=True, classify=judge(bad=FAILED), fallback=[LastGood()])
    async def ask() -> str:
        return values.pop(0)

    answers = [(await ask.ask()).value for _ in range(3)]

    assert answers == ["good", "good", "good"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("verdict", ["failed", "unknown", "refused"])
async def test_a_verdict_may_be_spelled_as_text(gate: Gateway, verdict: str) -> None:
    up = gate.upstream("world", policy=TWO_TRIES)
    spelled = up.operation(name="spelled", classify=lambda what: verdict)(raising(Boom))
    meant = up.operation(name="meant", classify=lambda what: Outcome(verdict))(raising(Boom))

    assert type(await ended(spelled())) is type(await ended(meant()))
    assert spelled.snapshot().counts == meant.snapshot().counts


@pytest.mark.virtual_time
@pytest.mark.parametrize("verdict", [[], {}, 5, "nonsense", object], ids=str)
@pytest.mark.parametrize("function", [raising(Boom), giving("good")], ids=["error", "value"])
async def test_a_judge_that_gives_nonsense_loses_no_probe(gate: Gateway, verdict, function) -> None:
    policy = replace(
        QUIET, breaker=BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, probes=2, failure_rate=1.0)
    )
    up = gate.upstream("world", policy=policy)
    operation = up.operation(name="ask", classify=lambda what: verdict)(function)
    await fail_until_open(up)
    await asyncio.sleep(1.1)

    await ended(operation())

    assert up.snapshot().breaker.state in {"open", "closed"}


# -- refusals


@pytest.mark.virtual_time
async def test_a_refusal_is_raised_as_it_is(gate: Gateway) -> None:
    up = gate.upstream("world")
    no = No("not for you")
    cause = Boom()
    no.__cause__ = cause

    @up.operation(idempotent=True, refused=(No,), fallback=[LastGood(), Static("never asked")])
    async def ask() -> None:
        raise no

    error = await ended(ask())

    assert error is no
    assert error.__cause__ is cause
    assert not hasattr(error, "__notes__")


@pytest.mark.virtual_time
async def test_a_setting_that_is_wrong_inside_a_function_is_no_failure_of_the_upstream(gate: Gateway) -> None:
    up = gate.upstream("world")

    @up.operation(idempotent=True, fallback=[Static("never asked")])
    async def ask() -> None:
        await gate["wrld"]["ask"]()

    assert isinstance(await ended(ask()), UnknownName)
    assert up.snapshot().breaker.failures == 0


@pytest.mark.virtual_time
async def test_refusals_cannot_open_a_circuit(gate: Gateway) -> None:  # peers, row 6
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=1)))
    operation = up.operation(name="ask", idempotent=True)(raising(Refused))

    for _ in range(100):
        await ended(operation())

    assert up.snapshot().breaker.state == "closed"
    assert counted(up) == {"asked": 100, "refused": 100, "attempts": 100}


@pytest.mark.virtual_time
async def test_an_upstream_that_only_refuses_does_not_stay_half_open(gate: Gateway) -> None:  # hole 4
    policy = replace(QUIET, breaker=BreakerPolicy(min_calls=1, window_calls=1, open_for=1.0, max_half_open=10.0))
    up = gate.upstream("world", policy=policy)
    operation = up.operation(name="ask", idempotent=True)(raising(Refused))
    await fail_until_open(up)

    await asyncio.sleep(1.1)
    first = [type(await ended(operation())) for _ in range(20)]
    state = up.snapshot().breaker.state
    await asyncio.sleep(10.0)

    assert first == [Refused] * 20
    assert state == "half_open"
    assert up.snapshot().breaker.state == "closed"


@pytest.mark.virtual_time
async def test_refused_stays_refused_through_another_upstream(gate: Gateway) -> None:
    inner = gate.upstream("inner").operation(name="inner", idempotent=True)(raising(Refused("no")))
    outer = gate.upstream("outer")

    @outer.operation(idempotent=True, fallback=[Static("never asked")])
    async def ask() -> None:
        await inner()

    error = await ended(ask())

    assert type(error) is Refused
    assert counted(outer) == {"asked": 1, "refused": 1, "attempts": 1}
    assert outer.snapshot().breaker.failures == 0


@pytest.mark.virtual_time
async def test_the_retry_after_of_another_upstreams_error_is_kept(gate: Gateway) -> None:
    inner = gate.upstream("inner").operation(name="inner", idempotent=True)(giving(1))
    outer = gate.upstream("outer", policy=QUIET)
    gate["inner"].tune(breaker=BreakerPolicy(min_calls=1, open_for=7.0))
    await fail_until_open(gate["inner"])

    @outer.operation(idempotent=True)
    async def ask() -> None:
        await inner()

    error = await ended(ask())

    assert type(error) is Failed
    assert isinstance(error.__cause__, CircuitOpen)
    assert error.__cause__.upstream == "inner"
    assert error.upstream == "outer"
    assert error.retry_after == pytest.approx(7.0)


# -- rejections


@pytest.mark.virtual_time
async def test_an_open_circuit_says_when_to_come_back(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=1, open_for=5.0)))
    operation = up.operation(name="ask", idempotent=True)(giving(1))
    await fail_until_open(up)
    await asyncio.sleep(2.0)

    error = await ended(operation())

    assert type(error) is CircuitOpen
    assert error.retry_after == pytest.approx(3.0)
    assert (error.upstream, error.operation, error.outcome, error.attempts) == ("world", "ask", "rejected", 0)
    assert error.waited_for is None
    assert error.__cause__ is None
    assert counted(up) == {"asked": 1, "rejected": 1}


@pytest.mark.virtual_time
async def test_an_isolated_upstream_does_not_know_when(gate: Gateway) -> None:
    up = gate.upstream("world")
    operation = up.operation(name="ask", idempotent=True)(giving(1))
    up.isolate()

    error = await ended(operation())
    up.restore()

    assert type(error) is CircuitOpen
    assert error.retry_after is None
    assert await operation() == 1


@pytest.mark.virtual_time
async def test_a_circuit_whose_probes_are_out_says_at_once(gate: Gateway) -> None:
    up = gate.upstream("world", policy=replace(QUIET, breaker=BreakerPolicy(min_calls=1, open_for=1.0, probes=1)))
    operation = up.operation(name="ask", idempotent=True)(hanging)
    await fail_until_open(up)
    await asyncio.sleep(1.1)
    probe = asyncio.ensure_future(operation())
    await steps(2)

    error = await ended(operation())
    await gone(probe)

    assert type(error) is CircuitOpen
    assert error.retry_after == 0.0


@pytest.mark.virtual_time
async def test_a_full_queue_and_a_long_wait_are_two_reasons(gate: Gateway) -> None:
    policy = replace(QUIET, bulkhead=BulkheadPolicy(limit=1, queue=1, max_wait=0.5))
    up = gate.upstream("world", policy=policy)
    operation = up.operation(name="ask", idempotent=True)(hanging)
    running = asyncio.ensure_future(operation())
    await steps(1)
    waiting = asyncio.ensure_future(ended(operation()))
    await steps(1)

    full = await ended(operation())
    long = await waiting
    await gone(running)

    assert (type(full), full.reason, full.waited_for) == (BulkheadFull, "queue_full", None)
    assert (type(long), long.reason, long.waited_for) == (BulkheadFull, "max_wait", "queue")
    for error in (full, long):
        assert (error.upstream, error.operation, error.outcome, error.attempts) == ("world", "ask", "rejected", 0)
    assert counted(up) == {"asked": 3, "rejected": 2, "cancelled": 1, "attempts": 1}
    assert up.snapshot().breaker.calls == 0


@pytest.mark.virtual_time
async def test_a_deadline_that_passed_is_a_rejection_and_a_timeout(gate: Gateway) -> None:
    up = gate.upstream("world")
    operation = up.operation(name="ask", idempotent=False)(giving(1))

    with Deadline.after(0.0):
        error = await ended(operation())

    assert type(error) is DeadlineExceeded
    assert isinstance(error, Rejected)
    assert isinstance(error, TimeoutError)
    assert (error.upstream, error.operation, error.outcome, error.attempts) == ("world", "ask", "rejected", 0)
    assert error.waited_for == "deadline"
    assert counted(up) == {"asked": 1, "rejected": 1}


@pytest.mark.virtual_time
@either_way
async def test_every_tier_answers_a_rejection_since_nothing_was_sent(gate: Gateway, idempotent) -> None:
    other = gate.upstream("other").operation(name="other", idempotent=idempotent)(giving("elsewhere"))
    up = gate.upstream("world")
    static = up.operation(name="static", idempotent=idempotent, fallback=[Static("s")])(giving(1))
    alternate = up.operation(name="alternate", idempotent=idempotent, fallback=[Alternate(other)])(giving(1))
    up.isolate()

    assert (await static.ask()).value == "s"
    assert (await alternate.ask()).value == "elsewhere"
    assert type((await static.ask()).error) is CircuitOpen


@pytest.mark.virtual_time
async def test_a_rejection_is_never_retried(gate: Gateway) -> None:
    up = gate.upstream("world", policy=TWO_TRIES)
    operation = up.operation(name="ask", idempotent=True)(giving(1))
    up.isolate()

    await ended(operation())

    assert up.snapshot().breaker.rejected == 1
    assert counted(up) == {"asked": 1, "rejected": 1}


# -- our errors


@pytest.mark.virtual_time
async def test_an_error_that_is_stored_and_raised_again_does_not_grow_ours(gate: Gateway) -> None:  # hole 11
    class Declines:
        def answer(self, question) -> None:
            return None

    up = gate.upstream("world", policy=QUIET)
    stored = Boom("one stored instance")
    operation = up.operation(name="ask", idempotent=True, fallback=[Declines()])(raising(stored))

    errors = [await ended(operation()) for _ in range(1000)]

    first, last = errors[0], errors[-1]
    assert first is not last
    assert last.__cause__ is stored
    assert not hasattr(stored, "__notes__")
    assert len(last.__notes__) == len(first.__notes__) == 1
    assert len(list(traceback.walk_tb(last.__traceback__))) == len(list(traceback.walk_tb(first.__traceback__)))


@pytest.mark.virtual_time
async def test_rejections_are_fresh_each_time(gate: Gateway) -> None:
    up = gate.upstream("world")
    operation = up.operation(name="ask", idempotent=True)(giving(1))
    up.isolate()

    errors = [await ended(operation()) for _ in range(100)]

    assert len({id(error) for error in errors}) == 100
    assert len({len(list(traceback.walk_tb(error.__traceback__))) for error in errors}) == 1


@pytest.mark.virtual_time
async def test_a_tier_leaves_a_note_and_the_error_is_raised_with_all_of_them(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, fallback=[LastGood()])
    async def ask() -> None:
        raise Boom

    @ask.fallback
    def plan_b(error: Exception) -> None:
        raise Boom("b too")

    error = await ended(ask())

    assert len(error.__notes__) == 2
    assert "LastGood" in error.__notes__[0]
    assert "plan_b" in error.__notes__[1]
    assert "b too" in error.__notes__[1]


@pytest.mark.virtual_time
async def test_no_memory_is_left_by_failed_calls_once_the_collector_has_run(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)
    operation = up.operation(name="ask", idempotent=True, fallback=[Static(0)])(raising(Boom))

    def ours() -> int:
        gc.collect()
        return sum(type(thing).__name__ in {"Call", "Failed", "Question", "Timer"} for thing in gc.get_objects())

    await operation()
    before = ours()
    for _ in range(1000):
        await operation()

    assert ours() <= before


class Argument:
    """Something large, for example."""


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "way",
    [
        "failed",
        "rejected",
        "refused",
        "retried",
        "degraded",
        "rejected and degraded",
    ],
)
async def test_what_a_call_was_asked_with_is_free_as_soon_as_the_error_is(gate: Gateway, way: str) -> None:
    up = gate.upstream("world", policy=TWO_TRIES)
    tiers = [Static(0)] if "degraded" in way else []
    kind = Refused if way == "refused" else NotSent if way == "retried" else Boom

    @up.operation(fallback=tiers)
    async def ask(what: Argument) -> None:
        raise kind

    if "rejected" in way:
        up.isolate()
    argument = Argument()
    alive = weakref.ref(argument)
    gc.collect()
    gc.disable()
    try:
        with suppress(Exception):
            await ask(argument)
        del argument
        free = alive() is None
    finally:
        gc.enable()
    up.restore()

    assert free


def test_the_tree_of_errors() -> None:
    assert issubclass(GatewayError, Exception)
    for kind in (CircuitOpen, BulkheadFull, DeadlineExceeded, GatewayClosed):
        assert issubclass(kind, Rejected)
        assert issubclass(kind, GatewayError)
        assert kind().outcome is Outcome.REJECTED
    assert issubclass(DeadlineExceeded, TimeoutError)
    for kind, timeout, outcome in (
        (Failed, FailedTimeout, Outcome.FAILED),
        (Unknown, UnknownTimeout, Outcome.UNKNOWN),
    ):
        assert issubclass(timeout, kind)
        assert issubclass(timeout, TimeoutError)
        assert not issubclass(kind, TimeoutError)
        assert kind().outcome is outcome
        assert timeout().outcome is outcome
    for plain in (Refused, NotSent):
        assert plain.__bases__ == (Exception,)
        assert plain("why", retry_after=3.0).retry_after == 3.0
        assert plain("why").args == ("why",)
        assert plain().retry_after is None
    assert not issubclass(ConfigError, GatewayError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(UnknownName, (ConfigError, LookupError))
    assert issubclass(KeyNeeded, TypeError)
    assert issubclass(WrongLoop, RuntimeError)


@pytest.mark.virtual_time
@pytest.mark.parametrize("again", [True, False])
async def test_a_task_group_that_fails_is_a_failure_as_any_other(gate: Gateway, again: bool) -> None:
    """Before Python 3.13 such a group may leave its task looking cancelled."""
    policy = Policy(retry=RetryPolicy(wait=wait_none()), timeout=TimeoutPolicy(attempt=1.0), breaker=NEVER_OPENS)
    up, tried = gate.upstream("up", policy=policy), []

    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise Boom

    @up.operation(idempotent=True, fallback=[Static("default")])
    async def ask() -> str:
        tried.append(1)
        if len(tried) > 1 and again:
            await asyncio.sleep(60)  # the limit on time must still be told from the caller's leaving
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(60))
        return "live"

    answer = await ask.ask()

    assert (answer.value, len(tried)) == ("default", 2)
    assert type(answer.error) is (FailedTimeout if again else Failed)
    assert up.breaker.snapshot().failures == 2
