"""What stands between you and a service you do not trust: one pool, one circuit, one policy, and its operations."""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Task, current_task
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from inspect import (
    isasyncgenfunction,
    isbuiltin,
    iscoroutinefunction,
    isfunction,
    isgeneratorfunction,
    ismethod,
    signature,
    unwrap,
)
from math import isinf
from threading import get_ident
from time import monotonic
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from fallbacks.answer import Tier
from gateway.breaker import BreakerSnapshot, CircuitBreaker, StateName
from gateway.bulkhead import Bulkhead, BulkheadSnapshot
from gateway.circuits import Circuits
from gateway.context import Clock, translate
from gateway.counts import Counts, Histogram, LatencySnapshot
from gateway.events import CircuitChanged, Listeners, PolicyChanged
from gateway.lane import Lane
from gateway.operation import Operation
from gateway.outcome import ConfigError, Outcome, UnknownName, WrongLoop
from gateway.policy import BudgetPolicy, Policy, TimeoutPolicy
from gateway.readonly import ReadOnly
from gateway.registered import OperationSnapshot
from gateway.retry import BudgetSnapshot, Retry, RetryBudget
from gateway.slot import Block, Slot, checked, known_block
from gateway.terms import CircuitBy, Revalidate, Terms, check_terms

log = logging.getLogger("gateway")

P = ParamSpec("P")
T = TypeVar("T")
KEYS_SHOWN = 10
NO_LOOP = object()
"""In the place of a loop while there is none: no task is ever current on it, so calls take the slow way in."""


