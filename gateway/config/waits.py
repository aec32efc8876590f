"""Wait strategies in words: `{ jitter = "100ms", max = "2s" }` is `wait_random_exponential(multiplier=0.1, max=2.0)`.

    { fixed = "1s" }                                        wait_fixed
    { random = ["100ms", "300ms"] }                         wait_random
    { exponential = "100ms", max = "10s", min, base }       wait_exponential
    { jitter = "100ms", max = "10s", min, base }            wait_random_exponential (full jitter)
    { incrementing = "100ms", step = "100ms", max }         wait_incrementing

The first key is the strategy and its first wait. The same words give the same object, so that a file that is read again
gives equal policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from math import isfinite
from typing import Any

from tenacity import (
    wait_exponential,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

from gateway.policy import RetryPolicy, Wait


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one of tenacity's strategies is written: the names in files, those of its arguments, of its attributes."""

    make: Callable[..., Wait]
    _: KW_ONLY
    arguments: dict[str, str]
    attributes: dict[str, str]
    needed: tuple[str, ...]


_GROWING = {"max": "max", "min": "min", "base": "exp_base"}
STRATEGIES: dict[str, Strategy] = {
    "fixed": Strategy(wait_fixed, arguments={"fixed": "wait"}, attributes={"fixed": "wait_fixed"}, needed=("fixed",)),
    "random": Strategy(
        wait_random,
        arguments={"low": "min", "high": "max"},
        attributes={"low": "wait_random_min", "high": "wait_random_max"},
        needed=("low", "high"),
    ),
    "exponential": Strategy(
        wait_exponential,
        arguments={"exponential": "multiplier", **_GROWING},
        attributes={"exponential": "multiplier", **_GROWING},
        needed=("exponential",),
    ),
    "jitter": Strategy(
        wait_random_exponential,
        arguments={"jitter": "multiplier", **_GROWING},
        attributes={"jitter": "multiplier", **_GROWING},
        needed=("jitter",),
    ),
    "incrementing": Strategy(
        wait_incrementing,
        arguments={"incrementing": "start", "step": "increment", "max": "max"},
        attributes={"incrementing": "start", "step": "increment", "max": "max"},
        needed=("incrementing", "step"),
    ),
}
"""By the key that stands first. `random` is written as a list of two, and is low and high in here."""
Words = Mapping[str, float]


def wait_of(strategy: str, words: Words) -> Wait:
    """The strategy that these words mean; the same one for the same numbers, said or not."""
    known = STRATEGIES[strategy]
    spelling = _spelling(known.make(**{known.arguments[word]: value for word, value in words.items()}))
    assert spelling is not None  # noqa: S101 - it has just been made of one
    return next((usual for usual in _USUAL if _spelling(usual) == spelling), None) or _kept(*spelling)


@lru_cache(maxsize=256)
def _kept(strategy: str, attributes: tuple[tuple[str, float], ...]) -> Wait:
    known = STRATEGIES[strategy]
    return known.make(**{known.arguments[word]: value for word, value in attributes})


def words_for(wait: Wait) -> tuple[str, dict[str, float]] | None:
    """A strategy in words, without those that are tenacity's own defaults; None where there are no words for it."""
    spelling = _spelling(wait)
    if spelling is None:
        return None
    strategy, attributes = spelling
    known = STRATEGIES[strategy]
    least = known.make(**{known.arguments[word]: 1.0 for word in known.needed})
    words = {
        word: value
        for word, value in attributes
        if word in known.needed or value != getattr(least, known.attributes[word])
    }
    fits = all(value >= 0 and (isfinite(value) or word == "max") for word, value in words.items())
    return (strategy, words) if fits and words.get("base", 1.0) > 0 else None


def same(one: object, other: object) -> bool:
    """Whether two knobs have the same value; strategies are the same if they are of one kind, with the same numbers."""
    if one is other or one == other:
        return True
    spelling = _spelling(one)
    return spelling is not None and spelling == _spelling(other)


def _spelling(wait: object) -> tuple[str, tuple[tuple[str, float], ...]] | None:
    """The kind of a strategy, and all its numbers."""
    if type(wait) is wait_none:
        return "fixed", (("fixed", 0.0),)
    for name, known in STRATEGIES.items():
        if type(wait) is known.make:
            values: list[Any] = [getattr(wait, attribute) for attribute in known.attributes.values()]
            if all(type(value) in {int, float} for value in values):
                return name, tuple(zip(known.attributes, values, strict=True))
    return None


_USUAL = [wait for wait in (RetryPolicy().wait, RetryPolicy().wait_throttled) if wait is not None]
"""The defaults are themselves, so that a policy that says them is equal to one that says nothing."""
