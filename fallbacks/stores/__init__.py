"""What can stand behind the last good answers, beside aiocache's own backends: one file, or a shared memcached."""

from fallbacks.stores.memcached import MemcachedStore
from fallbacks.stores.sqlite import SQLiteStore

__all__ = ["MemcachedStore", "SQLiteStore"]
