"""Policies in a text: every knob, every mistake, the way back, and the schema."""

import json
import pickle
import re
from math import inf

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import ConfigError, ConfigErrors, Policy, RetryPolicy, TimeoutPolicy, UnknownName
from gateway.config import dumps, load, loads, schema
from gateway.config.document import quoted
from gateway.config.knobs import _taken, knobs
from gateway.config.knobs import settings as settings_of
from gateway.config.policies import alike, told
from gateway.config.values import number_of, value_of, written_value
from gateway.config.waits import same
from gateway.policy import KNOBS, Quantity

NO_ENVIRONMENT = {}


def read(text, **environment):
    return loads(text, environment=environment)


def ratings(text, **environment):
    return read(f"[upstreams.ratings]\n{text}", **environment)["ratings"]


def error_of(text, **environment):
    with pytest.raises(ConfigError) as caught:
        ratings(text, **environment)
    return caught.value


# -- every knob


def examples(knob):
    """Spellings of a knob that are right, and what they mean."""
    takes = knob.takes
    if isinstance(takes, Quantity):
        yield "1", 1
        if takes.unit == "seconds":
            yield '"2000ms"', 2.0
        if takes.endless:
            yield '"inf"', inf
            yield "inf", inf
    elif takes == "wait":
        yield '{ fixed = "250ms" }', tenacity.wait_fixed(0.25)
    elif takes is bool:
        yield "true", True
        yield "false", False
    elif takes != "policy":
        yield from ((f'"{word}"', word) for word in takes)
    if knob.none:
        yield '"none"', None


EXAMPLES = [(knob.path, text, value) for knob in knobs().values() for text, value in examples(knob)]


def test_every_knob_can_be_set_by_a_file():
    assert sorted(knobs()) == KNOBS
    assert {path for path, _, _ in EXAMPLES} == set(KNOBS)


@pytest.mark.parametrize(("path", "text", "value"), EXAMPLES, ids=[f"{path} {text}" for path, text, _ in EXAMPLES])
def test_a_knob_is_set_by_its_path(path, text, value):
    if (path, value) == ("breaker.window_for", None):
        value = 10.0  # without any window it is the usual one

    policy = ratings(f"{path} = {text}")

    assert same(settings_of(policy)[path], value)


@pytest.mark.parametrize("hint", [bytes, float, int | str, list[int], int | str | None])
def test_a_knob_of_a_type_without_a_spelling_is_noticed(hint):
    with pytest.raises(TypeError, match="no spelling"):
        _taken(hint, "odd.knob")


# -- what is wrong


