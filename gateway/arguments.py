"""The arguments of a call: whether they fit the function, and the key that names the call.

`f(1)`, `f(user=1)` and `f(1, deep=False)` with `deep=False` the default are one call and have one key. A key holds plain
data only, with its types (1, 1.0 and True are three calls): never `repr()`, never `id()`, so that no two calls share a
key by accident and no key keeps a user's object alive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import Parameter, Signature, signature
from math import inf
from typing import Any
from uuid import UUID

from msgspec import Struct

from gateway.outcome import KeyNeeded

PLAIN = frozenset({str, int, bool, bytes, type(None)})
"""Immutable, and equal only to what is the same call (given the type): these stand in a key as they are."""
TOLD_APART_BY_TEXT = frozenset({float, complex, Decimal, Fraction, UUID, date, datetime, time, timedelta})
"""Equal values of these may still be told apart (0.0 and -0.0, one instant in two time zones): their text names them."""
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
SHAPES_KEPT = 256


class Arguments:
    """The parameters of one function."""

    __slots__ = ("_least", "_most", "_shapes", "_signature", "_tails", "method")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = signature(function)
        parameters = self._signature.parameters.values()
        positional = [parameter for parameter in parameters if parameter.kind in POSITIONAL]
        required_by_name = any(p.kind is Parameter.KEYWORD_ONLY and p.default is p.empty for p in parameters)
        many = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
        self._least = inf if required_by_name else sum(p.default is p.empty for p in positional)
        self._most = inf if many else len(positional)
        self._shapes: dict[tuple[int, tuple[str, ...]], None] = {}
        self._tails = {} if many else self._defaults_after(positional)
        self.method = bool(positional) and positional[0].name in {"self", "cls"}

    def _defaults_after(self, positional: list[Parameter]) -> dict[int, tuple[Any, ...]]:
        """What follows when only the first n arguments are given, for every n that fits."""
        rest = [p for p in self._signature.parameters.values() if p.kind not in POSITIONAL]
        named = tuple(() if p.kind is Parameter.VAR_KEYWORD else p.default for p in rest)
        enough = range(int(self._least), len(positional) + 1) if self._least < inf else ()
        return {n: (*(p.default for p in positional[n:]), *named) for n in enough}

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the caller's TypeError if the function does not take these arguments."""
        if not kwargs and self._least <= len(args) <= self._most:
            return
        shape = (len(args), tuple(kwargs))
        if shape not in self._shapes:  # whether arguments fit depends only on how many there are and on their names
            self._signature.bind(*args, **kwargs)
            if len(self._shapes) < SHAPES_KEPT:
                self._shapes[shape] = None

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """All arguments in the order of the parameters, with the defaults of those not given."""
        if not kwargs and (tail := self._tails.get(len(args))) is not None:
            return args + tail
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            value = bound.arguments[name]
            values.append(tuple(sorted(value.items())) if parameter.kind is Parameter.VAR_KEYWORD else value)
        return tuple(values)


class Keys:
    """The keys of one operation's calls.

    `key`, a function of the same arguments, names the call instead of them; `identity`, a function of nothing (such as
    a ContextVar's `get`), is mixed into every key, so that nobody is answered with what was somebody else's.
    """

    __slots__ = ("_arguments", "_identity", "_key", "_name", "_plain", "method")

    def __init__(
        self,
        upstream: str,
        operation: str,
        arguments: Arguments,
        *,
        key: Callable[..., Hashable] | None,
        identity: Callable[[], Hashable] | None,
    ) -> None:
        self._name = (upstream, operation)
        self._arguments = arguments
        self._key = key
        self._identity = identity
        self._plain: set[tuple[type, ...]] = set()
        self.method = arguments.method

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """The key of a call. Raises KeyNeeded where there is none."""
        if self._key is not None:
            named: Hashable = self._named(self._key, args, kwargs)
        elif self.method:
            raise self._needed("a method's self or cls names no call")
        else:
            values = self._arguments.bound(args, kwargs)
            types = tuple(map(type, values))
            named = (values, types) if types in self._plain else self._told_apart(values, types)
        if self._identity is None:
            return (self._name, named)
        return (self._name, named, self._told_apart((self._who(self._identity),)))

    def _told_apart(self, values: tuple[Any, ...], types: tuple[type, ...] = ()) -> Hashable:
        try:
            parts = tuple(canonical(value) for value in values)
        except (TypeError, RecursionError) as error:
            raise self._needed(str(error)) from None
        if types and PLAIN.issuperset(types):
            if len(self._plain) < SHAPES_KEPT:
                self._plain.add(types)
            return (values, types)
        return parts

    def _named(self, key: Callable[..., Hashable], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        try:
            named = key(*args, **kwargs)
            hash(named)
        except Exception as error:
            raise self._needed(f"its key= raised {error!r}") from error
        return ("key", type(named), named)

    def _who(self, identity: Callable[[], Hashable]) -> Hashable:
        try:
            return identity()
        except Exception as error:
            raise self._needed(f"its identity= raised {error!r}") from error

    def _needed(self, why: str) -> KeyNeeded:
        upstream, operation = self._name
        return KeyNeeded(f"{upstream}.{operation}: {why}; give the operation key=, a function of its arguments")


def canonical(value: Any) -> Hashable:  # noqa: ANN401 - any argument a user passes
    """Plain data as a hashable that only the same data of the same types equals. Raises TypeError for anything else."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, Enum):
        return (kind, value)
    if kind is tuple:
        return (tuple, *(canonical(part) for part in value))
    if kind in TOLD_APART_BY_TEXT:
        return (kind, repr(value))
    if is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return (kind, *(canonical(getattr(value, field.name)) for field in fields(kind)))
    if isinstance(value, Struct) and kind.__struct_config__.frozen:
        return (kind, *(canonical(getattr(value, name)) for name in kind.__struct_fields__))
    raise TypeError(f"a {kind.__qualname__} names no call")
