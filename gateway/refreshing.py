"""Asking anew in the background, while the caller has the answer that is remembered."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from gateway.call import Call
from gateway.context import put_ambient
from gateway.host import Host


def refresh(upstream: Host, operation: str, call: Call, anew: Callable[[Call], Coroutine[Any, Any, None]]) -> None:
    """Ask for the same in the background: where a place is free, the circuit lets it, and nobody does so already.

    It runs in the context of who asked, since that may name him to the function, but by a deadline of its own.
    """
    refreshing, key = upstream.refreshing, call.key
    if key in refreshing or len(refreshing) >= upstream.policy.refresh_limit or not upstream.bulkhead.has_room:
        return
    if call.breaker.refuses(upstream.clock()):
        return
    context = copy_context()
    context.run(put_ambient, None)
    name = f"gateway: refresh of {upstream.name}.{operation}"
    task = call.task.get_loop().create_task(anew(call), name=name, context=context)

    def over(_: object) -> None:
        if refreshing.get(key) is task:
            del refreshing[key]

    refreshing[key] = task
    task.add_done_callback(over)