class Workers(Protocol):
    """Who runs plain functions: the threads of one upstream on one loop."""

    def run(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[T]:
        """Call the function where it blocks nobody."""
        ...

    def dismiss(self) -> None:
        """Take no more, and end."""
        ...

    def join(self, patience: float) -> tuple[str, ...]:
        """Wait for the end; the names of the stuck. Blocks."""
        ...


class Owner(Protocol):
    """What an upstream needs of its gateway."""

    listeners: Listeners

    def enter(self, upstream: str, operation: str) -> None:
        """Be open on the running loop, or raise."""
        ...

    def loop_elsewhere(self, upstream: str, operation: str) -> AbstractEventLoop:
        """The loop it is open on, in another thread; starts one in the background if there is none."""
        ...

    def on_its_loop(self, act: Callable[[], T]) -> T:
        """Do it on the thread of the loop it is open on; right here if there is none."""
        ...

    def workers(self, name: str, bulkhead: Bulkhead, loop: AbstractEventLoop) -> Workers:
        """Hire workers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSnapshot:
    """An upstream as it is now. `latency`: service time of successful tries; `waits`: of calls that queued; seconds.

    `circuits`: those that `circuit_by=` made, by their keys. `budget`: the account of retries; None without one.
    """

    name: str
    policy: Policy
    bulkhead: BulkheadSnapshot
    breaker: BreakerSnapshot
    counts: Counts
    latency: LatencySnapshot
    waits: LatencySnapshot
    operations: Mapping[str, OperationSnapshot]
    circuits: Mapping[Hashable, BreakerSnapshot]
    budget: BudgetSnapshot | None


@dataclass(frozen=True, kw_only=True)
class Declaration(Terms):
    """An operation that waits for its function."""

    upstream: Upstream

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Operation[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Operation[P, T]: ...
    def __call__(self, function: Any, /) -> Any:
        """Register the function."""
        if isinstance(function, staticmethod):
            return staticmethod(self(function.__func__))
        return self.upstream._register(function, self)  # noqa: SLF001 - the two are one thing


class Upstream:
    """A service you do not trust. Made by `Gateway.upstream(name, policy=...)`.

    @ratings.operation(idempotent=True, fallback=[LastGood(max_age=300)])
    async def user_ratings(user_id: str) -> tuple[Rating, ...]: ...
    """

    def __init__(self, name: str, policy: Policy, owner: Owner) -> None:
        check_policy(name, policy)
        self.name = name
        self.gateway = owner
        self.listeners = owner.listeners
        self.loop: object = NO_LOOP
        self.thread = 0  # the one that runs the loop: another loop's current task is none of ours
        self.clock: Clock = monotonic
        self.waits = Histogram()
        self.refreshing: dict[Hashable, Task[None]] = {}  # what is asked for anew in the background, by its key
        self._policy = policy
        self._operations: dict[str, Operation[..., Any]] = {}
        self._bound_to: AbstractEventLoop | None = None
        self._lanes: dict[tuple[float, bool], Lane] = {}
        self._workers: Workers | None = None
        self._warnings: tuple[str, ...] = ()
        self.bulkhead = Bulkhead(policy.bulkhead)
        self.breaker = CircuitBreaker(policy.breaker, on_change=self._circuit_changed)
        self.circuits = Circuits(
            policy.breaker, clock=self.clock, shared=self.breaker, on_change=self._changed, name=self.name
        )
        self.retry = Retry(policy.retry)
        self.budget: RetryBudget | None = None
        self._paid_in_for = 0  # first tries that the budget has seen
        self._use_budget(policy.retry.budget)
        self._warn()

    # -- operations

    @overload
    def operation(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Operation[P, T]: ...
    @overload
    def operation(self, function: Callable[P, T], /) -> Operation[P, T]: ...
    @overload
    def operation(
        self,
        function: None = None,
        /,
        *,
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
    ) -> Declaration: ...
    def operation(
        self,
        function: Any = None,
        /,
        *,
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
        """Register a function, async or plain, as one thing you ask of this upstream. A decorator.

        `idempotent`: True, it may be repeated; False, it must not; not said: only what was not sent is repeated.
        `fallback`: tiers, asked in order. `refused`: exception types that are a healthy "no".
        `classify`: a function of an exception, or of a value, that gives an Outcome or None for the usual one.
        `key`, a function of the same arguments, names the call; `identity`, of none, is mixed into every key.
        `timeout`: limits of its own, where they differ from the upstream's.
        `circuit_by`: "operation", or a function of the arguments such as the tenant (or a ContextVar): calls of each
        key have a circuit of their own, so that what ails one does not close the upstream for all. None as the key:
        the upstream's own circuit.
        `caller`: who asks, named in the same ways; see `BreakerPolicy.min_callers`.
        `fresh_for`: seconds for which a remembered answer is given without asking; 0.0: always ask. What is remembered
        stands in the first `LastGood`, without one in a memory of its own. `revalidate="background"`: one that is not
        fresh any more is given at once, if it is not older than `LastGood(max_age=)`, while it is asked for anew.
        `remember`: a function of an answer that tells whether it is worth remembering; by default, if it is not empty.
        `coalesce`: identical calls in flight share one. `size_of`: a function of an answer that gives its bytes.
        `secret`: names of arguments that stand in keys as digests.
        Raises ConfigError for what cannot work.
        """
        declaration = Declaration(
            upstream=self,
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
        return declaration if function is None else declaration(function)

    def slot(
        self,
        name: str = "slot",
        *,
        timeout: TimeoutPolicy | None = None,
        refused: Sequence[type[BaseException]] = (),
        circuit_by: Literal["operation"] | ContextVar[Any] | None = None,
        caller: ContextVar[Any] | None = None,
    ) -> Slot:
        """Guard a block of code like an operation: `async with warehouse.slot("report") as slot:`.

        Its place, circuit, limits on time and numbers (under `name`) are those of an operation. It is never repeated,
        and has no fallbacks. On entering it raises a Rejected, WrongLoop; an error of the block goes on as it is, save
        that one cut by `timeout.attempt` or a deadline, in seconds, ends in FailedTimeout. `refused`: types that are
        a healthy "no"; `circuit_by` and `caller`: as of an operation, from a ContextVar. Raises ConfigError for what
        cannot work, a name that is taken for example.
        """
        said = checked(self.name, name, timeout=timeout, refused=refused, circuit_by=circuit_by, caller=caller)
        block = known_block(self.name, self._operations, said)
        if block is None:
            block = Block(self, self._policy, said)
            self._adopt(block)
        return Slot(block)

    def __getitem__(self, name: str) -> Operation[..., Any]:
        try:
            return self._operations[name]
        except KeyError:
            raise UnknownName.among(f"{self.name} operation", name, self._operations) from None

    def __contains__(self, name: object) -> bool:
        return name in self._operations

    def __iter__(self) -> Iterator[Operation[..., Any]]:
        return iter(tuple(self._operations.values()))

    def _register(self, function: Any, declared: Declaration) -> Operation[..., Any]:
        plain = function.__func__ if isinstance(function, classmethod) else function
        name = declared.name or getattr(plain, "__name__", "")
        field = f"{self.name}.{name or repr(function)}"
        check_terms(field, declared)
        asynchronous = check_function(field, plain)
        if not name or name == "<lambda>":
            raise ConfigError(field, "the function has no name", 'give name="..."')
        self._check_free(field, name)
        operation: Operation[..., Any] = Operation(
            self,
            self._policy,
            function,
            plain if asynchronous else partial(self._in_thread, plain),
            name=name,
            idempotent=declared.idempotent,
            said=declared,
        )
        self._adopt(operation)
        return operation

    def _check_free(self, field: str, name: str) -> None:
        if name in self._operations:
            raise ConfigError(field, "an operation of that name is registered already", 'give another name="..."')

    def _adopt(self, operation: Operation[..., Any]) -> None:
        """Have this operation from now on."""
        self._operations[operation.name] = operation
        if self._bound_to is not None:
            operation.take_lane()

    def _in_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> Awaitable[T]:
        if self._workers is None:
            self._workers = self.gateway.workers(self.name, self.bulkhead, cast("AbstractEventLoop", self._bound_to))
        return self._workers.run(function, args, kwargs)

    # -- tuning

    @property
    def policy(self) -> Policy:
        """Its rules. Assign others: circuit, counters, waiters and calls in flight survive. Never half applied.

        From any thread, as `tune`, `isolate` and `restore`: where the loop of the gateway runs in another one, it is
        done there, and this thread waits. WrongLoop in a thread that runs another loop; then nothing has changed.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.gateway.on_its_loop(partial(self._go_by, policy))

    def _go_by(self, policy: Policy) -> None:
        timeouts = self.check(policy)
        before, self._policy = self._policy, policy
        for operation, timeout in timeouts.items():
            operation.use(policy, timeout)
        if self._bound_to is not None:
            self._take_lanes()
        self.retry.policy = policy.retry
        self._use_budget(policy.retry.budget)
        self.breaker.policy = self.circuits.policy = policy.breaker
        self.bulkhead.policy = policy.bulkhead  # last: it wakes waiters, who go by the rest
        self._warn()
        if self.listeners.policy_changed and policy != before:
            event = PolicyChanged(upstream=self.name, at=self.clock(), before=before, after=policy)
            self.listeners.tell(self.listeners.policy_changed, event)

    def check(self, policy: Policy) -> dict[Operation[..., Any], TimeoutPolicy]:
        """Raise the ConfigError that assigning this policy would raise; nothing changes.

        Gives the limits on time that each operation would have under it.
        """
        check_policy(self.name, policy)
        return {operation: operation.check(policy) for operation in self}

    def tune(self, **sections: Any) -> None:
        """Replace sections of the policy: `tune(bulkhead=BulkheadPolicy(limit=40), fallback_timeout=0.2)`."""
        self.gateway.on_its_loop(lambda: self._go_by(self._policy.tuned(**sections)))

    def tune_fields(self, changes: Mapping[str, object]) -> None:
        """Change single knobs, all or none: `tune_fields({"bulkhead.limit": 40})`."""
        self.gateway.on_its_loop(lambda: self._go_by(self._policy.tuned_fields(dict(changes))))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is unwise about its numbers, in words."""
        return self._warnings

    def circuit(self, key: Hashable) -> CircuitBreaker:
        """The circuit of the calls with this key, as `circuit_by=` names it; made if there is none yet.

        None: the upstream's own. The name of an operation with `circuit_by="operation"` is that operation's. One that
        nobody needs may make room for another, so ask for it each time. ConfigError where there is no room for one.
        """
        return self.breaker if key is None else self.circuits.own(self._meant(key))

    def isolate(self, key: Hashable = None) -> None:
        """Send nothing any more: every call is answered by its fallbacks, until `restore()`.

        With a key, as of `circuit()`: its calls, and no others. Without one, or with None: all, whatever their key.
        """
        self.gateway.on_its_loop(partial(self._isolate, key))

    def _isolate(self, key: Hashable) -> None:
        if key is not None:
            self.circuit(key).isolate()
        else:
            self.breaker.isolate()
            self.circuits.isolate()

    def restore(self, key: Hashable = None) -> None:
        """Close all circuits, with empty windows. With a key, as of `circuit()`: that one; UnknownName if it has none.

        While all are isolated, a key lets in the calls of that key alone. None: all of them.
        """
        self.gateway.on_its_loop(partial(self._restore, key))

    def _restore(self, key: Hashable) -> None:
        if key is None:
            self.breaker.restore()
            self.circuits.restore()
        elif self.circuits.isolated:
            self.circuit(key).restore()
        elif (breaker := self.circuits.peek(self._meant(key))) is not None:
            breaker.restore()
        else:
            raise no_circuit(self.name, key, self.circuits.snapshots())

    def _meant(self, key: Hashable) -> Hashable:
        """The key inside: an operation's name stands for its own circuit, if it has one."""
        operation = self._operations.get(key) if type(key) is str else None
        own = None if operation is None else operation.circuit_key
        return key if own is None else own

    def snapshot(self) -> UpstreamSnapshot:
        """The upstream as it is now; needs no running loop."""
        self._pay_in()
        operations = {operation.name: operation.snapshot() for operation in self}
        latency = Histogram()
        for operation in self:
            latency.add(operation.latency)
        return UpstreamSnapshot(
            name=self.name,
            policy=self._policy,
            bulkhead=self.bulkhead.snapshot(),
            breaker=self.breaker.snapshot(),
            circuits=ReadOnly(self.circuits.snapshots()),
            budget=None if self.budget is None else self.budget.snapshot(),
            counts=Counts.total(operation.counts for operation in operations.values()),
            latency=latency.snapshot(),
            waits=self.waits.snapshot(),
            operations=ReadOnly(operations),
        )

    # -- what its gateway tells it

    def bind(self, loop: AbstractEventLoop, clock: Clock) -> None:
        """Live on this loop from now on. After another one: pool, lanes, threads and circuit begin anew."""
        if self._bound_to is not None:
            for operation in self:
                operation.drop_calls()
            self.bulkhead = Bulkhead(self._policy.bulkhead)  # what ends late on the old loop gives back to the old one
            self.dismiss()
            self._lanes = {}
            self.refreshing.clear()
        if self._bound_to is not None or clock is not self.clock:
            self.clock = clock
            self.breaker.restart(clock)
            self.circuits.restart(clock)
            if self.budget is not None:
                self.budget.restart(clock)
        self._bound_to = self.loop = loop
        self.thread = get_ident()
        self._take_lanes()

    def refuse(self) -> None:
        """Let no new call in; those in flight go on."""
        self.loop = NO_LOOP

    def dismiss(self) -> Workers | None:
        """Tell its threads to end; they can be joined."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.dismiss()
        return workers

    async def disconnect(self) -> None:
        """Close its connections, where it has any of its own."""

    def task_here(self, operation: str) -> Task[Any]:
        """The current task, after opening the gateway on its loop if need be; raises if it cannot be."""
        self.gateway.enter(self.name, operation)
        self.thread = get_ident()
        task = current_task()
        if task is None:
            msg = "operations are awaited inside a task"
            raise RuntimeError(msg)
        return task

    def loop_elsewhere(self, operation: str) -> AbstractEventLoop:
        """The loop the gateway is open on, for a thread that runs none; raises if there is none, or cannot be."""
        loop = self.gateway.loop_elsewhere(self.name, operation)
        if self.thread == get_ident() and not loop.is_running():
            msg = "this thread's own event loop, on which the gateway is open, does not run; close the gateway there"
            raise WrongLoop(msg)
        return loop

    def enter(self, operation: str) -> None:
        """Let in a call from another thread, on the loop; raises what `task_here` would."""
        self.gateway.enter(self.name, operation)
        translate(self.clock)

    def lane(self, seconds: float, *, repeats: bool) -> Lane:
        """The lane for tries of this duration, of calls that are repeated or not."""
        lane = self._lanes.get((seconds, repeats))
        if lane is None:
            loop, retry = cast("AbstractEventLoop", self._bound_to), self.retry if repeats else None
            lane = self._lanes[seconds, repeats] = Lane(seconds, loop, self.clock, self.gateway, retry)
        return lane

    def may_retry(self) -> bool:
        """Whether the retry budget grants one more; it is then spent.

        Only first tries that were sent pay in: what the circuit or the pool keeps from a sick upstream earns nothing.
        """
        self._pay_in()
        return self.budget is None or self.budget.withdraw()

    def _pay_in(self) -> None:
        """Pay for the first tries since it was last looked at; those sent while there was no budget earn nothing."""
        sent = sum(operation.tally.attempts - operation.tally.retries for operation in self)
        if self.budget is not None:
            self.budget.deposit(sent - self._paid_in_for)
        self._paid_in_for = sent

    @property
    def timers(self) -> int:
        """How many limits on time run now."""
        return sum(lane.running for lane in self._lanes.values())

    def _use_budget(self, policy: BudgetPolicy | None) -> None:
        self._pay_in()  # by the old numbers
        if policy is None:
            self.budget = None
        elif self.budget is None:
            self.budget = RetryBudget(policy, clock=self.clock)
        else:
            self.budget.policy = policy

    def _take_lanes(self) -> None:
        for operation in self:
            operation.take_lane()
        wanted = {(operation.timeout.attempt, operation.repeats) for operation in self}
        self._lanes = {kind: lane for kind, lane in self._lanes.items() if kind in wanted or lane.running}

    def _circuit_changed(self, before: StateName, after: StateName, at: float) -> None:
        self._changed(None, self.breaker, before, after, at)

    def _changed(self, key: Hashable, breaker: CircuitBreaker, before: StateName, after: StateName, at: float) -> None:
        if after in {"open", "isolated"} and (after == "isolated" or self._policy.breaker.enforce):
            self.bulkhead.reject_waiters(breaker.refusal, breaker)
        if self.listeners.circuit_changed:
            event = CircuitChanged(upstream=self.name, at=at, before=before, after=after, key=key)
            self.listeners.tell(self.listeners.circuit_changed, event)

    def _warn(self) -> None:
        warnings = tuple(unwise(self._policy))
        for warning in warnings:
            if warning not in self._warnings:
                log.warning("%s: %s", self.name, warning)
        self._warnings = warnings

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"


def no_circuit(upstream: str, key: Hashable, known: Iterable[Hashable]) -> UnknownName:
    """The error for a key that has no circuit. Keys are shown with their types, and no more than a few of them."""
    keys = sorted(map(repr, known))
    near = get_close_matches(repr(key), keys, n=1)
    some = ", ".join(keys[:KEYS_SHOWN]) + (f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else "")
    remedy = f"did you mean {near[0]}?" if near else f"known are: {some or 'none yet'}"
    return UnknownName(f"{upstream} circuit", f"there is no {key!r}", remedy)


def check_policy(name: str, policy: object) -> None:
    """A ConfigError for what is no policy."""
    if not isinstance(policy, Policy):
        raise ConfigError(f"{name} policy", f"{policy!r} is not a Policy", "give Policy(...)")


def unwise(policy: Policy) -> Iterator[str]:
    """What works, but hardly as meant."""
    breaker, attempt = policy.breaker, policy.timeout.attempt
    if breaker.window_for is not None and not isinf(attempt):
        timeouts = policy.bulkhead.limit * breaker.window_for / attempt
        if timeouts < breaker.min_calls:
            yield (
                f"the circuit cannot open on timeouts at a steady pace: {timeouts:.1f} of timeout.attempt={attempt} "
                f"end within breaker.window_for={breaker.window_for} with bulkhead.limit={policy.bulkhead.limit}, and "
                f"breaker.min_calls is {breaker.min_calls}; lower min_calls, or use window_calls"
            )
    if breaker.slow_after is not None and breaker.slow_after > attempt:
        yield (
            f"no call is ever slow: breaker.slow_after={breaker.slow_after} is longer than timeout.attempt={attempt}; "
            f"lower slow_after"
        )


def check_function(field: str, function: Any) -> bool:
    """Whether an operation's function is async; a ConfigError for what cannot be one."""
    if not callable(function):
        raise ConfigError(field, f"{function!r} is not a function", "decorate an async or a plain function")
    body = function.func if isinstance(function, partial) else function
    if not (isfunction(body) or ismethod(body) or isbuiltin(body) or isinstance(body, type)):
        body = type(body).__call__  # an object that can be called
    if isasyncgenfunction(body) or isgeneratorfunction(body):
        raise ConfigError(field, "a generator gives many values, an operation one", "return a list, or what it yields")
    if iscoroutinefunction(body):
        return True
    if iscoroutinefunction(unwrap(body)) or isasyncgenfunction(unwrap(body)):
        problem = "a plain function around an async one returns an awaitable"
        raise ConfigError(field, problem, "make the wrapper `async def`")
    try:
        signature(function)
    except (TypeError, ValueError):
        raise ConfigError(field, f"{function!r} has no signature", "wrap it in a function of your own") from None
    return False
