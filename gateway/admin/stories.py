"""Why a call ended as it did: the story of each that was not plainly live, and of some that were; and a log.

    queued 12 ms; circuit closed; attempt 1: no answer within 0.300 s (read); no further try: the retry budget of
    ratings is used up; answered by last good, 8 s old

A story is made of events, of what errors say, and of the notes on them. It never has arguments or values. Texts of
errors come from upstreams: they are cut short, and `errors=False` leaves them out. What is kept is bounded, for each
upstream on its own, so that one that fails a thousand times a second drives nobody else's stories out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass
from heapq import nlargest
from itertools import chain, count
from operator import attrgetter
from typing import Any, Literal, Protocol, cast

from msgspec import Struct

from fallbacks.answer import LIVE, Source
from fallbacks.chain import told
from gateway.context import HALF_MICROSECOND
from gateway.events import AttemptFailed, CallFinished, CircuitChanged, Event, PolicyChanged
from gateway.outcome import BulkheadFull, CircuitOpen, DeadlineExceeded, GatewayError, Outcome
from gateway.policy import Policy
from gateway.upstream import Upstream

PLAIN_EVERY = 100
"""One in so many plainly live calls of an operation is kept; nobody hears of the others."""
KEPT, KEPT_PLAIN = 100, 25
"""Stories of each upstream."""
A_SECOND = 100
"""Stories of each upstream in one second that are not plain: the rest of a flood would drive out what is told, and cost
most where there is least to spare."""
UNDER_WAY = 2_000
"""Calls under way whose failed tries are kept; who is over it is told of without them."""
TRIES = 10
"""Failed tries that one story tells of."""
LINES = 100
"""Lines of the log."""
LONGEST = 200
"""Characters of a text that comes from outside."""

PLAIN = frozenset({Source.LIVE, Source.CACHED, Source.COALESCED})
"""Answers as good as live ones: told of now and then."""
HARMLESS = frozenset({Outcome.REFUSED, Outcome.CANCELLED})
"""Ends of calls that say nothing against the upstream."""
StepKind = Literal["queue", "circuit", "attempt", "retry", "tier", "end"]
LineKind = Literal["circuit", "policy", "control", "endpoint", "warning"]


class Step(Struct, frozen=True):
    """One thing that happened in a call; `seconds` is what it took, where that is known."""

    kind: StepKind
    seconds: float | None
    ok: bool
    text: str


class Told(Struct, frozen=True):
    """What an error says, without the error: that would keep alive all that its traceback leads to."""

    kind: str
    text: str
    notes: tuple[str, ...]
    waited_for: str | None
    retry_after: float | None
    reason: str | None


class Try(Struct, frozen=True):
    """A try that failed."""

    number: int
    began_at: float
    ended_at: float
    error: Told


class Story(Struct, frozen=True):
    """A call that is over; `at` is when it ended, by the gateway's clock. The rest is made when asked for."""

    id: int
    at: float
    upstream: str
    operation: str
    outcome: Outcome
    source: Source | None
    age: float
    duration: float
    waited: float
    attempts: int
    plain: bool
    circuit: str
    error: Told | None
    tries: tuple[Try, ...]

    @property
    def steps(self) -> list[Step]:
        """What happened, in order."""
        return list(steps_of(self))

    @property
    def text(self) -> str:
        """The story as a sentence."""
        return "; ".join(step.text for step in self.steps)


class Line(Struct, frozen=True):
    """A line of the log; `at` is by the gateway's clock."""

    id: int
    at: float
    kind: LineKind
    upstream: str
    text: str


class Gate(Protocol):
    """Whose stories they are: a gateway."""

    def on(self, *kinds: type[Event], plain_every: int = 1) -> Callable[[Any], Any]:
        """Tell a function of events; of calls that went plainly well, of one in so many."""
        ...

    def off(self, listener: Callable[[Any], object]) -> None:
        """Tell it no more."""
        ...

    def __getitem__(self, name: str) -> Upstream:
        """An upstream."""
        ...

    def __contains__(self, name: object) -> bool:
        """Whether there is one."""
        ...


