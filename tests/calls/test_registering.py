"""Registering: what can be an operation, what cannot, and what the error says."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fallbacks.stores import SQLiteStore
from gateway import (
    Alternate,
    BreakerPolicy,
    BulkheadPolicy,
    ConfigError,
    Gateway,
    KeyNeeded,
    LastGood,
    Operation,
    Policy,
    RetryPolicy,
    Static,
    TimeoutPolicy,
    UnknownName,
    handler,
)
from tests.support import QUIET, Boom, counted, ended, steady

# -- what can be one


@pytest.mark.virtual_time
async def test_an_async_function_is_an_operation_by_its_own_name(gate: Gateway) -> None:
    up = gate.upstream("ratings")

    @up.operation
    async def stars(movie: str, *, best: int = 5) -> int:
        return best

    assert stars.name == "stars"
    assert stars.upstream is up
    assert up["stars"] is stars
    assert await stars("alien") == 5
    assert (await stars.ask("alien", best=4)).value == 4


@pytest.mark.virtual_time
async def test_declared_by_keywords_it_may_have_another_name(gate: Gateway) -> None:
    up = gate.upstream("ratings")

    @up.operation(name="of a movie", idempotent=True)
    async def stars(movie: str) -> int:
        return 5

    assert stars.name == "of a movie"
    assert await up["of a movie"]("alien") == 5


@pytest.mark.asyncio
async def test_a_plain_function_runs_in_a_thread_of_its_upstream() -> None:
    async with Gateway() as gate:

        @gate.upstream("posters").operation(idempotent=True)
        def poster(movie: str) -> str:
            return threading.current_thread().name

        assert (await poster("alien")).startswith("posters-")


@pytest.mark.virtual_time
async def test_what_python_knows_of_the_function_it_knows_of_the_operation(gate: Gateway) -> None:
    @gate.upstream("ratings").operation
    async def stars(movie: str, *, best: int = 5) -> int:
        """How many."""
        return best

    assert stars.__doc__ == "How many."
    assert stars.__name__ == "stars"
    assert list(inspect.signature(stars).parameters) == ["movie", "best"]


def movies_of(gate: Gateway) -> type:
    """A class with operations of every kind; the operation's decorator stands above the others."""
    up = gate.upstream("movies")

    class Movies:
        def __init__(self, shop: str) -> None:
            self.shop = shop

        @up.operation
        async def by_instance(self, movie: str) -> str:
            return f"{self.shop}: {movie}"

        @up.operation
        @classmethod
        async def by_class(cls, movie: str) -> str:
            return f"{cls.__name__}: {movie}"

        @up.operation
        @staticmethod
        async def by_nobody(movie: str) -> str:
            return movie

    return Movies


@pytest.mark.virtual_time
async def test_a_method_is_an_operation_of_its_object(gate: Gateway) -> None:
    movies = movies_of(gate)("corner")

    assert await movies.by_instance("alien") == "corner: alien"
    assert (await movies.by_instance.ask(movie="brazil")).value == "corner: brazil"
    assert await movies_of(Gateway()).by_instance(movies, "cube") == "corner: cube"
    assert movies.by_instance.name == "by_instance"
    assert movies.by_instance.upstream is gate["movies"]


@pytest.mark.virtual_time
@pytest.mark.parametrize("of", ["class", "object", "subclass"])
async def test_a_class_method_gets_the_class_it_is_called_on(gate: Gateway, of: str) -> None:
    movies = movies_of(gate)
    through = {"class": movies, "object": movies("corner"), "subclass": type("Shop", (movies,), {})}[of]

    name = "Shop" if of == "subclass" else "Movies"
    assert await through.by_class("alien") == f"{name}: alien"
    assert (await through.by_class.ask("alien")).value == f"{name}: alien"


@pytest.mark.virtual_time
async def test_a_static_method_gets_neither(gate: Gateway) -> None:
    movies = movies_of(gate)

    assert await movies.by_nobody("alien") == "alien"
    assert (await movies("corner").by_nobody.ask("alien")).value == "alien"


