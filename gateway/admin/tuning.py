"""Values that operators have tuned: kept in the journal, laid over what the file or code says, taken back or folded in.

A change is checked as a whole, then written to the journal, then done. One comes after the other, and each is carried
through to its end, whoever asked for it leaves. So values and audit agree, and the next start finds them again.

A value that what the file says now does not go together with is set aside, with all others of that upstream: a file
that somebody has just written must hold, and so must the service start. `drift` goes on showing them.
"""

from __future__ import annotations

import logging
from asyncio import AbstractEventLoop, Lock, Task, TimerHandle, get_running_loop, shield, to_thread, wait
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from contextvars import Context
from hashlib import blake2b
from threading import get_ident
from typing import Any, TypeVar

import msgspec

from gateway.admin.journal import By, Journal, Record
from gateway.config.patch import BUDGET, given_in, joined, json_of, knobs_of, laid_over, parts_of, patched
from gateway.config.policies import differences
from gateway.events import PolicyChanged
from gateway.outcome import ConfigError, ConfigErrors
from gateway.policy import Policy
from gateway.registry import Gateway
from gateway.upstream import Upstream

log = logging.getLogger("gateway")

T = TypeVar("T")
WITHDRAWN = By(who="gateway", why="it did not fit any more")
CODE_EVERY = 1.0
"""Seconds in which what code tunes is one record for each upstream: it may do so all the time."""


class Stale(Exception):
    """Somebody else has changed the policy meanwhile. `etag`: as it is now."""

    def __init__(self, etag: str) -> None:
        super().__init__(etag)
        self.etag = etag


class NotKept(Exception):
    """The journal cannot be written, so nothing was changed."""


