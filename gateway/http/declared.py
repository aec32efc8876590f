"""An operation declared by its path and the type of its answer; the function gives only its signature."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from msgspec import DecodeError
from msgspec.json import Decoder

from gateway.call import Call
from gateway.http.errors import BadReply
from gateway.http.kept import Names, size_of_reply, worth_keeping
from gateway.http.reply import HttpReply, decoded
from gateway.http.request import IDEMPOTENT, Headers, HttpRequest, Params, checked, confined, request_of, segment_of
from gateway.http.routed import RoutedOperation
from gateway.http.routes import Route, Trip
from gateway.operation import Operation
from gateway.outcome import ConfigError
from gateway.policy import Policy
from gateway.terms import Terms

if TYPE_CHECKING:
    from gateway.http.client import HttpUpstream

P = ParamSpec("P")
T = TypeVar("T")
HOLE = re.compile(r"\{([^{}]*)\}")
PLAIN = re.compile(r"[A-Za-z0-9_~-]+")
"""What stands in a path as it is. There is no dot in it, so that it makes no ".." of what stands beside it."""
BY_NAME = frozenset({"json", "data", "headers", "params"})
"""Parameters of these names are what they are for `up.post` and its like; of other names, a query parameter each."""


@dataclass(frozen=True, kw_only=True)
class Declared(Terms, Generic[T]):
    """What a user says of a request, waiting for the function that names its arguments."""

    upstream: HttpUpstream
    method: str
    path: str
    into: type[T]
    params: Params | None = None
    headers: Headers | None = None
    idempotency_key: Callable[..., str] | bool | None = None

    @property
    def repeats(self) -> bool:
        """Whether it may be asked twice: as it says, else as its method does, or with a key for the deed."""
        return IDEMPOTENT[self.method] or self.rests_on_key if self.idempotent is None else self.idempotent

    @property
    def rests_on_key(self) -> bool:
        """Whether nothing but its key makes it safe to repeat."""
        return self.idempotent is None and not IDEMPOTENT[self.method] and bool(self.idempotency_key)

    def __call__(self, function: Callable[P, Any], /) -> Operation[P, T]:
        """Register the function. Raises ConfigError for what cannot work."""
        return self.upstream.declare(function, self)


class DeclaredOperation(RoutedOperation[..., T]):
    """Makes the request once for a call, whatever the number of its tries, before anything is counted."""

    upstream: HttpUpstream

    def __init__(self, upstream: HttpUpstream, policy: Policy, function: Callable[..., Any], said: Declared[T]) -> None:
        self._said = said
        field = f"{upstream.name}.{said.name or function.__name__}"
        self._decode: Callable[[bytes], Any] | None = decoder(f"{field} into", said.into)
        self._form = Form(field, function, said)
        super().__init__(
            upstream,
            policy,
            function,
            self._send_bound,
            name=said.name or function.__name__,
            idempotent=said.repeats,
            said=replace(said, size_of=size_of_reply) if said.into is HttpReply and said.size_of is None else said,
            worth=partial(worth_keeping, method=said.method),
        )

    def _take_memory(self) -> None:
        secret, identity = bool(self._said.secret), self._said.identity
        where, constant = f"{self.upstream.name!r}.{self.name!r}", checked(self._said.headers or ())
        self.names = Names(where, self.upstream.http, identity=identity, secret=secret, constant=constant)
        super()._take_memory()
        self._key_of = lambda args, kwargs: None  # noqa: ARG005 - it has one when its request is made

    def _key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        return self._key_of_request(self._form.request(args, kwargs), args, kwargs)

    def _key_of_request(self, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        named = None if self._said.key is None else self._keys.of(args, kwargs)
        return self.names.key(request, named)

    def forget_all(self, *first: Any) -> int:
        """Forget all answers to calls that begin with these arguments, for all callers; see `Operation.forget_all`.

        They are found by the path, so the arguments must stand in it, first and in this order; ConfigError otherwise.
        """
        if self._said.key is not None:
            meant = self.names.called(self._keys.beginning(first))
        else:
            path, whole = self._form.beginning(f"{self.upstream.name}.{self.name}", first)
            meant = self.names.below(path, whole=whole)
        return self.upstream.gateway.on_its_loop(partial(self._forget_where, meant))

    def _kind_of(self, function: Callable[..., Any]) -> Any:  # noqa: ARG002 - a stub says the same, or less
        return self._said.into

    def _send_bound(self, trip: Trip) -> Coroutine[Any, Any, Any]:
        upstream = self.upstream
        only = upstream.routes.only
        if only is not None and trip.request.idempotency_key is None:
            return self._ask_for(trip, only)
        return upstream.routes.through(trip, partial(self._ask_for, trip), self._evidence_after)

    async def _ask_for(self, trip: Trip, route: Route) -> Any:
        trip.reply = reply = await self.upstream.session().send(trip.request, self._timeout, route)
        if self._said.into is HttpReply:
            return reply
        try:
            if self._decode is None:
                self._decode = Decoder(self._said.into).decode
            return decoded(self._decode, reply.body)
        except DecodeError as error:
            problem = f"{self._said.method} {self._said.path}: {reply.status}, not as agreed: {error}"
        raise BadReply(problem, reply=reply)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        request = self._form.request(args, kwargs)
        remembers = self._remember is not None
        key = self._key_of_request(request, args, kwargs) if remembers else None
        call = Operation._begin(self, args, kwargs)  # noqa: SLF001 - with its own trip
        call.args, call.kwargs = (Trip(request, args, kwargs),), {}
        if remembers:
            call.key = key
        return call


def decoder(field: str, into: Any) -> Callable[[bytes], Any] | None:
    """What makes an answer of a body; None for a type that names one which is still to be defined further down.

    Raises ConfigError for a type that no JSON can become.
    """
    try:
        return Decoder(into).decode
    except NameError:
        return None
    except TypeError as error:
        remedy = "give a type that msgspec can decode from JSON, or leave it out and get the HttpReply"
        raise ConfigError(field, f"no answer can be made one: {error}", remedy) from None


class Form:
    """How the arguments of a function become a request."""

    __slots__ = (
        *("_headers", "_holes", "_key", "_method", "_names", "_only_path", "_params", "_parts", "_places", "_query"),
        *("_rests_on_key", "_signature"),
    )

    def __init__(self, field: str, function: Callable[..., Any], said: Declared[Any]) -> None:
        self._signature = signature(function)
        kinds = {parameter.kind for parameter in self._signature.parameters.values()}
        if kinds & {Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL}:
            raise ConfigError(field, "*args and **kwargs name no parameters", "name each of them")
        names = tuple(self._signature.parameters)
        *parts, last = HOLE.split(confined(HOLE.sub("{\\1}", said.path)))
        self._parts, self._holes = (*parts[::2], last), tuple(parts[1::2])
        missing = [hole for hole in self._holes if hole not in names]
        if missing:
            problem = f"the path has {{{missing[0]}}}, and the function no such parameter"
            raise ConfigError(field, problem, "name them alike")
        if "{" in "".join(self._parts) or "}" in "".join(self._parts):
            raise ConfigError(field, "a { or } of the path has no partner", "write {name}")
        self._names = names
        self._query = tuple(name for name in names if name not in self._holes and name not in BY_NAME)
        self._method = said.method
        self._params = said.params
        self._headers = said.headers
        self._key = said.idempotency_key
        self._rests_on_key = said.rests_on_key
        self._places = tuple(names.index(hole) for hole in self._holes)
        more = (self._key, self._params, self._headers, set(names) - set(self._holes))
        # A "%" beside a hole might make of what stands in it something else than it looks like.
        self._only_path = self._parts[0].startswith("/") and "%" not in "".join(self._parts) and not any(more)

    def beginning(self, where: str, first: tuple[Any, ...]) -> tuple[str, bool]:
        """How the path begins of all calls with these first arguments, and whether that is the whole of it."""
        if self._holes[: len(first)] != self._names[: len(first)]:
            problem = "these arguments do not stand in the path, first and in their order"
            raise ConfigError(f"{where}.forget_all", problem, "give those that do, or none: all are forgotten")
        path = self._parts[0]
        for value, part in zip(first, self._parts[1:], strict=False):
            path += segment_of(value) + part
        return path, len(first) == len(self._holes)

    def request(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HttpRequest:
        """The request of a call; the caller's TypeError if the arguments do not fit."""
        if self._only_path and not kwargs and len(args) == len(self._names):
            path = self._parts[0]
            for place, part in zip(self._places, self._parts[1:], strict=True):
                value = args[place]
                if type(value) is not str or PLAIN.fullmatch(value) is None:
                    break
                path += value + part
            else:
                return HttpRequest(self._method, path)  # the path was looked at when it was declared
        if not kwargs and len(args) == len(self._names):
            given: Mapping[str, Any] = dict(zip(self._names, args, strict=True))
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            given = bound.arguments
        path = self._parts[0]
        for hole, part in zip(self._holes, self._parts[1:], strict=True):
            path += segment_of(given[hole]) + part
        return request_of(
            self._method,
            path,
            params=[
                *pairs(self._params),
                *((name, given[name]) for name in self._query),
                *pairs(given.get("params")),
            ],
            headers=[*pairs(self._headers), *pairs(given.get("headers"))],
            json=given.get("json"),
            data=given.get("data"),
            idempotency_key=self._deed(args, kwargs),
        )

    def _deed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | bool | None:
        """What is sent as the key. Raises ConfigError for none, where nothing else makes it safe to repeat."""
        key = self._key(*args, **kwargs) if callable(self._key) else self._key
        if self._rests_on_key and (key is None or key is False):
            remedy = "have it give each call one; for calls without, declare another operation"
            raise ConfigError("idempotency_key", "its function names no deed for this call", remedy)
        return key


def pairs(given: Any) -> list[tuple[str, Any]]:
    """Names and values, from a mapping or a list of them."""
    if given is None:
        return []
    return list(given.items() if isinstance(given, Mapping) else given)