@pytest.mark.virtual_time
async def test_static_and_class_method_may_stand_above_the_operation(gate: Gateway) -> None:
    up = gate.upstream("movies")

    class Movies:
        @staticmethod
        @up.operation
        async def by_nobody(movie: str) -> str:
            return movie

        @classmethod
        @up.operation
        async def by_class(cls, movie: str) -> str:
            return f"{cls.__name__}: {movie}"

    assert await Movies.by_nobody("alien") == "alien"
    assert (await Movies.by_nobody.ask("alien")).value == "alien"
    assert await Movies.by_class("alien") == "Movies: alien"
    assert await Movies().by_class("alien") == "Movies: alien"


@pytest.mark.virtual_time
@pytest.mark.xfail(
    sys.version_info >= (3, 13), reason="3.13 chains no descriptors: the operation stands above", strict=True
)
async def test_with_class_method_above_the_operation_its_ask_is_bound_up_to_3_12(gate: Gateway) -> None:
    up = gate.upstream("movies")

    class Movies:
        @classmethod
        @up.operation
        async def by_class(cls, movie: str) -> str:
            return f"{cls.__name__}: {movie}"

    assert (await Movies.by_class.ask("alien")).value == "Movies: alien"


@pytest.mark.asyncio
async def test_plain_methods_run_in_threads_too() -> None:
    async with Gateway() as gate:
        up = gate.upstream("movies")

        class Movies:
            @up.operation
            def by_instance(self, movie: str) -> tuple[str, bool]:
                return movie, threading.current_thread() is threading.main_thread()

            @up.operation
            @classmethod
            def by_class(cls, movie: str) -> str:
                return cls.__name__ + movie

        assert await Movies().by_instance("alien") == ("alien", False)
        assert await Movies.by_class("alien") == "Moviesalien"


class Client:
    """An object with an async method, and one that can be called."""

    def __init__(self, host: str) -> None:
        self.host = host

    async def __call__(self, path: str) -> str:
        return self.host + path

    async def get(self, path: str) -> str:
        return self.host + path


@pytest.mark.virtual_time
async def test_a_callable_object_and_a_bound_method_are_operations(gate: Gateway) -> None:
    up = gate.upstream("site")
    client = Client("a")

    called = up.operation(name="called")(client)
    method = up.operation(client.get)

    assert await called("/x") == "a/x"
    assert await method("/y") == "a/y"
    assert method.name == "get"


@pytest.mark.virtual_time
async def test_a_partial_is_an_operation_when_it_has_a_name(gate: Gateway) -> None:
    up = gate.upstream("site")
    client = Client("a")

    got = up.operation(name="got", idempotent=True, fallback=[LastGood()])(functools.partial(client.get, "/x"))
    called = up.operation(name="called")(functools.partial(client, "/y"))
    nested = up.operation(name="nested")(functools.partial(functools.partial(client.get), path="/z"))

    assert await got() == "a/x"
    assert await called() == "a/y"
    assert await nested() == "a/z"


@pytest.mark.virtual_time
async def test_an_operation_of_one_upstream_may_be_the_function_of_another(gate: Gateway) -> None:
    inner = gate.upstream("inner").operation(coroutine_function)

    outer = gate.upstream("outer").operation(name="outer")(inner)

    assert await outer("alien") == "alien"
    assert counted(gate["inner"]) == counted(gate["outer"]) == {"asked": 1, "live": 1, "attempts": 1}


@pytest.mark.asyncio
async def test_a_class_and_a_builtin_are_plain_functions() -> None:
    async with Gateway() as gate:
        up = gate.upstream("site")

        assert await up.operation(name="make")(Client)("a") != await up.operation(name="again")(Client)("a")
        assert await up.operation(name="printed")(print)() is None


# -- what cannot be one


async def async_generator(movie: str) -> AsyncIterator[str]:
    yield movie


def generator(movie: str) -> Iterator[str]:
    yield movie


async def coroutine_function(movie: str) -> str:
    return movie


@functools.wraps(coroutine_function)
def plain_wrapper(movie: str) -> object:
    return coroutine_function(movie)


@functools.wraps(async_generator)
def plain_wrapper_of_many(movie: str) -> object:
    return async_generator(movie)


class CallableGenerator:
    async def __call__(self, movie: str) -> AsyncIterator[str]:
        yield movie


