"""The numbers for Prometheus: as its own parsers read them, and as a real Prometheus does.

The queries of docs/grafana/gateway.json and of docs/alerts.yml are asked of a real server, which scrapes a gateway in
trouble: each must give an answer, and alerts must be about what is wrong.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway import (
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    Gateway,
    HttpPolicy,
    LastGood,
    Outcome,
    Policy,
    Refused,
    RetryPolicy,
    Source,
    Static,
    TimeoutPolicy,
)
from gateway.metrics import AGES, DURATIONS, Exposition, Metrics, exposition
from tests.edges.serving import served
from tests.support import NEVER_OPENS, ONE_TRY, QUIET, Boom, ended, gone

virtual = pytest.mark.virtual_time
ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "docs" / "alerts.yml"
DASHBOARD = ROOT / "docs" / "grafana" / "gateway.json"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
TENANT: ContextVar[str | None] = ContextVar("tenant", default=None)


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of one line."""
    for family in parse_text(text):
        for one in family.samples:
            if one.name == name and one.labels == labels:
                return float(one.value)
    return None


def read(gate: Gateway) -> str:
    return exposition(gate)[0].decode()


# -- what is told


@virtual
async def test_every_way_a_call_can_end_is_told_and_they_add_up() -> None:
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=QUIET)

    @ratings.operation(fallback=[Static(0)])
    async def stars(error: Exception | None = None) -> int:
        await asyncio.sleep(0.003)
        if error is not None:
            raise error
        return 5

    async with gate:
        await stars()
        await stars(Boom())
        await ended(stars(Refused()))
        call = asyncio.create_task(stars())
        await asyncio.sleep(0)
        text = read(gate)
        await gone(call)

    of = {"upstream": "ratings", "operation": "stars"}
    ends = {end: sample(text, "gateway_calls_total", **of, ended=end) for end in (*Source, *Outcome)}
    assert {end: number for end, number in ends.items() if number} == {"live": 1, "refused": 1, "static": 1}
    assert sample(text, "gateway_calls_asked_total", **of) == 4
    assert sample(text, "gateway_calls_in_flight", **of) == 1
    assert sum(number for number in ends.values() if number) == 3


@virtual
async def test_a_histogram_counts_what_is_below_each_of_its_bounds() -> None:
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=QUIET)

    @ratings.operation(idempotent=True)
    async def stars(takes: float) -> None:
        await asyncio.sleep(takes)

    async with gate:
        for takes in (0.001, 0.002, 0.002, 0.5, 9.0):
            await stars(takes)
        text = read(gate)

    of = {"upstream": "ratings", "operation": "stars"}
    name = "gateway_attempt_duration_seconds"
    for bound in DURATIONS.names:
        below = sum(takes <= float(bound) for takes in (0.001, 0.002, 0.002, 0.5, 9.0))
        assert sample(text, f"{name}_bucket", **of, le=bound.replace("+Inf", "+Inf")) == below, bound
    assert sample(text, f"{name}_count", **of) == 5
    assert sample(text, f"{name}_sum", **of) == pytest.approx(9.505)


def test_bounds_are_few_and_end_in_infinity() -> None:
    for buckets in (DURATIONS, AGES):
        bounds = [float(name) for name in buckets.names]
        assert sorted(bounds) == bounds
        assert bounds[-1] == inf
        assert len(bounds) <= 20
    assert float(DURATIONS.names[0]) == pytest.approx(0.000256)
    assert float(DURATIONS.names[-2]) == pytest.approx(33.6, rel=0.01)


@virtual
async def test_a_pool_and_a_circuit_are_told_as_they_are() -> None:
    gate = Gateway()
    policy = Policy(bulkhead=BulkheadPolicy(limit=inf), breaker=BreakerPolicy(enforce=False), retry=ONE_TRY)
    gate.upstream("ratings", policy=policy).isolate()

    text = read(gate)

    of = {"upstream": "ratings"}
    assert sample(text, "gateway_pool_limit", **of) == inf
    assert sample(text, "gateway_circuit_state", **of, state="isolated") == 1
    assert sample(text, "gateway_circuit_state", **of, state="closed") == 0
    assert sample(text, "gateway_circuit_enforced", **of) == 0
    assert sample(text, "gateway_circuit_failure_ratio", **of) is None  # nobody knows it
    assert sample(text, "gateway_timeout_seconds", **of, limit="call") == 20.0


