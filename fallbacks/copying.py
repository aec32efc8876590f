"""Copies that nobody else can change, made only of what somebody could change."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from msgspec import Struct

ATOMS = frozenset({str, bytes, int, float, bool, type(None), complex, Decimal, UUID, date, datetime, time, timedelta})


def copied(value: Any) -> Any:
    """A copy that nobody else can change; the value itself where nobody can change it anyway."""
    kind = type(value)
    if kind in ATOMS or isinstance(value, (Enum, type)):
        return value
    if kind is list:
        return [copied(part) for part in value]
    if kind is dict:
        return {copied(key): copied(part) for key, part in value.items()}
    if kind is tuple or kind is frozenset:
        parts = [copied(part) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else kind(parts)
    return value if frozen(value, kind) else deepcopy(value)


def frozen(value: Any, kind: type) -> bool:
    """Whether this is a frozen record of immutable fields. A plain heir of one is not: it may hold more."""
    if isinstance(value, (list, dict, set, bytearray)):  # a record by its fields, and more than that
        return False
    if isinstance(value, Struct) and value.__struct_config__.frozen:
        names = value.__struct_fields__
    elif "__dataclass_params__" in vars(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        names = tuple(field.name for field in fields(kind))
    else:
        return False
    return all(copied(part) is part for part in (getattr(value, name) for name in names))