@pytest.mark.parametrize(
    "function",
    [async_generator, generator, functools.partial(async_generator, "alien"), CallableGenerator()],
    ids=["async generator", "generator", "partial of one", "callable one"],
)
def test_a_generator_is_refused_when_it_is_registered(gate: Gateway, function) -> None:
    up = gate.upstream("movies")

    with pytest.raises(ConfigError) as caught:
        up.operation(name="all")(function)

    assert caught.value.field == "movies.all"
    assert "generator" in caught.value.problem
    assert caught.value.remedy


def test_a_plain_wrapper_around_a_generator_is_refused_when_it_is_registered(gate: Gateway) -> None:
    with pytest.raises(ConfigError):
        gate.upstream("movies").operation(plain_wrapper_of_many)


@pytest.mark.parametrize(
    "function", [plain_wrapper, functools.partial(plain_wrapper, "alien")], ids=["bare", "partial"]
)
def test_a_plain_function_around_an_async_one_is_refused_when_it_is_registered(gate: Gateway, function) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.upstream("movies").operation(name="one")(function)

    assert caught.value.field == "movies.one"
    assert "awaitable" in caught.value.problem
    assert "async def" in caught.value.remedy


@pytest.mark.asyncio
async def test_a_plain_function_that_turns_out_to_return_an_awaitable_is_a_clear_error() -> None:
    async with Gateway() as gate:
        up = gate.upstream("movies")

        @up.operation(idempotent=True, fallback=[Static("never asked")])
        def sneaky(movie: str) -> object:
            return coroutine_function(movie)

        with pytest.raises(ConfigError, match="returned an awaitable") as caught:
            await sneaky("alien")

        assert "async def" in caught.value.remedy
        assert counted(up) == {"asked": 1, "refused": 1, "attempts": 1}


@pytest.mark.parametrize("thing", [5, "name", None, object()], ids=["number", "text", "nothing", "object"])
def test_what_cannot_be_called_is_refused(gate: Gateway, thing) -> None:
    with pytest.raises(ConfigError, match="is not a function"):
        gate.upstream("movies").operation(name="thing")(thing)


@pytest.mark.parametrize(
    "function",
    [lambda movie: movie, functools.partial(coroutine_function, "alien"), Client("a")],
    ids=["lambda", "partial", "callable object"],
)
def test_a_function_without_a_name_of_its_own_must_be_given_one(gate: Gateway, function) -> None:
    up = gate.upstream("movies")

    with pytest.raises(ConfigError, match="no name") as caught:
        up.operation(function)

    assert "name=" in caught.value.remedy
    assert up.operation(name="given")(function).name == "given"


def attempt(register: Callable[[], Operation[..., Any]]) -> Operation[..., Any] | ConfigError:
    """An operation, or why it is none."""
    try:
        return register()
    except ConfigError as error:
        return error


@pytest.mark.parametrize("function", [time.sleep, dict, min], ids=["sleep", "dict", "min"])
def test_a_function_whose_parameters_nobody_knows_is_an_operation_or_a_clear_error(gate: Gateway, function) -> None:
    up = gate.upstream("movies")

    registered = attempt(lambda: up.operation(name="known")(function))

    if not isinstance(registered, Operation):
        assert registered.field.startswith("movies.known")
        assert registered.remedy


@pytest.mark.parametrize(
    ("declared", "field"),
    [
        ({"idempotent": "yes"}, "idempotent"),
        ({"idempotent": 0}, "idempotent"),
        ({"idempotent": []}, "idempotent"),
        ({"refused": (5,)}, "refused"),
        ({"refused": ("ValueError",)}, "refused"),
        ({"fallback": [5]}, "fallback"),
        ({"fallback": Static(1)}, "fallback"),
        ({"timeout": 0.5}, "timeout"),
        ({"key": "user"}, "key"),
        ({"identity": "user"}, "identity"),
        ({"classify": "user"}, "classify"),
        ({"name": 5}, "name"),
        *(({name: coroutine_function}, name) for name in ("key", "identity", "classify", "remember", "size_of")),
    ],
    ids=steady,
)
def test_a_declaration_that_cannot_be_meant_is_an_error_that_names_it(gate: Gateway, declared, field: str) -> None:
    up = gate.upstream("movies")

    with pytest.raises(ConfigError) as caught:
        up.operation(**declared)(coroutine_function)

    assert field in caught.value.field
    assert caught.value.problem
    assert caught.value.remedy
    assert not list(up)


