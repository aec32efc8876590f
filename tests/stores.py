"""A store for tests, behind memories: it holds bytes, counts, and does as it is told."""

from __future__ import annotations

from asyncio import sleep
from typing import Any

from aiocache import SimpleMemoryCache

from fallbacks.behind import name_of
from fallbacks.envelope import wrap
from fallbacks.stores.octets import Octets
from fallbacks.wall import WALL


class Store(SimpleMemoryCache):
    """A backend of aiocache. `delay`: seconds that all takes; `error`: what it raises."""

    def __init__(self) -> None:
        super().__init__(serializer=Octets())
        self.gets: list[str] = []
        self.error: Exception | None = None
        self.delay = 0.0

    async def _multi_set(self, pairs: Any, ttl: Any = None, **kwargs: Any) -> Any:
        await self._do()
        self._cache.update(pairs)

    async def _multi_get(self, keys: Any, **kwargs: Any) -> Any:
        self.gets.append(keys[0])
        await self._do()
        return [self._cache.get(key) for key in keys]

    async def _delete(self, key: str, **kwargs: Any) -> int:
        await self._do()
        return int(self._cache.pop(key, None) is not None)

    async def newest(self, most_entries: int, most_bytes: float) -> dict[str, bytes]:
        """All it has, as SQLiteStore would tell it."""
        entries = dict(self._cache)
        await self._do()
        return dict(list(entries.items())[-most_entries:])

    async def _do(self) -> None:
        if self.delay:
            await sleep(self.delay)
        if self.error is not None:
            raise self.error

    def put(self, key: Any, value: Any, age: float, kind: Any = Any) -> None:
        """As another process would have written it so many seconds ago."""
        self._cache[name_of(key)] = wrap(value, WALL.now() - age, kind, name_of(key))

    @property
    def names(self) -> list[str]:
        return list(self._cache)
