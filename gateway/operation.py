"""The life of a call. Read `_ask` and `_attempt`: they are the whole of it, in order.

Everything else here serves one of their lines. What a line does is in the part it names; what it costs is paid at
registration, at a transition, on failure, or when somebody asks, wherever that is possible.
"""

from __future__ import annotations

from asyncio import Task, current_task, sleep
from collections.abc import Callable, Coroutine, Hashable, Iterable
from functools import partial
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from fallbacks.answer import LIVE, Answer, Question, Source
from fallbacks.wall import WALL
from gateway.blocking import Visit, refuse_on_a_loop
from gateway.call import NOBODY, Call, Circuit, Wants
from gateway.circuits import breaker_of
from gateway.coalesce import Flights, Landed
from gateway.context import HALF_MICROSECOND, Tries, ambient_here, leave, put_ambient, take_back, tries_under
from gateway.events import AttemptFailed, CallFinished
from gateway.judging import CANCELLED, REFUSED, Judged, ended_from_above, failure_of, of_the_deadline, too_late
from gateway.lane import Timer
from gateway.marks import gives_coroutine
from gateway.outcome import BulkheadFull, GatewayClosed, GatewayError, Outcome, Rejected
from gateway.refreshing import refresh
from gateway.registered import Registered
from gateway.remembering import Warming, disown
from gateway.sharing import copy_for, end_flight, error_for, join, leave_flight, too_late_for
from gateway.views import BoundOperation, Using, wants

if TYPE_CHECKING:
    from gateway.breaker import State

CACHED, REJECTED = Source.CACHED, Outcome.REJECTED  # as in `gateway.judging`
NO_VALUE: Any = object()
"""In the place of the value of a try that failed."""
AS_GOOD_AS_LIVE = frozenset({LIVE, CACHED, Source.COALESCED})
P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
GRACE = 0.05
"""A try that was told to end, and ends later than this, in seconds, has overrun."""
EARLY = 0.001
"""Timers may come early by this much (uvloop's): who waits for as long as he was asked to is not to be refused."""


