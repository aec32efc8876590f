"""What happened, second by second: the pages sent in it, how long they took, where they came from, and the circuits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import Literal

import msgspec

from gateway.demo.load import Page
from gateway.demo.plan import DEADLINE

Kind = Literal["live", "last good", "default", "error"]
KINDS: tuple[Kind, ...] = ("live", "last good", "default", "error")
GRACE = 0.05
"""Seconds: a page this late is still on time, for it has a way to go."""
UPSTREAMS = ("ratings", "info")


class Second(msgspec.Struct, frozen=True):
    """A row of the table. A page belongs to the second in which it was to be asked for, whenever it came."""

    number: int
    phase: str
    requests: int
    p50: float
    p99: float
    kinds: dict[Kind, int]
    circuits: dict[str, str]
    """How each circuit was at the end of the second; without a gateway there is none."""


class Change(msgspec.Struct, frozen=True):
    """A circuit went into another state, `at` so many seconds."""

    at: float
    upstream: str
    state: str


def second(number: int, phase: str, pages: Sequence[Page], circuits: dict[str, str]) -> Second:
    """What one second was like."""
    took = sorted(page.took for page in pages)
    kinds = [kind_of(page) for page in pages]
    return Second(
        number=number,
        phase=phase,
        requests=len(pages),
        p50=percentile(took, 50),
        p99=percentile(took, 99),
        kinds={kind: kinds.count(kind) for kind in KINDS},
        circuits=circuits,
    )


def kind_of(page: Page) -> Kind:
    """The worst answer that a page is made of. One that does not say where it comes from is live."""
    if problem_of(page):
        return "error"
    sources = set(page.sources.values())
    if sources <= {"live"}:
        return "live"
    return "last good" if sources <= {"live", "last_good"} else "default"


def problem_of(page: Page) -> str:
    """Why a page is none; a late one is as good as none."""
    return page.problem or ("too late" if page.took > DEADLINE + GRACE else "")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least value that so many percent do not exceed (nearest rank); 0.0 of nothing."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def circuits_at(instant: float, changes: Iterable[Change]) -> dict[str, str]:
    """How each circuit was at an instant."""
    return dict.fromkeys(UPSTREAMS, "closed") | {one.upstream: one.state for one in changes if one.at <= instant}
