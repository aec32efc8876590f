"""What gives a coroutine says so, to whoever asks before calling."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from typing import Any

import pytest

from gateway import Gateway
from gateway.marks import gives_coroutine

pytestmark = pytest.mark.virtual_time


async def doubled(number: int) -> int:
    return 2 * number


class Service:
    up = Gateway().upstream("world")

    @up.operation(idempotent=True)
    async def ask(self, number: int) -> int:
        return 2 * number


def test_a_function_that_is_marked_is_one_that_gives_a_coroutine() -> None:
    def plain(number: int) -> Coroutine[Any, Any, int]:
        return doubled(number)

    marked = gives_coroutine(plain)

    assert marked is plain
    assert inspect.iscoroutinefunction(marked)


async def test_a_function_that_is_marked_does_what_it_did() -> None:
    @gives_coroutine
    def plain(number: int, *, more: int = 0) -> Coroutine[Any, Any, int]:
        return doubled(number + more)

    assert [await plain(2), await plain(2, more=1)] == [4, 6]


def test_both_spellings_of_an_operation_are_known_to_give_coroutines() -> None:
    operation = Gateway().upstream("world").operation(name="ask", idempotent=True)(doubled)

    assert inspect.iscoroutinefunction(operation.ask)
    assert inspect.iscoroutinefunction(operation.__call__)  # what FastAPI looks at
    assert inspect.iscoroutinefunction(operation.using(only_live=True).ask)


def test_so_are_those_of_an_operation_that_is_a_method() -> None:
    bound = Service().ask

    assert inspect.iscoroutinefunction(bound.ask)
    assert inspect.iscoroutinefunction(bound.__call__)


async def test_an_operation_can_be_the_function_of_another() -> None:
    async with Gateway() as gate:
        inner = gate.upstream("inner").operation(name="ask", idempotent=True)(doubled)
        outer = gate.upstream("outer").operation(name="ask", idempotent=True)(inner)

        answer = await outer.ask(2)

    assert (answer.value, outer.snapshot().counts.live, inner.snapshot().counts.live) == (4, 1, 1)
