import random

import pytest

from gateway import Counts, LatencySnapshot
from gateway.counts import ENDS, Histogram, Tally


def test_a_tally_tells_every_way_to_end_by_its_name() -> None:
    tally = Tally()
    for number, end in enumerate(ENDS, start=1):
        tally.ended[end] += number
        tally.asked += number

    counts = tally.snapshot(in_flight=0, fallback_failed=3)

    assert [getattr(counts, end) for end in ENDS] == list(range(1, len(ENDS) + 1))
    assert counts.adds_up
    assert counts.fallback_failed == 3


def test_counts_that_do_not_add_up_say_so() -> None:
    assert Counts(asked=3, live=1, failed=1, in_flight=1).adds_up
    assert not Counts(asked=3, live=1, failed=1).adds_up
    assert Counts(asked=1, live=1, attempts=5, retries=4, overran=1).adds_up


def test_a_total_is_the_sum_of_each_field() -> None:
    total = Counts.total([Counts(asked=2, live=2, attempts=3), Counts(asked=1, cancelled=1), Counts()])

    assert total == Counts(asked=3, live=2, cancelled=1, attempts=3)
    assert Counts.total([]) == Counts()


def test_an_empty_histogram_is_all_zeros() -> None:
    assert Histogram().snapshot() == LatencySnapshot(count=0, mean=0.0, p50=0.0, p90=0.0, p99=0.0, max=0.0)


def test_percentiles_are_at_most_a_fifth_too_high_and_never_too_low() -> None:
    draw = random.Random(3)
    samples = sorted(draw.lognormvariate(-5.0, 1.5) for _ in range(5_000))
    histogram = Histogram()
    for sample in samples:
        histogram.record(sample)

    snapshot = histogram.snapshot()

    assert (snapshot.count, snapshot.max) == (5_000, samples[-1])
    assert snapshot.mean == pytest.approx(sum(samples) / 5_000)
    for share, told in ((0.5, snapshot.p50), (0.9, snapshot.p90), (0.99, snapshot.p99)):
        true = samples[round(share * 5_000) - 1]
        assert true <= told <= true * 1.2


def test_durations_beyond_all_buckets_are_counted_and_the_longest_is_exact() -> None:
    histogram = Histogram()
    histogram.record(0.0)
    histogram.record(1e9)

    snapshot = histogram.snapshot()

    assert (snapshot.count, snapshot.max, snapshot.p99) == (2, 1e9, 1e9)


def test_one_histogram_takes_in_another() -> None:
    one, other = Histogram(), Histogram()
    one.record(0.1)
    other.record(0.3)

    one.add(other)

    assert (one.snapshot().count, one.snapshot().max) == (2, 0.3)
    assert one.snapshot().mean == pytest.approx(0.2)
    assert other.snapshot().count == 1
