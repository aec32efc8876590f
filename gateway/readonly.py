"""A mapping that nobody changes."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def refuse(*_args: object, **_kwargs: object) -> NoReturn:
    """Stands where a dict has a way to change it."""
    raise TypeError("this is read-only; change a copy of it: dict(...)")


NO_WAY: Any = refuse


class ReadOnly(dict[K, V]):
    """A dict that stays as it was made: `ReadOnly({"limit": 20})`.

    Why not `MappingProxyType`: that can be neither copied deeply nor pickled, so that what holds one is no plain data,
    and `dataclasses.asdict` and a process pool refuse it. For them, and for json, this is the dict that it is.
    """

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = NO_WAY
    clear = pop = popitem = setdefault = update = NO_WAY

    def __reduce__(self) -> tuple[type[ReadOnly[K, V]], tuple[dict[K, V]]]:
        return type(self), (dict(self),)
