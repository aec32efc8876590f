"""A policy as JSON, and changes to it as JSON merge patches (RFC 7396), read by the rules of the policy file.

    patched(policy, {"bulkhead": {"limit": 40}, "timeout": {"attempt": "300ms", "read": None}})

A null is a knob as by default. A wait strategy is merged where the patch names the same one, or none, else replaced.
What a patch sets can be kept as a flat table of knobs, laid over another policy, and joined with what a later one sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isinf
from typing import Any, cast

from gateway.config.document import shown
from gateway.config.knobs import knobs, settings
from gateway.config.policies import Found, Reading
from gateway.config.waits import STRATEGIES, words_for
from gateway.outcome import ConfigError, ConfigErrors
from gateway.policy import Policy, Wait, given

Knobs = dict[str, Any]
"""Values of knobs as JSON, by their paths; None: as by default."""
BUDGET = "retry.budget"
FROM_CODE = "(set in code)"
"""What stands for a value that has no spelling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """A policy after a patch, and the knobs that the patch names."""

    policy: Policy
    sets: Knobs


def patched(policy: Policy, patch: object) -> Patched:
    """The policy with a merge patch applied. Raises all that is wrong with it; fields are paths of knobs."""
    if not isinstance(patch, Mapping):
        raise ConfigError("policy", f"{shown(patch)} is no object", 'give {"bulkhead": {"limit": 40}}')
    found: list[Found] = []
    reading = Reading((), None, found, base=policy)
    try:
        reading.read(_merged(policy, patch))
        after = reading.policy()
    except RecursionError:
        raise ConfigError("policy", "it is nested too deeply", 'give {"bulkhead": {"limit": 40}}') from None
    if found:
        raise ConfigErrors.together(error for _, error in found)
    return Patched(policy=after, sets=_sets(reading))


def laid_over(policy: Policy, sets: Mapping[str, Any]) -> Policy:
    """The policy with knobs set. Raises as `patched`."""
    return patched(policy, nested(sets)).policy if sets else policy


def joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> Knobs:
    """What two patches set, one after the other, as one."""
    both = dict(before)
    for knob, value in after.items():
        if knob == BUDGET:
            both = {known: kept for known, kept in both.items() if not known.startswith(f"{BUDGET}.")}
        elif knob.startswith(f"{BUDGET}.") and both.pop(BUDGET, None) is not None:
            both.update(dict.fromkeys(parts_of_budget()))  # there was none: the rest of a new one is as by default
        both[knob] = value
    return both


def parts_of_budget() -> list[str]:
    """The knobs of a budget."""
    return [knob for knob in knobs() if knob.startswith(f"{BUDGET}.")]


def parts_of(knob: str) -> list[str]:
    """What is told apart of a knob: of a whole budget, which may be none, its knobs; of any other, itself."""
    return parts_of_budget() if knob == BUDGET else [knob]


def nested(sets: Mapping[str, Any]) -> dict[str, Any]:
    """A flat table of knobs as the tables of a file."""
    table: dict[str, Any] = {}
    for knob, value in sets.items():
        *where, key = knob.split(".")
        inner = table
        for part in where:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(knob, "it stands in what is no table", "take one of the two away")
        inner[key] = value
    return table


def as_json(policy: Policy) -> dict[str, Any]:
    """Every knob with its value, nested: what a merge patch is a patch of."""
    return nested(knobs_of(policy))


def knobs_of(policy: Policy) -> Knobs:
    """Every knob with its value, as JSON."""
    return {knob: json_of(value) for knob, value in settings(policy).items()}


def given_in(policy: Policy) -> frozenset[str]:
    """The knobs that somebody chose; the others follow."""
    return frozenset(knob for knob, value in settings(policy).items() if given(value))


def json_of(value: object) -> Any:
    """A value as policy files write it, in JSON."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return "inf" if isinf(value) else float(value)
    if isinstance(value, (bool, int, str)):
        return value
    words = words_for(cast("Wait", value))
    if words is None:
        return FROM_CODE
    strategy, numbers = words
    spelled = {word: json_of(number) for word, number in numbers.items()}
    return {"random": [spelled["low"], spelled["high"]]} if strategy == "random" else spelled


def _sets(reading: Reading) -> Knobs:
    sets: Knobs = {}
    for knob, value in reading.values.items():
        if knob == BUDGET and value is not None:
            sets |= dict.fromkeys(parts_of_budget())
        else:
            sets[knob] = None if knob in reading.reset else json_of(value)
    return sets


def _merged(policy: Policy, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch, with those wait strategies whole that it changes in part; without what changes nothing."""
    retry = patch.get("retry")
    if not isinstance(retry, Mapping):
        return dict(patch)
    whole = dict(retry)
    for key, part in retry.items():
        knob = knobs().get(f"retry.{key}")
        if knob is not None and knob.takes == "wait" and isinstance(part, Mapping):
            whole[key] = _wait(getattr(policy.retry, key), part)
        elif key == "budget" and part == {} and policy.retry.budget is not None:
            del whole[key]
    return {**patch, "retry": whole}


def _wait(before: Wait | None, patch: Mapping[str, Any]) -> dict[str, Any]:
    kept = {} if before is None else json_of(before)
    others = [word for word in patch if word in STRATEGIES and word not in kept]
    merged = {**({} if others or not isinstance(kept, dict) else kept), **patch}
    return {word: value for word, value in merged.items() if value is not None}
