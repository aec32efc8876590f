"""What operators did, and what holds because of it: one file that only grows, of one record a line.

It is the audit, and it is the memory of the tuned values: each record that changes those of an upstream has all of them
as they are afterwards, so the last such record of each upstream is what holds. A record is on disk before what it tells
of is done. Whatever ends the process, between any two steps, values and audit agree: the next start goes by the file.

A last line that was not written to its end tells of what was never done, and is cut off. Anything else that is no
record is an error: what holds must not be guessed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import msgspec
from msgspec import Struct

from gateway.config.document import shown_path
from gateway.outcome import ConfigError

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

log = logging.getLogger("gateway")

SHOWN = 1000
"""Records that are kept at hand."""
LARGEST = 8 * 1024 * 1024
"""Bytes, some 20,000 changes; then the file begins anew with what holds, and the old one stays as `.1`."""


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody did, or what was done: `kind` says what, `at` when (wall clock), `who` and `why` in his own words.

    `role`: what gave him leave; `remote`: where he was. `changes`: each knob with the value before and after. `tuned`:
    all values that are laid over the upstream's policy from now on, None if that is as before. `facts`: what else there
    is to say.
    """

    id: int
    at: float
    kind: str
    upstream: str
    who: str
    role: str = ""
    remote: str = ""
    why: str = ""
    changes: dict[str, tuple[Any, Any]] = {}
    tuned: dict[str, Any] | None = None
    facts: dict[str, Any] = {}


class By(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who wants a change: `role` is what gives leave, `remote` where the wish comes from; `why` in words."""

    who: str
    role: str = ""
    remote: str = ""
    why: str = ""


class Journal:
    """The records, in a file or, without a path, in memory only. Raises ConfigError for a file that cannot be used.

    record = journal.record("tune", "ratings", By(who="ada"), tuned={"bulkhead.limit": 40})
    journal.write(record)  # it blocks: a disk may take its time
    journal.take(record)
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, wall: Callable[[], float] = time) -> None:
        self.name = None if path is None else shown_path(path)
        self.tuned: dict[str, Mapping[str, Any]] = {}
        self.recent: deque[Record] = deque(maxlen=SHOWN)
        self.largest = LARGEST
        self._path = None if path is None else Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` follows links
        self._wall = wall
        self._last = 0
        self._size = 0
        self._file = -1
        self._broken = False
        if self._path is not None:
            self._file = self._open(self._path)
            try:
                self._read(self._path)
            except BaseException:
                self.close()
                raise

    @property
    def kept(self) -> bool:
        """Whether it survives this process."""
        return self._path is not None

    def record(
        self,
        kind: str,
        upstream: str,
        by: By,
        *,
        changes: Mapping[str, tuple[Any, Any]] | None = None,
        tuned: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Record:
        """The next record, not yet written."""
        return Record(
            id=self._last + 1,
            at=self._wall(),
            kind=kind,
            upstream=upstream,
            who=by.who,
            role=by.role,
            remote=by.remote,
            why=by.why,
            changes=dict(changes or {}),
            tuned=None if tuned is None else dict(tuned),
            facts=dict(facts or {}),
        )

    def write(self, record: Record) -> None:
        """Have it on disk when this returns. In any thread, one at a time. Raises OSError, and then it is not there."""
        if self._path is None:
            return
        line = msgspec.json.encode(record) + b"\n"
        if self._size and self._size + len(line) > self.largest:
            self._begin_anew(self._path)
        self._write(line)

    def take(self, record: Record) -> None:
        """Go by a record that is written."""
        self._last = record.id
        self.recent.append(record)
        if record.tuned:
            self.tuned[record.upstream] = record.tuned
        elif record.tuned is not None:
            self.tuned.pop(record.upstream, None)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # -- the file

    def _open(self, path: Path) -> int:
        """The file, made if there is none, and ours alone: two processes with one overlay would undo each other's."""
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unusable(f"it cannot be opened: {error.strerror}", "a path that can be written") from None
        try:
            lock(file)
            sync_folder(path)
        except OSError:
            os.close(file)
            raise self._unusable("another gateway goes by it already", "a path of its own for each gateway") from None
        if not path.is_file():
            os.close(file)
            raise self._unusable("it is no regular file", "another path")
        return file

    def _unusable(self, problem: str, instead: str) -> ConfigError:
        return ConfigError(str(self.name), problem, f"give journal= {instead}")

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        *lines, torn = content.split(b"\n")
        records = [decoded(line) for line in lines]
        while records and records[-1] is None:  # a disk that lost power may have the length, and not the content
            torn = lines[len(records) - 1] + b"\n" + torn
            records.pop()
        for number, record in enumerate(records, 1):
            if record is None:
                problem = f"line {number} is no record"
                raise ConfigError(str(self.name), problem, "mend that line, or move the file away")
            self.take(record)
        self._size = len(content) - len(torn)
        if torn:
            log.warning("%s: the last record was not written to its end, and is cut off", self.name)
            os.ftruncate(self._file, self._size)
            os.fsync(self._file)

    def _write(self, line: bytes) -> None:
        """All of it, or nothing."""
        if self._broken:
            raise OSError(f"{self.name} could not be mended after a write that failed")
        try:
            rest = line
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except BaseException:
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self._broken = True
            raise
        self._size += len(line)

    def _begin_anew(self, path: Path) -> None:
        """A new file with what holds takes the place of the old one; at no moment is there none."""
        kept = [
            Record(id=self._last, at=self._wall(), kind="kept", upstream=name, who="gateway", tuned=dict(tuned))
            for name, tuned in self.tuned.items()
        ] or [Record(id=self._last, at=self._wall(), kind="kept", upstream="", who="gateway")]
        fresh, old = path.with_name(f"{path.name}.new"), path.with_name(f"{path.name}.1")
        with suppress(FileNotFoundError):
            fresh.unlink()
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            lock(file)
            content = b"".join(msgspec.json.encode(record) + b"\n" for record in kept)
            rest = content
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fsync(file)
            with suppress(FileNotFoundError):
                old.unlink()
            os.link(path, old)
            fresh.replace(path)
            sync_folder(path)
        except BaseException:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._size, self._broken = file, len(content), False


def decoded(line: bytes) -> Record | None:
    """The record in a line, if it is one."""
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # also what is well-formed, and no record
        return None


def lock(file: int) -> None:
    """Be the only one who has it; OSError if somebody else does. It ends with the file, whatever ends the process."""
    if sys.platform != "win32":
        flock(file, LOCK_EX | LOCK_NB)


def sync_folder(path: Path) -> None:
    """Let the name of a file survive as well."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
