"""Who is measured: by name, each made anew, with the reason where one cannot be had here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from benchmarks.terms import Contender, Missing

KNOWN = {
    "bare": "benchmarks.floor:Bare",
    "floor": "benchmarks.floor:Floor",
    "gateway": "benchmarks.contenders.ours:Called",
    "gateway-ask": "benchmarks.contenders.ours:Asked",
    "gateway-minimum": "benchmarks.contenders.ours:Minimum",
    "gateway-deadline": "benchmarks.contenders.ours:UnderDeadline",
    "gateway-listened": "benchmarks.contenders.ours:ListenedTo",
    "grit": "benchmarks.contenders.grit_toolkit:Grit",
    "pyresilience": "benchmarks.contenders.pyresilience_:Consecutive",
    "pyresilience-window": "benchmarks.contenders.pyresilience_:Windowed",
    "hyx": "benchmarks.contenders.hyx_:Hyx",
    "interlock": "benchmarks.contenders.interlock_cb:Interlock",
    "aioresilience": "benchmarks.contenders.aioresilience_:Aioresilience",
    "bulkman": "benchmarks.contenders.bulkman_:Bulkman",
    "glue-purgatory": "benchmarks.contenders.glue:Purgatory",
    "glue-aiobreaker": "benchmarks.contenders.glue:Aiobreaker",
}
"""In the order of the tables. The modules with a `_` are named so that they are not taken for what they import."""
OURS = tuple(name for name in KNOWN if name.startswith("gateway"))
OF_FAULTS = ("gateway", *(name for name in KNOWN if name not in {*OURS, "bare", "floor", "pyresilience-window"}))
"""Whose behaviour is looked at: one of each library, and the glue."""


def contender(name: str) -> Contender:
    """A new one. Raises Missing where its library is not installed."""
    where, _, made_by = KNOWN[name].partition(":")
    try:
        made: Callable[[], Contender] = getattr(import_module(where), made_by)
    except ImportError as error:
        raise Missing(f"not installed: {error.name}") from error
    return made()
