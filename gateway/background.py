"""An event loop in a thread of its own, for a program that runs none."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Event, Runner
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import TIMEOUT_MAX, Thread
from threading import Event as ThreadEvent
from typing import Any

from gateway.blocking import EXIT


class Background:
    """A loop that runs in a daemon thread from `start` to `stop`. First of all it awaits `opened`, told of itself."""

    NAME = "gateway: loop"

    def __init__(self, opened: Callable[[Background], Coroutine[Any, Any, None]]) -> None:
        self.loop: AbstractEventLoop | None = None
        self.stopped = False  # whether it was told to end: it may not have begun, and must open nothing then
        self.error: BaseException | None = None  # why it could not be opened
        self._opened = opened
        self._ready = ThreadEvent()
        self._stop: Event | None = None
        self._thread = Thread(target=self._work, name=self.NAME, daemon=True)

    def start(self) -> None:
        """Start the thread. RuntimeError where the system has no more."""
        self._thread.start()

    def wait(self) -> None:
        """Wait until it is open, or has failed to. Blocks."""
        self._ready.wait()

    @property
    def ready(self) -> bool:
        """Whether it has been opened, or has failed to, or has ended."""
        return self._ready.is_set()

    def stop(self) -> None:
        """Tell the loop to end, and what still runs there with it; from any thread."""
        self.stopped = True
        if self.loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # it is closed already
                self.loop.call_soon_threadsafe(self._stop.set)

    def join(self, patience: float) -> tuple[str, ...]:
        """Wait for the end of the thread, at most this many seconds; its name if it is stuck. Blocks."""
        self._thread.join(min(patience, TIMEOUT_MAX))
        return (self.NAME,) if self._thread.is_alive() else ()

    def _work(self) -> None:
        try:
            with Runner() as runner:
                self.loop = runner.get_loop()
                runner.run(self._main())
        except RuntimeError:
            if not EXIT.is_set():  # else: an executor that was used could not get a thread any more to end in
                raise
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._stop = Event()
        try:
            await self._opened(self)
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            self.error = error
            return
        finally:
            self._ready.set()
        await self._stop.wait()
