"""How long to wait before the next try, or no next try; and how many retries all calls may make together.

The waits are tenacity's: any of its strategies is a `RetryPolicy(wait=...)`. The loop is the engine's own, so that a
first try that succeeds never enters tenacity.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import isfinite
from random import Random, uniform
from time import monotonic
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from tenacity import Future, RetryCallState, wait_exponential, wait_random_exponential

from gateway.context import HALF_MICROSECOND, Clock
from gateway.outcome import Outcome, reason_of, retry_after_of

if TYPE_CHECKING:
    from gateway.policy import BudgetPolicy, RetryPolicy, Wait

log = logging.getLogger("gateway")

NO_RETRYING: Any = SimpleNamespace()
"""In the place of tenacity's own loop: waits do not ask for it."""


class Tried(RetryCallState):
    """What a wait strategy is told of a try that failed.

    Its `outcome` is made when somebody asks for it: few do, and to make it costs more than all else of a retry.
    """

    _outcome: Future | None

    def __init__(self, attempts: int, error: BaseException) -> None:
        super().__init__(NO_RETRYING, None, (), {})
        self.attempt_number = attempts
        self.outcome_timestamp = self.start_time
        self._error = error

    @property
    def outcome(self) -> Future | None:
        """The error, as tenacity has it."""
        if self._outcome is None:
            self._outcome = Future(self.attempt_number)
            self._outcome.set_exception(self._error)
        return self._outcome

    @outcome.setter
    def outcome(self, outcome: Future | None) -> None:
        self._outcome = outcome


class Retry:
    """Whether to try again. Usable alone; `random` seeds the jitter of the default wait (full jitter)."""

    __slots__ = ("_uniform", "policy")

    def __init__(self, policy: RetryPolicy, *, random: Random | None = None) -> None:
        self.policy = policy
        # Python's own, where none is given: one for each upstream would be a fifth of what an upstream takes of memory.
        self._uniform = uniform if random is None else random.uniform

    def pause(
        self, attempts: int, error: BaseException, outcome: Outcome, remaining: float, *, at_once: bool = False
    ) -> float | None:
        """Seconds to wait before the next try; None: no further try.

        `attempts` counts the tries so far; `remaining` is the time until no answer is wanted. An error's own
        `retry_after` is honoured where it is longer than the wait and fits, and forbids the retry where it does not.
        `at_once`: the next try goes to another place than the one that failed, and need not wait for anything.
        """
        policy = self.policy
        if outcome is not Outcome.FAILED or attempts >= policy.attempts:
            return None
        if at_once:
            return 0.0 if policy.min_try <= remaining + HALF_MICROSECOND else None
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
        wait, state = self._wait_after(error), Tried(attempts, error)
        if type(wait) is wait_random_exponential:  # tenacity draws from the global random; ours can be seeded
            return self._uniform(wait.min, wait_exponential.__call__(wait, state))
        return float(wait(state))

    def _wait_after(self, error: BaseException) -> Wait:
        """The strategy for this kind of error."""
        reason, policy = reason_of(error), self.policy
        own: Wait | None = None if reason is None else getattr(policy, f"wait_{reason}")
        return policy.wait if own is None else own


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSnapshot:
    """An account of retries as it is now. `suppressed`: retries left out because it was empty, since start."""

    left: float
    suppressed: int


class RetryBudget:
    """One account of retries for all calls of an upstream. Usable alone.

        budget.deposit()            # for each call, when its first try is sent
        if budget.withdraw():       # when a retry is scheduled, not when it is sent: those in their pause count
            ...

    In any stretch of time, withdrawals <= ratio x deposits + minimum x seconds + burst. An empty account leaves out the
    retry and nothing else. Bugs of peers that this shape rules out: retries in backoff that are not counted
    (envoyproxy/envoy#30205), a call that pays in twice (twitter/finagle#956), a full account that ends the call itself
    (failsafe-go#139).
    """

    __slots__ = ("_at", "_left", "_policy", "clock", "suppressed")

    def __init__(self, policy: BudgetPolicy, *, clock: Clock = monotonic) -> None:
        self._policy = policy
        self.clock = clock
        self._at = clock()
        self._left = float(policy.burst)
        self.suppressed = 0

    @property
    def policy(self) -> BudgetPolicy:
        """The numbers it goes by. Assign others: what is in the account stays, up to the new burst."""
        return self._policy

    @policy.setter
    def policy(self, policy: BudgetPolicy) -> None:
        self.deposit(0)
        self._policy = policy
        self._left = min(self._left, policy.burst)

    def deposit(self, calls: int = 1) -> None:
        """Pay in for this many calls, and for the time since it was last looked at."""
        now = self.clock()
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)  # a clock that goes back, and on again, pays for no second twice
        gained = (self._policy.ratio * calls if calls else 0.0) + (self._policy.minimum * passed if passed else 0.0)
        self._left = min(self._policy.burst, self._left + gained)

    def withdraw(self) -> bool:
        """Pay for a retry, if it can be paid."""
        self.deposit(0)
        if self._left < 1 - ROUNDING:
            self.suppressed += 1
            return False
        self._left -= 1
        return True

    def restart(self, clock: Clock) -> None:
        """Go on by another clock."""
        self.clock = clock
        self._at = clock()

    def snapshot(self) -> BudgetSnapshot:
        """The account as it is now."""
        self.deposit(0)
        return BudgetSnapshot(left=self._left, suppressed=self.suppressed)


ROUNDING = 1e-9
"""Five times a fifth of a retry is a whole one."""
