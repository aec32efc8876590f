"""The states of a circuit: each an object that holds only its own data, and that is itself the leave to try."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar, Literal, Self

from gateway.callers import CallerCountWindow, CallerTimeWindow
from gateway.context import HALF_MICROSECOND
from gateway.window import ALMOST_ONE, CountWindow, Window

LEAST_SHARE = 0.1


class Closed:
    """All well: everybody is admitted, and every verdict counts."""

    name: ClassVar[Literal["closed"]] = "closed"
    __slots__ = ("rejected", "window")

    def __init__(self, window: Window | CallerTimeWindow | CallerCountWindow) -> None:
        self.window = window
        self.rejected = 0


class Ramp:
    """A growing share of the calls is let in: a tenth at first, and all of them after so many `seconds`.

    Each call that asks adds the share of the moment, and one is let in when that makes a whole. Source: Envoy's slow
    start, with its `min_weight_percent` of 10 %.
    """

    __slots__ = ("_credit", "_since")

    def __init__(self, since: float) -> None:
        self._since = since
        self._credit = 0.0

    def pause(self, seconds: float) -> None:
        """Nobody is let in for so long: that is no time to warm up in."""
        self._since += seconds

    def is_over(self, now: float, seconds: float) -> bool:
        """Whether everybody is let in."""
        return not seconds or now - self._since >= seconds - HALF_MICROSECOND

    def refuses(self, now: float, seconds: float) -> bool:
        """Whether it is not this call's turn; the call has asked then, and brings the next one nearer to its turn."""
        credit = self._credit + self._share(now, seconds)
        if credit >= ALMOST_ONE:
            return False
        self._credit = credit
        return True

    def let_in(self, now: float, seconds: float) -> None:
        """It is this call's turn, and it comes."""
        self._credit += self._share(now, seconds) - 1

    def _share(self, now: float, seconds: float) -> float:
        return max(LEAST_SHARE, (now - self._since) / seconds)


class Guarded:
    """Closed, and not simply so: callers are told apart, or only some are let in (a ramp), or nobody yet (a hold).

    The leave that it gives is the `closed` behind it. So verdicts go on counting when the guard is gone.
    """

    name: ClassVar[Literal["closed"]] = "closed"
    __slots__ = ("closed", "ramp")

    def __init__(self, closed: Closed, ramp: Ramp | None = None) -> None:
        self.closed = closed
        self.ramp = ramp

    @property
    def rejected(self) -> int:
        """Since it closed."""
        return self.closed.rejected

    @rejected.setter
    def rejected(self, number: int) -> None:
        self.closed.rejected = number


class Open:
    """Nobody is admitted until strictly later than `until`."""

    name: ClassVar[Literal["open"]] = "open"
    __slots__ = ("in_a_row", "rejected", "until")

    def __init__(self, until: float, in_a_row: int) -> None:
        self.until = until
        self.in_a_row = in_a_row
        self.rejected = 0


class HalfOpen:
    """A few probes are admitted, and the first verdicts decide. `seen_alive`: a refusal came back, so it answers.

    `left_out`: so many bad verdicts do not count. Then callers are told apart, and as many more probes are admitted: a
    caller has one, and where that went well another while none is out. So each has one bad verdict at the most.
    """

    name: ClassVar[Literal["half_open"]] = "half_open"
    __slots__ = (
        "_bad", "_out", "_well", "ends_at", "in_a_row", "left_out", "probes", "probes_left", "rejected", "seen_alive",
        "window",
    )  # fmt: skip

    def __init__(self, probes: int, ends_at: float, in_a_row: int, left_out: int = 0) -> None:
        self.window = CountWindow(probes + left_out)
        self.probes = probes
        self.probes_left = probes + left_out
        self.left_out = left_out
        # Callers, by what became of their probes. All three stay empty where they are not told apart.
        self._out: set[Hashable] = set()
        self._well: set[Hashable] = set()
        self._bad: set[Hashable] = set()
        self.ends_at = ends_at
        self.in_a_row = in_a_row
        self.seen_alive = False
        self.rejected = 0

    def has_room_for(self, caller: Hashable) -> bool:
        """Whether this caller may have a probe."""
        if self.probes_left <= 0 or caller in self._out or caller in self._bad:
            return False
        return not self._out or caller not in self._well  # who had one comes after those who had none

    def take_probe(self, caller: Hashable) -> Self:
        """One probe less; the leave to try."""
        self.probes_left -= 1
        if self.left_out:
            self._out.add(caller)
        return self

    def give_back(self, caller: Hashable) -> None:
        """A probe that gave no verdict is anybody's again."""
        self.probes_left += 1
        self._out.discard(caller)

    def record(self, now: float, failed: bool, slow: bool, caller: Hashable) -> None:  # noqa: FBT001 - as Window says
        """The verdict of a probe."""
        self.window.record(now, failed, slow)
        if self.left_out:
            self._out.discard(caller)
            (self._bad if failed or slow else self._well).add(caller)

    def judge(self, failure_rate: float, slow_rate: float, least: float, hanging: int = 0) -> bool | None:
        """Whether the upstream is well; None while fewer verdicts than `least` are left when the worst are left out.

        Probes that are `hanging` are bad.
        """
        window = self.window
        for seen, rate in ((window.failures, failure_rate), (window.slow, slow_rate)):
            bad = seen + hanging
            left_out = min(bad, self.left_out)
            rest = window.calls + hanging - left_out
            if rest < least:
                return None
            if (bad - left_out) / rest >= rate * ALMOST_ONE:
                return False
        return True

    @property
    def probes_out(self) -> int:
        """Probes that have not reported yet."""
        return self.window.size - self.window.calls - self.probes_left


class Isolated:
    """An operator said no. Nobody is admitted until `restore()`."""

    name: ClassVar[Literal["isolated"]] = "isolated"
    __slots__ = ("rejected",)

    def __init__(self) -> None:
        self.rejected = 0
