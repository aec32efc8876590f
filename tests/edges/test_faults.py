"""The testing tools as users know them: faults on cue, a clock that jumps, a last look round, the marker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from gateway import (
    BreakerPolicy,
    BulkheadPolicy,
    ConfigError,
    Deadline,
    Failed,
    FailedTimeout,
    Gateway,
    LastGood,
    Operation,
    Policy,
    Refused,
    RetryPolicy,
    Static,
    TimeoutPolicy,
)
from gateway.testing import Faults, VirtualTimeLoop, assert_nothing_left
from tests.support import QUIET, Boom, ended, fail_until_open, gone, now, steps


@pytest_asyncio.fixture
async def gate() -> AsyncIterator[Gateway]:
    async with Gateway() as gate:
        yield gate
        assert_nothing_left(gate)


@pytest.fixture
def double(gate: Gateway) -> Operation[[int], int]:
    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def double(number: int) -> int:
        return 2 * number

    return double


# -- Faults


@pytest.mark.virtual_time
async def test_the_script_is_played_in_order_and_then_the_real_function(double: Operation[[int], int]) -> None:
    with Faults(double).value(7).error(Boom("first")).delay(2.0).error(Refused) as faults:
        began = now()
        ends = [await ended(double(1)) for _ in range(5)]
        took = now() - began

    first, second, third, fourth, fifth = ends
    assert (first, third, fifth) == (7, 2, 2)
    assert str(second.__cause__) == "first"
    assert type(fourth) is Refused
    assert took == pytest.approx(2.0)
    assert faults.tries == 5


@pytest.mark.virtual_time
async def test_each_step_is_one_try_and_retries_are_tries(gate: Gateway) -> None:
    @gate.upstream("world").operation(idempotent=True)
    async def ask() -> str:
        return "real"

    with Faults(ask).error(Boom).value("scripted") as faults:
        answer = await ask.ask()

    assert (answer.value, answer.source) == ("scripted", "live")
    assert faults.tries == 2


@pytest.mark.virtual_time
async def test_a_hang_ends_with_the_limit_of_the_try(double: Operation[[int], int]) -> None:
    began = now()

    with Faults(double).hang():
        error = await ended(double(1))

    assert type(error) is FailedTimeout
    assert now() - began == pytest.approx(10.0)


@pytest.mark.virtual_time
async def test_after_the_block_the_function_is_the_real_one_again(double: Operation[[int], int]) -> None:
    with pytest.raises(Boom), Faults(double).value(7).value(8):
        assert await double(1) == 7
        raise Boom

    assert await double(1) == 2


@pytest.mark.virtual_time
async def test_a_try_that_is_delayed_beyond_the_block_ends_with_the_real_function(
    double: Operation[[int], int],
) -> None:
    with Faults(double).delay(1.0):
        call = asyncio.ensure_future(double(1))
        await steps(1)

    assert await call == 2


@pytest.mark.virtual_time
async def test_chances_are_the_same_for_the_same_seed(double: Operation[[int], int]) -> None:
    async def run(seed: int) -> list[bool]:
        with Faults(double, seed=seed).chance(0.3, Boom):
            return [isinstance(await ended(double(1)), Failed) for _ in range(300)]

    first, again, other = await run(1), await run(1), await run(2)

    assert first == again != other
    assert 60 <= sum(first) <= 120


@pytest.mark.virtual_time
async def test_chances_begin_where_the_script_ends(double: Operation[[int], int]) -> None:
    with Faults(double).value(7).chance(1.0, Boom) as faults:
        scripted, struck = await double(1), await ended(double(1))
        faults.clear()
        real = await double(1)
        faults.value(8)
        scripted_again = await double(1)

    assert (scripted, real, scripted_again) == (7, 2, 8)
    assert type(struck) is Failed


@pytest.mark.virtual_time
async def test_a_chance_of_nothing_never_strikes(double: Operation[[int], int]) -> None:
    with Faults(double).chance(0.0, Boom):
        assert [await double(1) for _ in range(100)] == [2] * 100


@pytest.mark.virtual_time
async def test_the_inner_faults_go_first(double: Operation[[int], int]) -> None:
    with Faults(double).value(7):
        with Faults(double).value(8):
            ends = [await double(1), await double(1)]
        ends.append(await double(1))

    assert ends == [8, 7, 2]


@pytest.mark.virtual_time
async def test_the_same_faults_twice_at_once_are_an_error_and_one_after_the_other_are_not(double) -> None:
    faults = Faults(double)

    with faults.value(7):
        with pytest.raises(RuntimeError, match="in force"), faults:
            pass
        first = await double(1)
    with faults.value(8):
        second = await double(1)

    assert (first, second) == (7, 8)
    assert await double(1) == 2


@pytest.mark.virtual_time
async def test_one_error_object_may_be_raised_again_and_again(double: Operation[[int], int]) -> None:
    boom = Boom("stored")

    with Faults(double).chance(1.0, boom):
        errors = [await ended(double(1)) for _ in range(50)]

    def frames(error: BaseException) -> int:
        traceback, number = error.__traceback__, 0
        while traceback is not None:
            traceback, number = traceback.tb_next, number + 1
        return number

    assert all(error.__cause__ is boom for error in errors)
    assert frames(boom) < 10


@pytest.mark.virtual_time
async def test_pool_circuit_and_fallbacks_stay_the_real_ones(gate: Gateway) -> None:
    policy = Policy(
        bulkhead=BulkheadPolicy(limit=1, queue=0), retry=RetryPolicy(attempts=1), breaker=BreakerPolicy(min_calls=2)
    )
    up = gate.upstream("world", policy=policy)

    @up.operation(idempotent=True, fallback=[LastGood(), Static("s")])
    async def ask() -> str:
        return "live"

    await ask()
    with Faults(ask).hang().error(Boom):
        hanging = asyncio.ensure_future(ask())
        await steps(1)
        full = await ask.ask()
        await hanging
        failed = await ask.ask()
    open_circuit = await ask.ask()

    assert [type(answer.error).__name__ for answer in (full, failed, open_circuit)] == [
        "BulkheadFull",
        "Failed",
        "CircuitOpen",
    ]
    assert {answer.source for answer in (full, failed, open_circuit)} == {"last_good"}


@pytest.mark.virtual_time
async def test_the_judge_of_values_judges_scripted_values_too(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True, classify=lambda what: "failed" if what == "bad" else None)
    async def ask() -> str:
        return "good"

    with Faults(ask).value("bad"):
        error = await ended(ask())

    assert type(error) is Failed
    assert await ask() == "good"


@pytest.mark.virtual_time
async def test_methods_class_methods_and_static_methods_have_faults_too(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    class Movies:
        @up.operation(idempotent=True)
        async def by_instance(self, movie: str) -> str:
            return movie

        @up.operation(idempotent=True)
        @classmethod
        async def by_class(cls, movie: str) -> str:
            return movie

        @up.operation(idempotent=True)
        @staticmethod
        async def by_nobody(movie: str) -> str:
            return movie

    movies = Movies()
    for operation in (movies.by_instance, Movies.by_class, Movies.by_nobody):
        with Faults(operation).value("scripted").delay(0.1):
            assert [await operation("real"), await operation("real"), await operation("real")] == [
                "scripted",
                "real",
                "real",
            ]


@pytest.mark.virtual_time
async def test_a_plain_function_has_faults_without_its_thread(gate: Gateway) -> None:
    up = gate.upstream("world", policy=QUIET)

    @up.operation(idempotent=True)
    def ask() -> str:
        return threading.current_thread().name

    with Faults(ask).value("scripted").hang():
        scripted, hung = await ask(), await ended(ask())

    assert scripted == "scripted"
    assert type(hung) is FailedTimeout
    assert (await ask()).startswith("world-")


@pytest.mark.parametrize("error", ["text", 5, None, object, [Boom]], ids=["text", "number", "nothing", "type", "list"])
def test_what_cannot_be_raised_is_an_error_at_once(error) -> None:
    operation = Gateway().upstream("world").operation(name="ask")(steps)

    with pytest.raises(ConfigError, match="raised"):
        Faults(operation).error(error)
    with pytest.raises(ConfigError, match="raised"):
        Faults(operation).chance(0.5, error)


@pytest.mark.parametrize("probability", [-0.1, 1.1, 50, float("nan")])
def test_what_is_no_probability_is_an_error_at_once(probability: float) -> None:
    operation = Gateway().upstream("world").operation(name="ask")(steps)

    with pytest.raises(ConfigError, match="probability"):
        Faults(operation).chance(probability, Boom)


def test_only_operations_have_faults() -> None:
    with pytest.raises(ConfigError, match="operation"):
        Faults(steps)  # type: ignore[arg-type]


# -- the last look round


@pytest.mark.virtual_time
async def test_it_finds_a_call_in_flight_its_place_and_its_limit(double: Operation[[int], int]) -> None:
    gate = double.upstream.gateway
    with Faults(double).hang():
        call = asyncio.ensure_future(double(1))
        await steps(1)

        with pytest.raises(AssertionError) as caught:
            assert_nothing_left(gate)
        await gone(call)

    assert "world: 1 places in use" in str(caught.value)
    assert "1 time limits" in str(caught.value)
    assert "1 calls of double in flight" in str(caught.value)
    assert_nothing_left(gate)


@pytest.mark.virtual_time
async def test_it_finds_a_waiter(double: Operation[[int], int]) -> None:
    up = double.upstream
    up.policy = Policy(bulkhead=BulkheadPolicy(limit=1, queue=5))
    with Faults(double).hang().hang():
        calls = [asyncio.ensure_future(double(1)) for _ in range(2)]
        await steps(2)

        with pytest.raises(AssertionError, match="1 waiters"):
            assert_nothing_left(up.gateway)
        await gone(*calls)


@pytest.mark.virtual_time
async def test_it_finds_a_probe_that_never_reported(gate: Gateway) -> None:
    up = gate.upstream("world", policy=Policy(breaker=BreakerPolicy(min_calls=1, open_for=1.0)))
    await fail_until_open(up)
    await asyncio.sleep(1.1)
    permit = up.breaker.admit()

    with pytest.raises(AssertionError, match="1 probes"):
        assert_nothing_left(gate)

    permit.ignored()
    assert_nothing_left(gate)


@pytest.mark.asyncio
async def test_it_finds_a_thread_whose_caller_left() -> None:
    go = threading.Event()
    async with Gateway() as gate:
        up = gate.upstream("world", policy=Policy(timeout=TimeoutPolicy(call=0.05), retry=RetryPolicy(attempts=1)))
        operation = up.operation(name="ask", idempotent=True)(lambda: go.wait(5))
        await ended(operation())

        with pytest.raises(AssertionError, match=r"1 places in use \(1 by abandoned threads\)"):
            assert_nothing_left(gate)
        go.set()
    await steps(2)

    assert_nothing_left(gate)


@pytest.mark.virtual_time
async def test_it_finds_a_task_of_the_gateways_own(gate: Gateway) -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(9), name="gateway: something behind")

    with pytest.raises(AssertionError, match="something behind"):
        assert_nothing_left(gate)

    await gone(task)


@pytest.mark.virtual_time
async def test_it_finds_numbers_that_do_not_add_up(double: Operation[[int], int]) -> None:
    double.tally.asked += 1

    with pytest.raises(AssertionError, match="do not add up"):
        assert_nothing_left(double.upstream.gateway)

    double.tally.asked -= 1


def test_it_needs_no_loop() -> None:
    gate = Gateway()
    gate.upstream("world")

    assert_nothing_left(gate)


# -- the marker and the loop


@pytest.mark.virtual_time
async def test_hours_pass_in_no_time_and_exactly() -> None:
    real, virtual = time.monotonic(), now()

    await asyncio.sleep(36_000.0)

    assert now() - virtual == pytest.approx(36_000.0, abs=1e-6)
    assert time.monotonic() - real < 1.0
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.asyncio
async def test_without_the_marker_time_is_real() -> None:
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.virtual_time
class TestInAClass:
    async def test_the_marker_of_a_class_holds_for_its_tests(self) -> None:
        assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

    def test_and_leaves_plain_tests_alone(self) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()


@pytest.mark.virtual_time
@pytest.mark.parametrize("number", [1, 2])
async def test_the_marker_goes_with_parameters_and_fixtures(double: Operation[[int], int], number: int) -> None:
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    assert await double(number) == 2 * number


@pytest.mark.virtual_time
async def test_real_sockets_work_in_virtual_time(gate: Gateway) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        await asyncio.sleep(5.0)
        writer.write(b"you said " + line)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    @gate.upstream("world", policy=QUIET).operation(idempotent=True)
    async def say(words: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(words + b"\n")
            return await reader.readline()
        finally:
            writer.close()
            await writer.wait_closed()

    began = now()
    answer = await say(b"hello")
    took = now() - began
    with Deadline.after(2.0):
        late = await ended(say(b"hello"))
    server.close()
    await server.wait_closed()
    await asyncio.sleep(10.0)

    assert answer == b"you said hello\n"
    assert took == pytest.approx(5.0, abs=0.01)
    assert type(late) is FailedTimeout


@pytest.mark.virtual_time
async def test_threads_of_an_executor_work_in_virtual_time() -> None:
    began = now()

    await asyncio.gather(asyncio.to_thread(time.sleep, 0.05), asyncio.sleep(0.0))

    assert now() == began


def test_a_loop_that_waits_for_nothing_says_so_instead_of_hanging() -> None:
    loop = VirtualTimeLoop(patience=0.05)

    with pytest.raises(RuntimeError, match="waiting for nothing"):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_each_loop_begins_where_the_last_one_ended() -> None:
    first = VirtualTimeLoop()
    first.run_until_complete(asyncio.sleep(1000.0))
    ended_at = first.time()
    first.close()
    second = VirtualTimeLoop()

    assert second.time() >= ended_at
    second.close()


PLUGIN_TEST = """
import asyncio
import pytest
from gateway.testing import VirtualTimeLoop

@pytest.mark.virtual_time
async def test_virtual():
    await asyncio.sleep(3600)
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

@pytest.mark.asyncio
async def test_real():
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

@pytest.mark.asyncio
@pytest.mark.virtual_time
async def test_both():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

def test_plain():
    pass
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_plugin_is_one_line_in_conftest(tmp_path, mode: str) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["gateway.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)

    code, output = run_pytest(tmp_path, "-o", f"asyncio_mode={mode}", "--strict-markers")

    assert code == 0, output
    assert "4 passed" in output


def test_without_the_line_nothing_changes(tmp_path) -> None:
    (tmp_path / "test_it.py").write_text(PLUGIN_TEST)

    code, output = run_pytest(tmp_path, "--strict-markers")

    assert code != 0
    assert "virtual_time" in output


def run_pytest(folder, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            *options,
            str(folder),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
