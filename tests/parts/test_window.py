import pytest

from gateway.window import CountWindow, TimeWindow


def recorded(window, *verdicts):
    for at, failed, slow in verdicts:
        window.record(at, failed, slow)
    return window


def counts(window):
    return window.calls, window.failures, window.slow


def test_a_count_window_holds_the_last_calls_only():
    window = CountWindow(3)

    recorded(window, (0, True, False), (0, True, True), (0, False, False), (0, False, True))

    assert counts(window) == (3, 1, 2)


def test_a_count_window_counts_what_it_has_until_it_is_full():
    window = CountWindow(3)

    recorded(window, (0, True, False), (0, False, True))

    assert counts(window) == (2, 1, 1)
    assert window.size == 3


def test_a_count_window_forgets_nothing_by_time():
    window = recorded(CountWindow(3), (0.0, True, True))

    window.advance(1e9)

    assert counts(window) == (1, 1, 1)


def test_a_count_window_of_one_holds_the_last_call():
    window = recorded(CountWindow(1), (0, True, True), (0, False, True))

    assert counts(window) == (1, 0, 1)


def test_a_full_count_window_goes_round_more_than_once():
    window = CountWindow(2)

    for turn in range(7):
        window.record(0, turn % 2 == 0, False)

    assert counts(window) == (2, 1, 0)


@pytest.mark.parametrize("make", [lambda: CountWindow(2), lambda: TimeWindow(2, 0.0)], ids=["count", "time"])
def test_a_window_is_bad_while_it_holds_a_failure_or_a_slow_call(make):
    window = make()
    seen = []
    for at, failed, slow in [(0, False, False), (0, True, False), (1, False, False), (2, False, False)]:
        window.record(at, failed, slow)
        seen.append(window.bad)
    window.record(2, False, True)

    assert seen == [False, True, True, False]
    assert window.bad


def test_a_time_window_at_second_s_holds_seconds_s_minus_n_plus_1_to_s():
    window = TimeWindow(3, 10.0)
    recorded(window, (10.999, True, False), (11.0, False, True), (12.0, False, False))

    held = []
    for second in (12, 13, 14, 15):
        window.advance(second)
        held.append(counts(window))

    assert held == [(3, 1, 1), (2, 0, 1), (1, 0, 0), (0, 0, 0)]


def test_buckets_are_aligned_to_whole_seconds_and_not_to_the_first_call():
    window = TimeWindow(1, 10.9)
    window.record(10.95, True, False)

    window.advance(11.0)

    assert counts(window) == (0, 0, 0)


def test_a_call_is_counted_in_the_second_in_which_it_ended():
    window = TimeWindow(2, 10.0)

    window.record(11.5, True, False)
    window.advance(12.5)

    assert counts(window) == (1, 1, 0)


def test_an_instant_less_than_half_a_microsecond_early_is_the_next_second():
    window = TimeWindow(1, 0.0)
    window.record(0.5, True, False)
    window.record(1.0 - 4e-7, False, False)

    assert counts(window) == (1, 0, 0)


def test_an_instant_a_microsecond_early_is_still_this_second():
    window = TimeWindow(1, 0.0)
    window.record(0.5, True, False)
    window.record(1.0 - 1e-6, False, False)

    assert counts(window) == (2, 1, 0)


def test_recording_after_long_idling_forgets_all_that_was_before():
    window = recorded(TimeWindow(3, 0.0), (0, True, True), (1, True, True), (2, True, True))

    window.record(1e9 + 0.5, False, False)

    assert counts(window) == (1, 0, 0)


def test_a_jump_of_exactly_the_window_forgets_all_and_of_a_second_less_keeps_the_last():
    kept = recorded(TimeWindow(3, 0.0), (0, False, False), (1, False, False), (2, True, False))
    emptied = recorded(TimeWindow(3, 0.0), (0, False, False), (1, False, False), (2, True, False))

    kept.advance(4.0)
    emptied.advance(5.0)

    assert counts(kept) == (1, 1, 0)
    assert counts(emptied) == (0, 0, 0)


def test_a_clock_that_goes_back_stays_in_the_newest_second():
    window = recorded(TimeWindow(2, 10.0), (11.0, True, False))

    window.record(3.0, True, True)
    window.advance(3.0)

    assert counts(window) == (2, 2, 1)
    window.advance(13.0)
    assert counts(window) == (0, 0, 0)


def test_a_time_window_works_at_the_size_of_the_epoch():
    window = TimeWindow(10, 1_700_000_778.645)

    window.record(1_700_000_778.645, True, False)
    window.advance(1_700_000_787.999)
    before = counts(window)
    window.advance(1_700_000_788.0)

    assert before == (1, 1, 0)
    assert counts(window) == (0, 0, 0)


def test_a_time_window_works_before_the_beginning_of_time():
    window = recorded(TimeWindow(2, -3.5), (-3.5, True, False), (-2.5, True, False))

    before = counts(window)
    window.advance(-1.5)

    assert before == (2, 2, 0)
    assert counts(window) == (1, 1, 0)
