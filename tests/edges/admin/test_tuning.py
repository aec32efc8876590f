"""Tuning by HTTP: validated as a whole, applied at once, kept, shown as drift, taken back or folded in."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway import BulkheadPolicy, ConfigError, Gateway, LastGood, Policy, TimeoutPolicy
from gateway.admin import Admin, serve
from gateway.admin import tuning as tuning_module
from tests.edges.admin.asking import Reply, admin_of, ask
from tests.support import QUIET, gone, now, steps

pytestmark = pytest.mark.asyncio

POLICY = "/upstreams/ratings/policy"
OURS = Policy(timeout=TimeoutPolicy(call=4.0), bulkhead=BulkheadPolicy(limit=20))
FILE = "[upstreams.ratings.bulkhead]\nlimit = 20  # measured in May\n"


@pytest.fixture
def gate() -> Gateway:
    gate = Gateway()
    gate.upstream("ratings", policy=OURS)
    return gate


@pytest_asyncio.fixture
async def admin(gate: Gateway, tmp_path: Path) -> AsyncIterator[Admin]:
    async with admin_of(gate, journal=tmp_path / "journal") as admin:
        yield admin


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    path.write_text(FILE)
    return path


def from_file(file: Path) -> Gateway:
    return Gateway.from_file(file, check_every=inf, on_hangup=False)


async def patch(admin: Admin, patch: Any, *, upstream: str = "ratings", **headers: str) -> Reply:
    return await ask(admin, "PATCH", f"/upstreams/{upstream}/policy", json_=patch, **headers)


async def limit(admin: Admin, number: object, **headers: str) -> Reply:
    return await patch(admin, {"bulkhead": {"limit": number}}, **headers)


async def audit(admin: Admin) -> list[Any]:
    return (await ask(admin, "GET", "/audit")).json["audit"]


async def drift(admin: Admin, name: str = "ratings") -> Any:
    upstreams = (await ask(admin, "GET", "/upstreams")).json["upstreams"]
    return next(one["drift"] for one in upstreams if one["name"] == name)


# -- a policy, and patches of it


async def test_a_policy_is_shown_with_every_knob_and_a_tag(admin: Admin) -> None:
    reply = await ask(admin, "GET", POLICY)

    assert reply.json["bulkhead"] == {"limit": 20, "queue": 20, "max_wait": 1.0}
    assert reply.json["timeout"]["attempt"] == 4.0
    assert reply.headers["etag"].startswith('"')


async def test_a_patch_holds_at_once_and_gives_the_policy_as_it_is_now(admin: Admin, gate: Gateway) -> None:
    before = await ask(admin, "GET", POLICY)

    reply = await patch(admin, {"bulkhead": {"limit": 40}, "timeout": {"attempt": "300ms"}})

    assert reply.status == 200
    assert gate["ratings"].policy == OURS.tuned_fields({"bulkhead.limit": 40, "timeout.attempt": 0.3})
    assert reply.json["timeout"]["attempt"] == 0.3
    assert reply.headers["etag"] == (await ask(admin, "GET", POLICY)).headers["etag"] != before.headers["etag"]


async def test_a_null_is_as_by_default(admin: Admin, gate: Gateway) -> None:
    await patch(admin, {"bulkhead": {"limit": 40}, "timeout": None})

    await limit(admin, None)

    assert gate["ratings"].policy == Policy()


async def test_all_errors_are_told_at_once_and_nothing_changes(admin: Admin, gate: Gateway) -> None:
    reply = await patch(admin, {"bulkhead": {"limit": 0, "queue": 3}, "timeout": {"atempt": 1}})

    assert reply.status == 422
    assert {(one["field"], one["remedy"]) for one in reply.json["errors"]} == {
        ("bulkhead.limit", "give 1 or more, or inf"),
        ("timeout.atempt", "did you mean 'attempt'?"),
    }
    assert gate["ratings"].policy is OURS
    assert await audit(admin) == []


async def test_what_an_operation_has_against_it_is_told_by_the_name_of_the_knob(admin: Admin, gate: Gateway) -> None:
    @gate["ratings"].operation(timeout=TimeoutPolicy(attempt=3.0))
    async def stars() -> None: ...

    reply = await patch(admin, {"timeout": {"call": 1}})

    assert reply.status == 422
    assert reply.problem.startswith("with the limits of an operation, ")
    assert gate["ratings"].policy is OURS


@pytest.mark.parametrize(("body", "status"), [([], 400), ("x", 400), (3, 400), ({}, 200)])
async def test_a_patch_is_an_object_and_an_empty_one_changes_nothing(
    admin: Admin, gate: Gateway, body: object, status: int
) -> None:
    assert (await patch(admin, body)).status == status
    assert gate["ratings"].policy is OURS
    assert await audit(admin) == []


async def test_an_upstream_that_is_not_there_is_not_found(admin: Admin) -> None:
    for reply in (await patch(admin, {}, upstream="rating"), await ask(admin, "POST", "/upstreams/rating/isolate")):
        assert reply.status == 404
        assert reply.json["errors"][0]["remedy"] == "did you mean 'ratings'?"


async def test_two_operators_cannot_overwrite_each_other(admin: Admin, gate: Gateway) -> None:
    seen = (await ask(admin, "GET", POLICY)).headers["etag"]

    first = await limit(admin, 40, If_Match=seen)
    second = await limit(admin, 60, If_Match=seen)
    again = await limit(admin, 60, If_Match=f'"other", {second.headers["etag"]}')

    assert (first.status, second.status, again.status) == (200, 412, 200)
    assert second.headers["etag"] == first.headers["etag"]
    assert gate["ratings"].policy.bulkhead.limit == 60


async def test_a_star_matches_whatever_there_is_and_a_weak_tag_nothing(admin: Admin) -> None:
    weak = "W/" + (await ask(admin, "GET", POLICY)).headers["etag"]

    assert (await limit(admin, 40, If_Match="*")).status == 200
    assert (await limit(admin, 50, If_Match=weak)).status == 412


async def test_a_change_by_code_makes_a_tag_stale(admin: Admin, gate: Gateway) -> None:
    seen = (await ask(admin, "GET", POLICY)).headers["etag"]
    gate["ratings"].tune_fields({"bulkhead.queue": 3})

    assert (await limit(admin, 40, If_Match=seen)).status == 412


async def test_patches_that_come_at_the_same_moment_are_one_after_the_other(admin: Admin, gate: Gateway) -> None:
    seen = (await ask(admin, "GET", POLICY)).headers["etag"]

    replies = await asyncio.gather(*(limit(admin, number, If_Match=seen) for number in range(30, 40)))

    statuses = sorted(reply.status for reply in replies)
    assert statuses == [200, *[412] * 9]
    assert len(await audit(admin)) == 1


async def test_a_bigger_pool_lets_those_in_who_wait_and_loses_nobody() -> None:
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=QUIET.tuned_fields({"bulkhead.limit": 1, "bulkhead.queue": 9}))
    let_go = asyncio.Event()

    @ratings.operation
    async def stars() -> str:
        await let_go.wait()
        return "5"

    async with admin_of(gate) as admin:
        calls = [asyncio.create_task(stars()) for _ in range(6)]
        await steps(5)
        before = (ratings.bulkhead.in_use, ratings.bulkhead.waiting)

        await limit(admin, 6)

        after = (ratings.bulkhead.in_use, ratings.bulkhead.waiting)
        let_go.set()
        assert await asyncio.gather(*calls) == ["5"] * 6
    assert (before, after) == ((1, 5), (6, 0))


async def test_a_change_is_one_event_whoever_makes_it(admin: Admin, gate: Gateway) -> None:
    await limit(admin, 40)
    gate["ratings"].tune_fields({"bulkhead.limit": 50})

    events = (await ask(admin, "GET", "/state")).json["events"]

    assert sorted((one["kind"], one["text"]) for one in events if "bulkhead.limit" in one["text"]) == [
        ("control", "tune by somebody: bulkhead.limit 20 -> 40"),
        ("policy", "bulkhead.limit 40 -> 50"),
    ]


async def test_knobs_are_described_for_a_form(admin: Admin) -> None:
    await limit(admin, 40)

    told = (await ask(admin, "GET", f"{POLICY}?knobs=1")).json

    known = {one["path"]: one for one in told["knobs"]}
    assert told["policy"]["bulkhead"]["limit"] == 40
    assert told["drift"] == {"bulkhead.limit": [20, 40]}
    assert "bulkhead.limit" in told["given"]
    assert "timeout.attempt" not in told["given"]
    assert known["bulkhead.limit"] | {"meaning": ""} == {
        "path": "bulkhead.limit",
        "kind": "number",
        "unit": "count",
        "least": 1,
        "most": "inf",
        "above": False,
        "endless": True,
        "none": False,
        "default": 20,
        "meaning": "",
    }
    assert known["bulkhead.limit"]["meaning"].startswith("Calls (or threads) at once.")
    assert known["breaker.after_max_half_open"]["words"] == ["open", "closed"]
    assert known["retry.wait"]["kind"] == "wait"
    assert known["breaker.enforce"]["kind"] == "boolean"


# -- the audit


async def test_every_change_is_told_with_who_when_from_to_and_why(admin: Admin) -> None:
    await limit(admin, 40, X_Gateway_Operator="ad%C3%A1", X_Gateway_Reason="sale%20on%20Friday")

    (record,) = await audit(admin)
    assert record["who"] == "adá"
    assert record["why"] == "sale on Friday"
    assert record["changes"] == {"bulkhead.limit": [20, 40]}
    assert record["kind"] == "tune"
    assert (record["role"], record["remote"]) == ("write", "127.0.0.1")
    assert record["text"] == "tune by adá: bulkhead.limit 20 -> 40 (sale on Friday)"


async def test_what_follows_stands_in_the_audit_too(admin: Admin) -> None:
    await patch(admin, {"timeout": {"call": 2}})

    (record,) = await audit(admin)
    assert record["changes"]["timeout.attempt"] == [4.0, 2.0]


async def test_what_operators_say_of_themselves_is_never_long(admin: Admin) -> None:
    await limit(admin, 40, X_Gateway_Operator="a" * 5000, X_Gateway_Reason="b%0A" * 1000)

    (record,) = await audit(admin)
    assert len(record["who"]) == 100
    assert len(record["why"]) == 500
    assert "\n" not in record["why"]


async def test_what_code_tunes_is_told_and_not_kept(
    gate: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_module, "CODE_EVERY", 0.01)
    async with admin_of(gate, journal=tmp_path / "journal") as admin:
        for number in range(100, 200):
            gate["ratings"].tune_fields({"bulkhead.limit": number})
        while not (records := await audit(admin)):
            await asyncio.sleep(0.005)

    assert [(one["who"], one["changes"]) for one in records] == [("code", {"bulkhead.limit": [20, 199]})]
    gate = Gateway()
    gate.upstream("ratings", policy=OURS)
    async with admin_of(gate, journal=tmp_path / "journal") as admin:
        assert gate["ratings"].policy == OURS
        assert await drift(admin) == {}


async def test_what_code_has_tuned_at_the_end_is_told_as_well(gate: Gateway, tmp_path: Path) -> None:
    async with admin_of(gate, journal=tmp_path / "journal"):
        gate["ratings"].tune_fields({"bulkhead.limit": 99})

    assert json.loads((tmp_path / "journal").read_text())["changes"] == {"bulkhead.limit": [20, 99]}


async def test_a_change_of_the_file_is_told_as_the_files(file: Path) -> None:
    gate = from_file(file)
    async with admin_of(gate):
        file.write_text(FILE.replace("20", "30"))
        gate.reload()

    record = json.loads(file.with_name("policies.toml.journal").read_text())
    assert (record["who"], record["changes"]) == ("file", {"bulkhead.limit": [20, 30]})


async def test_the_audit_is_that_of_one_upstream_and_no_longer_than_asked_for(gate: Gateway) -> None:
    gate.upstream("info")
    async with admin_of(gate) as admin:
        for number in (1, 2, 3):
            await limit(admin, number)
        await patch(admin, {"bulkhead": {"limit": 4}}, upstream="info")
        of_one = (await ask(admin, "GET", "/audit?upstream=ratings&limit=2")).json["audit"]
        wrong = [
            (await ask(admin, "GET", f"/audit?limit={text}")).status for text in ("0", "1001", "x", "-1", "%C2%B2", "")
        ]
        nobodys = await ask(admin, "GET", "/audit?upstream=x")

    assert [one["changes"]["bulkhead.limit"][1] for one in of_one] == [3, 2]
    assert wrong == [422] * 6
    assert nobodys.status == 404


# -- what is tuned outlives the process


async def test_what_is_tuned_holds_after_a_restart_without_being_asked_for(file: Path) -> None:
    """The journal is beside the policy file, unless it is said where."""
    async with admin_of(from_file(file)) as admin:
        await limit(admin, 40)

    gate = from_file(file)
    assert gate["ratings"].policy.bulkhead.limit == 20
    async with admin_of(gate) as admin:
        assert gate["ratings"].policy.bulkhead.limit == 40
        assert await drift(admin) == {"bulkhead.limit": [20, 40]}
        assert len(await audit(admin)) == 1


async def test_without_a_file_and_a_journal_nothing_outlives_the_process(gate: Gateway) -> None:
    async with admin_of(gate) as admin:
        await limit(admin, 40)
        state = (await ask(admin, "GET", "/state")).json

    assert state["gateway"]["journal"] is False


async def test_a_reload_keeps_what_is_tuned_and_takes_what_is_not(file: Path) -> None:
    gate = from_file(file)
    async with admin_of(gate) as admin:
        await limit(admin, 40)
        file.write_text(FILE.replace("20", "30") + "queue = 5\n")

        changed = gate.reload()

        assert changed == ("ratings",)
        assert gate["ratings"].policy == Policy(bulkhead=BulkheadPolicy(limit=40, queue=5))
        assert await drift(admin) == {"bulkhead.limit": [30, 40]}
        assert gate.reload() == ()


async def test_an_upstream_that_code_registers_later_is_tuned_too(file: Path) -> None:
    async with admin_of(from_file(file)) as admin:
        admin._gate.upstream("info")
        await patch(admin, {"bulkhead": {"limit": 7}}, upstream="info")

    gate = from_file(file)
    async with admin_of(gate) as admin:
        info = gate.upstream("info", policy=OURS)
        movies = gate.http("movies", "http://127.0.0.1:9")

        assert info.policy == OURS.tuned_fields({"bulkhead.limit": 7})
        assert movies.policy == Policy()
        assert await drift(admin, "info") == {"bulkhead.limit": [20, 7]}


async def test_what_does_not_fit_the_file_any_more_is_set_aside_and_the_file_holds(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = from_file(file)
    async with admin_of(gate) as admin:
        await patch(admin, {"timeout": {"attempt": 5}, "bulkhead": {"limit": 40}})
        file.write_text(FILE + "[upstreams.ratings.timeout]\ncall = 2\n")

        with caplog.at_level(logging.WARNING, "gateway"):
            gate.reload()

        assert gate["ratings"].policy.timeout.call == 2
        assert gate["ratings"].policy.bulkhead.limit == 20
        told = (await ask(admin, "GET", f"{POLICY}?knobs=1")).json
        assert "timeout.attempt" in told["aside"]
        assert "set aside" in caplog.text
        assert (await ask(admin, "POST", "/upstreams/ratings/tuned/fold")).status == 422
        await limit(admin, 50)
        assert (await ask(admin, "GET", f"{POLICY}?knobs=1")).json["aside"] is None
        assert await drift(admin) == {"bulkhead.limit": [20, 50]}


async def test_a_start_goes_well_where_what_is_tuned_does_not_fit(file: Path) -> None:
    async with admin_of(from_file(file)) as admin:
        await patch(admin, {"timeout": {"attempt": 5}})
    file.write_text(FILE + "[upstreams.ratings.timeout]\ncall = 2\n")

    gate = from_file(file)
    async with admin_of(gate):
        assert gate["ratings"].policy.timeout.attempt == 2


async def test_what_an_operation_has_against_it_by_now_is_set_aside_also_on_a_reload(file: Path) -> None:
    async with admin_of(from_file(file)) as admin:
        await patch(admin, {"timeout": {"call": 1}})
    gate = from_file(file)

    @gate["ratings"].operation(timeout=TimeoutPolicy(attempt=3.0))
    async def stars() -> None: ...

    async with admin_of(gate) as admin:
        at_start = gate["ratings"].policy.timeout.call
        file.write_text(FILE + "queue = 5\n")

        assert gate.reload() == ("ratings",)

        assert at_start == 20.0
        assert gate["ratings"].policy == Policy(bulkhead=BulkheadPolicy(limit=20, queue=5))
        assert "operation" in (await ask(admin, "GET", f"{POLICY}?knobs=1")).json["aside"]


async def test_a_file_that_holds_only_below_what_is_tuned_is_refused_for_no_service_would_start_with_it(
    file: Path,
) -> None:
    gate = from_file(file)

    @gate["ratings"].operation(timeout=TimeoutPolicy(attempt=3.0))
    async def stars() -> None: ...

    async with admin_of(gate) as admin:
        await patch(admin, {"timeout": {"call": 10}})
        file.write_text(FILE + "queue = 5\n[upstreams.ratings.timeout]\ncall = 1\n")

        with pytest.raises(ConfigError, match=r"3\.0 s can never fire: timeout\.call is 1 s"):
            gate.reload()

        assert gate["ratings"].policy.bulkhead.queue == 20


async def test_what_another_thread_tunes_is_told_too(gate: Gateway, tmp_path: Path) -> None:
    async with await serve(gate, port=0, journal=tmp_path / "journal"):  # the gateway is open on no loop
        await asyncio.to_thread(gate["ratings"].tune_fields, {"bulkhead.limit": 99})
        await steps(2)

    record = json.loads((tmp_path / "journal").read_text())
    assert (record["who"], record["changes"]) == ("code", {"bulkhead.limit": [20, 99]})


async def test_what_would_not_hold_after_a_restart_is_an_error(admin: Admin, gate: Gateway) -> None:
    gate["ratings"].tune_fields({"timeout.call": 30.0})

    reply = await patch(admin, {"timeout": {"attempt": 20}})

    assert reply.status == 422
    assert "after a restart" in reply.problem
    assert gate["ratings"].policy.timeout.attempt != 20


async def test_what_is_tuned_stays_when_the_server_is_closed_and_is_no_more_laid_over(file: Path) -> None:
    gate = from_file(file)
    async with gate:
        async with await serve(gate, port=0) as admin:
            await limit(admin, 40)
        assert gate["ratings"].policy.bulkhead.limit == 40

        gate.reload()

        assert gate["ratings"].policy.bulkhead.limit == 20


async def test_a_gateway_is_tuned_by_one_server(gate: Gateway) -> None:
    async with admin_of(gate) as admin:
        with pytest.raises(ConfigError, match="tuned by another one"):
            await serve(gate, port=0)

        await limit(admin, 40)
    assert gate["ratings"].policy.bulkhead.limit == 40


async def test_a_journal_that_cannot_be_written_beside_the_file_is_warned_of(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)

    with caplog.at_level(logging.WARNING, "gateway"):
        async with admin_of(from_file(file)) as admin:
            assert (await limit(admin, 40)).status == 200

    assert "what is tuned is forgotten at the end" in caplog.text


async def test_a_disk_that_is_full_changes_nothing_and_says_so(
    admin: Admin, gate: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patching:
        patching.setattr(os, "fsync", full)
        reply = await limit(admin, 40)
        isolated = await ask(admin, "POST", "/upstreams/ratings/isolate")
    assert reply.status == 503
    assert "No space left" in reply.problem
    assert gate["ratings"].policy is OURS
    assert isolated.json["recorded"] is False
    assert gate["ratings"].snapshot().breaker.state == "isolated", "in an emergency that comes first"
    assert (await limit(admin, 40)).status == 200


async def test_a_change_is_carried_through_when_who_wanted_it_has_left(
    gate: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = asyncio.Event(), asyncio.Event()

    async def slowly(write: Callable[..., Any], record: Any) -> Any:
        reached.set()
        await go.wait()
        return write(record)

    monkeypatch.setattr(tuning_module, "to_thread", slowly)
    async with admin_of(gate, journal=tmp_path / "journal") as admin:
        asked = asyncio.create_task(limit(admin, 40))
        await reached.wait()
        await gone(asked)
        await asyncio.sleep(0.02)
        asyncio.get_running_loop().call_later(0.02, go.set)

    assert gate["ratings"].policy.bulkhead.limit == 40
    assert json.loads((tmp_path / "journal").read_text())["tuned"] == {"bulkhead.limit": 40}


async def test_what_no_longer_fits_once_it_is_written_is_withdrawn(
    gate: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def meanwhile(write: Callable[..., Any], record: Any) -> Any:
        if record.kind == "tune":
            gate["ratings"].tune_fields({"timeout.call": 1.0})
        return write(record)

    monkeypatch.setattr(tuning_module, "to_thread", meanwhile)
    async with admin_of(gate, journal=tmp_path / "journal") as admin:
        reply = await patch(admin, {"timeout": {"attempt": 3}})
        records = await audit(admin)
        assert await drift(admin) == {}

    assert reply.status == 422
    assert [one["kind"] for one in records] == ["withdrawn", "tune"]
    assert gate["ratings"].policy.timeout.attempt == 1.0


# -- taken back, or folded in


async def test_dropping_goes_back_to_what_code_says(admin: Admin, gate: Gateway) -> None:
    await patch(admin, {"bulkhead": {"limit": 40, "queue": None}, "fallback_limit": 3})

    reply = await ask(admin, "POST", "/upstreams/ratings/tuned/drop", X_Gateway_Operator="bob")

    assert reply.json["dropped"] == {"bulkhead.limit": [20, 40], "fallback_limit": [10, 3]}
    assert gate["ratings"].policy == OURS
    assert await drift(admin) == {}
    assert (await audit(admin))[0]["changes"] == {"bulkhead.limit": [40, 20], "fallback_limit": [3, 10]}
    assert (await ask(admin, "POST", "/upstreams/ratings/tuned/drop")).json == {"dropped": {}}
    assert len(await audit(admin)) == 2


async def test_folding_writes_into_the_file_and_leaves_no_drift(file: Path) -> None:
    gate = from_file(file)
    async with admin_of(gate) as admin:
        await limit(admin, 40)
        seen = gate["ratings"].policy

        reply = await ask(admin, "POST", "/upstreams/ratings/tuned/fold", json_={})

        assert reply.json == {"folded": {"bulkhead.limit": [20, 40]}, "file": str(file)}
        assert gate["ratings"].policy == seen
        assert await drift(admin) == {}
        assert (await audit(admin))[0]["kind"] == "fold"
    assert file.read_text() == FILE.replace("20", "40")
    again = from_file(file)
    async with admin_of(again) as admin:
        assert again["ratings"].policy.bulkhead.limit == 40
        assert await drift(admin) == {}


async def test_what_was_written_into_the_file_just_before_is_folded_around(file: Path) -> None:
    gate = from_file(file)
    async with admin_of(gate) as admin:
        await limit(admin, 40)
        file.write_text("# by hand\n" + FILE.replace("20", "30") + "queue = 5\n")

        reply = await ask(admin, "POST", "/upstreams/ratings/tuned/fold")

    assert reply.json["folded"] == {"bulkhead.limit": [30, 40]}
    assert file.read_text() == "# by hand\n" + FILE.replace("20", "40") + "queue = 5\n"
    assert gate["ratings"].policy == Policy(bulkhead=BulkheadPolicy(limit=40, queue=5))


async def test_a_gateway_that_went_to_another_loop_is_not_tuned_from_here(gate: Gateway, tmp_path: Path) -> None:
    async with await serve(gate, port=0, journal=tmp_path / "journal") as admin:
        await asyncio.to_thread(gate.open_blocking)
        try:
            reply = await limit(admin, 40)
        finally:
            await asyncio.to_thread(gate.close_blocking)

    assert reply.status == 409
    assert gate["ratings"].policy is OURS
    assert (tmp_path / "journal").read_bytes() == b""


async def test_without_a_file_there_is_nothing_to_fold_into(admin: Admin) -> None:
    await limit(admin, 40)

    reply = await ask(admin, "POST", "/upstreams/ratings/tuned/fold")

    assert reply.status == 409
    assert await drift(admin) == {"bulkhead.limit": [20, 40]}


async def test_a_file_that_is_ill_is_not_folded_into(file: Path) -> None:
    async with admin_of(from_file(file)) as admin:
        await limit(admin, 40)
        file.write_text("[upstreams.ratings.bulkhead]\nlimit = \n")

        reply = await ask(admin, "POST", "/upstreams/ratings/tuned/fold")

        assert reply.status == 422
        assert await drift(admin) == {"bulkhead.limit": [20, 40]}
    assert file.read_text() == "[upstreams.ratings.bulkhead]\nlimit = \n"


# -- by hand


async def test_an_upstream_is_isolated_and_restored(admin: Admin, gate: Gateway) -> None:
    isolated = await ask(admin, "POST", "/upstreams/ratings/isolate", json_={}, X_Gateway_Reason="they asked us to")
    state = gate["ratings"].snapshot().breaker.state
    restored = await ask(admin, "POST", "/upstreams/ratings/restore")

    assert (isolated.status, restored.status) == (200, 200)
    assert (state, gate["ratings"].snapshot().breaker.state) == ("isolated", "closed")
    assert [one["text"] for one in await audit(admin)] == [
        "restore by somebody",
        "isolate by somebody (they asked us to)",
    ]
    events = (await ask(admin, "GET", "/state")).json["events"]
    assert "isolate by somebody (they asked us to)" in [one["text"] for one in events if one["kind"] == "control"]


@pytest.mark.parametrize("shown", ["7", 7, "'7'"], ids=["text", "number", "repr"])
async def test_one_circuit_is_isolated_by_its_key_or_by_what_is_shown_for_it(
    admin: Admin, gate: Gateway, shown: object
) -> None:
    key = "7" if shown == "'7'" else 7
    gate["ratings"].circuit(key)

    await ask(admin, "POST", "/upstreams/ratings/isolate", json_={"circuit": shown})

    assert gate["ratings"].snapshot().circuits[key].state == "isolated"
    assert gate["ratings"].snapshot().breaker.state == "closed"
    await ask(admin, "POST", "/upstreams/ratings/restore", json_={"circuit": shown})
    assert gate["ratings"].snapshot().circuits[key].state == "closed"


@pytest.mark.parametrize("body", [{"circuit": []}, {"circut": "a"}, {"circuit": {"a": 1}}])
async def test_what_is_no_circuit_is_told_so(admin: Admin, gate: Gateway, body: object) -> None:
    assert (await ask(admin, "POST", "/upstreams/ratings/isolate", json_=body)).status == 422
    assert gate["ratings"].snapshot().breaker.state == "closed"


async def test_a_circuit_that_is_not_there_is_not_restored(admin: Admin) -> None:
    assert (await ask(admin, "POST", "/upstreams/ratings/restore", json_={"circuit": "x"})).status == 422
    assert await audit(admin) == []


async def test_enforcement_is_switched_and_kept_like_any_knob(admin: Admin, gate: Gateway) -> None:
    await ask(admin, "POST", "/upstreams/ratings/enforce", json_={"enforce": False})
    off = gate["ratings"].policy.breaker.enforce
    kept = await drift(admin)
    wrong = await ask(admin, "POST", "/upstreams/ratings/enforce", json_={"enforce": "maybe"})
    await ask(admin, "POST", "/upstreams/ratings/enforce", json_={"enforce": True})

    assert not off
    assert kept == {"breaker.enforce": [True, False]}
    assert wrong.status == 422
    assert gate["ratings"].policy.breaker.enforce


async def test_remembered_answers_are_forgotten(admin: Admin, gate: Gateway) -> None:
    memory = LastGood()

    @gate["ratings"].operation(idempotent=True, fallback=[memory])
    async def stars(user: str) -> str:
        return user

    for user in ("ada", "bob", "eve"):
        await stars(user)
    path = "/upstreams/ratings/forget"

    one = await ask(admin, "POST", path, json_={"operation": "stars", "args": ["ada"]})
    unknown = await ask(admin, "POST", path, json_={"operation": "stars", "args": ["zoe"]})
    unbound = await ask(admin, "POST", path, json_={"operation": "stars", "args": ["a", "b"]})
    nothing = await ask(admin, "POST", path, json_={"operation": "starz"})
    nobodys = await ask(admin, "POST", path, json_={"args": ["ada"]})
    no_name = [await ask(admin, "POST", path, json_={"operation": name}) for name in (["stars"], {}, 603)]
    rest = await ask(admin, "POST", path)

    assert [reply.json["forgotten"] for reply in (one, unknown, rest)] == [1, 0, 2]
    assert [reply.status for reply in (unbound, nothing, nobodys)] == [422, 404, 422]
    assert [reply.status for reply in no_name] == [404, 404, 404]
    assert len(memory) == 0
    assert "ada" not in json.dumps(await audit(admin)), "arguments may be secret"


async def test_an_endpoint_is_drained_and_let_in_again(gate: Gateway) -> None:
    urls = ["http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1"]
    movies = gate.http("movies", urls)
    async with admin_of(gate) as admin:
        path = "/upstreams/movies/endpoints"
        drained = await ask(admin, "POST", f"{path}/drain", json_={"url": urls[0] + "/"})
        states = [one.state for one in movies.endpoints.endpoints]
        last = await ask(admin, "POST", f"{path}/drain", json_={"url": urls[1]})
        unknown = await ask(admin, "POST", f"{path}/drain", json_={"url": "http://x"})
        none = await ask(admin, "POST", f"{path}/drain")
        plain = await ask(admin, "POST", "/upstreams/ratings/endpoints/drain", json_={"url": "x"})
        restored = await ask(admin, "POST", f"{path}/restore", json_={"url": urls[0]})
        records = await audit(admin)

    assert (drained.status, restored.status) == (200, 200)
    assert states == ["draining", "healthy"]
    assert [one.state for one in movies.endpoints.endpoints] == ["ramping", "healthy"]
    assert [reply.status for reply in (last, unknown, none, plain)] == [422, 422, 422, 409]
    assert [one["kind"] for one in records] == ["restore endpoint", "drain endpoint"]


async def test_metrics_are_served_in_either_format(admin: Admin) -> None:
    plain = await ask(admin, "GET", "/metrics")
    openmetrics = await ask(admin, "GET", "/metrics", Accept="application/openmetrics-text; version=1.0.0")

    assert plain.headers["content-type"].startswith("text/plain; version=")
    assert b'gateway_pool_limit{upstream="ratings"} 20.0' in plain.body
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.body.endswith(b"# EOF\n")


async def test_a_gateway_that_is_open_on_another_loop_is_not_served(gate: Gateway) -> None:
    from gateway import WrongLoop

    await asyncio.to_thread(gate.open_blocking)
    try:
        with pytest.raises(WrongLoop):
            await serve(gate, port=0)
    finally:
        await asyncio.to_thread(gate.close_blocking)
    assert now() > 0
