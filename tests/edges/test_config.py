"""A policy file from end to end: real files, real signals, the command line in processes of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway import (
    BulkheadPolicy,
    ConfigError,
    ConfigErrors,
    Gateway,
    LastGood,
    Policy,
    Source,
    TimeoutPolicy,
    Upstream,
)
from gateway.config import hangup
from gateway.config.reloading import Reloading
from gateway.testing import VirtualTimeLoop
from tests.edges.running import GATEWAY, PATIENCE
from tests.support import assert_all_gone, steps, until, wait_until

ROOT = Path(__file__).parents[2]
LOOK = 0.01
"""Seconds between two looks at a file, in tests."""


def limit_of(limit: object, *, name: str = "ratings") -> str:
    return f"[upstreams.{name}.bulkhead]\nlimit = {limit}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policies.toml"
    path.write_text(limit_of(7))
    return path


@pytest.fixture(autouse=True)
def nobody_listens() -> Iterator[None]:
    """Gateways that a test leaves open hear no hangups of the next one; who runs the tests may have said nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    hangup.EARS.clear()
    hangup.give_back()
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    caplog.set_level(logging.INFO, logger="gateway")
    return lambda level: [one.getMessage() for one in caplog.records if one.levelno == level]


def error_of(act: Callable[[], object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        act()
    return caught.value


def handles_hangup() -> bool:
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL


def hang_up() -> None:
    assert handles_hangup(), "this would end the tests"
    os.kill(os.getpid(), signal.SIGHUP)


# -- a gateway from a file


def test_all_upstreams_of_the_file_are_registered(file: Path) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info"))

    gate = Gateway.from_file(file)

    assert {up.name: up.policy.bulkhead.limit for up in gate} == {"ratings": 7, "info": 8}
    assert Gateway.from_file(str(file))["ratings"].policy == gate["ratings"].policy


def test_code_gets_the_upstream_of_the_file_once(file: Path) -> None:
    gate = Gateway.from_file(file)

    ratings = gate.upstream("ratings")

    assert ratings is gate["ratings"]
    assert error_of(lambda: gate.upstream("ratings")).field == "upstream 'ratings'"


def test_the_file_wins_over_the_policy_in_code_and_says_so(file: Path, logged: Callable[[int], list[str]]) -> None:
    gate = Gateway.from_file(file)

    ratings = gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=99)))

    assert ratings.policy.bulkhead.limit == 7
    assert logged(logging.INFO) == ["ratings: the policy file wins over the policy= in code"]


def test_nothing_is_said_where_code_gives_no_policy(file: Path, logged: Callable[[int], list[str]]) -> None:
    Gateway.from_file(file).upstream("ratings")

    assert logged(logging.INFO) == []


def test_what_is_no_policy_is_an_error_also_where_the_file_wins(file: Path) -> None:
    gate = Gateway.from_file(file)

    assert error_of(lambda: gate.upstream("ratings", policy=3)).field == "ratings policy"  # type: ignore[arg-type]
    assert gate.upstream("ratings") is gate["ratings"]
    assert error_of(lambda: gate.upstream([])).field == "upstream name"  # type: ignore[arg-type]


def test_an_upstream_that_is_only_in_code_keeps_its_policy(file: Path) -> None:
    gate = Gateway.from_file(file)
    own = Policy(bulkhead=BulkheadPolicy(limit=3))

    info = gate.upstream("info", policy=own)

    assert gate.reload() == ()
    assert info.policy is own


@pytest.mark.parametrize("check_every", [0, -1, float("nan"), True, "1"])
def test_the_time_between_looks_is_above_zero(file: Path, check_every: Any) -> None:
    assert error_of(lambda: Gateway.from_file(file, check_every=check_every)).field == "check_every"


def test_a_gateway_without_a_file_has_nothing_to_reload() -> None:
    assert error_of(Gateway().reload).field == "policy file"


# -- reloading by call


