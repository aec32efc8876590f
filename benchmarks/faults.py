"""What the contenders do when things go wrong: sixteen probes, each a question with a right answer.

They look from outside only: what callers get, what reaches the upstream, what is left afterwards. Every contender says
the same terms in its own words. A process for each, with an end to its patience: what hangs is an answer, too.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from asyncio import Task
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders import OF_FAULTS, contender
from benchmarks.node import peers as node
from benchmarks.report import Section, table
from benchmarks.terms import DEFAULT, VALUE, CannotDo, Contender, Function, NoSuchFilm, Terms, Trouble

Probe = Callable[[Contender], Awaitable[str]]
RIGHT, NOT_ITS_OWN = "ok", "-"
HANGS = "hangs"
PATIENCE = 8.0
"""Seconds for a probe; the longest sleeps for two."""
BRIEF = 0.05
OPEN_FOR = 0.2


@dataclass(slots=True)
class Upstream:
    """What is guarded, and what it sees."""

    mode: str = "well"
    running: int = 0
    most: int = 0
    asked: int = 0

    async def ask(self, key: str) -> Any:
        """Answer as the mode says: well, fails, refuses, hangs; a key that begins with a mode is answered by that."""
        self.asked += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            match key if key in {"fails", "refuses", "hangs"} else self.mode:
                case "fails":
                    raise Trouble("out of order")
                case "refuses":
                    raise NoSuchFilm("there is no such film")
                case "hangs":
                    await asyncio.sleep(3600)
                case "slow":
                    await asyncio.sleep(BRIEF)
            return VALUE
        finally:
            self.running -= 1


async def outcome(awaitable: Awaitable[Any], *, within: float = 2.0) -> Any:
    """What comes of it: a value, or the error; HANGS if nothing does."""
    task = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({task}, timeout=within)
    if not done:
        task.cancel()
        return HANGS
    return task.exception() if task.exception() is not None else task.result()


def start(call: Function, keys: Sequence[str]) -> list[Task[Any]]:
    """Calls in tasks of their own."""
    tasks = [asyncio.ensure_future(call(key)) for key in keys]
    for task in tasks:
        task.add_done_callback(lambda one: one.cancelled() or one.exception())
    return tasks


async def end(tasks: Sequence[Task[Any]]) -> None:
    """Cancel them, and wait a while."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1.0)


async def open_circuit(call: Function, upstream: Upstream) -> bool:
    """Let it fail until nothing is sent any more; whether it came to that."""
    for number in range(40):
        before = upstream.asked
        await outcome(call("fails"))
        if number > 1 and upstream.asked == before:
            return True
    return False


async def slots_leak(one: Contender) -> str:
    """Is every place given back when callers are cancelled, waiting or served?"""
    terms = Terms(limit=2, queue=10, timeout=60.0, attempts=1, opens_after=1_000, plan_b=None)
    upstream = Upstream("hangs")
    faults = await places_lost(one.guard(upstream.ask, terms), upstream)
    if hasattr(one, "pool"):
        pool, within = one.pool(terms), Upstream("hangs")

        async def guarded(key: str) -> Any:
            async with pool() if callable(pool) and not hasattr(pool, "__aenter__") else pool:
                return await within.ask(key)

        faults += [f"as a block: {fault}" for fault in await places_lost(guarded, within)]
    return ", ".join(faults) or RIGHT


async def places_lost(call: Function, upstream: Upstream) -> list[str]:
    """Cancel in every way, then see how many of two places there are, and of ten in the queue."""
    for _ in range(5):
        tasks = start(call, ["a"] * 6)
        await asyncio.sleep(0.002)
        await end(tasks[2:])  # they wait
        await end(tasks[:2])  # these are served
        served = start(call, ["a"] * 3)
        await asyncio.sleep(0.002)
        served[0].cancel()  # its place is on its way to the third ...
        await asyncio.sleep(0)
        served[2].cancel()  # ... who leaves in the same moment
        await end(served)
    tasks = start(call, ["a"] * 12)
    await asyncio.sleep(0.01)
    places, queue = upstream.running, sum(not task.done() for task in tasks) - upstream.running
    await end(tasks)
    if places != 2:
        return [f"{places} of 2 places left"]
    return [f"{queue} of 10 places left in the queue"] if queue != 10 else []


