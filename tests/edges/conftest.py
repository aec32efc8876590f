"""What tests of pages share: one browser, which takes longer to start than most of them take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.edges.browser import Browser, started


@pytest.fixture(scope="session")
def browser(program: Callable[[str], str]) -> Iterator[Browser]:
    with started(program("chromium")) as one:
        yield one
