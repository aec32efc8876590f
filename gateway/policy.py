"""Every number that governs an upstream: its name, its default, its reason.

A policy is a frozen value. Tuning is assignment of another one: `upstream.tune(bulkhead=BulkheadPolicy(limit=40))`.
Durations are seconds; `inf` means no limit, or never. A field that is not given follows the one it depends on
(`TimeoutPolicy(call=0.8).attempt` is 0.8); combinations that cannot work are a `ConfigError` that names field and
remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from math import inf, isinf
from typing import Annotated, Any, Literal, cast

from tenacity import RetryCallState, wait_random_exponential

from gateway.outcome import ConfigError, UnknownName
from gateway.readonly import ReadOnly

MICROSECOND = 1e-6
MOST_CALLERS = 64
"""The most that `breaker.min_callers` may be: callers are counted in bounded memory."""
LONGEST_WINDOW, LARGEST_WINDOW = 86_400, 100_000
"""Seconds and calls: a circuit keeps a bucket of each second, 5 MiB of a day, and a byte of each call."""
Wait = Callable[[RetryCallState], float]


@dataclass(frozen=True, slots=True)
class Quantity:
    """What sort of number a knob is, and its range: read by policy files, their schema and the table in the docs.

    The range says again what the checks below decide. `above`: `least` itself is too little; `endless`: inf is allowed.
    """

    unit: Literal["seconds", "bytes", "count", "share", "number"]
    _: KW_ONLY
    least: float = 0.0
    most: float = inf
    above: bool = False
    endless: bool = True


Limit = Annotated[float, Quantity("seconds", above=True)]
Seconds = Annotated[float, Quantity("seconds")]
StateSeconds = Annotated[float, Quantity("seconds", least=MICROSECOND)]
Count = Annotated[float, Quantity("count", least=1)]
BoundedCount = Annotated[int, Quantity("count", least=1, endless=False)]
WindowSeconds = Annotated[float, Quantity("seconds", least=1, most=LONGEST_WINDOW, endless=False)]
WindowCalls = Annotated[int, Quantity("count", least=1, most=LARGEST_WINDOW, endless=False)]
Share = Annotated[float, Quantity("share", most=1.0, above=True, endless=False)]
Number = Annotated[float, Quantity("number")]


class Derived(float):
    """A number that nobody gave: it follows another field, and goes on following it through `dataclasses.replace`."""

    __slots__ = ()


def given(value: object) -> bool:
    """Whether a user chose this value (rather than it having followed from others)."""
    return type(value) is not Derived


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutPolicy:
    """How long a caller waits. Sources: the usual 3 to 5 s to connect and 5 to 30 s of silence of HTTP clients."""

    call: Limit = Derived(20.0)
    """Everything: queue, attempts, pauses, fallbacks. Long enough for two attempts; pages set a nearer `Deadline`."""
    attempt: Limit = Derived(10.0)
    """One try; `call` if that is less. Half of `call`, so that a first try that hangs leaves time for a second."""
    connect: Limit = Derived(3.0)
    """Reaching an HTTP server (name, TCP, TLS). The usual range is 3 to 5 s; `attempt` if that is less."""
    read: Limit = Derived(5.0)
    """Silence between two reads of an HTTP answer. The usual range is 5 to 30 s; `attempt` if that is less."""

    def __post_init__(self) -> None:
        for name in ("call", "attempt", "connect", "read"):
            _above_zero(f"timeout.{name}", getattr(self, name))
        reach = [limit for limit in (self.connect, self.read) if given(limit) and not isinf(limit)]
        attempt = self.attempt if given(self.attempt) and not isinf(self.attempt) else max([10.0, *reach])
        _follow(self, "call", max(20.0, attempt))
        _follow(self, "attempt", min(attempt, self.call))
        _follow(self, "connect", min(3.0, self.attempt))
        _follow(self, "read", min(5.0, self.attempt))
        _not_longer("timeout.attempt", self.attempt, "timeout.call", self.call)
        for outer, limit in (("timeout.attempt", self.attempt), ("timeout.call", self.call)):
            _not_longer("timeout.connect", self.connect, outer, limit)
            _not_longer("timeout.read", self.read, outer, limit)

    def overlaid(self, nearer: TimeoutPolicy) -> TimeoutPolicy:
        """These limits, save what `nearer` was given; an inner one that could not fire follows its outer one."""
        limits = {
            f.name: value if given(value := getattr(nearer, f.name)) else getattr(self, f.name) for f in fields(self)
        }
        for outer, inner in (("call", "attempt"), ("attempt", "connect"), ("attempt", "read")):
            if not given(getattr(nearer, inner)) and limits[inner] > limits[outer]:
                limits[inner] = Derived(limits[outer])
        return TimeoutPolicy(**limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPolicy:
    """How many retries all calls of an upstream may make together; a retry over it is left out, never a call.

    In any stretch of time: retries <= ratio x first tries + minimum x seconds + burst. Sources: Google SRE, "Handling
    Overload"; Finagle's RetryBudget; the shares are those of failsafe-go and Envoy.
    """

    ratio: Number = 0.2
    """Retries for each first try that was sent. At 20 % a retry storm is 1.2 times the load, not 2 or 3 times."""
    minimum: Number = 10.0
    """Retries a second that are always granted, so that little traffic may retry at all; Finagle's figure."""
    burst: Count = 10
    """Retries that may be saved up, and what the account begins with: one second of the minimum."""

    def __post_init__(self) -> None:
        _not_negative("retry.budget.ratio", self.ratio)
        _not_negative("retry.budget.minimum", self.minimum)
        _count("retry.budget.burst", self.burst, or_inf=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often to try, and how long to wait in between. Only what is safe to repeat is ever repeated."""

    attempts: Count = 2
    """Tries in all; 1 = no retry, inf = while time lasts. Two: a third mostly adds load to what is ill (Google SRE)."""
    wait: Wait = wait_random_exponential(multiplier=0.1, max=2.0)
    """Any tenacity wait strategy. Full jitter: 0 to min(2, 0.1 x 2^n) s (AWS, Exponential Backoff And Jitter)."""
    min_try: Seconds = 0.05
    """The least time a try is worth; with less left before the cutoff there is no retry."""
    wait_throttled: Wait | None = wait_random_exponential(multiplier=1.0, max=10.0)
    """The wait after an error whose `reason` is "throttled" (429): 0 to min(10, 1 x 2^n) s. None: as `wait`. Ten times
    as long, as in the AWS SDKs: who was told to slow down is told again if he comes back at once."""
    wait_unavailable: Wait | None = None
    """The wait after an error whose `reason` is "unavailable" (503). None: as `wait`."""
    wait_unreachable: Wait | None = None
    """The wait after an error whose `reason` is "unreachable" (no connection). None: as `wait`."""
    max_retry_after: Seconds = 10.0
    """A `retry_after` above this is not waited for; the call falls back instead. It also bounds how long an upstream
    that asks to be left alone is left alone."""
    pushback_shared: bool = True
    """A `retry_after` holds back all calls of the circuit for its time, not only the one that was told. False where
    single instances behind one address say so for themselves."""
    budget: BudgetPolicy | None = field(default_factory=BudgetPolicy)
    """One account of retries for the whole upstream, so that an outage is not multiplied. None: no limit."""

    def __post_init__(self) -> None:
        _count("retry.attempts", self.attempts, or_inf=True)
        for name in ("wait", "wait_throttled", "wait_unavailable", "wait_unreachable"):
            wait = getattr(self, name)
            if not callable(wait) and (wait is not None or name == "wait"):
                raise ConfigError(f"retry.{name}", f"{wait!r} is not callable", "give a tenacity wait strategy")
        _not_negative("retry.min_try", self.min_try)
        _not_negative("retry.max_retry_after", self.max_retry_after)
        _claim("retry.pushback_shared", self.pushback_shared)
        if not isinstance(self.budget, BudgetPolicy | None):
            raise ConfigError("retry.budget", f"{self.budget!r} is no BudgetPolicy", "give BudgetPolicy(...) or None")
        if self.budget is not None and self.attempts > 1 and not (self.budget.ratio or self.budget.minimum):
            problem = f"a budget of zero grants none of the retries of retry.attempts={self.attempts}"
            raise ConfigError("retry.budget", problem, "give attempts=1, a ratio or minimum above 0, or budget=None")


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkheadPolicy:
    """How many calls may be with the upstream at once, and how many may wait, for how long."""

    limit: Count = 20
    """Calls (or threads) at once. Little's law: calls a second x seconds a call, and some room."""
    queue: Annotated[float, Quantity("count")] = 20
    """Callers that may wait for a place; 0 = the call over the limit fails at once. As many as run: one more round."""
    max_wait: Seconds = Derived(1.0)
    """How long one of them waits at the most: a place that is not free by then would come too late for a page."""

    def __post_init__(self) -> None:
        _count("bulkhead.limit", self.limit, or_inf=True)
        _count("bulkhead.queue", self.queue, least=0, or_inf=True)
        _not_negative("bulkhead.max_wait", self.max_wait)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When to stop asking, for how long, and how to find out that the upstream is well again.

    Rates open the circuit at or above the threshold, as in Hystrix and Resilience4j.
    """

    window_for: WindowSeconds | None = Derived(10.0)
    """Seconds the rates look back over (whole seconds, one bucket each); 10 as in Hystrix. Not with `window_calls`."""
    window_calls: WindowCalls | None = None
    """Calls the rates look back over, instead of a time."""
    min_calls: Count = 10
    """Below this many calls no rate is known; inf = never. Clipped to `window_calls`."""
    failure_rate: Share = 0.5
    """Opens at or above this share of failures, in (0, 1]; for "exceeds 50 % of 100 calls" set 0.505."""
    slow_after: Limit | None = None
    """A call that takes longer than this (strictly) is slow; None = no call is."""
    slow_rate: Share = 1.0
    """Opens at or above this share of slow calls, in (0, 1]."""
    open_for: StateSeconds = Derived(5.0)
    """Refuses until strictly later than this after opening; 5 s is Hystrix' sleep window."""
    open_factor: Annotated[float, Quantity("number", least=1)] = 1.0
    """Each opening in a row lasts this many times longer, up to `open_cap`."""
    open_cap: StateSeconds = Derived(60.0)
    """The longest an opening grows to; never below `open_for`."""
    open_jitter: Annotated[float, Quantity("number", endless=False)] = 0.0
    """Each opening is lengthened by a random share of up to this, so that many processes do not probe together."""
    probes: BoundedCount = 3
    """Calls admitted in half-open, and the size of its window. One flaky probe should not decide alone."""
    max_half_open: StateSeconds = 10.0
    """Half-open ends by itself after this: a probe that never reports must not hold the circuit for ever."""
    after_max_half_open: Literal["open", "closed"] = "open"
    """What it then becomes."""
    auto_half_open: bool = False
    """Leave open when `open_for` is over instead of by the next call."""
    evidence_after: Seconds | None = None
    """A try cut by a nearer deadline counts as a failure only if it ran this long; None: 0.5 s, or half of
    `timeout.attempt` if that is less. So a caller with a few milliseconds cannot open a circuit."""
    min_callers: Annotated[int, Quantity("count", least=1, most=MOST_CALLERS, endless=False)] = 1
    """How many callers must be hit: opens only if the rates hold with the worst `min_callers` - 1 of them left out, so
    that one who sends what always fails does not close the upstream for all. Needs `caller=`. 1: nobody is told apart.
    In half-open a caller whose probe succeeded may have another while none is out, so one healthy caller can close the
    circuit alone; one whose probe fails, or hangs, has no other, and can neither open it again nor keep it open."""
    ramp_for: Annotated[float, Quantity("seconds", endless=False)] = 0.0
    """After half-open, the share of calls let in grows from a tenth to all of them over these seconds; a service that
    has just come back is not hit by everything at once. 0 = all at once. Source: Envoy's slow start."""
    max_circuits: BoundedCount = 1000
    """Circuits of their own that `circuit_by=` may make; over it the least recently used one without failures of late
    goes, and where there is none a new key shares the upstream's own."""
    enforce: bool = True
    """False: count and show what would have been refused, refuse nothing."""

    def __post_init__(self) -> None:
        if self.window_calls is None:
            if self.window_for is None:
                object.__setattr__(self, "window_for", Derived(10.0))
            _whole_seconds("breaker.window_for", self.window_for, remedy="give whole seconds, or `window_calls`")
        elif given(self.window_for) and self.window_for is not None:
            raise ConfigError("breaker.window_for", "both a time and a count window are given", "give only one of them")
        else:
            _count("breaker.window_calls", self.window_calls)
            _at_most("breaker.window_calls", self.window_calls, LARGEST_WINDOW)
            object.__setattr__(self, "window_for", None)
        _count("breaker.min_calls", self.min_calls, or_inf=True)
        _count("breaker.probes", self.probes)
        _share("breaker.failure_rate", self.failure_rate)
        _share("breaker.slow_rate", self.slow_rate)
        if self.slow_after is not None:
            _above_zero("breaker.slow_after", self.slow_after)
        _above_zero("breaker.open_cap", self.open_cap)
        _follow(self, "open_for", min(5.0, self.open_cap) if given(self.open_cap) else 5.0)
        _at_least_a_microsecond("breaker.open_for", self.open_for)
        if not _number("breaker.open_factor", self.open_factor) >= 1:
            raise ConfigError("breaker.open_factor", f"{self.open_factor} would shorten each opening", "give 1 or more")
        _follow(self, "open_cap", max(60.0, self.open_for))
        if self.open_cap < self.open_for:
            problem = f"{self.open_cap} is less than breaker.open_for, {self.open_for}"
            raise ConfigError("breaker.open_cap", problem, "give at least as much")
        _not_negative("breaker.open_jitter", self.open_jitter)
        if isinf(self.open_jitter):
            raise ConfigError("breaker.open_jitter", "inf is no share", "give a share: 0.1 for up to 10 % longer")
        _at_least_a_microsecond("breaker.max_half_open", self.max_half_open)
        if self.after_max_half_open not in ("open", "closed"):
            problem = f"{self.after_max_half_open!r} is not a state it can become"
            raise ConfigError("breaker.after_max_half_open", problem, 'give "open" or "closed"')
        if self.evidence_after is not None:
            _not_negative("breaker.evidence_after", self.evidence_after)
        self._check_callers()
        _claim("breaker.auto_half_open", self.auto_half_open)
        _claim("breaker.enforce", self.enforce)

    def evidence_within(self, attempt: float) -> float:
        """`evidence_after`, where a try may take so many seconds."""
        return min(0.5, attempt / 2) if self.evidence_after is None else self.evidence_after

    def _check_callers(self) -> None:
        _count("breaker.min_callers", self.min_callers)
        _at_most("breaker.min_callers", self.min_callers, MOST_CALLERS)
        _not_negative("breaker.ramp_for", self.ramp_for)
        if isinf(self.ramp_for):
            raise ConfigError("breaker.ramp_for", "inf would never let all in", "give seconds; 0 for no ramp")
        _count("breaker.max_circuits", self.max_circuits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One upstream's rules."""

    timeout: TimeoutPolicy = field(default_factory=TimeoutPolicy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    bulkhead: BulkheadPolicy = field(default_factory=BulkheadPolicy)
    fallback_timeout: Limit = Derived(0.1)
    """What one tier may take that does not say for itself; kept back at the end of `timeout.call`. Plan B is quick."""
    fallback_limit: Count = 10
    """How many may be in one tier at once; the next is not asked. 10 as in Hystrix."""
    refresh_limit: Count = 5
    """How many remembered answers may be asked for anew in the background at once, where places are free. A quarter of
    the default pool: callers who wait come first."""

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                problem = f"{getattr(self, name)!r} is not a {kind.__name__}"
                raise ConfigError(name, problem, f"give {name}={kind.__name__}(...)")
        _above_zero("fallback_timeout", self.fallback_timeout)
        _count("fallback_limit", self.fallback_limit, or_inf=True)
        _count("refresh_limit", self.refresh_limit, or_inf=True)
        evidence = self.breaker.evidence_after
        _not_longer("fallback_timeout", self.fallback_timeout, "timeout.call", self.timeout.call)
        _not_longer("bulkhead.max_wait", self.bulkhead.max_wait, "timeout.call", self.timeout.call)
        if evidence is not None:
            _not_longer("breaker.evidence_after", evidence, "timeout.attempt", self.timeout.attempt)

    def tuned(self, **sections: object) -> Policy:
        """This policy with whole sections replaced."""
        for name in sections:
            if name not in _POLICY_FIELDS:
                raise UnknownName.among(name, name, _POLICY_FIELDS)
        return replace(self, **cast("dict[str, Any]", sections))

    def tuned_fields(self, changes: dict[str, object]) -> Policy:
        """This policy with single fields changed, each named by its path: `{"bulkhead.limit": 40}`."""
        return cast("Policy", _changed(self, "", changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpPolicy:
    """How requests of an HTTP upstream go out, and what of its answers is let in. Limits on time: `TimeoutPolicy`."""

    headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    """Sent with every request, such as an API key; they stand in no error and no text."""
    params: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    """Query parameters sent with every request; they stand in no error and no text."""
    statuses: Mapping[int | str, str] = field(default_factory=dict, hash=False)
    """What a status means where it differs from the table: `{404: "success", "5xx": "failed"}`. "success": a reply;
    "refused": a healthy no; "failed": certainly without effect; "unknown": failed for what may be repeated, else
    unknown. A status goes before its class."""
    max_body: float = 10 * 1024 * 1024
    """Bytes of a body, once unpacked; aiohttp has no limit, and 97 kB of gzip can be 100 MB. Streams have none."""
    max_header: int = 8190
    """Bytes of one header line; nginx' and aiohttp's figure."""
    max_headers: int = 128
    """Header lines of an answer; aiohttp's figure."""
    redirects: int = 0
    """How many redirects of a GET or HEAD are followed, within its origin only. 0: a redirect is a reply like others,
    for what an API redirects to has another cost, and another owner."""
    keepalive_for: float = 15.0
    """Idle connections are closed after this, or sooner where the server says so (`Keep-Alive: timeout=5`)."""
    keepalive_margin: float = 1.0
    """So long before the server would close an idle connection it is no longer used; at most half of its time. A
    request that meets the closing on its way is lost, and a POST then has an unknown outcome."""
    dns_for: float = 10.0
    """How long the addresses of a name are good; short, so that one that moves is found again."""
    resolve: Callable[[str], Sequence[str]] | None = None
    """A plain function that gives the addresses of a name, called in a thread, for service discovery. None: the
    system's."""
    ca_file: str | None = None
    """Certificates (PEM) of the authorities to trust instead of the system's. Servers are always verified."""
    certificate: str | None = None
    """The client's own certificate (PEM), where the server asks for one; with its key, or see `certificate_key`."""
    certificate_key: str | None = None
    """The key of `certificate` (PEM)."""
    trust_env: bool = False
    """True: go through HTTP_PROXY and HTTPS_PROXY, save for NO_PROXY. Off, as the environment is nobody's decision."""
    deadline_header: str | None = "X-Deadline-Ms"
    """The request header that says how much time is left. None: nothing is said."""
    deadline_unit: Literal["ms", "s"] = "ms"
    """Its unit: whole milliseconds, or seconds with a fraction."""
    propagate: Callable[[], Mapping[str, str]] | None = None
    """A plain function that gives headers from the context a request is sent in, such as W3C's `traceparent`: what
    OpenTelemetry's `inject` writes, or what came with the request that is being answered. None: nothing goes along."""
    idempotency_header: str = "Idempotency-Key"
    """The request header for `idempotency_key=` (IETF draft "The Idempotency-Key HTTP Header Field")."""
    stream_for: float = 300.0
    """How long a `stream` may last in all; it holds its place as long."""
    endpoints: EndpointsPolicy = field(default_factory=lambda: EndpointsPolicy())  # noqa: PLW0108 - it comes below
    """How load is shared among several endpoints, and when one of them is left alone for a while."""
    health_path: str | None = None
    """A path below each base URL that is asked whether the endpoint is well (2xx); None: calls alone tell."""
    health_every: float = 5.0
    """Seconds between two such checks of an endpoint. Two that fail one after the other take it out of rotation."""
    health_timeout: float = 1.0
    """How long one check may take in all."""

    def __post_init__(self) -> None:
        for name in ("headers", "params", "statuses"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise ConfigError(f"http.{name}", f"{type(value).__name__} is no mapping", "give a dict")
            object.__setattr__(self, name, ReadOnly(value))
        for name in ("headers", "params"):
            if not all(isinstance(text, str) for pair in getattr(self, name).items() for text in pair):
                raise ConfigError(f"http.{name}", "a name or a value is no str", "give a dict of str to str")
        if self.propagate is not None and not callable(self.propagate):
            raise ConfigError("http.propagate", f"{self.propagate!r} is no function", "give a function of nothing")
        self._check_statuses()
        _count("http.max_body", self.max_body, or_inf=True)
        _count("http.max_header", self.max_header)
        _count("http.max_headers", self.max_headers)
        _count("http.redirects", self.redirects, least=0)
        _not_negative("http.keepalive_for", self.keepalive_for)
        _not_negative("http.keepalive_margin", self.keepalive_margin)
        _not_negative("http.dns_for", self.dns_for)
        _above_zero("http.stream_for", self.stream_for)
        _above_zero("http.health_every", self.health_every)
        _above_zero("http.health_timeout", self.health_timeout)
        if not isinstance(self.endpoints, EndpointsPolicy):
            raise ConfigError(
                "http.endpoints", f"{self.endpoints!r} is no EndpointsPolicy", "give EndpointsPolicy(...)"
            )
        _claim("http.trust_env", self.trust_env)
        if self.resolve is not None and not callable(self.resolve):
            raise ConfigError("http.resolve", f"{self.resolve!r} is not callable", "give a function of a name")
        if self.deadline_unit not in ("ms", "s"):
            raise ConfigError("http.deadline_unit", f"{self.deadline_unit!r} is no unit", 'give "ms" or "s"')
        if self.certificate_key is not None and self.certificate is None:
            raise ConfigError("http.certificate_key", "a key without its certificate", "give certificate= as well")

    def _check_statuses(self) -> None:
        for status, meaning in self.statuses.items():
            known = isinstance(status, int) and 200 <= status <= 599  # noqa: PLR2004 - final statuses
            if not known and status not in ("2xx", "3xx", "4xx", "5xx"):
                raise ConfigError("http.statuses", f"{status!r} is no status", 'give 404, or "4xx"')
            if meaning not in ("success", "refused", "failed", "unknown"):
                problem = f"{meaning!r} is not what a status can mean"
                raise ConfigError("http.statuses", problem, "give success, refused, failed or unknown")


def _changed(policy: Any, where: str, changes: dict[str, object]) -> Any:
    """A policy with fields changed, and fields of the policies in it: `changes` goes by paths from here."""
    known = {f.name for f in fields(policy)}
    inner: dict[str, dict[str, object]] = {}
    own: dict[str, object] = {}
    for path, value in changes.items():
        name, dot, rest = path.partition(".")
        if name not in known or (dot and not rest):
            raise UnknownName.among(where + path, path if where else where + path, known if where else KNOBS)
        if dot and name not in NESTED.get(type(policy), {}):
            raise UnknownName.among(where + path, where + path, KNOBS)
        if dot:
            inner.setdefault(name, {})[rest] = value
        elif where or name not in SECTIONS:
            own[name] = value
        else:
            raise UnknownName.among(path, path, KNOBS)
    for name, values in inner.items():
        part = own.get(name, getattr(policy, name)) or NESTED[type(policy)][name]()
        own[name] = _changed(part, f"{where}{name}.", values)
    return replace(policy, **cast("dict[str, Any]", own))


SECTIONS: dict[str, type[TimeoutPolicy | RetryPolicy | BreakerPolicy | BulkheadPolicy]] = {
    "timeout": TimeoutPolicy,
    "retry": RetryPolicy,
    "breaker": BreakerPolicy,
    "bulkhead": BulkheadPolicy,
}
NESTED: dict[type, dict[str, type[Any]]] = {Policy: {**SECTIONS}, RetryPolicy: {"budget": BudgetPolicy}}
"""The fields that are policies themselves."""
_POLICY_FIELDS = {f.name for f in fields(Policy)}


def _knobs(kind: type[Any], where: str = "") -> Iterator[str]:
    for f in fields(kind):
        nested = NESTED.get(kind, {}).get(f.name)
        if kind is not Policy or nested is None:
            yield where + f.name
        if nested is not None:
            yield from _knobs(nested, f"{where}{f.name}.")


KNOBS = sorted(_knobs(Policy))
"""The path of every field that can be set: `bulkhead.limit`, `retry.budget.ratio`, `fallback_timeout`."""


# -- checks: each names the field and the remedy


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:  # noqa: PLR0124 - nan
        raise ConfigError(name, f"{value!r} is not a number", "give a number")
    try:
        float(value)
    except OverflowError:
        raise ConfigError(name, "it is too large for a float", "give less, or inf") from None
    return value


def _above_zero(name: str, value: object) -> None:
    if not _number(name, value) > 0:
        raise ConfigError(name, f"{value} is not above 0", "give seconds above 0, or inf")


def _at_least_a_microsecond(name: str, value: object) -> None:
    """Instants are told apart to the microsecond: a shorter state would never be over."""
    _above_zero(name, value)
    if _number(name, value) < MICROSECOND:
        raise ConfigError(name, f"{value} is shorter than a microsecond", f"give {MICROSECOND} or more")


def _not_negative(name: str, value: object) -> None:
    if not _number(name, value) >= 0:
        raise ConfigError(name, f"{value} is below 0", "give 0 or more")


def _count(name: str, value: object, *, least: int = 1, or_inf: bool = False) -> None:
    number = _number(name, value)
    if or_inf and isinf(number) and number > 0:
        return
    if isinf(number) or number != int(number) or number < least:
        problem = f"{value} is not a whole number from {least} up"
        raise ConfigError(name, problem, f"give {least} or more" + (", or inf" if or_inf else ""))


def _at_most(name: str, number: float, most: float) -> None:
    if number > most:
        raise ConfigError(name, f"{number} is more than is kept", f"give at most {most}")


def _share(name: str, value: object) -> None:
    if not 0 < _number(name, value) <= 1:
        raise ConfigError(name, f"{value} is not in (0, 1]", "give a share: 0.5 for 50 %")


def _claim(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(name, f"{value!r} is neither True nor False", "give one of them")


def _not_longer(name: str, value: float, outer: str, limit: float) -> None:
    """An inner limit longer than the outer one can never fire. `inf` is no limit, and what nobody gave follows."""
    if value > limit and given(value) and given(limit) and not isinf(value):
        raise ConfigError(
            name, f"{value} s can never fire: {outer} is {limit} s", f"give at most {limit}, or raise {outer}"
        )


def _follow(policy: object, name: str, value: float) -> None:
    """What nobody gave follows: the value is marked, so that a replaced policy derives it anew."""
    if not given(getattr(policy, name)):
        object.__setattr__(policy, name, Derived(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointsPolicy:
    """How load is shared among the endpoints of one upstream, and when one of them is left alone for a while.

    Sources: Envoy's outlier detection and slow start; Finagle's and linkerd's balancers.
    """

    failures_in_a_row: float = 5
    """Ejects after this many failures with no success in between; inf = never. Envoy's figure: one restart of a proxy
    in front of it costs an instance fewer, a dead one reaches it within its first few calls."""
    window_for: float = 10.0
    """Seconds that the rate of failures looks back over (whole seconds, one bucket each), as a circuit's."""
    min_calls: float = 20
    """Below this many calls no rate, and no latency, is known; inf = never. Twice a circuit's: with 20 % of failures
    all over, half of 10 calls fail by chance once in 30 windows, half of 20 once in 400."""
    failure_rate: float = 0.5
    """Ejects at or above this share of failures, in (0, 1]."""
    slow_factor: float | None = None
    """Ejects what is slower than this many times the median of the others; None = never: load moves away from a slow
    one by itself. Above 1; 3 or more where latencies scatter."""
    eject_for: float = Derived(5.0)
    """The first ejection lasts this long, the n-th n times as long (Envoy). 5 s as a circuit's `open_for`, not Envoy's
    30: who comes back too early comes back to a tenth of its share, and costs a few tries that others then serve."""
    eject_cap: float = Derived(60.0)
    """The longest an ejection grows to; never below `eject_for`."""
    forgive_after: float = 30.0
    """Each time this long in rotation takes back one ejection of those that lengthen the next. inf = never."""
    max_ejected: float = 0.5
    """The largest share of the endpoints that is out at once, in (0, 1], whoever says so, calls or checks; and never
    the last one. Half: whatever the evidence, the rest can carry twice their load more easily than everything."""
    ramp_for: float = 10.0
    """The weight of an endpoint that is new, or comes back, grows from a tenth to all of it over these seconds; 0 = all
    at once. Its caches are cold and its connections still to be made."""
    decay_for: float = 10.0
    """Latencies are averaged over about this long, and one not seen for longer is forgotten; 10 s as in Finagle."""
    failure_cost: float = 1.0
    """Seconds that a failure counts as, when load is shared: an endpoint that refuses at once is quick, and would
    otherwise draw all load. About what a user would wait to be spared one."""
    max_report_age: float = 60.0
    """A check's "down" holds this long: if the checks end, nobody is out for ever. Six checks at the usual 10 s."""
    share_keys: bool = False
    """True: what one of them has done under an idempotency key, all of them know. Else requests with a key that only
    the key makes safe to repeat go to one endpoint for each key, and elsewhere only if they were certainly not sent."""

    def __post_init__(self) -> None:
        _count("endpoints.failures_in_a_row", self.failures_in_a_row, or_inf=True)
        _whole_seconds("endpoints.window_for", self.window_for)
        _count("endpoints.min_calls", self.min_calls, or_inf=True)
        _share("endpoints.failure_rate", self.failure_rate)
        if self.slow_factor is not None and not _number("endpoints.slow_factor", self.slow_factor) > 1:
            problem = f"{self.slow_factor} would eject what is no slower than others"
            raise ConfigError("endpoints.slow_factor", problem, "give a factor above 1: 3 for three times as slow")
        _above_zero("endpoints.eject_cap", self.eject_cap)
        _follow(self, "eject_for", min(5.0, self.eject_cap) if given(self.eject_cap) else 5.0)
        _at_least_a_microsecond("endpoints.eject_for", self.eject_for)
        _follow(self, "eject_cap", max(60.0, self.eject_for))
        if self.eject_cap < self.eject_for:
            problem = f"{self.eject_cap} is less than endpoints.eject_for, {self.eject_for}"
            raise ConfigError("endpoints.eject_cap", problem, "give at least as much")
        _at_least_a_microsecond("endpoints.forgive_after", self.forgive_after)
        _share("endpoints.max_ejected", self.max_ejected)
        _finite("endpoints.ramp_for", self.ramp_for, "would never end")
        _at_least_a_microsecond("endpoints.decay_for", self.decay_for)
        _finite("endpoints.failure_cost", self.failure_cost, "would be all that counts")
        _at_least_a_microsecond("endpoints.max_report_age", self.max_report_age)
        _claim("endpoints.share_keys", self.share_keys)


def _whole_seconds(name: str, value: object, *, remedy: str = "give whole seconds") -> None:
    seconds = _number(name, value)
    if isinf(seconds) or seconds != int(seconds) or seconds < 1:
        raise ConfigError(name, f"{seconds} is not a whole number of seconds from 1 up", remedy)
    _at_most(name, seconds, LONGEST_WINDOW)


def _finite(name: str, value: object, otherwise: str) -> None:
    _not_negative(name, value)
    if isinf(_number(name, value)):
        raise ConfigError(name, f"inf {otherwise}", "give seconds, 0 or more")