@pytest.mark.virtual_time
async def test_one_type_of_refusal_needs_no_tuple_or_says_so(gate: Gateway) -> None:
    up = gate.upstream("movies")

    async def one(movie: str) -> str:
        raise Boom(movie)

    registered = attempt(lambda: up.operation(refused=Boom)(one))

    if isinstance(registered, Operation):
        assert isinstance(await ended(registered("alien")), Boom)
    else:
        assert "tuple" in registered.remedy


def test_what_could_not_be_registered_leaves_the_name_free(gate: Gateway) -> None:
    up = gate.upstream("movies")
    with pytest.raises(ConfigError):
        up.operation(fallback=[Static(1), Static(2)])(coroutine_function)

    operation = up.operation(coroutine_function)

    assert list(up) == [operation]


# -- names


def test_a_name_registered_twice_is_an_error_that_names_it_and_a_remedy(gate: Gateway) -> None:
    up = gate.upstream("movies")
    up.operation(coroutine_function)

    with pytest.raises(ConfigError, match="registered already") as operation:
        up.operation(coroutine_function)
    with pytest.raises(ConfigError, match="registered already") as upstream:
        gate.upstream("movies")

    assert operation.value.field == "movies.coroutine_function"
    assert "name=" in operation.value.remedy
    assert "movies" in upstream.value.field
    assert "gate['movies']" in upstream.value.remedy
    assert gate["movies"] is up


def test_two_upstreams_may_have_operations_of_one_name(gate: Gateway) -> None:
    one = gate.upstream("one").operation(coroutine_function)
    other = gate.upstream("other").operation(coroutine_function)

    assert gate["one"]["coroutine_function"] is one
    assert gate["other"]["coroutine_function"] is other


@pytest.mark.parametrize(
    "name", ["", None, 5, b"movies", "half \ud800"], ids=["empty", "nothing", "number", "bytes", "half a pair"]
)
def test_an_upstream_needs_a_name(gate: Gateway, name) -> None:
    with pytest.raises(ConfigError, match="name"):
        gate.upstream(name)


def test_an_unknown_name_is_an_error_that_guesses_what_was_meant(gate: Gateway) -> None:
    gate.upstream("ratings").operation(coroutine_function)

    with pytest.raises(UnknownName, match="did you mean 'ratings'") as upstream:
        gate["rating"]
    with pytest.raises(UnknownName, match="did you mean 'coroutine_function'"):
        gate["ratings"]["coroutinefunction"]
    with pytest.raises(UnknownName, match="known are: ratings"):
        gate["zzz"]
    with pytest.raises(LookupError):
        gate["zzz"]

    assert isinstance(upstream.value, ConfigError)
    assert isinstance(upstream.value, ValueError)


@pytest.mark.parametrize("name", [None, 5, b"ratings", ("ratings",)], ids=["nothing", "number", "bytes", "tuple"])
def test_what_is_no_name_is_an_unknown_one(gate: Gateway, name) -> None:
    up = gate.upstream("ratings")
    up.operation(coroutine_function)

    with pytest.raises(UnknownName):
        gate[name]
    with pytest.raises(UnknownName):
        up[name]

    assert name not in gate


def test_an_unknown_name_where_nothing_is_known_says_so(gate: Gateway) -> None:
    with pytest.raises(UnknownName, match="none yet"):
        gate["ratings"]


def test_a_gateway_and_an_upstream_can_be_looked_through(gate: Gateway) -> None:
    one, two = gate.upstream("one"), gate.upstream("two")
    operation = two.operation(coroutine_function)

    assert list(gate) == [one, two]
    assert "two" in gate
    assert "three" not in gate
    assert "coroutine_function" in two
    assert "coroutine_function" not in one
    assert list(two) == [operation]
    assert repr(two) == "<Upstream two>"
    assert repr(operation) == "<Operation two.coroutine_function>"


# -- policies that contradict themselves


