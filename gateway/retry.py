"""How long to wait before the next try, or no next try.

The waits are tenacity's: any of its strategies is a `RetryPolicy(wait=...)`. The loop is the engine's own, so that a
first try that succeeds never enters tenacity.
"""

from __future__ import annotations

import logging
from math import isfinite
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tenacity import RetryCallState, wait_exponential, wait_random_exponential

from gateway.context import HALF_MICROSECOND
from gateway.outcome import Outcome, retry_after_of

if TYPE_CHECKING:
    from gateway.policy import RetryPolicy


log = logging.getLogger("gateway")


class Retry:
    """Whether to try again. Usable alone; `random` seeds the jitter of the default wait (full jitter)."""

    __slots__ = ("_random", "policy")

    def __init__(self, policy: RetryPolicy, *, random: Random | None = None) -> None:
        self.policy = policy
        self._random = random or Random()  # noqa: S311 - jitter keeps no secrets

    def pause(self, attempts: int, error: BaseException, outcome: Outcome, remaining: float) -> float | None:
        """Seconds to wait before the next try; None: no further try.

        `attempts` counts the tries so far; `remaining` is the time until no answer is wanted. An error's own
        `retry_after` is honoured where it is longer than the wait and fits, and forbids the retry where it does not.
        """
        policy = self.policy
        if outcome is not Outcome.FAILED or attempts >= policy.attempts:
            return None
        try:
            pause = max(self._wait(attempts, error), 0.0)
        except Exception:
            log.exception("RetryPolicy.wait raised: no retry")
            return None
        retry_after = retry_after_of(error)
        if retry_after is not None:
            if retry_after > policy.max_retry_after:
                return None
            pause = max(pause, retry_after)
        fits = isfinite(pause) and pause + policy.min_try <= remaining + HALF_MICROSECOND  # inf: never
        return pause if fits else None

    def _wait(self, attempts: int, error: BaseException) -> float:
        wait = self.policy.wait
        state = RetryCallState(SimpleNamespace(), None, (), {})  # type: ignore[arg-type]  # waits do not ask for it
        state.attempt_number = attempts
        state.set_exception((type(error), error, error.__traceback__))
        if type(wait) is wait_random_exponential:  # tenacity draws from the global random; ours can be seeded
            return self._random.uniform(wait.min, wait_exponential.__call__(wait, state))
        return float(wait(state))
