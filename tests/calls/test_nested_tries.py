"""Nested retries add up, they do not multiply: a call inside another's try spends from the outermost call's tries."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from math import inf
from random import Random

import pytest
from tenacity import wait_fixed, wait_none

from gateway import Alternate, BudgetPolicy, Deadline, Gateway, NotSent, Operation, Policy, RetryPolicy, TimeoutPolicy
from tests.support import NEVER_OPENS, Boom, counted, ended

LAYERS = ("page", "films", "store")


def trying(attempts: float) -> Policy:
    return Policy(retry=RetryPolicy(attempts=attempts, wait=wait_none(), budget=None), breaker=NEVER_OPENS)


class Bottom:
    """What the lowest layer asks; it fails with a probability."""

    def __init__(self, failing: float = 1.0, seed: int = 0) -> None:
        self.asked = 0
        self.failing = failing
        self._random = Random(seed)

    async def __call__(self) -> str:
        self.asked += 1
        if self._random.random() < self.failing:
            raise Boom
        return "well"


def stacked(gate: Gateway, bottom: Bottom, attempts: tuple[float, ...] = (3, 3, 3)) -> Operation[[], str]:
    """An operation for each layer, each called in the one before; the outermost."""
    function = bottom
    for name, tries in reversed(list(zip(LAYERS, attempts, strict=True))):
        upstream = gate.upstream(name, policy=trying(tries))

        async def ask(below=function) -> str:
            return await below()

        function = upstream.operation(name="ask", idempotent=True)(ask)
    return function


@pytest.mark.virtual_time
async def test_three_layers_of_three_tries_ask_three_times_in_an_outage(gate: Gateway) -> None:
    bottom = Bottom()
    page = stacked(gate, bottom)

    error = await ended(page())

    assert bottom.asked == 3
    assert [counted(gate[name])["attempts"] for name in LAYERS] == [1, 1, 3]
    assert error.attempts == 1


@pytest.mark.virtual_time
@pytest.mark.parametrize("failing", [0.1, 0.5, 0.9])
async def test_in_a_brown_out_no_page_asks_more_than_three_times(gate: Gateway, failing: float) -> None:
    bottom = Bottom(failing)
    page = stacked(gate, bottom)

    most = well = 0
    for _ in range(500):
        before = bottom.asked
        well += await ended(page()) == "well"
        most = max(most, bottom.asked - before)

    assert most == 3
    assert well == pytest.approx(500 * (1 - failing**3), abs=30)  # and every one of the three tries is made


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("attempts", "asked"),
    [((1, 3, 3), 3), ((1, 1, 3), 3), ((3, 1, 1), 3), ((3, 3, 1), 3), ((2, 3, 3), 2), ((5, 2, 2), 5), ((3, 9, 9), 3)],
)
async def test_the_outermost_call_that_repeats_anything_says_how_often(gate: Gateway, attempts, asked: int) -> None:
    bottom = Bottom()
    page = stacked(gate, bottom, attempts)

    await ended(page())

    assert bottom.asked == asked


@pytest.mark.virtual_time
async def test_without_an_end_to_the_outermost_tries_each_layer_has_its_own(gate: Gateway) -> None:
    bottom = Bottom()
    page = stacked(gate, bottom, (inf, 3, 2))
    gate["page"].tune(timeout=TimeoutPolicy(call=5.0))

    with Deadline.after(1.0):
        asking = asyncio.ensure_future(page())
        await asyncio.sleep(0)
    while bottom.asked < 30:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])

    assert bottom.asked >= 30


@pytest.mark.virtual_time
@pytest.mark.parametrize("how", ["one try", "a block"])
async def test_what_is_never_repeated_leaves_the_tries_to_those_below(gate: Gateway, how: str) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(3)).operation(name="film", idempotent=True)(bottom)
    outer = gate.upstream("page", policy=trying(1 if how == "one try" else 3))

    async def page() -> list[object]:
        if how == "one try":
            return await outer.operation(both)()
        async with outer.slot():
            return await both()

    async def both() -> list[object]:
        return [await ended(film()), await ended(film())]

    await page()

    assert bottom.asked == 6


class Through:
    """A layer that passes on, as not sent, what was not sent below."""

    def __init__(self, below) -> None:
        self._below = below

    async def __call__(self) -> str:
        try:
            return await self._below()
        except Exception as error:
            raise NotSent("no connection") from error


@pytest.mark.virtual_time
@pytest.mark.parametrize("idempotent", [None, False])
async def test_layers_that_are_repeated_only_if_nothing_was_sent_add_up_too(gate: Gateway, idempotent) -> None:
    bottom = Bottom()
    function = Through(bottom)
    for name in reversed(LAYERS):
        upstream = gate.upstream(name, policy=trying(3))
        function = Through(upstream.operation(name="ask", idempotent=idempotent)(function))

    await ended(function())

    assert bottom.asked == 3


@pytest.mark.virtual_time
async def test_what_outlives_its_try_spends_from_the_same_tries(gate: Gateway) -> None:
    bottom = Bottom()
    store = gate.upstream("store", policy=trying(3)).operation(name="ask", idempotent=True)(bottom)
    strays = []

    async def late() -> object:
        await asyncio.sleep(0.5)
        return await ended(store())

    @gate.upstream("page", policy=Policy(retry=RetryPolicy(attempts=3, wait=wait_fixed(1.0), budget=None))).operation(
        idempotent=True
    )
    async def page() -> None:
        strays.append(asyncio.create_task(late()))
        raise Boom

    await ended(page())
    await asyncio.gather(*strays)

    assert bottom.asked == 3  # once for each try of the page; no retries were left


@pytest.mark.virtual_time
async def test_all_that_one_try_asks_for_shares_the_tries(gate: Gateway) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(3)).operation(name="film", idempotent=True)(bottom)

    @gate.upstream("page", policy=trying(3)).operation(idempotent=True)
    async def page() -> None:
        for error in await asyncio.gather(*(ended(film()) for _ in range(4))):
            raise error

    await ended(page())

    assert bottom.asked == 4 + 2


@pytest.mark.virtual_time
async def test_a_call_after_the_tries_of_another_has_its_own(gate: Gateway) -> None:
    bottom, other = Bottom(), Bottom()
    spare = gate.upstream("spare", policy=trying(3)).operation(name="ask", idempotent=True)(other)
    page = stacked(gate, bottom)
    page.fallback(Alternate(spare))

    for _ in range(2):
        await ended(page())

    assert (bottom.asked, other.asked) == (2 * 3, 2 * 3)


@pytest.mark.virtual_time
async def test_a_try_that_is_not_made_says_why(gate: Gateway) -> None:
    page = stacked(gate, Bottom())

    error = await ended(page())

    assert error.__notes__ == ["no further try: those of the outermost call are used up"]


@pytest.mark.virtual_time
async def test_a_deadline_in_between_passes_the_tries_on(gate: Gateway) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(3)).operation(name="film", idempotent=True)(bottom)

    @gate.upstream("page", policy=trying(3)).operation(idempotent=True)
    async def page() -> str:
        with Deadline.after(1.0), Deadline.after(60.0):
            return await film()

    await ended(page())

    assert bottom.asked == 3


@pytest.mark.virtual_time
async def test_threads_inherit_the_tries(gate: Gateway) -> None:
    told = []

    @gate.upstream("page", policy=trying(3)).operation(idempotent=True)
    def page() -> None:
        told.append((threading.current_thread(), Deadline.current().to_headers()["X-Attempts-Left"]))
        raise Boom

    await ended(page())

    assert [left for _, left in told] == ["2", "1", "0"]
    assert threading.current_thread() not in {thread for thread, _ in told}


# -- across a process


@pytest.mark.virtual_time
async def test_across_a_process_three_layers_of_three_tries_ask_four_times_at_most(gate: Gateway) -> None:
    bottom = Bottom()
    there = Gateway()
    films = stacked(there, bottom)
    sent = []

    @gate.upstream("front", policy=trying(3)).operation(idempotent=True)
    async def front() -> str:
        headers = Deadline.current().to_headers()
        sent.append(headers["X-Attempts-Left"])
        return await asyncio.create_task(serve(headers), context=contextvars.Context())

    async def serve(headers: dict[str, str]) -> str:
        with Deadline.from_headers(headers):
            return await films()

    await ended(front())
    await there.close()

    assert sent == ["2", "1", "0"]
    assert bottom.asked == 4


@pytest.mark.virtual_time
@pytest.mark.parametrize(("header", "asked"), [("0", 1), ("1", 1), ("2", 2), ("3", 3), ("99", 3), ("-1", 3), ("x", 3)])
async def test_a_caller_elsewhere_says_how_many_tries_are_left(gate: Gateway, header: str, asked: int) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(3)).operation(name="film", idempotent=True)(bottom)

    with Deadline.from_headers({"x-attempts-left": header}):
        await ended(film())

    assert bottom.asked == asked


@pytest.mark.virtual_time
async def test_what_a_page_does_for_a_caller_elsewhere_shares_what_he_has_left(gate: Gateway) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(3)).operation(name="film", idempotent=True)(bottom)

    with Deadline.from_headers({"X-Attempts-Left": "2", "X-Deadline-Ms": "900"}), Deadline.after(0.5):
        await ended(film())
        await ended(film())

    assert bottom.asked == 2 + 1


@pytest.mark.virtual_time
async def test_inside_a_try_the_outermost_tries_stand_whatever_a_header_says(gate: Gateway) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(9)).operation(name="film", idempotent=True)(bottom)

    @gate.upstream("page", policy=trying(3)).operation(idempotent=True)
    async def page() -> str:
        with Deadline.from_headers({"X-Attempts-Left": "9"}):
            return await film()

    await ended(page())

    assert bottom.asked == 3


@pytest.mark.virtual_time
@pytest.mark.parametrize("attempts", [1, inf])
async def test_where_there_is_nothing_to_say_no_header_says_it(gate: Gateway, attempts: float) -> None:
    told = []

    @gate.upstream("page", policy=trying(attempts)).operation(idempotent=True)
    async def page() -> None:
        told.append(Deadline.current().to_headers())

    with Deadline.after(1.0):
        told.append(Deadline.current().to_headers())
        await page()

    assert [list(headers) for headers in told] == [["X-Deadline-Ms"]] * 2


@pytest.mark.virtual_time
async def test_what_goes_out_from_a_try_without_a_deadline_still_says_what_is_left(gate: Gateway) -> None:
    told = [Deadline.outgoing()]
    endless = Policy(retry=RetryPolicy(attempts=3), timeout=TimeoutPolicy(call=inf, attempt=inf))

    @gate.upstream("page", policy=endless).operation(idempotent=True)
    async def page() -> None:
        told.append(Deadline.outgoing())

    await page()
    with Deadline.from_headers({"X-Attempts-Left": "5", "X-Deadline-Ms": "700"}):
        told.append(Deadline.outgoing())

    assert told == [{}, {"X-Attempts-Left": "2"}, {"X-Deadline-Ms": "700", "X-Attempts-Left": "4"}]


# -- with the budget


@pytest.mark.virtual_time
async def test_a_retry_that_the_budget_leaves_out_costs_no_try_of_the_outermost_call(gate: Gateway) -> None:
    bottom = Bottom()
    empty = BudgetPolicy(ratio=0.0, minimum=1e-9, burst=1)
    poor = Policy(retry=RetryPolicy(attempts=3, wait=wait_none(), budget=empty), breaker=NEVER_OPENS)
    film = gate.upstream("films", policy=poor).operation(name="film", idempotent=True)(bottom)
    gate["films"].budget.withdraw()

    @gate.upstream("page", policy=trying(3)).operation(idempotent=True)
    async def page() -> str:
        return await film()

    await ended(page())

    assert bottom.asked == counted(gate["page"])["attempts"] == 3


@pytest.mark.virtual_time
async def test_a_retry_that_the_budget_leaves_out_says_so(gate: Gateway) -> None:
    empty = BudgetPolicy(ratio=0.0, minimum=1e-9, burst=1)
    poor = Policy(retry=RetryPolicy(attempts=3, wait=wait_none(), budget=empty), breaker=NEVER_OPENS)
    film = gate.upstream("films", policy=poor).operation(name="film", idempotent=True)(Bottom())

    error = await ended(film())

    assert (error.attempts, error.__notes__) == (2, ["no further try: the retry budget of films is used up"])


@pytest.mark.virtual_time
async def test_only_first_tries_that_were_sent_pay_into_the_budget(gate: Gateway) -> None:
    stingy = BudgetPolicy(ratio=0.5, minimum=0.0, burst=1)
    policy = Policy(retry=RetryPolicy(attempts=2, wait=wait_none(), budget=stingy), breaker=NEVER_OPENS)
    up = gate.upstream("up", policy=policy)

    @up.operation(idempotent=True)
    async def ask() -> None:
        raise NotSent("no")

    tries = []
    for _ in range(9):
        before = counted(up).get("attempts", 0)
        await ended(ask())
        tries.append(counted(up)["attempts"] - before)

    assert tries == [2, 1, 2, 1, 2, 1, 2, 1, 2]  # the burst, then every second call; retries pay for none


@pytest.mark.virtual_time
async def test_all_operations_of_an_upstream_share_its_budget(gate: Gateway) -> None:
    stingy = BudgetPolicy(ratio=0.0, minimum=1e-9, burst=1)
    policy = Policy(retry=RetryPolicy(attempts=2, wait=wait_none(), budget=stingy), breaker=NEVER_OPENS)
    up, bottom = gate.upstream("up", policy=policy), Bottom()
    first, second = (up.operation(name=name, idempotent=True)(bottom) for name in ("first", "second"))

    await ended(first())
    await ended(second())

    assert bottom.asked == 2 + 1
    assert up.snapshot().budget.suppressed == 1


@pytest.mark.virtual_time
async def test_the_budget_is_tuned_live_and_switched_off_and_on(gate: Gateway) -> None:
    up, bottom = gate.upstream("up", policy=trying(2)), Bottom()
    ask = up.operation(name="ask", idempotent=True)(bottom)

    up.tune_fields({"retry.budget": BudgetPolicy(ratio=0.0, minimum=1e-9, burst=2)})
    with_two = [(await ended(ask()), up.snapshot().budget.suppressed)[1] for _ in range(3)]
    up.tune_fields({"retry.budget.burst": 1})
    still_empty = (await ended(ask()), up.snapshot().budget.suppressed)[1]
    up.tune_fields({"retry.budget": None})
    await ended(ask())

    assert (with_two, still_empty) == ([0, 0, 1], 2)
    assert up.snapshot().budget is None
    assert bottom.asked == (2 + 2 + 1) + 1 + 2


@pytest.mark.virtual_time
async def test_a_snapshot_shows_what_calls_have_paid_in(gate: Gateway) -> None:
    stingy = BudgetPolicy(ratio=0.5, minimum=0.0, burst=10)
    up = gate.upstream("up", policy=Policy(retry=RetryPolicy(budget=stingy)))
    well = up.operation(name="ask", idempotent=True)(Bottom(failing=0.0))
    for _ in range(10):
        up.budget.withdraw()

    for _ in range(4):
        await well()

    assert up.snapshot().budget.left == 2.0


@pytest.mark.virtual_time
async def test_calls_before_tuning_pay_in_by_the_old_numbers(gate: Gateway) -> None:
    up = gate.upstream("up", policy=Policy(retry=RetryPolicy(budget=BudgetPolicy(ratio=0.5, minimum=0.0, burst=10))))
    well = up.operation(name="ask", idempotent=True)(Bottom(failing=0.0))
    for _ in range(10):
        up.budget.withdraw()

    for _ in range(4):
        await well()
    up.tune_fields({"retry.budget.ratio": 2.0})
    await well()

    assert up.snapshot().budget.left == 4 * 0.5 + 2.0


@pytest.mark.virtual_time
async def test_what_a_caller_elsewhere_has_left_holds_under_a_nearer_deadline_too(gate: Gateway) -> None:
    bottom = Bottom()
    film = gate.upstream("films", policy=trying(9)).operation(name="film", idempotent=True)(bottom)

    with Deadline.after(0.5), Deadline.from_headers({"X-Attempts-Left": "2", "X-Deadline-Ms": "900"}):
        await ended(film())
        told = Deadline.outgoing()

    assert bottom.asked == 2
    assert told == {"X-Deadline-Ms": "500", "X-Attempts-Left": "0"}
