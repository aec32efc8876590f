"""An operation whose tries may go to several endpoints."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from fallbacks.answer import Question
from gateway.call import Call, Circuit
from gateway.http.kept import Key, Names
from gateway.http.reply import HttpReply
from gateway.http.request import HttpRequest
from gateway.http.routes import Trip
from gateway.operation import Operation

if TYPE_CHECKING:
    from gateway.http.client import HttpUpstream

P = ParamSpec("P")
T = TypeVar("T")
NO_REPLY = HttpReply(200)


class RoutedOperation(Operation[P, T]):
    """A try that failed where the next one does not go: that is a matter of its endpoint.

    It need not be waited for, holds nobody back, and says nothing to the circuit, which is about the upstream as a
    whole: one dead endpoint of three must not close the other two.
    """

    upstream: HttpUpstream
    names: Names
    """What its answers are remembered under; of an operation that remembers."""

    travels = False
    """Whether it matters even for one endpoint where a call has been: it must not go on at another one."""

    @staticmethod
    def request_of(call: Call) -> HttpRequest:
        """What a call asks."""
        first: HttpRequest | Trip = call.args[0]
        return first.request if isinstance(first, Trip) else first

    def _flight_key(self, call: Call) -> Hashable:
        return self.names.flight_key(self.request_of(call), cast("Key | None", call.key))

    def _way_to_remember(self) -> Callable[[Call, T], object]:
        return self._remember_and_share

    def _remember_and_share(self, call: Call, value: Any) -> None:
        key: Any = call.key
        request, reply = self.request_of(call), self._reply_of(call, value)
        if call.flight is not None and not self.names.is_shareable(request, reply, key):
            call.flight.part()
            call.flight = None
        if key is not None:
            call.key = self.names.kept_under(request, reply, key, asked_for=self._memory.asked_for)
        super()._remember_and_share(call, value)

    @staticmethod
    def _reply_of(call: Call, value: Any) -> HttpReply:
        """The reply that a value came in; one that says nothing if none did, as in a test with `Faults`."""
        trip = call.args[0]
        reply = value if type(value) is HttpReply else getattr(trip, "reply", None)
        return NO_REPLY if reply is None else reply

    def _forget(self, key: Hashable) -> bool:
        return super()._forget_where(self.names.variants(cast("Key", key))) > 0

    def _anew(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        first = call.args[0]
        return ((Trip(first.request, first.args, first.kwargs),) if isinstance(first, Trip) else call.args), {}

    @staticmethod
    def trip_of(call: Call) -> Trip | None:
        """Where a call has been; None if nobody keeps that, as there was one endpoint only."""
        first = call.args[0]
        return first if type(first) is Trip else None

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = super()._begin(args, kwargs)
        if self.travels or self.upstream.routes.only is None:
            call.args = (Trip(args[0], args),)
        return call

    def _question(self, call: Call, error: Exception) -> Question:
        trip = call.args[0]
        if type(trip) is Trip:
            call.args, call.kwargs = trip.args, trip.kwargs  # the tiers get what the caller gave; no try follows
        return super()._question(call, error)

    def _pause(self, call: Call) -> float | None:
        trip = self.trip_of(call)
        return None if trip is not None and self.upstream.routes.dead_end(trip) else super()._pause(call)

    def _elsewhere(self, call: Call) -> bool:
        trip, failure = self.trip_of(call), call.failure
        if trip is None or failure is None:
            return False
        return self.upstream.routes.elsewhere(trip, failure.__cause__ or failure)

    def _spared(self, call: Call, error: BaseException) -> bool:
        trip, upstream = self.trip_of(call), self.upstream
        if trip is None or not (self.idempotent or call.not_sent) or call.attempts >= upstream.retry.policy.attempts:
            return False
        if call.tries is not None and call.tries.left < 1:
            return False
        if upstream.budget is not None and upstream.budget.snapshot().left < 1:
            return False
        return upstream.routes.elsewhere(trip, error)

    def _leave_alone(self, call: Call, breaker: Circuit, now: float, retry_after: float) -> None:
        if not self._elsewhere(call):
            super()._leave_alone(call, breaker, now, retry_after)