async def threads_outlive(one: Contender) -> str:
    """Does a thread that was given up keep its place until it ends?"""
    lock, running, most = threading.Lock(), 0, 0

    def blocks(_: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.3)
        with lock:
            running -= 1
        return VALUE

    call = one.guard_plain(blocks, Terms(limit=2, queue=100, timeout=BRIEF, attempts=1, opens_after=1_000, plan_b=None))
    tasks = start(call, ["a"] * 12)
    await asyncio.sleep(0.8)
    await end(tasks)
    await asyncio.sleep(0.4)
    return RIGHT if most <= 2 else f"{most} at once, limit 2"


async def half_open(one: Contender) -> str:
    """Are there few probes when a thousand come at once to a circuit that is half open?"""
    upstream = Upstream()
    terms = Terms(limit=5_000, queue=5_000, attempts=1, opens_after=5, open_for=OPEN_FOR, plan_b=None)
    call = one.guard(upstream.ask, terms)
    if not await open_circuit(call, upstream):
        return "does not open"
    await asyncio.sleep(OPEN_FOR * 1.3)
    upstream.asked, upstream.mode = 0, "hangs"
    tasks = start(call, ["a"] * 1_000)
    await asyncio.sleep(0.1)
    admitted = upstream.asked
    await end(tasks)
    return RIGHT if admitted <= 10 else f"{admitted:,} of 1,000 sent"


async def cancels_count(one: Contender) -> str:
    """Is a caller who leaves evidence of nothing, and does a probe that is cancelled neither close nor wedge?"""
    faults = []
    terms = Terms(limit=100, attempts=1, opens_after=5, open_for=OPEN_FOR, plan_b=None)
    upstream = Upstream("hangs")
    call = one.guard(upstream.ask, terms)
    for _ in range(20):
        tasks = start(call, ["a"])
        await asyncio.sleep(0.001)
        await end(tasks)
    upstream.mode = "well"
    if await outcome(call("a")) != VALUE:
        faults.append("counts as a failure")
    upstream = Upstream()
    call = one.guard(upstream.ask, terms)
    await open_circuit(call, upstream)
    await asyncio.sleep(OPEN_FOR * 1.3)
    upstream.mode = "hangs"
    probe = start(call, ["a"])
    await asyncio.sleep(0.01)
    await end(probe)
    upstream.asked = 0
    tasks = start(call, ["a"] * 100)
    await asyncio.sleep(0.02)
    if upstream.asked > 10:
        faults.append("closes the circuit")
    await end(tasks)
    upstream.mode = "well"
    for _ in range(4):
        await asyncio.sleep(OPEN_FOR * 1.3)
        if await outcome(call("a")) == VALUE:
            break
    else:
        faults.append("wedges for ever")
    return ", ".join(faults) or RIGHT


async def raising_listener(one: Contender) -> str:
    """Does a listener that raises stay without effect?"""

    def raises(*_: object) -> None:
        raise LookupError("the listener's own trouble")

    upstream = Upstream()
    call = one.guard(upstream.ask, Terms(attempts=1, opens_after=5, plan_b=None, listener=raises))
    lost = False
    for _ in range(20):
        got = await outcome(call("fails"))
        lost = lost or isinstance(got, LookupError)
    before = upstream.asked
    for _ in range(3):
        await outcome(call("fails"))
    opened = upstream.asked == before
    faults = ["replaces the error"] * lost + ["the circuit never opens"] * (not opened)
    return ", ".join(faults) or RIGHT


