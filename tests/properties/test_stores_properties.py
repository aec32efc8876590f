"""The store behind the answers, and the one in a file, against models that keep everything in dicts."""

from __future__ import annotations

import asyncio
import tempfile
from math import inf
from pathlib import Path
from typing import Any

from aiocache import SimpleMemoryCache
from hypothesis import given, settings
from hypothesis import strategies as st

from fallbacks.behind import REST, Behind
from fallbacks.envelope import Undecodable, unwrap, wrap
from fallbacks.stores import SQLiteStore
from fallbacks.stores.octets import Octets
from fallbacks.wall import WallClock
from gateway.testing import VirtualTimeLoop
from tests.clock import Clock
from tests.support import Boom, gone, steps

KEYS = st.sampled_from("abcd")
GROUPS = st.sampled_from(["", "one", "two"])


class Store(SimpleMemoryCache):
    """A backend that is slow, or ill, when it is told to be."""

    def __init__(self) -> None:
        super().__init__(serializer=Octets())
        self.ill = False
        self.slow = 0.0

    async def _work(self) -> None:
        await asyncio.sleep(self.slow)
        if self.ill:
            raise Boom

    async def _multi_set(self, pairs: Any, ttl: Any = None, **kwargs: Any) -> None:
        await self._work()
        self._cache.update(pairs)

    async def _multi_get(self, keys: Any, **kwargs: Any) -> Any:
        await self._work()
        return [self._cache.get(key) for key in keys]

    async def _delete(self, key: str, **kwargs: Any) -> int:
        await self._work()
        return int(self._cache.pop(key, None) is not None)


steps_of_a_life = st.lists(
    st.one_of(
        st.tuples(st.just("write"), KEYS, st.integers(0, 9)),
        st.tuples(st.just("forget"), KEYS),
        st.tuples(st.just("forget all"), GROUPS.filter(bool)),
        st.tuples(st.just("read"), KEYS, GROUPS),
        st.tuples(st.just("leave"), KEYS, st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.005, 0.03, 0.5, 6.0])),
        st.tuples(st.just("ill"), st.booleans()),
        st.tuples(st.just("slow"), st.sampled_from([0.0, 0.01, 0.3])),
        st.tuples(st.just("cancel the writer")),
        st.tuples(st.just("flush")),
        st.tuples(st.just("another loop")),
    ),
    max_size=30,
)


@given(steps_of_a_life)
@settings(deadline=None, max_examples=150)
def test_what_is_read_is_the_last_that_was_written_or_nothing(life: list[Any]) -> None:
    store, wall = Store(), Clock(1_000_000.0)
    behind = Behind(store, max_age=inf, max_bytes=inf, wall=WallClock(wall, wall))
    written: dict[str, tuple[int, float]] = {}
    voided: dict[str, float] = {}

    def expected(key: str, within: str) -> int | None:
        value, at = written.get(key, (None, 0.0))
        return value if at > voided.get(within, 0.0) else None

    async def do(step: Any) -> None:
        wall.wait(1.0)
        match step:
            case ("write", key, value):
                behind.write(key, value, int)
                written[key] = (value, wall())
            case ("forget", key):
                behind.forget(key)
                written.pop(key, None)
            case ("forget all", within):
                behind.forget_all(within)
                voided[within] = wall()
            case ("read", key, within):
                found = await behind.read(key, int, within)
                assert found is None or behind.dropped_writes or found[0] == expected(key, within)
            case ("leave", key, turns):
                reading = asyncio.create_task(behind.read(key, int))
                await steps(turns)
                await gone(reading)
            case ("wait", seconds):
                await asyncio.sleep(seconds)
            case ("ill", ill):
                store.ill = ill
            case ("slow", seconds):
                store.slow = seconds
            case ("cancel the writer",) if behind._writer in asyncio.all_tasks():
                await gone(behind._writer)
            case ("flush",):
                await behind.flush()

    async def last_look() -> None:
        store.ill, store.slow = False, 0.0
        await asyncio.sleep(REST + 1.0)
        await behind.flush()
        assert behind.snapshot().pending == 0
        assert behind._bytes == 0
        if not behind.dropped_writes:
            for key in "abcd":
                for within in ("", "one", "two"):
                    found = await behind.read(key, int, within)
                    assert (None if found is None else found[0]) == expected(key, within)
        await behind.read("nothing", int)  # where all was dropped, nobody has asked since
        assert not behind.resting
        behind.stop()

    loop = VirtualTimeLoop()
    for step in life:
        if step == ("another loop",):
            loop.run_until_complete(steps(1))
            loop.close()
            loop = VirtualTimeLoop()
        else:
            loop.run_until_complete(do(step))
    loop.run_until_complete(last_look())
    loop.close()


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("set"), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.binary(max_size=12)), max_size=5)
            ),
            st.tuples(st.just("delete"), st.sampled_from("abcdefgh")),
            st.tuples(st.just("reopen")),
        ),
        max_size=20,
    ),
    st.integers(1, 6),
    st.integers(12, 60),
)
@settings(deadline=None, max_examples=40)
def test_a_file_holds_the_last_written_within_its_bounds(life: list[Any], most: int, size: int) -> None:
    async def live(path: Path) -> None:
        store = SQLiteStore(path, max_entries=most, max_bytes=size)
        model: dict[str, bytes] = {}
        for step in life:
            match step:
                case ("set", pairs):
                    await store.multi_set(pairs)
                    for key, value in pairs:
                        if len(key) + 1 + len(value) <= size:
                            model.pop(key, None)
                            model[key] = value
                    while len(model) > most or sum(2 + len(value) for value in model.values()) > size:
                        del model[next(iter(model))]
                case ("delete", key):
                    assert await store.delete(key) == (model.pop(key, None) is not None)
                case ("reopen",):
                    await store.close()
            assert list((await store.newest(100)).items()) == list(model.items())
        await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder) / "answers.db"))


data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text() | st.integers(0, 9), parts) | st.tuples(parts),
    max_leaves=8,
)


@given(data)
@settings(deadline=None, max_examples=50)
def test_any_data_comes_back_as_it_is_or_is_refused(value: Any) -> None:
    try:
        wrapped = wrap(value, 1.0)
    except TypeError:
        assert "(" in repr(value) or "\\u" in ascii(value)  # a tuple, or text that is no Unicode
    else:
        assert repr(unwrap(wrapped, now=1.0)) == repr((value, 1.0))


@given(data, st.data())
@settings(deadline=None, max_examples=50)
def test_no_bytes_do_anything_but_decode_or_not(value: Any, draw: st.DataObject) -> None:
    try:
        wrapped = bytearray(wrap(value, 1.0))
    except TypeError:
        return
    at = draw.draw(st.integers(0, len(wrapped) - 1))
    wrapped[at] ^= draw.draw(st.integers(1, 255))

    for kind in (Any, int, list[int], dict[str, Any]):
        try:
            unwrap(bytes(wrapped), kind, now=1.0)
        except Undecodable:
            continue
        raise AssertionError("it was taken for whole")
