"""SIGHUP: one handler for all who want to hear it, as long as there are any and nobody else handles it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import current_thread, main_thread
from typing import Any
from weakref import WeakMethod

EARS: dict[int, WeakMethod[Callable[[], None]]] = {}
"""Who is told, by the ids of the objects whose methods these are."""


def listen(hear: Any) -> None:
    """Tell this method of each hangup, until `stop_listening` or its object is gone.

    It is called in the main thread between any two steps of it, so it must do next to nothing. Only the main thread
    can begin to listen, and only where nobody else handles hangups: otherwise nothing happens.
    """
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or current_thread() is not main_thread():
        return
    if signal.getsignal(hangup) not in {signal.SIG_DFL, _heard}:
        return
    who = id(hear.__self__)
    EARS[who] = WeakMethod(hear, lambda _: EARS.pop(who, None))
    signal.signal(hangup, _heard)


def stop_listening(hear: Any) -> None:
    """Tell it no more; from any thread."""
    EARS.pop(id(hear.__self__), None)
    give_back()


def give_back() -> None:
    """Let hangups do again what they do by default, if nobody listens. Only the main thread can."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or EARS or current_thread() is not main_thread():
        return
    if signal.getsignal(hangup) is _heard:  # not somebody else's by now
        signal.signal(hangup, signal.SIG_DFL)


def _heard(number: int, _: object) -> None:
    hears = [hear for ear in tuple(EARS.values()) if (hear := ear()) is not None]
    for hear in hears:
        hear()
    if not hears:  # the last one stopped in a thread that could not give it back
        EARS.clear()
        give_back()
        os.kill(os.getpid(), number)
