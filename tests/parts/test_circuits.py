import gc
import logging
from dataclasses import dataclass, replace
from random import Random

import pytest

from gateway import BreakerPolicy, CircuitBreaker, CircuitOpen, ConfigError
from gateway.breaker import Closed
from gateway.circuits import BY_HAND, LOOK_AGAIN_AFTER, LOOKS, Asked, Circuits, OfOperation
from tests.clock import Clock

SMALL = BreakerPolicy(window_calls=4, min_calls=2, open_for=5.0, probes=1, max_circuits=3)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heard():
    return []


@pytest.fixture
def circuits(clock, heard):
    return circuits_of(clock, heard)


def circuits_of(clock, heard, policy=SMALL, **others):
    def tell(key, breaker, before, after, at):
        heard.append((key, before, after, at))

    shared = CircuitBreaker(policy, clock=clock)
    return Circuits(policy, shared=shared, clock=clock, on_change=tell, name="ratings", **others)


def open_up(breaker):
    for _ in range(2):
        breaker.admit().failed()
    assert breaker.snapshot().state == "open"


def keys_of(circuits):
    return [key for key, _ in circuits]


def test_each_key_has_a_circuit_of_its_own(circuits):
    open_up(circuits.of("ada"))

    assert circuits.of("ada") is circuits.of("ada")
    assert circuits.of("bob").snapshot().state == "closed"
    assert {key: seen.state for key, seen in circuits.snapshots().items()} == {"ada": "open", "bob": "closed"}
    assert len(circuits) == 2


def test_peek_makes_nothing_and_uses_nothing(circuits):
    for key in "abc":
        circuits.of(key)

    assert circuits.peek("x") is None
    assert circuits.peek("a") is circuits.peek("a")
    assert keys_of(circuits) == ["a", "b", "c"]


def test_keys_are_told_apart_with_their_types(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=50))
    keys = [1, True, 1.0, "1", b"1", None, (1,), (True,), (int, 1), ("int", 1), frozenset({1}), frozenset({2})]

    made = [circuits.of(key) for key in keys]

    assert len({id(breaker) for breaker in made}) == len(keys)
    assert [circuits.of(key) for key in keys] == made
    assert len(circuits.snapshots()) == len(keys)


@pytest.mark.parametrize(("one", "other"), [(("a",), (str, "a")), ((int, 1), (1,)), (0.0, -0.0), (1, 1.0)])
def test_no_two_keys_share_a_name_by_accident(circuits, one, other):
    assert circuits.of(one) is not circuits.of(other)


def test_a_record_that_is_equal_is_the_same_key(circuits):
    @dataclass(frozen=True)
    class Tenant:
        name: str

    assert circuits.of(Tenant("a")) is circuits.of(Tenant("a"))
    assert circuits.of(Tenant("a")) is not circuits.of(Tenant("b"))
    assert Tenant("a") in circuits.snapshots()


def test_snapshots_show_the_users_own_keys_and_where_python_takes_two_for_one_their_types_too(circuits):
    circuits.of(1)
    circuits.of(True)

    assert list(circuits.snapshots()) == [1, (bool, True)]


def test_a_key_without_a_hash_is_a_type_error_and_leaves_nothing(circuits):
    with pytest.raises(TypeError):
        circuits.of(["a"])

    assert len(circuits) == 0


def test_transitions_are_told_with_the_key(clock, circuits, heard):
    open_up(circuits.of("ada"))

    assert heard == [("ada", "closed", "open", 100.0)]


def test_the_jitter_is_drawn_from_the_numbers_handed_in(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, open_jitter=1.0), random=lambda: 0.5)
    open_up(circuits.of("ada"))

    assert circuits.of("ada").snapshot().open_until == 107.5


# -- bounded


def test_over_the_limit_the_least_recently_used_goes(circuits):
    for key in "abc":
        circuits.of(key)
    circuits.of("a")

    circuits.of("d")

    assert keys_of(circuits) == ["c", "a", "d"]


def test_a_circuit_that_is_open_is_never_dropped(circuits):
    for key in "abc":
        circuits.of(key)
    open_up(circuits.peek("a"))

    circuits.of("d")
    circuits.of("e")

    assert set(keys_of(circuits)) == {"a", "d", "e"}


