"""The arguments of a call: whether they fit the function, and the key that names the call.

`f(1)`, `f(user=1)` and `f(1, deep=False)` with `deep=False` the default are one call and have one key. A key holds
plain data only, with its types (1, 1.0 and True are three calls): never `repr()` or `id()` of a user's object, so that
no two calls share a key by accident and no key keeps an object alive.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import fields
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from inspect import Parameter, signature
from math import inf
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec import Struct

from fallbacks.spelling import spelled
from gateway.outcome import KeyNeeded, UnknownName

PLAIN: frozenset[type] = frozenset({str, int, bool, bytes, type(None)})
"""Immutable, and equal only to what is the same call (given the type): these stand in a key as they are."""
TOLD_APART_BY_TEXT: frozenset[type] = frozenset(
    {float, complex, Decimal, Fraction, UUID, date, datetime, time, timedelta}
)
"""Equal values of these may still differ (0.0 and -0.0, one instant in two time zones): their text names them."""
VALUES = (*PLAIN, *TOLD_APART_BY_TEXT, tuple, list, dict, set, frozenset, bytearray, BaseException)
"""A frozen record that is one of these as well holds more than its fields."""
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
SHAPES_KEPT = 256


class Arguments:
    """The parameters of one function."""

    __slots__ = ("_least", "_most", "_shapes", "_signature", "method", "tails")

    def __init__(self, function: Callable[..., Any]) -> None:
        self._signature = signature(function)
        parameters = self._signature.parameters.values()
        positional = [parameter for parameter in parameters if parameter.kind in POSITIONAL]
        required_by_name = any(p.kind is Parameter.KEYWORD_ONLY and p.default is p.empty for p in parameters)
        many = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
        self._least = inf if required_by_name else sum(p.default is p.empty for p in positional)
        self._most = inf if many else len(positional)
        self._shapes: dict[tuple[int, tuple[str, ...]], None] = {}
        # What follows when only the first n arguments are given, for every n that fits: the defaults of the others.
        self.tails = {} if many else self._defaults_after(positional)
        self.method = bool(positional) and positional[0].name in {"self", "cls"}

    def _defaults_after(self, positional: list[Parameter]) -> dict[int, tuple[Any, ...]]:
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
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            value = bound.arguments[name]
            values.append(tuple(sorted(value.items())) if parameter.kind is Parameter.VAR_KEYWORD else value)
        return tuple(values)

    def places(self, names: tuple[str, ...]) -> frozenset[int]:
        """Where these parameters stand among `bound` values. Raises UnknownName."""
        known = list(self._signature.parameters)
        for name in names:
            if name not in known:
                raise UnknownName.among("secret", name, known)
        return frozenset(known.index(name) for name in names)


class Keys:
    """The keys of one operation's calls.

    `key`, a function of the same arguments, names the call instead of them; `identity`, a function of nothing (such as
    a ContextVar's `get`), is mixed into every key, so that nobody is answered with what was somebody else's. Arguments
    named in `secret` stand in a key as digests: no key gives them away. Raises UnknownName for one that is none.
    """

    __slots__ = ("_identity", "_key", "_names", "_names_of_one", "_parameters", "_secret", "_tails", "_where", "method")

    def __init__(
        self,
        upstream: str,
        operation: str,
        parameters: Arguments,
        *,
        key: Callable[..., Hashable] | None,
        identity: Callable[[], Hashable] | None,
        secret: tuple[str, ...] = (),
    ) -> None:
        self._secret = parameters.places(secret)
        self._where = f"{upstream!r}.{operation!r}"
        self._names: dict[tuple[type, ...], tuple[str]] = {}  # how a key begins, by the types of plain arguments
        self._names_of_one: dict[type, tuple[str]] = {}
        self._parameters = parameters
        self._tails = parameters.tails
        self._key = key
        self._identity = identity
        self.method = parameters.method

    def of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The key of a call. Raises KeyNeeded where there is none."""
        if len(args) == 1 and not kwargs and (name := self._names_of_one.get(type(args[0]))) is not None:
            return name + args  # the commonest call of all
        if self._key is not None:
            key = self._by_user(self._key, args, kwargs)
        else:
            tail = None if kwargs else self._tails.get(len(args))
            values = self._parameters.bound(args, kwargs) if tail is None else args + tail
            name = self._names.get(tuple(map(type, values)))
            key = self._by_arguments(values) if name is None else name + values
        return key if self._identity is None else (*key, self._who(self._identity))

    def _by_arguments(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The key of arguments that are not all plain, or that come with these types for the first time."""
        if self.method:
            raise self._needed("a method's self or cls names no call")
        types = tuple(map(type, values))
        if PLAIN.issuperset(types) and not self._secret:
            name = (f"{self._where}({', '.join(kind.__name__ for kind in types)})",)
            if len(self._names) < SHAPES_KEPT:
                self._names[types] = name
                if len(types) == 1 and 1 in self._tails and self._identity is None:
                    self._names_of_one[types[0]] = name
            return name + values
        try:
            return (self._where, *self._parts(values))
        except (AttributeError, TypeError, RecursionError) as error:  # a slot that was never set is no attribute
            raise self._needed(str(error)) from None

    def _parts(self, values: tuple[Any, ...]) -> tuple[Hashable, ...]:
        parts = map(canonical, values)
        return tuple(digest(part) if place in self._secret else part for place, part in enumerate(parts))

    def beginning(self, first: tuple[Any, ...]) -> Callable[[Hashable], bool]:
        """Tells of a key whether it names a call whose arguments begin with these.

        Where `key=` names calls, it is the parts of what that gives. Raises KeyNeeded for what is no plain data.
        """
        try:
            wanted = self._parts(first) if self._key is None else tuple(map(canonical, first))
        except (AttributeError, TypeError, RecursionError) as error:
            raise self._needed(str(error)) from None
        where, named = self._where, f"{self._where}("

        def begins(key: Hashable) -> bool:
            if type(key) is not tuple or not (key[0] == where or str(key[0]).startswith(named)):
                return False
            if self._key is None:
                parts = tuple(part if type(part) is tuple else (type(part), part) for part in key[1:])
            else:
                parts = key[2][1:] if key[2][0] is tuple else (key[2],)
            return parts[: len(wanted)] == wanted

        return begins

    def _by_user(self, key: Callable[..., Hashable], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        self._parameters.check(args, kwargs)
        try:
            named = key(*args, **kwargs)
            hash(named)
        except Exception as error:
            raise self._needed(f"its key= raised {error!r}") from error
        try:
            return (self._where, "key", canonical(named))
        except (AttributeError, TypeError, RecursionError):  # a name of the user's own kind: its own equality tells
            return (self._where, "key", (type(named), named))

    def _who(self, identity: Callable[[], Hashable]) -> Hashable:
        try:
            return ("identity", canonical(identity()))
        except Exception as error:
            raise self._needed(f"its identity= gave none: {error!r}") from error

    def _needed(self, why: str) -> KeyNeeded:
        return KeyNeeded(f"{self._where}: {why}; give the operation key=, a function of its arguments")


Namer = Callable[[tuple[Any, ...], dict[str, Any]], Hashable]
"""Gives a name of a call from its arguments."""


def namer(where: str, said: Callable[..., Hashable] | ContextVar[Any]) -> Namer:
    """What names a call: a function of its arguments or of nothing, or a context variable (None where it is not set).

    The namer raises KeyNeeded where the function raises, or gives what has no hash.
    """
    variable = said if isinstance(said, ContextVar) else getattr(said, "__self__", None)
    if isinstance(variable, ContextVar) and said in (variable, variable.get):
        get = partial(value_of, variable)
    elif takes_nothing(said):
        get = said  # type: ignore[assignment]  # it is no variable
    else:
        get = None

    def name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        try:
            named: Hashable = said(*args, **kwargs) if get is None else get()  # type: ignore[operator]
            hash(named)
        except Exception as error:
            remedy = "give a function of the call's arguments that returns what can be hashed"
            raise KeyNeeded(f"{where} gave no name for this call: {error!r}; {remedy}") from error
        return named

    return name


def value_of(variable: ContextVar[Any]) -> Any:
    """What it is set to; its default, or None, where it is not."""
    try:
        return variable.get()
    except LookupError:
        return None


def takes_nothing(function: object) -> bool:
    """Whether a function has no parameters at all."""
    try:
        return callable(function) and not signature(function).parameters
    except (TypeError, ValueError):  # it does not say
        return False


def canonical(value: Any) -> Hashable:
    """Plain data as a hashable that only the same data of the same types equals. Raises TypeError for anything else."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, Enum):
        return (kind, value)
    if kind is tuple:
        return (tuple, *(canonical(part) for part in value))
    if kind in TOLD_APART_BY_TEXT and in_a_known_zone(value):
        return (kind, repr(value))
    if isinstance(value, VALUES):
        raise TypeError(f"a {kind.__qualname__} names no call")
    if "__dataclass_params__" in vars(kind) and kind.__dataclass_params__.frozen:  # not by heirs, who may hold more
        return (kind, *(canonical(getattr(value, field.name)) for field in fields(kind)))
    if isinstance(value, Struct) and kind.__struct_config__.frozen:
        return (kind, *(canonical(getattr(value, name)) for name in kind.__struct_fields__))
    raise TypeError(f"a {kind.__qualname__} names no call")


def digest(part: Hashable) -> Hashable:
    """What stands for a part of a key that is a secret."""
    return ("secret", spelled(part))


def in_a_known_zone(value: object) -> bool:
    """Whether its time zone, if any, is told by its text: that of other kinds may hold an address, or too little."""
    zone = getattr(value, "tzinfo", None)
    return zone is None or type(zone) is timezone or (type(zone) is ZoneInfo and zone.key is not None)
