from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.units import BYTES, SECONDS, bytes_in, seconds_in


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("250us", 0.00025),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1 d", 86400.0),
        ("0s", 0.0),
        ("inf", inf),
    ],
)
def test_a_duration_names_seconds(text, seconds):
    assert seconds_in(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MiB", 10 * 1024 * 1024), ("10MB", 10_000_000), ("0.5KiB", 512), ("3 kB", 3000), ("7B", 7), ("inf", inf)],
)
def test_a_size_names_bytes(text, size):
    assert bytes_in(text) == size
    assert isinstance(bytes_in(text), int) or text == "inf"


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "5", "-5s", "+5s", "5S", "5sec", "5  s", " 5s", "5s ", "5s\n", "1m30s", "1e3s", ".5s", "5.s"),
        *("5MiB", "1,5s", "\u0665s", "nan", "-inf", "9" * 19 + "s"),
    ],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="no duration"):
        seconds_in(text)


@pytest.mark.parametrize("text", ["", "5", "0.5B", "-1B", "5mib", "5 s", "5s", "1MiB ", "1.1KiB", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="no size"):
        bytes_in(text)


@given(st.integers(0, 10**15), st.sampled_from(sorted(SECONDS)))
def test_a_duration_is_the_nearest_float_to_what_it_says(amount, unit):
    exact = amount * SECONDS[unit]

    assert seconds_in(f"{amount}{unit}") == float(exact)


@given(st.integers(0, 10**15), st.sampled_from(sorted(BYTES)))
def test_a_size_is_exact(amount, unit):
    assert bytes_in(f"{amount} {unit}") == amount * BYTES[unit]