@pytest.mark.parametrize("what", ["open", "half_open", "isolated", "held", "ramping"])
def test_where_none_may_go_a_new_key_shares_the_upstreams_own(clock, heard, what):
    policy = replace(SMALL, max_circuits=1, ramp_for=10.0)
    circuits = circuits_of(clock, heard, policy)
    first = circuits.of("a")
    if what == "isolated":
        first.isolate()
    elif what == "held":
        first.hold(110.0)
    else:
        open_up(first)
    if what in {"half_open", "ramping"}:
        clock.wait(5.001)
        probe = first.admit()
        probe.succeeded() if what == "ramping" else probe.ignored()

    assert circuits.of("b") is circuits.shared
    assert circuits.peek("b") is None
    assert circuits.of("a") is first


def test_one_that_closes_makes_room_at_once(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, open_for=0.5))
    for key in "abc":
        open_up(circuits.of(key))
    assert circuits.of("d") is circuits.shared

    clock.wait(0.501)
    circuits.of("b").admit().succeeded()

    assert circuits.of("d") is not circuits.shared
    assert circuits.peek("b") is None


def test_what_ends_by_time_is_seen_within_a_second(clock, circuits):
    for key in "abc":
        circuits.of(key).hold(100.5)
    assert circuits.of("d") is circuits.shared

    clock.wait(LOOK_AGAIN_AFTER)

    assert circuits.of("d") is not circuits.shared


def test_where_none_may_go_they_are_not_looked_at_for_each_new_key(clock, heard, monkeypatch):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=1000))
    for key in range(1000):
        open_up(circuits.of(key))
    circuits.of("new")
    looks = counting_looks(monkeypatch)

    for key in range(1000, 3000):
        assert circuits.of(key) is circuits.shared
    in_no_time = len(looks)
    for key in range(3000, 5000):
        clock.wait(1 / 2000)
        circuits.of(key)

    assert in_no_time == 0
    assert 900 <= len(looks) <= 1000 + LOOKS  # each about once in a second


def test_one_that_may_go_is_found_among_many_that_may_not_without_looking_at_all(clock, heard, monkeypatch):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=1000))
    for key in range(1000):
        breaker = circuits.of(key)
        if key:
            open_up(breaker)
    looks = counting_looks(monkeypatch)

    for key in range(1000, 3000):
        assert circuits.of(key) is not circuits.shared

    assert len(looks) <= 2000 + 1000


def counting_looks(monkeypatch):
    looks, look = [], CircuitBreaker.would_be_missed

    def counted(breaker, now):
        looks.append(breaker)
        return look(breaker, now)

    monkeypatch.setattr(CircuitBreaker, "would_be_missed", counted)
    return looks


# -- who may go


TIMED = BreakerPolicy(window_for=10, min_calls=5, open_for=5.0, probes=1, max_circuits=3, open_cap=60.0)


def test_those_with_failures_are_kept_before_those_without(clock, heard):
    circuits = circuits_of(clock, heard, TIMED)
    for key in "abc":
        circuits.of(key).admit().succeeded()
    circuits.of("a").admit().failed()
    circuits.of("b")
    circuits.of("c")

    circuits.of("d")

    assert set(keys_of(circuits)) == {"a", "c", "d"}


def test_where_all_have_failures_a_new_key_shares_the_upstreams_own_until_they_are_too_old_to_count(clock, heard):
    circuits = circuits_of(clock, heard, TIMED)
    for key in "abc":
        circuits.of(key).admit().failed()
    shared = circuits.of("d")
    clock.wait(9.0)
    still_shared = circuits.of("d")

    clock.wait(1.0)

    assert shared is still_shared is circuits.shared
    assert circuits.of("d") is not circuits.shared


def test_slow_calls_are_evidence_as_well(clock, heard):
    circuits = circuits_of(clock, heard, replace(TIMED, max_circuits=1, slow_after=1.0))

    circuits.of("a").admit().succeeded(2.0)

    assert circuits.of("b") is circuits.shared


def test_more_keys_than_there_is_room_for_do_not_hide_an_outage(clock, heard):
    circuits = circuits_of(clock, heard, replace(TIMED, max_circuits=10))
    sent = 0
    for _ in range(100):
        for key in range(11):
            breaker = circuits.of(key)
            try:
                breaker.admit().failed()
            except CircuitOpen:
                continue
            sent += 1

    assert sent == 11 * 5
    assert circuits.shared.snapshot().state == "open"