@pytest.mark.parametrize(
    ("text", "field", "problem", "remedy"),
    [
        ("bulkhead.limit = 0", "bulkhead.limit", "0 is not a whole number from 1 up", "give 1 or more, or inf"),
        ("bulkhead.limit = '5m'", "bulkhead.limit", "'5m' is no number", 'give a whole number, or "inf"'),
        ("bulkhead.limit = true", "bulkhead.limit", "True is not a number", 'give a whole number, or "inf"'),
        ("bulkhead.limit = 'none'", "bulkhead.limit", '"none" is not for this knob', 'give a whole number, or "inf"'),
        ("bulkhead.limit = 2026-01-01", "bulkhead.limit", "is not a number", "give a whole number"),
        ("bulkhead.limit = nan", "bulkhead.limit", "nan is not a number", "give a number"),
        ("bulkhead = 5", "bulkhead", "5 is no table", "give [upstreams.ratings.bulkhead]"),
        ("retry.budget = 5", "retry.budget", "5 is no table", 'give [upstreams.ratings.retry.budget], or "none"'),
        ("bulkhead.limt = 5", "bulkhead.limt", "there is no 'limt'", "did you mean 'limit'?"),
        ("limit = 5", "limit", "there is no 'limit' in this table", "it stands in [upstreams.ratings.bulkhead]"),
        ("ratio = 5", "ratio", "there is no 'ratio' in this table", "it stands in [upstreams.ratings.retry.budget]"),
        ("bulkhead.call = 5", "bulkhead.call", "there is no 'call'", "it stands in [upstreams.ratings.timeout]"),
        ("retry.fallback_limit = 5", "retry.fallback_limit", "there is no", "it stands in [upstreams.ratings]"),
        ("zzz = 5", "zzz", "there is no 'zzz'", "known are: breaker, bulkhead"),
        ('"a.b" = 5', '"a.b"', "there is no 'a.b'", "known are"),
        ("timeout.call = '5 parsecs'", "timeout.call", "'5 parsecs' is no duration", '"300ms", "5m", or "inf"'),
        ("breaker.failure_rate = 50", "breaker.failure_rate", "50 is not in (0, 1]", "0.5 for 50 %"),
        ("breaker.failure_rate = '50 %'", "breaker.failure_rate", "'50 %' is no share", "0.5 for 50 %"),
        ("breaker.enforce = 1", "breaker.enforce", "1 is neither true nor false", "give true or false"),
        ("breaker.after_max_half_open = 'shut'", "breaker.after_max_half_open", "'shut' is not", '"open" or "closed"'),
        ("breaker.open_cap = 1e-7", "breaker.open_cap", "1e-07 is shorter than a microsecond", "give 1e-06 or more"),
        ("retry.wait = 'none'", "retry.wait", '"none" is not for this knob', "give one of { jitter"),
        ("retry.wait = '1s'", "retry.wait", "'1s' is no wait strategy", "give one of { jitter"),
        ("retry.wait = {}", "retry.wait", "{} is no wait strategy", "give one of { jitter"),
        ("retry.wait = { max = 1 }", "retry.wait", "['max'] name no strategy", "give one of { jitter"),
        ("retry.wait = { jitter = 1, fixed = 1 }", "retry.wait", "jitter and fixed are two strategies", "one of"),
        ("retry.wait = { jitter = 1, mox = 1 }", "retry.wait.mox", "there is no 'mox'", "did you mean 'max'?"),
        ("retry.wait = { random = 1 }", "retry.wait.random", "1 is no pair of waits", '["100ms", "300ms"]'),
        ("retry.wait = { random = [2, 1] }", "retry.wait.random", "2 is more than 1", "the shorter one first"),
        ("retry.wait = { fixed = inf }", "retry.wait.fixed", "inf is no wait", "give seconds"),
        ("retry.wait = { fixed = -1 }", "retry.wait.fixed", "-1 is no wait", "give seconds"),
        ("retry.wait = { jitter = 1, base = 0 }", "retry.wait.base", "0 is no base", "give a number"),
        ("retry.wait = { jitter = 1, min = 3, max = 2 }", "retry.wait.min", "3 is more than max, 2", "at most max"),
        ("retry.wait = { incrementing = 1 }", "retry.wait.step", "it is missing", "give step as well"),
        ("timeout.call = 1\ntimeout.read = 2", "timeout.read", "timeout.call is 1 s", "give at most 1"),
        ("breaker.window_for = 5\nbreaker.window_calls = 5", "breaker.window_for", "both", "only one"),
        ("retry.budget = { ratio = 0, minimum = 0 }", "retry.budget", "grants none", "attempts=1"),
        ("timeout.call = 1\nbulkhead.max_wait = 2", "bulkhead.max_wait", "timeout.call is 1 s", "give at most 1"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_would_be_right(text, field, problem, remedy):
    error = error_of(text)

    assert not isinstance(error, ConfigErrors)
    assert error.field == f"upstreams.ratings.{field}"
    assert problem in error.problem
    assert remedy in error.remedy


def test_every_mistake_is_told_at_once_with_its_line():
    error = error_of(
        "bulkhead.limit = 0\nretry.wait = { fixed = -1, mox = 2 }\n[upstreams.info.timeout]\ncall = 1\n"
        "attempt = 2\nread = 3\n[upstreams.'a b']\nx = 1\n[other]"
    )

    assert isinstance(error, ConfigErrors)
    assert [(one.line, one.field) for one in error.errors] == [
        (2, "upstreams.ratings.bulkhead.limit"),
        (3, "upstreams.ratings.retry.wait.mox"),
        (3, "upstreams.ratings.retry.wait.fixed"),
        (5 + 0, "upstreams.info.timeout.attempt")
        if error.errors[3].line == 5
        else (6, "upstreams.info.timeout.attempt"),
        (7, "upstreams.info.timeout.read"),
        (9, 'upstreams."a b".x'),
        (10, "other"),
    ]
    assert (error.field, error.problem, error.remedy) == (
        error.errors[0].field,
        error.errors[0].problem,
        error.errors[0].remedy,
    )
    assert str(error).splitlines() == [str(one) for one in error.errors]
    assert isinstance(error.errors[-1], UnknownName)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "upstreams"),
        ("upstreams = 3", "upstreams"),
        ("[upstreams]\nratings = 3", "upstreams.ratings"),
        ("[[upstreams.ratings]]", "upstreams.ratings"),
        ('[upstreams.""]', 'upstreams.""'),
    ],
)
def test_what_is_no_table_of_upstreams_is_refused(text, field):
    with pytest.raises(ConfigError) as caught:
        read(text)

    assert caught.value.field == field


