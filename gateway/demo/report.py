"""The scenario in words: a line a second as it happens, a line a phase at the end, and what is to be said of it all."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.demo.plan import RATINGS_HANG, RECOVERY, Plan
from gateway.demo.seconds import KINDS, UPSTREAMS, Second, circuits_at, kind_of, problem_of, second
from gateway.demo.verdict import Run, calm_seconds, last_good_share, live_again, live_share, opened_after, violations

HEADER = (
    "                                                                                           circuits of\n"
    "  second  what happens     requests   p50 ms   p99 ms    live  last good  default  error    ratings    info"
)


def line(one: Second, *, seconds: str = "") -> str:
    """A second, or several."""
    live, last_good, default, error = (f"{one.kinds[kind]:,}" if one.kinds[kind] else "-" for kind in KINDS)
    ratings, info = (one.circuits.get(upstream, "none").replace("_", "-") for upstream in UPSTREAMS)
    return (
        f"{seconds or one.number:>8}  {one.phase:15}  {one.requests:8,} {one.p50 * 1000:8,.0f} {one.p99 * 1000:8,.0f}"
        f"  {live:>6}  {last_good:>9}  {default:>7}  {error:>5}    {ratings:9}  {info}"
    )


def phases(run: Run, *, protected: bool) -> Iterator[str]:
    """A line for each phase, with the circuits as they were at its end."""
    for phase in run.plan.phases:
        pages = run.between(phase.begins, phase.ends)
        circuits = circuits_at(phase.ends, run.changes) if protected else {}
        summed_up = second(phase.begins, phase.name, pages, circuits)
        yield line(summed_up, seconds=f"{phase.begins} to {phase.ends}")


def protected(run: Run) -> tuple[str, ...]:
    """What it promised and did, or did not."""
    if problems := violations(run):
        return tuple(f"FAILED: {problem}" for problem in problems)
    slowest = max(page.took for page in run.pages)
    calm = [page for number in calm_seconds(run) for page in run.between(number, number + 1)]
    back = ", ".join(f"{took:.1f}" for took in recoveries(run) if took is not None)
    remembered, open_after = last_good_share(run) or 0, opened_after(run) or 0
    return (
        f"ok: all {len(run.pages):,} pages were complete and in time, the slowest after {slowest * 1000:,.0f} ms;",
        f"healthy and recovered seconds were {live_share(calm):.1%} live; again {back} s after the recoveries;",
        f"while ratings hung, users seen before got their last good page {remembered:.1%} of the time;",
        f"the circuit was open {open_after:.1f} s after ratings began to hang.",
    )


def unprotected(run: Run) -> tuple[str, ...]:
    """What happened without a gateway. Nothing was promised."""
    lost = [page for page in run.pages if problem_of(page)]
    hang = [kind_of(page) for page in run.between(*ends(run.plan, RATINGS_HANG))]
    calm = [page for phase in run.plan.phases if phase.calm for page in run.between(phase.begins, phase.ends)]
    lost_calm = sum(bool(problem_of(page)) for page in calm)
    back = ", ".join("not before the next fault" if took is None else f"{took:.1f} s" for took in recoveries(run))
    share, hang_share = len(lost) / max(1, len(run.pages)), hang.count("error") / max(1, len(hang))
    return (
        f"without a gateway, {len(lost):,} of {len(run.pages):,} pages ({share:.0%}) failed or came too late:",
        f"{hang_share:.0%} of those sent while ratings hung, and {lost_calm:,} sent when nothing was wrong any more;",
        f"pages were live again after the three recoveries: {back}.",
    )


def recoveries(run: Run) -> Iterator[float | None]:
    """Seconds from each recovery to live pages; None if they did not become so."""
    for phase in run.plan.phases:
        if phase.name == RECOVERY:
            at = live_again(run, phase)
            yield None if at is None else at - run.began(phase)


def ends(plan: Plan, name: str) -> tuple[int, int]:
    """Where a phase begins and ends."""
    phase = plan.phase(name)
    return phase.begins, phase.ends
