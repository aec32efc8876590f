"""Did it hold what it promises? Each criterion is a function that gives sentences, one for each violation.

| criterion                                                                              | function      |
|----------------------------------------------------------------------------------------|---------------|
| no page failed, none outlived its deadline by more than 50 ms                          | `complete`    |
| healthy and recovered seconds are at least 99 % live, each of them                     | `calm`        |
| while ratings hang, users seen before get last good at least 95 % of the time          | `remembering` |
| the circuit is open within 10 s of the hang                                            | `breaking`    |
| pages are live again within `open_for` + 3 s of each recovery                          | `resuming`    |
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import msgspec

from gateway.demo.load import Page
from gateway.demo.plan import RATINGS_HANG, RECOVERY, Phase, Plan
from gateway.demo.seconds import Change, kind_of, problem_of

LIVE_SHARE = 0.99
LAST_GOOD_SHARE = 0.95
OPEN_WITHIN = 10.0
LIVE_WITHIN = 3.0
"""Seconds, after the time that a circuit stays open at most."""
LOOK_FOR = 1.0
"""Pages are live again from the instant on at which a second begins that is."""


class Run(msgspec.Struct, frozen=True):
    """All that happened."""

    plan: Plan
    pages: Sequence[Page]
    """In the order in which they were to be asked for."""
    changes: Sequence[Change]
    switched: dict[int, float]
    """When the phase that begins at a second really began: its fault was switched on, or off."""

    def began(self, phase: Phase) -> float:
        """When it really began, in seconds from the start."""
        return self.switched.get(phase.begins, float(phase.begins))

    def ended(self, phase: Phase) -> float:
        """When the next one began."""
        return self.switched.get(phase.ends, float(phase.ends))

    def between(self, begin: float, end: float) -> Sequence[Page]:
        """The pages that were to be asked for in this time."""
        first, after = (bisect_left(self.pages, instant, key=lambda page: page.sent) for instant in (begin, end))
        return self.pages[first:after]


def violations(run: Run) -> list[str]:
    """All that was promised and not held."""
    return [sentence for criterion in CRITERIA for sentence in criterion(run)]


def complete(run: Run) -> Iterator[str]:
    """No page failed or was late."""
    problems = [(page.sent, problem) for page in run.pages if (problem := problem_of(page))]
    if problems:
        at, problem = problems[0]
        first = f"the first in second {int(at)}: {problem}"
        yield f"{len(problems):,} of {len(run.pages):,} pages failed or came too late ({first})"


def calm(run: Run) -> Iterator[str]:
    """Each second in which nothing is wrong is live."""
    for number in calm_seconds(run):
        share = live_share(run.between(number, number + 1))
        if share < LIVE_SHARE:
            yield f"second {number} ({run.plan.at(number).name}) was only {share:.1%} live"


def calm_seconds(run: Run) -> Iterator[int]:
    """The seconds that lie in the healthy phase, or in a recovery after the pages were live again."""
    for phase in run.plan.phases:
        since = live_again(run, phase) if phase.name == RECOVERY else phase.begins
        if phase.calm and since is not None:
            yield from (number for number in range(phase.begins, phase.ends) if number >= since)


def remembering(run: Run) -> Iterator[str]:
    """Users seen before get what was good."""
    share = last_good_share(run)
    if share is None:
        yield "no user seen before asked for a page while ratings hung"
    elif share < LAST_GOOD_SHARE:
        yield f"while ratings hung, users seen before got their last good page only {share:.1%} of the time"


def last_good_share(run: Run) -> float | None:
    """Of the pages of users seen before, while ratings hung. Live ones are not counted: nobody can ask for more."""
    hang = run.plan.phase(RATINGS_HANG)
    pages = [page for page in run.between(run.began(hang), run.ended(hang)) if page.seen]
    kinds = [kind for page in pages if (kind := kind_of(page)) != "live"]
    return kinds.count("last good") / len(kinds) if kinds else None


def breaking(run: Run) -> Iterator[str]:
    """The circuit opens soon."""
    after = opened_after(run)
    if after is None:
        yield "the circuit of ratings did not open while they hung"
    elif after > OPEN_WITHIN:
        yield f"the circuit of ratings opened {after:.1f} s after they began to hang, later than {OPEN_WITHIN:g} s"


def opened_after(run: Run) -> float | None:
    """Seconds from the hang to the open circuit."""
    hang = run.plan.phase(RATINGS_HANG)
    began, ended = run.began(hang), run.ended(hang)
    opened = (one.at for one in run.changes if one.upstream == "ratings" and one.state == "open" and one.at < ended)
    return next((at - began for at in opened if at >= began), None)


def resuming(run: Run) -> Iterator[str]:
    """After each recovery the pages are live again soon."""
    within = run.plan.open_for + LIVE_WITHIN
    for phase in run.plan.phases:
        if phase.name != RECOVERY:
            continue
        at = live_again(run, phase)
        recovery = f"after the recovery in second {phase.begins}"
        if at is None:
            yield f"{recovery} pages did not become live again"
        elif (took := at - run.began(phase)) > within:
            yield f"{recovery} it took {took:.1f} s until pages were live again, more than {within:g} s"


def live_again(run: Run, phase: Phase) -> float | None:
    """The instant in a phase from which on pages are live."""
    pages = run.between(run.began(phase), phase.ends)
    for page in pages:
        look_until = min(page.sent + LOOK_FOR, phase.ends)
        if kind_of(page) == "live" and live_share(run.between(page.sent, look_until)) >= LIVE_SHARE:
            return page.sent
    return None


def live_share(pages: Sequence[Page]) -> float:
    """From 0 to 1; of nothing, 0."""
    return sum(kind_of(page) == "live" for page in pages) / max(1, len(pages))


CRITERIA = (complete, calm, remembering, breaking, resuming)