async def refusals_count(one: Contender) -> str:
    """Once it is said that an error is a healthy no: does it leave the circuit as it is, open or on its way?"""
    terms = Terms(attempts=1, opens_after=5, plan_b=None, refused=NoSuchFilm)
    upstream = Upstream()
    call = one.guard(upstream.ask, terms)
    for _ in range(20):
        await outcome(call("refuses"))
    faults = []
    if await outcome(call("a")) != VALUE:
        faults.append("open it")
    upstream = Upstream()
    call = one.guard(upstream.ask, terms)
    for _ in range(20):
        await outcome(call("fails"))
        await outcome(call("refuses"))
    before = upstream.asked
    await outcome(call("a"))
    if upstream.asked != before:
        faults.append("count as success: never opens")
    return ", ".join(faults) or RIGHT


class Film:
    """Something whose end can be watched."""


async def unbounded(one: Contender) -> str:
    """Is there a bound to what is remembered?"""
    films: weakref.WeakSet[Film] = weakref.WeakSet()

    async def film(_: str) -> Film:
        new = Film()
        films.add(new)
        return new

    call = one.guard(film, Terms(attempts=1, remembers=1_000))
    for number in range(20_000):
        await call(f"film {number}")
    gc.collect()
    return RIGHT if len(films) <= 2_000 else f"keeps all {len(films):,}"


async def stampede(one: Contender) -> str:
    """Ten thousand ask the same at once: is it asked once? And if the first leaves, do the others get an answer?"""
    upstream = Upstream("slow")
    terms = Terms(limit=20_000, queue=20_000, attempts=1, timeout=5.0, single_flight=True)
    call = one.guard(upstream.ask, terms)
    tasks = start(call, ["film"] * 10_000)
    await asyncio.wait(tasks, timeout=5.0)
    faults = [] if upstream.asked <= 1 else [f"asks {upstream.asked:,} times"]
    tasks = start(call, ["another"] * 3)
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    done, _ = await asyncio.wait(tasks[1:], timeout=1.0)
    answered = [one for one in done if not one.cancelled() and one.exception() is None]
    if len(answered) < 2:
        faults.append("the first leaves: the others " + ("hang" if len(done) < 2 else "fail"))
    await end(tasks)
    return ", ".join(faults) or RIGHT


async def sleeps_too_long(one: Contender) -> str:
    """Is there no pause that cannot end before the deadline?"""
    upstream = Upstream()
    call = one.guard(upstream.ask, Terms(attempts=3, pause=1.0, total=0.2, opens_after=1_000, plan_b=None))
    began = time.monotonic()
    await outcome(call("fails"))
    took = time.monotonic() - began
    return RIGHT if took < 0.1 else f"sleeps {took:.1f} s of 0.2 s"


USER: ContextVar[str] = ContextVar("user", default="nobody")


async def context_in_threads(one: Contender) -> str:
    """Do context variables reach the thread?"""
    call = one.guard_plain(lambda _: USER.get(), Terms(limit=2, attempts=1, plan_b=None))
    USER.set("ada")
    got = await outcome(call("a"))
    return RIGHT if got == "ada" else f"{got}" if isinstance(got, Exception) else "lost"


async def async_fallback(one: Contender) -> str:
    """Is an async function as plan B awaited?"""
    upstream = Upstream()
    call = one.guard(upstream.ask, Terms(attempts=1, plan_b="async function"))
    got = await outcome(call("fails"))
    if hasattr(got, "close"):
        got.close()
    return RIGHT if got == DEFAULT else "is not awaited" if hasattr(got, "send") else f"{type(got).__name__}"


async def growing_traceback(one: Contender) -> str:
    """Is every rejection an error of its own?"""
    upstream = Upstream()
    call = one.guard(upstream.ask, Terms(attempts=1, opens_after=5, plan_b=None))
    if not await open_circuit(call, upstream):
        return "does not open"
    frames = 0
    for _ in range(200):
        got = await outcome(call("a"))
        trace, frames = got.__traceback__ if isinstance(got, Exception) else None, 0
        while trace is not None:
            trace, frames = trace.tb_next, frames + 1
    return RIGHT if frames < 50 else f"{frames:,} frames after 200 rejections"