CONTRADICTIONS = {
    "a try longer than the call": ("timeout.attempt", lambda: TimeoutPolicy(call=1.0, attempt=2.0)),
    "connecting longer than the try": ("timeout.connect", lambda: TimeoutPolicy(attempt=1.0, connect=2.0)),
    "reading longer than the try": ("timeout.read", lambda: TimeoutPolicy(attempt=1.0, read=2.0)),
    "no time": ("timeout.call", lambda: TimeoutPolicy(call=0)),
    "a time that is no number": ("timeout.call", lambda: TimeoutPolicy(call=float("nan"))),
    "a time as text": ("timeout.call", lambda: TimeoutPolicy(call="1")),
    "a time as a claim": ("timeout.call", lambda: TimeoutPolicy(call=True)),
    "no try": ("retry.attempts", lambda: RetryPolicy(attempts=0)),
    "half a try": ("retry.attempts", lambda: RetryPolicy(attempts=1.5)),
    "a wait that is no strategy": ("retry.wait", lambda: RetryPolicy(wait=0.5)),
    "a try worth less than nothing": ("retry.min_try", lambda: RetryPolicy(min_try=-1)),
    "a negative pushback": ("retry.max_retry_after", lambda: RetryPolicy(max_retry_after=-1)),
    "no place": ("bulkhead.limit", lambda: BulkheadPolicy(limit=0)),
    "half a place": ("bulkhead.limit", lambda: BulkheadPolicy(limit=2.5)),
    "a negative queue": ("bulkhead.queue", lambda: BulkheadPolicy(queue=-1)),
    "a negative wait": ("bulkhead.max_wait", lambda: BulkheadPolicy(max_wait=-1)),
    "two windows": ("breaker.window_for", lambda: BreakerPolicy(window_for=10, window_calls=100)),
    "half a second": ("breaker.window_for", lambda: BreakerPolicy(window_for=0.5)),
    "a window of no call": ("breaker.window_calls", lambda: BreakerPolicy(window_calls=0)),
    "a rate of no call": ("breaker.min_calls", lambda: BreakerPolicy(min_calls=0)),
    "no probe": ("breaker.probes", lambda: BreakerPolicy(probes=0)),
    "opens always": ("breaker.failure_rate", lambda: BreakerPolicy(failure_rate=0.0)),
    "a rate in per cent": ("breaker.failure_rate", lambda: BreakerPolicy(failure_rate=50)),
    "slow above one": ("breaker.slow_rate", lambda: BreakerPolicy(slow_rate=1.1)),
    "slow at once": ("breaker.slow_after", lambda: BreakerPolicy(slow_after=0)),
    "open for no time": ("breaker.open_for", lambda: BreakerPolicy(open_for=0)),
    "openings that shrink": ("breaker.open_factor", lambda: BreakerPolicy(open_factor=0.5)),
    "a cap below": ("breaker.open_cap", lambda: BreakerPolicy(open_for=10, open_cap=5)),
    "a negative jitter": ("breaker.open_jitter", lambda: BreakerPolicy(open_jitter=-0.1)),
    "half-open for no time": ("breaker.max_half_open", lambda: BreakerPolicy(max_half_open=0)),
    "half-open for ever": ("breaker.after_max_half_open", lambda: BreakerPolicy(after_max_half_open="half_open")),
    "negative evidence": ("breaker.evidence_after", lambda: BreakerPolicy(evidence_after=-1)),
    "a section that is a number": ("timeout", lambda: Policy(timeout=0.5)),
    "no time for fallbacks": ("fallback_timeout", lambda: Policy(fallback_timeout=0)),
    "no place for fallbacks": ("fallback_limit", lambda: Policy(fallback_limit=0)),
    "fallbacks longer than the call": (
        "fallback_timeout",
        lambda: Policy(fallback_timeout=2.0, timeout=TimeoutPolicy(call=1.0)),
    ),
    "a wait longer than the call": (
        "bulkhead.max_wait",
        lambda: Policy(bulkhead=BulkheadPolicy(max_wait=2.0), timeout=TimeoutPolicy(call=1.0)),
    ),
    "evidence longer than the try": (
        "breaker.evidence_after",
        lambda: Policy(breaker=BreakerPolicy(evidence_after=2.0), timeout=TimeoutPolicy(attempt=1.0)),
    ),
}