def test_a_limit_that_only_contradicts_what_nobody_gave_is_fine():
    policy = ratings("retry = { attempts = 1, budget = { ratio = 0, minimum = 0 } }")

    assert policy.retry.budget.ratio == 0


def test_an_empty_budget_is_the_usual_one():
    assert ratings("[upstreams.ratings.retry.budget]").retry.budget == RetryPolicy().budget


def test_waits_of_the_same_numbers_are_equal_however_they_are_said():
    short, long = (ratings(f"retry.wait = {{ exponential = 1{more} }}") for more in ("", ", min = 0, base = 2.0"))

    assert short == long


def test_a_file_is_loaded_as_its_text_is(tmp_path):
    file = tmp_path / "policies.toml"
    file.write_text("[upstreams.ratings.bulkhead]\nlimit = 7")

    assert load(file) == loads(file.read_text())


def test_a_long_value_is_not_shown_at_length():
    assert len(str(error_of(f'bulkhead.limit = "{"x" * 3000}"'))) < 300


# -- the environment


def test_values_may_come_from_the_environment():
    policy = ratings(
        'timeout.call = "${CALL}"\nbulkhead.limit = "${LIMIT}"\nbreaker.enforce = "${ENFORCE}"\n'
        'breaker.slow_after = "${NUMBER}${UNIT}"\nretry.wait = { fixed = "${WAIT}" }\nfallback_limit = "${INF}"',
        CALL="3s",
        LIMIT="7",
        ENFORCE="false",
        NUMBER="30",
        UNIT="ms",
        WAIT="0.5",
        INF="inf",
    )

    assert (policy.timeout.call, policy.bulkhead.limit, policy.breaker.enforce) == (3.0, 7, False)
    assert (policy.breaker.slow_after, policy.retry.wait.wait_fixed, policy.fallback_limit) == (0.03, 0.5, inf)


def test_a_number_in_quotes_is_none_unless_the_environment_says_it():
    assert error_of('bulkhead.limit = "7"').problem == "'7' is no number"