@virtual
async def test_circuits_with_keys_are_a_number_whatever_the_keys() -> None:
    gate = Gateway()
    shared = gate.upstream("shared", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1)))

    @shared.operation(idempotent=True, circuit_by=TENANT)
    async def one() -> None:
        if TENANT.get() in {"tenant 3", "tenant 4"}:
            raise Boom

    async with gate:
        for number in range(50):
            TENANT.set(f"tenant {number}")
            await ended(one())
        TENANT.set(None)
        text = read(gate)

    assert sample(text, "gateway_circuits", upstream="shared", state="open") == 2
    assert sample(text, "gateway_circuits", upstream="shared", state="closed") == 48
    assert "tenant" not in text


def test_an_endpoint_is_told_without_a_password() -> None:
    gate = Gateway()
    gate.http("films", "http://user:s3cret@127.0.0.1:1/v1")

    text = read(gate)

    assert sample(text, "gateway_endpoint_in_flight", upstream="films", endpoint="http://127.0.0.1:1/v1") == 0
    assert "s3cret" not in text


def test_a_name_may_be_anything() -> None:
    name = 'a"b\\c\nd <script> \u00e9'
    gate = Gateway()
    gate.upstream(name)

    body, _ = exposition(gate, OPENMETRICS)
    families = list(parse_openmetrics(body.decode()))

    (limit,) = [family for family in families if family.name == "gateway_pool_limit"]
    assert limit.samples[0].labels == {"upstream": name}


def test_the_lag_is_told_by_who_knows_it() -> None:
    gate = Gateway()

    with_lag = exposition(gate, lag=lambda: 0.25)[0].decode()

    assert sample(with_lag, "gateway_event_loop_lag_seconds") == 0.25
    assert "event_loop_lag" not in read(gate)


# -- how it is told


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        (OPENMETRICS, True),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
            True,
        ),
        ("application/openmetrics-text; version=x", True),
        ("application/openmetrics-text; version=1.0.0.0.0.0.x; escaping=nonsense", True),
        ("Application/OpenMetrics-Text; version=1.0.0\r\nX-Evil: 1", True),
        (",;,=;;version=,", False),
    ],
)
def test_a_scraper_gets_the_format_that_it_accepts(accept: str, openmetrics: bool) -> None:
    gate = Gateway()
    gate.upstream("ratings")

    body, content_type = exposition(gate, accept)

    assert content_type == (f"{OPENMETRICS}; charset=utf-8; escaping=underscores" if openmetrics else PLAIN)
    assert body.endswith(b"# EOF\n") == openmetrics
    assert list((parse_openmetrics if openmetrics else parse_text)(body.decode()))


@virtual
async def test_names_have_units_and_types_that_openmetrics_allows() -> None:
    async with in_trouble() as gate:
        body, _ = exposition(gate, OPENMETRICS, lag=lambda: 0.0)

    families = list(parse_openmetrics(body.decode()))  # it refuses what the standard does

    for family in families:
        assert family.name.startswith("gateway_")
        assert family.documentation.endswith(".")
        assert family.type in {"counter", "gauge", "histogram"}
        if family.name.endswith(("_seconds", "_bytes")):
            assert family.name.endswith(f"_{family.unit}")
    labels = {label for family in families for one in family.samples for label in one.labels}
    assert labels == {"upstream", "operation", "ended", "state", "limit", "endpoint", "le"}


@virtual
async def test_a_registry_of_your_own_and_slices_give_the_same() -> None:
    gate = Gateway()
    for number in range(20):
        gate.upstream(f"up{number}")
    registry = CollectorRegistry()
    registry.register(Metrics(gate))

    in_slices, _ = await Exposition(gate).read_in_slices()

    assert generate_latest(registry) == in_slices == exposition(gate)[0]