@pytest.mark.parametrize(("field", "make"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_policy_that_contradicts_itself_names_field_and_remedy(field: str, make) -> None:
    with pytest.raises(ConfigError) as caught:
        make()

    assert caught.value.field == field
    assert caught.value.problem
    assert caught.value.remedy
    assert str(caught.value) == f"{field}: {caught.value.problem}; {caught.value.remedy}"


def test_equal_limits_are_no_contradiction() -> None:
    policy = Policy(
        timeout=TimeoutPolicy(call=1.0, attempt=1.0, connect=1.0, read=1.0),
        bulkhead=BulkheadPolicy(max_wait=1.0),
        breaker=BreakerPolicy(evidence_after=1.0, open_for=5.0, open_cap=5.0),
        fallback_timeout=1.0,
    )

    assert policy.timeout.attempt == policy.timeout.call


def test_a_field_that_is_not_given_follows_the_one_that_is() -> None:
    assert TimeoutPolicy(call=0.8).attempt == 0.8
    assert TimeoutPolicy(attempt=0.3).connect == 0.3
    assert TimeoutPolicy(attempt=0.3).call == 20.0
    assert BreakerPolicy(open_for=90.0).open_cap == 90.0
    assert BreakerPolicy(window_calls=100).window_for is None
    assert Policy(timeout=TimeoutPolicy(call=0.05)).timeout.attempt == 0.05


def test_inf_means_no_limit_or_never() -> None:
    inf = float("inf")

    policy = Policy(
        timeout=TimeoutPolicy(call=inf, attempt=inf, connect=inf, read=inf),
        bulkhead=BulkheadPolicy(limit=inf, queue=inf, max_wait=inf),
        breaker=BreakerPolicy(open_for=inf, max_half_open=inf, slow_after=inf),
        retry=RetryPolicy(max_retry_after=inf),
        fallback_timeout=inf,
        fallback_limit=inf,
    )

    assert policy.timeout.call == inf


def test_an_upstream_takes_a_policy_and_nothing_else(gate: Gateway) -> None:
    with pytest.raises(ConfigError) as caught:
        gate.upstream("movies", policy=BulkheadPolicy(limit=5))  # type: ignore[arg-type]

    assert "Policy" in caught.value.remedy
    assert "movies" not in gate


def test_an_operation_may_have_limits_of_its_own_that_fit_its_upstream(gate: Gateway) -> None:
    up = gate.upstream("movies", policy=Policy(timeout=TimeoutPolicy(call=2.0, attempt=1.0)))

    quick = up.operation(name="quick", timeout=TimeoutPolicy(call=0.5))(coroutine_function)
    slow = up.operation(name="slow", timeout=TimeoutPolicy(attempt=1.5))(coroutine_function)

    assert (quick.timeout.call, quick.timeout.attempt) == (0.5, 0.5)
    assert (slow.timeout.call, slow.timeout.attempt) == (2.0, 1.5)
    with pytest.raises(ConfigError) as caught:
        up.operation(name="slower", timeout=TimeoutPolicy(attempt=3.0))(coroutine_function)
    assert caught.value.field == "timeout.attempt"


# -- arguments


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "asked",
    [((), {}), (("a", "b", "c"), {}), (("a",), {"unknown": 1}), (("a",), {"movie": "b"})],
    ids=["too few", "too many", "unknown", "twice"],
)
async def test_arguments_that_do_not_fit_are_the_callers_type_error_before_anything_is_counted(
    gate: Gateway, asked
) -> None:
    up = gate.upstream("movies")

    @up.operation(fallback=[Static("never asked")])
    async def stars(movie: str, best: int = 5) -> int:
        return best

    args, kwargs = asked
    with pytest.raises(TypeError):
        await stars(*args, **kwargs)
    with pytest.raises(TypeError):
        await stars.ask(*args, **kwargs)

    assert counted(up) == {}


@pytest.mark.virtual_time
async def test_a_method_that_remembers_without_a_key_says_so_at_its_first_call(gate: Gateway) -> None:
    up = gate.upstream("movies")

    class Movies:
        @up.operation(idempotent=True, fallback=[LastGood()])
        async def stars(self, movie: str) -> int:
            return 5

        @up.operation(idempotent=True, fallback=[LastGood()])
        @classmethod
        async def best(cls) -> int:
            return 5

    for call in (Movies().stars("alien"), Movies.best()):
        with pytest.raises(KeyNeeded, match="key="):
            await call

    assert counted(up) == {}


@pytest.mark.virtual_time
async def test_a_method_with_a_key_of_its_own_remembers_and_the_key_sees_all_arguments(gate: Gateway) -> None:
    up = gate.upstream("movies", policy=QUIET)
    seen = []

    class Movies:
        def __init__(self, shop: str) -> None:
            self.shop, self.broken = shop, False

        @up.operation(idempotent=True, fallback=[LastGood()], key=lambda self, movie: (self.shop, movie))
        async def stars(self, movie: str) -> str:
            if self.broken:
                raise Boom
            seen.append(movie)
            return f"{self.shop}: {movie}"

    a, b = Movies("a"), Movies("b")
    await a.stars("alien")
    a.broken = b.broken = True

    assert (await a.stars.ask("alien")).value == "a: alien"
    assert isinstance(await ended(b.stars("alien")), Exception)


@pytest.mark.virtual_time
async def test_a_method_that_remembers_nothing_needs_no_key(gate: Gateway) -> None:
    up = gate.upstream("movies", policy=QUIET)

    class Movies:
        @up.operation(idempotent=True, fallback=[Static(0)])
        async def stars(self, movie: str) -> int:
            raise Boom

    assert await Movies().stars("alien") == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "argument",
    [[1], {"a": 1}, {1}, object(), (1, [2]), lambda: 1],
    ids=["list", "dict", "set", "object", "list in a tuple", "function"],
)
async def test_arguments_that_name_no_call_are_a_clear_error_before_anything_is_sent(gate: Gateway, argument) -> None:
    up = gate.upstream("movies")

    @up.operation(idempotent=True, fallback=[LastGood(), Static(0)])
    async def stars(movie: object) -> int:
        return 5

    with pytest.raises(KeyNeeded, match=r"movies\W*stars.*key="):
        await stars(argument)
    with pytest.raises(TypeError):
        await stars(movie=argument)

    assert counted(up) == {}