def test_one_that_calls_hold_is_kept(clock, circuits):
    for key in "abc":
        circuits.of(key)
    circuits.peek("a").in_use += 1

    circuits.of("d")
    circuits.of("e")
    kept = set(keys_of(circuits))
    circuits.peek("a").in_use -= 1
    circuits.of("f")
    circuits.of("g")
    circuits.of("h")
    clock.wait(LOOK_AGAIN_AFTER)
    for key in "de":
        circuits.of(key).in_use += 1

    assert kept == {"a", "d", "e"}
    assert set(keys_of(circuits)) == {"a", "d", "e"}
    assert circuits.of("i") is not circuits.shared
    assert circuits.peek("a") is None


def test_where_calls_hold_them_all_a_new_key_shares_the_upstreams_own(circuits):
    for key in "abc":
        circuits.of(key).in_use += 1

    assert circuits.of("d") is circuits.shared


@pytest.mark.parametrize("what", ["open", "half_open", "failures that never age"])
def test_what_refuses_nobody_and_nobody_came_for_in_long_goes_when_nothing_better_may(clock, heard, caplog, what):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=2, open_cap=60.0))
    for key in "ab":
        breaker = circuits.of(key)
        if what == "failures that never age":
            breaker.admit().failed()
            continue
        open_up(breaker)
        if what == "half_open":
            clock.wait(5.001)
            breaker.admit().ignored()
    assert circuits.of("c") is circuits.shared
    needed_for = {"open": 65.0, "half_open": 70.001, "failures that never age": 60.0}[what]

    clock.wait(needed_for)
    at_the_edge = circuits.of("c") if what != "half_open" else circuits.shared
    clock.wait(LOOK_AGAIN_AFTER)
    own = circuits.of("c")
    own.admit().failed()
    circuits.of("d")

    assert at_the_edge is circuits.shared
    assert own is not circuits.shared
    assert set(keys_of(circuits)) == {"c", "d"}
    assert sum("nobody came for" in message for message in caplog.messages) == 1


def test_of_two_the_one_that_nobody_would_miss_goes_before_the_stale_one(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=2))
    open_up(circuits.of("a"))
    clock.wait(10_000.0)
    circuits.of("b")

    circuits.of("c")

    assert keys_of(circuits) == ["a", "c"]


@pytest.mark.parametrize("what", ["open", "isolated", "held", "half-open and held", "a probe is out", "for ever"])
def test_what_still_refuses_or_has_a_probe_out_never_goes_however_long_nobody_came(clock, heard, what):
    policy = replace(SMALL, max_circuits=1, open_for=10_000.0 if what == "open" else 5.0)
    policy = replace(policy, open_cap=float("inf") if what == "for ever" else max(60.0, policy.open_for))
    circuits = circuits_of(clock, heard, policy)
    breaker, probe = circuits.of("a"), None
    if what == "isolated":
        breaker.isolate()
    elif what == "held":
        breaker.hold(clock.now + 10_000.0)
    else:
        open_up(breaker)
    if what in {"a probe is out", "half-open and held"}:
        clock.wait(5.001)
        probe = breaker.admit()
    if what == "half-open and held":
        probe.ignored()
        breaker.hold(clock.now + 10_000.0)
    circuits.of("b")

    clock.wait(9_000.0)

    assert circuits.of("b") is circuits.shared
    assert circuits.peek("a") is breaker
    del probe


def test_one_that_a_dashboard_looks_at_goes_all_the_same(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=1, auto_half_open=True))
    open_up(circuits.of("a"))

    for _ in range(100):
        clock.wait(1.0)
        circuits.snapshots()
        circuits.of("b")

    assert keys_of(circuits) == ["b"]


def test_one_that_goes_round_by_itself_goes_when_it_refuses_nobody(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=1, auto_half_open=True, max_half_open=10.0))
    open_up(circuits.of("a"))
    circuits.of("b")

    clock.wait(92.0)
    while_open = circuits.snapshots()["a"].state, circuits.of("b")
    clock.wait(5.0)
    while_half_open = circuits.snapshots()["a"].state, circuits.of("b")

    assert while_open == ("open", circuits.shared)
    assert while_half_open == ("half_open", circuits.peek("b"))


# -- by hand


def test_an_operators_circuit_is_the_keys_own_whatever_the_room(circuits):
    for key in "abc":
        open_up(circuits.of(key))

    own = circuits.own("evil")
    own.isolate()

    assert own is circuits.own("evil") is circuits.of("evil")
    assert circuits.shared.snapshot().state == "closed"
    assert len(circuits) == 4
    assert circuits.of("good") is circuits.shared


