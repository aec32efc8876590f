"""What a user says of an operation, beside its function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Literal, cast

from fallbacks.answer import Tier
from fallbacks.last_good import LastGood
from fallbacks.tiers import Alternate, Static
from gateway.arguments import Namer, namer
from gateway.circuits import OfOperation
from gateway.outcome import ConfigError, Outcome
from gateway.policy import TimeoutPolicy

CircuitBy = Literal["operation"] | Callable[..., Hashable] | ContextVar[Any]
"""What splits an upstream's circuit: the operation's name, a function of the arguments, a context variable."""
Revalidate = Literal["background"] | None
"""How an answer that is not fresh any more is asked for anew: before it is given (None), or while it is."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """See `Upstream.operation`, which says what each means."""

    name: str | None = None
    idempotent: bool | None = None
    fallback: Sequence[Tier] = ()
    refused: Sequence[type[BaseException]] = ()
    classify: Callable[[Any], Outcome | None] | None = None
    key: Callable[..., Hashable] | None = None
    identity: Callable[[], Hashable] | None = None
    timeout: TimeoutPolicy | None = None
    circuit_by: CircuitBy | None = None
    caller: Callable[..., Hashable] | ContextVar[Any] | None = None
    fresh_for: float = 0.0
    revalidate: Revalidate = None
    remember: Callable[[Any], bool] | None = None
    coalesce: bool = False
    size_of: Callable[[Any], int] | None = None
    secret: Sequence[str] = ()


USUAL = Terms()


def check_terms(field: str, said: Terms) -> None:
    """A ConfigError for what is said of an operation and cannot be."""

    def expect(name: str, fits: bool, remedy: str) -> None:  # noqa: FBT001 - private
        if not fits:
            raise ConfigError(f"{field} {name}", f"{getattr(said, name)!r} does not fit", remedy)

    listed = (list, tuple)
    expect("name", isinstance(said.name, str | None), "give a str")
    expect("idempotent", said.idempotent is None or type(said.idempotent) is bool, "give True, False or nothing")
    expect("fallback", isinstance(said.fallback, listed), "give a list of tiers")
    expect("refused", are_types(said.refused), "give a tuple of types")
    expect("timeout", isinstance(said.timeout, TimeoutPolicy | None), "give TimeoutPolicy(...)")
    for name in ("circuit_by", "caller", "classify", "key", "identity", "remember", "size_of"):
        expect(name, not iscoroutinefunction(getattr(said, name)), "give a plain function: it is not awaited")
    by = said.circuit_by
    namers = 'give "operation", a function of the arguments, or a ContextVar'
    expect("circuit_by", by is None or by == "operation" or callable(by) or isinstance(by, ContextVar), namers)
    who = said.caller
    expect("caller", who is None or callable(who) or isinstance(who, ContextVar), "give a function, or a ContextVar")
    for name in ("classify", "key", "identity", "remember", "size_of"):
        expect(name, getattr(said, name) is None or callable(getattr(said, name)), "give a function")
    fresh_for = said.fresh_for
    a_number = isinstance(fresh_for, (int, float)) and not isinstance(fresh_for, bool)
    expect("fresh_for", a_number and fresh_for >= 0, "give seconds from 0 up; 0.0: always ask")
    expect("revalidate", said.revalidate in (None, "background"), 'give "background", or nothing')
    expect("coalesce", type(said.coalesce) is bool, "give True or False")
    names = isinstance(said.secret, listed) and all(isinstance(name, str) for name in said.secret)
    expect("secret", names, 'give the names of arguments: secret=("token",)')
    if said.idempotent is False:
        for name in ("fresh_for", "revalidate", "coalesce"):
            if getattr(said, name):
                problem = f"{name}={getattr(said, name)!r} on idempotent=False"
                remedy = "each call of it does something of its own: take it out, or say idempotent=True"
                raise ConfigError(f"{field} {name}", problem, remedy)


def check_tier(field: str, tier: object, *, after: Sequence[Tier], idempotent: bool | None) -> None:
    """A ConfigError for a fallback that is none, or that cannot stand after these."""
    if not callable(getattr(tier, "answer", None)):
        remedy = "give Static(...), handler(...), or an object with answer()"
        raise ConfigError(field, f"{tier!r} is not a tier", remedy)
    timeout = getattr(tier, "timeout", None)  # kept back of the time of tries: what is below 0 would lengthen that
    a_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (a_number and timeout > 0):
        raise ConfigError(f"{field} timeout", f"{timeout!r} is not above 0", "give seconds above 0, or inf")
    if isinstance(tier, Alternate) and not callable(getattr(tier.operation, "ask", None)):
        remedy = "give an operation; of a function, make a handler(fn)"
        raise ConfigError(field, f"Alternate({tier.operation!r}) has no ask()", remedy)
    if isinstance(tier, LastGood) and tier.behind is not None and not is_a_store(tier.behind.store):
        remedy = "give SQLiteStore(path), or another backend of aiocache: an object, not its class"
        raise ConfigError(field, f"{tier.behind.store!r} is not a store", remedy)
    if any(isinstance(earlier, Static) for earlier in after):
        raise ConfigError(field, "a tier after Static is never asked", "put Static last")
    if idempotent is False and isinstance(tier, LastGood):
        raise ConfigError(field, "LastGood on idempotent=False", "what happened before says nothing about this call")


def circuit_namer(where: str, own: OfOperation | None, circuit_by: CircuitBy | None) -> Namer | None:
    """What names the circuit of a call: `own`, if the operation has one; None where there is the upstream's only."""
    if own is not None:
        return lambda args, kwargs: own  # noqa: ARG005 - whatever the call
    return None if circuit_by is None else namer(where, cast("Callable[..., Hashable] | ContextVar[Any]", circuit_by))


def is_a_store(store: object) -> bool:
    """Whether this is a backend of aiocache, by what is asked of one: that is not imported where there is none."""
    return not isinstance(store, type) and callable(getattr(store, "multi_set", None))


def are_types(refused: object) -> bool:
    """Whether these are types of exceptions."""
    return isinstance(refused, list | tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in refused
    )
