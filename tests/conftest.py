"""What every test here has: virtual time on demand, nothing left behind, outside programs that may be missing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog

pytest_plugins = ["gateway.testing.plugin"]


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Who configures how logs are written does so for one test."""
    logger = logging.getLogger("gateway")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    if (logger.handlers, logger.level, logger.propagate) != before:
        logger.handlers, logger.level, logger.propagate = before
        structlog.reset_defaults()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The few tests that run alone are found without an import of all the others."""
    wanted = config.getoption("markexpr") == "alone" and collection_path.suffix == ".py"
    return True if wanted and "mark.alone" not in collection_path.read_text() else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every test that has a loop is watched; to make one for each that has none would take as long as these tests."""
    if item.get_closest_marker("asyncio") is not None:
        item.fixturenames.insert(0, "no_lost_errors")  # the last to be torn down


@pytest_asyncio.fixture
async def no_lost_errors() -> AsyncIterator[None]:
    """A task that fails with nobody looking, or is still running at the end, fails the test that made it."""
    loop = asyncio.get_running_loop()
    lost: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks()
    yield
    gc.collect(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not lost, f"errors that nobody saw: {lost}"
    assert not left, f"tasks left running: {left}"


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of an outside program; where it is missing, the test is skipped (or fails, in CI)."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            missing = f"the program {name} is not installed"
            if os.environ.get("GATEWAY_REQUIRE_PROGRAMS") == "1":
                pytest.fail(missing)
            pytest.skip(missing)
        return path

    return find