def test_a_reload_tells_which_upstreams_changed_and_logs_what(file: Path, logged: Callable[[int], list[str]]) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info"))
    gate = Gateway.from_file(file)
    file.write_text(limit_of(9) + "max_wait = '100ms'\n" + limit_of(8, name="info") + limit_of(1, name="new"))

    changed = gate.reload()

    assert changed == ("ratings", "new")
    assert (gate["ratings"].policy.bulkhead.limit, gate["new"].policy.bulkhead.limit) == (9, 1)
    assert logged(logging.INFO) == ["ratings: bulkhead.limit 7 -> 9, bulkhead.max_wait 1.0 -> 0.1"]
    assert gate.reload() == ()


def test_what_only_follows_is_told_apart_from_what_is_given(file: Path) -> None:
    gate = Gateway.from_file(file)
    file.write_text(limit_of(7) + "max_wait = 1.0\n")

    assert gate.reload() == ("ratings",)
    assert gate.reload() == ()


def test_a_wait_that_is_written_alike_is_no_change(file: Path) -> None:
    file.write_text("[upstreams.ratings.retry]\nwait = { exponential = '100ms', max = 3 }\n")
    gate = Gateway.from_file(file)
    file.write_text("[upstreams.ratings.retry]\nwait = { max = '3s', exponential = 0.1 }\n")

    assert gate.reload() == ()


def test_an_upstream_that_left_the_file_goes_by_code_again(file: Path) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info") + limit_of(9, name="late"))
    gate = Gateway.from_file(file)
    gate.upstream("ratings", policy=Policy(bulkhead=BulkheadPolicy(limit=99)))
    file.write_text("[upstreams]\n")

    changed = gate.reload()

    assert changed == ("ratings", "info", "late")
    assert (gate["ratings"].policy.bulkhead.limit, gate["info"].policy) == (99, Policy())
    late = gate.upstream("late", policy=Policy(bulkhead=BulkheadPolicy(limit=5)))
    assert late.policy.bulkhead.limit == 5
    assert gate.reload() == ()


def test_an_upstream_of_code_that_comes_into_the_file_goes_by_it(file: Path) -> None:
    gate = Gateway.from_file(file)
    info = gate.upstream("info", policy=Policy(bulkhead=BulkheadPolicy(limit=3)))
    file.write_text(limit_of(8, name="info"))

    assert gate.reload() == ("ratings", "info")
    assert info.policy.bulkhead.limit == 8


def test_the_file_holds_over_what_was_tuned(file: Path) -> None:
    gate = Gateway.from_file(file)
    gate["ratings"].tune_fields({"bulkhead.limit": 50})

    assert gate.reload() == ("ratings",)
    assert gate["ratings"].policy.bulkhead.limit == 7


def test_a_reload_that_fails_changes_nothing(file: Path) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info"))
    gate = Gateway.from_file(file)
    file.write_text(limit_of(9) + limit_of(0, name="info") + limit_of(1, name="new"))

    assert error_of(gate.reload).field == "upstreams.info.bulkhead.limit"
    assert [up.policy.bulkhead.limit for up in gate] == [7, 8]
    assert "new" not in gate


def test_limits_that_contradict_those_of_operations_change_nothing(file: Path) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info"))
    gate = Gateway.from_file(file)
    for name in ("ratings", "info"):
        gate.upstream(name).operation(timeout=TimeoutPolicy(attempt=9.0), idempotent=True)(asyncio.sleep)
    file.write_text(limit_of(9) + "".join(f"[upstreams.{name}.timeout]\ncall = 5\n" for name in ("ratings", "info")))

    error = error_of(gate.reload)

    assert isinstance(error, ConfigErrors)
    assert [one.field for one in error.errors] == [f"upstreams.{n}.timeout.attempt" for n in ("ratings", "info")]
    assert [up.policy.bulkhead.limit for up in gate] == [7, 8]


class Breaks(Exception):
    pass


