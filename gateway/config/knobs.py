"""What each knob takes in a file, what it is by default and why: all read off the policies themselves.

A new field of a policy is a new knob here at once; one of a type that cannot be written in a file is a TypeError.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from gateway.policy import NESTED, SECTIONS, Policy, Quantity, Wait

Takes = Quantity | type[bool] | tuple[str, ...] | Literal["wait", "policy"]
"""A number, true or false, one of some words, a wait strategy, or a table of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A field that can be set. `none`: it may be "none"."""

    path: str
    takes: Takes
    none: bool
    default: object
    reason: str


@cache
def knobs() -> dict[str, Knob]:
    """All of them, by their paths, in the order they stand in gateway/policy.py."""
    return {knob.path: knob for knob in _knobs(Policy, "")}


@cache
def tables() -> dict[str, type[Any]]:
    """The paths that are tables in a file, and the policies they are: "" is the upstream's own."""
    return dict(_tables(Policy, ""))


def settings(policy: Policy) -> dict[str, object]:
    """The value of every knob, by its path; those of a budget that is not there are not there either."""
    return dict(_settings(policy, ""))


def _settings(policy: Any, where: str) -> Iterator[tuple[str, object]]:
    for f in fields(policy):
        value = getattr(policy, f.name)
        if f.name in NESTED.get(type(policy), {}) and value is not None:
            yield from _settings(value, f"{where}{f.name}.")
        else:
            yield where + f.name, value


def _tables(kind: type[Any], where: str) -> Iterator[tuple[str, type[Any]]]:
    yield where.removesuffix("."), kind
    for name, inner in NESTED.get(kind, {}).items():
        yield from _tables(inner, f"{where}{name}.")


def _knobs(kind: type[Any], where: str) -> Iterator[Knob]:
    hints = get_type_hints(kind, include_extras=True)
    why = reasons(kind)
    usual = kind()
    for f in fields(kind):
        path = where + f.name
        takes, none = _taken(hints[f.name], path)
        default = getattr(usual, f.name)
        if kind is not Policy or f.name not in SECTIONS:
            yield Knob(path=path, takes=takes, none=none, default=default, reason=why.get(f.name, ""))
        if takes == "policy":
            yield from _knobs(NESTED[kind][f.name], f"{path}.")


def _taken(hint: Any, path: str) -> tuple[Takes, bool]:
    """What a type says of a knob."""
    if hint == Wait:
        return "wait", False
    if hint is bool:
        return bool, False
    if get_origin(hint) is Annotated:
        return next(one for one in hint.__metadata__ if isinstance(one, Quantity)), False
    if get_origin(hint) is Literal:
        return get_args(hint), False
    if hint in tables().values():
        return "policy", False
    others = [one for one in get_args(hint) if one is not NoneType]
    if len(others) == 1 and len(get_args(hint)) == 2:  # noqa: PLR2004 - something, or None
        return _taken(others[0], path)[0], True
    raise TypeError(f"{path}: {hint} has no spelling in a file; annotate it with a Quantity")


def reasons(kind: type[Any]) -> dict[str, str]:
    """The docstring below each field, in one line. Without the source (it is not always installed): nothing."""
    try:
        (body,) = ast.parse(inspect.getsource(kind)).body
    except (OSError, TypeError, ValueError):
        return {}
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in pairwise(getattr(body, "body", ()))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }
