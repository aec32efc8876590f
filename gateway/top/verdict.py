"""What the numbers of an upstream say: how ill it is, and the words for it.

The page of the admin server says the same, in static/words.js.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

Document = dict[str, Any]
"""The state of a gateway, or of an upstream in it, as the admin server tells it."""
MANY_ERRORS = 0.05
SOON = 0.05
"""An opening that ends within this many seconds ends with the next call."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How ill an upstream is, 0 to 3, and the one thing to say about it; the page of the admin server says the same."""

    level: int
    reason: str


def judged(upstream: Document) -> Judgement:
    """The worst that is to be said comes first."""
    circuit, pool, rates = upstream["circuit"], upstream["pool"], upstream["window"]["rates"]
    share = shares(rates)
    helped = share["last_good"] + share["default"]
    errors = f"{percent(share['error'])} of callers get an error"
    endpoints = upstream["endpoints"] or []
    out = sum(one["state"] != "up" for one in endpoints)
    own = sum(one["state"] != "closed" for one in upstream["circuits"])
    told: list[tuple[object, int, str]] = [
        (not upstream["adds_up"], 3, "its numbers do not add up"),
        (circuit["state"] == "open", 3, f"circuit open, {tries(circuit['closes_in'])}"),
        (share["error"] >= MANY_ERRORS, 3, errors),
        (circuit["state"] == "isolated", 2, "isolated by hand"),
        (circuit["state"] == "half_open", 2, "half-open: a few calls try it"),
        (pool["abandoned"], 2, f"{plural(pool['abandoned'], 'place')} stuck"),
        (share["error"], 2, errors),
        (pool["waiting"], 2, f"pool full, {plural(pool['waiting'], 'caller waits', 'callers wait')}"),
        (own, 1, f"{plural(own, 'circuit')} of its own not closed"),
        (helped, 1, f"{percent(helped)} from plan B"),
        (out, 1, f"{plural(out, 'endpoint')} of {len(endpoints)} out"),
        (rates["retries"], 0, "well, with retries"),
        (rates["asked"], 0, "well"),
    ]
    return next((Judgement(level, reason) for holds, level, reason in told if holds), Judgement(0, "nobody asks"))


def detailed(upstream: Document) -> bool:
    """Whether more is known of it than what a row shows."""
    return "operations" in upstream


def shares(rates: Mapping[str, float]) -> dict[str, float]:
    """How calls ended, in the four kinds that a caller can tell apart. A refusal is an answer."""
    ended = {
        "live": rates["live"] + rates["coalesced"] + rates["cached"] + rates["refused"],
        "last_good": rates["last_good"],
        "default": rates["static"] + rates["handler"] + rates["alternate"],
        "error": rates["failed"] + rates["unknown"] + rates["rejected"],
    }
    total = sum(ended.values())
    return {kind: count / total if total else 0.0 for kind, count in ended.items()}


def tries(closes_in: float | None) -> str:
    """When an open circuit lets the next call through."""
    return f"tries in {closes_in:.1f} s" if (closes_in or 0.0) > SOON else "tries with the next call"


def percent(share: float) -> str:
    """A share that is there is never 0 %, one that is not whole never 100 %."""
    if 0 < share < 0.01:  # noqa: PLR2004 - one per cent
        return "< 1 %"
    return f"{100 if share >= 1 else min(99, round_half_up(100 * share))} %"


def round_half_up(number: float) -> int:
    """As JavaScript does, so that the page and the terminal show the same."""
    return int(number + 0.5)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 place`, `2 places`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def seconds(value: float) -> str:
    """A duration as people read it."""
    for least, times, unit in ((1.0, 1, "s"), (0.01, 1e3, "ms"), (0.001, 1e3, "ms")):
        if value >= least:
            return f"{value * times:.{0 if least == 0.01 else 1}f} {unit}"  # noqa: PLR2004 - a hundredth
    return f"{value * 1e6:.0f} µs"


def number(value: float | str) -> float:
    """JSON has no infinity."""
    return inf if value == "inf" else float(value)


def printable(text: object) -> str:
    """A name cannot move the cursor, nor colour what follows."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