async def stale_failures(one: Contender) -> str:
    """Do failures from before a long pause no longer count?"""
    upstream = Upstream()
    call = one.guard(upstream.ask, Terms(attempts=1, opens_after=5, window_for=1.0, plan_b=None))
    for _ in range(4):
        await outcome(call("fails"))
    await asyncio.sleep(2.1)
    await outcome(call("fails"))
    return RIGHT if await outcome(call("a")) == VALUE else "opens on old failures"


async def two_loops(one: Contender) -> str:
    """Used on a second loop, after the first and beside it: does it work, or say at once that it does not?"""
    upstream = Upstream("slow")
    call = one.guard(upstream.ask, Terms(limit=2, queue=100, attempts=1, opens_after=1_000, plan_b=None))

    async def five() -> list[Any]:
        tasks = [asyncio.ensure_future(outcome(call("a"), within=1.0)) for _ in range(5)]
        return list(await asyncio.gather(*tasks))

    def elsewhere() -> list[Any]:
        with suppress(Exception):
            return asyncio.run(five())
        return ["it raises"]

    faults = []
    after = await asyncio.to_thread(lambda: [elsewhere(), elsewhere()][1])
    if after != [VALUE] * 5:
        faults.append("after it: " + described(after))
    upstream.most = 0
    beside = await asyncio.gather(five(), asyncio.to_thread(elsewhere))
    if upstream.most > 2:
        faults.append(f"beside it: {upstream.most} at once, limit 2")
    elif HANGS in [*beside[0], *beside[1]]:
        faults.append("beside it: hangs")
    elif [VALUE] * 5 not in beside:
        faults.append("beside it: " + described([*beside[0], *beside[1]]))
    elif any(VALUE in results and results != [VALUE] * 5 for results in beside):
        faults.append("beside it: " + described(min(beside, key=lambda results: results.count(VALUE))))
    return ", ".join(faults) or RIGHT


def described(results: Sequence[Any]) -> str:
    """What went wrong."""
    wrong = [got for got in results if got != VALUE]
    kinds = sorted({HANGS if got == HANGS else type(got).__name__ for got in wrong})
    return f"{len(wrong)} of {len(results)} end in {', '.join(kinds)}"


async def lock_held(one: Contender) -> str:
    """Does a call that hangs hold up nobody else?"""
    call = one.guard(Upstream().ask, Terms(limit=10, timeout=60.0, attempts=1, plan_b=None))
    hanging = start(call, ["hangs"])
    await asyncio.sleep(0.01)
    got = await outcome(call("a"), within=0.5)
    await end(hanging)
    return RIGHT if got == VALUE else "waits for it"


async def shared_timeout(one: Contender) -> str:
    """Fifty calls hang at once under one limit on time: does each of them end? As a block, where it has blocks."""
    if hasattr(one, "block"):
        block = one.block(Terms(limit=100, timeout=BRIEF, opens_after=1_000))

        async def guarded(_: str) -> None:
            async with block() if callable(block) and not hasattr(block, "__aenter__") else block:
                await asyncio.sleep(3600)
    else:
        terms = Terms(limit=100, timeout=BRIEF, attempts=1, opens_after=1_000, plan_b=None)
        guarded = one.guard(Upstream("hangs").ask, terms)
    tasks = start(guarded, ["a"] * 50)
    done, hanging = await asyncio.wait(tasks, timeout=0.5)
    await end(list(hanging))
    return RIGHT if not hanging else f"{len(hanging)} of {len(done) + len(hanging)} never end"


