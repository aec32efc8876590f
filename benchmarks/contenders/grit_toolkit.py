"""grit-toolkit: layers, combined by a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grit

from benchmarks.terms import DEFAULT, Function, Terms, check, limited, stand_in, with_memory


class Grit:
    """A policy of layers; a plain function runs in a thread, the layers with it, since they are then the plain ones."""

    name = "grit-toolkit"
    note = "policy(fallback, retry, breaker, bulkhead, timeout); a dict round it for last good"

    def guard(self, function: Function, terms: Terms) -> Function:
        """Layers round it."""
        check(terms, "refused", "window_for")
        call = self._layers(terms)(function)
        if terms.single_flight:
            call = grit.singleflight()(call)
        call = limited(call, terms)
        return with_memory(call, terms) if terms.plan_b == "last good" and not terms.single_flight else call

    def guard_plain(self, function: Callable[[str], Any], terms: Terms) -> Function:
        """The plain layers, in a thread."""
        call = self._layers(terms)(function)

        async def in_thread(key: str) -> Any:
            return await asyncio.to_thread(call, key)

        return in_thread

    @staticmethod
    def _layers(terms: Terms) -> Any:
        layers = [
            grit.breaker(fails=terms.failures, reset_after=terms.open_for),
            grit.bulkhead(size=terms.limit, timeout=10.0),
            grit.timeout(terms.timeout),
        ]
        if terms.listener is not None:
            layers[0].on_change(lambda *state: terms.listener(state))
        if terms.attempts > 1:
            layers.insert(0, grit.retry(tries=terms.attempts, wait=grit.constant(terms.pause), giveup=refused_by_grit))
        match terms.plan_b:
            case "default":
                layers.insert(0, grit.fallback(value=DEFAULT))
            case "async function":
                layers.insert(0, grit.fallback(fn=stand_in))
        return grit.policy(*layers)

    async def close(self) -> None:
        """Nothing is held."""


def refused_by_grit(error: Exception) -> bool:
    """An open circuit and a full pool are not tried again."""
    return isinstance(error, (grit.exceptions.BreakerOpen, grit.exceptions.BulkheadFull))
