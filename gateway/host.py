"""What an operation needs of what it belongs to: its upstream, and the gateway of that."""

from __future__ import annotations

from asyncio import AbstractEventLoop, Task
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from gateway.breaker import CircuitBreaker
from gateway.bulkhead import Bulkhead
from gateway.circuits import Circuits
from gateway.context import Clock
from gateway.counts import Histogram
from gateway.events import Listeners
from gateway.lane import Lane
from gateway.policy import Policy
from gateway.retry import Retry

R = TypeVar("R")


class Home(Protocol):
    """What an operation needs of its gateway."""

    def on_its_loop(self, act: Callable[[], R]) -> R:
        """Do it on the thread of the loop it is open on; right here if there is none."""
        ...


class Host(Protocol):
    """What an operation needs of its upstream."""

    name: str
    loop: object
    thread: int
    clock: Clock
    bulkhead: Bulkhead
    breaker: CircuitBreaker
    circuits: Circuits
    policy: Policy
    retry: Retry
    refreshing: dict[Hashable, Task[None]]
    waits: Histogram
    listeners: Listeners

    @property
    def gateway(self) -> Home:
        """The gateway it belongs to."""
        ...

    def task_here(self, operation: str) -> Task[Any]:
        """The current task, after opening the gateway on its loop if need be; raises if it cannot be."""
        ...

    def lane(self, seconds: float, *, repeats: bool) -> Lane:
        """The lane for tries of this duration, of calls that are repeated or not."""
        ...

    def may_retry(self) -> bool:
        """Whether the retry budget grants one more; it is then spent."""
        ...

    def loop_elsewhere(self, operation: str) -> AbstractEventLoop:
        """The loop the gateway is open on, for a thread that runs none; raises if there is none, or cannot be."""
        ...

    def enter(self, operation: str) -> None:
        """Let in a call from another thread, on the loop; raises if it cannot be."""
        ...
