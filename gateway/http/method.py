"""An HTTP method of an upstream: an operation that takes a path, and a way to declare operations of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from fallbacks.answer import Answer, Tier
from gateway.http.declared import Declared
from gateway.http.kept import Names, size_of_reply, worth_keeping
from gateway.http.reply import HttpReply
from gateway.http.request import IDEMPOTENT, Data, Headers, HttpRequest, Params, request_of
from gateway.http.routed import RoutedOperation
from gateway.http.routes import Trip
from gateway.operation import Operation
from gateway.outcome import ConfigError, Outcome
from gateway.policy import Policy, TimeoutPolicy
from gateway.terms import CircuitBy, Revalidate, Terms
from gateway.views import Using

if TYPE_CHECKING:
    from gateway.http.client import HttpUpstream

T = TypeVar("T")


def perform(request: HttpRequest) -> HttpReply:
    """The signature of every method, and what its calls are named by."""
    raise NotImplementedError(request)


class Method(RoutedOperation[..., HttpReply]):
    """`await up.get("/users/1")` gives the `HttpReply`, `await up.get.ask("/users/1")` the `Answer`.

    `params`: the query; None is left out, a list is repeated. `headers`: those of one connection (RFC 9110, 7.6.1) are
    left out. `json`: anything that msgspec can encode; `data`: bytes, str, or a dict for a form.
    `idempotency_key`: a str that names the deed, such as an order id, is sent along, and makes a POST or PATCH safe to
    repeat; a customer who asks again with it is not charged twice. True makes a new one for this call, which protects
    its own tries only.

    With `into=` it declares an operation instead, whose function is only its signature:

        @ratings.get("/users/{user_id}", into=UserRating, fallback=[LastGood(max_age=300)])
        async def user_rating(user_id: str) -> UserRating: ...

    In a function that is an operation of the same upstream, a call is just its request: place, circuit and limits are
    those of the function. Raises HttpRefused for 4xx; ConfigError or TypeError for what cannot be sent, before anything
    is counted; else as any operation. Its fallbacks are given the `HttpRequest`.
    """

    upstream: HttpUpstream
    names_callers = False

    def __init__(self, upstream: HttpUpstream, policy: Policy, method: str, *, keyed: bool = False) -> None:
        self.method = method
        self.travels = keyed
        super().__init__(
            upstream,
            policy,
            perform,
            self._send_request,
            name=method.lower() + (" with key" if keyed else ""),
            idempotent=keyed or IDEMPOTENT[method],
            said=Terms(size_of=size_of_reply),
            worth=partial(worth_keeping, method=method),
        )

    def _take_memory(self) -> None:
        self.names = Names(f"{self.upstream.name!r}.{self.name!r}", self.upstream.http)
        super()._take_memory()
        if self._remember is not None:
            self._key_of = lambda args, _: self.names.key(args[0])

    def _key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        first = args[0] if args else None
        return self.names.key(first if isinstance(first, HttpRequest) else request_of(self.method, *args, **kwargs))

    def forget(
        self,
        path: str,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        json: object = None,
        data: Data | None = None,
    ) -> bool:
        """Forget what is remembered of this request, for the caller that its headers name; see `Operation.forget`."""
        return super().forget(path, params=params, headers=headers, json=json, data=data)

    def forget_all(self, path: str = "") -> int:
        """Forget all answers to requests whose path begins so, for all callers; see `Operation.forget_all`."""
        meant = self.names.below(path)
        return self.upstream.gateway.on_its_loop(partial(self._forget_where, meant))

    @overload
    def __call__(
        self,
        path: str | HttpRequest,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        json: object = None,
        data: Data | None = None,
        idempotency_key: str | bool | None = None,
    ) -> Coroutine[Any, Any, HttpReply]: ...
    @overload
    def __call__(
        self,
        path: str,
        *,
        into: type[T],
        params: Params | None = None,
        headers: Headers | None = None,
        idempotency_key: Callable[..., str] | bool | None = None,
        name: str | None = None,
        idempotent: bool | None = None,
        fallback: Sequence[Tier] = (),
        refused: Sequence[type[BaseException]] = (),
        classify: Callable[[Any], Outcome | None] | None = None,
        key: Callable[..., Hashable] | None = None,
        identity: Callable[[], Hashable] | None = None,
        timeout: TimeoutPolicy | None = None,
        circuit_by: CircuitBy | None = None,
        caller: Callable[..., Hashable] | ContextVar[Any] | None = None,
        fresh_for: float = 0.0,
        revalidate: Revalidate = None,
        remember: Callable[[Any], bool] | None = None,
        coalesce: bool = False,
        size_of: Callable[[Any], int] | None = None,
        secret: Sequence[str] = (),
    ) -> Declared[T]: ...
    def __call__(  # not `async`: it gives a coroutine, or a decorator
        self,
        path: Any,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        json: object = None,
        data: Data | None = None,
        idempotency_key: Any = None,
        into: Any = None,
        name: str | None = None,
        idempotent: bool | None = None,
        fallback: Sequence[Tier] = (),
        refused: Sequence[type[BaseException]] = (),
        classify: Callable[[Any], Outcome | None] | None = None,
        key: Callable[..., Hashable] | None = None,
        identity: Callable[[], Hashable] | None = None,
        timeout: TimeoutPolicy | None = None,
        circuit_by: CircuitBy | None = None,
        caller: Callable[..., Hashable] | ContextVar[Any] | None = None,
        fresh_for: float = 0.0,
        revalidate: Revalidate = None,
        remember: Callable[[Any], bool] | None = None,
        coalesce: bool = False,
        size_of: Callable[[Any], int] | None = None,
        secret: Sequence[str] = (),
    ) -> Any:
        """The reply; with `into=`, a decorator."""
        if into is None:
            return self._reply(path, params, headers, json, data, idempotency_key)
        return Declared(
            upstream=self.upstream,
            method=self.method,
            path=path,
            into=into,
            params=params,
            headers=headers,
            idempotency_key=idempotency_key,
            name=name,
            idempotent=idempotent,
            fallback=fallback,
            refused=refused,
            classify=classify,
            key=key,
            identity=identity,
            timeout=timeout,
            circuit_by=circuit_by,
            caller=caller,
            fresh_for=fresh_for,
            revalidate=revalidate,
            remember=remember,
            coalesce=coalesce,
            size_of=size_of,
            secret=secret,
        )

    async def ask(
        self,
        path: str | HttpRequest,
        *,
        params: Params | None = None,
        headers: Headers | None = None,
        json: object = None,
        data: Data | None = None,
        idempotency_key: str | bool | None = None,
    ) -> Answer[HttpReply]:
        """The reply as an `Answer`: live, else a fallback's, else an error that says what may be done."""
        request = self._request(path, params, headers, json, data, idempotency_key)
        limit = self.upstream.limit_here()
        if limit is not None:
            return Answer(await self.upstream.send_within(request, limit))
        if request.idempotency_key is not None and not self.idempotent:
            keyed, wanted = self.upstream.keyed(self.method), getattr(self, "_wants", None)
            return await (keyed if wanted is None else Using(keyed, wanted)).ask(request)
        return await Operation.ask(self, request)

    def __get__(self, instance: object, owner: type | None = None) -> Self:  # type: ignore[override]
        """In a class it is what it is anywhere else: it is given a path, and no `self`."""
        return self

    async def _reply(self, *given: Any) -> HttpReply:
        request = self._request(*given)
        if request.idempotency_key is None and self.upstream.limit_here() is None:
            return (await Operation.ask(self, request)).value
        return (await self.ask(request)).value

    def _request(  # noqa: PLR0917 - as it is called
        self,
        path: str | HttpRequest,
        params: Params | None,
        headers: Headers | None,
        json: object,
        data: Data | None,
        idempotency_key: str | bool | None,  # noqa: FBT001 - private
    ) -> HttpRequest:
        if isinstance(path, HttpRequest):
            if path.method != self.method:  # whether it may be repeated is said of this one
                remedy = f"ask {path.method.lower()} instead"
                raise ConfigError(f"{self.upstream.name}.{self.name}", f"it cannot send a {path.method}", remedy)
            return path
        return request_of(
            self.method, path, params=params, headers=headers, json=json, data=data, idempotency_key=idempotency_key
        )

    def _send_request(self, request: HttpRequest | Trip) -> Coroutine[Any, Any, HttpReply]:
        upstream = self.upstream
        only = upstream.routes.only
        if isinstance(request, Trip):
            return upstream.send_on(request, self._timeout)
        if only is None:
            return upstream.send_on(Trip(request), self._timeout)
        return upstream.session().send(request, self._timeout, only)
