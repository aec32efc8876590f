"""The public contract, name by name: what users import, how it is called, what it is made of (design.md, section 8)."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import inspect
import subprocess
import sys
from enum import StrEnum
from importlib.resources import files
from math import inf
from random import Random
from types import ModuleType
from typing import Any

import pytest
from tenacity import wait_fixed, wait_random_exponential

import fallbacks
import gateway
import gateway.testing
from gateway import (
    Answer,
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    CircuitBreaker,
    Deadline,
    EndpointsPolicy,
    Event,
    Gateway,
    HttpPolicy,
    HttpRefused,
    HttpReply,
    LastGood,
    Operation,
    Outcome,
    Permit,
    Policy,
    Question,
    Retry,
    RetryPolicy,
    Source,
    Static,
    Tier,
    TimeoutPolicy,
    Upstream,
    admin,
)

TIERS = ["Alternate", "Answer", "Fallback", "LastGood", "Question", "Source", "Static", "Tier", "handler"]
EXPORTS = [
    *TIERS,
    *("Gateway", "Upstream", "Operation", "Deadline", "Bulkhead", "CircuitBreaker", "Permit", "Retry"),
    *("Policy", "TimeoutPolicy", "RetryPolicy", "BudgetPolicy", "BulkheadPolicy", "BreakerPolicy"),
    *("HttpPolicy", "EndpointsPolicy", "HttpReply", "HttpRefused"),
    *("Outcome", "GatewayError", "Rejected", "CircuitOpen", "BulkheadFull", "DeadlineExceeded", "GatewayClosed"),
    *("Failed", "FailedTimeout", "Unknown", "UnknownTimeout", "Refused", "NotSent"),
    *("ConfigError", "ConfigErrors", "UnknownName", "KeyNeeded", "WrongLoop"),
    *("Event", "CallFinished", "AttemptFailed", "CircuitChanged", "PolicyChanged"),
    *("BulkheadSnapshot", "BreakerSnapshot", "Counts", "LatencySnapshot"),
    *("OperationSnapshot", "UpstreamSnapshot", "GatewaySnapshot", "MemorySnapshot"),
    "gather",
]


# -- names


@pytest.mark.parametrize("module", [gateway, fallbacks, gateway.testing], ids=lambda module: module.__name__)
def test_the_exports_are_sorted_and_there_once(module: ModuleType) -> None:
    assert module.__all__ == sorted(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)


def test_the_exports_are_complete() -> None:
    assert set(EXPORTS) <= set(gateway.__all__)
    assert sorted(fallbacks.__all__) == TIERS
    assert set(gateway.testing.__all__) >= {"Faults", "VirtualTimeLoop", "assert_nothing_left"}


def test_the_tiers_of_the_gateway_are_those_of_fallbacks() -> None:
    assert all(getattr(gateway, name) is getattr(fallbacks, name) for name in TIERS)


@pytest.mark.parametrize("module", ["gateway", "fallbacks"])
def test_nothing_public_is_missing_from_the_exports(module: str) -> None:
    exports = importlib.import_module(module)
    public = {
        name
        for name, thing in vars(exports).items()
        if not name.startswith("_") and not isinstance(thing, ModuleType) and name != "annotations"
    }

    assert public == set(exports.__all__)


@pytest.mark.parametrize("package", ["gateway", "fallbacks"])
def test_both_packages_are_typed(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_what_is_exported_says_what_it_does() -> None:
    silent = [name for name in gateway.__all__ if not (inspect.getdoc(getattr(gateway, name)) or "").strip()]

    assert not silent


def test_importing_it_imports_nothing_of_the_world() -> None:
    world = "aiohttp", "structlog", "click", "sqlite3", "prometheus_client", "aiocache", "pytest"
    code = (
        f"import sys; had = set(sys.modules); import gateway; print(sorted({{*{world!r}}} & (set(sys.modules) - had)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# -- signatures


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}


def keyword_only(function: Any) -> dict[str, Any]:
    return {name: p.default for name, p in parameters(function).items() if p.kind is p.KEYWORD_ONLY}


def positional(function: Any) -> list[str]:
    plain = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [name for name, p in parameters(function).items() if p.kind in plain]


EMPTY = inspect.Parameter.empty
SIGNATURES: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "Gateway": (Gateway, [], {}),
    "Gateway.upstream": (Gateway.upstream, ["name"], {"policy": Policy()}),
    "Gateway.http": (Gateway.http, ["name", "url"], {"policy": Policy(), "http": HttpPolicy()}),
    "HttpReply": (HttpReply, ["status", "lines", "body"], {}),
    "HttpReply.json": (HttpReply.json, ["into"], {}),
    "HttpReply.text": (HttpReply.text, [], {}),
    "Gateway.close": (Gateway.close, [], {"drain_for": 5.0, "join_for": 5.0}),
    "Gateway.open": (Gateway.open, [], {}),
    "Gateway.close_blocking": (Gateway.close_blocking, [], {"drain_for": 5.0, "join_for": 5.0}),
    "Gateway.open_blocking": (Gateway.open_blocking, [], {}),
    "Gateway.off": (Gateway.off, ["listener"], {}),
    "Gateway.snapshot": (Gateway.snapshot, [], {}),
    "Gateway.from_file": (Gateway.from_file, ["path"], {"check_every": 1.0, "on_hangup": True}),
    "Gateway.reload": (Gateway.reload, [], {}),
    "Upstream.operation": (
        Upstream.operation,
        ["function"],
        {
            "name": None,
            "idempotent": None,
            "fallback": (),
            "refused": (),
            "classify": None,
            "key": None,
            "identity": None,
            "timeout": None,
            "circuit_by": None,
            "caller": None,
            "fresh_for": 0.0,
            "revalidate": None,
            "remember": None,
            "coalesce": False,
            "size_of": None,
            "secret": (),
        },
    ),
    "Operation.using": (Operation.using, [], {"max_age": None, "only_live": False}),
    "Operation.warm": (Operation.warm, ["keys"], {}),
    "Answer": (Answer, ["value", "source", "age", "error", "stored_at"], {}),
    "Upstream.tune_fields": (Upstream.tune_fields, ["changes"], {}),
    "Upstream.circuit": (Upstream.circuit, ["key"], {}),
    "Upstream.isolate": (Upstream.isolate, ["key"], {}),
    "Upstream.restore": (Upstream.restore, ["key"], {}),
    "Upstream.snapshot": (Upstream.snapshot, [], {}),
    "Operation.fallback": (Operation.fallback, ["fallback"], {"timeout": None, "after_unknown": False}),
    "Static": (Static, ["value"], {"after_unknown": False}),
    "handler": (gateway.handler, ["function"], {"timeout": None, "after_unknown": False}),
    "Alternate": (gateway.Alternate, ["operation"], {"timeout": None}),
    "LastGood": (
        LastGood,
        [],
        {
            "max_age": 3600.0,
            "max_entries": 10_000,
            "max_bytes": 64 * 1024 * 1024,
            "copy": True,
            "store": None,
            "after_unknown": False,
        },
    ),
    "Bulkhead": (gateway.Bulkhead, ["policy"], {"clock": None}),
    "Bulkhead.acquire": (gateway.Bulkhead.acquire, ["deadline"], {}),
    "Bulkhead.acquire_nowait": (gateway.Bulkhead.acquire_nowait, [], {}),
    "Bulkhead.release": (gateway.Bulkhead.release, [], {}),
    "Permit.succeeded": (Permit.succeeded, ["duration"], {}),
    "Permit.failed": (Permit.failed, ["duration"], {}),
    "Permit.ignored": (Permit.ignored, [], {}),
    "Permit.refused": (Permit.refused, [], {}),
    "Retry": (Retry, ["policy"], {"random": None}),
    "Retry.pause": (Retry.pause, ["attempts", "error", "outcome", "remaining"], {}),
    "Deadline.after": (Deadline.after, ["seconds"], {}),
    "Deadline.from_headers": (Deadline.from_headers, ["headers"], {}),
    "gather": (gateway.gather, [], {"required": {}, "optional": {}}),
    "Faults": (gateway.testing.Faults, ["operation"], {"seed": 0}),
    "assert_nothing_left": (gateway.testing.assert_nothing_left, ["gate"], {}),
    "Refused": (gateway.Refused, [], {"retry_after": None}),
    "NotSent": (gateway.NotSent, [], {"retry_after": None, "reason": "unreachable"}),
    "ConfigError": (gateway.ConfigError, ["field", "problem", "remedy"], {}),
}


@pytest.mark.parametrize(("function", "first", "named"), SIGNATURES.values(), ids=SIGNATURES)
def test_signatures(function: Any, first: list[str], named: dict[str, Any]) -> None:
    assert positional(function) == first
    assert named.items() <= keyword_only(function).items()


def test_all_else_that_is_keyword_only_has_a_default() -> None:
    needed = {
        f"{name}({parameter})"
        for name, (function, _, _) in SIGNATURES.items()
        for parameter, default in keyword_only(function).items()
        if default is EMPTY
    }

    assert not needed


def test_a_deadline_for_a_place_is_none_by_default() -> None:
    assert parameters(gateway.Bulkhead.acquire)["deadline"].default == inf
    assert parameters(Permit.succeeded)["duration"].default is None
    assert parameters(Permit.failed)["duration"].default is None


# -- policies: names, defaults

POLICIES = {
    Policy: {"timeout", "retry", "breaker", "bulkhead", "fallback_timeout", "fallback_limit", "refresh_limit"},
    TimeoutPolicy: {"call", "attempt", "connect", "read"},
    RetryPolicy: {
        *("attempts", "wait", "min_try", "max_retry_after", "budget", "pushback_shared"),
        *("wait_throttled", "wait_unavailable", "wait_unreachable"),
    },
    BudgetPolicy: {"ratio", "minimum", "burst"},
    BulkheadPolicy: {"limit", "queue", "max_wait"},
    BreakerPolicy: {
        *("window_for", "window_calls", "min_calls", "failure_rate", "slow_after", "slow_rate"),
        *("open_for", "open_factor", "open_cap", "open_jitter"),
        *("probes", "max_half_open", "after_max_half_open", "auto_half_open", "evidence_after", "enforce"),
        *("min_callers", "ramp_for", "max_circuits"),
    },
    HttpPolicy: {
        *("headers", "params", "statuses", "max_body", "max_header", "max_headers", "redirects"),
        *("keepalive_for", "keepalive_margin", "dns_for", "resolve", "ca_file", "certificate", "certificate_key"),
        *("trust_env", "deadline_header", "deadline_unit", "idempotency_header", "stream_for"),
        *("endpoints", "health_path", "health_every", "health_timeout"),
    },
    EndpointsPolicy: {
        *("failures_in_a_row", "window_for", "min_calls", "failure_rate", "slow_factor"),
        *("eject_for", "eject_cap", "forgive_after", "max_ejected", "ramp_for", "decay_for", "failure_cost"),
        *("max_report_age", "share_keys"),
    },
}


@pytest.mark.parametrize(("policy", "names"), POLICIES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_policies_are_frozen_dataclasses_with_fields_by_name(policy: type[Any], names: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(policy)}
    value = policy()

    assert names <= fields
    assert positional(policy) == []
    assert set(keyword_only(policy)) == fields
    assert policy.__dataclass_params__.frozen
    assert value == policy()
    assert hash(value) == hash(policy()) or policy in {RetryPolicy, Policy}
    assert dataclasses.replace(value) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, next(iter(names)), None)


def test_the_defaults_of_the_knobs() -> None:
    policy = Policy()

    assert (policy.fallback_timeout, policy.fallback_limit, policy.refresh_limit) == (0.1, 10, 5)
    assert dataclasses.asdict(policy.timeout) == {"call": 20.0, "attempt": 10.0, "connect": 3.0, "read": 5.0}
    assert (policy.retry.attempts, policy.retry.min_try, policy.retry.max_retry_after) == (2, 0.05, 10.0)
    assert isinstance(policy.retry.wait, wait_random_exponential)
    assert (policy.retry.wait.multiplier, policy.retry.wait.max, policy.retry.wait.exp_base) == (0.1, 2.0, 2)
    assert dataclasses.asdict(policy.retry.budget) == {"ratio": 0.2, "minimum": 10.0, "burst": 10}
    assert dataclasses.asdict(policy.bulkhead) == {"limit": 20, "queue": 20, "max_wait": 1.0}
    assert dataclasses.asdict(policy.breaker) | {} == {
        "window_for": 10.0,
        "window_calls": None,
        "min_calls": 10,
        "failure_rate": 0.5,
        "slow_after": None,
        "slow_rate": 1.0,
        "open_for": 5.0,
        "open_factor": 1.0,
        "open_cap": 60.0,
        "open_jitter": 0.0,
        "probes": 3,
        "max_half_open": 10.0,
        "after_max_half_open": "open",
        "auto_half_open": False,
        "evidence_after": None,
        "min_callers": 1,
        "ramp_for": 0.0,
        "max_circuits": 1000,
        "enforce": True,
    }


def test_the_defaults_of_http() -> None:
    http = HttpPolicy()

    assert (http.max_body, http.redirects, http.trust_env) == (10 * 1024 * 1024, 0, False)
    assert (http.deadline_header, http.deadline_unit, http.idempotency_header) == (
        "X-Deadline-Ms",
        "ms",
        "Idempotency-Key",
    )
    assert (http.statuses, http.health_path, http.endpoints.max_ejected) == ({}, None, 0.5)


METHODS = ["get", "head", "options", "post", "put", "patch", "delete"]
SENDING = {"params": None, "headers": None, "json": None, "data": None, "idempotency_key": None}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_an_http_upstream_is_an_operation(name: str) -> None:
    upstream = Gateway().http("ratings", "http://127.0.0.1:9")
    method = getattr(upstream, name)

    assert isinstance(upstream, Upstream)
    assert isinstance(method, Operation)
    assert (method.name, method.upstream) == (name, upstream)
    assert upstream.request(name.upper()) is upstream[name] is method
    for call in (type(method).__call__, type(method).ask):
        assert positional(call) == ["path"]
        assert SENDING.items() <= keyword_only(call).items()


def test_a_declared_operation_takes_what_any_operation_takes() -> None:
    upstream = Gateway().http("ratings", "http://127.0.0.1:9")
    usual = keyword_only(Upstream.operation)

    declared = keyword_only(type(upstream.get).__call__)

    assert usual.items() <= declared.items()
    assert declared["into"] is None


def test_a_no_over_http_is_a_refusal_with_status_and_reply() -> None:
    reply = HttpReply(404, (("Content-Type", "application/json"),), b"[]")
    refused = HttpRefused("GET http://host/1", reply=reply)

    assert issubclass(HttpRefused, gateway.Refused)
    assert (refused.status, refused.reply) == (404, reply)
    assert (reply.status, reply.headers["content-type"], reply.body) == (404, "application/json", b"[]")
    assert (reply.json(), reply.json(into=list[int]), reply.text()) == ([], [], "[]")


def test_least_counts_and_rates() -> None:
    BulkheadPolicy(limit=1, queue=0, max_wait=0.0)
    BreakerPolicy(min_calls=1, probes=1, failure_rate=1.0, slow_rate=1e-9)
    RetryPolicy(attempts=1, wait=wait_fixed(1))


# -- words


def test_outcomes_and_sources_are_texts() -> None:
    assert issubclass(Outcome, StrEnum)
    assert issubclass(Source, StrEnum)
    assert [str(outcome) for outcome in Outcome] == ["success", "refused", "failed", "unknown", "rejected", "cancelled"]
    assert {str(source) for source in Source} == {
        *("live", "coalesced", "cached", "last_good", "static", "handler", "alternate"),
    }


@pytest.mark.parametrize("name", ["upstream", "operation", "outcome", "attempts", "retry_after", "waited_for"])
def test_every_error_of_a_call_has_all_facts_even_before_it_is_raised(name: str) -> None:
    for kind in vars(gateway).values():
        if isinstance(kind, type) and issubclass(kind, gateway.GatewayError):
            assert hasattr(kind("why"), name), kind
            assert str(kind("why")) == "why"
    assert gateway.BulkheadFull().reason in {"queue_full", "max_wait"}


def test_the_admin_server_is_made_and_ended_as_agreed() -> None:
    defaults = {"host": "127.0.0.1", "port": 8080, "token": None, "read_token": None}

    assert admin.__all__ == ["Admin", "serve"]
    assert positional(admin.serve) == ["gate"]
    assert defaults.items() <= keyword_only(admin.serve).items()
    assert inspect.iscoroutinefunction(admin.serve)
    assert all(hasattr(admin.Admin, name) for name in ("url", "close", "__aenter__", "__aexit__"))


def test_a_config_error_names_field_problem_and_remedy() -> None:
    error = gateway.ConfigError("bulkhead.limit", "0 is too few", "give 1 or more")

    assert (error.field, error.problem, error.remedy) == ("bulkhead.limit", "0 is too few", "give 1 or more")
    assert all(part in str(error) for part in (error.field, error.problem, error.remedy))


# -- values


def test_an_answer() -> None:
    answer = Answer("value")
    degraded = Answer("value", Source.STATIC, 1.5, ValueError("why"))

    assert (answer.value, answer.source, answer.age, answer.error, answer.degraded) == (
        "value",
        "live",
        0.0,
        None,
        False,
    )
    assert (answer.stored_at, Answer(1, Source.CACHED, 1.0, None, 1.7e9).stored_at) == (None, 1.7e9)
    assert (degraded.source, degraded.age, degraded.degraded) == ("static", 1.5, True)
    assert Answer(value=1, source=Source.HANDLER, age=2.0, error=None) == Answer(1, Source.HANDLER, 2.0, None)
    for name in ("value", "source", "age", "error", "stored_at"):
        with pytest.raises(AttributeError):
            setattr(answer, name, None)


def test_a_question() -> None:
    error = ValueError()
    question = Question(
        key="k", args=(1,), kwargs={"a": 2}, error=error, now=1.0, deadline=2.0, outcome="failed", idempotent=True
    )

    assert (question.key, question.args, question.kwargs, question.error) == ("k", (1,), {"a": 2}, error)
    assert (question.now, question.deadline, question.outcome, question.idempotent) == (1.0, 2.0, "failed", True)
    with pytest.raises(AttributeError):
        question.key = "other"  # type: ignore[misc]


def test_what_is_a_tier() -> None:
    class Mine:
        def answer(self, question: Question) -> None:
            return None

    assert isinstance(Mine(), Tier)
    for tier in (Static(1), LastGood(), gateway.handler(print), gateway.Alternate(None)):  # type: ignore[arg-type]
        assert isinstance(tier, Tier)
    assert not isinstance(object(), Tier)


EVENTS = {
    gateway.CallFinished: {"operation", "outcome", "source", "duration", "waited", "attempts", "error", "age", "call"},
    gateway.AttemptFailed: {"operation", "attempt", "outcome", "error", "duration", "call"},
    gateway.CircuitChanged: {"before", "after", "key"},
    gateway.PolicyChanged: {"before", "after"},
}


@pytest.mark.parametrize(("kind", "names"), EVENTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_events(kind: Any, names: set[str]) -> None:
    event = kind(upstream="world", at=1.0, **dict.fromkeys(names, "x"))

    assert issubclass(kind, Event)
    assert set(kind.__struct_fields__) == {"upstream", "at", *names}
    with pytest.raises(AttributeError):
        event.at = 2.0


SNAPSHOTS = {
    gateway.GatewaySnapshot: ["upstreams"],
    gateway.UpstreamSnapshot: [
        "name",
        "policy",
        "bulkhead",
        "breaker",
        "counts",
        "latency",
        "waits",
        "operations",
        "circuits",
        "budget",
    ],
    gateway.OperationSnapshot: ["name", "counts", "latency", "memory", "ages"],
    gateway.MemorySnapshot: ["entries", "bytes", "hits", "misses", "too_old", "evicted", "store"],
    gateway.BulkheadSnapshot: ["limit", "in_use", "waiting", "abandoned", "rejected", "peak"],
    gateway.BreakerSnapshot: [
        *(
            "state",
            "enforced",
            "failure_rate",
            "slow_rate",
            "calls",
            "failures",
            "slow",
            "rejected",
            "open_until",
            "held_until",
        ),
    ],
    gateway.LatencySnapshot: ["count", "mean", "p50", "p90", "p99", "max"],
    gateway.Counts: [
        *("asked", "live", "coalesced", "cached", "last_good", "static", "handler", "alternate"),
        *("refused", "failed", "unknown", "rejected", "cancelled", "in_flight"),
        *("attempts", "retries", "overran", "fallback_failed", "refreshed", "refresh_failed"),
    ],
}


@pytest.mark.parametrize(("kind", "names"), SNAPSHOTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_snapshots_are_frozen_dataclasses(kind: Any, names: list[str]) -> None:
    assert [field.name for field in dataclasses.fields(kind)] == names
    assert kind.__dataclass_params__.frozen


def test_a_snapshot_of_a_new_gateway() -> None:
    gate = Gateway()
    up = gate.upstream("world")
    up.operation(name="ask", idempotent=True)(asyncio.sleep)

    snapshot = gate.snapshot().upstreams["world"]

    assert (snapshot.name, snapshot.policy) == ("world", up.policy)
    assert snapshot.bulkhead == gateway.BulkheadSnapshot(limit=20, in_use=0, waiting=0, abandoned=0, rejected=0, peak=0)
    assert snapshot.breaker == gateway.BreakerSnapshot(
        state="closed",
        enforced=True,
        failure_rate=None,
        slow_rate=None,
        calls=0,
        failures=0,
        slow=0,
        rejected=0,
        open_until=None,
    )
    assert snapshot.counts == gateway.Counts()
    assert snapshot.latency == gateway.LatencySnapshot(count=0, mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)
    assert snapshot.operations["ask"] == gateway.OperationSnapshot(
        name="ask", counts=gateway.Counts(), latency=snapshot.latency
    )


# -- things


def test_what_an_upstream_and_an_operation_have() -> None:
    up = Gateway().upstream("world")
    operation = up.operation(name="ask", idempotent=True)(asyncio.sleep)

    assert (up.name, up.policy, up.warnings) == ("world", Policy(), ())
    assert isinstance(up.bulkhead, gateway.Bulkhead)
    assert isinstance(up.breaker, CircuitBreaker)
    assert up["ask"] is operation
    assert (operation.name, operation.upstream) == ("ask", up)
    assert inspect.iscoroutinefunction(operation.ask)
    for name in ("name", "warnings"):
        if isinstance(inspect.getattr_static(type(up), name, None), property):
            with pytest.raises(AttributeError):
                setattr(up, name, None)


def test_registering_with_brackets_or_without() -> None:
    up = Gateway().upstream("world")

    async def one() -> None: ...
    async def two() -> None: ...
    async def three() -> None: ...

    assert [up.operation(one).name, up.operation()(two).name, up.operation(idempotent=True)(three).name] == [
        "one",
        "two",
        "three",
    ]


def test_a_circuit_alone() -> None:
    time = [0.0]
    breaker = CircuitBreaker(BreakerPolicy(min_calls=1, open_for=5.0), clock=lambda: time[0])

    breaker.check()
    with breaker.admit() as permit:
        assert isinstance(permit, Permit)
    breaker.admit().failed(duration=0.1)
    with pytest.raises(gateway.CircuitOpen) as caught:
        breaker.admit()

    assert breaker.snapshot().state == "open"
    assert (caught.value.retry_after, breaker.snapshot().open_until) == (5.0, 5.0)
    with pytest.raises(gateway.CircuitOpen):
        breaker.check()
    breaker.restore()
    breaker.isolate()
    assert breaker.snapshot().state == "isolated"
    assert breaker.policy.min_calls == 1


async def use_a_bulkhead_alone() -> tuple[bool, bool, int]:
    bulkhead = gateway.Bulkhead(BulkheadPolicy(limit=2, queue=0))
    async with bulkhead:
        second, third = bulkhead.acquire_nowait(), bulkhead.acquire_nowait()
        bulkhead.release()
        await bulkhead.acquire()
        bulkhead.release()
    return second, third, bulkhead.snapshot().in_use


def test_a_bulkhead_alone() -> None:
    assert asyncio.run(use_a_bulkhead_alone()) == (True, False, 0)


def test_a_retry_alone() -> None:
    retry = Retry(RetryPolicy(attempts=3, wait=wait_fixed(0.5)), random=Random(1))

    assert retry.pause(1, ValueError(), Outcome.FAILED, 10.0) == 0.5
    assert retry.pause(3, ValueError(), Outcome.FAILED, 10.0) is None
    assert retry.pause(1, ValueError(), Outcome.UNKNOWN, 10.0) is None
    assert retry.pause(1, ValueError(), Outcome.FAILED, 0.5) is None


def test_a_deadline_alone() -> None:
    assert Deadline.current() is None
    with Deadline.after(10.0) as deadline:
        inside = Deadline.current()
        headers = deadline.to_headers()

    assert inside is not None
    assert 9.0 < inside.remaining() <= 10.0
    assert headers.keys() == {"X-Deadline-Ms"}
    assert 9000 < int(headers["X-Deadline-Ms"]) <= 10_000
    with Deadline.from_headers(headers):
        assert 9.0 < Deadline.current().remaining() <= 10.0
    for nothing in ({}, {"X-Deadline-Ms": "soon"}, {"X-Deadline-Ms": "-5"}, {"X-Deadline-Ms": ""}):
        with Deadline.from_headers(nothing):
            assert Deadline.current() is None
    assert Deadline.current() is None


def test_a_fallback_alone() -> None:
    async def main() -> Answer[Any] | None:
        error = ValueError("down")
        chain = fallbacks.Fallback([LastGood(), Static("s")])
        return await chain.answer(
            Question(key="k", args=(), kwargs={}, error=error, now=0.0, deadline=1.0, outcome="failed", idempotent=True)
        )

    answer = asyncio.run(main())

    assert answer is not None
    assert (answer.value, answer.source) == ("s", "static")
    assert answer.error.__notes__ == ["LastGood had no answer"]


def test_the_house_of_section_seven_stands() -> None:
    async def main() -> list[tuple[object, str]]:
        gate = Gateway()
        ratings = gate.upstream(
            "ratings",
            policy=Policy(bulkhead=BulkheadPolicy(limit=20), timeout=TimeoutPolicy(call=0.8, attempt=0.3)),
        )
        broken = False

        @ratings.operation(idempotent=True, fallback=[LastGood(max_age=300)])
        async def user_ratings(user_id: str) -> tuple[str, ...]:
            if broken:
                raise ConnectionError
            return (user_id,)

        @user_ratings.fallback
        async def from_search(error: Exception, user_id: str) -> tuple[str, ...]:
            return ("found", user_id)

        answers = []
        async with gate:
            with Deadline.after(1.0):
                answers.append(await user_ratings.ask("ada"))
                broken = True
                answers += [await user_ratings.ask("ada"), await user_ratings.ask("bob")]
            ratings.tune(bulkhead=BulkheadPolicy(limit=40))
            ratings.isolate()
            answers.append(await user_ratings.ask("ada"))
            ratings.restore()
            assert ratings.snapshot().bulkhead.limit == 40
        return [(answer.value, str(answer.source)) for answer in answers]

    assert asyncio.run(main()) == [
        (("ada",), "live"),
        (("ada",), "last_good"),
        (("found", "bob"), "handler"),
        (("ada",), "last_good"),
    ]
