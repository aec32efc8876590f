"""Durations and sizes as people write them: "300ms", "5m", "10MiB"."""

from __future__ import annotations

import re
from fractions import Fraction
from math import inf

SECONDS: dict[str, Fraction] = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
}
BYTES: dict[str, int] = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
AMOUNT = "[0-9]{1,18}([.][0-9]{1,18})?"
DURATION = f"{AMOUNT} ?({'|'.join(SECONDS)})"
"""What a duration with a unit looks like: a regular expression, also for JSON Schema."""
SIZE = f"{AMOUNT} ?({'|'.join(BYTES)})"
"""What a size with a unit looks like."""


def seconds_in(text: str) -> float:
    """The seconds that a text names: "300ms" is 0.3, "inf" is no limit. Raises ValueError for what names none."""
    if text == "inf":
        return inf
    amount, unit = _parts(text, DURATION)
    if unit not in SECONDS:
        raise ValueError(f"{text!r} is no duration")
    return float(amount * SECONDS[unit])


def bytes_in(text: str) -> float:
    """The bytes that a text names: "10MiB" is 10485760, "10MB" 10000000. Raises ValueError for what names none."""
    if text == "inf":
        return inf
    amount, unit = _parts(text, SIZE)
    size = amount * BYTES.get(unit, 0)
    if unit not in BYTES or size.denominator != 1:
        raise ValueError(f"{text!r} is no size in whole bytes")
    return int(size)


def _parts(text: str, looks: str) -> tuple[Fraction, str]:
    """The number and the unit, exactly; no unit if it does not look like that."""
    found = re.fullmatch(looks, text)
    return (Fraction(text.removesuffix(found[2]).rstrip()), found[2]) if found else (Fraction(0), "")