@virtual
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_what_is_written_scrape_by_scrape_is_what_prometheus_client_writes(accept: str) -> None:
    async with in_trouble() as gate:
        metrics = Exposition(gate, lag=lambda: 0.25)
        odd = gate.upstream(
            'a"b\\c\nd <script> \u00e9\u2028', policy=Policy(timeout=TimeoutPolicy(call=4.0, attempt=3.5))
        )

        @odd.operation(idempotent=True, name='x y"\n', fresh_for=60.0)
        async def stars(takes: float) -> float:
            await asyncio.sleep(takes)
            return takes

        for takes in (0.0, 0.0, 0.001, 0.25, 3.0, 0.001, 2_000.0):  # one moves, all others rest
            await ended(stars(takes))
            odd.operation(idempotent=True, name=f"later {takes} {odd.snapshot().counts.asked}")(stars.__wrapped__)

            assert metrics.read(accept) == exposition(gate, accept, lag=lambda: 0.25)
            assert await metrics.read_in_slices(accept) == exposition(gate, accept, lag=lambda: 0.25)


def test_series_that_come_no_more_are_forgotten() -> None:
    gate = Gateway()
    films = gate.http("films", [f"http://127.0.0.1:{port}" for port in range(1, 4)])
    metrics = Exposition(gate)
    metrics.read()

    for number in range(100):
        films.replace_endpoints([f"http://127.0.0.1:{port}" for port in range(10 * number + 1, 10 * number + 4)])
        assert metrics.read() == exposition(gate)

    assert max(len(one.names) for one in metrics._spellings.values()) < 200


# -- a real Prometheus


