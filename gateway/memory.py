"""What one operation keeps of its answers: where, which of them, and how long each is fresh.

Two ages: for `fresh_for` seconds a remembered answer is as good as one from the upstream, which is then not asked
(RFC 9111's freshness, said by the caller instead of the server); up to the `max_age` of a `LastGood` it is better than
none (RFC 5861, stale-if-error). With `revalidate="background"` it is given at once in between, while it is asked for
anew (RFC 5861, stale-while-revalidate).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence, Sized
from functools import partial
from math import inf
from typing import Any, get_type_hints

from fallbacks.answer import Tier
from fallbacks.envelope import check_kind
from fallbacks.last_good import LastGood
from fallbacks.sizes import size_of
from gateway.call import Call
from gateway.outcome import ConfigError
from gateway.terms import Terms

log = logging.getLogger("gateway")

EARLY_SHARE = 0.1
"""An answer is asked for anew in the last tenth of its freshness, each key at a moment of its own: keys that were
written together do not grow stale together. After Vattani and others, "Optimal Probabilistic Cache Stampede
Prevention"; here the moment follows from the key, so that it is the same for all who look."""
BUCKETS = 1024
CONTAINERS = frozenset({str, bytes, list, tuple, dict, set, frozenset})
"""Worth remembering if they are not empty: of these `worth_remembering` need not be asked."""
NOTHING: frozenset[type] = frozenset()


class Memory:
    """The memories of one operation. `kind` gives the declared type of its answers, when that is needed."""

    __slots__ = (
        "_all",
        "_first",
        "_implied",
        "_keepers",
        "_kind",
        "_kind_of",
        "_said",
        "_size_of",
        "_told_by_size",
        "fresh_for",
        "in_background",
        "where",
        "worth",
    )

    def __init__(self, where: str, said: Terms, *, kind: Callable[[], Any], worth: Callable[[Any], bool]) -> None:
        self.where = where
        self.fresh_for = float(said.fresh_for)
        self.in_background = said.revalidate == "background"
        self.worth = said.remember or worth
        self._told_by_size = CONTAINERS if self.worth is worth_remembering else NOTHING
        self._said = said.remember is not None
        self._size_of = said.size_of
        self._kind_of = kind
        self._kind: Any = Any  # until it is found out: that reads annotations, and is too dear for every question
        self._implied: LastGood | None = None  # of an operation that is fresh for a while, and has no LastGood
        if self.fresh_for or self.in_background:
            self._implied = LastGood(max_age=max(self.fresh_for, 3600.0) if self.in_background else self.fresh_for)
        self._first: LastGood | None = self._implied
        self._keepers: tuple[Callable[[Hashable, Any, float], object], ...] = ()
        self.use(())

    def use(self, tiers: Sequence[Tier]) -> None:
        """Remember in these tiers, as far as they do. Raises ConfigError for what contradicts the operation."""
        memories = [tier for tier in tiers if isinstance(tier, LastGood)]
        for memory in memories:
            if self.fresh_for > memory.max_age:
                problem = f"{self.fresh_for:g} s are more than the {memory.max_age:g} s of its LastGood(max_age=)"
                raise ConfigError(f"{self.where} fresh_for", problem, "give less, or the LastGood more")
            if memory.behind is not None:
                self._check_kind()
        self._first = memories[0] if memories else self._implied
        keepers: list[Tier | LastGood] = [tier for tier in tiers if hasattr(tier, "remember")]
        if not memories and self._implied is not None:
            keepers.append(self._implied)
        self._keepers = tuple(self._keeper(one) for one in keepers)
        self._all = tuple(one for one in keepers if isinstance(one, LastGood))

    def __bool__(self) -> bool:
        return bool(self._keepers)

    @property
    def first(self) -> LastGood | None:
        """The one that fresh answers come from."""
        return self._first

    @property
    def all(self) -> tuple[LastGood, ...]:
        """All of them."""
        return self._all

    @property
    def asked_for(self) -> bool:
        """Whether `remember=` says what is worth it."""
        return self._said

    @property
    def looks_first(self) -> bool:
        """Whether it may answer before the upstream is asked."""
        return self.fresh_for > 0 or self.in_background

    @property
    def kind(self) -> Any:
        """The type of the answers, as declared; Any where nobody says."""
        if self._kind is Any:
            self._kind = self._kind_of()
        return self._kind

    def keep(self, call: Call, value: Any) -> None:
        """Remember a live value, if it is worth it. What goes wrong here is not the caller's: the answer is good."""
        key, at = call.key, call.at
        if key is None:
            return  # it was forgotten while it was under way
        try:
            if not (value if type(value) in self._told_by_size else self.worth(value)):
                return
        except Exception:
            log.exception("%s: remember= raised, so the answer is not remembered", self.where)
            return
        for remember in self._keepers:
            try:
                remember(key, value, at)
            except Exception:
                log.exception("%s: the answer could not be remembered", self.where)

    def look(self, key: Hashable, now: float, max_age: float = inf) -> tuple[Any, float] | None:
        """A value that may be given without asking, and its age in seconds."""
        if self._first is None or key is None:
            return None
        limit = max_age if self.in_background else min(self.fresh_for, max_age)
        kind = self.kind if self._first.behind is not None else Any
        return self._first.recall(key, now, limit, kind, self.where)

    def is_due(self, key: Hashable, age: float) -> bool:
        """Whether an answer of this age is to be asked for anew, while it is given."""
        if not self.in_background:
            return False
        early = EARLY_SHARE * (hash(key) % BUCKETS) / BUCKETS
        return age >= self.fresh_for * (1.0 - early)

    def _keeper(self, tier: Any) -> Callable[[Hashable, Any, float], object]:
        remember: Callable[..., object] = tier.remember
        if not isinstance(tier, LastGood):
            return remember
        if self._size_of is None and tier.behind is None:
            return remember
        kind = Any if tier.behind is None else self.kind
        return partial(tier.remember_as, size_of=self._size_of or size_of, kind=kind)

    def _check_kind(self) -> None:
        try:
            check_kind(self.kind)
        except TypeError as error:
            remedy = "annotate the function with what msgspec can carry, or give the LastGood no store"
            raise ConfigError(f"{self.where} fallback", f"its answers cannot be stored: {error}", remedy) from None


def worth_remembering(value: Any) -> bool:
    """Whether an answer may take the place of an older one: not None, and not empty.

    An upstream that is half broken often answers with an empty list; what it said before is better.
    """
    if type(value) in CONTAINERS:
        return bool(value)
    return value is not None and not (isinstance(value, Sized) and len(value) == 0)


def declared_type(function: Callable[..., Any]) -> Any:
    """The type that a function says it returns; Any where it does not, or where that cannot be found out."""
    try:
        return get_type_hints(function).get("return", Any)
    except Exception:  # noqa: BLE001 - an annotation may be anything
        return Any
