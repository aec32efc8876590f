"""A policy file that is read again: when it changes, or on a hangup (SIGHUP)."""

from __future__ import annotations

import logging
import os
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from contextlib import suppress
from math import isinf
from pathlib import Path
from time import monotonic, time_ns

from gateway.config import hangup
from gateway.config.document import content_of, document_of, shown_path
from gateway.config.policies import Policies, policies_in
from gateway.context import clock_of
from gateway.outcome import ConfigError, ConfigErrors

log = logging.getLogger("gateway")

Signature = tuple[int, int, int, int]
RACY = 20_000_000
"""Nanoseconds: a file changed this lately may change again without looking changed, as git knows."""


class PolicyFile:
    """A file of policies, and what was last seen of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _from_the_root(path)  # a later chdir changes nothing
        self.name = shown_path(path)
        self.content: bytes | None = None
        self.seen: Signature | None = None

    def read(self) -> Policies:
        """What it says now. Raises ConfigError."""
        found = self.signature()
        self.seen, self.content = None if racy(found) else found, None
        self.content = content_of(self.path)
        return policies_in(document_of(self.content, name=self.name))

    def signature(self) -> Signature | None:
        """What changes when the file does; None while it is not there."""
        try:
            found = Path(self.path).stat()
        except (OSError, TypeError, ValueError):
            return None
        return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)

    def touched_only(self) -> bool:
        """Whether it still says what it said; then it is seen as it is now."""
        seen = self.signature()
        try:
            same = content_of(self.path) == self.content
        except ConfigError:
            same = False
        if same:
            self.seen = seen
        return same


def _from_the_root(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    try:
        return os.path.abspath(path)  # noqa: PTH100 - a Path's `resolve` would follow links, which may be changed
    except (OSError, TypeError, ValueError):  # what is no path is told of when it is read
        return path


def racy(found: Signature | None) -> bool:
    """Whether a file was changed so lately that it may change again and look the same."""
    return found is not None and 0 <= time_ns() - found[0] < RACY


def located(error: ConfigError, *, name: str) -> list[str]:
    """All that is wrong with a file, one line each, as compilers do: `policies.toml:7: field: problem; remedy`."""
    errors = error.errors if isinstance(error, ConfigErrors) else (error,)
    return [
        one_line(f"{name}:{one.line}: {one}" if one.line else str(one) if one.field == name else f"{name}: {one}")
        for one in errors
    ]


def one_line(text: str) -> str:
    """A text without what would make it several lines, or control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Watch:
    """Reads a file again on one loop at a time, until it is stopped. What fails is logged once, and changes nothing."""

    def __init__(
        self, file: PolicyFile, reload: Callable[[], tuple[str, ...]], *, check_every: float, on_hangup: bool
    ) -> None:
        if isinstance(check_every, bool) or not isinstance(check_every, (int, float)) or not check_every > 0:
            raise ConfigError(
                "check_every", f"{check_every!r} is not above 0", "give seconds above 0, or inf for never"
            )
        self._file = file
        self._reload = reload
        self._check_every = check_every
        self._on_hangup = on_hangup
        self._loop: AbstractEventLoop | None = None
        self._timer: TimerHandle | None = None
        self._hangup = False  # one came, and the file has not been read since
        self._changing: Signature | None = None
        self._looked_twice = False
        self._told: tuple[bytes | None, str] | None = None

    def start(self, loop: AbstractEventLoop) -> None:
        """Look after the file on this loop from now on.

        On a virtual loop only hangups count: its clock would jump from one look to the next, and never stand still.
        """
        self._look_no_more()
        self._loop = loop
        self.listen()
        if clock_of(loop) is monotonic:
            self._look_later(loop)
        if self._hangup:  # while there was no loop
            self._hung_up()

    def listen(self) -> None:
        """Hear hangups from now on, where that can be: in the main thread, if nobody else handles them."""
        if self._on_hangup:
            hangup.listen(self.hung_up)

    def stop(self) -> None:
        """Look and listen no more; nothing of it is left. From any thread."""
        self._look_no_more()
        hangup.stop_listening(self.hung_up)

    def forget(self) -> None:
        """In a child, after a fork: there is no loop. What belongs to the parent's is not touched."""
        self._loop = self._timer = None

    def _look_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    def hung_up(self) -> None:
        """A hangup came: read the file again on the loop, or when there is one. Called in the midst of anything."""
        self._hangup = True  # first: whoever starts it now in another thread sees that, or is seen here
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it was closed under the watch
                loop.call_soon_threadsafe(self._hung_up)

    def _look_later(self, loop: AbstractEventLoop) -> None:
        if not isinf(self._check_every):
            self._timer = loop.call_later(self._check_every, self._look, loop)

    def _look(self, loop: AbstractEventLoop) -> None:
        """A change counts when two looks in a row see the same: then nobody is still writing."""
        try:
            now = self._file.signature()
            if racy(now) or (now == self._file.seen and now is not None):
                self._looked_twice = False
            elif not self._looked_twice or now != self._changing:
                self._changing, self._looked_twice = now, True
            else:
                self._looked_twice = False
                if not self._file.touched_only():
                    self._try(changed=True)
        finally:
            if self._loop is loop:
                self._look_later(loop)

    def _hung_up(self) -> None:
        self._hangup = False
        self._try(changed=False)

    def _try(self, *, changed: bool) -> None:
        try:
            names = self._reload()
        except ConfigError as error:
            self._failed(located(error, name=self._file.name), None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next change may mend it
            self._failed([repr(error)], error)
        else:
            self._told = None
            if not names and not changed:
                log.info("%s: read again, nothing has changed", self._file.name)

    def _failed(self, lines: list[str], error: Exception | None) -> None:
        told = (self._file.content, "\n".join(lines))
        if told != self._told:
            self._told = told
            log.error("the policies stay as they are:\n%s", told[1], exc_info=error)