class Kept:
    """The stories of one upstream, and the state of its circuit as far as it was heard of."""

    __slots__ = ("circuits", "plain", "second", "telling", "told")

    def __init__(self) -> None:
        self.telling: deque[Story] = deque(maxlen=KEPT)
        self.plain: deque[Story] = deque(maxlen=KEPT_PLAIN)
        self.second = 0
        self.told = 0  # in that second
        self.circuits: OrderedDict[Hashable, tuple[str, float]] = OrderedDict()


class Stories:
    """Listens to a gateway from `listen` to `leave`. `plain_every`: one in so many plainly live calls of an operation.

    `errors=False`: errors are told by their type alone. `clock` gives the gateway's seconds, for what is noted here.
    `amiss` hears the name of an upstream that gave no live answer.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        clock: Callable[[], float],
        amiss: Callable[[str], object] = lambda _: None,
        plain_every: int = PLAIN_EVERY,
        errors: bool = True,
    ) -> None:
        self.gate = gate
        self.clock = clock
        self.amiss = amiss
        self.plain_every = plain_every
        self.errors = errors
        self.told_elsewhere: Callable[[], bool] = lambda: False  # whether whoever changes a policy now says so himself
        self.lines: deque[Line] = deque(maxlen=LINES)
        self._ids = count(1)
        self._kept: dict[str, Kept] = {}
        self._under_way: OrderedDict[tuple[str, int], list[Try]] = OrderedDict()

    def listen(self) -> None:
        """Begin."""
        self.gate.on(CallFinished, plain_every=self.plain_every)(self.call_finished)
        self.gate.on(AttemptFailed)(self.attempt_failed)
        self.gate.on(CircuitChanged)(self.circuit_changed)
        self.gate.on(PolicyChanged)(self.policy_changed)

    def leave(self) -> None:
        """Listen no more. What is kept can still be read."""
        for listener in (self.call_finished, self.attempt_failed, self.circuit_changed, self.policy_changed):
            self.gate.off(listener)

    # -- what is heard

    def call_finished(self, event: CallFinished) -> None:
        """A call is over."""
        began_at = event.at - event.duration
        tries: tuple[Try, ...] = ()
        if self._under_way:
            tries = tuple(self._under_way.pop((event.upstream, event.call), ()))
            if tries and tries[0].began_at < began_at - HALF_MICROSECOND:
                tries = ()  # of another one, that nobody waited for; the number is used again
        kept = self._kept.get(event.upstream)
        if kept is None:
            kept = self._kept[event.upstream] = Kept()
        plain = event.error is None and not event.waited and event.attempts <= 1 and event.source in PLAIN
        if not plain:
            if event.error is not None and event.outcome not in HARMLESS:
                self.amiss(event.upstream)
            if self._is_flooded(kept, event.at):
                return
            kept.told += 1
        error = event.error
        story = Story(
            next(self._ids), event.at, event.upstream, event.operation, event.outcome, event.source,
            event.age, event.duration, event.waited, event.attempts, plain,
            self._circuit(kept, began_at), None if error is None else self._told(error), tries,
        )  # fmt: skip
        (kept.plain if plain else kept.telling).append(story)

    def attempt_failed(self, event: AttemptFailed) -> None:
        """A try of a call that goes on, or is about to end."""
        kept = self._kept.get(event.upstream)
        if kept is not None and self._is_flooded(kept, event.at):
            return
        key = (event.upstream, event.call)
        tries = self._under_way.get(key)
        if tries is None or event.attempt == 1:  # the number is one that was used before
            tries = self._under_way[key] = []
            if len(self._under_way) > UNDER_WAY:
                self._under_way.popitem(last=False)
        if len(tries) < TRIES:
            tries.append(Try(event.attempt, event.at - event.duration, event.at, self._told(event.error)))

    @staticmethod
    def _is_flooded(kept: Kept, at: float) -> bool:
        """Whether enough was told of this second."""
        second = int(at)
        if second != kept.second:
            kept.second, kept.told = second, 0
        return kept.told >= A_SECOND

    def circuit_changed(self, event: CircuitChanged) -> None:
        """A circuit went from one state to another."""
        kept = self._kept.setdefault(event.upstream, Kept())
        kept.circuits[event.key] = (event.after, event.at)
        kept.circuits.move_to_end(event.key)
        if len(kept.circuits) > KEPT:
            kept.circuits.popitem(last=False)
        by_hand = "isolated" in (event.before, event.after)
        of = "" if event.key is None else f" ({short(str(event.key))})"
        self.note("control" if by_hand else "circuit", event.upstream, f"{event.before} -> {event.after}{of}", event.at)

    def policy_changed(self, event: PolicyChanged) -> None:
        """An upstream goes by other numbers."""
        if self.told_elsewhere():
            return
        changes = ", ".join(f"{knob} {before} -> {after}" for knob, before, after in changed(event.before, event.after))
        if changes:
            self.note("policy", event.upstream, changes, event.at)

    def note(self, kind: LineKind, upstream: str, text: str, at: float | None = None) -> None:
        """Write a line into the log."""
        self.lines.append(Line(next(self._ids), self.clock() if at is None else at, kind, upstream, short(text, 500)))

    # -- what is asked

    def of(self, upstream: str | None = None, limit: int = LINES) -> list[Story]:
        """The latest stories, the last first: of an upstream, or of all."""
        named = self._kept.values() if upstream is None else [self._kept.get(upstream, Kept())]
        every = chain.from_iterable((*kept.telling, *kept.plain) for kept in named)
        return nlargest(limit, every, key=attrgetter("id"))

    def since(self, upstream: str, key: Hashable = None) -> float | None:
        """When a circuit came into the state it is in; None if that was before anybody listened."""
        kept = self._kept.get(upstream)
        found = None if kept is None else kept.circuits.get(key)
        return None if found is None else found[1]

    def _circuit(self, kept: Kept, at: float) -> str:
        """The state of the circuit that a call of then met, as far as it is known: "" where it is not."""
        if any(key is not None for key in kept.circuits):
            return ""
        state, since = kept.circuits.get(None, ("closed", at))
        return state if since <= at else ""

    def _told(self, error: BaseException) -> Told:
        ours = isinstance(error, GatewayError)
        text = ""
        if self.errors:
            text = short(str(error.args[0]) if ours and error.args else told(error))
        notes: tuple[str, ...] = tuple(getattr(error, "__notes__", ()))
        if not self.errors:
            notes = tuple(note.partition(": ")[0] if " failed: " in note else note for note in notes)
            notes = tuple("the next try was rejected" if "try was rejected" in note else note for note in notes)
        return Told(
            type(error).__name__,
            text,
            tuple(short(note) for note in notes[:TRIES]),
            getattr(error, "waited_for", None) if ours else None,
            getattr(error, "retry_after", None) if ours else None,
            getattr(error, "reason", None) if isinstance(error, BulkheadFull) else None,
        )


def short(text: str, longest: int = LONGEST) -> str:
    """One line of it."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]}..."