PROBES: dict[str, Probe] = {
    "a cancelled caller's place": slots_leak,
    "a thread that was given up": threads_outlive,
    "1,000 callers, half open": half_open,
    "cancelled calls": cancels_count,
    "a listener that raises": raising_listener,
    "healthy refusals": refusals_count,
    "what is remembered": unbounded,
    "10,000 ask the same": stampede,
    "a pause beyond the deadline": sleeps_too_long,
    "context in threads": context_in_threads,
    "async plan B": async_fallback,
    "200 rejections": growing_traceback,
    "failures of long ago": stale_failures,
    "two loops": two_loops,
    "beside a hanging call": lock_held,
    "one limit, 50 calls": shared_timeout,
}
"""In the order in which the peers were first looked at."""


async def ask(name: str, probe: Probe) -> str:
    """The answer of one contender to one question."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what peers leave behind is not for our screen
    try:
        one = contender(name)
        async with asyncio.timeout(PATIENCE):
            return await probe(one)
    except CannotDo as reason:
        return f"{NOT_ITS_OWN} {str(reason).removeprefix('has ')}"
    except TimeoutError:
        return HANGS
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way
        return f"fails: {type(error).__name__}"


def work(name: str) -> None:
    """All answers of one contender, a line each; then end without waiting for what hangs."""
    for title, probe in PROBES.items():
        with suppress(RuntimeError):
            print(json.dumps([title, in_time(name, probe)]), flush=True)
    os._exit(0)


def in_time(name: str, probe: Probe) -> str:
    """In a thread of its own, for a loop may be held up for ever."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(ask(name, probe))), daemon=True)
    thread.start()
    thread.join(PATIENCE + 4)
    return answers[0] if answers else HANGS


def run(pythons: Sequence[str], *, quick: bool) -> Section:  # noqa: ARG001 - there is nothing to leave out
    """Ask all of them everything, on the newest Python."""
    names = {name: started(pythons[-1], name) for name in OF_FAULTS}
    return Section("What they do when things go wrong", tuple(lines(names, node.faults())))


def started(python: str, name: str) -> dict[str, str]:
    """The answers of one contender, from a process of its own."""
    root = Path(__file__).parent.parent
    order = [python, "-W", "ignore", "-m", "benchmarks.faults", name]
    done = subprocess.run(order, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return dict(json.loads(line) for line in done.stdout.splitlines())


def lines(found: dict[str, dict[str, str]], of_node: dict[str, Any]) -> Iterator[str]:
    """The table."""
    yield (
        f"Sixteen questions, each with a right answer, asked from outside; {machine.python()}. *ok*: the right one. "
        f"*{NOT_ITS_OWN}*: it has no such thing. Everything else is what was seen. What a contender lacks, and users "
        "add (a dict for the last good answers, `asyncio.timeout` round the whole), is asked as part of it."
    )
    titles = {name: name if name != "gateway" else "**gateway**" for name in found}
    columns = {titles[name]: answers for name, answers in found.items()}
    columns |= {name: dict(answers) for name, answers in of_node.get("contenders", {}).items()}
    rows = ([f"{number}. {title}", *(one.get(title, "") for one in columns.values())] for number, title in numbered())
    yield table(["", *columns], rows)
    yield "\n".join(f"{number}. {title[0].upper()}{title[1:]}: {question(title)}" for number, title in numbered())
    right = {name: sum(got == RIGHT for got in answers.values()) for name, answers in columns.items()}
    wrong = {
        name: sum(not got.startswith((RIGHT, NOT_ITS_OWN)) for got in answers.values())
        for name, answers in columns.items()
    }
    yield "Right and wrong: " + ", ".join(f"{name} {right[name]} and {wrong[name]}" for name in columns) + "."
    if "why" in of_node:
        yield f"opossum and cockatiel: {of_node['why']}."


def numbered() -> Iterator[tuple[int, str]]:
    """The probes, from 1."""
    return enumerate(PROBES, start=1)


def question(title: str) -> str:
    """What is asked."""
    return (PROBES[title].__doc__ or "").strip()


if __name__ == "__main__":
    work(sys.argv[1])