class Operation(Registered[P, T]):
    """One thing you ask of an upstream. `await op(...)` gives the value, `await op.ask(...)` the `Answer`.

    Raises a `Rejected` (never sent), a `Failed` or `Unknown` from the upstream's own error, a refusal just as the
    function raised it; TypeError or KeyNeeded for arguments that name no call, before anything is counted or sent;
    GatewayClosed, WrongLoop.
    """

    __slots__ = ()

    # -- the life of a call

    @gives_coroutine
    def ask(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Answer[T]]:
        """The best answer there is: live, else the fallbacks' in order, else an error that says what may be done."""
        return self._ask(args, kwargs, True)

    @gives_coroutine
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """The bare value of `ask`."""
        return self._ask(args, kwargs, False)

    async def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any], whole: bool) -> Any:  # noqa: FBT001 - the hot path
        """The answer, the `whole` of it, or its bare value."""
        call = self._begin(args, kwargs)
        ended: str = CANCELLED  # unless it ends in one of the other ways
        try:
            if call.cancelling:
                await sleep(0)  # a cancel that is pending ends the call before anything is sent
                call.at = self._clock()
            if self._looks_first and (answer := self._from_memory(call)) is not None:
                return as_asked(answer, whole)
            if self._flights is not None and (answer := await self._from_flight(call, self._flights)) is not None:
                return as_asked(answer, whole)
            while call.breaker.unguarded is not None or call.at >= call.cutoff or not call.breaker.refuses(call.at):
                try:
                    value = await self._attempt(call)
                except Exception as error:  # noqa: BLE001 - it was rejected or refused: no next try
                    return as_asked(await self._fall_back(call, error), whole)
                if value is not NO_VALUE:
                    if self._remember is not None:
                        self._remember(call, value)
                    ended = LIVE
                    return Answer(value) if whole else value
                pause = self._pause(call)
                if pause is None:
                    return as_asked(await self._fall_back(call, call.failure), whole)  # type: ignore[arg-type]
                await self._rest(call, pause)
            return as_asked(await self._fall_back(call, call.breaker.refusal(call.at)), whole)
        except Exception:
            ended = call.outcome
            raise
        finally:
            self._finish(call, ended)

    async def _attempt(self, call: Call) -> T:
        """One try: a place in the pool, leave from the circuit, a limit on time, the world; and the verdict.

        The value; NO_VALUE where it failed, and `call.failure` says why. Raises a rejection, and what stands as it is.
        """
        bulkhead = self._bulkhead
        if not bulkhead.acquire_nowait():
            await self._queue(call)
        breaker = call.breaker
        try:
            sent_at = call.at
            if sent_at >= call.cutoff:  # a function that never suspends would be sent all the same
                raise too_late()
            # After the queue: no probe is spent on a caller who still waits.
            circuit = breaker.unguarded or breaker.enter(sent_at)
            timer = self._lane.start(call)
            outside = put_ambient(timer)  # what the function calls in turn inherits this limit
            try:
                self.tally.attempts += 1
                if call.attempts:
                    self.tally.retries += 1
                kwargs = call.kwargs  # `**` makes another dict of them, even of none
                value = await (self._send(*call.args, **kwargs) if kwargs else self._send(*call.args))
            except BaseException as error:
                leave(outside)
                del outside  # it leads to the task, by the call that this one is made in, and a task to its error
                self._failed(call, breaker, circuit, timer, error)
                if call.error is None:
                    return NO_VALUE  # type: ignore[no-any-return]  # to raise and catch our own would be the dearest line
                if call.error is error:
                    raise  # the function's own stands: it was refused, or the caller left
                raise call.error  # noqa: B904 - a value that was judged a refusal; a name for it here would be a circle
            take_back(outside)
            call.at = ended_at = self._clock()
            took = ended_at - sent_at
            if timer.stop() or ended_at > timer.at:
                self.tally.overran += 1  # it comes late, but it is here
            breaker.leave(circuit, ended_at, False, took > breaker.slow_beyond, None)
            self.latency.record(took)
            return value
        finally:
            bulkhead.release()  # unless a thread took the place over: then its end gives it back

    # -- the lines of `_ask` and `_attempt`

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Who asks what, until when. A call that cannot be made raises here, before anything is counted."""
        key = self._key_of(args, kwargs)
        upstream = self.upstream
        task = current_task(upstream.loop)  # type: ignore[arg-type]  # naming the loop spares Python 3.11 a getpid()
        if task is None or get_ident() != upstream.thread:
            task = upstream.task_here(self.name)
        now = self._clock()
        deadline = now + self._call_for
        outer = ambient_here()
        tries = None
        if outer is not None:
            tries = tries_under(outer)
            if outer.at < deadline:
                deadline = outer.at
        cutoff = deadline
        if self._reserve and deadline < inf:  # of endless time nothing need be kept, and inf less inf is no time
            cutoff -= min(self._reserve, (deadline - now) / 2)
        breaker = upstream.breaker if self._circuit_of is None else self._circuit_of(args, kwargs)
        call = Call(args, kwargs, key, task, task.cancelling(), now, now, cutoff, deadline, outer, breaker, tries)
        self.tally.asked += 1
        self.calls.add(call)
        return call

    async def _queue(self, call: Call) -> None:
        """Wait for a place; `_ask` has seen that the circuit is not open."""
        upstream, asked_at = self.upstream, call.at
        if not call.queues:
            raise BulkheadFull("no place is free, and it does not wait for one")
        queued = True
        try:
            await upstream.bulkhead.acquire(call.cutoff, circuit=breaker_of(call.breaker))
        except BulkheadFull as full:
            queued = full.reason != "queue_full"
            raise
        finally:
            call.at = upstream.clock()
            if queued:
                call.waited += call.at - asked_at
                upstream.waits.record(call.at - asked_at)

    def _failed(self, call: Call, breaker: Circuit, circuit: State, timer: Timer, error: BaseException) -> None:
        """A try that gave no value: the verdict to the circuit, and our own error, unless the function's stands."""
        upstream = self.upstream
        timed_out = timer.stop_on(error)
        timer.task = NOBODY  # no circles here either
        call.tries = tries_under(timer)  # opened, so that what outlives this try below spends from it, too
        call.attempts += 1
        now = upstream.clock()
        took = now - call.at
        if timer.fired_at is not None and now - timer.fired_at > GRACE:
            self.tally.overran += 1
        outcome, call.not_sent = self._judge.verdict(call, error, self.idempotent, timed_out, timer.sent)
        call.outcome = outcome
        ran_long = took + HALF_MICROSECOND >= self._evidence_after
        slow = took > breaker.slow_beyond
        if outcome is CANCELLED:
            breaker.leave(circuit, now, True if ran_long and ended_from_above(call, error) else None, slow)
            call.error = error
            return
        if outcome is REFUSED:
            breaker.leave_refused(circuit, now)
            call.error = error.refusal() if isinstance(error, Judged) else error
            return
        # By a deadline nearer than a try of this upstream has; here, or in a call that the function made.
        cut = timer.nearer and (timer.fired_at is not None or of_the_deadline(error))
        says_nothing = (cut and not ran_long) or self._spared(call, error)
        breaker.leave(circuit, now, None if says_nothing else True, slow)
        failure = failure_of(call, error, upstream.name, self.name, took, timer if timed_out else None)
        call.failure = failure
        wish = failure.retry_after
        if wish and not isinstance(error, GatewayError):  # that would be another upstream's wish
            self._leave_alone(call, breaker, now, wish)
        if upstream.listeners.attempt_failed:
            self._tell_failed(call, now, took)

    def _leave_alone(self, call: Call, breaker: Circuit, now: float, retry_after: float) -> None:  # noqa: ARG002
        """A wish to slow down holds for all calls of the circuit, not only for the one that was told."""
        policy = self.upstream.retry.policy
        if policy.pushback_shared and retry_after < inf:  # never again: that is said of this call
            breaker.hold(now + min(retry_after, policy.max_retry_after) - EARLY)

    def _tell_failed(self, call: Call, now: float, took: float) -> None:
        listeners, failure = self.upstream.listeners, cast("GatewayError", call.failure)
        event = AttemptFailed(
            upstream=self.upstream.name,
            at=now,
            operation=self.name,
            attempt=call.attempts,
            outcome=call.outcome,
            error=failure,
            duration=took,
            call=id(call),
        )
        listeners.tell(listeners.attempt_failed, event)

    def _pause(self, call: Call) -> float | None:
        """How long to wait before the next try of a call that failed; None: no next try."""
        failure, upstream = cast("GatewayError", call.failure), self.upstream
        if not (self.idempotent or call.not_sent):
            return None
        left = call.cutoff - self._clock()
        cause, at_once = failure.__cause__ or failure, self._elsewhere(call)
        pause = upstream.retry.pause(call.attempts, cause, call.outcome, left, at_once=at_once)
        if pause is None:
            return None
        tries = cast("Tries", call.tries)  # there is something to repeat, so they were counted
        if tries.left < 1:
            failure.add_note("no further try: those of the outermost call are used up")
            return None
        if not upstream.may_retry():
            failure.add_note(f"no further try: the retry budget of {upstream.name} is used up")
            return None
        tries.left -= 1
        return pause

    def _elsewhere(self, call: Call) -> bool:  # noqa: ARG002 - for those that know of several places
        """Whether the next try of a call that failed would go to another place than those that failed it."""
        return False

    def _spared(self, call: Call, error: BaseException) -> bool:  # noqa: ARG002 - see above
        """Whether a try that failed says nothing of the upstream as a whole, for it goes on at another place of it."""
        return False

    async def _rest(self, call: Call, pause: float) -> None:
        """Sleep before the next try; also for as long as others were told meanwhile to leave the upstream alone."""
        upstream = self.upstream
        while True:
            await sleep(pause)
            call.at = now = upstream.clock()
            held_for = call.breaker.held_for(now)
            if not held_for or now + held_for + upstream.retry.policy.min_try > call.cutoff:
                return
            pause = held_for + EARLY

    async def _fall_back(self, call: Call, error: Exception) -> Answer[T]:
        """The tiers' answer, or the error of the call."""
        try:
            if isinstance(error, Rejected) and error is not call.error:
                error = self._rejection(call, error)
            if call.flight is not None:
                end_flight(call, error, self.upstream)
            if error is call.error:
                raise error  # refused, which is an answer too, or the caller has left
            call.error = error
            alone = not self._fallback.tiers or (call.wants is not None and call.wants.only_live)
            answer = None if alone else self._fallback.ask(self._question(call, error))
            if answer is not None and not isinstance(answer, Answer):
                answer = await answer
            if answer is None:
                raise error
            call.source, call.age = answer.source, answer.age
            if answer.stored_at is not None:
                self.ages.record(answer.age)
            return answer
        finally:
            del error  # its traceback leads to this frame: a circle that only the garbage collector would undo

    def _question(self, call: Call, error: Exception) -> Question:
        return Question(
            self._key_or_none(call),
            call.args,
            call.kwargs,
            error,
            self._clock(),
            call.deadline,
            call.outcome,
            self.idempotent,
            call.not_sent or call.outcome is REJECTED,
            inf if call.wants is None else call.wants.max_age,
            self._memory.kind if self._reserve else Any,
            self._memory.where,
        )

    def _rejection(self, call: Call, rejected: Rejected) -> GatewayError:
        """The error of a call whose last try was rejected: that, unless an earlier one was sent."""
        rejected.upstream, rejected.operation, rejected.attempts = self.upstream.name, self.name, call.attempts
        if call.failure is not None:
            call.failure.add_note(f"the next try was rejected: {rejected!r}")
            return call.failure
        call.outcome = REJECTED
        return rejected

    def _key_or_none(self, call: Call) -> Hashable | None:
        """The key for tiers that look but do not remember."""
        if call.key is not None:
            return call.key
        try:
            return self._keys.of(call.args, call.kwargs)
        except TypeError:
            return None

    def _finish(self, call: Call, ended: str) -> None:
        """Count how it ended, and tell who listens."""
        try:
            self.calls.remove(call)
        except KeyError:
            return  # its loop was closed under it, and it was counted then
        if call.source is not None:  # of an answer that is not live; `_ask` keeps none, or its error would lead back
            ended = call.source
        if self._circuit_of is not None and self._cold.circuit_by is not None:
            breaker_of(call.breaker).in_use -= 1
        self.tally.ended[ended] += 1
        if self.upstream.listeners.call_finished:
            self._tell_finished(call, ended)
        if ended is not LIVE or call.failure is not None:
            if call.flight is not None:  # it leads one, and leaves
                leave_flight(call, self.upstream)
            call.error = None  # as in `_fall_back`: no circles
            call.task = NOBODY
            if call.failure is not None:
                call.failure = None
            if call.outer is not None:
                call.outer = None

    def _tell_finished(self, call: Call, ended: str) -> None:
        listeners = self.upstream.listeners
        hearers: Iterable[Callable[[CallFinished], object]] = listeners.call_finished
        well = ended in AS_GOOD_AS_LIVE and call.error is None
        if well and not call.attempts and not call.waited:
            number, step = self.tally.ended[ended], listeners.plain_step
            if not step or (number - 1) % step:
                return  # most calls: few have anything to say of those that went plainly well
            hearers = listeners.of_plain(number)
        source = ended if isinstance(ended, Source) else None
        now = self.upstream.clock()
        outcome = CANCELLED if ended is CANCELLED else Outcome.SUCCESS if well else call.outcome
        event = CallFinished(
            upstream=self.upstream.name,
            at=now,
            operation=self.name,
            outcome=outcome,
            source=source,
            duration=now - call.asked_at,
            waited=call.waited,
            attempts=call.attempts + (source is LIVE),
            error=call.error,
            age=call.age,
            call=id(call),
        )
        listeners.tell(hearers, event)

    # -- answers that are not sent for

    def _from_memory(self, call: Call) -> Answer[T] | None:
        """An answer that is fresh enough for this caller; one that will not be much longer is asked for anew."""
        wants, memory = call.wants, self._memory
        if wants is not None and wants.only_live:
            return None
        found = memory.look(call.key, call.at, inf if wants is None else wants.max_age)
        if found is None:
            return None
        value, age = found
        call.source, call.age = CACHED, age
        if memory.is_due(call.key, age):
            refresh(self.upstream, self.name, call, self._ask_anew)
        self.ages.record(age)
        return Answer(value, CACHED, age, None, WALL.now() - age)

    async def _from_flight(self, call: Call, flights: Flights) -> Answer[T] | None:
        """The answer of an identical call in flight. None: it has to be sent."""
        news = await join(flights, self._flight_key(call), call, self.upstream)
        if news is None:
            return None
        if type(news) is not Landed:
            return await self._fall_back(call, too_late_for(call, self.upstream.name, self.name))
        if news.error is not None:
            return await self._fall_back(call, error_for(call, news))
        return copy_for(call, news, self._memory.where)

    def _flight_key(self, call: Call) -> Hashable | None:
        """What identical calls have in common."""
        return call.key

    def _anew(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call, for another call."""
        return call.args, call.kwargs

    async def _ask_anew(self, asked: Call) -> None:
        """One try that no caller waits for; its answer is remembered."""
        args, kwargs = self._anew(asked)
        now = self.upstream.clock()
        until = now + self._call_for
        task = cast("Task[Any]", current_task())
        breaker = asked.breaker  # as its caller saw it
        call = Call(args, kwargs, asked.key, task, 0, now, now, until, until, None, breaker, None, queues=False)
        if self._flights is not None:
            call.flight = self._flights.begin(self._flight_key(call), task)
        self.tally.refreshed += 1
        self._background.add(call)
        if self._cold.circuit_by is not None:
            breaker_of(breaker).in_use += 1
        try:
            value = await self._attempt(call)
        except Exception as error:  # noqa: BLE001 - nobody waits for it; it is counted, and told to who listens
            self._refresh_failed(call, error)
        else:
            if value is NO_VALUE:
                self._refresh_failed(call, cast("GatewayError", call.failure))
            else:
                self._remember_and_share(call, value)
        finally:
            self._finish_in_background(call)

    def _refresh_failed(self, call: Call, error: Exception) -> None:
        self.tally.refresh_failed += 1
        if call.flight is not None:
            end_flight(call, error, self.upstream)

    def _finish_in_background(self, call: Call) -> None:
        if call not in self._background:
            return  # its loop was closed under it
        self._background.remove(call)
        if call.flight is not None:
            leave_flight(call, self.upstream)
        if self._cold.circuit_by is not None:
            breaker_of(call.breaker).in_use -= 1
        call.error = call.failure = None
        call.task = NOBODY

    # -- how else it may be asked, and what it is to forget

    def using(self, *, max_age: float | None = None, only_live: bool = False) -> Using[P, T]:
        """This operation for a caller who wants more of the answer.

        `max_age`: nothing that is older, in seconds, from memory or from a fallback. `only_live`: what the upstream
        says to this very call, or an error; no memory, no other call's answer, no fallback. ConfigError for no age.
        """
        return Using(self, wants(f"{self.upstream.name}.{self.name}", max_age=max_age, only_live=only_live))

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget what is remembered of the call with these arguments; whether memory had it.

        In the store too. A call under way, which may have read what is outdated now, is not remembered either. From
        any thread. Raises TypeError or KeyNeeded as the call would.
        """
        key = self._key_for(args, kwargs)
        return self.upstream.gateway.on_its_loop(partial(self._forget, key))

    def forget_all(self, *first: Any) -> int:
        """Forget all answers to calls that begin with these arguments; without any, all. How many there were in memory.

        In the store, all of the operation's are forgotten. Raises KeyNeeded for what is no plain data.
        """
        meant = self._keys.beginning(first)
        return self.upstream.gateway.on_its_loop(partial(self._forget_where, meant))

    def _key_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        return self._keys.of(args, kwargs)

    def _forget(self, key: Hashable) -> bool:
        disown((*self.calls, *self._background), self._flights, lambda one: one == key)
        known = [memory.forget(key) for memory in self._memory.all]
        return any(known)

    def _forget_where(self, meant: Callable[[Hashable], bool]) -> int:
        disown((*self.calls, *self._background), self._flights, meant)
        return sum(memory.forget_where(meant, self._memory.where) for memory in self._memory.all)

    async def warm(self, keys: Iterable[Any]) -> int:
        """Have the answers to these calls in memory, each a tuple of arguments or a single one; how many there are.

        What memory or the store has is not asked for; the rest is, at most `refresh_limit` at once, by calls like any
        other. One that fails is left out. Raises ConfigError for an operation that does not remember; TypeError or
        KeyNeeded as the call would; GatewayClosed, WrongLoop.
        """
        only_live: Using[..., T] = Using(self, Wants(only_live=True))
        warming = Warming(memory=self._memory, upstream=self.upstream, key_for=self._key_for, ask=only_live.ask)
        return await warming.all(keys, self.name)

    # -- for threads, and as a method

    def call_blocking(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The bare value, in a thread that waits for it; deadline and cancellation are those of any call.

        The call runs on the loop that the gateway is open on; where it is open on none, on one in a background thread,
        until `close_blocking()` (or the end of `with gate:`, or of the program). It gets a copy of the thread's
        context, the ambient Deadline too. Raises what `await` would; CancelledError if the call was cancelled: by
        `close()`, or because the thread works for a caller who has left; WrongLoop, at once, in a thread that runs an
        event loop itself. An interrupt (Ctrl-C) cancels the call.
        """
        return self.ask_blocking(*args, **kwargs).value

    def ask_blocking(self, *args: P.args, **kwargs: P.kwargs) -> Answer[T]:
        """The answer, as `ask`, in a thread that waits for it: see `call_blocking`."""
        upstream, name = self.upstream, self.name
        here = f"{upstream.name}.{name}"
        refuse_on_a_loop(here, f"await it, or use `await asyncio.to_thread({name}.call_blocking, ...)`")
        loop = upstream.loop_elsewhere(name)
        try:
            return Visit(loop, partial(self.ask, *args, **kwargs), partial(upstream.enter, name)).wait()
        except GatewayClosed as closed:
            closed.upstream, closed.operation = upstream.name, name
            raise

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Operation[P, T]: ...
    @overload
    def __get__(
        self: Operation[Concatenate[Any, Q], T], instance: object, owner: type | None = None
    ) -> BoundOperation[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """In a class, an operation is a method."""
        if self._cold.binds_class:
            return BoundOperation(cast("Operation[Any, T]", self), owner or type(instance))
        return self if instance is None else BoundOperation(cast("Operation[Any, T]", self), instance)

    def drop_calls(self) -> None:
        """Count calls whose loop was closed under them as cancelled."""
        if self._flights is not None:
            self._flights.clear()
        for call in tuple(self.calls):
            self._finish(call, CANCELLED)
        for call in tuple(self._background):
            self._finish_in_background(call)


def as_asked(answer: Answer[Any], whole: bool) -> Any:  # noqa: FBT001 - private
    """The answer, or its value: a name for it in `_ask` would lead the error, by its traceback, back to itself."""
    return answer if whole else answer.value
