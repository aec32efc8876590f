"""Functions that give a coroutine and are not `async def` themselves: a frame less for every call, and every wake-up.

Frameworks ask before they call (`inspect.iscoroutinefunction`; FastAPI runs what is none in a thread), so it is said.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def gives_coroutine(function: F) -> F:
    """Say of a function that what it returns is a coroutine. A decorator."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    # Python 3.11 knows no such mark, and will not change any more. It asks for a flag of the code, and for nothing else
    # does it go by that: whether a coroutine is made is an instruction in the code, since 3.11 (RETURN_GENERATOR).
    code = function.__code__
    function.__code__ = code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)
    return function
