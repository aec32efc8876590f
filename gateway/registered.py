"""What is declared of an operation, and what its upstream tells it: all that stands before a call begins.

What a call goes by is worked out here, when the operation is registered, tuned or gets a fallback, so that the life of
a call (`gateway.operation`) only looks at it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, cast, overload

from fallbacks.answer import Tier
from fallbacks.chain import Fallback
from fallbacks.last_good import LastGood, MemorySnapshot
from fallbacks.tiers import handler
from gateway.arguments import Arguments, Keys, Namer, namer
from gateway.call import Call, Circuit
from gateway.circuits import Asked, OfOperation, breaker_of
from gateway.coalesce import Flights
from gateway.context import Deadline
from gateway.counts import AGE_BOUNDS, Counts, Histogram, LatencySnapshot, Tally
from gateway.host import Host
from gateway.judging import Judge
from gateway.lane import Lane
from gateway.memory import Memory, declared_type, worth_remembering
from gateway.outcome import ConfigError
from gateway.policy import Policy, TimeoutPolicy
from gateway.terms import USUAL, Terms, check_tier, circuit_namer
from gateway.views import leads_to

if TYPE_CHECKING:
    from gateway.bulkhead import Bulkhead
    from gateway.context import Clock

log = logging.getLogger("gateway")

NONE_YET = Histogram().snapshot()
P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H", bound=Callable[..., Any])
A = TypeVar("A", bound=Tier)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSnapshot:
    """An operation's numbers; `latency` is the service time of successful tries, in seconds.

    `memory`: of its first `LastGood`, None without one; `ages`: of the remembered answers that were given, in seconds.
    """

    name: str
    counts: Counts
    latency: LatencySnapshot
    memory: MemorySnapshot | None = None
    ages: LatencySnapshot = NONE_YET


@dataclass(slots=True, kw_only=True)
class Cold:
    """What an operation keeps and a usual call does not look at: of many attributes, Python finds each more slowly."""

    binds_class: bool
    circuit_by: Namer | None
    names_caller: Namer | None
    caller: Namer | None = None  # that, where callers are told apart
    sender: Callable[..., Awaitable[Any]]
    timeout: TimeoutPolicy | None


class Registered(Generic[P, T]):
    """A function that was registered: what its calls go by, its fallbacks, what it remembers, and its numbers."""

    def __init__(
        self,
        upstream: Host,
        policy: Policy,
        function: Callable[..., Any],
        send: Callable[..., Awaitable[T]],
        *,
        name: str,
        idempotent: bool | None,
        said: Terms = USUAL,
        worth: Callable[[Any], bool] = worth_remembering,
    ) -> None:
        update_wrapper(cast("Callable[..., Any]", self), function)
        self.__wrapped__ = plain = function.__func__ if isinstance(function, classmethod) else function
        self.name = name
        self.upstream = upstream
        self.idempotent = idempotent
        self.calls: set[Call] = set()  # in flight
        self._background: set[Call] = set()  # those that no caller waits for
        self.tally = Tally()
        self.latency = Histogram()
        self.ages = Histogram(AGE_BOUNDS)  # of the answers that were remembered
        where = f"{upstream.name}.{name}"
        self.circuit_key = OfOperation(name) if said.circuit_by == "operation" else None  # of a circuit of its own
        self._cold = Cold(
            binds_class=isinstance(function, classmethod),
            circuit_by=circuit_namer(f"{where} circuit_by=", self.circuit_key, said.circuit_by),
            names_caller=None if said.caller is None else namer(f"{where} caller=", said.caller),
            sender=send,
            timeout=said.timeout,
        )
        self._judge = Judge(said)
        self.swap_sender(send)
        arguments = Arguments(plain)
        self._keys = Keys(
            upstream.name, name, arguments, key=said.key, identity=said.identity, secret=tuple(said.secret)
        )
        self._lane: Lane  # these from `take_lane`, once a loop is known
        self._clock: Clock
        self._bulkhead: Bulkhead
        self._fallback = Fallback((), scope=self._scope)
        self._memory = Memory(where, said, kind=partial(self._kind_of, plain), worth=worth)
        self._flights = Flights() if said.coalesce else None
        # Where nothing is remembered, it is enough that the arguments fit.
        self._key_of: Callable[[tuple[Any, ...], dict[str, Any]], Hashable | None] = arguments.check
        self._remember: Callable[[Call, T], object] | None  # None: nobody wants to know of answers
        self._looks_first: bool
        self._take_memory()
        self.use(policy, self.check(policy))
        for tier in said.fallback:
            self._add(tier)
        if idempotent is None:
            log.info("%s.%s does not say whether it is idempotent: it is not repeated", upstream.name, name)

    __slots__ = (  # what calls look at is found faster in a slot than among many attributes
        *("__dict__", "__weakref__", "_bulkhead", "_call_for", "_circuit_of", "_clock", "_cold", "_evidence_after"),
        *("_fallback", "_flights"),
        *("_judge", "_key_of", "_keys", "_lane", "_looks_first", "_memory", "_remember", "_reserve", "_send"),
        *("_timeout", "ages", "calls", "idempotent", "latency", "name", "tally", "upstream"),
    )

    repeats: ClassVar[bool] = True
    """Whether any call of it may be tried again: one that was certainly not sent always may."""
    names_callers: ClassVar[bool] = True
    """Whether `caller=` can be said of it where it is declared. If not, those who call it are nobody."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._keys.method = True

    # -- fallbacks

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The fallbacks, in the order they are asked."""
        return self._fallback.tiers

    @overload
    def fallback(self, fallback: A, /) -> A: ...
    @overload
    def fallback(self, fallback: H, /) -> H: ...
    @overload
    def fallback(self, *, timeout: float | None = None, after_unknown: bool = False) -> Callable[[H], H]: ...
    def fallback(self, fallback: Any = None, *, timeout: float | None = None, after_unknown: bool = False) -> Any:
        """Add a tier after those there are: a function `fn(error, *args, **kwargs)`, as a decorator, or a tier.

        Gives back what it got. A tier after a `Static`, a `LastGood` for what is not idempotent, and a circle of
        `Alternate`s are a ConfigError.
        """
        if fallback is None:
            return partial(self._add_function, timeout=timeout, after_unknown=after_unknown)
        if hasattr(fallback, "answer") or not callable(fallback):
            self._add(fallback)
            return fallback
        return self._add_function(fallback, timeout=timeout, after_unknown=after_unknown)

    def _add_function(self, function: H, *, timeout: float | None, after_unknown: bool) -> H:
        self._add(handler(function, timeout=timeout, after_unknown=after_unknown))
        return function

    def _add(self, tier: Tier) -> None:
        field = f"{self.upstream.name}.{self.name} fallback"
        check_tier(field, tier, after=self.tiers, idempotent=self.idempotent)
        if leads_to(tier, self):
            raise ConfigError(field, "its Alternates lead back to itself", "take one of them out of the circle")
        old = self._fallback
        self._memory.use((*old.tiers, tier))
        self._fallback = Fallback((*old.tiers, tier), timeout=old.timeout, limit=old.limit, scope=self._scope)
        self._fallback.failed = old.failed
        self._reserve = self._fallback.reserve
        self._take_memory()

    def _scope(self, at: float) -> Deadline:
        return Deadline(at, self.upstream.clock, self.upstream.gateway)

    # -- what it remembers

    @property
    def memories(self) -> tuple[LastGood, ...]:
        """Where it remembers: its `LastGood` tiers, or that of `fresh_for=` alone."""
        return self._memory.all

    def _take_memory(self) -> None:
        """Go by what it remembers, and shares, from now on."""
        self._looks_first = self._memory.looks_first
        self._remember = None
        if self._memory or self._flights is not None:
            self._remember = self._way_to_remember()
            self._key_of = self._keys.of

    def _way_to_remember(self) -> Callable[[Call, T], object]:
        """What is done with a live answer."""
        return self._memory.keep if self._flights is None else self._remember_and_share

    def _kind_of(self, function: Callable[..., Any]) -> Any:
        """The type of the answers."""
        return declared_type(function)

    def _remember_and_share(self, call: Call, value: T) -> None:
        """Keep a live answer, and give it to those who wait for the same."""
        self._memory.keep(call, value)
        if call.flight is not None:
            flight, call.flight = call.flight, None
            flight.land(value)

    # -- what the upstream tells it

    @property
    def timeout(self) -> TimeoutPolicy:
        """The limits on time that hold for it: the upstream's, save those of its own."""
        return self._timeout

    def check(self, policy: Policy) -> TimeoutPolicy:
        """The limits that would hold under this policy; a ConfigError if it contradicts what is declared here."""
        if policy.breaker.min_callers > 1 and self._cold.names_caller is None and self.names_callers:
            problem = f"breaker.min_callers={policy.breaker.min_callers} tells callers apart, and nothing names them"
            remedy = "give caller=, a function of the arguments or a ContextVar; or min_callers=1"
            raise ConfigError(f"{self.upstream.name}.{self.name} caller", problem, remedy)
        return policy.timeout if self._cold.timeout is None else policy.timeout.overlaid(self._cold.timeout)

    def use(self, policy: Policy, timeout: TimeoutPolicy) -> None:
        """Go by these numbers from the next call, or try, on."""
        self._timeout = timeout
        self._call_for = timeout.call
        self._tell_callers_apart(policy.breaker.min_callers > 1)
        self._evidence_after = policy.breaker.evidence_within(timeout.attempt)
        self._fallback.timeout, self._fallback.limit = policy.fallback_timeout, policy.fallback_limit
        self._reserve = self._fallback.reserve

    def _tell_callers_apart(self, apart: bool) -> None:  # noqa: FBT001 - private
        """Or not, from now on. Of calls under way nobody asked who makes them: they have no say."""
        cold = self._cold
        before, cold.caller = cold.caller, cold.names_caller if apart else None
        self._circuit_of = None if cold.circuit_by is None and cold.caller is None else self._own_circuit
        if before is None and cold.caller is not None:
            for call in self.calls:
                if type(call.breaker) is not Asked:
                    call.breaker = Asked(breaker_of(call.breaker), None, counts=False)

    def _own_circuit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Circuit:
        """The circuit of a call: that of its key, as its caller sees it. It is held until the call is over."""
        breaker, cold = self.upstream.breaker, self._cold
        caller = None if cold.caller is None else cold.caller(args, kwargs)
        if cold.circuit_by is not None:
            key = cold.circuit_by(args, kwargs)
            if key is not None:
                breaker = self.upstream.circuits.of(key)
            breaker.in_use += 1
        return breaker if cold.caller is None else Asked(breaker, caller)

    def take_lane(self) -> None:
        """Go by the loop that is open now: its lane limits tries, its clock tells the time, in its pool are places."""
        self._bulkhead, self._clock = self.upstream.bulkhead, self.upstream.clock
        self._lane = self.upstream.lane(self._timeout.attempt, repeats=self.repeats)

    def swap_sender(self, send: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        """Put something else between it and the world, for tests; gives what stood there."""
        before, self._cold.sender = self._cold.sender, send
        self._send = self._judge.over(send)
        return before

    def snapshot(self) -> OperationSnapshot:
        """Its numbers as they are now."""
        counts = self.tally.snapshot(in_flight=len(self.calls), fallback_failed=self._fallback.failed)
        memory = self._memory.first
        return OperationSnapshot(
            name=self.name,
            counts=counts,
            latency=self.latency.snapshot(),
            memory=None if memory is None else memory.snapshot(),
            ages=self.ages.snapshot(),
        )

    def __repr__(self) -> str:
        return f"<Operation {self.upstream.name}.{self.name}>"
