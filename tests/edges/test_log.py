"""What is written to the log, and how."""

from __future__ import annotations

import io
import json
import logging
from asyncio import sleep
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway import BreakerPolicy, Gateway, LastGood, Operation, Policy, Refused, RetryPolicy, Static, Upstream
from gateway.log import configure, listen
from gateway.testing import Faults
from tests.support import Boom, ended, fail_until_open

virtual = pytest.mark.virtual_time


class Recorder:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.lines.append(("warning", event, facts))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def gate(recorder: Recorder) -> Gateway:
    gate = Gateway()
    listen(gate, logger=recorder)
    return gate


@pytest.fixture
def ratings(gate: Gateway) -> Upstream:
    policy = Policy(retry=RetryPolicy(attempts=1), breaker=BreakerPolicy(min_calls=3, probes=1))
    return gate.upstream("ratings", policy=policy)


@pytest.fixture
def stars(ratings: Upstream) -> Operation[..., int]:
    @ratings.operation(idempotent=True)
    async def stars(film: str) -> int:
        return 5

    return stars


@virtual
async def test_every_transition_is_a_line(gate: Gateway, ratings: Upstream, stars: Any, recorder: Recorder) -> None:
    await fail_until_open(ratings)
    ratings.breaker.clock = lambda: gate["ratings"].clock() + 6.0  # later
    ratings.breaker.admit().succeeded()
    ratings.isolate()
    ratings.restore()

    assert recorder.lines == [
        ("warning", "circuit open", {"upstream": "ratings", "was": "closed"}),
        ("info", "circuit half_open", {"upstream": "ratings", "was": "open"}),
        ("info", "circuit closed", {"upstream": "ratings", "was": "half_open"}),
        ("warning", "circuit isolated", {"upstream": "ratings", "was": "closed"}),
        ("info", "circuit closed", {"upstream": "ratings", "was": "isolated"}),
    ]


@virtual
async def test_rejections_are_a_line_a_second(ratings: Upstream, stars: Any, recorder: Recorder) -> None:
    ratings.isolate()
    recorder.lines.clear()
    for pause in [0.0] * 10 + [1.0, 0.0]:
        await sleep(pause)
        await ended(stars("alien"))

    facts = {"upstream": "ratings", "operation": "stars", "error": "CircuitOpen: the circuit is isolated"}
    assert recorder.lines == [("warning", "rejected", facts), ("warning", "rejected", {**facts, "unlogged": 9})]


@virtual
async def test_degraded_answers_say_where_they_are_from_and_why(stars: Any, recorder: Recorder) -> None:
    stars.fallback(LastGood())

    @stars.fallback
    def guessed(error: Exception, film: str) -> int:
        return 3

    with Faults(stars).value(4).error(Boom("ill")).error(Boom("ill")):
        answers = [(await stars.ask(film)).value for film in ("alien", "alien", "psycho")]

    assert answers == [4, 4, 3]
    lines = [line for line in recorder.lines if line[1] == "degraded answer"]
    assert [facts["source"] for _, _, facts in lines] == ["last_good", "handler"]
    level, _, facts = lines[0]
    assert level == "warning"
    assert facts["operation"] == "stars"
    assert "Boom" in facts["error"]


@virtual
async def test_what_the_caller_is_told_anyway_is_no_line(stars: Any, recorder: Recorder) -> None:
    with Faults(stars).value(4).error(Refused("no")).error(Boom()):
        ends = [await ended(stars("alien")) for _ in range(3)]

    assert [type(end).__name__ for end in ends] == ["int", "Refused", "Failed"]
    assert recorder.lines == []


@virtual
async def test_the_listener_can_be_taken_off(recorder: Recorder) -> None:
    gate = Gateway()
    listener = listen(gate, logger=recorder)
    gate.off(listener)
    gate.upstream("ratings").isolate()

    assert recorder.lines == []


@virtual
async def test_calls_that_go_plainly_well_are_not_listened_to(recorder: Recorder) -> None:
    gate = Gateway()
    listener = listen(gate, logger=recorder)

    assert gate.listeners.call_finished == (listener,)
    assert gate.listeners.of_plain(1) == []


