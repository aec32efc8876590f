"""Policies as JSON, and merge patches on them."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_fixed, wait_random_exponential

from gateway import BulkheadPolicy, ConfigError, ConfigErrors, Policy, RetryPolicy, TimeoutPolicy
from gateway.config.patch import FROM_CODE, Knobs, as_json, joined, knobs_of, laid_over, nested, patched

SLOW = Policy(timeout=TimeoutPolicy(call=4.0, attempt=1.5), bulkhead=BulkheadPolicy(limit=7))


def errors_of(act: Callable[[], object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        act()
    error = caught.value
    return [one.field for one in (error.errors if isinstance(error, ConfigErrors) else (error,))]


def test_every_knob_stands_in_the_json_of_a_policy() -> None:
    told = as_json(SLOW)

    assert told["timeout"]["call"] == 4.0
    assert told["bulkhead"]["limit"] == 7
    assert told["breaker"]["slow_after"] == "none"
    assert told["retry"]["wait"] == {"jitter": 0.1, "max": 2.0}
    assert as_json(SLOW.tuned_fields({"timeout.call": inf}))["timeout"]["call"] == "inf"
    assert as_json(SLOW.tuned_fields({"retry.budget": None}))["retry"]["budget"] == "none"


def test_a_policy_patched_with_its_own_json_is_the_same() -> None:
    for policy in (Policy(), SLOW, SLOW.tuned_fields({"retry.budget": None, "breaker.window_calls": 50})):
        assert patched(policy, as_json(policy)).policy == policy


def test_a_patch_changes_what_it_names() -> None:
    after = patched(SLOW, {"bulkhead": {"limit": 40}, "timeout": {"attempt": "300ms"}})

    assert after.policy == SLOW.tuned_fields({"bulkhead.limit": 40, "timeout.attempt": 0.3})
    assert after.sets == {"bulkhead.limit": 40, "timeout.attempt": 0.3}


def test_a_null_is_as_by_default_and_goes_on_following() -> None:
    after = patched(SLOW, {"timeout": {"attempt": None}}).policy

    assert after.timeout.attempt == 4.0
    assert after.tuned_fields({"timeout.call": 2.0}).timeout.attempt == 2.0
    assert patched(SLOW, {"bulkhead": None}).policy == Policy(timeout=SLOW.timeout)
    assert patched(SLOW, {"bulkhead": None}).sets == {
        "bulkhead.limit": None,
        "bulkhead.queue": None,
        "bulkhead.max_wait": None,
    }


def test_all_that_is_wrong_is_told_at_once() -> None:
    patch = {"bulkhead": {"limit": 0, "quue": 1}, "timeout": {"call": 1, "attempt": 5}, "breaker": 3, "x": None}

    assert sorted(errors_of(lambda: patched(SLOW, patch))) == [
        "breaker",
        "bulkhead.limit",
        "bulkhead.quue",
        "timeout.attempt",
        "x",
    ]


def test_what_contradicts_the_policy_itself_is_told() -> None:
    assert errors_of(lambda: patched(SLOW, {"timeout": {"attempt": 5}})) == ["timeout.attempt"]
    assert errors_of(lambda: patched(SLOW, {"timeout": {"call": 1}})) == ["timeout.attempt"]


@pytest.mark.parametrize("patch", [None, [], 3, "x", True])
def test_a_patch_is_an_object(patch: object) -> None:
    assert errors_of(lambda: patched(SLOW, patch)) == ["policy"]


def test_a_patch_that_is_nested_without_end_is_an_error() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"wait": deep}

    assert errors_of(lambda: patched(SLOW, {"retry": {"wait": deep}}))


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "3s")

    assert errors_of(lambda: patched(SLOW, {"timeout": {"call": "${SECRET}"}})) == ["timeout.call"]


def test_a_wait_is_merged_where_it_is_the_same_and_replaced_where_it_is_another() -> None:
    def wait(patch: Any, policy: Policy = SLOW) -> Any:
        return as_json(patched(policy, {"retry": {"wait": patch}}).policy)["retry"]["wait"]

    assert wait({"max": 5}) == {"jitter": 0.1, "max": 5.0}
    assert wait({"jitter": "1s"}) == {"jitter": 1.0, "max": 2.0}
    assert "max" not in wait({"max": None})
    assert wait({"fixed": 1}) == {"fixed": 1.0}
    assert wait({"random": [1, "2s"]}) == {"random": [1.0, 2.0]}
    assert wait(None, SLOW.tuned_fields({"retry.wait": wait_fixed(3)})) == {"jitter": 0.1, "max": 2.0}
    assert errors_of(lambda: wait({"fixed": 1, "jitter": 1})) == ["retry.wait"]


def test_a_wait_of_code_has_no_json_and_stays_where_nobody_changes_it() -> None:
    own = Policy(retry=RetryPolicy(wait=lambda _: 1.0))

    assert as_json(own)["retry"]["wait"] == FROM_CODE
    assert patched(own, {"bulkhead": {"limit": 3}}).policy.retry.wait is own.retry.wait
    assert errors_of(lambda: patched(own, {"retry": {"wait": FROM_CODE}})) == ["retry.wait"]
    assert as_json(patched(own, {"retry": {"wait": {"fixed": 1}}}).policy)["retry"]["wait"] == {"fixed": 1.0}


def test_an_empty_table_changes_nothing_and_gives_a_budget_where_there_is_none() -> None:
    rich = SLOW.tuned_fields({"retry.budget.ratio": 0.7})

    assert patched(rich, {"retry": {"budget": {}}, "timeout": {}}).policy == rich
    assert patched(rich, {}).sets == {}
    assert patched(rich.tuned_fields({"retry.budget": None}), {"retry": {"budget": {}}}).policy == SLOW


def test_the_same_wait_is_the_same_object() -> None:
    """So that a policy that is patched twice with the same is equal to itself."""
    patch = {"retry": {"wait": {"jitter": 0.3, "max": 2}}}

    assert patched(SLOW, patch).policy == patched(patched(SLOW, patch).policy, patch).policy
    assert isinstance(patched(SLOW, patch).policy.retry.wait, wait_random_exponential)


LEAVES: dict[str, list[Any]] = {
    "bulkhead.limit": [1, 40, "inf", None],
    "bulkhead.queue": [0, 5, None],
    "retry.attempts": [2, 5, None],
    "retry.budget.ratio": [0.1, None],
    "retry.budget.burst": [3, "inf", None],
    "retry.wait": [{"fixed": 1.0}, {"random": [1.0, 2.0]}, None],
    "timeout.call": [30, "inf", None],
    "breaker.slow_after": [0.5, "none", None],
    "fallback_timeout": [0.2, None],
}
SETS: st.SearchStrategy[Knobs] = st.one_of(
    st.fixed_dictionaries({}, optional={knob: st.sampled_from(values) for knob, values in LEAVES.items()}),
    st.sampled_from([{"retry.budget": "none"}, {"retry.budget.ratio": None, "retry.budget.minimum": None}]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SETS, max_size=5), st.sampled_from([Policy(), SLOW.tuned_fields({"retry.budget.ratio": 0.9})]))
def test_patches_one_after_the_other_are_the_same_as_what_they_set_together(patches: list[Knobs], base: Policy) -> None:
    policy, together = base, dict[str, Any]()
    for patch in patches:
        after = patched(policy, nested(patch))
        policy, together = after.policy, joined(together, after.sets)

    assert knobs_of(laid_over(base, together)) == knobs_of(policy)
    assert laid_over(base, together) == policy