def spell(seconds: float) -> str:
    """A duration as people say it: `12 ms`, `1.5 s`, `8 s`, `5 min`."""
    if seconds < 0.001:  # noqa: PLR2004 - a millisecond
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1.0:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 10.0:  # noqa: PLR2004
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 120.0:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004


def steps_of(story: Story) -> Iterator[Step]:
    """What happened in a call, in order."""
    error = story.error
    if story.waited:
        yield Step("queue", story.waited, True, f"queued {spell(story.waited)}")
    sent = story.attempts > 0
    if error is not None and error.kind == CircuitOpen.__name__:
        again = "" if not error.retry_after else f"; tried again in {spell(error.retry_after)}"
        yield Step("circuit", None, False, (short(error.text) or "the circuit let nobody in") + again)
    elif sent:
        state = story.circuit
        word = f"circuit {state}" if state in {"closed", "half_open"} else "let in by the circuit"
        yield Step("circuit", None, True, word.replace("_", "-"))
    if error is not None and error.kind == BulkheadFull.__name__:
        yield Step("queue", None, False, "no place: " + (error.text or f"{error.reason}"))
    elif error is not None and error.kind == DeadlineExceeded.__name__ and not sent:
        yield Step("queue", None, False, error.text or "the deadline passed before anything was sent")
    yield from tries_of(story)
    yield from notes_of(story)
    yield Step("end", story.duration, story.source is not None or story.outcome is Outcome.REFUSED, ending(story))


