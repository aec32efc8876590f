"""The circuit agrees, step by step, with a real one: tests/data/README.md says what was recorded, and how."""

import json
import lzma
from math import inf
from pathlib import Path

import pytest

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen

RECORDING = Path(__file__).parents[1] / "data" / "breaker.jsonl.xz"
with lzma.open(RECORDING, "rt") as lines:
    TRACES = [json.loads(line) for line in lines]
MEASURABLE = [trace for trace in TRACES if trace["duration_mode"] == "clock"]
STATES = {"C": "closed", "O": "open", "H": "half_open"}


def name_of(trace):
    return f"{trace['family']}-{trace['id']}"


def policy_of(config):
    by_time = config["sliding_window_type"] == "TIME_BASED"
    size = config["sliding_window_size"]
    half_open_ms = config["max_wait_duration_in_half_open_state_ms"]
    return BreakerPolicy(
        **{"window_for" if by_time else "window_calls": size},
        min_calls=config["minimum_number_of_calls"],
        failure_rate=config["failure_rate_threshold"] / 100,
        slow_after=config["slow_call_duration_threshold_ms"] / 1000,
        slow_rate=config["slow_call_rate_threshold"] / 100,
        open_for=config["wait_duration_in_open_state_ms"] / 1000,
        probes=config["permitted_number_of_calls_in_half_open_state"],
        max_half_open=half_open_ms / 1000 if half_open_ms else inf,
        after_max_half_open=config["transition_to_state_after_wait_duration"].lower(),
        auto_half_open=config["automatic_transition_from_open_to_half_open_enabled"],
    )


class Replay:
    def __init__(self, trace, *, measuring):
        self.start_ms = trace["start_ms"]
        self.elapsed_ms = 0
        self.measuring = measuring
        self.permits = []  # kept: a permit that is lost gives its lease back
        self.transitions = []
        self.breaker = CircuitBreaker(
            policy_of(trace["config"]),
            clock=lambda: self.start_ms / 1000 + self.elapsed_ms / 1000,
            on_change=lambda before, after, at: self.transitions.append((before, after)),
        )

    def apply(self, op, *operands):
        if op == "acq":
            try:
                self.permits.append(self.breaker.admit())
            except CircuitOpen:
                return False
            return True
        if op == "adv":
            self.elapsed_ms += operands[0]
            return None
        permit = self.permits[operands[0]]
        if op in {"ok", "err"}:
            duration = None if self.measuring else operands[1] / 1e9
            (permit.succeeded if op == "ok" else permit.failed)(duration)
        else:
            assert op in {"ign", "rel"}
            permit.ignored()
        return None

    def assert_agrees(self, granted, obs):
        expected_granted, state, failure_rate, slow_rate, calls, failures, slow, successes, refused, _, events = obs
        seen = self.breaker.snapshot()
        transitions, self.transitions = self.transitions, []
        assert granted == expected_granted
        assert seen.state == STATES[state]
        assert transitions == [
            (STATES[event[2]], STATES[event[4]]) for event in events.split(",") if event.startswith("t:")
        ]
        assert (seen.open_until is not None) == (state == "O")
        if state == "O":
            return  # the reference goes on showing the window that opened it
        assert percent(seen.failure_rate) == pytest.approx(failure_rate, abs=1e-4)
        assert percent(seen.slow_rate) == pytest.approx(slow_rate, abs=1e-4)
        assert (seen.calls, seen.failures, seen.slow) == (calls, failures, slow)
        assert seen.calls - seen.failures == successes
        assert seen.rejected == refused


def percent(share):
    return -1.0 if share is None else share * 100


def replay(trace, *, measuring):
    replay = Replay(trace, measuring=measuring)
    for number, ((op, *operands), obs) in enumerate(trace["steps"]):
        granted = replay.apply(op, *operands)
        try:
            replay.assert_agrees(granted, obs)
        except AssertionError as error:
            error.add_note(f"at step {number}, {op} {operands}, of {trace['config']}")
            raise


def test_the_recording_is_complete():
    steps = sum(len(trace["steps"]) for trace in TRACES)

    assert len(TRACES) == 176
    assert len(MEASURABLE) == 69
    assert steps == 25_411


@pytest.mark.parametrize("trace", TRACES, ids=name_of)
def test_it_agrees_with_the_recording_at_every_step(trace):
    replay(trace, measuring=False)


@pytest.mark.parametrize("trace", MEASURABLE, ids=name_of)
def test_it_agrees_when_it_measures_by_itself(trace):
    replay(trace, measuring=True)