@pytest.mark.virtual_time
async def test_arguments_that_name_no_call_are_fine_where_nothing_needs_a_name(gate: Gateway) -> None:
    up = gate.upstream("movies", policy=QUIET)

    @up.operation(idempotent=True, fallback=[Static(0)])
    async def stars(movie: object) -> int:
        raise Boom

    assert await stars([1, 2]) == 0


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    "key",
    [lambda movie: 1 / 0, lambda: "too few", lambda movie: [movie]],
    ids=["raises", "takes too little", "unhashable"],
)
async def test_a_key_that_raises_is_a_clear_error_before_anything_is_sent(gate: Gateway, key) -> None:
    up = gate.upstream("movies")

    @up.operation(idempotent=True, fallback=[LastGood()], key=key)
    async def stars(movie: str) -> int:
        return 5

    with pytest.raises(KeyNeeded):
        await stars("alien")

    assert counted(up) == {}


# -- what is said of it


def test_an_operation_that_does_not_say_whether_it_may_be_repeated_is_logged_once(gate: Gateway, caplog) -> None:
    up = gate.upstream("movies")
    with caplog.at_level(logging.INFO, logger="gateway"):
        up.operation(name="undeclared")(coroutine_function)
        up.operation(name="safe", idempotent=True)(coroutine_function)
        up.operation(name="unsafe", idempotent=False)(coroutine_function)

    lines = [record for record in caplog.records if record.name == "gateway" and record.levelno == logging.INFO]
    assert len(lines) == 1
    assert "movies.undeclared" in lines[0].getMessage()


# -- fallbacks that cannot be


def test_nothing_stands_after_a_static(gate: Gateway) -> None:
    up = gate.upstream("movies")

    with pytest.raises(ConfigError, match="Static") as caught:
        up.operation(fallback=[Static(1), LastGood()])(coroutine_function)
    later = up.operation(name="later", fallback=[Static(1)])(coroutine_function)
    with pytest.raises(ConfigError, match="Static"):
        later.fallback(LastGood())
    with pytest.raises(ConfigError, match="Static"):

        @later.fallback
        async def plan_b(error: Exception, movie: str) -> str:
            return movie

    assert "fallback" in caught.value.field
    assert len(later.tiers) == 1