class Tuning:
    """The tuned values of a gateway, from `start` to `close`. `on_record` hears of every record."""

    def __init__(
        self, gate: Gateway, journal: Journal, *, on_record: Callable[[Record], object] = lambda _: None
    ) -> None:
        self.gate = gate
        self.journal = journal
        self.aside: dict[str, str] = {}
        self._on_record = on_record
        self._lock = Lock()
        self._changes: set[Task[Any]] = set()
        self._etags: dict[str, tuple[Policy, str]] = {}
        self._drifts: dict[str, tuple[Policy, Mapping[str, Any], dict[str, tuple[Any, Any]]]] = {}
        self._mine = False  # the change that is told of now is ours
        self._loop: AbstractEventLoop
        self._thread: int
        self._in_code: dict[tuple[str, str], tuple[Policy, Policy]] = {}
        self._timer: TimerHandle | None = None

    def start(self) -> None:
        """Lay the tuned values over all policies, those of upstreams to come as well."""
        self._loop, self._thread = get_running_loop(), get_ident()
        self.gate.lay_over(self.over)
        self._mine = True
        try:
            for upstream in self.gate:
                if upstream.name in self.journal.tuned:
                    upstream.policy = self.over(upstream.name, upstream.policy)
        finally:
            self._mine = False
        self.gate.on(PolicyChanged)(self._changed)

    @property
    def applying(self) -> bool:
        """Whether a change that is heard of now is an operator's, of which there is a record."""
        return self._mine

    async def close(self) -> None:
        """Carry changes through to their end, and keep no more. What is tuned stays so."""
        self.gate.off(self._changed)
        self.gate.lay_over(None)
        self._tell_of_code()
        while self._changes:
            await wait(self._changes)

    def over(self, name: str, policy: Policy) -> Policy:
        """What holds for an upstream, by what is said of it."""
        tuned = self.journal.tuned.get(name)
        if not tuned:
            return policy
        try:
            found = laid_over(policy, tuned)
            if name in self.gate:
                check(self.gate[name], found)
        except ConfigError as error:
            self._set_aside(name, error)
            return policy
        self.aside.pop(name, None)
        return found

    def _set_aside(self, name: str, error: ConfigError) -> None:
        if self.aside.get(name) != str(error):
            self.aside[name] = str(error)
            log.warning("%s: the tuned values are set aside, for they do not fit any more: %s", name, error)

    # -- looking

    def etag(self, name: str) -> str:
        """What changes when the policy does."""
        policy = self.gate[name].policy
        known = self._etags.get(name)
        if known is None or known[0] is not policy:
            said = msgspec.json.encode([name, knobs_of(policy), sorted(given_in(policy))])
            known = self._etags[name] = policy, f'"{blake2b(said, digest_size=12).hexdigest()}"'
        return known[1]

    def drift(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The tuned knobs of an upstream: what file or code says, and what it is tuned to."""
        tuned = self.journal.tuned.get(name)
        if not tuned:
            return {}
        told = self.gate.told_of(name)
        known = self._drifts.get(name)
        if known is None or known[0] is not told or known[1] is not tuned:
            says, usual = knobs_of(told), knobs_of(Policy())
            each = {knob: to for whole, to in tuned.items() for knob in parts_of(whole)}
            drift = {knob: (says.get(knob, "none"), usual[knob] if to is None else to) for knob, to in each.items()}
            known = self._drifts[name] = told, tuned, {knob: pair for knob, pair in drift.items() if pair[0] != pair[1]}
        return known[2]

    # -- changing

    async def patch(self, name: str, patch: object, by: By, *, if_match: str | None = None) -> None:
        """Apply a merge patch, or change nothing and raise: ConfigError with all that is wrong, Stale, NotKept."""
        await self._carried_through(lambda: self._patch(name, patch, by, if_match))

    async def _patch(self, name: str, patch: object, by: By, if_match: str | None) -> None:
        upstream = self.gate[name]
        if if_match is not None and if_match != "*" and self.etag(name) not in etags_in(if_match):
            raise Stale(self.etag(name))
        before = upstream.policy
        after = patched(before, patch)
        check(upstream, after.policy)
        if not after.sets:
            return
        told, kept = self.gate.told_of(name), self.journal.tuned.get(name, {})
        tuned = joined({} if name in self.aside else kept, after.sets)
        try:
            check(upstream, laid_over(told, tuned))
        except ConfigError as error:
            problem = f"without what code has tuned it would not hold after a restart: {error.problem}"
            raise ConfigError(error.field, problem, error.remedy) from None
        changes = changes_between(before, after.policy)
        await self._record(self.journal.record("tune", name, by, changes=changes, tuned=tuned))
        self.aside.pop(name, None)
        try:
            self._apply(upstream, patched(upstream.policy, patch).policy)  # as it is by now
        except ConfigError:  # file or code were quicker, and it does not fit any more
            await self._record(self.journal.record("withdrawn", name, WITHDRAWN, tuned=kept))
            raise

    async def drop(self, name: str, by: By) -> dict[str, tuple[Any, Any]]:
        """Take the tuned values back: what file or code says holds again. Gives them. Raises as `patch`."""
        return await self._carried_through(lambda: self._drop(name, by))

    async def _drop(self, name: str, by: By) -> dict[str, tuple[Any, Any]]:
        upstream, drift = self.gate[name], self.drift(name)
        told = self.gate.told_of(name)
        check(upstream, told)
        if name not in self.journal.tuned:
            return {}
        changes = changes_between(upstream.policy, told)
        await self._record(self.journal.record("drop", name, by, changes=changes, tuned={}))
        self.aside.pop(name, None)
        self._apply(upstream, self.gate.told_of(name))
        return drift

    async def fold(
        self, name: str, by: By, into_file: Callable[[str, Policy, Mapping[str, Any]], None]
    ) -> dict[str, tuple[Any, Any]]:
        """Write the tuned values into the policy file: they are what it says from then on. Gives them.

        Raises ConfigError for a file that cannot take them, and as `patch`.
        """
        return await self._carried_through(lambda: self._fold(name, by, into_file))

    async def _fold(
        self, name: str, by: By, into_file: Callable[[str, Policy, Mapping[str, Any]], None]
    ) -> dict[str, tuple[Any, Any]]:
        tuned = self.journal.tuned.get(name)
        if not tuned:
            return {}
        self.gate.reload()  # what somebody has written into it lately holds, and is no error of what is tuned
        drift = self.drift(name)
        if name in self.aside:
            raise ConfigError(f"{name} tuned", f"it is set aside: {self.aside[name]}", "drop it, or tune it anew")
        await to_thread(into_file, name, laid_over(self.gate.told_of(name), tuned), tuned)
        self.gate.reload()  # what was tuned is still laid over it, and the same
        await self._record(self.journal.record("fold", name, by, changes=drift, tuned={}))
        return drift

    async def note(
        self, kind: str, name: str, by: By, act: Callable[[], T], facts: Mapping[str, Any] | None = None
    ) -> tuple[T, bool]:
        """Do something that does not outlive this process, and keep a record of it; whether that could be kept.

        It is done first: who isolates an upstream in an emergency must not have to wait for a disk that is full.
        """
        return await self._carried_through(lambda: self._note(kind, name, by, act, facts))

    async def _note(
        self, kind: str, name: str, by: By, act: Callable[[], T], facts: Mapping[str, Any] | None
    ) -> tuple[T, bool]:
        value = act()
        told = dict(facts or {})
        if isinstance(value, int):
            told["number"] = value
        try:
            await self._record(self.journal.record(kind, name, by, facts=told))
        except NotKept:
            return value, False
        return value, True

    def _apply(self, upstream: Upstream, policy: Policy) -> None:
        self._mine = True
        try:
            upstream.policy = policy
        finally:
            self._mine = False

    async def _record(self, record: Record) -> None:
        try:
            await to_thread(self.journal.write, record)
        except OSError as error:
            log.error("%s cannot be written: %s", self.journal.name, error)  # noqa: TRY400 - no bug of ours
            raise NotKept(f"the journal cannot be written: {error.strerror or error}") from None
        self.journal.take(record)
        self._on_record(record)

    async def _carried_through(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """One change after the other, each to its end, even if who asked for it has left."""

        async def in_turn() -> T:
            async with self._lock:
                self.gate.on_its_loop(lambda: None)  # or WrongLoop, before anything is written
                return await change()

        return await shield(self._begin(in_turn()))

    def _begin(self, change: Coroutine[Any, Any, T]) -> Task[T]:
        """Its end is waited for by `close` at the latest."""
        task = get_running_loop().create_task(change, name="gateway: a change", context=Context())
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task

    # -- what others tune

    def _changed(self, event: PolicyChanged) -> None:
        """Somebody else has changed a policy; in any thread, where the gateway is open on no loop."""
        if self._mine:
            return
        who = "file" if self.gate.reloading else "code"
        if get_ident() == self._thread:
            self._notice(who, event)
        else:
            with suppress(RuntimeError):  # our loop has ended
                self._loop.call_soon_threadsafe(self._notice, who, event)

    def _notice(self, who: str, event: PolicyChanged) -> None:
        before, _ = self._in_code.get((event.upstream, who), (event.before, None))
        self._in_code[event.upstream, who] = before, event.after
        if self._timer is None:
            self._timer = self._loop.call_later(CODE_EVERY, self._tell_of_code)

    def _tell_of_code(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        told, self._in_code = self._in_code, {}
        for (name, who), (before, after) in told.items():
            changes = changes_between(before, after)
            if changes:
                keeping = self._begin(self._keep(name, who, changes))
                keeping.set_name(f"gateway: what {who} tuned")

    async def _keep(self, name: str, who: str, changes: Mapping[str, tuple[Any, Any]]) -> None:
        async with self._lock:
            try:
                await self._record(self.journal.record("tune", name, By(who=who), changes=changes))
            except NotKept:
                return  # it is logged


def check(upstream: Upstream, policy: Policy) -> None:
    """Raise what an upstream has against a policy, with fields as the patch names them."""
    try:
        upstream.check(policy)
    except ConfigError as error:
        raise ConfigErrors.together(
            ConfigError(
                one.field.removeprefix(f"{upstream.name}."),
                f"with the limits of an operation, {one.problem}",
                one.remedy,
            )
            for one in (error.errors if isinstance(error, ConfigErrors) else (error,))
        ) from None


def changes_between(before: Policy, after: Policy) -> dict[str, tuple[Any, Any]]:
    """The knobs that differ, with both values, as JSON."""
    return {
        knob: (json_of(old), json_of(new))
        for knob, (old, new) in differences(before, after).items()
        if knob != BUDGET  # its parts are told
    }


def etags_in(header: str) -> set[str]:
    """The entity tags in an If-Match header; weak ones match nothing (RFC 9110, 13.1.1)."""
    return {tag for part in header.split(",") if (tag := part.strip()).startswith('"')}