@pytest.mark.parametrize("breaks", ["info", "new"])
def test_a_reload_that_breaks_half_way_is_undone(file: Path, monkeypatch: pytest.MonkeyPatch, breaks: str) -> None:
    file.write_text(limit_of(7) + limit_of(8, name="info"))
    gate = Gateway.from_file(file)
    file.write_text(limit_of(1) + limit_of(2, name="info") + limit_of(3, name="newer") + limit_of(4, name="new"))
    warn = Upstream._warn

    def breaking(self: Upstream) -> None:
        warn(self)
        if self.name == breaks and self.policy.bulkhead.limit != 8:
            raise Breaks

    monkeypatch.setattr(Upstream, "_warn", breaking)

    with pytest.raises(Breaks):
        gate.reload()

    assert {up.name: up.policy.bulkhead.limit for up in gate} == {"ratings": 7, "info": 8}
    assert [up.bulkhead.policy.limit for up in gate] == [7, 8]
    monkeypatch.undo()
    assert gate.reload() == ("ratings", "info", "newer", "new")


@pytest.mark.virtual_time
async def test_circuits_waiters_and_memories_survive_a_reload(file: Path) -> None:
    file.write_text(limit_of(1) + limit_of(8, name="ill"))
    gate = Gateway.from_file(file)

    @gate.upstream("ratings").operation(idempotent=True, fallback=[LastGood()])
    async def slow(user: str) -> str:
        await asyncio.sleep(0.5)
        return user

    @gate.upstream("ill").operation(idempotent=True, fallback=[LastGood()])
    async def ill(user: str) -> str:
        return user

    async with gate:
        await ill("ada")
        while gate["ill"].snapshot().breaker.state == "closed":
            gate["ill"].breaker.admit().failed()
        first, second, third = (asyncio.create_task(slow.ask(str(number))) for number in range(3))
        await steps(3)
        waiting = gate["ratings"].snapshot().bulkhead.waiting
        circuit = gate["ill"].snapshot().breaker
        file.write_text(limit_of(2) + limit_of(9, name="ill"))

        changed = gate.reload()
        await steps(3)

        assert (waiting, changed) == (2, ("ratings", "ill"))
        assert gate["ratings"].snapshot().bulkhead.in_use == 2
        assert gate["ratings"].snapshot().bulkhead.waiting == 1
        assert gate["ill"].snapshot().breaker == circuit
        assert (await ill.ask("ada")).source is Source.LAST_GOOD
        assert [(await task).value for task in (first, second, third)] == ["0", "1", "2"]
        assert_all_gone(gate)


# -- reloading by itself


@pytest.mark.asyncio
async def test_a_changed_file_is_read_again(file: Path, logged: Callable[[int], list[str]]) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)

    async with gate:
        file.write_text(limit_of(9))
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)

    assert logged(logging.INFO) == ["ratings: bulkhead.limit 7 -> 9"]


@pytest.mark.asyncio
async def test_a_file_that_is_replaced_is_read_again_even_with_its_old_time_and_size(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)
    other = file.with_suffix(".new")
    other.write_text(limit_of(8))
    before = file.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))

    async with gate:
        other.replace(file)
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 8)


@pytest.mark.asyncio
async def test_a_change_before_it_was_opened_counts(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)
    file.write_text(limit_of(9))

    async with gate:
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)


@pytest.mark.asyncio
async def test_a_failed_reload_is_told_once_and_a_better_file_is_read(
    file: Path, logged: Callable[[int], list[str]]
) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)
    bad = limit_of(0) + "queue = -1\n"

    async with gate:
        file.write_text(bad)
        await until(lambda: logged(logging.ERROR))
        for _ in range(3):
            file.write_text(bad)
            await asyncio.sleep(5 * LOOK)
        file.unlink()
        await until(lambda: len(logged(logging.ERROR)) == 2)
        file.write_text(limit_of(9))
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)

    first, second = logged(logging.ERROR)
    assert first == (
        "the policies stay as they are:\n"
        f"{file}:2: upstreams.ratings.bulkhead.limit: 0 is not a whole number from 1 up; give 1 or more, or inf\n"
        f"{file}:3: upstreams.ratings.bulkhead.queue: -1 is not a whole number from 0 up; give 0 or more, or inf"
    )
    assert "No such file" in second


