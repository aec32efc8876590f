"""A mapping that nobody changes, and that everybody takes for a dict."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import pytest

from gateway.readonly import ReadOnly


@pytest.mark.parametrize(
    "change",
    [
        lambda it: it.__setitem__("limit", 40),
        lambda it: it.__delitem__("limit"),
        lambda it: it.__ior__({"limit": 40}),
        lambda it: it.update(limit=40),
        lambda it: it.setdefault("queue", 1),
        lambda it: it.pop("limit"),
        lambda it: it.popitem(),
        lambda it: it.clear(),
    ],
    ids=["set", "del", "|=", "update", "setdefault", "pop", "popitem", "clear"],
)
def test_nothing_changes_it(change: Callable[[Any], object]) -> None:
    limits = ReadOnly({"limit": 20})

    with pytest.raises(TypeError, match="read-only"):
        change(limits)

    assert limits == {"limit": 20}


def pickled(it: Any) -> Any:
    return pickle.loads(pickle.dumps(it))  # noqa: S301 - our own


@pytest.mark.parametrize("duplicate", [copy, deepcopy, pickled])
def test_a_copy_is_as_it_is_and_as_read_only(duplicate: Callable[[Any], Any]) -> None:
    limits = duplicate(ReadOnly({"limit": [20]}))

    assert limits == {"limit": [20]}
    with pytest.raises(TypeError):
        limits["limit"] = [40]


def test_it_is_json_and_a_dict_made_of_it_may_change() -> None:
    limits = ReadOnly({"limit": 20})

    changed = limits | {"limit": 40}

    assert json.dumps(limits) == '{"limit": 20}'
    assert (changed, limits) == ({"limit": 40}, {"limit": 20})


def test_it_does_not_see_what_becomes_of_what_it_was_made_of() -> None:
    mine = {"limit": 20}
    limits = ReadOnly(mine)

    mine["limit"] = 40

    assert limits == {"limit": 20}
