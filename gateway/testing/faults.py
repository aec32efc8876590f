"""An upstream that misbehaves on cue."""

from __future__ import annotations

from asyncio import Event, sleep
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Self

from gateway.operation import Operation
from gateway.outcome import ConfigError
from gateway.views import BoundOperation

Step = Callable[[tuple[Any, ...], dict[str, Any]], Awaitable[Any]]
Error = BaseException | type[BaseException]


class Faults:
    """Stands in for an operation's function while its `with` block lasts; pool, circuit, limits and fallbacks are real.

        with Faults(user_ratings).error(ConnectionError()).delay(0.2).value([]):
            ...   # the first try fails, the second takes 0.2 s, the third gives [], the rest are the real function's

    Each step is one try. Beyond the script the real function is called, unless a `chance` strikes; `seed` says which.
    Of a method, all objects get the faults. `tries` counts.
    """

    def __init__(self, operation: Operation[..., Any] | BoundOperation[..., Any], *, seed: int = 0) -> None:
        if isinstance(operation, BoundOperation):
            operation = operation.operation
        if not isinstance(operation, Operation):
            raise ConfigError(
                "Faults", f"{operation!r} is not an operation", "give what `@upstream.operation` gave you"
            )
        self._operation = operation
        self._random = Random(seed)  # noqa: S311 - the same faults in every run
        self._script: deque[Step] = deque()
        self._chances: list[tuple[float, Error]] = []
        self._real: Callable[..., Awaitable[Any]]
        self._entered = False
        self.tries = 0

    def value(self, value: Any) -> Self:
        """The next try gives this."""

        async def step(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            return value

        return self._then(step)

    def error(self, error: Error) -> Self:
        """The next try raises this."""
        check_error(error)

        async def step(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            raise fresh(error)

        return self._then(step)

    def delay(self, seconds: float) -> Self:
        """The next try calls the real function after so many seconds."""

        async def step(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            await sleep(seconds)
            return await self._real(*args, **kwargs)

        return self._then(step)

    def hang(self) -> Self:
        """The next try never ends by itself."""

        async def step(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Any:
            await Event().wait()

        return self._then(step)

    def chance(self, probability: float, error: Error) -> Self:
        """Beyond the script, each try raises this with a probability."""
        check_error(error)
        if not 0.0 <= probability <= 1.0:
            raise ConfigError("Faults.chance", f"{probability} is no probability", "give 0 to 1")
        self._chances.append((probability, error))
        return self

    def clear(self) -> Self:
        """Forget the script and the chances."""
        self._script.clear()
        self._chances.clear()
        return self

    def __enter__(self) -> Self:
        if self._entered:
            raise RuntimeError("these Faults are in force already; make others with Faults(operation)")
        self._entered = True
        self._real = self._operation.swap_sender(self._send)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        self._operation.swap_sender(self._real)

    def _then(self, step: Step) -> Self:
        self._script.append(step)
        return self

    async def _send(self, *args: Any, **kwargs: Any) -> Any:
        self.tries += 1
        if self._script:
            return await self._script.popleft()(args, kwargs)
        for probability, error in self._chances:
            if self._random.random() < probability:
                raise fresh(error)
        return await self._real(*args, **kwargs)


def check_error(error: Error) -> None:
    """Raise ConfigError for what cannot be raised."""
    if not isinstance(error, BaseException) and not (isinstance(error, type) and issubclass(error, BaseException)):
        raise ConfigError("Faults", f"{error!r} cannot be raised", "give an exception, or a type of one")


def fresh(error: Error) -> BaseException:
    """An error to raise, without the traceback of an earlier time."""
    return error() if isinstance(error, type) else error.with_traceback(None)
