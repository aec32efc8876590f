"""How a key is written down where it outlives the process: in a store, for other replicas, for after a restart."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from enum import Enum, Flag
from hashlib import sha256


def spelled(key: Hashable) -> str:
    """A key as 64 hexadecimal digits, the same in every process. Raises TypeError for what is not plain data."""
    try:
        return sha256(spelled_out(key)).hexdigest()
    except RecursionError:
        raise TypeError("a key that is nested so deeply has no spelling") from None


def spelled_out(key: Hashable) -> bytes:
    """A key as bytes that no other key has: each part with its kind and its length."""
    kind = type(key).__qualname__
    if type(key) is tuple:
        text = b"".join(map(spelled_out, key))
    elif isinstance(key, type):
        kind, text = "type", name_of(key).encode()
    elif isinstance(key, Enum):  # by name, which outlives a change of the value; bits without a member have no name
        name = key.value if isinstance(key, Flag) else key.name
        kind, text = "enum", spelled_out(type(key)) + spelled_out(name)
    elif type(key) is bytes:
        text = key
    elif type(key) is int:
        text = b"%x" % key  # Python refuses more than 4,300 decimal digits
    elif type(key) in {str, bool, type(None)}:
        text = str(key).encode(errors="surrogatepass")
    else:
        raise TypeError(f"a {kind} in a key has no spelling that survives this process")
    return b"%s %d:%s" % (kind.encode(), len(text), text)


def name_of(kind: type) -> str:
    """A class by the name under which it is found in its module.

    Raises TypeError for one that is not found there, such as one made in a function: two of these may share a name,
    and the answers to their calls would be mixed up.
    """
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ != "builtins":  # there they all are, some (NoneType) without being found
        found: object = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind:
            raise TypeError(f"the class {name} is not found by its name, so that another may have it too")
    return name