def tries_of(story: Story) -> Iterator[Step]:
    """The tries, and the pauses between them."""
    before: Try | None = None
    for one in story.tries:
        if before is not None:
            pause = max(0.0, one.began_at - before.ended_at)
            yield Step("retry", pause, True, f"again after {spell(pause)}")
        took = one.ended_at - one.began_at
        yield Step("attempt", took, False, f"attempt {one.number}: {why(one.error, story)}")
        before = one
    unseen = story.attempts - len(story.tries)
    if unseen <= 0:
        return
    if before is None and story.source is not LIVE and story.error is not None:
        if story.outcome is Outcome.REFUSED:
            yield Step("attempt", None, True, f"attempt {story.attempts}: refused: {said(story.error)}")
        elif story.outcome is Outcome.CANCELLED:
            yield Step("attempt", None, False, f"attempt {story.attempts}: the caller left")
        else:
            yield Step("attempt", None, False, f"attempt {story.attempts}: {why(story.error, story)}")
    elif story.source is LIVE:
        if before is not None or story.attempts > 1:
            yield Step("retry", None, True, "tried again")
        yield Step("attempt", None, True, f"attempt {story.attempts}: answered")
    elif story.outcome in {Outcome.REFUSED, Outcome.CANCELLED}:
        ended = "the caller left" if story.outcome is Outcome.CANCELLED else "refused"
        yield Step("retry", None, True, "tried again")
        yield Step("attempt", None, story.outcome is Outcome.REFUSED, f"attempt {story.attempts}: {ended}")


def notes_of(story: Story) -> Iterator[Step]:
    """What its error was told on the way: why there was no further try, and what the tiers said."""
    for note in () if story.error is None else story.error.notes:
        kind: StepKind = "retry" if note.startswith(("no further try", "the next try")) else "tier"
        yield Step(kind, None, False, note)


def why(error: Told, story: Story) -> str:
    """Why a try failed."""
    text = error.text.removeprefix(f"{story.upstream}.{story.operation}: ") or error.kind
    return f"{text} ({error.waited_for})" if error.waited_for else text


def said(error: Told) -> str:
    """What an error says, by its type where that is not to be told."""
    return error.text or error.kind


def ending(story: Story) -> str:
    """How a call ended."""
    if story.source is LIVE:
        return f"answered live in {spell(story.duration)}"
    if story.source is Source.CACHED:
        return f"answered from memory, {spell(story.age)} old and fresh"
    if story.source is Source.COALESCED:
        return f"answered in {spell(story.duration)} with an identical call in flight"
    if story.source is not None:
        age = f", {spell(story.age)} old" if story.age else ""
        return f"answered by {str(story.source).replace('_', ' ')}{age}"
    if story.outcome is Outcome.CANCELLED:
        return f"cancelled after {spell(story.duration)}: the caller left"
    words = {
        Outcome.REFUSED: "refused by the upstream, which is an answer",
        Outcome.REJECTED: "rejected: nothing was sent",
        Outcome.FAILED: "failed",
        Outcome.UNKNOWN: "unknown: it may have taken effect",
    }
    return words.get(story.outcome, str(story.outcome))


def changed(before: Policy, after: Policy) -> Iterator[tuple[str, object, object]]:
    """The knobs that two policies differ in, each with both values."""
    yield from _changed("", before, after)


def _changed(where: str, before: Any, after: Any) -> Iterator[tuple[str, object, object]]:
    for field in fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if is_dataclass(old) and is_dataclass(new):
            yield from _changed(f"{where}{field.name}.", old, new)
        else:
            yield where + field.name, shown(old), shown(new)


def shown(value: object) -> object:
    """A value of a knob in a line of the log."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, int | str | None) else cast("object", type(value).__name__)
