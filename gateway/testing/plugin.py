"""A pytest plugin: `@pytest.mark.virtual_time` runs a test on a VirtualTimeLoop. Opt in with `pytest_plugins`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from inspect import iscoroutinefunction
from typing import Any

import pytest

from gateway.testing.loop import VirtualTimeLoop

LoopFactories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "virtual_time: run this async test on a loop whose time jumps (gateway.testing)")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: Any) -> None:  # noqa: ARG001
    """A test in virtual time is an asyncio test."""
    if not iscoroutinefunction(obj):
        return
    marks = [*getattr(obj, "pytestmark", ()), *collector.iter_markers()]
    names = {mark.name for mark in marks}
    if "virtual_time" in names and "asyncio" not in names:
        pytest.mark.asyncio(obj)


@pytest.hookimpl(wrapper=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Generator[None, LoopFactories | None, LoopFactories]:
    """The loop a test gets."""
    others = yield
    if item.get_closest_marker("virtual_time") is not None:
        return {"virtual": VirtualTimeLoop}
    return others or {"real": asyncio.new_event_loop}
