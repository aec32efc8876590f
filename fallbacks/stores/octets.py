"""What our backends have in common: they hold bytes, under names that no other namespace has."""

from __future__ import annotations

from typing import Any

from aiocache.serializers import BaseSerializer


class Octets(BaseSerializer):
    """Bytes as they are: an answer is encoded before it gets here, and nothing in a store is run or guessed at."""

    DEFAULT_ENCODING = None

    def dumps(self, value: Any) -> Any:
        """The bytes themselves."""
        return checked(value)

    def loads(self, value: Any) -> Any:
        """The bytes themselves."""
        return value


def checked(value: object) -> bytes:
    """Bytes; TypeError for anything else."""
    if not isinstance(value, bytes):
        raise TypeError(f"this store holds bytes, not a {type(value).__qualname__}: encode it first")
    return value


def named(key: str, namespace: str | None = None) -> str:
    """A key within a namespace: "films:7"; ":7" without one, so that neither can be taken for the other."""
    return f"{checked_namespace(namespace)}:{key}"


def checked_namespace(namespace: str | None) -> str:
    """A namespace that ends where its name ends; ValueError for another."""
    if namespace is not None and ":" in namespace:
        raise ValueError(f"namespace: {namespace!r} holds a colon, which ends a namespace; give a name without")
    return namespace or ""
