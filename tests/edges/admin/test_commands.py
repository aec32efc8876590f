"""The commands of operators, against a server that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from click.testing import CliRunner, Result

from gateway import BulkheadPolicy, Gateway, LastGood, Policy
from gateway.admin import Admin
from gateway.cli import main
from tests.edges.admin.asking import admin_of, ask
from tests.edges.serving import served

pytestmark = pytest.mark.asyncio

TOKEN = "t" * 20


class Operator:
    """Who types commands."""

    def __init__(self, admin: Admin, gate: Gateway) -> None:
        self.admin, self.gate = admin, gate
        self.environment = {"GATEWAY_ADMIN_TOKEN": TOKEN, "GATEWAY_ADMIN": admin.url}

    async def types(self, *arguments: str, **environment: str) -> Result:
        runner = CliRunner(env={**self.environment, **environment})
        return await asyncio.to_thread(runner.invoke, main, arguments)

    async def audit(self) -> list[Any]:
        return (await ask(self.admin, "GET", "/audit", token=TOKEN)).json["audit"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    path.write_text("[upstreams.ratings.bulkhead]\nlimit = 20  # measured\n")
    return path


@pytest_asyncio.fixture
async def operator(file: Path) -> AsyncIterator[Operator]:
    gate = Gateway.from_file(file, check_every=1e9, on_hangup=False)
    gate.http("movies", ["http://127.0.0.1:9", "http://127.0.0.1:10"])
    async with admin_of(gate, token=TOKEN) as admin:
        yield Operator(admin, gate)


async def test_a_knob_is_tuned_and_what_changed_is_said(operator: Operator) -> None:
    told = await operator.types("tune", "ratings", "bulkhead.limit=40", "timeout.call=3s", "--why", "sale")

    assert told.exit_code == 0
    assert told.output.splitlines() == [
        "ratings: timeout.call 20.0 -> 3.0",
        "ratings: timeout.attempt 10.0 -> 3.0",
        "ratings: timeout.read 5.0 -> 3.0",
        "ratings: bulkhead.limit 20 -> 40",
    ]
    (record,) = await operator.audit()
    assert record["why"] == "sale"
    assert record["who"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bulkhead.limit=inf", float("inf")),
        ("timeout.attempt=300ms", 0.3),
        ("breaker.slow_after=none", None),
        ("breaker.enforce=false", False),
        ("breaker.after_max_half_open=closed", "closed"),
        ("retry.budget.ratio=0.5", 0.5),
        ("bulkhead.limit=default", 20),
    ],
)
async def test_values_are_written_as_in_a_policy_file(operator: Operator, setting: str, value: object) -> None:
    told = await operator.types("tune", "ratings", setting)

    assert told.exit_code == 0, told.output
    part: Any = operator.gate["ratings"].policy
    for name in setting.partition("=")[0].split("."):
        part = getattr(part, name)
    assert part == value


async def test_a_wait_is_one_value(operator: Operator) -> None:
    told = await operator.types("tune", "ratings", 'retry.wait={"fixed": 1}')

    assert told.output == 'ratings: retry.wait {"jitter": 0.1, "max": 2.0} -> {"fixed": 1.0}\n'


async def test_all_mistakes_are_told_and_nothing_changes(operator: Operator) -> None:
    told = await operator.types("tune", "ratings", "bulkhead.limit=0", "bulkhead.quue=1")

    assert told.exit_code == 1
    assert told.output.splitlines() == [
        "Error: bulkhead.quue: there is no 'quue'; did you mean 'queue'?",
        "bulkhead.limit: 0 is not a whole number from 1 up; give 1 or more, or inf",
    ]
    assert operator.gate["ratings"].policy.bulkhead.limit == 20


@pytest.mark.parametrize("settings", [["bulkhead.limit"], ["=3"], ["a..b=3"], ["a=1", "a=2"], ["a=1", "a.b=2"], []])
async def test_what_is_no_setting_is_a_wrong_use(operator: Operator, settings: list[str]) -> None:
    assert (await operator.types("tune", "ratings", *settings)).exit_code == 2


async def test_a_budget_that_is_taken_away_is_told_by_its_knobs_and_so_is_its_return(operator: Operator) -> None:
    taken = await operator.types("tune", "ratings", "retry.budget=none")
    again = await operator.types("tune", "ratings", "retry.budget=none")
    returned = await operator.types("drop", "ratings")

    assert taken.output.splitlines() == [
        "ratings: retry.budget.ratio 0.2 -> none",
        "ratings: retry.budget.minimum 10.0 -> none",
        "ratings: retry.budget.burst 10 -> none",
    ]
    assert again.output == "ratings: as it was\n"
    assert returned.output.splitlines() == [
        "ratings: retry.budget.ratio none -> 0.2",
        "ratings: retry.budget.minimum none -> 10.0",
        "ratings: retry.budget.burst none -> 10",
    ]
    told = [record["text"] for record in await operator.audit()]
    assert not any("none -> none" in text for text in told)
    assert any("retry.budget.ratio 0.2 -> none" in text for text in told)


async def test_what_is_tuned_is_dropped_or_folded(operator: Operator, file: Path) -> None:
    await operator.types("tune", "ratings", "bulkhead.limit=40")
    dropped = await operator.types("drop", "ratings")
    await operator.types("tune", "ratings", "bulkhead.limit=50")
    folded = await operator.types("fold", "ratings", "--why", "it proved itself")
    nothing = [(await operator.types(name, "ratings")).output for name in ("drop", "fold")]

    assert dropped.output == "ratings: bulkhead.limit 40 -> 20\n"
    assert folded.output == f"ratings: bulkhead.limit 20 -> 50 in {file}\n"
    assert file.read_text() == "[upstreams.ratings.bulkhead]\nlimit = 50  # measured\n"
    assert nothing == ["ratings: nothing is tuned\n"] * 2


async def test_an_upstream_is_isolated_and_restored(operator: Operator) -> None:
    ratings = operator.gate["ratings"]

    told = await operator.types("isolate", "ratings")
    state = ratings.snapshot().breaker.state
    again = await operator.types("restore", "ratings")

    assert (told.output, again.output) == ("ratings: isolated\n", "ratings: restored\n")
    assert (state, ratings.snapshot().breaker.state) == ("isolated", "closed")


async def test_one_circuit_is_isolated(operator: Operator) -> None:
    assert (await operator.types("isolate", "ratings", "--circuit", "ada")).output == "ratings: isolated, circuit ada\n"
    assert operator.gate["ratings"].snapshot().circuits["ada"].state == "isolated"
    assert (await operator.types("restore", "ratings", "--circuit", "bob")).exit_code == 1
    assert (await operator.types("restore", "ratings", "--circuit", "ada")).exit_code == 0


async def test_enforcement_is_switched(operator: Operator) -> None:
    assert (await operator.types("enforce", "ratings", "off")).output == "ratings: its circuit only counts\n"
    assert not operator.gate["ratings"].policy.breaker.enforce
    assert (await operator.types("enforce", "ratings", "on")).output == "ratings: its circuit refuses calls\n"
    assert operator.gate["ratings"].policy.breaker.enforce
    assert (await operator.types("enforce", "ratings", "perhaps")).exit_code == 2


async def test_an_endpoint_is_drained_and_restored(operator: Operator) -> None:
    url = "http://127.0.0.1:10"

    drained = await operator.types("drain", "movies", url)
    last = await operator.types("drain", "movies", "http://127.0.0.1:9")
    restored = await operator.types("restore", "movies", "--endpoint", url)
    both = await operator.types("restore", "movies", "--endpoint", url, "--circuit", "x")

    assert drained.output == f"movies: no new calls go to {url}\n"
    assert "the last one" in last.output
    assert restored.output == f"movies: calls go to {url} again\n"
    assert (last.exit_code, both.exit_code) == (1, 2)


async def test_remembered_answers_are_forgotten(operator: Operator) -> None:
    @operator.gate["ratings"].operation(idempotent=True, fallback=[LastGood()])
    async def stars(film: str | int) -> str:
        return f"{film}"

    for film in ("603", 603, "604"):
        await stars(film)

    one = await operator.types("forget", "ratings", "stars", "603")
    number = await operator.types("forget", "ratings", "stars", "--json", "603")
    rest = await operator.types("forget", "ratings")

    assert [told.output for told in (one, number, rest)] == ["ratings: 1 answer forgotten\n"] * 3


async def test_a_snapshot_is_a_table_or_all_of_it(operator: Operator) -> None:
    await operator.types("tune", "ratings", "bulkhead.limit=40")

    table = await operator.types("snapshot")
    everything = json.loads((await operator.types("snapshot", "--json")).output)
    one = json.loads((await operator.types("snapshot", "ratings", "--json")).output)
    none = await operator.types("snapshot", "rating")

    head, *rows = table.output.splitlines()
    assert head.split()[:2] == ["upstream", "circuit"]
    assert rows[0].split()[:3] == ["ratings", "closed", "0/40"]
    assert rows[0].endswith("tuned: bulkhead.limit")
    assert [each["name"] for each in everything["upstreams"]] == ["ratings", "movies"]
    assert [each["name"] for each in one["upstreams"]] == ["ratings"]
    assert (none.exit_code, "known are: ratings, movies" in none.output) == (1, True)


async def test_advice_is_given_when_there_is_any(operator: Operator) -> None:
    told = await operator.types("advise")
    as_json = await operator.types("advise", "ratings", "--json")

    assert told.exit_code == 0
    assert "advice" in json.loads(as_json.output)
    assert (await operator.types("advise", "nobody")).exit_code == 1


async def test_advice_that_changes_nothing_says_that_it_fits(operator: Operator) -> None:
    async def advice(_: web.Request) -> web.Response:
        fits = {
            "upstream": "ratings",
            "knob": "breaker.min_calls",
            "now": 5,
            "suggested": 5,
            "sure": "high",
            "why": "A.",
        }
        less = {"upstream": "ratings", "knob": "bulkhead.limit", "now": 20, "suggested": 6, "sure": "low", "why": "B."}
        return web.json_response({"advice": [fits, less]})

    app = web.Application()
    app.router.add_get("/advice", advice)
    async with served(app) as url:
        told = await operator.types("advise", "--admin", url)

    assert told.output.splitlines() == [
        "ratings: breaker.min_calls 5 fits (sure: high)",
        "  A.",
        "ratings: bulkhead.limit 20 -> 6 (sure: low)",
        "  B.",
    ]


async def test_a_read_token_looks_and_changes_nothing(file: Path) -> None:
    gate = Gateway()
    gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=20)))
    async with admin_of(gate, token=TOKEN, read_token="r" * 20) as admin:
        operator = Operator(admin, gate)
        reader = {"GATEWAY_ADMIN_TOKEN": "", "GATEWAY_ADMIN_READ_TOKEN": "r" * 20}

        looked = await operator.types("snapshot", **reader)
        tuned = await operator.types("tune", "ratings", "bulkhead.limit=40", **reader)
        nobody = await operator.types("snapshot", GATEWAY_ADMIN_TOKEN="")

    assert (looked.exit_code, tuned.exit_code, nobody.exit_code) == (0, 1, 1)
    assert "this token may look, and change nothing" in tuned.output
    assert "a token is needed" in nobody.output
    assert gate["ratings"].policy.bulkhead.limit == 20


@pytest.mark.parametrize("command", [["snapshot"], ["tune", "ratings", "bulkhead.limit=40"], ["top", "--once"]])
@pytest.mark.parametrize("end", ["\r", "\n", " ", "\u20ac"])
async def test_a_token_that_cannot_be_sent_is_told_of_and_not_shown(
    operator: Operator, command: list[str], end: str
) -> None:
    """A file of variables with the line ends of Windows leaves one behind the token."""
    told = await operator.types(*command, GATEWAY_ADMIN_TOKEN=TOKEN + end)

    assert told.exit_code == 1
    assert told.output.startswith("Error: GATEWAY_ADMIN_TOKEN is no token: ")
    assert TOKEN not in told.output


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "ftp://127.0.0.1",
        "http://127.0.0.1?token=1",
        "http://user:secret@127.0.0.1",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:none",
        "http://127.0.0.1:0",
    ],
)
async def test_what_is_no_server_is_a_wrong_use(operator: Operator, url: str) -> None:
    assert (await operator.types("snapshot", "--admin", url)).exit_code == 2


async def test_a_server_that_is_not_there_is_named(operator: Operator) -> None:
    told = await operator.types("snapshot", "--admin", "http://127.0.0.1:9")

    assert told.exit_code == 1
    assert told.output == "Error: http://127.0.0.1:9 cannot be asked: Connection refused\n"


async def test_what_is_no_admin_server_is_told_so(operator: Operator) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def films(_: web.Request) -> web.Response:
        return web.json_response([{"name": "Alien"}])

    async def no(_: web.Request) -> web.Response:
        return web.json_response({"errors": ["not here"]}, status=404)

    app = web.Application()
    app.router.add_get("/state", hello)
    app.router.add_post("/upstreams/ratings/tuned/drop", films)
    app.router.add_post("/upstreams/ratings/isolate", no)
    async with served(app) as url:
        told = await operator.types("snapshot", "--admin", url)
        missing = await operator.types("advise", "--admin", url)
        listed = await operator.types("drop", "ratings", "--admin", url)
        refused = await operator.types("isolate", "ratings", "--admin", url)

    assert listed.output == "Error: what answers there is no admin server\n"
    assert refused.output == "Error: the server answers 404\n"
    assert told.output == "Error: what answers there is no admin server\n"
    assert missing.output == "Error: the server answers 404\n"


async def test_names_control_no_terminal(operator: Operator) -> None:
    operator.gate.upstream("\x1b[31mred\r\n")

    told = await operator.types("snapshot")

    assert "\x1b" not in told.output
    assert "\\x1b[31mred\\r\\n" in told.output
