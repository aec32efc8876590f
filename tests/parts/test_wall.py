"""The wall clock, and its jumps."""

from __future__ import annotations

import time

import pytest

from fallbacks.wall import WALL, WallClock
from tests.clock import Clock


@pytest.fixture
def wall() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def monotonic() -> Clock:
    return Clock(50.0)


@pytest.fixture
def clock(wall: Clock, monotonic: Clock) -> WallClock:
    return WallClock(wall, monotonic)


def test_it_tells_the_time(clock: WallClock, wall: Clock, monotonic: Clock) -> None:
    wall.wait(12.5)
    monotonic.wait(12.5)

    assert clock.now() == 1_000_012.5
    assert WALL.now() == pytest.approx(time.time(), abs=5.0)


def test_a_clock_set_forward_is_believed_and_its_correction_too(
    clock: WallClock, wall: Clock, monotonic: Clock
) -> None:
    wall.wait(3600.0)
    ahead = clock.now()
    wall.wait(-3600.0)
    monotonic.wait(10.0)
    wall.wait(10.0)

    assert ahead == 1_003_600.0
    assert clock.now() == 1_000_010.0


def test_a_clock_set_back_goes_on_as_it_did(clock: WallClock, wall: Clock, monotonic: Clock) -> None:
    for _ in range(3):
        wall.wait(-1000.0)
        monotonic.wait(10.0)

        clock.now()

    assert clock.now() == 1_000_030.0


def test_a_clock_that_drifts_is_followed_however_far(clock: WallClock, wall: Clock, monotonic: Clock) -> None:
    for _ in range(100):
        wall.wait(10.0 - 0.9)
        monotonic.wait(10.0)

        clock.now()

    assert clock.now() == wall() == pytest.approx(1_000_910.0)


def test_no_value_grows_younger_by_a_jump(clock: WallClock, wall: Clock, monotonic: Clock) -> None:
    stored_at = clock.now()
    for jump in (-5000.0, 8000.0, -2000.0, -900.0, 50.0):
        wall.wait(jump)
        monotonic.wait(7.0)
        wall.wait(7.0)

        assert clock.now() - stored_at >= monotonic() - 50.0 - 1e-6