def test_a_missing_variable_is_named_with_the_key_that_needs_it():
    error = error_of('bulkhead.limit = "${LIMIT}"\nretry.wait = { jitter = "${WAIT}" }')

    assert [(one.field, one.problem) for one in error.errors] == [
        ("upstreams.ratings.bulkhead.limit", "the environment has no LIMIT"),
        ("upstreams.ratings.retry.wait.jitter", "the environment has no WAIT"),
    ]


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${A", "x${ A }"])
def test_a_variable_that_is_written_wrongly_is_an_error(text):
    assert error_of(f'bulkhead.limit = "{text}"', A="1").problem == "a `${` that no variable follows"


def test_two_dollars_are_one():
    assert error_of('bulkhead.limit = "$${A}"').problem == "'${A}' is no number"


SAID = "8.125"


@pytest.mark.parametrize(
    "text",
    [
        'bulkhead.limit = "${X}"',
        'bulkhead.limit = "x${X}"',
        'bulkhead = "${X}"',
        'bulkhead.limit = ["${X}"]',
        'bulkhead.limit = { a = "${X}" }',
        'breaker.enforce = "${X}"',
        'breaker.failure_rate = "${X}"',
        'breaker.after_max_half_open = "${X}"',
        'retry.wait = "${X}"',
        'retry.wait = ["${X}"]',
        'retry.wait = { fixed = "-${X}" }',
        'retry.wait = { random = ["${X}", 1] }',
        'retry.wait = { jitter = "1s", min = "${X}", max = 1 }',
        'retry.wait = { a = "${X}" }',
        'timeout.call = "${X}"\ntimeout.attempt = 10',
        'timeout.call = 1\ntimeout.attempt = "${X}"',
        'fallback_timeout = "${X}"\ntimeout.call = 1',
    ],
)
def test_no_error_shows_what_the_environment_says(text):
    assert SAID not in str(error_of(text, X=SAID))


def test_no_log_line_shows_what_the_environment_says():
    line = told(Policy(), ratings("bulkhead.limit = 3"), hidden=frozenset({"bulkhead.limit"}))

    assert line == "bulkhead.limit (from the environment)"


# -- sizes: no knob is one yet


@pytest.mark.parametrize(("raw", "size"), [("10MiB", 10 * 2**20), (17, 17), ("inf", inf)])
def test_a_size_is_read_by_its_unit(raw, size):
    assert number_of(Quantity("bytes"), raw, ("x",), remedy="") == size


def test_what_is_no_size_says_so():
    with pytest.raises(ConfigError, match="'5 s' is no size"):
        number_of(Quantity("bytes"), "5 s", ("x",), remedy="")


# -- writing


def test_only_what_differs_is_written():
    policy = Policy(timeout=TimeoutPolicy(call=20.0), retry=RetryPolicy(attempts=2, budget=None))

    assert dumps({"a b": policy}) == (
        '[upstreams."a b"]\n\n[upstreams."a b".timeout]\ncall = 20.0\n\n[upstreams."a b".retry]\nbudget = "none"\n'
    )
    assert dumps({}) == "[upstreams]\n"


def test_everything_is_written_save_what_only_follows():
    text = dumps({"x": Policy(timeout=TimeoutPolicy(call=3))}, everything=True)

    assert "call = 3\n" in text
    assert "attempt =" not in text
    assert "wait = { jitter = 0.1, max = 2.0 }" in text
    assert "burst = 10\n" in text


@pytest.mark.parametrize(
    "wait",
    [
        tenacity.wait_exponential_jitter(),
        tenacity.wait_fixed(1) + tenacity.wait_random(0, 2),
        lambda _: 1.0,
        tenacity.wait_fixed(inf),
        tenacity.wait_fixed(-1),
        tenacity.wait_random_exponential(exp_base=0),
    ],
)
def test_a_strategy_without_a_spelling_is_an_error_when_it_is_written(wait):
    with pytest.raises(ConfigError) as caught:
        dumps({"x": Policy(retry=RetryPolicy(wait=wait))})

    assert caught.value.field == "upstreams.x.retry.wait"
    assert "no spelling" in caught.value.problem


@pytest.mark.parametrize("name", ["", 3, "\ud800"])
def test_a_name_that_no_file_can_hold_is_an_error(name):
    with pytest.raises(ConfigError):
        dumps({name: Policy()})


def test_no_wait_at_all_is_a_wait_of_nothing():
    policy = Policy(retry=RetryPolicy(wait=tenacity.wait_none()))

    assert "wait = { fixed = 0.0 }" in dumps({"x": policy})


def test_texts_are_quoted_as_toml_wants_them():
    text = "".join(map(chr, range(0xFF))) + '"\\${A}'

    assert read(f"[upstreams.{quoted(text)}]").keys() == {text}
    assert written_value("${A}", ()) == '"$${A}"'


def numbers_for(quantity):
    if quantity.unit == "count":
        most = 10**6 if quantity.most == inf else int(quantity.most)
        numbers = st.integers(int(quantity.least), most)
    elif quantity.least == 1 and quantity.unit == "seconds":
        numbers = st.integers(1, 3600)
    else:
        most = 1e9 if quantity.most == inf else quantity.most
        numbers = st.floats(quantity.least, most, exclude_min=quantity.above) | st.integers(1, int(most))
    return numbers | st.just(inf) if quantity.endless else numbers


seconds = st.floats(0, 1e6) | st.integers(0, 1000)
growing = {"base": st.floats(0.1, 10)}
waits = st.one_of(
    st.fixed_dictionaries({"fixed": seconds}),
    st.fixed_dictionaries({"random": st.tuples(seconds, seconds).map(sorted)}),
    st.fixed_dictionaries({"jitter": seconds}, optional={"max": seconds | st.just(inf), **growing}),
    st.fixed_dictionaries({"exponential": seconds}, optional={"min": seconds, **growing}),
    st.fixed_dictionaries({"incrementing": seconds, "step": seconds}, optional={"max": seconds | st.just(inf)}),
)


def values_for(knob):
    if isinstance(knob.takes, Quantity):
        values = numbers_for(knob.takes)
    elif knob.takes == "wait":
        values = waits.map(lambda words: value_of(knob, words, ("x",)))
    else:
        values = st.booleans() if knob.takes is bool else st.sampled_from(knob.takes)
    if isinstance(knob.default, float):
        values |= st.just(float(knob.default))  # given, where it would only follow
    return values | st.none() if knob.none else values


@st.composite
def policies(draw):
    chosen = draw(st.lists(st.sampled_from([k for k in knobs().values() if k.takes != "policy"]), unique=True))
    policy = Policy()
    if draw(st.booleans()):
        policy = policy.tuned_fields({"retry.budget": None})
    for knob in chosen:
        try:
            policy = policy.tuned_fields({knob.path: draw(values_for(knob))})
        except ConfigError:  # contradicts one before
            continue
    return policy


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(names, policies(), max_size=3), st.booleans())
def test_what_is_written_is_read_again_as_it_was(written, everything):
    again = read(dumps(written, everything=everything))

    assert again == written
    assert list(again) == list(written)
    assert all(alike(again[name], written[name]) for name in written)


