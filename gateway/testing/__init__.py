"""Tests without waiting: a loop whose time jumps, operations whose upstream misbehaves on cue, and a last look round.

pytest_plugins = ["gateway.testing.plugin"]              # in conftest.py

@pytest.mark.virtual_time
async def test_a_hanging_upstream_is_given_up_on() -> None:
    with Faults(user_ratings).hang():
        answer = await user_ratings.ask("ada")           # ten seconds, in no time
    assert answer.source == "last_good"
    assert_nothing_left(gate)
"""

from gateway.testing.faults import Faults
from gateway.testing.loop import VirtualTimeLoop
from gateway.testing.nothing_left import assert_nothing_left

__all__ = ["Faults", "VirtualTimeLoop", "assert_nothing_left"]