# -- how it is written


@pytest.fixture
def standard() -> Iterator[logging.Logger]:
    """The logger of the core; its configuration, and structlog's, are as they were afterwards."""
    logger = logging.getLogger("gateway")
    before = (logger.handlers, logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.level, logger.propagate = before
    structlog.reset_defaults()


def test_events_and_the_core_are_written_the_same_way(standard: logging.Logger) -> None:
    out = io.StringIO()
    configure(stream=out)
    gate = Gateway()
    listen(gate)

    gate.upstream("ratings").isolate()
    standard.warning("%s is unwise", "ratings")

    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(line.pop("timestamp").endswith("Z") for line in lines)
    assert lines == [
        {"event": "circuit isolated", "level": "warning", "upstream": "ratings", "was": "closed"},
        {"event": "ratings is unwise", "level": "warning"},
    ]


def test_lines_for_the_eye_have_no_colours_unless_it_is_a_terminal(standard: logging.Logger) -> None:
    plain, coloured = io.StringIO(), Terminal()
    for out in (plain, coloured):
        configure(stream=out, json=False if out is plain else None)
        gate = Gateway()
        listen(gate)
        gate.upstream("ratings").isolate()
        standard.warning("unwise")

    assert "circuit isolated" in plain.getvalue()
    assert "upstream=ratings was=closed" in plain.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert "\x1b" in coloured.getvalue()


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_of_a_listener_is_written_with_its_traceback(standard: logging.Logger, as_json: bool) -> None:
    out = io.StringIO()
    configure(stream=out, json=as_json)
    gate = Gateway()

    @gate.on()
    def broken(event: object) -> None:
        raise Boom("a listener")

    gate.upstream("ratings").isolate()

    assert "Boom: a listener" in out.getvalue()
    assert "Traceback" in out.getvalue()
    assert len(out.getvalue().splitlines()) == 1 or not as_json


def test_configured_again_it_writes_elsewhere_and_once(standard: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    gate = Gateway()
    listen(gate)
    ratings = gate.upstream("ratings")
    ratings.isolate()
    before = first.getvalue()
    configure(stream=second)

    ratings.restore()
    standard.warning("once")

    assert first.getvalue() == before
    assert len(second.getvalue().splitlines()) == 2


def test_a_handler_of_the_root_does_not_write_the_same_line_again(standard: logging.Logger) -> None:
    again = io.StringIO()
    handler = logging.StreamHandler(again)
    logging.getLogger().addHandler(handler)
    try:
        configure(stream=io.StringIO())
        standard.warning("once")
    finally:
        logging.getLogger().removeHandler(handler)

    assert again.getvalue() == ""


def test_what_is_below_the_level_is_not_written(standard: logging.Logger) -> None:
    out = io.StringIO()
    configure(stream=out, level=logging.WARNING)
    gate = Gateway()
    listen(gate)
    ratings = gate.upstream("ratings")
    ratings.isolate()

    ratings.restore()
    standard.info("as usual")

    assert len(out.getvalue().splitlines()) == 1


@virtual
@pytest.mark.usefixtures("standard")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
async def test_a_letter_that_the_stream_does_not_have_is_spelled_out_and_more_lines_follow(encoding: str) -> None:
    """What an upstream says may hold any: to fail of it was to be removed, with all that there was to say later."""
    written = io.BytesIO()
    configure(json=False, stream=io.TextIOWrapper(written, encoding=encoding, write_through=True))
    gate = Gateway()
    ratings = gate.upstream("ratings", policy=Policy(retry=RetryPolicy(attempts=1)))

    @ratings.operation(idempotent=True, fallback=[Static(0)])
    async def stars(film: str) -> int:
        raise Boom(film)

    listen(gate, every=0.0)

    for film in ("Amélie", "\u20ac", "Alien"):
        await stars(film)
    await gate.close()

    lines = written.getvalue().decode(encoding).splitlines()
    assert len([line for line in lines if "degraded answer" in line]) == 3
    assert not [line for line in lines if "was removed" in line]
