"""What the gateway has to say, as log lines: what happens to circuits, who is turned away, what is answered instead.

    from gateway import log

    log.configure()           # optional: how structlog writes; leave it out if you have your own configuration
    log.listen(gate)

    03:18:07 [warning  ] circuit open       upstream=ratings was=closed
    03:18:07 [warning  ] degraded answer    upstream=ratings operation=user_ratings source=last_good error=...

The core itself logs rarely, by the standard library's logger `gateway`; `configure` renders that the same way. Lines
are written where they arise, so a full pipe behind the stream blocks the event loop, as with any synchronous logging.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Protocol, TextIO

import structlog
from structlog.typing import Processor

from gateway.events import CallFinished, CircuitChanged, Event
from gateway.outcome import Outcome
from gateway.registry import Gateway

LIVE = frozenset({"live", "coalesced", "cached"})


class Logger(Protocol):
    """A structlog logger, or anything that takes an event and its facts."""

    def info(self, event: str, **facts: Any) -> Any:
        """As it should be."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Somebody may want to look."""
        ...


def listen(gate: Gateway, *, logger: Logger | None = None, every: float = 1.0) -> Callable[[Event], None]:
    """Log a gateway's transitions, rejections and degraded answers; gives the listener, for `gate.off`.

    Of rejections, and of degraded answers, one line is written per operation, source and `every` seconds; it says in
    `unlogged` how many there were in between. A transition is always written.
    """
    listener = Listener(logger or structlog.get_logger("gateway"), every)
    gate.on(CircuitChanged, CallFinished, plain_every=0)(listener)
    return listener


class Listener:
    """Turns events into lines."""

    def __init__(self, logger: Logger, every: float) -> None:
        self._logger = logger
        self._every = every
        self._written_at: dict[tuple[str, str, str], float] = {}
        self._unlogged: dict[tuple[str, str, str], int] = {}

    def __call__(self, event: Event) -> None:
        """One event."""
        if isinstance(event, CircuitChanged):
            self._circuit_changed(event)
        elif isinstance(event, CallFinished) and event.error is not None:
            if event.source is not None and event.source not in LIVE:
                self._call(event, "degraded answer", event.source)
            elif event.source is None and event.outcome is Outcome.REJECTED:
                self._call(event, "rejected", "")

    def _circuit_changed(self, event: CircuitChanged) -> None:
        write = self._logger.warning if event.after in {"open", "isolated"} else self._logger.info
        key = {} if event.key is None else {"key": event.key}
        write(f"circuit {event.after}", upstream=event.upstream, was=event.before, **key)

    def _call(self, event: CallFinished, what: str, source: str) -> None:
        key = (event.upstream, event.operation, source)
        if event.at < self._written_at.get(key, float("-inf")) + self._every:
            self._unlogged[key] = self._unlogged.get(key, 0) + 1
            return
        self._written_at[key] = event.at
        facts: dict[str, Any] = {"source": source} if source else {}
        facts["error"] = f"{type(event.error).__name__}: {event.error}"
        if unlogged := self._unlogged.pop(key, 0):
            facts["unlogged"] = unlogged
        self._logger.warning(what, upstream=event.upstream, operation=event.operation, **facts)


def configure(*, level: int = logging.INFO, json: bool | None = None, stream: TextIO | None = None) -> None:
    """Write structlog's lines, and those of the standard logger `gateway`, to a stream (standard error).

    `json`: one JSON object a line, times in UTC; else for the eye, local time. Not said: JSON unless the stream is a
    terminal. May be called again.
    """
    out = sys.stderr if stream is None else stream
    shared: list[Processor] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level]
    rendered: list[Processor]
    if not out.isatty() if json is None else json:
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
        rendered = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        shared.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        plain = structlog.dev.plain_traceback  # the default is rich's, where that is installed
        rendered = [structlog.dev.ConsoleRenderer(colors=out.isatty(), sort_keys=False, exception_formatter=plain)]
    rendered.append(writable(out))
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,  # a cached logger ignores a later configure(), and these lines are few
    )
    handler = RenderingHandler(out)
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[meta, *rendered], foreign_pre_chain=shared))
    standard = logging.getLogger("gateway")
    standard.handlers = [*(one for one in standard.handlers if not isinstance(one, RenderingHandler)), handler]
    standard.setLevel(level)
    standard.propagate = False  # it is written here: a handler of the root would write it again


def writable(out: TextIO) -> Processor:
    """Spells out what a stream's encoding does not have: one letter in an upstream's error would be the last line."""
    encoding = getattr(out, "encoding", None) or "utf-8"

    def spelled(_: object, __: str, line: Any) -> str:
        return str(line).encode(encoding, "backslashreplace").decode(encoding)

    return spelled


class RenderingHandler(logging.StreamHandler[TextIO]):
    """The handler that `configure` puts on the logger `gateway`, known again by its type."""