def test_operators_make_no_more_than_a_few_over_the_limit(circuits):
    for number in range(3 + BY_HAND):
        circuits.own(number).isolate()

    with pytest.raises(
        ConfigError, match=r"ratings breaker.max_circuits: there are 103 .* 'evil' .*; restore\(\) some"
    ):
        circuits.own("evil")
    circuits.own(7)
    circuits.peek(0).restore()
    circuits.own("evil").isolate()

    assert len(circuits) == 3 + BY_HAND
    assert circuits.shared.snapshot().state == "closed"


def test_what_was_made_by_hand_over_the_limit_goes_when_it_may(circuits):
    for key in range(10):
        circuits.own(key).isolate()
    for key in range(10):
        circuits.peek(key).restore()

    circuits.of("new")

    assert len(circuits) == 3


def test_one_that_was_restored_while_all_are_isolated_is_not_dropped(circuits):
    circuits.isolate()
    restored = circuits.own("acme")
    restored.restore()

    for key in range(10):
        circuits.of(key)

    assert circuits.of("acme") is restored
    assert circuits.isolated
    assert restored.snapshot().state == "closed"
    circuits.restore()
    for key in range(10):
        circuits.of(key)
    assert circuits.peek("acme") is None
    assert not circuits.isolated


# -- an operation's own


def test_an_operations_circuit_is_no_users_of_that_name_and_both_are_shown(circuits, heard):
    operation = OfOperation("search")
    users = circuits.of("search")

    open_up(circuits.of(operation))

    assert circuits.of(operation) is not users
    assert users.snapshot().state == "closed"
    assert {key: seen.state for key, seen in circuits.snapshots().items()} == {
        "search": "open",
        (str, "search"): "closed",
    }
    assert heard == [("search", "closed", "open", 100.0)]


def test_it_says_once_that_it_is_full_and_once_that_none_may_go(circuits, caplog):
    with caplog.at_level(logging.WARNING, logger="gateway"):
        for key in "abc":
            circuits.of(key)
        before = list(caplog.messages)
        for key in "defghi":
            circuits.of(key)
        for key in "ghi":
            open_up(circuits.of(key))
        for key in "xyz":
            circuits.of(key)

    assert before == []
    assert caplog.messages == [
        "ratings: 3 circuits have a key, breaker.max_circuits; the least recently used closed ones go",
        "ratings: 3 circuits have a key, and none may go; new keys share the upstream's own circuit",
    ]
    assert {record.name for record in caplog.records} == {"gateway"}


def test_a_circuit_that_was_dropped_is_heard_no_more(circuits, heard):
    dropped = circuits.of("a")
    permits = [dropped.admit() for _ in range(2)]
    for key in "bcda":
        circuits.of(key)

    for permit in permits:
        permit.failed()

    assert dropped.snapshot().state == "open"
    assert heard == []
    assert circuits.of("a").snapshot().state == "closed"


def test_a_circuit_that_was_dropped_and_is_not_back_is_heard_no_more(circuits, heard):
    dropped = circuits.of("a")
    for key in "bcd":
        circuits.of(key)

    open_up(dropped)

    assert heard == []


def test_a_circuit_that_was_dropped_is_freed_at_once(circuits):
    for key in "abc":
        circuits.of(key)
    gc.collect()
    gc.disable()  # a circle of objects would stay

    before = sum(type(one) is Closed for one in gc.get_objects())
    for key in range(100):
        circuits.of(key)
    after = sum(type(one) is Closed for one in gc.get_objects())
    gc.enable()

    assert after == before


def test_memory_is_bounded_and_the_recent_ones_are_kept(clock, heard):
    circuits = circuits_of(clock, heard, replace(SMALL, max_circuits=20))
    random = Random(1)

    for _ in range(5000):
        key = random.randrange(200)
        breaker = circuits.of(key)
        assert circuits.peek(key) is breaker or breaker is circuits.shared
        if random.random() < 0.01 and breaker.snapshot().state == "closed" and breaker is not circuits.shared:
            open_up(breaker)
        if random.random() < 0.05:
            clock.wait(3.0)
        assert len(circuits) <= 20


# -- all of them together


def test_a_policy_is_for_all_of_them(circuits):
    circuits.of("a").admit().failed()

    circuits.policy = replace(SMALL, open_for=9.0)

    assert circuits.policy.open_for == 9.0
    circuits.of("a").admit().failed()
    assert circuits.of("a").snapshot().open_until == 109.0
    assert circuits.of("b").policy.open_for == 9.0


def test_a_lower_limit_drops_the_least_recently_used_that_may_go(circuits):
    for key in "abc":
        circuits.of(key)
    open_up(circuits.peek("a"))

    circuits.policy = replace(SMALL, max_circuits=1)

    assert keys_of(circuits) == ["a"]