@pytest.mark.parametrize(
    ("tier", "problem"),
    [
        (Alternate(coroutine_function), "has no ask"),
        (Alternate(None), "has no ask"),
        (LastGood(store="answers.sqlite"), "'answers.sqlite' is not a store"),
        (LastGood(store=SQLiteStore), "is not a store"),
    ],
    ids=["a function", "nothing", "a path", "a class"],
)
def test_a_tier_that_could_never_answer_is_an_error_when_it_is_added(gate: Gateway, tier: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        gate.upstream("movies").operation(idempotent=True, fallback=[tier])(coroutine_function)

    assert caught.value.field == "movies.coroutine_function fallback"
    assert caught.value.remedy


def test_last_good_is_an_error_for_what_must_not_be_repeated(gate: Gateway) -> None:
    up = gate.upstream("movies")

    with pytest.raises(ConfigError, match="LastGood"):
        up.operation(idempotent=False, fallback=[LastGood()])(coroutine_function)
    later = up.operation(name="later", idempotent=False)(coroutine_function)
    with pytest.raises(ConfigError, match="LastGood"):
        later.fallback(LastGood(after_unknown=True))


def test_a_circle_of_alternates_is_refused_when_it_is_closed(gate: Gateway) -> None:
    one = gate.upstream("one").operation(coroutine_function)
    two = gate.upstream("two").operation(fallback=[Alternate(one)])(coroutine_function)
    three = gate.upstream("three").operation(fallback=[LastGood(), Alternate(two)])(coroutine_function)

    with pytest.raises(ConfigError, match="Alternate"):
        one.fallback(Alternate(three))
    with pytest.raises(ConfigError, match="Alternate"):
        one.fallback(Alternate(one))

    assert one.tiers == ()


def test_a_circle_of_alternates_through_methods_is_refused_too(gate: Gateway) -> None:
    up = gate.upstream("movies")

    class Movies:
        @up.operation
        async def one(self, movie: str) -> str:
            return movie

        @up.operation
        async def two(self, movie: str) -> str:
            return movie

    movies = Movies()
    Movies.one.fallback(Alternate(movies.two))

    with pytest.raises(ConfigError, match="Alternate"):
        Movies.two.fallback(Alternate(movies.one))


def test_the_fallback_decorator_gives_back_what_it_got(gate: Gateway) -> None:
    operation = gate.upstream("movies").operation(coroutine_function)
    tier = LastGood()

    async def plan_b(error: Exception, movie: str) -> str:
        return movie

    def plan_c(error: Exception, movie: str) -> str:
        return movie

    assert operation.fallback(tier) is tier
    assert operation.fallback(plan_b) is plan_b
    assert operation.fallback(timeout=0.5, after_unknown=True)(plan_c) is plan_c
    assert operation.fallback()(plan_b) is plan_b
    assert [getattr(one, "timeout", None) for one in operation.tiers[1:]] == [None, 0.5, None]
    assert [getattr(one, "after_unknown", None) for one in operation.tiers] == [False, False, True, False]


@pytest.mark.parametrize("thing", [5, "static", [Static(1)]], ids=["number", "text", "list"])
def test_what_is_no_tier_is_refused(gate: Gateway, thing) -> None:
    operation = gate.upstream("movies").operation(coroutine_function)

    with pytest.raises(ConfigError, match="tier"):
        operation.fallback(thing)

    assert operation.tiers == ()


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), "1", True], ids=steady)
def test_a_tier_has_time_or_says_nothing_of_it(gate: Gateway, seconds) -> None:
    operation = gate.upstream("movies").operation(coroutine_function)
    other = gate.upstream("other").operation(coroutine_function)

    for tier in (handler(coroutine_function, timeout=seconds), Alternate(other, timeout=seconds)):
        with pytest.raises(ConfigError, match="above 0") as caught:
            operation.fallback(tier)
        assert caught.value.field == "movies.coroutine_function fallback timeout"
    with pytest.raises(ConfigError, match="above 0"):
        operation.fallback(timeout=seconds)(coroutine_function)

    assert operation.tiers == ()


def test_a_class_attribute_that_holds_a_function_of_elsewhere_does_not_change_it(gate: Gateway) -> None:
    up = gate.upstream("movies")
    stars = up.operation(idempotent=True, fallback=[LastGood()])(coroutine_function)

    class Shop:
        rate = staticmethod(stars)

    assert Shop.rate is stars
    assert Shop().rate is stars