@pytest.mark.asyncio
async def test_a_file_that_was_only_touched_is_not_read_again(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)

    async with gate:
        gate["ratings"].tune_fields({"bulkhead.limit": 50})
        os.utime(file)
        await asyncio.sleep(5 * LOOK)
        await asyncio.sleep(5 * LOOK)

        assert gate["ratings"].policy.bulkhead.limit == 50


def write(file: Path, text: str, *, ago: float) -> None:
    """Write a file, as if so many seconds ago."""
    file.write_text(text)
    then = time.time() - ago
    os.utime(file, (then, then))


@pytest.mark.asyncio
async def test_a_change_counts_when_two_looks_agree(file: Path) -> None:
    loop = asyncio.get_running_loop()
    gate = Gateway.from_file(file, check_every=inf)
    seen: list[float] = []

    async with gate:
        assert gate._watch is not None
        for text in (limit_of(8), limit_of(9), limit_of(9)):
            write(file, text, ago=60.0 if text == limit_of(9) else 50.0)
            gate._watch._look(loop)
            seen.append(gate["ratings"].policy.bulkhead.limit)
            os.utime(file, ns=(0, file.stat().st_mtime_ns))
        write(file, limit_of(10), ago=30.0)
        for _ in range(2):
            gate._watch._look(loop)
            seen.append(gate["ratings"].policy.bulkhead.limit)

    assert seen == [7, 7, 7, 7, 10]


@pytest.mark.asyncio
@pytest.mark.parametrize(("ago", "limit"), [(0.0, 7), (1.0, 8), (-3600.0, 8)])
async def test_a_file_that_has_just_changed_may_still_change(file: Path, ago: float, limit: int) -> None:
    loop = asyncio.get_running_loop()
    gate = Gateway.from_file(file, check_every=inf)

    async with gate:
        assert gate._watch is not None
        write(file, limit_of(8), ago=ago)
        gate._watch._look(loop)
        gate._watch._look(loop)

        assert gate["ratings"].policy.bulkhead.limit == limit


@pytest.mark.asyncio
async def test_a_file_that_is_being_written_waits_until_it_is_whole(
    file: Path, logged: Callable[[int], list[str]]
) -> None:
    gate = Gateway.from_file(file, check_every=3 * LOOK)
    text = limit_of(9) + "queue = 3\n" * 1 + "# " + "x" * 60 + "\n"

    async with gate:
        with file.open("w") as writing:
            for character in text:
                writing.write(character)
                writing.flush()
                await asyncio.sleep(LOOK / 4)
            seen = {gate["ratings"].policy.bulkhead.limit}
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)

    assert seen == {7}
    assert logged(logging.ERROR) == []
    assert len(logged(logging.INFO)) == 1


@pytest.mark.asyncio
async def test_a_hangup_reads_the_file_again(file: Path, logged: Callable[[int], list[str]]) -> None:
    gate = Gateway.from_file(file, check_every=inf)

    async with gate:
        file.write_text(limit_of(9))
        hang_up()
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)
        hang_up()
        await until(lambda: len(logged(logging.INFO)) == 2)
        file.write_text("[[")
        hang_up()
        hang_up()
        await until(lambda: logged(logging.ERROR))
        file.write_text(limit_of(10))
        hang_up()
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 10)

    assert logged(logging.INFO)[1] == f"{file}: read again, nothing has changed"
    assert len(logged(logging.ERROR)) == 1
    assert not handles_hangup()