def test_a_lower_limit_keeps_those_that_may_not_go(circuits):
    for key in "abc":
        open_up(circuits.of(key))

    circuits.policy = replace(SMALL, max_circuits=1)

    assert len(circuits) == 3


def test_a_lower_limit_looks_again_at_what_may_go(clock, circuits):
    for key in "abc":
        circuits.of(key).hold(100.5)
    circuits.of("d")
    clock.wait(0.6)

    circuits.policy = replace(SMALL, max_circuits=1)

    assert keys_of(circuits) == ["c"]


def test_a_higher_limit_makes_room_at_once(circuits):
    for key in "abc":
        open_up(circuits.of(key))
    circuits.of("d")

    circuits.policy = replace(SMALL, max_circuits=4)

    assert circuits.of("d") is not circuits.shared


def test_isolating_is_for_all_and_for_those_that_are_yet_to_be_made(circuits, heard):
    circuits.of("a")

    circuits.isolate()
    born = circuits.of("b")

    assert [seen.state for seen in circuits.snapshots().values()] == ["isolated", "isolated"]
    assert heard == [("a", "closed", "isolated", 100.0)]
    with pytest.raises(CircuitOpen):
        born.admit()


def test_restoring_is_for_all(circuits):
    circuits.of("a").admit().failed()
    circuits.isolate()

    circuits.restore()

    assert circuits.of("a").snapshot().state == "closed"
    assert circuits.of("b").snapshot().state == "closed"


def test_a_restart_is_for_all_and_what_is_isolated_stays_so(circuits):
    open_up(circuits.of("a"))
    circuits.of("b").isolate()
    other = Clock(7.0)

    circuits.restart(other)

    assert [seen.state for seen in circuits.snapshots().values()] == ["closed", "isolated"]
    open_up(circuits.of("c"))
    assert circuits.of("c").snapshot().open_until == 12.0


def test_a_restart_looks_again_at_what_may_go(clock, circuits):
    for key in "abc":
        open_up(circuits.of(key))
    circuits.of("d")

    circuits.restart(Clock(7.0))

    assert circuits.of("d") is not circuits.shared


# -- a circuit as one caller sees it


def test_who_asks_as_a_caller_is_that_caller(clock):
    breaker = CircuitBreaker(replace(SMALL, min_callers=2, window_calls=20, slow_after=2.0), clock=clock)
    ada, bob = Asked(breaker, "ada"), Asked(breaker, "bob")

    for asked in [ada] * 10 + [bob]:
        assert not asked.refuses(clock.now)
        asked.leave(asked.enter(clock.now), clock.now, True, False)
    before = breaker.snapshot().state
    bob.leave(bob.enter(clock.now), clock.now, True, False)

    assert before == "closed"
    assert breaker.snapshot().state == "open"
    assert ada.slow_beyond == breaker.slow_beyond
    assert ada.refusal().retry_after == 5.0


def test_a_caller_has_one_probe_and_gets_it_back_after_a_refusal(clock):
    breaker = CircuitBreaker(replace(SMALL, min_callers=2), clock=clock)
    for caller in "aabb":
        breaker.admit(caller).failed()
    clock.wait(5.001)
    ada = Asked(breaker, "ada")
    state = ada.enter(clock.now)

    refused = ada.refuses(clock.now)
    ada.leave_refused(state, clock.now)

    assert (refused, ada.refuses(clock.now)) == (True, False)
    assert breaker.state.seen_alive


def test_a_caller_who_wishes_for_a_hold_is_one(clock):
    breaker = CircuitBreaker(replace(SMALL, min_callers=2), clock=clock)

    Asked(breaker, "ada").hold(110.0)
    Asked(breaker, "ada").hold(111.0)
    before = breaker.snapshot().held_until
    Asked(breaker, "bob").hold(112.0)

    assert (before, breaker.snapshot().held_until) == (None, 111.0)


def test_who_is_unknown_is_let_in_and_what_he_says_does_not_count(clock):
    breaker = CircuitBreaker(replace(SMALL, min_callers=2, window_calls=20), clock=clock)
    unknown = Asked(breaker, None, counts=False)

    for _ in range(10):
        unknown.leave(unknown.enter(clock.now), clock.now, True, False)
    unknown.hold(110.0)
    breaker.hold(110.0, "ada")

    assert (breaker.snapshot().calls, breaker.snapshot().held_until) == (0, None)