# -- the schema


def definition():
    return schema()["definitions"]["upstream"]


def in_schema(path):
    here = definition()
    for name in path.split("."):
        here = here["anyOf"][0] if "properties" not in here else here
        here = here["properties"][name]
    return here


def fits(value, one):
    """As much of a validator as the schema needs."""
    if "$ref" in one:
        return fits(value, schema()["definitions"][one["$ref"].rpartition("/")[2]])
    if "anyOf" in one:
        return any(fits(value, other) for other in one["anyOf"])
    if "const" in one or "enum" in one:
        return value in one.get("enum", [one.get("const")])
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) != inf
    kind = {
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and value == int(value),
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
    }[one["type"]]
    if not kind:
        return False
    if number:
        return (
            value >= one.get("minimum", -inf)
            and value > one.get("exclusiveMinimum", -inf)
            and value <= one.get("maximum", inf)
        )
    if isinstance(value, str):
        return re.search(one["pattern"], value) is not None
    if isinstance(value, list):
        return len(value) == one["minItems"] == one["maxItems"] and all(fits(each, one["items"]) for each in value)
    if isinstance(value, dict):
        known = one["properties"]
        needed = set(one.get("required", ()))
        return needed <= set(value) <= set(known) and all(fits(value[key], known[key]) for key in value)
    return True


@pytest.mark.parametrize("path", [knob.path for knob in knobs().values() if knob.takes != "policy"])
def test_the_schema_has_every_knob_with_its_default_and_its_reason(path):
    one, knob = in_schema(path), knobs()[path]

    assert one["description"] == knob.reason
    assert fits(one["default"], one)
    policy = ratings(f"{path} = {spelled(one['default'])}")
    assert same(settings_of(policy)[path], knob.default)


def spelled(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {one}" for key, one in value.items()) + " }"
    return json.dumps(value)


def test_the_schema_says_what_a_file_is():
    whole = schema()

    assert json.loads(json.dumps(whole)) == whole
    assert "draft-07" in whole["$schema"]
    assert fits(
        {"upstreams": {}}, {"type": "object", "properties": {"upstreams": {"type": "object", "properties": {}}}}
    )
    for table in (whole, definition(), *definition()["properties"].values()):
        assert table.get("additionalProperties", False) is False
    assert fits("none", definition()["properties"]["retry"]["properties"]["budget"])


CANDIDATES = [
    *(-1, 0, 1, 2, 1.5, 64, 65, 0.5, 1e-6, 5e-7, 10**9, True, False, "open", "closed", "shut", "none", "inf"),
    *("300ms", "1.5 s", "5", "10MiB", "", "1m30s", "x", {"fixed": 1}, {"jitter": "1s", "max": "inf"}, {"x": 1}),
    *({"random": [1, 2]}, {"random": [1]}, {"fixed": -1}, {"incrementing": 1}, {"exponential": 1, "base": 0}, {}, []),
]


@pytest.mark.parametrize("value", CANDIDATES, ids=[f"{n}: {one!r}" for n, one in enumerate(CANDIDATES)])
@pytest.mark.parametrize("path", [knob.path for knob in knobs().values() if knob.takes != "policy"])
def test_the_schema_allows_what_the_file_does(path, value):
    try:
        Policy().tuned_fields({path: value_of(knobs()[path], value, ("x",))})
    except ConfigError:
        right = False
    else:
        right = True
    whole_seconds = path == "breaker.window_for" and value in (1.5, "300ms", "1.5 s")  # too fine for a schema

    assert fits(value, in_schema(path)) == right or whole_seconds
