"""Copies that nobody else can change, made only of what somebody could change."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from operator import is_
from typing import Any, cast
from uuid import UUID

from msgspec import Struct

ATOMS = frozenset({str, bytes, int, float, bool, type(None), complex, Decimal, UUID, date, datetime, time, timedelta})

KINDS_KNOWN = 512
"""Classes of which it is remembered what is in them: every answer that is remembered is looked at."""


def copied(value: Any) -> Any:
    """A copy that nobody else can change; the value itself where nobody can change it anyway."""
    kind: Any = type(value)
    if kind in ATOMS:
        return value
    if (names := frozen_fields(kind)) is not None:
        return value if all_frozen(value, names) else deepcopy(value)
    if kind is list:
        return [copied(part) for part in value]
    if kind is dict:
        return {copied(key): copied(part) for key, part in value.items()}
    if kind is tuple or kind is frozenset:
        parts = [copied(part) for part in value]
        return value if all(map(is_, parts, value)) else kind(parts)
    return value if isinstance(value, (Enum, type)) else deepcopy(value)


def all_frozen(value: Any, names: tuple[str, ...]) -> bool:
    """Whether nobody can change what is in these fields."""
    for name in names:
        part = getattr(value, name)
        if type(part) not in ATOMS and copied(part) is not part:
            return False
    return True


@lru_cache(maxsize=KINDS_KNOWN)
def frozen_fields(kind: type) -> tuple[str, ...] | None:
    """The fields of a class of frozen records; None for any other. A plain heir of one is another: it may hold more."""
    if issubclass(kind, (list, dict, set, bytearray)):  # a record by its fields, and more than that
        return None
    if issubclass(kind, Struct):
        return kind.__struct_fields__ if kind.__struct_config__.frozen else None
    if "__dataclass_params__" in vars(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return tuple(field.name for field in fields(cast("Any", kind)))
    return None