@pytest.mark.asyncio
async def test_a_reload_that_breaks_in_another_way_is_logged_and_it_goes_on_listening(
    file: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[int], list[str]]
) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)
    monkeypatch.setattr(Reloading, "_apply", lambda *_: 1 / 0)

    async with gate:
        file.write_text(limit_of(9))
        await until(lambda: logged(logging.ERROR))
        monkeypatch.undo()
        file.write_text(limit_of(10))
        await until(lambda: gate["ratings"].policy.bulkhead.limit == 10)

    assert "ZeroDivisionError" in logged(logging.ERROR)[0]


# -- nothing is left


def timers(loop: asyncio.AbstractEventLoop) -> list[Any]:
    return [timer for timer in getattr(loop, "_scheduled", ()) if not timer.cancelled()]


@pytest.mark.asyncio
async def test_nothing_of_the_watch_is_left_after_close(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)

    async with gate:
        during = (handles_hangup(), len(timers(asyncio.get_running_loop())))
        await asyncio.sleep(3 * LOOK)
        still = len(timers(asyncio.get_running_loop()))

    assert (during, still) == ((True, 1), 1)
    assert not handles_hangup()
    assert timers(asyncio.get_running_loop()) == []


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_loop_that_is_closed_under_it_leaves_nothing_and_another_one_works(
    file: Path, make: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    gate = Gateway.from_file(file, check_every=LOOK)

    async def use(limit: int) -> None:
        await gate.open()
        assert handles_hangup()
        file.write_text(limit_of(limit))
        await until(lambda: gate["ratings"].policy.bulkhead.limit == limit)
        file.write_text(limit_of(limit + 1))
        hang_up()
        await until(lambda: gate["ratings"].policy.bulkhead.limit == limit + 1)

    for limit in (20, 30):
        loop = make()
        loop.run_until_complete(use(limit))
        loop.close()
        file.write_text(limit_of(limit + 2))
        hang_up()  # between two loops it is kept for the next one
    asyncio.run(gate.open())

    assert gate["ratings"].policy.bulkhead.limit == 32
    asyncio.run(gate.close())
    assert not handles_hangup()


@pytest.mark.asyncio
async def test_a_handler_of_somebody_else_stays(file: Path) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        async with Gateway.from_file(file):
            hang_up()
            await until(lambda: heard)
        hang_up()
        await until(lambda: len(heard) == 2)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.asyncio
async def test_a_handler_that_came_later_stays(file: Path) -> None:
    try:
        async with Gateway.from_file(file):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.asyncio
async def test_it_need_not_listen_to_hangups(file: Path) -> None:
    async with Gateway.from_file(file, on_hangup=False):
        assert not handles_hangup()


def test_in_another_thread_it_does_without_hangups(file: Path) -> None:
    seen: list[object] = []

    async def use() -> None:
        gate = Gateway.from_file(file, check_every=LOOK)
        async with gate:
            seen.append(handles_hangup())
            file.write_text(limit_of(9))
            await until(lambda: gate["ratings"].policy.bulkhead.limit == 9)
        seen.append(True)

    thread = threading.Thread(target=lambda: asyncio.run(use()))
    thread.start()
    thread.join()

    assert seen == [False, True]


def test_a_hangup_before_it_is_open_is_kept_until_it_is(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=inf)
    file.write_text(limit_of(9))

    hang_up()
    asyncio.run(gate.open())

    assert gate["ratings"].policy.bulkhead.limit == 9
    asyncio.run(gate.close())
    assert not handles_hangup()


def test_a_program_without_a_loop_hears_hangups_until_it_is_closed_and_when_it_is_open_again(file: Path) -> None:
    gate = Gateway.from_file(file, check_every=inf)

    for limit in (9, 10):
        with gate:
            file.write_text(limit_of(limit))
            hang_up()
            wait_until(lambda: gate["ratings"].policy.bulkhead.limit == limit)  # noqa: B023 - it is called here
        assert not handles_hangup()


@pytest.mark.asyncio
async def test_hangups_are_heard_while_it_drains_and_by_every_gateway(file: Path) -> None:
    gates = [Gateway.from_file(file, check_every=inf) for _ in range(2)]

    @gates[0]["ratings"].operation(idempotent=True)
    async def slow() -> None:
        file.write_text(limit_of(9))
        await asyncio.sleep(0.03)
        hang_up()
        await until(lambda: all(gate["ratings"].policy.bulkhead.limit == 9 for gate in gates))

    await gates[1].open()
    call = asyncio.create_task(slow())
    await steps(5)
    await gates[0].close()

    await call
    assert handles_hangup()
    await gates[1].close()
    assert not handles_hangup()


def test_a_program_without_a_loop_reloads_from_its_threads(file: Path) -> None:
    file.write_text(limit_of(1))
    gate = Gateway.from_file(file, check_every=inf)
    done_on: list[threading.Thread] = []

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            done_on.append(threading.current_thread())

    with gate:
        log = logging.getLogger("gateway")
        log.addHandler(told := Told())
        file.write_text(limit_of(20))
        names = gate.reload()
        log.removeHandler(told)
        file.write_text("[[")
        error_of(gate.reload)

    assert (names, gate["ratings"].policy.bulkhead.limit) == (("ratings",), 20)
    assert {thread.name for thread in done_on} == {"gateway: loop"}


def test_the_log_hides_what_the_environment_said_before_and_what_follows_from_it(
    file: Path, monkeypatch: pytest.MonkeyPatch, logged: Callable[[int], list[str]]
) -> None:
    monkeypatch.setenv("SECRET", "7.77")
    plain = "[upstreams.ratings.timeout]\ncall = {}\n"
    file.write_text(plain.format(3))
    gate = Gateway.from_file(file)

    for value in ('"${SECRET}"', "2"):
        file.write_text(plain.format(value))
        gate.reload()
    file.write_text("[upstreams.other]\n")
    gate.reload()

    assert "timeout.call (from the environment)" in logged(logging.INFO)[0]
    assert not [line for line in logged(logging.INFO) if "7.77" in line]


def test_the_log_tells_budgets_and_waits_in_the_words_of_files(file: Path, logged: Callable[[int], list[str]]) -> None:
    gate = Gateway.from_file(file)

    file.write_text(limit_of(7) + '[upstreams.ratings.retry]\nwait = { fixed = "1s" }\n')
    gate.reload()
    file.write_text(limit_of(7) + '[upstreams.ratings.retry]\nwait = { fixed = "1s" }\nbudget = { ratio = 0.5 }\n')
    gate.reload()

    waits, budget = logged(logging.INFO)
    assert "{ fixed = 1.0 }" in waits
    assert " at 0x" not in waits
    assert "retry.budget None" not in budget


def test_a_relative_path_is_that_of_the_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    gate = Gateway.from_file(file.name)
    monkeypatch.chdir("/")
    file.write_text(limit_of(9))

    assert gate.reload() == ("ratings",)


def test_a_file_with_windows_lines_gives_the_lines_of_its_mistakes(file: Path) -> None:
    file.write_bytes(b"[upstreams.ratings.bulkhead]\r\nqueue = 1\r\nlimit = 0\r\n")

    error = refused(file)

    assert error.line == 3
    assert f"{file}:3: " in error.__notes__[0]


def test_an_error_of_an_operation_has_the_name_of_its_upstream_once(file: Path) -> None:
    gate = Gateway.from_file(file)

    @gate["ratings"].operation
    async def ask() -> None: ...

    file.write_text("[upstreams.ratings.breaker]\nmin_callers = 2\n")

    assert error_of(gate.reload).field == "upstreams.ratings.ask caller"


def test_what_was_closed_in_another_thread_leaves_hangups_as_they_were_by_default(file: Path) -> None:
    file.write_text(limit_of(20))
    program = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import os, signal, sys, threading; from gateway import Gateway\n"
                "gate = Gateway.from_file(sys.argv[1])\n"
                "os.kill(os.getpid(), signal.SIGHUP)\n"
                "print('alive', flush=True)\n"
                "thread = threading.Thread(target=gate.close_blocking)\n"
                "thread.start(); thread.join()\n"
                "os.kill(os.getpid(), signal.SIGHUP)\n"
                "print('not reached')"
            ),
            str(file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (program.returncode, program.stdout, program.stderr) == (-signal.SIGHUP, "alive\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_from_an_async_app_calls_from_its_threads_and_hears_hangups(file: Path) -> None:
    file.write_text(limit_of(20))
    program = subprocess.run(
        [
            sys.executable,
            "-c",
            (
                "import asyncio, os, signal, sys; from gateway import Gateway\n"
                "gate = Gateway.from_file(sys.argv[1], check_every=float('inf'))\n"
                "@gate['ratings'].operation(idempotent=True)\n"
                "async def pid(): return os.getpid()\n"
                "def child():\n"
                "    open(sys.argv[1], 'w').write('[upstreams.ratings.bulkhead]\\nlimit = 21\\n')\n"
                "    os.kill(os.getpid(), signal.SIGHUP)\n"
                "    print(pid.call_blocking() == os.getpid(), gate['ratings'].policy.bulkhead.limit, flush=True)\n"
                "    os._exit(0)\n"
                "async def main():\n"
                "    async with gate:\n"
                "        if not (forked := os.fork()):\n"
                "            child()\n"
                "        print(os.waitpid(forked, 0)[1], await pid() == os.getpid())\n"
                "asyncio.run(main())"
            ),
            str(file),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert (program.returncode, program.stdout, program.stderr) == (0, "True 21\n0 True\n", "")


@pytest.mark.virtual_time
async def test_on_a_virtual_loop_nobody_looks_so_that_time_can_stand_still(file: Path) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    gate = Gateway.from_file(file)

    async with gate:
        assert timers(loop) == []
        file.write_text(limit_of(9))
        await asyncio.sleep(100.0)

        assert gate["ratings"].policy.bulkhead.limit == 7
        assert gate.reload() == ("ratings",)


# -- what is no file


def refused(path: object) -> ConfigError:
    return error_of(lambda: Gateway.from_file(path))  # type: ignore[arg-type]


def test_what_cannot_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large.toml"
    os.mkfifo(pipe)
    large.write_bytes(b"#" * 10_000_000)

    assert "No such file" in refused(tmp_path / "missing.toml").problem
    assert refused(tmp_path).problem in {"it is no regular file", "it cannot be read: Is a directory"}
    assert "regular" in refused(pipe).problem
    assert "1 MiB" in refused(large).problem
    assert "null byte" in refused("a\0b").problem
    assert refused(3.5).field == "3.5"
    assert refused(None).field == "None"


def test_a_number_is_no_path_and_what_is_open_under_it_stays_open(file: Path) -> None:
    with file.open() as opened:
        assert refused(opened.fileno()).field == str(opened.fileno())

        assert opened.read() == file.read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_must_not_be_read_is_an_error(file: Path) -> None:
    file.chmod(0)

    assert "Permission denied" in refused(file).problem


@pytest.mark.parametrize(
    ("content", "says", "line"),
    [
        (b"[upstreams.ratings\n", "at line 1, column 19", 1),
        (b"\n[upstreams.ratings]\nlimit 20\n", "at line 3, column 7", 3),
        (b"[upstreams]\nx = '\xff'\n", "UTF-8 (at line 2", 2),
        (b"\xff\xfe[\x00u\x00", "UTF-8", 1),
        (b"x = " + b"[" * 4000, "nested", None),
        (b"[upstreams.x.bulkhead]\nlimit = " + b"1" * 4000, "farther from 0", 2),
        (b"# " + b"x" * 5000, "4096 characters", 1),
        (b".".join([b"a"] * 2000) + b" = 1", "there is no 'a'", None),
        (b"[upstreams.x.retry]\nwait." + b".".join([b"a"] * 2000) + b" = '${X}'", "nested", None),
    ],
    ids=["header", "no equals sign", "latin", "UTF-16", "deep", "many digits", "long line", "dotted", "dotted wait"],
)
def test_what_is_no_toml_is_an_error_that_says_where(file: Path, content: bytes, says: str, line: int | None) -> None:
    file.write_bytes(content)

    error = refused(file)

    assert says in str(error)
    assert line in {None, error.line}
    assert len(str(error)) < 1000


def test_a_byte_order_mark_and_windows_lines_are_no_error(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + limit_of(7).replace("\n", "\r\n").encode())

    assert Gateway.from_file(file)["ratings"].policy.bulkhead.limit == 7


# -- the command line


def gateway(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATEWAY, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


BAD = """\
[upstreams.ratings]
fallback_timeout = "100 parsecs"
limit = 20

[upstreams.ratings.bulkhead]
limit = 0
quue = 3

[upstreams.ratings.retry]
wait = { jitter = "100ms", maks = "2s" }

[upstreams.info.timeout]
call = 1
attempt = "5s"

[upstreams.info.breaker]
enforce = "${SECRET}"
"""


def test_check_names_every_mistake_with_its_line_in_order(file: Path) -> None:
    file.write_text(BAD)

    told = gateway("check", str(file), SECRET="hunter2")  # noqa: S106 - none

    assert (told.returncode, told.stdout) == (1, "")
    assert "hunter2" not in told.stderr
    assert [re.sub(": .*", "", line.removeprefix(f"{file}:")) for line in told.stderr.splitlines()] == [
        "2",
        "3",
        "6",
        "7",
        "10",
        "14",
        "17",
    ]
    assert [line.split(": ")[1] for line in told.stderr.splitlines()] == [
        "upstreams.ratings.fallback_timeout",
        "upstreams.ratings.limit",
        "upstreams.ratings.bulkhead.limit",
        "upstreams.ratings.bulkhead.quue",
        "upstreams.ratings.retry.wait.maks",
        "upstreams.info.timeout.attempt",
        "upstreams.info.breaker.enforce",
    ]


def test_check_says_that_a_file_is_well_and_what_is_unwise(file: Path) -> None:
    file.write_text(limit_of(20) + limit_of(1, name="slow") + limit_of('"${LIMIT}"', name="theirs"))

    told = gateway("check", str(file), LIMIT="3")

    assert (told.returncode, told.stdout) == (0, f"{file}: 3 upstreams, no errors\n")
    first, second = told.stderr.splitlines()
    assert first.startswith(f"{file}: warning: slow: the circuit cannot open on timeouts")
    assert second == f"{file}: warning: theirs: its numbers are unwise; some are the environment's, and not shown"


def test_check_is_one_line_for_one_upstream(file: Path) -> None:
    file.write_text(limit_of(20))

    told = gateway("check", str(file))

    assert (told.returncode, told.stdout, told.stderr) == (0, f"{file}: 1 upstream, no errors\n", "")


@pytest.mark.parametrize("content", [None, "x", '[upstreams."\x1b[31m\\nred".bulkhead]\nlimit = 0'])
def test_every_mistake_is_one_line_without_escapes(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "policies.toml"
    if content is not None:
        file.write_text(content)

    told = gateway("check", str(file))

    assert told.returncode == 1
    assert len(told.stderr.splitlines()) == 1
    assert "\x1b" not in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("arguments", [("check",), ("check", "one", "two"), ("schema", "x")])
def test_a_wrong_use_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert gateway(*arguments).returncode == 2


def test_schema_prints_the_schema() -> None:
    from gateway.config import schema

    told = gateway("schema")

    assert (told.returncode, told.stderr) == (0, "")
    assert json.loads(told.stdout) == schema()
