"""Who called: whether a rate would also be reached without the few callers who count most.

One caller whose requests always fail (a poisoned message, a broken client, an attacker) must not close an upstream for
all. So a window here also knows whose calls it holds, and a rate counts only if it stands whichever few callers are
left out. Memory is bounded: where more callers come than are told apart, those with the fewest bad calls lose their
identity and no more than that, their calls stay in the totals.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from heapq import nlargest
from math import inf
from typing import Literal

from gateway.context import HALF_MICROSECOND
from gateway.window import ALMOST_ONE, CountWindow, TimeWindow

MOST_TOLD_APART = 256
"""Callers a window knows at once (and a time window in each of its seconds): four times the most ever left out."""
Bad = Literal["failures", "slow"]


class Tally:
    """The calls of one caller."""

    __slots__ = ("caller", "calls", "failures", "slow")

    def __init__(self, caller: Hashable) -> None:
        self.caller = caller
        self.calls = self.failures = self.slow = 0


def calls_of(tally: Tally) -> float:
    """How many calls a caller made."""
    return tally.calls


class Share(Tally):
    """Those of one second, and the `whole` that they are part of."""

    __slots__ = ("whole",)

    def __init__(self, whole: Tally) -> None:
        super().__init__(whole.caller)
        self.whole = whole


class CallerWindow:
    """A window that also knows whose calls it holds: what its two kinds have in common."""

    __slots__ = ("_culprits", "_wholes", "window")

    def __init__(self, window: TimeWindow | CountWindow) -> None:
        self.window = window
        self._wholes: dict[Hashable, Tally] = {}
        # Those without whom the rate was not reached when it was last looked at: while that is so, no need to search.
        self._culprits: dict[Bad, tuple[Tally, ...]] = {"failures": (), "slow": ()}

    @property
    def calls(self) -> int:
        """Calls of late."""
        return self.window.calls

    @property
    def failures(self) -> int:
        """Those of them that failed."""
        return self.window.failures

    @property
    def slow(self) -> int:
        """Those of them that were slow."""
        return self.window.slow

    @property
    def bad(self) -> bool:
        """Whether there is anything to decide about."""
        return self.window.bad

    @property
    def told_apart(self) -> int:
        """How many callers it knows."""
        return len(self._wholes)

    def stands(self, bad: Bad, rate: float, least: float, left_out: int) -> bool:
        """Whether `bad` calls are this share of at least so many, whichever callers (up to `left_out`) are left out.

        Only two choices can be the ones that matter: those with the most bad calls above the share they may have, and
        those with the most calls.
        """
        share = rate * ALMOST_ONE
        if len(culprits := self._culprits[bad]) <= left_out and not self._reached(bad, share, least, culprits):
            return False

        def excess(tally: Tally) -> float:
            number: int = getattr(tally, bad)
            return number - share * tally.calls

        wholes = self._wholes.values()
        for measure in (excess, calls_of):
            culprits = tuple(nlargest(left_out, wholes, measure))
            if not self._reached(bad, share, least, culprits):
                self._culprits[bad] = culprits
                return False
        return True

    def _reached(self, bad: Bad, share: float, least: float, without: Iterable[Tally]) -> bool:
        calls, number = self.window.calls, getattr(self.window, bad)
        for tally in without:
            calls -= tally.calls
            number -= getattr(tally, bad)
        return calls >= least and number >= share * calls

    def _whole(self, caller: Hashable) -> Tally:
        whole = self._wholes.get(caller)
        if whole is None:
            if len(self._wholes) >= MOST_TOLD_APART:
                self._lose_half()
            whole = self._wholes[caller] = Tally(caller)
        return whole

    def _lose_half(self) -> None:
        kept = nlargest(MOST_TOLD_APART // 2, self._wholes.values(), lambda t: (t.failures + t.slow, t.calls))
        self._wholes = {tally.caller: tally for tally in kept}
        self._culprits = {"failures": (), "slow": ()}  # a tally that is lost is not kept up to date

    def _drop_if_empty(self, whole: Tally) -> None:
        if not whole.calls and self._wholes.get(whole.caller) is whole:
            del self._wholes[whole.caller]


class CallerTimeWindow(CallerWindow):
    """The callers of the last `seconds` seconds."""

    __slots__ = ("_past", "_second", "_seconds", "_shares")

    window: TimeWindow

    def __init__(self, seconds: int, now: float) -> None:
        super().__init__(TimeWindow(seconds, now))
        self._seconds = seconds
        self._past: deque[tuple[int, dict[Hashable, Share]]] = deque()
        self._begin_second()

    def record(self, now: float, failed: bool, slow: bool, caller: Hashable = None) -> None:  # noqa: FBT001 - as Window says
        """One more call, that ended now."""
        self.window.record(now, failed, slow)
        if self.window.second != self._second:
            self._begin_second()
        share = self._shares.get(caller)
        if share is None:
            whole = self._whole(caller)  # first: it may make room
            share = self._shares[caller] = Share(whole)
        else:
            whole = share.whole
        share.calls += 1
        whole.calls += 1
        if failed or slow:
            share.failures += failed
            whole.failures += failed
            share.slow += slow
            whole.slow += slow

    def advance(self, now: float) -> None:
        """Forget the seconds that have left the window."""
        self.window.advance(now)
        if self.window.second != self._second:
            self._begin_second()

    def _begin_second(self) -> None:
        self._second = self.window.second
        while self._past and self._past[0][0] <= self._second - self._seconds:
            for share in self._past.popleft()[1].values():
                whole = share.whole
                whole.calls -= share.calls
                whole.failures -= share.failures
                whole.slow -= share.slow
                self._drop_if_empty(whole)
        self._shares: dict[Hashable, Share] = {}
        self._past.append((self._second, self._shares))

    def _lose_half(self) -> None:
        super()._lose_half()
        for caller in self._shares.keys() - self._wholes.keys():  # else every caller of this second would stay
            del self._shares[caller]


class CallerCountWindow(CallerWindow):
    """The callers of the last `size` calls."""

    __slots__ = ("_whose",)

    window: CountWindow

    def __init__(self, size: int) -> None:
        super().__init__(CountWindow(size))
        self._whose: deque[Tally] = deque()

    def record(self, now: float, failed: bool, slow: bool, caller: Hashable = None) -> None:  # noqa: FBT001 - as Window says
        """One more call, that ended now."""
        window, verdict = self.window, self.window.oldest
        if len(self._whose) == window.size:
            old = self._whose.popleft()
            old.calls -= 1
            old.failures -= verdict & 1
            old.slow -= verdict >> 1
            self._drop_if_empty(old)
        window.record(now, failed, slow)
        whole = self._whole(caller)
        whole.calls += 1
        whole.failures += failed
        whole.slow += slow
        self._whose.append(whole)

    def advance(self, now: float) -> None:
        """Calls do not age here."""


class Wishes:
    """Until when callers wish for something, and until when as many as it takes agree. Holds no more than it takes."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[Hashable, float] = {}

    def add(self, caller: Hashable, until: float, now: float, wanted: int) -> float:
        """One more wish. Gives the latest instant up to which `wanted` different callers agree; -inf if none."""
        if wanted == 1:
            return until
        wishes = {who: at for who, at in self._until.items() if now - at <= HALF_MICROSECOND}
        wishes[caller] = max(until, wishes.get(caller, until))
        latest = nlargest(wanted, wishes, wishes.__getitem__)  # the others end sooner, and change nothing
        self._until = {who: wishes[who] for who in latest}
        return wishes[latest[-1]] if len(latest) == wanted else -inf
