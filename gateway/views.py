"""An operation seen in another way: as a method of an object, or by a caller who wants more of the answer."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from fallbacks.answer import Answer, Tier
from fallbacks.tiers import Alternate
from gateway.call import Call, Wants
from gateway.host import Host
from gateway.marks import gives_coroutine
from gateway.outcome import ConfigError
from gateway.policy import TimeoutPolicy

if TYPE_CHECKING:
    from gateway.operation import Operation

P = ParamSpec("P")
T = TypeVar("T")


class Using(Generic[P, T]):
    """An operation for a caller who wants nothing too old, or only what is live: made by `Operation.using`.

    Its calls are the operation's own in all else: the same pool, circuit, memory and numbers.
    """

    def __init__(self, operation: Operation[P, T], wants: Wants) -> None:
        self._operation = operation
        self._wants = wants

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The bare value of `ask`."""
        return (await self.ask(*args, **kwargs)).value

    @gives_coroutine
    def ask(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Answer[T]]:
        """The answer, as `Operation.ask`: the life of a call that begins here."""
        ask = type(self._operation).ask
        return ask(cast("Operation[P, T]", self), *args, **kwargs)

    def call_blocking(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The bare value, as `Operation.call_blocking`."""
        return self.ask_blocking(*args, **kwargs).value

    def ask_blocking(self, *args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        """The answer, as `Operation.ask_blocking`."""
        ask = type(self._operation).ask_blocking
        return ask(cast("Operation[P, T]", self), *args, **kwargs)

    @property
    def operation(self) -> Operation[P, T]:
        """The operation itself."""
        return self._operation

    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], whole: bool) -> Coroutine[Any, Any, Any]:  # noqa: FBT001 - as the operation's
        """The life of a call, that begins here."""
        return type(self._operation)._ask(cast("Operation[P, T]", self), args, kwargs, whole)  # noqa: SLF001 - the two are one thing

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        call = self._operation._begin(args, kwargs)  # noqa: SLF001 - the two are one thing
        call.wants = self._wants
        return call

    def __getattr__(self, name: str) -> Any:
        if name == "_operation":  # asked by `copy` of one that is not filled yet
            raise AttributeError(name)
        return getattr(self._operation, name)

    def __repr__(self) -> str:
        return f"{self._operation!r} using {self._wants}"


def wants(where: str, *, max_age: float | None, only_live: bool) -> Wants:
    """What a caller wants; ConfigError for what is none."""
    a_number = isinstance(max_age, (int, float)) and not isinstance(max_age, bool)
    if max_age is not None and not (a_number and max_age >= 0):
        raise ConfigError(f"{where}.using max_age", f"{max_age!r} is no age", "give seconds from 0 up")
    return Wants(only_live=bool(only_live)) if max_age is None else Wants(max_age=max_age, only_live=bool(only_live))


class BoundOperation(Generic[P, T]):
    """An operation as a method of one object."""

    __slots__ = ("_instance", "_operation")

    def __init__(self, operation: Operation[Any, T], instance: object) -> None:
        self._operation = operation
        self._instance = instance

    @gives_coroutine
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """The bare value of `ask`."""
        return self._operation(self._instance, *args, **kwargs)

    @gives_coroutine
    def ask(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Answer[T]]:
        """The answer, as `Operation.ask`."""
        return self._operation.ask(self._instance, *args, **kwargs)

    def call_blocking(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The bare value, as `Operation.call_blocking`."""
        return self._operation.ask_blocking(self._instance, *args, **kwargs).value

    def ask_blocking(self, *args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        """The answer, as `Operation.ask_blocking`."""
        return self._operation.ask_blocking(self._instance, *args, **kwargs)

    def using(self, *, max_age: float | None = None, only_live: bool = False) -> BoundOperation[P, T]:
        """As `Operation.using`."""
        using = cast("Operation[Any, T]", self._operation.using(max_age=max_age, only_live=only_live))
        return BoundOperation(using, self._instance)

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """As `Operation.forget`."""
        return self._operation.forget(self._instance, *args, **kwargs)

    @property
    def operation(self) -> Operation[Any, T]:
        """The operation itself, which takes the object as its first argument."""
        return self._operation

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation.name

    @property
    def upstream(self) -> Host:
        """Its upstream."""
        return self._operation.upstream

    @property
    def timeout(self) -> TimeoutPolicy:
        """The limits on time that hold for it."""
        return self._operation.timeout


def leads_to(tier: object, target: object) -> bool:
    """Whether a tier is an Alternate from which Alternates lead to an operation."""
    if not isinstance(tier, Alternate):
        return False
    operation: object = tier.operation
    while isinstance(operation, BoundOperation | Using):
        operation = operation.operation
    tiers: tuple[Tier, ...] = getattr(operation, "tiers", ())
    return operation is target or any(leads_to(further, target) for further in tiers)