@asynccontextmanager
async def in_trouble() -> AsyncIterator[Gateway]:
    """A gateway with all that can be wrong, and calls that go on."""
    gate = Gateway()
    retry = RetryPolicy(wait=lambda _: 0.0, budget=BudgetPolicy(ratio=0.0, minimum=0.001, burst=1))
    ratings = gate.upstream("ratings", policy=Policy(breaker=NEVER_OPENS, retry=retry))

    @ratings.operation(idempotent=True, fallback=[LastGood(max_age=300)])
    async def stars(number: int) -> int:
        if number % 3 == 2:
            raise Boom("every third")
        return number

    @ratings.operation(idempotent=True)
    async def broken() -> None:
        raise Boom("always")

    @ratings.operation(idempotent=False)
    async def pay() -> None:
        raise Boom("sent")

    @ratings.operation(idempotent=True, fallback=[Static(0)])
    async def shaky() -> int:
        raise Boom("always")

    slow = gate.upstream(
        "slow",
        policy=Policy(
            retry=ONE_TRY,
            breaker=NEVER_OPENS,
            bulkhead=BulkheadPolicy(limit=1, queue=1),
            timeout=TimeoutPolicy(call=0.5, attempt=0.05),
        ),
    )

    @slow.operation(idempotent=True)
    async def crawl(*, fast: bool = False) -> None:
        until = asyncio.get_running_loop().time() + (0.0 if fast else 0.2)
        while asyncio.get_running_loop().time() < until:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:  # it goes on when it is told to end
                await asyncio.sleep(0.06)
                raise

    sick = gate.upstream("sick", policy=Policy(retry=ONE_TRY, breaker=BreakerPolicy(min_calls=1, open_for=60.0)))

    @sick.operation(idempotent=True)
    async def fever() -> None:
        raise Boom

    @sick.operation(idempotent=True, name="of a tenant", circuit_by=TENANT)
    async def of_a_tenant() -> None:
        raise Boom

    well = gate.upstream("well", policy=QUIET)

    @well.operation(idempotent=True)
    async def fine() -> None:
        await asyncio.sleep(0.001)

    gate.upstream("put aside").isolate()
    gate.http("films", ["http://127.0.0.1:1", "http://127.0.0.1:2"], policy=QUIET, http=HttpPolicy())
    films = gate["films"]

    async def go_on() -> None:
        TENANT.set("ada")
        number = 0
        while True:
            number += 1
            one = stars(number % 3 if number % 6 else 0)
            await asyncio.gather(*map(ended, (one, broken(), pay(), shaky(), fever(), of_a_tenant(), fine())))
            if number % 3 == 1:
                await ended(films.get("/"))  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)

    async def crowd(*, fast: bool = False) -> None:
        while True:
            await ended(crawl(fast=fast))
            await asyncio.sleep(0.001)

    async with gate:
        tasks = [asyncio.create_task(go_on()), *(asyncio.create_task(crowd(fast=i == 0)) for i in range(4))]
        try:
            await asyncio.sleep(0.05)
            yield gate
        finally:
            await gone(*tasks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def prometheus(program: str, target: str, folder: Path) -> Iterator[str]:
    """A server that scrapes often; its URL."""
    (folder / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}
rule_files: ["{ALERTS}"]
scrape_configs: [{{job_name: gateway, static_configs: [{{targets: ["{target}"]}}]}}]
""")
    listen = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
                f"--web.listen-address={listen}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://{listen}"
        finally:
            process.terminate()
            process.wait(20)


async def eventually(look: Callable[[], Any], patience: float = 20.0) -> Any:
    """What it gives as soon as it gives something; None if it never does."""
    given_up_at = time.monotonic() + patience
    while True:
        try:
            if found := await look():
                return found
        except aiohttp.ClientError:
            pass
        if time.monotonic() > given_up_at:
            return None
        await asyncio.sleep(0.05)


@pytest.mark.asyncio
async def test_a_real_prometheus_answers_every_query_and_sees_the_trouble(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    binary = program("prometheus")

    async def metrics(request: web.Request) -> web.Response:
        body, content_type = exposition(gate, request.headers.get("Accept", ""), lag=lambda: 0.2)
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    async with in_trouble() as gate, served(app) as url, aiohttp.ClientSession() as session:
        with prometheus(binary, url.removeprefix("http://"), tmp_path) as server:

            async def ask(path: str, **params: str) -> Any:
                async with session.get(f"{server}/api/v1/{path}", params=params) as response:
                    said = await response.json()
                    assert said["status"] == "success", (params, said)
                    return said["data"]

            async def scraped() -> bool:
                (target,) = (await ask("targets"))["activeTargets"] or [None]
                if target is None or target["lastError"]:  # a machine that is busy may miss one of so many scrapes
                    return False
                found = await ask("query", query="count_over_time(gateway_pool_limit[1m]) > 6")
                return bool(found["result"])

            async def alerts() -> dict[str, set[str]] | None:
                (group,) = (await ask("rules"))["groups"] or [{"rules": []}]
                if not group["rules"] or any(rule["health"] == "unknown" for rule in group["rules"]):
                    return None
                assert [rule["lastError"] for rule in group["rules"] if rule["health"] != "ok"] == []
                found = {
                    rule["name"]: {alert["labels"].get("upstream", "") for alert in rule["alerts"]}
                    for rule in group["rules"]
                }
                return found if all(found[name] >= upstreams for name, upstreams in ABOUT.items()) else None

            async def answered(query: str) -> Any:
                return (await ask("query", query=query))["result"]

            assert await eventually(scraped)
            about = await eventually(alerts)
            assert about
            for query in queries():
                assert await eventually(partial(answered, query)), query

    assert about.keys() == ABOUT.keys() | {"GatewayNumbersDoNotAddUp", "GatewayPoolAbandoned"}
    assert about["GatewayNumbersDoNotAddUp"] == about["GatewayPoolAbandoned"] == set()
    assert not any("well" in upstreams for upstreams in about.values())


ABOUT = {
    "GatewayCircuitOpen": {"sick"},
    "GatewayCircuitIsolated": {"put aside"},
    "GatewayManyCircuitsOpen": {"sick"},
    "GatewayPoolFull": {"slow"},
    "GatewayCallsRejected": {"sick", "slow"},
    "GatewayCallsFailed": {"ratings", "films"},
    "GatewayOutcomeUnknown": {"ratings"},
    "GatewayAnswersDegraded": {"ratings"},
    "GatewayRetryBudgetSpent": {"ratings"},
    "GatewayAttemptsOverrun": {"slow"},
    "GatewayEndpointsOut": {"films"},
    "GatewayLoopLags": {""},
}
"""What `in_trouble` is in: each alert, and whom it is about at least."""


def queries() -> Iterator[str]:
    """Every query of the dashboard, as Grafana would fill it in."""
    dashboard = json.loads(DASHBOARD.read_text())
    written = [
        *(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())),
        *(one["expr"] for one in dashboard["annotations"]["list"]),
    ]
    assert len(written) > 30
    for query in written:
        filled = query.replace("$__rate_interval", "1m")
        for name in ("job", "instance", "upstream"):
            filled = filled.replace(f'"${name}"', '".*"')
        assert "$" not in filled, query
        yield filled


def test_the_dashboard_names_what_there_is_and_lies_on_a_grid() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    text = read(Gateway())
    families = {family.name for family in parse_text(text)} | {"gateway_event_loop_lag_seconds"}

    named = set(re.findall(r"gateway_\w+", " ".join([*queries(), ALERTS.read_text()])))
    placed = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]

    known = {*families, *(f"{name}{end}" for name in families for end in ("_total", "_bucket"))}
    assert named <= known
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(placed)
    for height, width, x, y in placed:
        assert x + width <= 24
        others = [one for one in placed if one != (height, width, x, y)]
        assert not any(
            x < left + wide and left < x + width and y < top + high and top < y + height
            for high, wide, left, top in others
        )


def test_the_page_has_every_metric_and_every_alert() -> None:
    page = (ROOT / "docs" / "watching.md").read_text()
    told = set(re.findall(r"`(gateway_\w+|Gateway\w+)`", page))
    gate = Gateway()
    gate.upstream("ratings")

    families = list(parse_text(exposition(gate, lag=lambda: 0.0)[0].decode()))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}

    assert told == names | set(re.findall(r"alert: (\w+)", ALERTS.read_text()))


def assert_rules_hold(promtool: str, folder: Path, text: str) -> None:
    """A case of promtool's passes."""
    case = folder / "case.yml"
    case.write_text(text)
    done = subprocess.run([promtool, "test", "rules", case], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


PROMISE_10 = """
rule_files: ["{alerts}"]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series:
      - {{series: 'gateway_calls_asked_total{{upstream="ratings",operation="stars"}}', values: "10+10x20"}}
      - {{series: 'gateway_calls_total{{upstream="ratings",operation="stars",ended="live"}}', values: "8+10x20"}}
      - {{series: 'gateway_calls_total{{upstream="ratings",operation="stars",ended="failed"}}', values: "{failed}x20"}}
      - {{series: 'gateway_calls_in_flight{{upstream="ratings",operation="stars"}}', values: "1x20"}}
    alert_rule_test:
      - eval_time: 5m
        alertname: GatewayNumbersDoNotAddUp
        exp_alerts: {expected}
"""


@pytest.mark.parametrize(("failed", "fires"), [("1", False), ("0", True)])
def test_a_call_that_is_missing_from_the_numbers_is_an_alert(
    failed: str, fires: bool, program: Callable[[str], str], tmp_path: Path
) -> None:
    labels = {"severity": "ticket", "upstream": "ratings", "operation": "stars"}
    annotations = {
        "summary": "ratings.stars: 1 calls are missing from the numbers",
        "description": "Every call ends in exactly one way, or is in flight. If not, it is a bug of the gateway.",
    }
    expected = json.dumps([{"exp_labels": labels, "exp_annotations": annotations}] if fires else [])

    assert_rules_hold(program("promtool"), tmp_path, PROMISE_10.format(alerts=ALERTS, failed=failed, expected=expected))


ABANDONED = """
rule_files: ["{alerts}"]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series:
      - {{series: 'gateway_pool_limit{{upstream="films"}}', values: "20x10"}}
      - {{series: 'gateway_pool_abandoned{{upstream="films"}}', values: "{abandoned}x10"}}
    alert_rule_test:
      - eval_time: 3m
        alertname: GatewayPoolAbandoned
        exp_alerts: {expected}
"""


@pytest.mark.parametrize(("abandoned", "fires"), [("10", False), ("11", True)])
def test_a_pool_whose_threads_are_mostly_stuck_is_an_alert(
    abandoned: str, fires: bool, program: Callable[[str], str], tmp_path: Path
) -> None:
    labels = {"severity": "page", "upstream": "films"}
    summary = "films: 11 threads are stuck whose callers have left, over half of the pool"
    expected = json.dumps([{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if fires else [])
    text = ABANDONED.format(alerts=ALERTS, abandoned=abandoned, expected=expected)

    assert_rules_hold(program("promtool"), tmp_path, text)
