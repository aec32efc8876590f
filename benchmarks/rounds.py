"""Measuring side by side, in short rounds.

All take their turn in every round, in another order each time, so that what else the machine does hits all of them
alike; then medians and quartiles.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median, quantiles
from time import perf_counter

Batch = Callable[[int], Awaitable[None]]
"""Does so many calls."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle half of many figures."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Quartiles; of one figure, that one."""
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, middle, high = quantiles(figures, n=4, method="inclusive")
        return cls(low, middle, high)


@dataclass(slots=True)
class Runner:
    """A batch and how many calls of it make a round."""

    batch: Batch
    calls: int = 1
    fixed: bool = False
    """The batch has its own size: so many calls, whatever is asked for."""

    async def calibrate(self, seconds: float) -> None:
        """Find how many calls last about so long."""
        await self.timed()  # caches are filled, code is specialized
        while not self.fixed:
            took = await self.timed() * self.calls
            if took >= seconds / 2:
                self.calls = max(1, round(self.calls * seconds / took))
                return
            self.calls *= 2

    async def timed(self) -> float:
        """Seconds per call, of one round."""
        started = perf_counter()
        await self.batch(self.calls)
        return (perf_counter() - started) / self.calls


async def interleaved(
    runners: Mapping[str, Runner], *, rounds: int, round_for: float = 0.004, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds per call of each, round by round. The n-th figures of all are of the same moment."""
    random = Random(seed)
    for runner in runners.values():
        await runner.calibrate(round_for)
    figures: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        order = list(runners)
        random.shuffle(order)
        gc.collect()
        for name in order:
            figures[name].append(await runners[name].timed())
    return figures


def over(figures: Sequence[float], base: Sequence[float]) -> list[float]:
    """What each adds to the base of its round."""
    return [one - other for one, other in zip(figures, base, strict=True)]


def middle(figures: Sequence[float]) -> float:
    """The median."""
    return median(figures)
